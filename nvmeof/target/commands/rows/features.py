"""Get Features and Set Features: the way of both through a feature's row (NVMe Base, Feature definitions).

A row's `apply` validates what the host sends and makes it so; its `read` gives the current value. The rest is alike
for all: which NSID goes with which scope, what SEL chooses, what SV saves, and what a reset leaves. The rows are in the
modules beside this one; the Feature Identifiers and Effects log and docs/supported.md are made from them.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import TypedDict, Unpack

from nvmeof.errors import CommandError
from nvmeof.runtime import settled
from nvmeof.spec.enums import NSID_ALL, AdminOpcode, AnaState, CommandEffects, FeatureSelect
from nvmeof.spec.features import FeatureCapabilities
from nvmeof.spec.persistent_events import EventType
from nvmeof.spec.sqe import SQE, Sqe
from nvmeof.spec.status import Status
from nvmeof.target.commands.context import CommandContext
from nvmeof.target.commands.dispatch.admission import check_path
from nvmeof.target.commands.dispatch.base import Completion, check_nsid, not_active
from nvmeof.target.controller.controller import Controller
from nvmeof.target.core.metadata import MetadataStore
from nvmeof.target.namespaces.feature_values import Saved, Value, Values, load, load_all, save
from nvmeof.target.namespaces.namespace import Namespace
from nvmeof.target.subsystem.persistent_events import set_feature

_FID = SQE.error_location("cdw10")
_SEL = SQE.error_location("cdw10", 8)
_SV = SQE.error_location("cdw10", 31)
_NSID = SQE.error_location("nsid")

logger = logging.getLogger(__name__)

Read = Callable[[Controller, Sqe], Value]
Apply = Callable[[Controller, Sqe, "memoryview | None"], "int | Awaitable[int]"]
Check = Callable[[Controller, Sqe], None]
Restore = Callable[[Controller, Sqe, Value], None]


class Scope(Enum):
    """What a feature's value belongs to; the value is its bit of FSP in the Feature Identifiers and Effects log."""

    NAMESPACE = 1 << 20
    CONTROLLER = 1 << 21
    ENDURANCE_GROUP = 1 << 23
    SUBSYSTEM = 1 << 25

    @property
    def word(self) -> str:
        return self.name.lower().replace("_", " ")


def no_selector(sqe: Sqe) -> int:
    """For a feature that has one value."""
    return 0


@dataclass(frozen=True, slots=True)
class FeatureSpec:
    """A row. `read` and `default` answer Get Features; `apply` does Set Features and returns its DW0, now or later.

    `apply` None: not changeable; `refusal` is then the status. `check` is asked before any data moves, and again before
    `apply`. `supported` says whether this controller has it.

    Of a feature with the scope NAMESPACE all of these see commands whose NSID is that of one attached namespace
    (`namespace_of`): a Set Features for FFFFFFFFh comes once for each of them, after `check` has passed for all. What a
    Get Features for FFFFFFFFh is refused with is `all_refusal`.

    `saveable`: SV keeps a value over resets and restarts (of all controllers of the subsystem, or of the namespace).
    `persistent`: every value is kept so, without being asked; SV is refused. A value that cannot be kept is taken back:
    `restore` makes the one before current again. `kept` is called when it is kept, with what must not be so earlier;
    `to_keep` tells the value where `read` does not show it before that. `selector` names which of several values
    of the feature a command means (temperature sensors); each is saved for itself.

    `in_history`: a change is a persistent event. The specification wants some features not to be there, and others are
    set by every host with every connection. `private`: telemetry does not show the value.
    """

    fid: int
    name: str
    read: Read
    default: Read
    apply: Apply | None = None
    discovery: bool = False  # also on discovery controllers
    supported: Callable[[Controller], bool] = lambda controller: True
    condition: str = ""  # `supported` in words
    refusal: Status = Status.FEATURE_NOT_CHANGEABLE
    scope: Scope = Scope.CONTROLLER
    saveable: bool = False
    persistent: bool = False
    selector: Callable[[Sqe], int] = no_selector
    check: Check = lambda controller, sqe: None
    restore: Restore | None = None
    kept: Check = lambda controller, sqe: None
    to_keep: Read | None = None
    all_refusal: Status = Status.INVALID_NAMESPACE
    needs_access: bool = False  # not available while the ANA state forbids access (NVMe Base 8.1.1.10)
    for_all: bool = True  # whether Set Features takes FFFFFFFFh
    effects: CommandEffects = CommandEffects.SUPPORTED  # without the scope
    data_bytes: int = 0  # length of its data structure, 0 for none
    transfer_bytes: Callable[[Sqe], int] | None = None  # of Set Features, where it depends on the command
    in_history: bool = True
    private: bool = False

    @property
    def capabilities(self) -> int:
        """DW0 of Get Features with SEL 011b."""
        result = FeatureCapabilities(0)
        if self.apply is not None:
            result |= FeatureCapabilities.CHANGEABLE
        if self.saveable:
            result |= FeatureCapabilities.SAVEABLE
        if self.scope is Scope.NAMESPACE:
            result |= FeatureCapabilities.NAMESPACE_SPECIFIC
        return result

    @property
    def log_entry(self) -> int:
        """Its dword of the Feature Identifiers and Effects log."""
        return self.effects | self.scope.value


