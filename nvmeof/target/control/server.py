"""The control socket: JSON-RPC in lines for clients of the same user, on a Unix-domain socket.

What clients can take of a target is bounded. There are `CLIENTS_MOST` at once; one more is told so and closed. A line
has `REQUEST_BYTES`. The requests of one client are executed one after the other, and what comes meanwhile stays in the
socket; all clients together have a fifth of the event loop's time (`Shares`). A client that makes no request within
`SLOW_SECONDS`, one that does not take an answer in that time, and one that does not read `EVENT_BYTES` of events are
closed. Nothing that a client sends ends more than its own connection.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final

from nvmeof.target.control.control import Control
from nvmeof.target.control.jsonrpc import (
    REQUEST_BYTES,
    Call,
    Code,
    Message,
    RpcError,
    encode,
    failure,
    notification,
    parse,
    result,
)
from nvmeof.target.control.shares import Shares
from nvmeof.target.core.audit import AuditEvent
from nvmeof.target.core.happenings import Facts
from nvmeof.target.core.log_rate import LogRate, left_out_text
from nvmeof.transport.unix import PeerCredentials, PrivateListener, peer_credentials

logger = logging.getLogger("nvmeof.target.control")

CLIENTS_MOST: Final = 64
SLOW_SECONDS: Final = 10.0
LINGER_SECONDS: Final = 1.0
LINGER_MOST: Final = 64
EVENT_BYTES: Final = 1 << 20
_HIGH_WATER_BYTES: Final = 64 << 10
_BACKLOG: Final = 64


class ControlServer:
    """Offers the verbs of a target at a path: ``async with ControlServer(Control(target), "/run/nvmeof.sock"): ...``.

    Only processes of the same user, and root, are served. Raises on start as
    :class:`~nvmeof.transport.unix.PrivateListener` does.
    """

    def __init__(
        self,
        control: Control,
        path: str | Path,
        *,
        clients_most: int = CLIENTS_MOST,
        slow_seconds: float = SLOW_SECONDS,
    ) -> None:
        self.control = control
        self.path = Path(path).absolute()
        self.clients_most = clients_most
        self.slow_seconds = slow_seconds
        self.clients: set[_Client] = set()
        self.rate = LogRate(burst=20, per_second=0.2, together=0)
        self._tasks: set[asyncio.Task[None]] = set()
        self._lingering = 0
        self.shares = Shares()
        self._listener: PrivateListener | None = None
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen, and serve clients from now on."""
        self._listener = PrivateListener(self.path, _BACKLOG)
        self._server = await asyncio.start_unix_server(
            self._accepted, sock=self._listener.socket, limit=REQUEST_BYTES, backlog=_BACKLOG
        )
        logger.info("control at %s", self.path)

    async def stop(self) -> None:
        """Stop listening, end all clients and remove the socket. Verbs in progress are cancelled. Idempotent."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(list(self._tasks))
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    async def __aenter__(self) -> ControlServer:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one client to its end."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            refused, credentials = self._look_at(writer)
            if refused is not None:
                self.say_cut(str(refused))
                writer.write(encode(failure(None, refused)))
                await self.linger(reader, writer)
                return
            assert credentials is not None
            client = _Client(self, reader, writer, credentials)
            self.clients.add(client)
            try:
                await client.serve()
            finally:
                self.clients.discard(client)
                client.ended()
        except (asyncio.CancelledError, OSError):
            pass  # the server stops, or the client has gone
        except Exception as error:
            logger.error("a client of the control socket was dropped: %s: %s", type(error).__name__, error)
            logger.debug("where that happened", exc_info=error)
        finally:
            self._tasks.discard(task)
            writer.close()
            if writer.transport.get_write_buffer_size():  # it would stay for as long as the client likes
                asyncio.get_running_loop().call_later(LINGER_SECONDS, writer.transport.abort)

    def _look_at(self, writer: asyncio.StreamWriter) -> tuple[RpcError | None, PeerCredentials | None]:
        """Return why a client is refused, or who it is."""
        if len(self.clients) >= self.clients_most:
            text = f"{self.clients_most} clients are connected, the most there may be: close one of them"
            return RpcError(Code.CROWDED, text), None
        credentials = peer_credentials(writer.get_extra_info("socket").fileno())
        if credentials.uid not in (0, os.geteuid()):
            text = f"user {credentials.uid} may not control this target: its own user and root may"
            audit = self.control.target.audit
            if audit is not None:
                audit(AuditEvent.ADMINISTRATION, granted=False, peer=caller_of(credentials), reason=text)
            return RpcError(Code.FORBIDDEN, text), None
        return None, credentials

    async def linger(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Let a client read why its connection ends: drop what it sends until it closes, for a while at the most.

        Closed with data that was not read, a socket would be reset, and the reason be lost.
        """
        if self._lingering >= LINGER_MOST:
            return
        self._lingering += 1
        try:
            writer.write_eof()
            async with asyncio.timeout(LINGER_SECONDS):
                while await reader.read(_HIGH_WATER_BYTES):
                    pass
        except TimeoutError:
            pass
        finally:
            self._lingering -= 1

    def say_cut(self, reason: str) -> None:
        """Log that a client was refused or cut."""
        left_out = self.rate.admit(reason, time.monotonic())
        if left_out is not None:
            logger.warning("a client of the control socket was refused or cut: %s%s", reason, left_out_text(left_out))


