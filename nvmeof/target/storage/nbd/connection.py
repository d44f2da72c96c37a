"""One connection to an NBD server: negotiation, then requests out and replies in, many at a time."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import Final, cast

from nvmeof.nbd.client_negotiation import ClientSession, negotiate
from nvmeof.nbd.messages import pack_request
from nvmeof.nbd.numbers import Command
from nvmeof.nbd.option_data import NbdProtocolError
from nvmeof.nbd.steps import Receive, Send, StartTls
from nvmeof.nbd.uri import NbdUri
from nvmeof.target.storage.nbd.replies import BUFFER_BYTES, ReplyParser
from nvmeof.target.storage.nbd.request import NbdRequest

_JOINED_BYTES: Final = 16 << 10
"""Data up to this is copied behind its header; more goes to the socket as it is."""


class _Negotiating(asyncio.BufferedProtocol):
    """Collects the bytes of a negotiation, and hands everything on to its successor afterwards."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.lost: BaseException | None = None
        self.successor: NbdConnection | None = None
        # A view: asyncio over TLS slices it, and of a bytearray that would be a copy.
        self._buffer = memoryview(bytearray(BUFFER_BYTES))
        self._waiter: asyncio.Future[None] | None = None

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer if self.successor is None else self.successor.parser.next_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        if self.successor is not None:
            self.successor.received(nbytes)
            return
        self.data += self._buffer[:nbytes]
        self._wake()

    def eof_received(self) -> None:
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = exc or ConnectionResetError("the NBD server has closed the connection")
        self._wake()
        if self.successor is not None:
            self.successor.connection_lost(self.lost)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def read(self, count: int) -> bytes:
        """Return exactly `count` bytes. Raises what ended the connection."""
        while len(self.data) < count:
            if self.lost is not None:
                raise self.lost
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        taken = bytes(self.data[:count])
        del self.data[:count]
        return taken


class NbdConnection:
    """An established connection. `lost` is called once, with the connection and the reason, when it has ended."""

    def __init__(
        self,
        transport: asyncio.Transport,
        session: ClientSession,
        lost: Callable[[NbdConnection, BaseException], None],
    ) -> None:
        self.session = session
        self.requests: dict[int, NbdRequest] = {}
        """What was sent and not answered, by cookie, the oldest first."""
        self.parser = ReplyParser(self.requests, session.context)
        self.ended = False
        self._transport = transport
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self._cookie = 0
        self._out: list[bytes | memoryview] = []

    def send(self, request: NbdRequest) -> None:
        """Send a request, together with the others of this turn of the event loop."""
        self._cookie = cookie = self._cookie + 1
        request.sent = self._loop.time()
        request.begin_reply()
        self.requests[cookie] = request
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(pack_request(request.command, request.flags, cookie, request.offset, request.length))
        if request.command == Command.WRITE:
            self._out.append(request.view)

    def _flush(self) -> None:
        out, self._out = self._out, []
        if self.ended or not out:
            return
        small: list[bytes | memoryview] = []
        for part in out:
            if len(part) <= _JOINED_BYTES:
                small.append(part)
                continue
            self._transport.write(b"".join(small))
            self._transport.write(part)
            small = []
        if small:
            self._transport.write(b"".join(small))

    def received(self, count: int) -> None:
        """Take bytes that came."""
        try:
            self.parser.received(count)
        except NbdProtocolError as error:
            self.end(ConnectionAbortedError(f"the NBD server breaks the protocol: {error}"))

    def connection_lost(self, error: BaseException) -> None:
        """Take note that the connection has ended."""
        self.end(error)

    def end(self, reason: BaseException) -> None:
        """End the connection at once."""
        if self.ended:
            return
        self.ended = True
        self._transport.abort()
        self._lost(self, reason)

    async def disconnect(self) -> None:
        """End it in order: the server is told (NBD_CMD_DISC)."""
        if self.ended:
            return
        self.ended = True
        self._transport.write(pack_request(Command.DISC, 0, 0, 0, 0))
        self._transport.close()


async def open_connection(
    uri: NbdUri, context: ssl.SSLContext | None, lost: Callable[[NbdConnection, BaseException], None]
) -> NbdConnection:
    """Connect and negotiate. Raises `OSError` or `NbdProtocolError`."""
    loop = asyncio.get_running_loop()
    protocol = _Negotiating()
    transport: asyncio.Transport
    if uri.path is not None:
        transport, _ = await loop.create_unix_connection(lambda: protocol, uri.path)
    else:
        transport, _ = await loop.create_connection(lambda: protocol, uri.host, uri.port)
    try:
        steps, answer = negotiate(uri.export, tls=uri.tls), None
        while True:
            step = steps.send(cast(bytes, answer)) if answer is not None else next(steps)
            answer = None
            if isinstance(step, Receive):
                answer = await protocol.read(step.count)
            elif isinstance(step, Send):
                transport.write(step.data)
            else:
                assert isinstance(step, StartTls)
                if protocol.data:
                    raise NbdProtocolError("the NBD server sends bytes in clear behind the start of TLS")
                assert context is not None
                secure = await loop.start_tls(transport, protocol, context, server_hostname=_hostname(uri, context))
                assert secure is not None
                transport = secure
    except StopIteration as stop:
        connection = NbdConnection(transport, cast(ClientSession, stop.value), lost)
        if protocol.data:  # a server has nothing to say yet
            transport.abort()
            raise NbdProtocolError("the NBD server sends replies before there are requests") from None
        protocol.successor = connection
        if protocol.lost is not None:
            raise protocol.lost from None
        return connection
    except BaseException:
        with suppress(Exception):
            transport.abort()
        raise


def _hostname(uri: NbdUri, context: ssl.SSLContext) -> str | None:
    return dict(uri.parameters).get("tls-hostname", uri.host) if context.check_hostname else None