class FeatureTable(dict[int, FeatureSpec]):
    """The features of a target, by FID."""


# What rows are made with


def invalid(message: str, field: str = "cdw11", bit: int = 0) -> CommandError:
    """Invalid Field in Command, with its place."""
    return CommandError(Status.INVALID_FIELD, SQE.error_location(field, bit), message=message)


def invalid_data(message: str) -> CommandError:
    """Invalid Field in Command, for something in the data: the place is the pointer to it."""
    return invalid(message, "sgl_address")


def check_bits(name: str, value: int, allowed: int, field: str = "cdw11") -> None:
    """Raise Invalid Field in Command at the lowest bit of `value` that is not `allowed`."""
    wrong = value & ~allowed
    if wrong:
        bit = (wrong & -wrong).bit_length() - 1
        raise invalid(f"{name}: bit {bit} of {value:#x} is not supported", field, bit)


def constant(dw0: int = 0, data: bytes | None = None) -> Read:
    """A default that is the same for all."""
    value = Value(dw0, data)
    return lambda controller, sqe: value


def namespace_of(controller: Controller, sqe: Sqe) -> Namespace:
    """The namespace that a command for a feature with the scope NAMESPACE is for."""
    return controller.namespaces[sqe.nsid]


def _values(scope: Scope, controller: Controller, sqe: Sqe) -> Values:
    if scope is Scope.NAMESPACE:
        return namespace_of(controller, sqe).features
    return controller.features.values if scope is Scope.CONTROLLER else controller.subsystem.features


def current_value(
    features: FeatureTable, controller: Controller, fid: int, nsid: int = 0, selector: int = 0, *, cdw11: int = 0
) -> Value:
    """A feature's current value, for who acts by it. `nsid`: of a feature with the scope NAMESPACE."""
    row = features[fid]
    return row.read(controller, Sqe(opcode=AdminOpcode.GET_FEATURES, nsid=nsid, cdw10=fid, cdw11=cdw11))


class Options(TypedDict, total=False):
    """The fields of a row that `remembered` and `dword` take beside those that they make."""

    needs_access: bool
    discovery: bool
    supported: Callable[[Controller], bool]
    condition: str
    scope: Scope
    saveable: bool
    persistent: bool
    selector: Callable[[Sqe], int]
    check: Check
    all_refusal: Status
    for_all: bool
    effects: CommandEffects
    data_bytes: int
    in_history: bool


def remembered(
    fid: int,
    name: str,
    default: Read,
    decode: Callable[[Controller, Sqe, bytes | None], Value],
    *,
    changed: Callable[[Controller, Sqe], None] = lambda controller, sqe: None,
    **options: Unpack[Options],
) -> FeatureSpec:
    """Make a row for a feature that is a value, remembered.

    `decode` makes the value of a Set Features, or raises `CommandError`; `changed` is called after it was set. The
    `options` are fields of `FeatureSpec`.
    """
    scope = options.get("scope", Scope.CONTROLLER)
    selector = options.get("selector", no_selector)

    def read(controller: Controller, sqe: Sqe) -> Value:
        chosen = selector(sqe)
        value = _values(scope, controller, sqe).get((fid, chosen))
        if value is None and scope is not Scope.CONTROLLER:
            # Of a controller the saved values become current with its reset; of what outlives controllers, at once.
            kept = load(_metadata_store(scope, controller, sqe), fid, chosen)
            value = None if kept is None else kept.value
        return default(controller, sqe) if value is None else value

    def restore(controller: Controller, sqe: Sqe, value: Value) -> None:
        _values(scope, controller, sqe)[fid, selector(sqe)] = value
        changed(controller, sqe)

    def apply(controller: Controller, sqe: Sqe, data: memoryview | None) -> int:
        restore(controller, sqe, decode(controller, sqe, None if data is None else bytes(data)))
        return 0

    return FeatureSpec(fid, name, read, default, apply, restore=restore, **options)