def caller_of(credentials: PeerCredentials) -> str:
    """Return who a client is, for the log and the audit log."""
    return f"user {credentials.uid}, process {credentials.pid}"


def _nothing() -> None:
    """End no listening: there is none."""


class _Client:
    """One client: its requests in their order, and the events that it watches."""

    def __init__(
        self,
        server: ControlServer,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        credentials: PeerCredentials,
    ) -> None:
        self._server = server
        self._reader = reader
        self._writer = writer
        self._caller = caller_of(credentials)
        self._kinds: frozenset[str] | None = frozenset()
        self._number = 0
        self._end_listening: Callable[[], None] = _nothing
        writer.transport.set_write_buffer_limits(high=_HIGH_WATER_BYTES)

    async def serve(self) -> None:
        """Execute requests until the client closes its connection, or is cut."""
        patience: float | None = self._server.slow_seconds
        while True:
            try:
                async with asyncio.timeout(patience):
                    line = await self._reader.readuntil(b"\n")
            except TimeoutError:
                self._cut(f"it made no request within {patience:g} s")
                return
            except asyncio.LimitOverrunError:
                text = f"a line has at most {REQUEST_BYTES} bytes: the connection is closed"
                if await self._send([failure(None, RpcError(Code.INVALID_REQUEST, text))], batch=False):
                    await self._server.linger(self._reader, self._writer)
                return
            except asyncio.IncompleteReadError:
                return
            patience = None
            shares, answers = self._server.shares, list[Message]()
            await shares.turn()
            with shares.spending():
                requests = parse(line)
            for each in requests.entries:
                await shares.turn()
                with shares.spending():
                    answer = await self._execute(each)
                if answer is not None:
                    answers.append(answer)
            if answers and not await self._send(answers, batch=requests.batch):
                return

    async def _execute(self, request: Call | Message) -> Message | None:
        """Return the answer to a request; None for a notification."""
        if not isinstance(request, Call):
            return request
        try:
            value = await self._server.control.call(request.method, request.params, session=self, caller=self._caller)
            answer = result(request.id, value)
        except RpcError as error:
            answer = failure(request.id, error)
        return answer if request.answered else None

    async def _send(self, answers: list[Message], *, batch: bool) -> bool:
        """Send answers; False when the client does not take them in time."""
        with self._server.shares.spending():
            self._writer.write(encode(answers) if batch else encode(answers[0]))
        try:
            await asyncio.wait_for(self._writer.drain(), self._server.slow_seconds)
        except TimeoutError:
            self._cut(f"it took no answer within {self._server.slow_seconds:g} s")
            return False
        return True

    def _cut(self, reason: str) -> None:
        self._server.say_cut(f"{self._caller}: {reason}")
        self._writer.transport.abort()

    # -- events --------------------------------------------------------------------------------------------------

    def watch(self, kinds: frozenset[str] | None) -> None:
        """Send events of these kinds from now on, None: of all."""
        self._end_listening()
        self._kinds = kinds
        self._end_listening = _nothing
        if kinds is None or kinds:
            self._end_listening = self._server.control.target.registry.happenings.listen(self._happened)

    def _happened(self, kind: str, facts: Facts) -> None:
        if self._kinds is not None and kind not in self._kinds:
            return
        self._number += 1
        event = {"number": self._number, "time": time.time(), "kind": kind, **facts}
        self._writer.write(encode(notification("event", event)))
        if self._writer.transport.get_write_buffer_size() > EVENT_BYTES:
            self.ended()
            self._cut(f"it did not read events of {EVENT_BYTES} bytes")

    def ended(self) -> None:
        """Send no further events."""
        self._end_listening()
        self._end_listening = _nothing
