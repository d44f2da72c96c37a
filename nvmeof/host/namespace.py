"""A namespace as its host sees it: reads, writes and the rest, split as the controller and the namespace want it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing
from functools import partial
from typing import NoReturn

from nvmeof.errors import CompareFailed, LocalProtocolError, NvmeofError, NvmeStatusError
from nvmeof.host import sqe_builders
from nvmeof.host.batch import IoBatch
from nvmeof.host.block_ranges import COPY_FORMAT_ACROSS, copy_commands, cut, pack_copy_ranges, pack_dsm_ranges
from nvmeof.host.buffers import BlockVector, check_lengths, pieces, plain_view, writable
from nvmeof.host.chunks import read_pieces
from nvmeof.host.fused import as_halves
from nvmeof.host.io_port import IoPort
from nvmeof.host.requests import DEFAULT_OPTIONS, CommandPart, RequestOptions
from nvmeof.host.reservations import Reservations
from nvmeof.host.results import IdentifyNamespace, LbaStatusRange
from nvmeof.host.zones import Zones
from nvmeof.spec.identify_namespace import format_index
from nvmeof.spec.media import LbaStatus, LbaStatusAction, LbaStatusCompletion, parse_lba_status
from nvmeof.spec.sqe import DSM_DEALLOCATE, DSM_INTEGRAL_READ, DSM_INTEGRAL_WRITE
from nvmeof.spec.status import Status
from nvmeof.wire import Buffer

NLB_MAX_BLOCKS = 1 << 16
"""The largest number of blocks in the 0's-based 16-bit NLB."""
LBA_MAX = (1 << 64) - NLB_MAX_BLOCKS
"""First blocks up to here make a range within 64 bits, whatever one command's length."""
_NO_HOLD = RequestOptions(hold=False)
CHUNK_BYTES = 1 << 20
LBA_STATUS_BYTES = 4096
LBA_STATUS_RANGE_MAX = 0xFFFF
"""What the 16-bit range length of Get LBA Status can express; 0 stands for all that follow."""
BOUNDARY_MIN_BYTES = 16384
"""An optimal I/O boundary (NOIOB) below this is ignored: a separate command for each stretch costs more."""


