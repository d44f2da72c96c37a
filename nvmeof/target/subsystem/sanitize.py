"""The sanitize operation of a subsystem: one at a time, over all namespaces, in the background.

Its state and outcome are stored with every namespace that has a durable metadata store, and with the subsystem: an
operation that the end of the process has interrupted goes on at the next start, and a failure stays a failure.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from nvmeof.errors import ConfigurationError
from nvmeof.runtime import Runtime, settled
from nvmeof.spec.enums import FeatureId
from nvmeof.spec.media import SPROG_NONE, SSI, SSTAT, SanitizeAction, SanitizeCommand, SanitizeOutcome
from nvmeof.spec.status import Status
from nvmeof.target.core.metadata import MetadataStore, damaged, erasure_interrupted
from nvmeof.target.namespaces.feature_values import forget
from nvmeof.target.namespaces.format_job import forget_interrupted
from nvmeof.target.namespaces.namespace import Namespace
from nvmeof.target.projection.sanitize_view import SanitizeState, SanitizeView
from nvmeof.target.storage.erase import give_back, overwrite, passes_to_erase
from nvmeof.target.subsystem.persistent_events import watch

SECTION: Final = "sanitize"
Ended = Callable[["Sanitizer"], object]

logger = logging.getLogger(__name__)


_STATE_CODES: Final = {
    SanitizeState.IDLE: (0, 0),
    SanitizeState.RESTRICTED_PROCESSING: (1, 0),
    SanitizeState.RESTRICTED_FAILURE: (2, 1),
    SanitizeState.UNRESTRICTED_PROCESSING: (3, 0),
    SanitizeState.UNRESTRICTED_FAILURE: (4, 3),
}
"""SANS and FAILS."""


class _RecordState(Enum):
    """The stored state of an operation: it runs, or how it ended."""

    RUNNING = "running"
    FAILED = "failed"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class Record:
    """A stored operation. `left`: its failure mode was left without another attempt.

    `data`: UUID and `Backend.identity` of its namespaces, for those that keep nothing themselves. The UUID of one that
    is configured says nothing of its data: it may be another disk by the next start.
    """

    state: str
    cdw10: int
    cdw11: int
    left: bool = False
    data: frozenset[tuple[str, str]] = frozenset()

    def dump(self) -> dict[str, Any]:
        """Return the value to store in a metadata store."""
        value: dict[str, Any] = {"state": self.state, "cdw10": self.cdw10, "cdw11": self.cdw11, "left": self.left}
        if self.data:
            value["namespaces"] = [list(each) for each in sorted(self.data)]
        return value

    @classmethod
    def load(cls, metadata_store: MetadataStore) -> Record | None:
        """Read the stored state; None for none. Raises `ConfigurationError` for an invalid section: data that was to be
        erased must not be served.
        """
        stored = metadata_store.get(SECTION)
        if stored is None:
            return None
        try:
            data = frozenset((str(uuid), str(identity)) for uuid, identity in stored.get("namespaces", ()))
            cdw10, cdw11 = int(stored["cdw10"]), int(stored["cdw11"])
            SanitizeCommand.decode(cdw10, cdw11)
            return cls(_RecordState(stored["state"]).value, cdw10, cdw11, bool(stored["left"]), data)
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError, struct.error) as error:
            raise damaged(metadata_store, SECTION, error) from error


async def _put_all(metadata_stores: Iterable[MetadataStore], record: Record) -> None:
    pending: list[Awaitable[None]] = []
    for metadata_store in metadata_stores:
        result = metadata_store.put(SECTION, record.dump())
        if result is not None:
            pending.append(result)
    failure: OSError | None = None
    for each in pending:
        try:
            await each
        except OSError as error:
            failure = error
    if failure is not None:
        raise failure


def _data_of(namespace: Namespace) -> tuple[str, str]:
    return str(namespace.uuid), namespace.backend.identity


class Sanitizer:
    """`namespaces` is the subsystem's live table; `metadata_store` its store. `view` is the part that commands see;
    `erased`: nothing was written since the last success (Global Data Erased).
    """

    def __init__(self, namespaces: dict[int, Namespace], metadata_store: MetadataStore) -> None:
        self._namespaces = namespaces
        self._metadata_store = metadata_store
        self.view = SanitizeView()
        self.outcome = SanitizeOutcome.NEVER
        self.cdw10 = 0
        self.cdw11 = 0
        self.passes_done = 0
        self._done_bytes = 0
        self._total_bytes = 1

    @property
    def state(self) -> SanitizeState:
        """Where the operation stands."""
        return self.view.state

    @state.setter
    def state(self, state: SanitizeState) -> None:
        self.view.state = state

    @property
    def erased(self) -> bool:
        """Whether nothing was written since the last success."""
        return self.view.erased

    @erased.setter
    def erased(self, erased: bool) -> None:
        self.view.erased = erased

    @property
    def command(self) -> SanitizeCommand:
        """The command of the last operation."""
        return SanitizeCommand.decode(self.cdw10, self.cdw11)

    @property
    def sprog(self) -> int:
        """SPROG: how much is done in 65536ths; FFFFh when nothing is in progress."""
        if not self.state.processing:
            return SPROG_NONE
        return min(self._done_bytes * 65536 // self._total_bytes, SPROG_NONE - 1)

    @property
    def sstat(self) -> int:
        """SSTAT."""
        passes = self.passes_done if self.command.action == SanitizeAction.OVERWRITE else 0
        return SSTAT.encode(sos=self.outcome, opc=min(passes, 31), gde=self.erased)

    @property
    def ssi(self) -> int:
        """SSI: the state, and what has failed."""
        state, failed = _STATE_CODES[self.state]
        return SSI.encode(sans=state, fails=failed)

    def check(self, namespace: Namespace) -> None:
        """Raise `ConfigurationError` for one that has to be erased and cannot be, or when that cannot be known."""
        metadata_store = namespace.backend.metadata_store
        record = Record.load(metadata_store)
        to_erase = erasure_interrupted(metadata_store) or (
            record is not None and record.state == _RecordState.RUNNING.value
        )
        if to_erase and not metadata_store.durable:
            raise ConfigurationError(
                f"{namespace.backend.description} is only partly erased (erase interrupted or run by "
                "another process); serve it writable and unshared until the erase completes"
            )

    # Its way

    async def start(self, runtime: Runtime, cdw10: int, cdw11: int, ended: Ended) -> None:
        """Begin an operation; done when it is certain that it will come to its end, whatever happens.

        Raises `OSError` when that cannot be stored; then nothing has begun. `ended` is called at its end.
        """
        before = self.state
        namespaces = list(self._namespaces.values())
        self._enter(cdw10, cdw11, namespaces)
        try:
            data = frozenset(_data_of(each) for each in namespaces)
            await _put_all(
                self._metadata_stores(namespaces), Record(_RecordState.RUNNING.value, cdw10, cdw11, data=data)
            )
        except OSError:
            self._withdraw(before, namespaces)
            raise
        self.outcome = SanitizeOutcome.IN_PROGRESS
        runtime.spawn(self._work(runtime, namespaces, ended))

    def _enter(self, cdw10: int, cdw11: int, namespaces: list[Namespace]) -> None:
        self._last = (self.cdw10, self.cdw11)
        self.cdw10, self.cdw11 = cdw10, cdw11
        self.state = SanitizeState.UNRESTRICTED_PROCESSING if self.command.ause else SanitizeState.RESTRICTED_PROCESSING
        self.erased = False
        self._done_bytes = 0
        self.passes_done = 0
        self._total_bytes = max(sum(self._bytes_of(each) for each in namespaces), 1)
        self._bar(Status.SANITIZE_IN_PROGRESS)

    def _withdraw(self, before: SanitizeState, namespaces: list[Namespace]) -> None:
        """Remove the stored state of an operation that could not begin, so that the next start does not resume it."""
        self.cdw10, self.cdw11 = self._last
        self.state = before
        self._bar(Status.SANITIZE_FAILED if before.failure else None)
        stored = None
        if self.outcome is not SanitizeOutcome.NEVER:
            state = _RecordState.FAILED if self.outcome is SanitizeOutcome.FAILED else _RecordState.DONE
            stored = Record(state.value, self.cdw10, self.cdw11, left=not before.failure).dump()
        self._put_back(self._metadata_stores(namespaces), stored)

    @staticmethod
    def _put_back(metadata_stores: list[MetadataStore], stored: dict[str, Any] | None) -> None:
        """Restore the previous sections everywhere, after the state could not be stored everywhere."""
        for metadata_store in metadata_stores:
            try:
                # A failure here is not reported: the section is written with the next save that succeeds.
                watch(metadata_store.put(SECTION, stored), "the sanitize state before")
            except OSError as error:
                logger.error("the next start may go by a sanitize command that failed: %s", error)

    async def _work(self, runtime: Runtime, namespaces: list[Namespace], ended: Ended) -> None:
        cdw10, cdw11 = self.cdw10, self.cdw11
        try:
            await self._erase(runtime, namespaces)
            for namespace in namespaces:
                await forget_interrupted(namespace)
                await settled(namespace.erased())
                await settled(
                    forget(namespace.features, namespace.backend.metadata_store, FeatureId.NAMESPACE_ADMIN_LABEL)
                )
            await _put_all(self._metadata_stores(namespaces), Record(_RecordState.DONE.value, cdw10, cdw11))
        except OSError as error:
            logger.error("the sanitize operation failed: %s", error.strerror or error)
            self._fail()
            try:
                await _put_all(self._metadata_stores(namespaces), Record(_RecordState.FAILED.value, cdw10, cdw11))
            except OSError as again:
                logger.error("and that could not be stored: %s", again.strerror or again)
        else:
            self.state = SanitizeState.IDLE
            self.erased = True
            self.outcome = self._success()
            self._bar(None)
        ended(self)

    def _success(self) -> SanitizeOutcome:
        # Everything is deallocated in the end, also when that was not wanted.
        unexpected = self.command.ndas
        return SanitizeOutcome.SUCCESS_UNEXPECTED_DEALLOCATION if unexpected else SanitizeOutcome.SUCCESS

    def _fail(self) -> None:
        self.outcome = SanitizeOutcome.FAILED
        restricted = self.state is SanitizeState.RESTRICTED_PROCESSING
        self.state = SanitizeState.RESTRICTED_FAILURE if restricted else SanitizeState.UNRESTRICTED_FAILURE
        self._bar(Status.SANITIZE_FAILED)

    def _patterns(self, namespace: Namespace) -> list[bytes]:
        command = self.command
        return command.patterns if command.action == SanitizeAction.OVERWRITE else passes_to_erase(namespace.backend)

    def _bytes_of(self, namespace: Namespace) -> int:
        return namespace.backend.capabilities.size_bytes * (len(self._patterns(namespace)) + 1)

    def _progress(self, count: int) -> None:
        self._done_bytes += count

    async def _erase(self, runtime: Runtime, namespaces: list[Namespace]) -> None:
        patterns = {namespace.nsid: self._patterns(namespace) for namespace in namespaces}
        for number in range(max((len(each) for each in patterns.values()), default=0)):
            for namespace in namespaces:
                chosen = patterns[namespace.nsid]
                if number < len(chosen):
                    await overwrite(runtime, namespace.backend, chosen[number], self._progress)
            self.passes_done = number + 1
        for namespace in namespaces:
            await give_back(runtime, namespace.backend, self._progress)

    def _bar(self, status: Status | None) -> None:
        for namespace in self._namespaces.values():
            namespace.block_access(status)

    def _metadata_stores(self, namespaces: Iterable[Namespace]) -> list[MetadataStore]:
        return [
            self._metadata_store,
            *(each.backend.metadata_store for each in namespaces if each.unreadable_blocks.durable),
        ]

    # What goes on elsewhere

    def written(self) -> None:
        """End the state Global Data Erased, since a host writes."""
        self.erased = False

    async def leave_failure(self) -> None:
        """Exit Failure Mode: allow access to the data again. Raises `OSError` when that cannot be stored."""
        metadata_stores = self._metadata_stores(self._namespaces.values())
        try:
            await _put_all(metadata_stores, Record(_RecordState.FAILED.value, self.cdw10, self.cdw11, left=True))
        except OSError:
            self._put_back(metadata_stores, Record(_RecordState.FAILED.value, self.cdw10, self.cdw11).dump())
            raise
        self.state = SanitizeState.IDLE
        self._bar(None)

    def resume(self, runtime: Runtime, ended: Ended) -> None:
        """Go on where the last process ended, and know how the last operation ended. Call it when namespaces came."""
        if self.state.processing:
            return
        own = Record.load(self._metadata_store)
        found = [(each, self._record(each, own)) for each in self._namespaces.values()]
        running = [(each, record) for each, record in found if record and record.state == _RecordState.RUNNING.value]
        if running:
            _, record = running[0]
            assert record is not None
            namespaces = [each for each, _ in running]
            logger.warning("a sanitize operation was interrupted: it goes on with %d namespaces", len(namespaces))
            self._enter(record.cdw10, record.cdw11, namespaces)
            self.outcome = SanitizeOutcome.IN_PROGRESS
            runtime.spawn(self._work(runtime, namespaces, ended))
            return
        records = [record for _, record in found if record] + ([own] if own else [])
        failed = [record for record in records if record.state == _RecordState.FAILED.value]
        chosen = next(iter(failed or records), None)
        if chosen is not None and self.outcome is SanitizeOutcome.NEVER:
            self._remember(chosen)

    @staticmethod
    def _record(namespace: Namespace, own: Record | None) -> Record | None:
        """Return the stored state of a namespace; for one without a metadata store (a device), the subsystem's copy."""
        record = Record.load(namespace.backend.metadata_store)
        if namespace.unreadable_blocks.durable or record is not None:
            return record
        return own if own is not None and _data_of(namespace) in own.data else None

    def _remember(self, record: Record) -> None:
        self.cdw10, self.cdw11 = record.cdw10, record.cdw11
        if record.state == _RecordState.DONE.value:
            self.outcome = self._success()
            return
        # An interrupted operation whose namespace is missing has failed.
        self.outcome = SanitizeOutcome.FAILED
        if record.state == _RecordState.FAILED.value and not record.left:
            unrestricted = self.command.ause
            self.state = SanitizeState.UNRESTRICTED_FAILURE if unrestricted else SanitizeState.RESTRICTED_FAILURE
            self._bar(Status.SANITIZE_FAILED)
