"""A channel between two processes of one user that carries small messages, large documents and open descriptors.

It is a pair of connected Unix sockets of the type SOCK_SEQPACKET (unix(7)): each message arrives whole or not at all,
and the end of a process is the end of its stream. A message is a JSON object. What may be large goes in a memory file
(memfd_create(2)) beside it. Descriptors go as SCM_RIGHTS, of which a message carries at most 253 (SCM_MAX_FD): further
ones follow in messages of their own.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from nvmeof.errors import TransportError

DESCRIPTORS_PER_MESSAGE: Final = 200
_MESSAGE_BYTES: Final = 64 << 10
_DOCUMENT_MOST: Final = 1 << 30


@dataclass(slots=True)
class ChannelMessage:
    """What has come: `kind` says what it is, `facts` are its small values, `document` its large one (None: none), and
    `descriptors` belong to whoever receives it, in the order in which they were sent."""

    kind: str
    facts: dict[str, Any] = field(default_factory=dict)
    document: Any = None
    descriptors: list[int] = field(default_factory=list)


class Channel:
    """One end of the channel. Needs a running event loop to receive; sending is done at once."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        sock.setblocking(False)

    @classmethod
    def pair(cls) -> tuple[Channel, Channel]:
        """Make both ends. The second is for another process: see `descriptor`."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        return cls(ours), cls(theirs)

    @classmethod
    def inherited(cls, descriptor: int) -> Channel:
        """Take over an end that another process has left open. Raises `TransportError` for what is no such end."""
        try:
            os.set_inheritable(descriptor, False)
            sock = socket.socket(fileno=descriptor)
            kind = sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE)
        except OSError as error:
            raise TransportError(f"descriptor {descriptor} is no channel: {error.strerror or error}") from error
        if sock.family != socket.AF_UNIX or kind != socket.SOCK_SEQPACKET:
            sock.detach()
            raise TransportError(f"descriptor {descriptor} is no channel of a process that restarts")
        return cls(sock)

    @property
    def descriptor(self) -> int:
        """The number of its descriptor; -1 when it is closed."""
        return self._sock.fileno()

    def close(self) -> None:
        """End the channel: the other end gets None. Idempotent."""
        self._sock.close()

    def send(self, kind: str, document: Any = None, descriptors: Sequence[int] = (), **facts: Any) -> None:
        """Send a message; `document` is anything that JSON can hold. The descriptors stay open here.

        Raises `TransportError` when the other process has gone, or does not receive.
        """
        body = -1
        try:
            first = []
            if document is not None:
                body = _memory_file(json.dumps(document).encode())
                first.append(body)
            head = {"kind": kind, "body": body >= 0, "descriptors": len(descriptors), "facts": facts}
            self._send(head, first)
            for start in range(0, len(descriptors), DESCRIPTORS_PER_MESSAGE):
                self._send({"kind": "more"}, descriptors[start : start + DESCRIPTORS_PER_MESSAGE])
        except OSError as error:
            raise TransportError(f"the other process cannot be told: {error.strerror or error}") from error
        finally:
            if body >= 0:
                os.close(body)

    def _send(self, head: dict[str, Any], descriptors: Sequence[int]) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        self._sock.sendmsg([json.dumps(head).encode()], rights)

    async def receive(self) -> ChannelMessage | None:
        """Wait for a message; None when the other process has ended the channel, or has ended.

        Raises `TransportError` for what is no message.
        """
        received = await self._receive()
        if received is None:
            return None
        head, descriptors = received
        try:
            message = ChannelMessage(str(head["kind"]), dict(head["facts"]))
            if head["body"]:
                message.document = _read(descriptors.pop(0))
            while len(message.descriptors) < head["descriptors"]:
                more = await self._receive()
                if more is None:
                    return None
                message.descriptors += more[1]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise TransportError(f"the other process sent what is no message: {error}") from error
        return message

    async def _receive(self) -> tuple[dict[str, Any], list[int]] | None:
        size = array.array("i").itemsize * (DESCRIPTORS_PER_MESSAGE + 1)
        while True:
            try:
                data, ancillary, _, _ = self._sock.recvmsg(
                    _MESSAGE_BYTES, socket.CMSG_SPACE(size), socket.MSG_CMSG_CLOEXEC
                )
                break
            except BlockingIOError:
                await self._readable()
            except OSError:
                return None
        descriptors = array.array("i")
        for level, kind, payload in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors.frombytes(payload[: len(payload) - len(payload) % descriptors.itemsize])
        if not data:
            return None
        try:
            head = json.loads(data)
        except ValueError as error:
            raise TransportError(f"the other process sent what is no message: {error}") from error
        return head, list(descriptors)

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()
        descriptor = self._sock.fileno()
        loop.add_reader(descriptor, lambda: None if ready.done() else ready.set_result(None))
        try:
            await ready
        finally:
            loop.remove_reader(descriptor)


def _memory_file(data: bytes) -> int:
    descriptor = os.memfd_create("nvmeof-document", os.MFD_CLOEXEC)
    try:
        at = 0
        while at < len(data):
            at += os.pwrite(descriptor, data[at : at + (16 << 20)], at)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _read(descriptor: int) -> Any:
    try:
        size = os.fstat(descriptor).st_size
        if size > _DOCUMENT_MOST:
            raise ValueError(f"a document of {size} bytes")
        parts, at = [], 0
        while at < size and (part := os.pread(descriptor, min(size - at, 16 << 20), at)):
            parts.append(part)
            at += len(part)
        return json.loads(b"".join(parts))
    finally:
        with contextlib.suppress(OSError):
            os.close(descriptor)