class Namespace:
    """One namespace of a subsystem. Block addresses and counts are in logical blocks of ``block_bytes``.

    ::

        namespace = controller.namespace(1)
        await namespace.write(0, bytes(4096))
        data = await namespace.read(0, 4096 // namespace.block_bytes)

    The operations raise :class:`NvmeStatusError` for a command that fails, :class:`ConnectionLost` when the connection
    has gone, :class:`LocalProtocolError` for what is no range of whole blocks.
    """

    def __init__(self, port: IoPort, nsid: int) -> None:
        self.port = port
        self.nsid = nsid
        self._info: IdentifyNamespace | None = None
        self._block_bytes = 0
        self._size_blocks = 0
        self._max_blocks = 0
        self._boundary_blocks = 0
        self._one_command_blocks = 0
        self.reservations = Reservations(port, nsid)
        """Registrations and reservations of the namespace."""
        self.zones = Zones(port, nsid, self._identified)
        """The zones of a zoned namespace."""

    def __repr__(self) -> str:
        if self._info is None:
            return f"<Namespace {self.nsid}, not identified yet>"
        return f"<Namespace {self.nsid}: {self._size_blocks} blocks of {self._block_bytes} bytes>"

    @property
    def info(self) -> IdentifyNamespace:
        """Identify Namespace as last read. Raises LocalProtocolError before the namespace was identified."""
        if self._info is None:
            self._unknown()
        return self._info

    def _unknown(self) -> NoReturn:
        raise LocalProtocolError(f"namespace {self.nsid} is not identified yet: await its refresh() first")

    @property
    def block_bytes(self) -> int:
        """Size of a logical block in bytes. Raises LocalProtocolError before the namespace was identified."""
        if not self._block_bytes:
            self._unknown()
        return self._block_bytes

    @property
    def size_blocks(self) -> int:
        """NSZE: the namespace's size in logical blocks. Raises LocalProtocolError as :attr:`info` does."""
        if not self._block_bytes:
            self._unknown()
        return self._size_blocks

    @property
    def size_bytes(self) -> int:
        """NSZE in bytes. Raises LocalProtocolError as :attr:`info` does."""
        return self.size_blocks * self.block_bytes

    async def refresh(self) -> IdentifyNamespace:
        """Identify the namespace (again); the decoded structure.

        Raises NvmeStatusError when it is not active, NvmeofError for a block format that this host has not.
        """
        info = await self.port.identify_namespace(self.nsid)
        if not info.nsze:
            raise NvmeStatusError(
                Status.INVALID_NAMESPACE,
                f"{self.port.subnqn} has no active namespace {self.nsid}",
                dnr=True,
            )
        lba_format = info.lbaf[format_index(info.flbas)]
        if not 9 <= lba_format.lbads <= 32:
            raise NvmeofError(f"namespace {self.nsid} claims logical blocks of 2^{lba_format.lbads} bytes")
        if lba_format.ms:
            raise NvmeofError(f"namespace {self.nsid} has {lba_format.ms} bytes of metadata per block: not supported")
        self._info = info
        self._block_bytes = 1 << lba_format.lbads
        self._size_blocks = info.nsze
        if self.port.max_transfer_bytes < self._block_bytes:
            raise NvmeofError(
                f"namespace {self.nsid} has blocks of {self._block_bytes} bytes, "
                f"but a transfer takes {self.port.max_transfer_bytes} at most"
            )
        self.limits_changed()
        return info

    def limits_changed(self) -> None:
        """Take over what the port's commands may transfer: it changes when a path to the subsystem comes or goes."""
        if self._info is None:
            return
        most = min(self.port.max_transfer_bytes // self._block_bytes, NLB_MAX_BLOCKS)
        self._max_blocks = max(most, 1)  # a path that takes no block at all refuses commands by itself
        boundary = self._info.noiob
        sensible = boundary * self._block_bytes >= BOUNDARY_MIN_BYTES and boundary < self._max_blocks * 16
        self._boundary_blocks = boundary if sensible else 0
        self._one_command_blocks = 0 if self._boundary_blocks else self._max_blocks

    async def _ready(self) -> None:
        if not self._block_bytes:
            await self.refresh()

    async def _identified(self) -> IdentifyNamespace:
        await self._ready()
        return self.info

    # -- reading

    async def read(self, lba: int, blocks: int = 1) -> bytes:
        """Read ``blocks`` logical blocks from ``lba`` on. :meth:`read_into` needs no copy: use it for much data."""
        if not self._block_bytes:
            await self.refresh()
        if not 0 < blocks <= self._max_blocks:
            await self._expect(lba, blocks)
        data = bytearray(blocks * self._block_bytes)
        # the buffer is private: a cancelled caller need not wait for it
        await self._read(lba, memoryview(data), hold=False)
        return bytes(data)

    async def read_into(self, lba: int, destination: memoryview | bytearray) -> None:
        """Fill ``destination``, a whole number of blocks, from ``lba`` on.

        The buffer belongs to the transfer until this returns. After a cancellation, which is raised at once, it is the
        caller's own again, with some of the data or none.
        """
        if not self._block_bytes:
            await self.refresh()
        view = writable(destination)
        length = len(view)
        blocks = length // self._block_bytes
        if 0 < blocks <= self._one_command_blocks and blocks * self._block_bytes == length and 0 <= lba <= LBA_MAX:
            await self.port.io(sqe_builders.read(self.nsid, lba, blocks), data_in=view)
        else:
            await self._read(lba, view, hold=True)

    async def _read(self, lba: int, view: memoryview, *, hold: bool) -> None:
        blocks = self._blocks(lba, len(view))
        if blocks <= self._one_command_blocks:
            sqe = sqe_builders.read(self.nsid, lba, blocks)
            await self.port.io(sqe, data_in=view, options=DEFAULT_OPTIONS if hold else _NO_HOLD)
            return
        await self._expect(lba, blocks)
        await self.port.io_transfer(self._parts([(lba, view)], write=False), hold=hold)

    # -- writing

    async def write(self, lba: int, data: Buffer, *, fua: bool = False) -> None:
        """Write ``data``, a whole number of blocks, from ``lba`` on; ``fua``: it is on the medium on return.

        A writable buffer must not change until this returns. After a cancellation, which is raised at once, it is the
        caller's own again; whether the data is written then is not known.
        """
        if not self._block_bytes:
            await self.refresh()
        view = plain_view(data)
        blocks = self._blocks(lba, len(view))
        hold = not isinstance(data, bytes)
        if blocks <= self._one_command_blocks:
            sqe = sqe_builders.write(self.nsid, lba, blocks, fua=fua)
            await self.port.io(sqe, data_out=view, options=DEFAULT_OPTIONS if hold else _NO_HOLD)
            return
        await self._expect(lba, blocks)
        await self.port.io_transfer(self._parts([(lba, view)], write=True, fua=fua), hold=hold)

    # -- many at once

    async def read_many(
        self, lbas: Sequence[int], blocks: int = 1, *, into: memoryview | bytearray | Sequence[Buffer] | None = None
    ) -> memoryview:
        """Read ``blocks`` logical blocks from each of ``lbas`` on, as one operation: the cheapest form of many Reads.

        Returns one view of all data in the order of ``lbas``; each piece has ``blocks * block_bytes`` bytes. ``into``:
        a writable buffer for all of it (which is returned as a view), or a list of buffers, one for each of ``lbas``
        (the view returned is empty then). The buffers belong to the operation until this returns. After the first
        error no further command is sent, and it is raised when the others have ended.
        """
        if not self._block_bytes:
            await self.refresh()
        if blocks > self._one_command_blocks and lbas:
            await self._expect(max(lbas), blocks)
        size = blocks * self._block_bytes
        if into is None or isinstance(into, memoryview | bytearray):
            whole = writable(bytearray(size * len(lbas)) if into is None else into)
            buffers = pieces(whole, size, len(lbas))
        else:
            whole, buffers = memoryview(b""), [writable(each) for each in into]
            check_lengths(buffers, size, len(lbas))
        await self._batch(sqe_builders.READ, lbas, blocks, buffers, whole or None, hold=into is not None)
        return whole

    async def write_many(
        self, lbas: Sequence[int], data: Buffer | Sequence[Buffer], blocks: int = 1, *, fua: bool = False
    ) -> None:
        """Write ``blocks`` logical blocks from each of ``lbas`` on, as one operation.

        ``data``: one buffer with the data of all in the order of ``lbas``, or a list with one buffer for each. ``data``
        must not change during the call. An error ends the call as with :meth:`write` and :meth:`read_many`. The order
        in which the writes take place is not defined, also where they overlap.
        """
        if not self._block_bytes:
            await self.refresh()
        if blocks > self._one_command_blocks and lbas:
            await self._expect(max(lbas), blocks)
        size = blocks * self._block_bytes
        whole = None
        if isinstance(data, bytes | bytearray | memoryview):
            whole = plain_view(data)
            buffers = pieces(whole, size, len(lbas))
        else:
            buffers = [plain_view(each) for each in data]
            check_lengths(buffers, size, len(lbas))
        await self._batch(sqe_builders.WRITE, lbas, blocks, buffers, whole, hold=not isinstance(data, bytes), fua=fua)

    async def _batch(
        self,
        opcode: int,
        lbas: Sequence[int],
        blocks: int,
        buffers: list[memoryview],
        whole: memoryview | None,
        *,
        hold: bool,
        fua: bool = False,
    ) -> None:
        if not lbas:
            return
        write = opcode == sqe_builders.WRITE
        self._check_range(min(lbas), blocks)
        self._check_range(max(lbas), blocks)
        if blocks <= self._one_command_blocks:
            make = (
                sqe_builders.write(self.nsid, 0, blocks, fua=fua) if write else sqe_builders.read(self.nsid, 0, blocks)
            )
            await self.port.io_batch(IoBatch(make, lbas, buffers, write, hold, whole))
            return
        await self.port.io_transfer(self._parts(zip(lbas, buffers, strict=True), write=write, fua=fua), hold=hold)

    async def readv(self, lba: int, buffers: Sequence[Buffer]) -> None:
        """Fill the writable ``buffers`` one after the other from ``lba`` on; together they are whole blocks.

        A buffer that begins and ends between two blocks needs no copy of its data.
        """
        await self._vector(lba, [writable(each) for each in buffers], write=False)

    async def writev(self, lba: int, buffers: Sequence[Buffer], *, fua: bool = False) -> None:
        """Write the ``buffers`` one after the other from ``lba`` on; together they are whole blocks.

        A buffer that begins and ends between two blocks needs no copy of its data.
        """
        await self._vector(lba, [plain_view(each) for each in buffers], write=True, fua=fua)

    async def _vector(self, lba: int, views: list[memoryview], *, write: bool, fua: bool = False) -> None:
        if not self._block_bytes:
            await self.refresh()
        blocks = self._blocks(lba, sum(map(len, views)))
        await self._expect(lba, blocks)
        vector = BlockVector(views, self._block_bytes, gather=write)
        ranges = ((lba + first, view) for first, view in vector.parts)
        await self.port.io_transfer(self._parts(ranges, write=write, fua=fua))
        if not write:
            vector.scatter()

    def _parts(
        self, ranges: Iterable[tuple[int, memoryview]], *, write: bool, fua: bool = False
    ) -> Iterator[CommandPart]:
        """Yield the commands that transfer the buffers to or from their first blocks, as many for each as it takes."""
        nsid, size = self.nsid, self._block_bytes
        for lba, view in ranges:
            for start, count in self.split(lba, len(view) // size):
                piece = view[(start - lba) * size : (start - lba + count) * size]
                if write:
                    yield sqe_builders.write(nsid, start, count, fua=fua), piece, None
                else:
                    yield sqe_builders.read(nsid, start, count), None, piece

    async def flush(self) -> None:
        """Bring all completed writes to the medium."""
        await self.port.io(sqe_builders.flush(self.nsid))

    async def write_zeroes(self, lba: int, blocks: int, *, deallocate: bool = False) -> None:
        """Zero ``blocks`` blocks from ``lba`` on; ``deallocate``: give the storage back where that reads as zeroes."""
        await self._ready()
        limit = (await self.port.nvm_limits()).write_zeroes_bytes
        make = partial(sqe_builders.write_zeroes, self.nsid, deallocate=deallocate)
        await self._without_data(make, lba, blocks, limit)

    async def write_uncorrectable(self, lba: int, blocks: int) -> None:
        """Make ``blocks`` blocks from ``lba`` on unreadable, until they are written again."""
        await self._ready()
        limit = (await self.port.nvm_limits()).write_uncorrectable_bytes
        await self._without_data(partial(sqe_builders.write_uncorrectable, self.nsid), lba, blocks, limit)

    async def verify(self, lba: int, blocks: int) -> None:
        """Have the controller read ``blocks`` blocks from ``lba`` on. Raises NvmeStatusError where it cannot."""
        await self._ready()
        limit = (await self.port.nvm_limits()).verify_bytes
        await self._without_data(partial(sqe_builders.verify, self.nsid), lba, blocks, limit)

    async def _without_data(self, make: Callable[[int, int], bytes], lba: int, blocks: int, limit_bytes: int) -> None:
        self._check_range(lba, blocks)
        most = NLB_MAX_BLOCKS
        if limit_bytes:
            most = max(1, min(most, limit_bytes // self._block_bytes))
        parts: Iterator[CommandPart] = ((make(*piece), None, None) for piece in cut(lba, blocks, most))
        await self.port.io_transfer(parts)

    async def compare(self, lba: int, data: Buffer) -> bool:
        """Return whether the blocks from ``lba`` on hold ``data``, whole blocks: the controller compares them."""
        await self._ready()
        view = plain_view(data)
        self._blocks(lba, len(view))
        size, make = self._block_bytes, sqe_builders.compare
        parts: Iterator[CommandPart] = (
            (make(self.nsid, start, count), view[(start - lba) * size : (start - lba + count) * size], None)
            for start, count in self.split(lba, len(view) // size)
        )
        try:
            await self.port.io_transfer(parts, hold=not isinstance(data, bytes))
        except NvmeStatusError as error:
            if error.status == Status.COMPARE_FAILURE:
                return False
            raise
        return True

    async def compare_and_write(self, lba: int, expected: Buffer, data: Buffer, *, fua: bool = False) -> None:
        """Write ``data`` from ``lba`` on if the blocks there hold ``expected``, as one operation (fused Compare and
        Write): no other command comes between.

        Both have the same whole number of blocks, what one command takes at most. Up to the controller's atomic size
        (ACWU, NACWU) other hosts see all of it or nothing. Raises :class:`CompareFailed` where the blocks hold other
        data: nothing is written then. It is never sent again once it may have been executed:
        :class:`OutcomeUnknown` says so, and reading the blocks tells what has become of it. Raises
        :class:`NvmeofError` for a controller that has no such operation.
        """
        await self._ready()
        views = plain_view(expected), plain_view(data)
        blocks = self._blocks(lba, len(views[0]))
        if len(views[1]) != len(views[0]):
            raise LocalProtocolError(
                f"{len(views[0])} bytes are expected and {len(views[1])} are to be written: give as many of both"
            )
        if blocks > self._max_blocks:
            raise LocalProtocolError(
                f"{blocks} blocks are more than one Compare and Write takes ({self._max_blocks}): "
                "several would not be one operation"
            )
        if not (await self.port.nvm_limits()).compare_and_write:
            raise NvmeofError(
                f"{self.port.subnqn} has no Compare and Write (FUSES): use compare() and write() under a reservation"
            )
        halves = as_halves(
            sqe_builders.compare(self.nsid, lba, blocks), sqe_builders.write(self.nsid, lba, blocks, fua=fua)
        )
        hold = not (isinstance(expected, bytes) and isinstance(data, bytes))
        try:
            await self.port.io_fused(halves, *views, hold=hold)
        except NvmeStatusError as error:
            if error.status != Status.COMPARE_FAILURE:
                raise
            raise CompareFailed(
                error.status,
                f"the {blocks} blocks from {lba} on of namespace {self.nsid} do not hold what was expected: "
                "nothing was written",
                dnr=error.dnr,
                dw0=error.dw0,
            ) from None

    async def copy(
        self, lba: int, sources: Iterable[tuple[int, int]], *, from_nsid: int | None = None, fua: bool = False
    ) -> None:
        """Have the controller copy the ``(lba, blocks)`` of ``sources``, one behind the other, to ``lba`` and on.

        ``from_nsid``: out of that namespace of the subsystem; descriptor format 2h has to be enabled before (Host
        Behavior Support). What exceeds the namespace's limits takes several commands, one after the other: after an
        error some of them have been done.
        """
        await self._ready()
        for start, ranges in copy_commands(lba, sources, self.info):
            for source in ranges:
                self._check_range(*source)
            data = pack_copy_ranges(ranges, from_nsid)
            form = COPY_FORMAT_ACROSS if from_nsid is not None else 0
            sqe = sqe_builders.copy(self.nsid, start, len(ranges), descriptor_format=form, fua=fua)
            await self.port.io(sqe, data_out=data)

    async def deallocate(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Deallocate the ``(lba, blocks)`` ranges: their content is no longer needed (Dataset Management)."""
        await self.dataset_management(ranges, deallocate=True)

    async def dataset_management(
        self,
        ranges: Iterable[tuple[int, int]],
        *,
        deallocate: bool = False,
        integral_read: bool = False,
        integral_write: bool = False,
    ) -> None:
        """Tell the controller how the ``(lba, blocks)`` ranges will be used: not at all, read as a whole, or written as
        a whole."""
        await self._ready()
        limits = await self.port.nvm_limits()
        pieces: list[tuple[int, int]] = []
        for lba, blocks in ranges:
            self._check_range(lba, blocks)
            pieces += cut(lba, blocks, limits.dsm_range_blocks)
        attributes = DSM_DEALLOCATE if deallocate else 0
        attributes |= (DSM_INTEGRAL_READ if integral_read else 0) | (DSM_INTEGRAL_WRITE if integral_write else 0)
        at_once = limits.dsm_ranges
        groups = [pieces[start : start + at_once] for start in range(0, len(pieces), at_once)]
        parts: Iterator[CommandPart] = (
            (sqe_builders.dataset_management(self.nsid, len(group), attributes), pack_dsm_ranges(group), None)
            for group in groups
        )
        if groups:
            await self.port.io_transfer(parts)

    async def lba_status(
        self, lba: int = 0, blocks: int | None = None, *, action: LbaStatusAction = LbaStatusAction.TRACKED
    ) -> list[LbaStatusRange]:
        """Return the blocks of a range (None: to the end) that may not be readable, by Get LBA Status.

        ``action``: those that the controller knows of already, or what it finds when it reads all of them now (SCAN).
        """
        await self._ready()
        end = self._size_blocks if blocks is None else lba + blocks
        self._check_range(lba, end - lba)
        found: list[LbaStatusRange] = []
        while lba < end:
            data = bytearray(LBA_STATUS_BYTES)
            length = end - lba if end - lba <= LBA_STATUS_RANGE_MAX else 0
            sqe = sqe_builders.get_lba_status(self.nsid, lba, length, len(data), action)
            await self.port.execute_admin(sqe, data_in=memoryview(data))
            completion, entries = parse_lba_status(data)
            for start, count, status in entries:
                if start < end:
                    found.append(LbaStatusRange(start, min(count, end - start), LbaStatus(status)))
            if completion != LbaStatusCompletion.MORE or not entries or sum(entries[-1][:2]) <= lba:
                break
            lba = sum(entries[-1][:2])
        return found

    async def chunks(
        self, lba: int = 0, blocks: int | None = None, *, chunk_bytes: int = CHUNK_BYTES, read_ahead: int = 2
    ) -> AsyncIterator[bytearray]:
        """Read a large range (None: to the end of the namespace) piece by piece.

        ::

            async for chunk in namespace.chunks():
                digest.update(chunk)

        Each piece has ``chunk_bytes``, rounded down to whole blocks, the last one perhaps less, and is the caller's
        own. The next ``read_ahead`` pieces are read while one is looked at. Leave the loop through
        ``contextlib.aclosing`` to stop what is read ahead at once. Raises as :meth:`read_into` does.
        """
        await self._ready()
        size = self._block_bytes
        blocks = max(self._size_blocks - lba, 0) if blocks is None else blocks
        if not blocks:
            return
        await self._expect(lba, blocks)
        each = max(chunk_bytes // size, 1)
        wanted = ((start, count * size) for start, count in cut(lba, blocks, each))
        async with aclosing(read_pieces(self.port.runtime, wanted, self.read_into, read_ahead)) as ready:
            async for chunk in ready:
                yield chunk

    # -- splitting and checks

    def split(self, lba: int, blocks: int) -> Iterator[tuple[int, int]]:
        """Yield stretches ``(lba, blocks)`` that one command each may transfer.

        None is longer than MDTS, the device and NLB allow, or crosses the namespace's optimal I/O boundary (NOIOB).
        """
        end = lba + blocks
        boundary = self._boundary_blocks
        while lba < end:
            count = min(end - lba, self._max_blocks)
            if boundary:
                count = min(count, boundary - lba % boundary)
            yield lba, count
            lba += count

    def _blocks(self, lba: int, length_bytes: int) -> int:
        blocks, rest = divmod(length_bytes, self._block_bytes)
        if rest:
            raise LocalProtocolError(
                f"{length_bytes} bytes are no multiple of the block size, {self._block_bytes} bytes"
            )
        self._check_range(lba, blocks)
        return blocks

    async def _expect(self, lba: int, blocks: int) -> None:
        """Refuse a range beyond the namespace that takes several commands, or much memory, before the first command. A
        range of one command is refused by the controller.
        """
        self._check_range(lba, blocks)
        if lba + blocks > self._size_blocks:
            await self.refresh()  # it may have grown
            if lba + blocks > self._size_blocks:
                raise NvmeStatusError(
                    Status.LBA_OUT_OF_RANGE,
                    f"LBA out of range: {blocks} blocks from {lba} on end beyond namespace {self.nsid}, "
                    f"which has {self._size_blocks} blocks",
                    dnr=True,
                )

    @staticmethod
    def _check_range(lba: int, blocks: int) -> None:
        # whether the range exists is for the controller to say: the namespace may have grown
        if blocks < 1 or lba < 0 or lba + blocks > 1 << 64:
            raise LocalProtocolError(f"{blocks} blocks from {lba} on are no range of logical blocks")
