"""A namespace in bytes, as NBD has it: any offset and length, zeroes, trimming, and where data is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from nvmeof.errors import ConnectionLost, NvmeStatusError
from nvmeof.host.namespace import Namespace
from nvmeof.host.nbd_export.order import WriteOrder
from nvmeof.nbd.numbers import AllocationFlags, NbdError, TransmissionFlags
from nvmeof.nbd.steps import ExportFacts
from nvmeof.spec.flags import Oncs
from nvmeof.spec.media import LbaStatusAction
from nvmeof.spec.status import Status

MAX_PAYLOAD_BYTES: Final = 32 << 20
"""The maximum that is announced; what clients send beyond it up to twice as much is served all the same."""
EXTENTS_MAX: Final = 4096
STATUS_BYTES: Final = 1 << 30
"""A block status says no more than this at a time, and no more ranges than that."""
_READS_ZERO: Final = 0b001
_WRITE_ZEROES_DEALLOCATES: Final = 1 << 3
_HOLE: Final = AllocationFlags.HOLE | AllocationFlags.ZERO
_NO_SPACE: Final = frozenset({Status.CAPACITY_EXCEEDED, Status.LBA_OUT_OF_RANGE})
_FORBIDDEN: Final = frozenset({Status.NAMESPACE_WRITE_PROTECTED, Status.RESERVATION_CONFLICT, Status.ACCESS_DENIED})


def nbd_error(error: BaseException, *, writing: bool) -> NbdError:
    """Return the NBD error for what an operation failed with."""
    if isinstance(error, NvmeStatusError):
        if error.status in _FORBIDDEN:
            return NbdError.EPERM
        if error.status in _NO_SPACE:
            return NbdError.ENOSPC if writing else NbdError.EINVAL
        if error.status == Status.INVALID_NAMESPACE:
            return NbdError.ESHUTDOWN
    if isinstance(error, ConnectionLost):
        return NbdError.ESHUTDOWN
    return NbdError.EIO


class ExportedDisk:
    """One namespace under a name. Offsets and lengths in bytes; the operations raise :class:`NvmeofError`.

    ``multi_conn``: a flush covers the writes of all connections. ``oncs``: of the controller.
    """

    def __init__(
        self, namespace: Namespace, name: str = "", *, read_only: bool = False, multi_conn: bool = True, oncs: int = 0
    ) -> None:
        self.namespace = namespace
        self.name = name
        self.read_only = read_only or bool(namespace.info.nsattr & 1)
        self._zeroes = bool(oncs & Oncs.WRITE_ZEROES)
        self._dsm = bool(oncs & Oncs.DATASET_MANAGEMENT)
        self._multi_conn = multi_conn
        self._order = WriteOrder()
        self._tracks_allocation = True  # until the controller refuses the question

    @property
    def flags(self) -> TransmissionFlags:
        """What the export can do."""
        flags = TransmissionFlags.HAS_FLAGS | TransmissionFlags.SEND_FLUSH | TransmissionFlags.SEND_FUA
        if self.read_only:
            flags |= TransmissionFlags.READ_ONLY
        else:
            flags |= TransmissionFlags.SEND_WRITE_ZEROES
            if self._zeroes:
                flags |= TransmissionFlags.SEND_FAST_ZERO
            if self._dsm or self._trims_to_zero:
                flags |= TransmissionFlags.SEND_TRIM
        return flags | (TransmissionFlags.CAN_MULTI_CONN if self._multi_conn else 0)

    @property
    def _trims_to_zero(self) -> bool:
        """Whether Write Zeroes can deallocate, and deallocated blocks read as zeroes (Identify Namespace, DLFEAT)."""
        dlfeat = self.namespace.info.dlfeat
        return self._zeroes and dlfeat & 7 == _READS_ZERO and bool(dlfeat & _WRITE_ZEROES_DEALLOCATES)

    @property
    def fast_zero(self) -> bool:
        """Whether zeroes are written faster than as data."""
        return self._zeroes

    async def facts(self) -> ExportFacts:
        """Identify the namespace anew, and say what it is."""
        await self.namespace.refresh()
        block = self.namespace.block_bytes
        return ExportFacts(
            size=self.namespace.size_bytes,
            flags=self.flags,
            minimum=block,
            preferred=max(block, 4096),
            maximum=MAX_PAYLOAD_BYTES,
            name=self.name,
            description=f"namespace {self.namespace.nsid} of {self.namespace.port.subnqn}",
        )

    def aligned(self, offset: int, length: int) -> bool:
        """Return whether a range is of whole blocks."""
        return not (offset | length) & (self.namespace.block_bytes - 1)

    async def read(self, offset: int, view: memoryview) -> None:
        """Fill ``view``."""
        block = self.namespace.block_bytes
        if self.aligned(offset, len(view)):
            await self.namespace.read_into(offset // block, view)
            return
        first, end = offset // block, -(-(offset + len(view)) // block)
        whole = memoryview(bytearray((end - first) * block))
        await self.namespace.read_into(first, whole)
        view[:] = whole[offset - first * block :][: len(view)]

    async def write(self, offset: int, data: memoryview, *, fua: bool) -> None:
        """Write ``data``. Blocks of which it has a part are read, merged and written."""
        block = self.namespace.block_bytes
        first, end = offset // block, -(-(offset + len(data)) // block)
        merging = not self.aligned(offset, len(data))
        claim = await self._order.claim(first, end, merging=merging)
        try:
            if merging:
                await self._merge(offset, data, first, end, fua)
            else:
                await self.namespace.write(first, data, fua=fua)
        finally:
            self._order.release(claim)

    async def _merge(self, offset: int, data: memoryview, first: int, end: int, fua: bool) -> None:
        block = self.namespace.block_bytes
        whole = memoryview(bytearray((end - first) * block))
        before = offset - first * block
        if before:
            await self.namespace.read_into(first, whole[:block])
        last = len(whole) - block
        if before + len(data) < len(whole) and (last or not before):
            await self.namespace.read_into(end - 1, whole[last:])
        whole[before : before + len(data)] = data
        await self.namespace.write(first, whole, fua=fua)

    async def zero(self, offset: int, length: int, *, hole: bool, fua: bool) -> None:
        """Make a range read as zeroes; ``hole``: its space need not stay."""
        block = self.namespace.block_bytes
        first, end = -(-offset // block), (offset + length) // block
        if not self._zeroes:
            await self._zero_as_data(offset, length, fua)
            return
        if first < end:
            claim = await self._order.claim(first, end, merging=False)
            try:
                await self.namespace.write_zeroes(first, end - first, deallocate=hole)
            finally:
                self._order.release(claim)
        for start, stop in self._edges(offset, length, first, end):
            await self.write(start, memoryview(bytes(stop - start)), fua=False)
        if fua:
            await self.namespace.flush()

    def _edges(self, offset: int, length: int, first: int, end: int) -> Iterable[tuple[int, int]]:
        """Yield the parts of blocks at both ends of a range."""
        block, stop = self.namespace.block_bytes, offset + length
        if first >= end:
            yield offset, stop
            return
        if offset < first * block:
            yield offset, first * block
        if end * block < stop:
            yield end * block, stop

    async def _zero_as_data(self, offset: int, length: int, fua: bool) -> None:
        piece = memoryview(bytes(min(length, 1 << 20)))
        for start in range(0, length, len(piece)):
            await self.write(offset + start, piece[: length - start], fua=fua)

    async def trim(self, offset: int, length: int, *, fua: bool) -> None:
        """Give the space of the whole blocks of a range back. They read as zeroes where the namespace can do that."""
        block = self.namespace.block_bytes
        first, end = -(-offset // block), (offset + length) // block
        if first < end:
            claim = await self._order.claim(first, end, merging=False)
            try:
                if self._trims_to_zero:
                    await self.namespace.write_zeroes(first, end - first, deallocate=True)
                else:
                    await self.namespace.deallocate([(first, end - first)])
            finally:
                self._order.release(claim)
        if fua:
            await self.namespace.flush()

    async def flush(self) -> None:
        """Bring all completed writes to the medium."""
        await self.namespace.flush()

    async def extents(self, offset: int, length: int) -> list[tuple[int, int]]:
        """Return lengths in bytes and :class:`AllocationFlags` from ``offset`` on, for the range or its beginning."""
        if not self._tracks_allocation or not self._reads_zero:
            return [(length, 0)]
        block, length = self.namespace.block_bytes, min(length, STATUS_BYTES)
        first, end = offset // block, -(-(offset + length) // block)
        try:
            ranges = await self.namespace.lba_status(first, end - first, action=LbaStatusAction.ALLOCATED)
        except NvmeStatusError as error:
            if error.status not in (Status.INVALID_FIELD, Status.INVALID_OPCODE):
                raise
            self._tracks_allocation = False
            return [(length, 0)]
        found: list[tuple[int, int]] = []
        position, stop = offset, offset + length
        for each in ranges:
            start, behind = max(each.lba * block, offset), min((each.lba + each.blocks) * block, stop)
            if start > position:
                found.append((start - position, _HOLE))
            if behind > max(start, position):
                found.append((behind - max(start, position), 0))
            position = max(position, behind)
        if position < stop:
            found.append((stop - position, _HOLE))
        return found[:EXTENTS_MAX]

    @property
    def _reads_zero(self) -> bool:
        return self.namespace.info.dlfeat & 7 == _READS_ZERO
