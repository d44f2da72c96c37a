"""The HTTP server of the metrics: GET /metrics, and nothing else, on the target's event loop.

The library's own server has threads, and a thread that writes a page holds the interpreter's lock for up to 5 ms at a
time, during which no I/O is served; here the page is written in slices of the loop's time (decision 0029). A client
gets one answer per connection, as HTTP/1.1 allows (RFC 9112, 9.6), and has `REQUEST_SECONDS` for its request and
`ANSWER_SECONDS` to take the page; of further clients than `CLIENTS_MOST`, of which one address has half, each gets 503.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from typing import Any, Final

from nvmeof.address import Address, is_wildcard
from nvmeof.address_shares import AddressShares
from nvmeof.errors import ConfigurationError, TransportError
from nvmeof.target.metrics import DEFAULT_PORT
from nvmeof.target.metrics.page import Page
from nvmeof.target.server import Target
from nvmeof.transport.service_manager import InheritedSocket, inherited_socket, take_inherited

REQUEST_SECONDS: Final = 5.0
ANSWER_SECONDS: Final = 10.0
REQUEST_BYTES: Final = 8192
CLIENTS_MOST: Final = 16
_BACKLOG: Final = 32
"""The event loop takes so many at once, each with a descriptor."""
_REASONS: Final = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    503: "Service Unavailable",
}
_HINT: Final = b"The metrics are at /metrics\n"

logger = logging.getLogger("nvmeof.target")


class MetricsServer:
    """Serves the metrics of a target from `start` to `stop`.

    `address`: where to listen (port 0 for any free one). Raises `ConfigurationError` where
    prometheus_client is not installed, or when the target was made without `meters`.
    """

    def __init__(self, target: Target, address: Address) -> None:
        if target.meters is None:
            raise ConfigurationError(
                "this target counts nothing: make it with Target(meters=Meters(time.perf_counter))"
            )
        self._target = target
        self._page = Page(target, target.meters)
        self._address = address
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.StreamWriter] = set()
        self._shares = AddressShares(CLIENTS_MOST)

    @property
    def address(self) -> Address:
        """Where it listens, with the real port."""
        return self._address

    async def start(self) -> None:
        """Listen. Raises `TransportError` for an address that cannot be listened on."""
        host = self._address.host
        everywhere = is_wildcard(host) and host != "0.0.0.0"
        try:
            inherited = take_inherited("tcp", (host, self._address.port))
            where: dict[str, Any] = {"host": None if everywhere else host, "port": self._address.port}
            if inherited is not None:
                where = {"sock": inherited.sock}
            self._server = await asyncio.start_server(self._serve, limit=REQUEST_BYTES, backlog=_BACKLOG, **where)
        except OSError as error:
            reason = os.strerror(error.errno).lower() if error.errno else error
            raise TransportError(f"the metrics cannot listen on {self._address}: {reason}") from error
        port = self._server.sockets[0].getsockname()[1]
        self._address = Address(host, port)

    async def stop(self) -> None:
        """Listen no more, and end what is being answered."""
        server, self._server = self._server, None
        if server is None:
            return
        server.close()
        for writer in list(self._clients):
            writer.transport.abort()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(server.wait_closed(), 1.0)

    def handed_over(self) -> list[InheritedSocket]:
        """Return copies of its listening sockets, for a process that takes the target over."""
        sockets = () if self._server is None else self._server.sockets
        return [inherited_socket(os.dup(each.fileno()), "tcp", self._address, None) for each in sockets]

    async def turn(self) -> None:
        """Wait until the event loop has time for a piece of work."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._target.slices.add(self, lambda: None if future.done() else future.set_result(None), whole=True)
        await future

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # What is answered is with the kernel before the connection is closed: else it would stay as long as the client.
        writer.transport.set_write_buffer_limits(high=0)
        address = str((writer.get_extra_info("peername") or ("",))[0])
        taken = self._shares.take(address)
        self._clients.add(writer)
        try:
            if not taken:
                await self._answer(writer, 503, b"Too many clients at once\n")
            else:
                await self._serve_one(reader, writer)
        except (TimeoutError, OSError):
            writer.transport.abort()
        except Exception as error:  # a defect: the target goes on, and its log has a sentence
            logger.error("the metrics could not be written: %s: %s", type(error).__name__, error)
            logger.debug("where that happened", exc_info=error)
            writer.transport.abort()
        finally:
            self._clients.discard(writer)
            if taken:
                self._shares.give(address)
            writer.close()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), REQUEST_SECONDS)
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            await self._answer(writer, 400, b"That is no HTTP request of at most 8 KiB\n")
            return
        words = head.split(b"\r\n", 1)[0].split(b" ")
        if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
            await self._answer(writer, 400, b"That is no HTTP/1.1 request\n")
        elif words[0] not in (b"GET", b"HEAD"):
            await self._answer(writer, 405, b"Only GET and HEAD are served\n", b"Allow: GET, HEAD\r\n")
        elif words[1].split(b"?", 1)[0] != b"/metrics":
            await self._answer(writer, 404, _HINT)
        else:
            page = b"".join([chunk async for chunk in self._page.chunks(self.turn)])
            await self._answer(writer, 200, page, body=words[0] == b"GET", kind=self._page.content_type)

    async def _answer(
        self,
        writer: asyncio.StreamWriter,
        code: int,
        content: bytes,
        fields: bytes = b"",
        *,
        body: bool = True,
        kind: str = "text/plain; charset=utf-8",
    ) -> None:
        head = (
            f"HTTP/1.1 {code} {_REASONS[code]}\r\nContent-Type: {kind}\r\nContent-Length: {len(content)}\r\n"
            "Connection: close\r\n"
        )
        writer.write(head.encode() + fields + b"\r\n" + (content if body else b""))
        await asyncio.wait_for(writer.drain(), ANSWER_SECONDS)


async def metrics_server(target: Target, text: str) -> MetricsServer:
    """Serve the metrics of a target at ``ADDR[:PORT]``, and say so in the log. Raises as `MetricsServer` does."""
    server = MetricsServer(target, Address.parse(text, default_port=DEFAULT_PORT))
    await server.start()
    logger.info("metrics: http://%s/metrics", server.address)
    return server
