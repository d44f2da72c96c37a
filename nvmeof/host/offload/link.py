"""One queue of the offload device, in the application: commands into one ring, completions out of the other."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Any, Final, cast

from nvmeof.errors import LocalProtocolError, NvmeofError
from nvmeof.host.offload.layout import MAX_TRANSFER_BYTES, READ, SERIES_MAX, WHOLE, WRITE
from nvmeof.host.offload.pool import Region
from nvmeof.host.offload.process import DeviceProcess
from nvmeof.host.queue import CommandSeries, Queue, Request

STAGED_WHOLE_BYTES: Final = 4 << 20
"""Data of a batch that gets one piece of the device's memory, at most; more gets a piece for each command."""
Staged = tuple[int, "memoryview | None", "list[int]"]
"""The device's own buffer of a command: its offset, where its data is copied to, and the list that it goes back to."""


class StagedSeries:
    """The device's own buffer of several commands, whose data lies in it one behind the other in the order of ``cids``.

    ``place``: where it is copied to; None: nowhere. ``size``: bytes of each. ``free``: the list that it goes back to.
    """

    __slots__ = ("cids", "free", "given_back", "left", "offset", "place", "size")

    def __init__(self, cids: Sequence[int], offset: int, place: memoryview | None, size: int, free: list[int]) -> None:
        self.cids = cids
        self.offset = offset
        self.place = place
        self.size = size
        self.free = free
        self.left = len(cids)
        self.given_back: set[int] = set()

    def take(self, cid: int, memory: memoryview, *, good: bool) -> None:
        """Copy the data of one command that has completed."""
        if good and self.place is not None and cid not in self.given_back:
            at, size = self.cids.index(cid) * self.size, self.size
            self.place[at : at + size] = memory[self.offset + at : self.offset + at + size]
        self.left -= 1
        if not self.left:
            self.free.append(self.offset)

    def take_all(self, cids: tuple[int, ...], memory: memoryview) -> bool:
        """Copy the data of all commands at once, if these are all; False where nothing was done."""
        if self.left != len(cids) or self.given_back or (cids != self.cids and set(cids) != set(self.cids)):
            return False
        if self.place is not None:
            self.place[:] = memory[self.offset : self.offset + len(cids) * self.size]
        self.free.append(self.offset)
        return True