def dword(
    fid: int,
    name: str,
    mask: int,
    default: int = 0,
    *,
    changed: Callable[[Controller, Sqe], None] = lambda controller, sqe: None,
    **options: Unpack[Options],
) -> FeatureSpec:
    """Make a row for a feature that is one dword, remembered, whose bits outside `mask` must be zero."""

    def decode(controller: Controller, sqe: Sqe, data: bytes | None) -> Value:
        check_bits(name, sqe.cdw11, mask)
        return Value(sqe.cdw11)

    return remembered(fid, name, constant(default), decode, changed=changed, **options)


# The commands


@dataclass(frozen=True, slots=True)
class FeatureRequest:
    """A Get Features or Set Features command, decoded. `row`: None for a feature that the target does not have.

    `select` is SEL of Get Features, `save` SV of Set Features. What the other dwords mean is the row's to know.
    """

    row: FeatureSpec | None
    fid: int
    select: int
    save: bool
    sqe: Sqe


def decode_features(ctx: CommandContext, sqe: Sqe) -> FeatureRequest:
    """Decode CDW10, and look the feature up."""
    fid = sqe.cdw10 & 0xFF
    return FeatureRequest(ctx.tables[FeatureTable].get(fid), fid, sqe.cdw10 >> 8 & 7, bool(sqe.cdw10 >> 31), sqe)


def _row(ctx: CommandContext, request: FeatureRequest) -> FeatureSpec:
    row, controller = request.row, ctx.controller
    assert controller is not None
    if row is None or not row.supported(controller) or (controller.discovery and not row.discovery):
        raise CommandError(Status.INVALID_FIELD, _FID, message=f"feature {request.fid:#04x} is not supported")
    return row


def _metadata_store(scope: Scope, controller: Controller, sqe: Sqe) -> MetadataStore:
    return (
        namespace_of(controller, sqe).backend.metadata_store
        if scope is Scope.NAMESPACE
        else controller.subsystem.metadata_store
    )


def _check_attached(ctx: CommandContext, sqe: Sqe) -> None:
    """The NSID of a feature with the scope NAMESPACE."""
    if sqe.nsid not in ctx.namespaces:
        raise not_active(ctx, sqe.nsid)


def get_bytes(ctx: CommandContext, request: FeatureRequest) -> int:
    """Length rule of Get Features."""
    return 0 if request.select == FeatureSelect.SUPPORTED_CAPABILITIES else _row(ctx, request).data_bytes


def set_bytes(ctx: CommandContext, request: FeatureRequest) -> int:
    """Length rule of Set Features."""
    row = _row(ctx, request)
    return row.data_bytes if row.transfer_bytes is None else row.transfer_bytes(request.sqe)


def check_get_features(ctx: CommandContext, request: FeatureRequest) -> None:
    """Known, SEL, and the NSID of a feature that is a namespace's."""
    row, select, sqe = _row(ctx, request), request.select, request.sqe
    if select > FeatureSelect.SUPPORTED_CAPABILITIES:
        raise CommandError(Status.INVALID_FIELD, _SEL, message=f"SEL {select} is reserved")
    if row.scope is Scope.NAMESPACE and select != FeatureSelect.SUPPORTED_CAPABILITIES:
        if sqe.nsid == NSID_ALL:
            raise CommandError(row.all_refusal, _NSID, message=f"{row.name} cannot be reported for NSID FFFFFFFFh")
        _check_attached(ctx, sqe)
        if row.needs_access:
            check_path(ctx, sqe.nsid)


def get_features(ctx: CommandContext, request: FeatureRequest, data: memoryview | None) -> Completion:
    """Current, default or saved value, or the capabilities. What was not saved has its default as saved value."""
    row, select, sqe, controller = _row(ctx, request), request.select, request.sqe, ctx.controller
    assert controller is not None
    if select == FeatureSelect.SUPPORTED_CAPABILITIES:
        return Completion(dw0=row.capabilities)
    # What the command means is looked at by `default` as well: a wrong selector has no saved value either.
    value = (row.read if select == FeatureSelect.CURRENT else row.default)(controller, sqe)
    if select == FeatureSelect.SAVED and (row.saveable or row.persistent):
        kept = load(_metadata_store(row.scope, controller, sqe), row.fid, row.selector(sqe))
        value = value if kept is None else kept.value
    return Completion(dw0=value.dw0, data=value.data)


def _targets(ctx: CommandContext, row: FeatureSpec, sqe: Sqe) -> list[Sqe]:
    """The command, once for each namespace that it is for."""
    if row.scope is not Scope.NAMESPACE or sqe.nsid != NSID_ALL:
        return [sqe]
    return [dataclasses.replace(sqe, nsid=nsid) for nsid in ctx.namespaces]


