"""The transmission phase of one client: its requests as they come off the wire, and what is done about them.

Requests that come together are read together: Reads of one length become one batch, whose data lands in the reply, each
piece behind its header. Everything else is a task of its own. A client that sends faster than its requests are done, or
does not take its replies, is not read from for as long.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol

from nvmeof.errors import NvmeofError
from nvmeof.host import sqe_builders
from nvmeof.host.batch import IoBatch
from nvmeof.host.nbd_export.budget import Budget, Share
from nvmeof.host.nbd_export.disk import MAX_PAYLOAD_BYTES, ExportedDisk, nbd_error
from nvmeof.host.nbd_export.replies import Replies
from nvmeof.nbd.messages import EXTENDED_REQUEST, REQUEST, Request
from nvmeof.nbd.numbers import (
    EXTENDED_REQUEST_MAGIC,
    REQUEST_MAGIC,
    Command,
    CommandFlags,
    NbdError,
)
from nvmeof.nbd.option_data import NbdProtocolError
from nvmeof.nbd.server_negotiation import ServerSession

log = logging.getLogger("nvmeof.nbd")

BUFFER_BYTES: Final = 256 << 10
SERVED_PAYLOAD_BYTES: Final = 2 * MAX_PAYLOAD_BYTES
"""libnbd sends up to 64 MiB whatever maximum it was told."""
IN_FLIGHT: Final = 256
"""Requests of one client that are under way; more are not read."""
RUN_BYTES: Final = 1 << 20
"""Reads that are one batch transfer no more than this together."""
_NAMES: Final = {each.value: each.name for each in Command}
# Plain numbers: an enum's operators would cost more than all the rest of a request's check.
_READ: Final = int(Command.READ)
_WRITE: Final = int(Command.WRITE)
_FUA: Final = int(CommandFlags.FUA)
_KNOWN_FLAGS: Final = {
    _READ: int(CommandFlags.DF),
    _WRITE: int(CommandFlags.FUA | CommandFlags.PAYLOAD_LEN),
    int(Command.FLUSH): 0,
    int(Command.TRIM): _FUA,
    int(Command.WRITE_ZEROES): int(CommandFlags.FUA | CommandFlags.NO_HOLE | CommandFlags.FAST_ZERO),
    int(Command.BLOCK_STATUS): int(CommandFlags.REQ_ONE),
}
_CHANGES: Final = frozenset({Command.WRITE, Command.TRIM, Command.WRITE_ZEROES})


class Output(Protocol):
    """Where replies go: an asyncio transport."""

    def write(self, data: bytes | bytearray | memoryview, /) -> None: ...

    def is_closing(self) -> bool: ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def close(self) -> None: ...


class RefusedError(Exception):
    """A request that is answered with an error. ``error`` is that of the wire."""

    def __init__(self, error: NbdError, message: str) -> None:
        super().__init__(message)
        self.error = error


class Transmission:
    """See the module. ``spawn`` runs a coroutine as a task that ends with the client."""

    def __init__(
        self,
        session: ServerSession,
        disk: ExportedDisk,
        output: Output,
        budget: Budget,
        spawn: Callable[[Coroutine[Any, Any, None]], object],
    ) -> None:
        self._session = session
        self._disk = disk
        self._output = output
        self._budget = budget
        self._share = Share()
        self._spawn = spawn
        self._replies = Replies(session)
        self._record = EXTENDED_REQUEST if session.extended else REQUEST
        self._magic = EXTENDED_REQUEST_MAGIC if session.extended else REQUEST_MAGIC
        self._buffer = memoryview(bytearray(BUFFER_BYTES))
        self._start = self._end = 0
        self._writing: tuple[Request, memoryview] | None = None  # the request whose data is coming
        self._payload: memoryview | None = None  # what is missing of that data
        self._skip = 0  # bytes of a refused request that are still to come
        self._waiting = False  # for memory, for room in flight, or for the client to take its replies
        self._listed = False  # in the budget's line
        self._choked = False  # the client does not take its replies
        self._owed_bytes = 0  # memory of replies that the client has not taken
        self.in_flight = 0
        self.disconnecting = False

    # Receiving

    def next_buffer(self) -> memoryview:
        """Return where the next bytes go."""
        if self._payload is not None:
            return self._payload
        if self._start == self._end or self.disconnecting:  # what follows a disconnect is dropped
            self._start = self._end = 0
        elif self._end == BUFFER_BYTES:
            rest = bytes(self._buffer[self._start : self._end])
            self._start, self._end = 0, len(rest)
            self._buffer[: self._end] = rest
        return self._buffer[self._end :]

    def preload(self, data: bytes) -> None:
        """Take bytes that came with the negotiation, at most `BUFFER_BYTES`."""
        if data:
            self.next_buffer()[: len(data)] = data
            self.received(len(data))

    def received(self, count: int) -> None:
        """Take note of ``count`` bytes there. Raises :class:`NbdProtocolError` for what ends the connection."""
        if self._payload is not None:
            self._payload = self._payload[count:]
            if self._payload:
                return
            self._payload = None
            self._begin_write()
        else:
            self._end += count
        self.go_on()

    def go_on(self) -> None:
        """Take the requests that are there, as many as may begin now."""
        while not self.disconnecting and self._payload is None:
            if self._skip:
                skipped = min(self._skip, self._end - self._start)
                self._start += skipped
                self._skip -= skipped
                if self._skip:
                    break
            if self._end - self._start < self._record.size or not self._may_begin():
                break
            if self._take_reads():
                continue
            if not self._take(self._record.unpack_from(self._buffer, self._start)):
                break
        self._close_if_over()

    def _may_begin(self) -> bool:
        if self._choked or self.in_flight >= IN_FLIGHT:
            self._wait()
            return False
        return True

    def _take_reads(self) -> bool:
        """Begin a run of plain Reads of one length as one; False: the next request is none, or there is no memory."""
        size = self._record.size
        most = min((self._end - self._start) // size, IN_FLIGHT - self.in_flight)
        requests = self._record.struct.iter_unpack(self._buffer[self._start : self._start + most * size])
        cookies: list[int] = []
        offsets: list[int] = []
        length, magic, mask = -1, self._magic, self._disk.namespace.block_bytes - 1
        behind = self._session.export.size
        for found, flags, command, cookie, offset, each in requests:
            if command != _READ or flags or found != magic or offset & mask or offset + each > behind:
                break
            if each != length:
                if length > 0 or not each or each & mask or each > self._disk.namespace.port.max_transfer_bytes:
                    break
                length = each
                most = min(most, max(1, min(RUN_BYTES, self._budget.limit_bytes // 8) // length))
            elif len(cookies) == most:
                break
            cookies.append(cookie)
            offsets.append(offset)
        count = len(cookies)
        if not count or not self._budget.take(count * length, self._share):
            return False
        self._start += count * size
        self.in_flight += count
        self._spawn(self._read_run(cookies, offsets, length))
        return True

    def _wait(self) -> None:
        if not self._waiting:
            self._waiting = True
            self._output.pause_reading()

    def _has_memory(self, count: int) -> bool:
        """Take memory from the budget, or go on when there is some."""
        if self._budget.take(count, self._share):
            return True
        if not self._listed:
            self._listed = True
            self._budget.when_free(self._freed)
        self._wait()
        return False

    def _freed(self) -> None:
        self._listed = False
        self._again()

    def _again(self) -> None:
        """Go on after a wait."""
        if self._waiting and not self._choked and not self._output.is_closing():
            self._waiting = False
            self._output.resume_reading()
            try:
                self.go_on()
            except NbdProtocolError as error:
                log.info("an NBD client was disconnected: %s", error)
                self._output.close()

    def _take(self, request: Request) -> bool:
        """Begin one request; False: there is no memory for it now."""
        if request.magic != self._magic:
            raise NbdProtocolError(f"it sends {request.magic:#x} where a request should begin")
        command = request.command
        if command == Command.DISC:
            self.disconnecting = True
            return True
        refusal = self._refusal(request)
        carries = command == _WRITE or (self._session.extended and request.flags & CommandFlags.PAYLOAD_LEN)
        if carries:
            if not self._take_payload(request, refusal):
                return False
        elif refusal is None:
            if command != _READ:
                self._run(request, self._execute(request))
            elif not self._has_memory(request.length):
                return False
            else:
                self.in_flight += 1
                self._spawn(self._read_alone(request))
        self._start += self._record.size
        if refusal is not None:
            self._refuse(request, refusal)
        elif carries:
            self._receive_payload()
        return True

    def _take_payload(self, request: Request, refusal: RefusedError | None) -> bool:
        """Find a place for the data of a request; data of one that is refused is skipped."""
        if request.length > SERVED_PAYLOAD_BYTES:
            raise NbdProtocolError(f"it sends {request.length} bytes in one request: at most {MAX_PAYLOAD_BYTES}")
        if refusal is not None:
            self._skip = request.length
            return True
        if not self._has_memory(request.length):
            return False
        self._writing = request, memoryview(bytearray(request.length))
        return True

    def _receive_payload(self) -> None:
        """Take the part of the data that has come with the request; the rest comes in place."""
        assert self._writing is not None
        data = self._writing[1]
        have = min(self._end - self._start, len(data))
        data[:have] = self._buffer[self._start : self._start + have]
        self._start += have
        if have == len(data):
            self._begin_write()
        else:
            self._payload = data[have:]

    def _refusal(self, request: Request) -> RefusedError | None:
        """Return why a request cannot be done, None when it can be tried."""
        command = request.command
        known = _KNOWN_FLAGS.get(command)
        if known is None:
            return RefusedError(NbdError.EINVAL, f"there is no command {command}")
        if request.flags & ~known:
            return RefusedError(NbdError.EINVAL, f"{_NAMES[command]} has no flags {request.flags & ~known:#x}")
        if command == Command.FLUSH:
            return None
        changes = command in _CHANGES
        if changes and self._disk.read_only:
            return RefusedError(NbdError.EPERM, "the export is read-only")
        if request.offset + request.length > self._session.export.size:
            error = NbdError.ENOSPC if changes else NbdError.EINVAL
            return RefusedError(error, f"the range ends beyond the export's {self._session.export.size} bytes")
        if not request.length:
            return RefusedError(NbdError.EINVAL, "a range of 0 bytes")
        if command == Command.READ and request.length > SERVED_PAYLOAD_BYTES:
            return RefusedError(NbdError.EINVAL, f"a read of more than {MAX_PAYLOAD_BYTES} bytes")
        if command == Command.BLOCK_STATUS and not self._session.block_status:
            return RefusedError(NbdError.EINVAL, "base:allocation was not negotiated")
        if request.flags & CommandFlags.FAST_ZERO and not self._disk.fast_zero:
            return RefusedError(NbdError.ENOTSUP, "zeroes would be written as data")
        return None

    # Doing

    def _begin_write(self) -> None:
        assert self._writing is not None
        (request, data), self._writing = self._writing, None
        fua = bool(request.flags & _FUA)
        self._run(request, self._disk.write(request.offset, data, fua=fua), held=request.length)

    def _execute(self, request: Request) -> Coroutine[Any, Any, None]:
        disk, offset, length, flags = self._disk, request.offset, request.length, request.flags
        fua = bool(flags & _FUA)
        if request.command == Command.FLUSH:
            return disk.flush()
        if request.command == Command.TRIM:
            return disk.trim(offset, length, fua=fua)
        if request.command == Command.WRITE_ZEROES:
            return disk.zero(offset, length, hole=not flags & CommandFlags.NO_HOLE, fua=fua)
        return self._status(request)

    async def _status(self, request: Request) -> None:
        extents = await self._disk.extents(request.offset, request.length)
        if request.flags & CommandFlags.REQ_ONE:
            extents = extents[:1]
        self._send(self._replies.status(request.cookie, request.offset, extents))

    def _run(self, request: Request, work: Coroutine[Any, Any, None], held: int = 0) -> None:
        self.in_flight += 1
        self._spawn(self._finish(request, work, held))

    async def _finish(self, request: Request, work: Coroutine[Any, Any, None], held: int) -> None:
        try:
            await work
            if request.command != Command.BLOCK_STATUS:
                self._send(self._replies.done(request.cookie, request.offset))
        except NvmeofError as error:
            self._failed(request, error)
        finally:
            self._ended(1, held)

    def _failed(self, request: Request, error: NvmeofError) -> None:
        log.warning("NBD %s at %d failed: %s", _NAMES[request.command], request.offset, error)
        code = nbd_error(error, writing=request.command in _CHANGES)
        self._refuse(request, RefusedError(code, str(error)))

    def _refuse(self, request: Request, refusal: RefusedError) -> None:
        structured = request.command in (Command.READ, Command.BLOCK_STATUS)
        reply = self._replies.error(request.cookie, request.offset, refusal.error, str(refusal), structured=structured)
        self._send(reply)

    def _ended(self, count: int, held: int) -> None:
        self.in_flight -= count
        if held:
            if self._choked:
                self._owed_bytes += held
            else:
                self._budget.give(held, self._share)
        if self._waiting:
            self._again()
        self._close_if_over()

    def _close_if_over(self) -> None:
        """Close after NBD_CMD_DISC, when all that was asked for has been answered."""
        if self.disconnecting and not self.in_flight and not self._output.is_closing():
            self._output.close()

    def _send(self, data: bytes | bytearray | memoryview) -> None:
        if not self._output.is_closing():
            self._output.write(data)

    # Reads

    async def _read_run(self, cookies: list[int], offsets: list[int], length: int) -> None:
        """Read many ranges of one length as one batch; the data lands in the replies, which are sent as one."""
        namespace, count = self._disk.namespace, len(cookies)
        reply = memoryview(bytearray(count * (self._replies.data_header_bytes + length)))
        places = self._replies.lay_out_reads(reply, cookies, offsets, length)
        block = namespace.block_bytes
        sqe = sqe_builders.read(namespace.nsid, 0, length // block)
        try:
            await namespace.port.io_batch(IoBatch(sqe, [offset // block for offset in offsets], places))
            self._send(reply)
        except NvmeofError as error:
            if count == 1:
                self._failed(Request(0, 0, _READ, cookies[0], offsets[0], length), error)
            else:
                # Each gets its own answer.
                for cookie, offset in zip(cookies, offsets, strict=True):
                    await self._read(Request(0, 0, _READ, cookie, offset, length))
        finally:
            self._ended(count, count * length)

    async def _read_alone(self, request: Request) -> None:
        try:
            await self._read(request)
        finally:
            self._ended(1, request.length)

    async def _read(self, request: Request) -> None:
        """Read any range, and answer."""
        reply = memoryview(bytearray(self._replies.data_header_bytes + request.length))
        (place,) = self._replies.lay_out_reads(reply, (request.cookie,), (request.offset,), request.length)
        try:
            await self._disk.read(request.offset, place)
            self._send(reply)
        except NvmeofError as error:
            self._failed(request, error)

    # The client's side of the socket

    def choked(self) -> None:
        """Take note that the client does not take its replies: its requests wait."""
        self._choked = True

    def flowing(self) -> None:
        """Take note that it has taken them."""
        self._choked = False
        owed, self._owed_bytes = self._owed_bytes, 0
        if owed:
            self._budget.give(owed, self._share)
        self._again()

    def stop(self) -> None:
        """Take no more requests, and close when those that were begun have been answered."""
        self.disconnecting = True
        self._close_if_over()

    def ended(self) -> None:
        """Give back the memory that requests without a task hold; the connection is gone."""
        held, self._owed_bytes, self._choked = self._owed_bytes, 0, False
        if self._writing is not None:
            held += self._writing[0].length
            self._writing = None
        self.disconnecting = True
        if held:
            self._budget.give(held, self._share)
