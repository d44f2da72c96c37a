"""The connections to one NBD export: requests are spread over them, and survive the loss of a connection.

What happens to a request whose connection is lost before its reply:

- the server closed or reset the connection: it is sent again over another one, as the Linux and QEMU clients do;
  while there is none it waits, at most `wait` seconds, then fails with ESHUTDOWN;
- nothing was answered for `timeout` seconds: a change fails with `OutcomeUnknownError` and is never repeated (the
  server may still make it); reads are sent again.

A server that takes connections and loses them at once is tried again as slowly as one that takes none.

When the last connection is lost and data was written since the last flush, the server may have lost that data: the
`writes_lost` callback says so, and a flush in progress fails.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import ssl
from collections import deque
from collections.abc import Callable
from typing import Final

from nvmeof.log_rate import LogRate, left_out_text
from nvmeof.nbd.client_negotiation import ClientSession
from nvmeof.nbd.numbers import Command, TransmissionFlags
from nvmeof.nbd.option_data import NbdProtocolError
from nvmeof.nbd.uri import NbdUri
from nvmeof.target.storage.nbd.connection import NbdConnection, open_connection
from nvmeof.target.storage.nbd.request import NbdRequest
from nvmeof.target.storage.remote import not_in_time

logger = logging.getLogger("nvmeof.target")

_FIRST_PAUSE_SECONDS: Final = 0.05
_LONGEST_PAUSE_SECONDS: Final = 1.0
_CHECK_SECONDS: Final = 0.25
LINES_AT_ONCE: Final = 10
"""Lines of the log of one kind that a server may cause in a row; then one in a minute."""
STABLE_SECONDS: Final = 5.0
"""A connection that was lost earlier than this did not help: the next one has to wait longer."""


class NbdClient:
    """See the module. `connections`: how many, where the server lets a flush cover all of them (multi-conn).

    `session_changed` is called with each new session after the first; `writes_lost` with the reason.
    """

    def __init__(
        self,
        uri: NbdUri,
        *,
        context: ssl.SSLContext | None = None,
        connections: int = 2,
        timeout: float = 30.0,
        wait: float = 10.0,
        session_changed: Callable[[ClientSession], None] = lambda session: None,
        writes_lost: Callable[[OSError], None] = lambda error: None,
    ) -> None:
        self.uri = uri
        self.timeout = timeout
        self._wait = wait
        self._context = context
        self._most = connections
        self._session_changed = session_changed
        self._writes_lost = writes_lost
        self._connections: list[NbdConnection] = []
        self._waiting: deque[NbdRequest] = deque()
        self._reconnecting: asyncio.Task[None] | None = None
        self._checking: asyncio.TimerHandle | None = None
        self._closed = True
        self._pause = 0.0  # before the next attempt to connect
        self._connected = 0.0  # when a connection was made the last time
        self._rate = LogRate(LINES_AT_ONCE, 1 / 60)
        self._written = self._flushed = 0  # writes that were answered, and how many of them a flush has covered

    @property
    def what(self) -> str:
        """The server, for messages."""
        return f"the NBD server {self.uri.where}"

    async def open(self) -> ClientSession:
        """Connect; what the server says of its export. Raises `OSError` or `NbdProtocolError`."""
        self._closed = False
        try:
            async with asyncio.timeout(self.timeout):
                connection = await open_connection(self.uri, self._context, self._lost)
        except TimeoutError:
            self._closed = True
            raise OSError(errno.ETIMEDOUT, f"nothing has answered within {self.timeout:g} s") from None
        except BaseException:
            self._closed = True
            raise
        self._connections.append(connection)
        try:
            await self._fill()
        except (OSError, NbdProtocolError) as error:
            logger.info("%s: one connection only: %s", self.what, error)
        self._check()
        return connection.session

    async def close(self) -> None:
        """Wait for what was sent, and disconnect."""
        if self._closed:
            return
        self._closed = True
        if self._reconnecting is not None:
            self._reconnecting.cancel()
            await asyncio.gather(self._reconnecting, return_exceptions=True)
        pending = [request for each in self._connections for request in each.requests.values()]
        if pending:
            await asyncio.wait(pending, timeout=self.timeout)
        for connection in self._connections:
            await connection.disconnect()
        self._connections.clear()
        if self._checking is not None:
            self._checking.cancel()
        self._fail_waiting(OSError(errno.ESHUTDOWN, "the namespace's storage has been closed"))

    def begin(self, request: NbdRequest) -> NbdRequest:
        """Send a request, or let it wait for a connection. It is done when it was answered."""
        connections = self._connections
        if not connections or self._waiting:
            self._defer(request)
        elif len(connections) == 1:
            request.begin()
            connections[0].send(request)
        else:
            request.begin()
            min(connections, key=_load).send(request)
        return request

    def wrote(self) -> None:
        """Take note of a write that was answered without FUA."""
        self._written += 1

    async def flush(self) -> None:
        """Flush once; covers all writes that were answered before. Raises `OSError`."""
        covered = self._written
        await self.begin(NbdRequest(Command.FLUSH))
        self._flushed = max(self._flushed, covered)

    # Losing and finding the server

    def _defer(self, request: NbdRequest) -> None:
        if self._closed:
            request.fail(OSError(errno.ESHUTDOWN, "the namespace's storage has been closed"))
            return
        request.deadline = asyncio.get_running_loop().time() + self._wait
        self._waiting.append(request)

    def _lost(self, connection: NbdConnection, reason: BaseException) -> None:
        if connection not in self._connections:
            return
        self._connections.remove(connection)
        again = [request for request in connection.requests.values() if not request.done()]
        connection.requests.clear()
        now = asyncio.get_running_loop().time()
        if now - self._connected >= STABLE_SECONDS:
            self._pause = 0.0
        self._say("lost", f"{self.what}: a connection was lost: {_text(reason)}")
        if not self._connections and self._written != self._flushed:
            self._flushed = self._written
            error = OSError(errno.EIO, f"{self.what} went away with writes that were not flushed")
            self._writes_lost(error)
            for request in again:
                if request.command == Command.FLUSH:
                    request.fail(error)
        overdue = isinstance(reason, TimeoutError)
        for request in again:
            if overdue and request.changing:
                request.fail(not_in_time(self.what, self.timeout, changing=True))
            elif not request.done():
                self._resend(request)
        if not self._closed and (self._reconnecting is None or self._reconnecting.done()):
            self._reconnecting = asyncio.get_running_loop().create_task(self._reconnect())

    def _say(self, kind: str, text: str) -> None:
        """Log what the server has caused, unless it does so again and again."""
        left_out = self._rate.admit(kind, asyncio.get_running_loop().time())
        if left_out is not None:
            logger.warning("%s%s", text, left_out_text(left_out))

    def _resend(self, request: NbdRequest) -> None:
        if self._connections:
            min(self._connections, key=_load).send(request)
        else:
            self._defer(request)

    async def _reconnect(self) -> None:
        lost_all, said = not self._connections, ""
        while not self._closed:
            pause, self._pause = self._pause, min(max(2 * self._pause, _FIRST_PAUSE_SECONDS), _LONGEST_PAUSE_SECONDS)
            await asyncio.sleep(pause)
            try:
                await self._fill()
            except (OSError, NbdProtocolError) as error:
                if _text(error) != said:
                    said = _text(error)
                    logger.warning("%s cannot be reached, and is tried again and again: %s", self.what, said)
                lost_all = lost_all or not self._connections
                continue
            if self._connections:
                self._say("back", f"{self.what} is {'there' if lost_all else 'fully connected'} again")
                return

    async def _fill(self) -> None:
        """Open connections until there are as many as there may be."""
        while not self._closed and len(self._connections) < self._wanted():
            async with asyncio.timeout(self.timeout):
                connection = await open_connection(self.uri, self._context, self._lost)
            if self._over():
                await connection.disconnect()
                return
            first = not self._connections
            self._connected = asyncio.get_running_loop().time()
            self._connections.append(connection)
            if first:
                self._session_changed(connection.session)
                self._send_waiting()

    def _over(self) -> bool:
        """Whether it was closed, perhaps in another task while this one waited."""
        return self._closed

    def _wanted(self) -> int:
        if not self._connections:
            return 1
        shared = self._connections[0].session.export.flags & TransmissionFlags.CAN_MULTI_CONN
        return self._most if shared else 1

    def _send_waiting(self) -> None:
        while self._waiting and self._connections:
            request = self._waiting.popleft()
            # One that was sent before, and lost, has begun already.
            if not request.done() and (request.sent or request.begin()):
                min(self._connections, key=_load).send(request)

    def _fail_waiting(self, error: OSError, now: float | None = None) -> None:
        while self._waiting and (now is None or self._waiting[0].deadline <= now):
            self._waiting.popleft().fail(error)

    def _check(self) -> None:
        """End connections that do not answer, and requests that have waited long enough."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        for connection in list(self._connections):
            oldest = next(iter(connection.requests.values()), None)
            if oldest is not None and now - oldest.sent > self.timeout:
                connection.end(TimeoutError(f"no answer for {self.timeout:g} s"))
        self._fail_waiting(OSError(errno.ESHUTDOWN, f"{self.what} cannot be reached"), now)
        if not self._closed:
            self._checking = loop.call_later(_CHECK_SECONDS, self._check)


def _load(connection: NbdConnection) -> int:
    return len(connection.requests)


def _text(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