class OffloadLink:
    """One queue. A command whose buffer lies in the device's memory is carried there; any other gets a buffer of the
    device, and its data is copied: before the command goes out, or when it has completed.

    ``waiting``: requests of all queues that wait for such a buffer, in their order.
    """

    def __init__(
        self, queue: Queue, process: DeviceProcess, region: Region, waiting: deque[tuple[OffloadLink, Request]]
    ) -> None:
        self.queue = queue
        self.process = process
        self.facts: dict[str, Any] = {}
        self.peer: str | None = None
        self._slot = -1
        self._region = region
        self._memory = region.memory
        self._mapping = region.mapping
        self._free: dict[int, list[int]] = {}  # the lists of free buffers, by the length of data
        self._waiting = waiting
        self._staged: dict[int, Staged | StagedSeries] = {}
        self._drained = False
        self._closed = False

    async def connect(self, fields: dict[str, Any], timeout_seconds: float) -> None:
        """Have the device connect the queue. Raises :class:`NvmeofError`."""
        self._slot, answer = await self.process.create(self, fields, timeout_seconds)
        self.facts, self.peer = answer["facts"], answer["peer"]

    # -- out

    def send(self, request: Request, more: bool) -> None:
        """Write one command; the doorbell rings at once on an idle queue, else at the end of this turn of the loop."""
        if self._waiting or not self._write(request):
            self._waiting.append((self, request))
        elif more or len(self.queue.requests) != 1:
            self.process.ring_soon()
        else:
            self.process.out.ring()

    def _write(self, request: Request) -> bool:
        """Write a command; False where it has to wait for a buffer."""
        data_in = request.data_in
        data, flags = (request.data_out, WRITE) if data_in is None else (data_in, READ)
        size = 0 if data is None else len(data)
        offset = 0
        if not size:
            flags = 0
        elif size > MAX_TRANSFER_BYTES:
            self._refuse(size)
            return True
        elif (
            type(data) is not memoryview
            or data.obj is not self._mapping
            or (offset := self._region.offset_of(data)) < 0
        ):
            assert data is not None
            free = self._free.get(size)
            if free is None:
                staging = self._region.staging
                free = self._free[size] = staging.free_list(staging.order(size))
            if free:
                offset = free.pop()
            else:
                staging = self._region.staging
                offset = staging.take(staging.order(size))
                if offset < 0:
                    return False
            self._staged[request.cid] = offset, data_in, free
            if data_in is None:
                self._memory[offset : offset + size] = data
        self.process.out.command(flags, self._slot, request.cid, request.sqe, size, offset)
        return True

    def _refuse(self, size: int) -> None:
        limit = f"the offload device transfers {MAX_TRANSFER_BYTES} bytes with one command, and one has {size}"
        # not from here: the controller above is in the middle of a submission
        self.process.loop.call_soon(self.broken, LocalProtocolError(limit))

    def send_batch(self, batch: CommandSeries, cids: Sequence[int], requests: Sequence[Request]) -> None:
        """Write several commands as one record; the doorbell rings as for `send`."""
        count = len(cids)
        if self._waiting or count > SERIES_MAX or not self._write_series(batch, cids):
            for request in requests:
                self.send(request, True)
        elif len(self.queue.requests) == count:
            self.process.out.ring()
        else:
            self.process.ring_soon()

    def _write_series(self, batch: CommandSeries, cids: Sequence[int]) -> bool:
        """Write several commands; False where not all data can be placed alike."""
        region, whole = self._region, batch.whole
        size, flags = len(batch.buffers[0]), WRITE if batch.write else READ
        if not 0 < size <= MAX_TRANSFER_BYTES:
            return False
        if whole is not None and len(whole) <= STAGED_WHOLE_BYTES:
            offset = region.offset_of(whole)
            if offset < 0:
                offset = self._stage_whole(whole, size, cids, write=batch.write)
            if offset >= 0:
                items = (*batch.slbas, *cids)
                self.process.out.series(flags | WHOLE, self._slot, len(cids), size, offset, batch.sqe, items)
                return True
        offsets = [region.offset_of(each) for each in batch.buffers]
        if max(offsets) < 0:
            offsets = self._stage_each(batch, size, cids)
        if not offsets or min(offsets) < 0:
            return False
        self.process.out.series(flags, self._slot, len(cids), size, 0, batch.sqe, (*batch.slbas, *cids, *offsets))
        return True

    def _stage_whole(self, whole: memoryview, size: int, cids: Sequence[int], *, write: bool) -> int:
        """Have one buffer of the device for the data of all; its offset, -1 where there is none."""
        staging = self._region.staging
        order = staging.order(len(whole))
        offset = staging.take(order)
        if offset >= 0:
            if write:
                self._memory[offset : offset + len(whole)] = whole
            place = None if write else whole
            held = StagedSeries(tuple(cids), offset, place, size, staging.free_list(order))
            self._staged.update(dict.fromkeys(cids, held))
        return offset

    def _stage_each(self, batch: CommandSeries, size: int, cids: Sequence[int]) -> list[int]:
        """Have a buffer of the device for the data of each; none where there are not enough."""
        staging, buffers = self._region.staging, batch.buffers
        order = staging.order(size)
        offsets = staging.take_many(order, len(cids))
        if not offsets:
            return []
        free = repeat(staging.free_list(order))
        places: Iterable[memoryview | None] = buffers
        if batch.write:
            memory, places = self._memory, repeat(None)
            for offset, each in zip(offsets, buffers, strict=True):
                memory[offset : offset + size] = each
        self._staged.update(zip(cids, zip(offsets, places, free, strict=False), strict=True))
        return offsets

    def resume(self, request: Request) -> bool:
        """Write a command that has waited for a buffer; False where it has to wait on."""
        if not self._write(request):
            return False
        self.process.ring_soon()
        return True

    def give_back(self, request: Request) -> bool:
        """Let go of a caller's buffer, if the device does not have it itself."""
        if (self, request) in self._waiting:
            return False  # it has not gone out, and needs its data for that
        cid = request.cid
        held = self._staged.get(cid)
        if held is None:
            return False
        if type(held) is StagedSeries:
            held.given_back.add(cid)
        else:
            offset, _, free = cast(Staged, held)
            self._staged[cid] = offset, None, free
        return True

    def uses(self, first: int, end: int) -> bool:
        """Return whether a command is under way with a part of that range of the memory."""
        staged, region = self._staged, self._region
        for request in list(self.queue.requests.values()):
            data = request.data_in if request.data_in is not None else request.data_out
            if request.cid in staged or type(data) is not memoryview or not data:
                continue
            offset = region.offset_of(data)
            if offset >= 0 and offset < end and first < offset + len(data):
                return True
        return False

    # -- in

    def succeeded(self, cids: tuple[int, ...]) -> None:
        """Copy data that belongs elsewhere, and complete commands that have succeeded with result 0."""
        staged = self._staged
        if staged:
            held = staged.get(cids[0])
            if type(held) is StagedSeries and held.take_all(cids, self._memory):
                for cid in cids:
                    del staged[cid]
            else:
                self._copy(cids)
        self.queue.complete_good(cids)
        if self._waiting:
            resume(self._waiting)

    def completed(self, entries: list[tuple[int, int, int, int]]) -> None:
        """Copy data that belongs elsewhere, and complete the commands."""
        for cid, status, _, _ in entries:
            self._copy((cid,), good=status < 2)
        self.queue.complete(entries)
        if self._waiting:
            resume(self._waiting)

    def _copy(self, cids: Sequence[int], *, good: bool = True) -> None:
        """Copy the data of commands that have completed, if they succeeded, and free the device's own buffers."""
        staged, memory = self._staged, self._memory
        for cid in cids:
            held = staged.pop(cid, None)
            if held is None:
                continue
            if type(held) is StagedSeries:
                held.take(cid, memory, good=good)
                continue
            offset, place, free = cast(Staged, held)
            if place is not None and good:
                place[:] = memory[offset : offset + len(place)]
            free.append(offset)

    def broken(self, error: NvmeofError) -> None:
        """Report the end of the queue."""
        self.queue.report_err(error)

    # -- the end

    def stop(self) -> None:
        """Stop: the device touches no buffer after this, and no upcall follows."""
        if self._drained:
            return
        self._drained = True
        if self._slot >= 0:
            self.process.drain(self._slot)
        for entry in [each for each in self._waiting if each[0] is self]:
            self._waiting.remove(entry)
        for held in {id(each): each for each in self._staged.values()}.values():
            if type(held) is StagedSeries:
                held.free.append(held.offset)
            else:
                offset, _, free = cast(Staged, held)
                free.append(offset)
        self._staged.clear()
        if self._waiting:
            resume(self._waiting)

    def close(self) -> None:
        """Free the queue in the device."""
        self.stop()
        if not self._closed and self._slot >= 0:
            self._closed = True
            self.process.destroy(self._slot)


def resume(waiting: deque[tuple[OffloadLink, Request]]) -> None:
    """Send what has waited for buffers, as far as there are some."""
    while waiting:
        link, request = waiting[0]
        if not link.resume(request):
            return
        waiting.popleft()
