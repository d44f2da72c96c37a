"""A namespace: logical blocks over a backend, with the identifiers that a host knows it by.

Every call of a backend goes through here: ranges are checked and errors become statuses in this one place.
"""

from __future__ import annotations

import errno
import logging
import uuid as uuid_module
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from nvmeof.errors import CommandError, ConfigurationError
from nvmeof.runtime import settled
from nvmeof.spec.enums import Csi, FeatureId
from nvmeof.spec.sqe import SQE
from nvmeof.spec.status import Status
from nvmeof.target.core.admission import AdmissionTokens
from nvmeof.target.core.metadata import MemoryStore, NotKeptError, formatted_block_bytes
from nvmeof.target.core.rate_limits import Limiter
from nvmeof.target.namespaces.feature_values import Values, load_strictly
from nvmeof.target.namespaces.inflight import InflightTable
from nvmeof.target.namespaces.lost_writes import LostWrites
from nvmeof.target.namespaces.reservation_store import ReservationStore
from nvmeof.target.namespaces.unreadable import RANGES_MAX, UnreadableBlocks
from nvmeof.target.storage.base import Backend, Lease, Runs, SizeChangedError, SourceError
from nvmeof.target.storage.fault_log import FaultLog
from nvmeof.target.storage.remote import OutcomeUnknownError

T = TypeVar("T")

_faults = FaultLog(logging.getLogger(__name__))
_IDENTIFIER_SPACE = uuid_module.uuid5(uuid_module.NAMESPACE_URL, "urn:nvmeof:namespace")
_WRITE_REFUSED = frozenset({errno.EROFS, errno.EPERM, errno.EACCES})
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NOT_THERE = frozenset({errno.EBADF, errno.ENXIO, errno.ENODEV, errno.ESHUTDOWN, errno.ESTALE})
_MEDIA = frozenset({errno.EIO, errno.ENODATA, errno.EILSEQ, errno.EBADMSG, errno.EUCLEAN, errno.EREMOTEIO})
_PASSING = frozenset({errno.EAGAIN, errno.EINTR, errno.ETIMEDOUT, errno.ENOMEM, errno.EBUSY})

ATOMIC_WRITE_BYTES = 32 << 10
"""A write of up to so many bytes is seen whole or not at all by every other command (AWUN, NAWUN, NACWU).

To memory it goes in one step, whatever way its data comes; a longer one by whole blocks.
"""

BLOCK_COUNTERS = ("blocks_read", "blocks_written", "blocks_verified", "blocks_copied")
"""Which of the counters change with the size of a block."""


@dataclass(slots=True)
class NamespaceCounters:
    """Counters since the start; plain numbers that the fast path adds to."""

    reads: int = 0  # Read and Compare
    writes: int = 0
    verifies: int = 0
    copies: int = 0  # Copy commands; their blocks are read and written
    blocks_read: int = 0
    blocks_written: int = 0
    blocks_verified: int = 0
    blocks_copied: int = 0
    media_errors: int = 0

    def rescale(self, before: int, after: int) -> None:
        """Convert the block counters to another block size. Both arguments are binary logarithms of a size."""
        if before == after:
            return
        for name in BLOCK_COUNTERS:
            setattr(self, name, getattr(self, name) << before >> after)


@dataclass(frozen=True, slots=True)
class NamespaceIdentifiers:
    """NGUID (16 bytes), UUID and EUI-64 (8 bytes; zero: none)."""

    nguid: bytes
    uuid: uuid_module.UUID
    eui64: bytes = bytes(8)

    @classmethod
    def derive(cls, subnqn: str, nsid: int) -> NamespaceIdentifiers:
        """Derive identifiers that are equal for equal subsystem NQN and NSID, after every restart and on every
        machine."""
        named = uuid_module.uuid5(_IDENTIFIER_SPACE, f"{subnqn}/{nsid}")
        nguid = uuid_module.uuid5(_IDENTIFIER_SPACE, f"{subnqn}/{nsid}/nguid").bytes
        return cls(nguid=nguid, uuid=named)