def _check_set_access(ctx: CommandContext, row: FeatureSpec, sqe: Sqe) -> None:
    """Raise the path related status where the ANA state is in the way of a Set Features (NVMe Base 8.1.1.10).

    Nothing is saved then, nothing is set for all namespaces, and nothing at all in Persistent Loss.
    """
    assert ctx.controller is not None
    saves = row.persistent or bool(sqe.cdw10 >> 31)
    lost = any(
        ctx.controller.ana.state(ctx.namespaces[nsid].anagrpid) is AnaState.PERSISTENT_LOSS
        for nsid in (ctx.namespaces if sqe.nsid == NSID_ALL else (sqe.nsid,))
    )
    if row.needs_access or saves or lost or sqe.nsid == NSID_ALL:
        check_path(ctx, sqe.nsid)


def check_set_features(ctx: CommandContext, request: FeatureRequest) -> None:
    """Everything that does not need the data: known, changeable, saveable, its NSID."""
    row, sqe = _row(ctx, request), request.sqe
    if row.apply is None:
        raise CommandError(row.refusal, _FID, message=f"{row.name} cannot be changed")
    if request.save and not row.saveable:
        raise CommandError(Status.FEATURE_NOT_SAVEABLE, _SV, message=f"{row.name} cannot be saved")
    if row.scope is Scope.NAMESPACE:
        if sqe.nsid != NSID_ALL or not row.for_all:
            _check_attached(ctx, sqe)
        _check_set_access(ctx, row, sqe)
    elif sqe.nsid not in (0, NSID_ALL):
        check_nsid(ctx, sqe.nsid)
        raise CommandError(
            Status.FEATURE_NOT_NAMESPACE_SPECIFIC, _NSID, message=f"{row.name} is not namespace specific"
        )
    assert ctx.controller is not None
    for each in _targets(ctx, row, sqe):
        row.check(ctx.controller, each)


def set_features(
    ctx: CommandContext, request: FeatureRequest, data: memoryview | None
) -> Completion | Awaitable[Completion]:
    """Change a feature's current value, and its saved value when SV asks for that."""
    check_set_features(ctx, request)
    row = _row(ctx, request)
    targets = _targets(ctx, row, request.sqe)
    if len(targets) != 1:
        return _set_all(ctx, row, targets, data)
    result = _set_one(ctx, row, targets[0], data)
    return Completion(dw0=result) if isinstance(result, int) else _set_later(result)


async def _set_later(pending: Awaitable[int]) -> Completion:
    return Completion(dw0=await pending)


async def _set_all(ctx: CommandContext, row: FeatureSpec, targets: list[Sqe], data: memoryview | None) -> Completion:
    assert ctx.controller is not None
    done: list[tuple[Sqe, Value]] = []
    for sqe in targets:
        # One that went while another was written needs it no more.
        if sqe.nsid in ctx.namespaces:
            before = row.read(ctx.controller, sqe)
            try:
                result = _set_one(ctx, row, sqe, data)
                if not isinstance(result, int):
                    await result
            except CommandError:
                await _take_back(ctx.controller, row, done)
                raise
            done.append((sqe, before))
    return Completion()


async def _take_back(controller: Controller, row: FeatureSpec, done: list[tuple[Sqe, Value]]) -> None:
    """Give namespaces the values that they had: the command has failed for another one."""
    for sqe, before in reversed(done):
        if row.restore is None or sqe.nsid not in controller.namespaces:
            continue
        row.restore(controller, sqe, before)
        if row.persistent or sqe.cdw10 >> 31:
            store, saved = (
                _metadata_store(row.scope, controller, sqe),
                Saved((before.dw0, 0, 0, 0, 0), before.data, before),
            )
            try:
                await settled(save(store, row.fid, row.selector(sqe), saved))
            except OSError as error:
                logger.error("%s of namespace %d is kept as a failed command set it: %s", row.name, sqe.nsid, error)


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
        """Forget it; returns whether it was the newest."""
        newest = self._all.saving[-1] is self
        self._all.saving.remove(self)
        if not self._all.saving:
            _CHANGES.pop(self._key, None)
        return newest

    @property
    def _gone(self) -> bool:
        """Whether its namespace has been detached meanwhile."""
        return self.row.scope is Scope.NAMESPACE and self.sqe.nsid not in self.controller.namespaces

    def kept(self, data: memoryview | None, dw0: int) -> int:
        """It is saved: it holds from now on, and is written into the history."""
        if self._gone:
            self._end()
            return dw0
        self.row.kept(self.controller, self.sqe)
        self._all.sound = self.row.read(self.controller, self.sqe)
        self._end()
        if self.row.in_history:
            _note(self.controller, self.row, self.sqe, data, self.before, dw0)
        return dw0

    def failed(self) -> None:
        """It is not saved, or was refused: a newer change goes on."""
        if self._end() and self.row.restore is not None and not self._gone:
            self.row.restore(self.controller, self.sqe, self._all.sound)


