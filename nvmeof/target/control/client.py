"""A client of the control socket: calls verbs of a target in another process, and waits for its events."""

from __future__ import annotations

import asyncio
import json
import os
from collections import deque
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from nvmeof.errors import ConfigurationError, NvmeofError, TransportError
from nvmeof.target.control.jsonrpc import Code, Message, encode
from nvmeof.transport.unix import UnixSocket, connected_socket, peer_credentials

ANSWER_BYTES: Final = 256 << 20
"""The longest answer that is taken."""
CONNECT_SECONDS: Final = 5.0
_AGAIN_SECONDS: Final = 0.02


class ControlError(NvmeofError):
    """A verb that the target refused, or could not execute. `code` is that of the answer (`jsonrpc.Code`)."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class ControlUsageError(ControlError, ConfigurationError):
    """The same, for a verb that was asked for wrongly: an object that does not exist, or a value that cannot be."""


_USAGE: Final = frozenset({Code.CONFIGURATION, Code.STATE, Code.INVALID_PARAMS, Code.METHOD_NOT_FOUND})


class ControlClient:
    """A connection to a control socket: ``async with ControlClient(path) as client: await client.call("status")``.

    One call at a time. Raises `TransportError` where no target listens or the connection ends, `ControlError` for an
    error of the target.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._number = 0
        self._events: deque[dict[str, Any]] = deque()
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter

    async def open(self) -> None:
        """Connect. Raises `TransportError`, also where the socket is of another user: it might take what it is told for
        its own ends, keys of hosts among it. A client of root talks to all."""
        try:
            self._reader, self._writer = await asyncio.open_unix_connection(
                sock=await self._connected(), limit=ANSWER_BYTES
            )
        except FileNotFoundError:
            raise TransportError(f"there is no control socket {self.path}: start the target with --control") from None
        except ConnectionRefusedError:
            raise TransportError(f"no target listens at {self.path}: it has ended") from None
        except OSError as error:
            raise TransportError(f"the control socket {self.path} cannot be used: {error.strerror or error}") from None
        uid = peer_credentials(self._writer.get_extra_info("socket").fileno()).uid
        if os.geteuid() not in (0, uid) and uid != 0:
            self._writer.close()
            raise TransportError(
                f"{self.path} is the socket of user {uid}, who is told nothing: name the socket of your own target"
            )

    async def _connected(self) -> UnixSocket:
        """Connect, again and again for a while when the target is behind with its clients."""
        deadline = asyncio.get_running_loop().time() + CONNECT_SECONDS
        while True:
            try:
                return connected_socket(self.path)
            except BlockingIOError:
                if asyncio.get_running_loop().time() >= deadline:
                    raise
            await asyncio.sleep(_AGAIN_SECONDS)

    async def close(self) -> None:
        """Close the connection."""
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except OSError:
            pass

    async def __aenter__(self) -> ControlClient:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def call(self, verb: str, params: Mapping[str, Any] | None = None) -> Any:
        """Call a verb and return its result. Events that come before are kept for `events`."""
        self._number += 1
        try:
            self._writer.write(
                encode({"jsonrpc": "2.0", "id": self._number, "method": verb, "params": dict(params or {})})
            )
            await self._writer.drain()
        except OSError:
            pass  # the answer, if there is one, says why
        while True:
            message = await self._message()
            if self._took_event(message):
                continue
            if "error" in message:
                raise _error(message["error"])
            if message.get("id") == self._number:
                return message.get("result")

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """Yield events as they come, after the verb `watch`. Ends with `TransportError` when the connection ends."""
        while True:
            while self._events:
                yield self._events.popleft()
            self._took_event(await self._message())

    def _took_event(self, message: Message) -> bool:
        """Keep an event for `events`; False for another message."""
        if message.get("method") != "event":
            return False
        if isinstance(event := message.get("params"), dict):
            self._events.append(event)
        return True

    async def _message(self) -> Message:
        try:
            line = await self._reader.readuntil(b"\n")
        except (asyncio.IncompleteReadError, OSError):
            raise TransportError(f"the target has closed the control connection {self.path}") from None
        except asyncio.LimitOverrunError:
            raise TransportError(f"{self.path}: an answer has more than {ANSWER_BYTES} bytes") from None
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            raise TransportError(f"what listens at {self.path} is no control of a target")
        return message


def _error(error: object) -> ControlError:
    if not isinstance(error, Mapping):
        return ControlError(Code.INTERNAL_ERROR, "what listens there answers with an error that has no form")
    code, text = error.get("code", 0), str(error.get("message", "no reason was given"))
    return (ControlUsageError if code in _USAGE else ControlError)(code, text)