def status_of_os_error(error: OSError, *, writing: bool) -> tuple[Status, bool]:
    """Return the NVMe status and the DNR bit for an error of a backend's operation."""
    code = error.errno
    if code == errno.ECANCELED:
        return Status.ABORTED_BY_REQUEST, False
    if isinstance(error, SizeChangedError) and writing:
        return Status.LBA_OUT_OF_RANGE, True
    if isinstance(error, OutcomeUnknownError):
        return Status.WRITE_FAULT, True  # a retry, by another path too, could come before the first one's late effect
    if isinstance(error, NotKeptError):
        return Status.INTERNAL_ERROR, False  # the command is right, and may succeed when it can be stored again
    if code in _NO_ROOM and writing:
        return Status.CAPACITY_EXCEEDED, True
    if code in _WRITE_REFUSED and writing:
        return Status.NAMESPACE_WRITE_PROTECTED, True
    if code in _NOT_THERE:
        return Status.NAMESPACE_NOT_READY, False
    if code in _MEDIA:
        return (Status.WRITE_FAULT if writing else Status.UNRECOVERED_READ_ERROR), True
    return Status.INTERNAL_ERROR, code not in _PASSING


class Namespace:
    """One namespace of a subsystem. Addresses are logical blocks of `block_bytes`."""

    __slots__ = (
        "_read_only",
        "admission_tokens",
        "anagrpid",
        "backend",
        "block_bytes",
        "block_shift",
        "blocked_status",
        "counters",
        "csi",
        "degraded",
        "failures_seen",
        "features",
        "format_remaining",
        "identifiers",
        "in_progress",
        "limiter",
        "lost_writes",
        "memory",
        "nsid",
        "reservations",
        "runs",
        "shared",
        "size_blocks",
        "size_changed",
        "unreadable_blocks",
        "write_protected",
    )

    def __init__(
        self,
        nsid: int,
        backend: Backend,
        identifiers: NamespaceIdentifiers,
        *,
        read_only: bool = False,
        anagrpid: int = 1,
        csi: int = Csi.NVM,
        shared: bool = True,
    ) -> None:
        if not 1 <= nsid <= 0xFFFFFFFE:
            raise ConfigurationError(f"an NSID is 1 to FFFFFFFEh, not {nsid:X}h")
        self.nsid = nsid
        self.backend = backend
        self.identifiers = identifiers
        self._read_only = read_only or not backend.capabilities.can_write
        self.anagrpid = anagrpid
        self.csi = csi  # the I/O command set that it is used with
        self.shared = shared  # False: attached to one controller at a time
        self.counters = NamespaceCounters()
        self.admission_tokens = AdmissionTokens()
        self.in_progress = InflightTable()
        self.lost_writes = LostWrites()
        self.limiter: Limiter | None = None
        """The rate limit that all its users share; None: no limit."""
        self.degraded: Callable[[], None] = lambda: None
        """Called when data that was written may be lost."""
        self.size_changed: Callable[[], None] = lambda: None
        """Called when the backend is found to be shorter than it was."""
        self.failures_seen = backend.sync_failures
        self.features: Values = {}  # those with the scope of a namespace, as set since the start
        if getattr(backend, "metadata_store", None) is None:  # a plug-in's backend, without that attribute
            backend.metadata_store = MemoryStore()
        formatted_block_bytes(backend.metadata_store)  # raises for what cannot be read
        protected = load_strictly(backend.metadata_store, FeatureId.NAMESPACE_WRITE_PROTECTION_CONFIG)
        self.write_protected = protected is not None and bool(protected.value.dw0)  # by a host
        self.reservations = ReservationStore(backend.metadata_store, self.admission_tokens.withdraw)
        self.blocked_status: Status | None = None
        """Why no data may be touched, in the middle of a command either: it is being formatted or sanitized."""
        self.format_remaining = 0  # percent of a Format NVM that is in progress (FPI)
        self.unreadable_blocks = UnreadableBlocks(
            backend.metadata_store,
            backend.capabilities.size_bytes // backend.capabilities.block_bytes,
            backend.capabilities.block_bytes,
        )
        self.unreadable_blocks.changed = self._show_memory
        self.refresh()

    def refresh(self) -> None:
        """Take size, block size and memory over from the backend (at the start and after a resize).

        Admission tokens are invalidated. `memory` and `runs` are None as well while there are blocks that cannot be
        read, or all access is blocked, so that their users need no other check.
        """
        capabilities = self.backend.capabilities
        self.block_bytes = capabilities.block_bytes
        shift = self.block_bytes.bit_length() - 1
        self.counters.rescale(getattr(self, "block_shift", shift), shift)
        self.block_shift = shift
        self.size_blocks = capabilities.size_bytes >> self.block_shift
        self.unreadable_blocks.block_bytes = self.block_bytes
        self.unreadable_blocks.clip(self.size_blocks)
        self._show_memory()

    def _show_memory(self) -> None:
        self.admission_tokens.withdraw()
        shown = not self.unreadable_blocks.marked and self.blocked_status is None
        self.memory: memoryview | None = self.backend.memory if shown else None
        self.runs: Runs | None = self.backend.runs if shown else None

    @property
    def configured_read_only(self) -> bool:
        """Whether the namespace was configured as read-only, or its backend is."""
        return self._read_only

    def configure_read_only(self, read_only: bool) -> None:
        """Let the namespace be configured as read-only, or not; commands are admitted anew."""
        self._read_only = read_only
        self.admission_tokens.withdraw()

    @property
    def read_only(self) -> bool:
        """Whether the namespace must not be written: it was configured so, or a host has protected it."""
        return self._read_only or self.write_protected

    def block_access(self, status: Status | None) -> None:
        """Fail every data command with `status`; None allows them again."""
        self.blocked_status = status
        self.refresh()

    def protect(self, protected: bool) -> None:
        """Set whether a host forbids writes (Namespace Write Protection)."""
        self.write_protected = protected
        self.admission_tokens.withdraw()

    @property
    def nguid(self) -> bytes:
        return self.identifiers.nguid

    @property
    def uuid(self) -> uuid_module.UUID:
        return self.identifiers.uuid

    @property
    def eui64(self) -> bytes:
        return self.identifiers.eui64

    @property
    def capacity_blocks(self) -> int:
        """How many blocks can hold data (NCAP)."""
        return self.size_blocks

    def fits(self, block_bytes: int) -> bool:
        """Return whether the namespace could have blocks of that size, in bytes; does not ask the backend."""
        return True

    def check_size(self, size_bytes: int) -> None:
        """Raise `ConfigurationError` for a size in bytes that is impossible; does not ask the backend."""

    def erased(self) -> Awaitable[None] | None:
        """Forget all per-block state after the data was erased. Done when that is stored.

        Raises or ends with `OSError`.
        """
        return self.unreadable_blocks.clear()

    def check_range(self, slba: int, nlb: int) -> None:
        """Raise LBA Out of Range unless `nlb` blocks from `slba` lie inside the namespace (NVM Command Set, Read
        command). `nlb` is the number of blocks, not 0's based."""
        if self.blocked_status is not None:
            raise CommandError(
                self.blocked_status, dnr=False, message=f"namespace {self.nsid}: {self.blocked_status.description}"
            )
        if slba + nlb > self.size_blocks:
            raise CommandError(
                Status.LBA_OUT_OF_RANGE,
                SQE.error_location("cdw10"),
                message=f"blocks {slba}..{slba + nlb - 1} of namespace {self.nsid}, which has {self.size_blocks}",
            )

    def check_writable(self) -> None:
        """Raise Namespace is Write Protected unless the namespace may be written
        (NVMe Base, Namespace Write Protection)."""
        if self.read_only:
            raise CommandError(
                Status.NAMESPACE_WRITE_PROTECTED,
                SQE.error_location("nsid"),
                message=f"namespace {self.nsid} is read-only",
            )

    def _check_readable(self, slba: int, nlb: int) -> None:
        self.check_range(slba, nlb)
        if self.unreadable_blocks.some and self.unreadable_blocks.marked.overlaps(slba, slba + nlb):
            raise CommandError(
                Status.UNRECOVERED_READ_ERROR,
                message=f"blocks {slba}..{slba + nlb - 1} of namespace {self.nsid}: some were marked as uncorrectable",
            )

    def mark_uncorrectable(self, slba: int, nlb: int) -> Awaitable[None] | None:
        """Let blocks be unreadable until they are written, zeroed or deallocated. Done when that is stored."""
        self.check_range(slba, nlb)
        self.check_writable()
        if self.unreadable_blocks.full:
            raise CommandError(
                Status.CAPACITY_EXCEEDED,
                message=f"namespace {self.nsid} keeps no more than {RANGES_MAX} ranges of uncorrectable blocks",
            )
        return self._call(lambda: self.unreadable_blocks.mark(slba, slba + nlb), writing=True)

    def _check_replaceable(self, slba: int, nlb: int) -> int:
        """Raise Capacity Exceeded when marks would be too many; return what `_rewritten` wants to know, before the
        write begins."""
        if not self.unreadable_blocks.some:
            return 0
        if self.unreadable_blocks.crowded(slba, slba + nlb):
            raise CommandError(
                Status.CAPACITY_EXCEEDED,
                message=f"namespace {self.nsid} cannot tell more ranges of uncorrectable blocks apart",
            )
        return self.backend.sync_failures

    def _rewritten(self, slba: int, nlb: int, result: Awaitable[None] | None, failures: int) -> Awaitable[None] | None:
        """Mark blocks as readable again once their new data is written. `failures`: of syncs, when it began."""
        if not self.unreadable_blocks.some or not self.unreadable_blocks.concern(slba, slba + nlb):
            return result
        if result is None and not self.unreadable_blocks.durable:
            self.unreadable_blocks.forget(slba, slba + nlb)
            return None
        return self._rewritten_later(slba, nlb, result, failures)

    async def _rewritten_later(self, slba: int, nlb: int, pending: Awaitable[None] | None, failures: int) -> None:
        await settled(pending)
        if self.unreadable_blocks.durable:
            # What replaces them must not be lost when the marks are gone for good: old data would come back.
            await settled(self.flush())
            if self.backend.sync_failures != failures:
                # This sync has succeeded without the data that another one, of another command, has lost.
                error = self.backend.sync_error or OSError(errno.EIO, "writing to the media failed")
                raise self._command_error(error, True, None) from error
        await settled(self._call(lambda: self.unreadable_blocks.forget(slba, slba + nlb), writing=True))

    def read(self, slba: int, nlb: int) -> Lease | Awaitable[Lease]:
        """Read `nlb` blocks. The caller releases the lease when the data has been sent."""
        self._check_readable(slba, nlb)
        shift = self.block_shift
        self.counters.reads += 1
        self.counters.blocks_read += nlb
        return self._call(lambda: self.backend.acquire_read(slba << shift, nlb << shift), read=(slba, nlb))

    def compare(self, slba: int, data: memoryview) -> bool | Awaitable[bool]:
        """Return whether the blocks from `slba` hold `data` (whole blocks). `data` is borrowed until the result is
        known."""
        nlb = len(data) >> self.block_shift
        self._check_readable(slba, nlb)
        self.counters.reads += 1
        self.counters.blocks_read += nlb
        return self._call(lambda: self.backend.compare(slba << self.block_shift, data), read=(slba, nlb))

    def read_into(self, slba: int, view: memoryview) -> Awaitable[None] | None:
        """Read whole blocks into `view`, for a Copy."""
        nlb = len(view) >> self.block_shift
        self._check_readable(slba, nlb)
        return self._call(lambda: self.backend.read_into(slba << self.block_shift, view), read=(slba, nlb))

    def compare_and_write(
        self, slba: int, compare: memoryview, data: memoryview, *, fua: bool = False
    ) -> bool | Awaitable[bool]:
        """Write whole blocks if they hold `compare`, with nothing in between; return whether they did. Both buffers are
        borrowed until the result is there. The cause of the `CommandError` is a `SourceError` when it was the
        comparison that failed.
        """
        nlb = len(data) >> self.block_shift
        self._check_readable(slba, nlb)
        self.check_writable()
        self.counters.reads += 1
        self.counters.blocks_read += nlb
        offset = slba << self.block_shift
        result = self._call(
            lambda: self.backend.compare_and_write(offset, compare, data, fua=fua), writing=True, read=(slba, nlb)
        )
        return self._replaced(nlb, result) if isinstance(result, bool) else self._replaced_later(nlb, result)

    def _replaced(self, nlb: int, same: bool) -> bool:
        if same:
            self.counters.writes += 1
            self.counters.blocks_written += nlb
        return same

    async def _replaced_later(self, nlb: int, pending: Awaitable[bool]) -> bool:
        return self._replaced(nlb, await pending)

    def verify(self, slba: int, nlb: int) -> Awaitable[None] | None:
        """Read blocks and discard their data. Raises or ends with `CommandError` when they cannot be read."""
        self._check_readable(slba, nlb)
        shift = self.block_shift
        self.counters.verifies += 1
        self.counters.blocks_verified += nlb
        return self._call(lambda: self.backend.verify(slba << shift, nlb << shift), read=(slba, nlb))

    def write(self, slba: int, data: memoryview, *, fua: bool = False) -> Awaitable[None] | None:
        """Write whole blocks. `data` is borrowed until the result is there."""
        nlb = len(data) >> self.block_shift
        self.check_range(slba, nlb)
        self.check_writable()
        failures = self._check_replaceable(slba, nlb)
        self.counters.writes += 1
        self.counters.blocks_written += nlb
        result = self._call(lambda: self.backend.write(slba << self.block_shift, data, fua=fua), writing=True)
        return self._rewritten(slba, nlb, result, failures)

    def copy(self, source: int, slba: int, nlb: int, *, fua: bool = False) -> Awaitable[None] | None:
        """Copy blocks from `source` to `slba`, as memmove does."""
        self.check_range(slba, nlb)
        self.check_writable()
        self._check_readable(source, nlb)
        failures = self._check_replaceable(slba, nlb)
        shift = self.block_shift
        self.counters.blocks_copied += nlb
        result = self._call(
            lambda: self.backend.copy(source << shift, slba << shift, nlb << shift, fua=fua),
            writing=True,
            read=(source, nlb),
        )
        return self._rewritten(slba, nlb, result, failures)

    def write_zeroes(self, slba: int, nlb: int, *, deallocate: bool, fua: bool = False) -> Awaitable[None] | None:
        """Make blocks read as zeroes."""
        self.check_range(slba, nlb)
        self.check_writable()
        failures = self._check_replaceable(slba, nlb)
        shift = self.block_shift
        result = self._call(
            lambda: self.backend.write_zeroes(slba << shift, nlb << shift, deallocate=deallocate, fua=fua), writing=True
        )
        return self._rewritten(slba, nlb, result, failures)

    def deallocate(self, slba: int, nlb: int) -> Awaitable[None] | None:
        """Give the space of blocks back; without the capability this does nothing, as the hint allows."""
        self.check_range(slba, nlb)
        self.check_writable()
        if not self.backend.capabilities.can_deallocate or nlb == 0:
            return None
        failures = self._check_replaceable(slba, nlb)
        shift = self.block_shift
        result = self._call(lambda: self.backend.deallocate(slba << shift, nlb << shift), writing=True)
        if self.unreadable_blocks.some and result is not None:
            return self._deallocated(slba, nlb, result, failures)
        return self._rewritten(slba, nlb, result, failures)

    async def _deallocated(self, slba: int, nlb: int, pending: Awaitable[None], failures: int) -> None:
        await pending
        # A backend may find out only now that it cannot: the old data is still there, and must not come back.
        if self.backend.capabilities.can_deallocate:
            await settled(self._rewritten(slba, nlb, None, failures))

    def flush(self) -> Awaitable[None] | None:
        """Commit all completed writes to non-volatile media."""
        return self._call(self.backend.flush, writing=True)

    def _call(
        self, operation: Callable[[], T | Awaitable[T]], *, writing: bool = False, read: tuple[int, int] | None = None
    ) -> T | Awaitable[T]:
        """Call a backend's operation and turn its `OSError` into a `CommandError`. `read`: first block and count that
        it reads."""
        try:
            result = operation()
        except OSError as error:
            raise self._command_error(error, writing, read) from error
        # An immediate result is recognized by its type: testing for Awaitable costs as much as the operation.
        if result is None or type(result) is Lease or not isinstance(result, Awaitable):
            return result
        return self._finish(result, writing, read)

    async def _finish(self, pending: Awaitable[T], writing: bool, read: tuple[int, int] | None) -> T:
        try:
            return await pending
        except OSError as error:
            raise self._command_error(error, writing, read) from error
        finally:
            del pending  # an error that it holds refers to this frame: the circle would wait for the collector

    def failed(self, error: OSError, *, writing: bool) -> CommandError:
        """Return the error of a command that a run of the backend did not do, and take note of it."""
        return self._command_error(error, writing, None)

    def _command_error(self, error: OSError, writing: bool, read: tuple[int, int] | None) -> CommandError:
        writing = writing and not isinstance(error, SourceError)
        status, dnr = status_of_os_error(error, writing=writing)
        if self.backend.sync_failures != self.failures_seen:
            self.failures_seen = self.backend.sync_failures
            self.degraded()
        if isinstance(error, SizeChangedError) or isinstance(error.__cause__, SizeChangedError):
            self.size_changed()
        if status >> 8 == 2:
            self.counters.media_errors += 1
        if status == Status.UNRECOVERED_READ_ERROR and read is not None:
            self.unreadable_blocks.fail(read[0], read[0] + read[1])
        what = "writing to" if writing else "reading from"
        message = f"{what} namespace {self.nsid} ({self.backend.description}) failed: {error.strerror or error}"
        if error.errno != errno.ECANCELED and not isinstance(error, NotKeptError):
            _faults.error((self.backend.description, what, error.errno), message)
        return CommandError(status, dnr=dnr, message=message)

    def tell_lost(self, hostid: bytes) -> CommandError | None:
        """Return the error for a host whose writes may be lost, once for each failure; None for no failure."""
        failures = self.backend.sync_failures
        if not failures or not self.lost_writes.tell(hostid, failures):
            return None
        error = self.backend.sync_error or OSError(errno.EIO, "writing to the media failed")
        status, _ = status_of_os_error(error, writing=True)
        return CommandError(
            status,
            dnr=True,
            message=f"what was written to namespace {self.nsid} before may be lost: {error.strerror or error}",
        )
