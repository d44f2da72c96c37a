"""Changes of features: written into the history, and saved. One that cannot be saved is taken back.

The value that was sound before is current again when saving fails, unless a newer change goes on.
"""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass, field

from nvmeof.errors import CommandError
from nvmeof.spec.persistent_events import EventType
from nvmeof.spec.sqe import Sqe
from nvmeof.spec.status import Status
from nvmeof.target.commands.rows.features import FeatureSpec, Scope, metadata_store_of, namespace_of
from nvmeof.target.controller.controller import Controller
from nvmeof.target.namespaces.feature_values import Saved, Value, save
from nvmeof.target.subsystem.persistent_events import set_feature


@dataclass(slots=True)
class _Changes:
    """Changes of one feature that are being saved, the newest last, and the value that was sound before them."""

    sound: Value
    saving: list[_Saving] = field(default_factory=list)


_CHANGES: dict[tuple[int, int, int], _Changes] = {}
"""By the feature's owner, identifier and selector, while there are any."""


class _Saving:
    """A change of a feature that is being saved: when that fails, the value that was sound before is current again."""

    __slots__ = ("_all", "_key", "before", "controller", "row", "sqe")

    def __init__(self, controller: Controller, row: FeatureSpec, sqe: Sqe) -> None:
        self.controller, self.row, self.sqe = controller, row, sqe
        self.before = row.read(controller, sqe)
        self._key = (id(_owner(row, controller, sqe)), row.fid, row.selector(sqe))
        self._all = _CHANGES.setdefault(self._key, _Changes(self.before))
        self._all.saving.append(self)

    def _end(self) -> bool:
        """Forget the change; return whether it was the newest."""
        newest = self._all.saving[-1] is self
        self._all.saving.remove(self)
        if not self._all.saving:
            _CHANGES.pop(self._key, None)
        return newest

    @property
    def _gone(self) -> bool:
        """Return whether the namespace was detached since."""
        return self.row.scope is Scope.NAMESPACE and self.sqe.nsid not in self.controller.namespaces

    def stored(self, data: memoryview | None, dw0: int) -> int:
        """Make a saved value current, and record the change as a persistent event."""
        if self._gone:
            self._end()
            return dw0
        self.row.stored(self.controller, self.sqe)
        self._all.sound = self.row.read(self.controller, self.sqe)
        self._end()
        if self.row.in_history:
            _note(self.controller, self.row, self.sqe, data, self.before, dw0)
        return dw0

    def failed(self) -> None:
        """Note that the value was refused or could not be saved: a newer change goes on."""
        if self._end() and self.row.restore is not None and not self._gone:
            self.row.restore(self.controller, self.sqe, self._all.sound)


def _owner(row: FeatureSpec, controller: Controller, sqe: Sqe) -> object:
    if row.scope is Scope.NAMESPACE:
        return namespace_of(controller, sqe)
    return controller if row.scope is Scope.CONTROLLER else controller.subsystem


def save_change(controller: Controller, row: FeatureSpec, sqe: Sqe, data: memoryview | None) -> int | Awaitable[int]:
    """Set a feature's value and save it; return DW0. Raises `CommandError`, with nothing changed."""
    assert row.apply is not None
    saving = _Saving(controller, row, sqe)
    try:
        result = row.apply(controller, sqe, data)
        if isinstance(result, int):
            pending = _save(controller, row, sqe, data)
            return saving.stored(data, result) if pending is None else _saved_later(saving, data, result, pending)
    except BaseException:
        saving.failed()
        raise
    return _save_after(saving, data, result)


def note_change(controller: Controller, row: FeatureSpec, sqe: Sqe, data: memoryview | None) -> int | Awaitable[int]:
    """Set a feature's value, and write a change into the history; return DW0. Raises `CommandError`."""
    assert row.apply is not None
    if not row.in_history:
        return row.apply(controller, sqe, data)
    before = row.read(controller, sqe)
    result = row.apply(controller, sqe, data)
    if isinstance(result, int):
        _note(controller, row, sqe, data, before, result)
        return result
    return _note_later(controller, row, sqe, data, before, result)


def _note(controller: Controller, row: FeatureSpec, sqe: Sqe, data: memoryview | None, before: Value, dw0: int) -> None:
    if row.read(controller, sqe) == before:
        return
    dwords = [sqe.cdw10, sqe.cdw11, sqe.cdw12, sqe.cdw13, sqe.cdw14, sqe.cdw15]
    while len(dwords) > 2 and not dwords[-1]:
        dwords.pop()
    controller.record(EventType.SET_FEATURE, set_feature(dwords, b"" if data is None else bytes(data), dw0))


async def _note_later(
    controller: Controller,
    row: FeatureSpec,
    sqe: Sqe,
    data: memoryview | None,
    before: Value,
    pending: Awaitable[int],
) -> int:
    stored = None if data is None else memoryview(bytes(data))
    dw0 = await pending
    _note(controller, row, sqe, stored, before, dw0)
    return dw0


async def _save_after(saving: _Saving, data: memoryview | None, applied: Awaitable[int]) -> int:
    try:
        result = await applied
        pending = _save(saving.controller, saving.row, saving.sqe, data)
    except BaseException:
        saving.failed()
        raise
    return saving.stored(data, result) if pending is None else await _saved_later(saving, data, result, pending)


async def _saved_later(saving: _Saving, data: memoryview | None, dw0: int, pending: Awaitable[None]) -> int:
    noted = None if data is None else memoryview(bytes(data))
    try:
        await pending
    except OSError as error:
        saving.failed()
        raise _not_saved(error) from error
    except BaseException:
        saving.stored(noted, dw0)  # the command was given up; the write goes on
        raise
    return saving.stored(noted, dw0)


def _save(controller: Controller, row: FeatureSpec, sqe: Sqe, data: memoryview | None) -> Awaitable[None] | None:
    dwords = (sqe.cdw11, sqe.cdw12, sqe.cdw13, sqe.cdw14, sqe.cdw15)
    value = (row.to_keep or row.read)(controller, sqe)
    saved = Saved(dwords, None if data is None else bytes(data), value)
    try:
        return save(metadata_store_of(row.scope, controller, sqe), row.fid, row.selector(sqe), saved)
    except OSError as error:
        raise _not_saved(error) from error


def _not_saved(error: OSError) -> CommandError:
    return CommandError(
        Status.INTERNAL_ERROR,
        dnr=False,
        message=f"the value cannot be saved, and is what it was: {error.strerror or error}",
    )
