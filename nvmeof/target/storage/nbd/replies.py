"""Replies of an NBD server as they come off the wire (NBD protocol, "Simple reply message", "Structured reply").

Bytes land where `next_buffer` says: the payload of a read goes straight to its destination as soon as its header is
known.
"""

from __future__ import annotations

import os
from typing import Final

from nvmeof.nbd.messages import SIMPLE_REPLY, STRUCTURED_REPLY
from nvmeof.nbd.numbers import (
    CHUNK_ERROR,
    REPLY_DONE,
    SIMPLE_REPLY_MAGIC,
    STRUCTURED_REPLY_MAGIC,
    Chunk,
    Command,
    errno_of,
)
from nvmeof.nbd.option_data import NbdProtocolError, parse_error, parse_status
from nvmeof.target.storage.nbd.request import NbdRequest

BUFFER_BYTES: Final = 256 << 10
_PAYLOAD_MAX_BYTES: Final = BUFFER_BYTES - STRUCTURED_REPLY.size
"""Of chunks other than data."""
_SIMPLE: Final = SIMPLE_REPLY.struct
_STRUCTURED: Final = STRUCTURED_REPLY.struct
_OFFSET_BYTES: Final = 8
_HOLE_BYTES: Final = 12


def server_error(code: int, message: str = "") -> OSError:
    """Return the error that a server answered with."""
    number = errno_of(code)
    said = f": {message}" if message else ""
    return OSError(number, f"the NBD server answers {os.strerror(number)}{said}")


class ReplyParser:
    """Takes replies apart for the requests in `requests`, by cookie. `context`: the identifier of base:allocation."""

    def __init__(self, requests: dict[int, NbdRequest], context: int | None) -> None:
        self._requests = requests
        self._context = context
        self._buffer = memoryview(bytearray(BUFFER_BYTES))
        self._start = self._end = 0
        self._payload: memoryview | None = None  # what is still to come of a read's data
        self._reading: NbdRequest | None = None
        self._done_after = 0  # the cookie of the request that is complete after that data; 0: another chunk follows

    def next_buffer(self) -> memoryview:
        """Return where the next bytes go."""
        if self._payload is not None:
            return self._payload
        if self._start == self._end:
            self._start = self._end = 0
        elif self._end == BUFFER_BYTES:
            rest = bytes(self._buffer[self._start : self._end])
            self._start, self._end = 0, len(rest)
            self._buffer[: self._end] = rest
        return self._buffer[self._end :]

    def received(self, count: int) -> None:
        """Take note of `count` bytes there. Raises `NbdProtocolError`."""
        if self._payload is not None:
            self._payload = self._payload[count:]
            if self._payload:
                return
            self._payload_done()
        else:
            self._end += count
        while self._start < self._end and self._message():
            pass

    def _payload_done(self) -> None:
        self._payload = None
        request, self._reading = self._reading, None
        if self._done_after:
            cookie, self._done_after = self._done_after, 0
            assert request is not None
            self._finish(cookie, request)

    def _finish(self, cookie: int, request: NbdRequest) -> None:
        if request.command == Command.READ and request.error is None and request.received != request.length:
            raise NbdProtocolError(f"a read of {request.length} bytes was answered with {request.received}")
        del self._requests[cookie]
        request.succeed()

    def _message(self) -> bool:
        """Take one reply or chunk; False: it is not there yet."""
        start, have = self._start, self._end - self._start
        if have < _SIMPLE.size:
            return False
        magic, error, cookie = _SIMPLE.unpack_from(self._buffer, start)
        if magic == STRUCTURED_REPLY_MAGIC:
            return have >= _STRUCTURED.size and self._chunk(start, have)
        if magic != SIMPLE_REPLY_MAGIC:
            raise NbdProtocolError(f"a reply begins with {magic:#x}")
        request = self._request(cookie)
        self._start = start + _SIMPLE.size
        if error:
            request.error = server_error(error)
        elif request.command == Command.READ:
            if not request.cover(0, request.length):
                raise NbdProtocolError("a simple reply follows chunks of the same read")
            self._take(cookie, request, request.view, True)
            return True
        elif request.command == Command.BLOCK_STATUS:
            raise NbdProtocolError("a block status was answered with a simple reply")
        self._finish(cookie, request)
        return True

    def _request(self, cookie: int) -> NbdRequest:
        request = self._requests.get(cookie)
        if request is None:
            raise NbdProtocolError(f"a reply is for the request {cookie}, which was not sent")
        return request

    def _take(self, cookie: int, request: NbdRequest, destination: memoryview, done: bool) -> None:
        """Take the data of a read: what is there by copying, what follows in place."""
        length, have = len(destination), self._end - self._start
        self._done_after = cookie if done else 0
        self._reading = request
        if have >= length:
            destination[:] = self._buffer[self._start : self._start + length]
            self._start += length
            self._payload_done()
            return
        if have:
            destination[:have] = self._buffer[self._start : self._end]
        self._start = self._end = 0
        self._payload = destination[have:]

    def _chunk(self, start: int, have: int) -> bool:
        _, flags, chunk, cookie, length = _STRUCTURED.unpack_from(self._buffer, start)
        request = self._request(cookie)
        body = start + _STRUCTURED.size
        done = bool(flags & REPLY_DONE)
        if chunk == Chunk.OFFSET_DATA:
            if have < _STRUCTURED.size + _OFFSET_BYTES:
                return False
            at = int.from_bytes(self._buffer[body : body + _OFFSET_BYTES], "big") - request.offset
            size = length - _OFFSET_BYTES
            self._check_data(request, at, size)
            self._start = body + _OFFSET_BYTES
            self._take(cookie, request, request.view[at : at + size], done)
            return True
        if length > _PAYLOAD_MAX_BYTES:
            raise NbdProtocolError(f"a chunk of type {chunk} has {length} bytes: too many")
        if have < _STRUCTURED.size + length:
            return False
        self._start = body + length
        self._small_chunk(request, chunk, bytes(self._buffer[body : body + length]), done)
        if done:
            self._finish(cookie, request)
        return True

    @staticmethod
    def _check_data(request: NbdRequest, at: int, size: int) -> None:
        if request.command != Command.READ or at < 0 or size < 1 or at + size > request.length:
            raise NbdProtocolError("a chunk of data lies outside of the range that was asked for")
        if not request.cover(at, size):
            raise NbdProtocolError("the chunks of a read overlap, or are too many")

    def _small_chunk(self, request: NbdRequest, chunk: int, payload: bytes, done: bool) -> None:
        if chunk & CHUNK_ERROR:
            code, message = parse_error(payload)
            request.error = request.error or server_error(code, message)
        elif chunk == Chunk.OFFSET_HOLE:
            if len(payload) != _HOLE_BYTES:
                raise NbdProtocolError(f"a hole is described by {len(payload)} bytes")
            at = int.from_bytes(payload[:8], "big") - request.offset
            size = int.from_bytes(payload[8:], "big")
            self._check_data(request, at, size)
            request.view[at : at + size] = bytes(size)
        elif chunk == Chunk.BLOCK_STATUS:
            identifier, extents = parse_status(payload, extended=False)
            if request.command != Command.BLOCK_STATUS:
                raise NbdProtocolError("a block status is the answer to another request")
            if identifier == self._context:
                request.extents = extents
        elif chunk != Chunk.NONE or payload or not done:
            raise NbdProtocolError(f"there is no chunk of type {chunk}")