def _owner(row: FeatureSpec, controller: Controller, sqe: Sqe) -> object:
    if row.scope is Scope.NAMESPACE:
        return namespace_of(controller, sqe)
    return controller if row.scope is Scope.CONTROLLER else controller.subsystem


def _set_one(ctx: CommandContext, row: FeatureSpec, sqe: Sqe, data: memoryview | None) -> int | Awaitable[int]:
    controller = ctx.controller
    assert controller is not None and row.apply is not None
    if not (row.persistent or sqe.cdw10 >> 31):
        return _noted(controller, row, sqe, data)
    saving = _Saving(controller, row, sqe)
    try:
        result = row.apply(controller, sqe, data)
        if isinstance(result, int):
            pending = _save(controller, row, sqe, data)
            return saving.kept(data, result) if pending is None else _saved_later(saving, data, result, pending)
    except BaseException:
        saving.failed()
        raise
    return _save_after(saving, data, result)


def _noted(controller: Controller, row: FeatureSpec, sqe: Sqe, data: memoryview | None) -> int | Awaitable[int]:
    """Set the value, and write a change into the history."""
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
    kept = None if data is None else memoryview(bytes(data))
    dw0 = await pending
    _note(controller, row, sqe, kept, before, dw0)
    return dw0


async def _save_after(saving: _Saving, data: memoryview | None, applied: Awaitable[int]) -> int:
    try:
        result = await applied
        pending = _save(saving.controller, saving.row, saving.sqe, data)
    except BaseException:
        saving.failed()
        raise
    return saving.kept(data, result) if pending is None else await _saved_later(saving, data, result, pending)


async def _saved_later(saving: _Saving, data: memoryview | None, dw0: int, pending: Awaitable[None]) -> int:
    noted = None if data is None else memoryview(bytes(data))
    try:
        await pending
    except OSError as error:
        saving.failed()
        raise _not_saved(error) from error
    except BaseException:
        saving.kept(noted, dw0)  # the command was given up; the write goes on
        raise
    return saving.kept(noted, dw0)


def _save(controller: Controller, row: FeatureSpec, sqe: Sqe, data: memoryview | None) -> Awaitable[None] | None:
    dwords = (sqe.cdw11, sqe.cdw12, sqe.cdw13, sqe.cdw14, sqe.cdw15)
    value = (row.to_keep or row.read)(controller, sqe)
    saved = Saved(dwords, None if data is None else bytes(data), value)
    try:
        return save(_metadata_store(row.scope, controller, sqe), row.fid, row.selector(sqe), saved)
    except OSError as error:
        raise _not_saved(error) from error


def _not_saved(error: OSError) -> CommandError:
    return CommandError(
        Status.INTERNAL_ERROR,
        dnr=False,
        message=f"the value cannot be saved, and is what it was: {error.strerror or error}",
    )


def restore_features(features: FeatureTable, controller: Controller) -> None:
    """Make the saved values of the subsystem's controllers current in this one, which is new or was just reset."""
    for fid, saved in load_all(controller.subsystem.metadata_store):
        row = features.get(fid)
        if row is None or row.apply is None or row.scope is not Scope.CONTROLLER:
            continue
        if not row.supported(controller) or (controller.discovery and not row.discovery):
            continue
        words = {f"cdw{11 + i}": dword for i, dword in enumerate(saved.dwords)}
        sqe = Sqe(opcode=AdminOpcode.SET_FEATURES, cdw10=fid, **words)
        try:
            row.apply(controller, sqe, None if saved.data is None else memoryview(saved.data))
        except CommandError:
            continue  # saved when the target was configured in another way: the default it is


__all__ = [
    "Apply",
    "FeatureSpec",
    "FeatureTable",
    "Read",
    "Scope",
    "Value",
    "check_bits",
    "check_get_features",
    "check_set_features",
    "constant",
    "current_value",
    "decode_features",
    "dword",
    "get_bytes",
    "get_features",
    "invalid",
    "invalid_data",
    "namespace_of",
    "remembered",
    "restore_features",
    "set_bytes",
    "set_features",
]
