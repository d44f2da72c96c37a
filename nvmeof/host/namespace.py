"""A namespace as its host sees it: reads, writes and the rest, split as the controller and the namespace want it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NoReturn

from nvmeof.errors import LocalProtocolError, NvmeofError, NvmeStatusError
from nvmeof.host import sqe_builders
from nvmeof.host.io_port import IoPort
from nvmeof.host.requests import DEFAULT_OPTIONS, CommandPart, RequestOptions
from nvmeof.host.results import IdentifyNamespace
from nvmeof.spec.identify_namespace import format_index
from nvmeof.spec.sqe import DSM_RANGE, DsmRange
from nvmeof.spec.status import Status
from nvmeof.wire import Buffer

NLB_MAX_BLOCKS = 1 << 16
"""What the 0's-based 16-bit NLB can express."""
_NO_HOLD = RequestOptions(hold=False)
BOUNDARY_MIN_BYTES = 16384
"""An optimal I/O boundary (NOIOB) below this is not worth a command of its own for each stretch."""


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
        self._max_blocks = min(self.port.max_transfer_bytes // self._block_bytes, NLB_MAX_BLOCKS)
        if not self._max_blocks:
            raise NvmeofError(
                f"namespace {self.nsid} has blocks of {self._block_bytes} bytes, "
                f"but a transfer takes {self.port.max_transfer_bytes} at most"
            )
        boundary = info.noiob
        sensible = boundary * self._block_bytes >= BOUNDARY_MIN_BYTES and boundary < self._max_blocks * 16
        self._boundary_blocks = boundary if sensible else 0
        return info

    async def _ready(self) -> None:
        if not self._block_bytes:
            await self.refresh()

    # -- reading

    async def read(self, lba: int, blocks: int = 1) -> bytes:
        """``blocks`` logical blocks from ``lba`` on. See :meth:`read_into` for much data: it needs no copy."""
        if not self._block_bytes:
            await self.refresh()
        if not 0 < blocks <= self._max_blocks:
            await self._expect(lba, blocks)
        data = bytearray(blocks * self._block_bytes)
        # nobody else has the buffer: a cancelled caller need not wait for it
        await self._read(lba, memoryview(data), hold=False)
        return bytes(data)

    async def read_into(self, lba: int, destination: memoryview | bytearray) -> None:
        """Fill ``destination``, a whole number of blocks, from ``lba`` on.

        The buffer belongs to the transfer until this returns. After a cancellation, which is raised at once, it is the
        caller's own again, with some of the data or none.
        """
        if not self._block_bytes:
            await self.refresh()
        view = memoryview(destination)
        if view.format != "B" or view.ndim != 1:
            view = view.cast("B")
        if view.readonly:
            raise LocalProtocolError("the destination of a read must be writable")
        await self._read(lba, view, hold=True)

    async def _read(self, lba: int, view: memoryview, *, hold: bool) -> None:
        blocks = self._blocks(lba, len(view))
        if blocks <= self._max_blocks and not self._boundary_blocks:
            sqe = sqe_builders.read(self.nsid, lba, blocks)
            await self.port.io(sqe, data_in=view, options=DEFAULT_OPTIONS if hold else _NO_HOLD)
            return
        size = self._block_bytes
        parts: Iterator[CommandPart] = (
            (
                sqe_builders.read(self.nsid, start, count),
                None,
                view[(start - lba) * size : (start - lba + count) * size],
            )
            for start, count in self.split(lba, blocks)
        )
        await self._expect(lba, blocks)
        await self.port.io_transfer(parts, hold=hold)

    # -- writing

    async def write(self, lba: int, data: Buffer, *, fua: bool = False) -> None:
        """Write ``data``, a whole number of blocks, from ``lba`` on; ``fua``: it is on the medium on return.

        A writable buffer must not change until this returns. After a cancellation, which is raised at once, it is the
        caller's own again; whether the data is written then is not known.
        """
        if not self._block_bytes:
            await self.refresh()
        view = memoryview(data)
        if view.format != "B" or view.ndim != 1:
            view = view.cast("B")
        blocks = self._blocks(lba, len(view))
        hold = not isinstance(data, bytes)
        if blocks <= self._max_blocks and not self._boundary_blocks:
            sqe = sqe_builders.write(self.nsid, lba, blocks, fua=fua)
            await self.port.io(sqe, data_out=view, options=DEFAULT_OPTIONS if hold else _NO_HOLD)
            return
        size = self._block_bytes
        parts: Iterator[CommandPart] = (
            (
                sqe_builders.write(self.nsid, start, count, fua=fua),
                view[(start - lba) * size : (start - lba + count) * size],
                None,
            )
            for start, count in self.split(lba, blocks)
        )
        await self._expect(lba, blocks)
        await self.port.io_transfer(parts, hold=hold)

    async def flush(self) -> None:
        """Bring all completed writes to the medium."""
        await self.port.io(sqe_builders.flush(self.nsid))

    async def write_zeroes(self, lba: int, blocks: int, *, deallocate: bool = False) -> None:
        """Zero ``blocks`` blocks from ``lba`` on; ``deallocate``: give the storage back where that reads as zeroes."""
        await self._ready()
        self._check_range(lba, blocks)
        limits = await self.port.nvm_limits()
        most = NLB_MAX_BLOCKS
        if limits.write_zeroes_bytes:
            most = max(1, min(most, limits.write_zeroes_bytes // self._block_bytes))
        parts: Iterator[CommandPart] = (
            (
                sqe_builders.write_zeroes(self.nsid, start, min(most, lba + blocks - start), deallocate=deallocate),
                None,
                None,
            )
            for start in range(lba, lba + blocks, most)
        )
        await self.port.io_transfer(parts)

    async def deallocate(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Tell the controller that the ``(lba, blocks)`` ranges are of no use any more (Dataset Management)."""
        await self._ready()
        limits = await self.port.nvm_limits()
        pieces: list[tuple[int, int]] = []
        for lba, blocks in ranges:
            self._check_range(lba, blocks)
            pieces += _cut(lba, blocks, limits.dsm_range_blocks)
        if not pieces:
            return
        at_once = limits.dsm_ranges
        groups = [pieces[start : start + at_once] for start in range(0, len(pieces), at_once)]
        parts: Iterator[CommandPart] = (
            (sqe_builders.dataset_management(self.nsid, len(group)), b"".join(_range(*piece) for piece in group), None)
            for group in groups
        )
        await self.port.io_transfer(parts)

    # -- splitting and checks

    def split(self, lba: int, blocks: int) -> Iterator[tuple[int, int]]:
        """Stretches ``(lba, blocks)`` that one command each may transfer.

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
        """Refuse what takes several commands, or much memory, and ends beyond the namespace, before any of it is done.

        One command is the controller's to refuse.
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


def _cut(lba: int, blocks: int, most: int) -> Iterator[tuple[int, int]]:
    while blocks:
        count = min(blocks, most)
        yield lba, count
        lba += count
        blocks -= count


def _range(lba: int, blocks: int) -> bytes:
    return DSM_RANGE.pack(DsmRange(length_blocks=blocks, slba=lba))
