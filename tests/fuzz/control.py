"""The harness of the control socket: lines of any content, verbs with arguments that fit and that do not."""

from __future__ import annotations

import asyncio
import json
import struct
import tempfile
from pathlib import Path
from typing import Any, ClassVar, Final

from nvmeof.target.control import Control, ControlServer
from nvmeof.target.control.control import all_verbs
from nvmeof.target.server import Target
from nvmeof.target.storage.ramdisk import Ramdisk
from nvmeof.target.subsystem.config import NamespaceConfig, PortConfig, SubsystemConfig, TargetConfig
from tests.fuzz.bytes_reader import Reader
from tests.fuzz.harness import Violation, register
from tests.fuzz.with_loop import WithLoop
from tests.target.harness import HOST, NQN

OTHER: Final = "nqn.2026-01.org.example:other"
LEFT_OUT: Final = frozenset({"save", "reload", "log-level", "path.add", "port.add"})
"""Verbs that write files, hide the defects that are looked for, or take addresses of this machine."""
VERBS: Final = tuple(verb for verb in all_verbs() if verb.name not in LEFT_OUT)
TEXTS: Final = (
    NQN, OTHER, HOST, "", "nqn.", "x" * 300, "ramdisk:64K", "ramdisk:-1", "ramdisk:64K,zoned", "file:/dev/null/x", ",",
    "0", "-1", "1M", "zz", "DHHC-1:00:x:", "env:NOWHERE", "sha256", "ffdhe2048", "\r\n\t", "\u2028", "\0", "\ud800",
)  # fmt: skip
VALUES: Final = (
    *TEXTS, None, True, False, 0, 1, 2, 7, -1, 0.0, 0.5, 1 << 16, 1 << 64, [], {}, [NQN], [None, {}],
    {"nqn": OTHER}, {"zoned": True}, {"hosts": [HOST]}, [[[]]],
)  # fmt: skip
ODD_LINES: Final = (
    b"", b"{", b"[" * 2000, b"[]", b"[1,2]", b"null", b'{"jsonrpc":"2.0"}', b'{"jsonrpc":"2.0","method":7,"id":1}',
    b'{"jsonrpc":"2.0","method":"hello","id":1e999}', b'{"jsonrpc":"2.0","method":"hello","id":{}}', b"\xff\xfe",
    b'{"jsonrpc":"2.0","method":"hello","id":' + b"9" * 5000 + b"}", b"NaN", b'"\\ud800"', b"\0" * 40, b" " * 4096,
)  # fmt: skip


def calls(reader: Reader) -> list[bytes]:
    """Return lines, most of them requests, as the input says."""
    lines = []
    while reader.left and len(lines) < 24:
        kind = reader.below(8)
        if kind == 0:
            lines.append(reader.choose(ODD_LINES))
        elif kind == 1:
            lines.append(reader.take(reader.below(40)).replace(b"\n", b" "))
        elif kind == 2:
            lines.append(json.dumps([_call(reader) for _ in range(reader.below(70))]).encode())
        else:
            lines.append(json.dumps(_call(reader)).encode())
    return lines


def _call(reader: Reader) -> dict[str, Any]:
    verb = reader.choose(VERBS)
    params: Any = {
        each.name: _value(reader, each.schema) for each in verb.parameters if each.required or reader.below(3) == 0
    }
    if not reader.below(16):
        params = list(params.values()) if reader.below(2) else reader.choose(VALUES)
    call = {"jsonrpc": "2.0", "method": verb.name, "params": params, "id": reader.number()}
    if not reader.below(8):
        del call["id"]
    if not reader.below(16):
        call[reader.choose(("method", "params", "id", "jsonrpc", "more"))] = reader.choose(VALUES)
    return call


def _value(reader: Reader, schema: dict[str, Any]) -> Any:
    """Return a value, mostly one that fits; what is waited for takes no time."""
    if "enum" in schema and reader.below(8):
        return reader.choose(schema["enum"])
    kinds = schema.get("type", "object")
    if "number" in kinds:
        return reader.choose((0, 0.001, -1, "0", None))
    if "integer" in kinds and reader.below(8):
        return reader.choose((0, 1, 2, 7, 4096, -1, 1 << 32))
    if "string" in kinds and reader.below(8):
        return reader.choose(TEXTS)
    return reader.choose(VALUES)


@register
class ControlSocket(WithLoop):
    """The control socket: lines that are no requests, requests of all verbs but those that change the machine."""

    name: ClassVar[str] = "control"
    seeds: ClassVar[tuple[bytes, ...]] = tuple(
        struct.pack("<BB", 7, index) + bytes(range(index, index + 40)) for index in range(len(VERBS))
    )

    async def start(self) -> None:
        subsystem = SubsystemConfig(nqn=NQN, namespaces=(NamespaceConfig(backend=Ramdisk("64K")),))
        ports = (PortConfig(transport="memory", host="memory", port=0),)
        target = Target(TargetConfig(subsystems=(subsystem,), ports=ports))
        self.target = await self._stack.enter_async_context(target)
        path = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="control-"))) / "s"
        self.server = await self._stack.enter_async_context(ControlServer(Control(self.target), path, slow_seconds=2.0))

    async def feed(self, reader: Reader) -> int:
        ending = reader.below(4)
        lines = calls(reader)
        peer, writer = await asyncio.open_unix_connection(self.server.path, limit=8 << 20)
        taking = asyncio.ensure_future(self._answers(peer, 0 if ending == 3 else None))
        try:
            writer.write(b"\n".join(lines) + (b"\n" if ending else b""))
            await writer.drain()
            if ending != 2:
                writer.write_eof()
            else:
                writer.transport.abort()
            await taking
        except ConnectionError:
            pass
        finally:
            taking.cancel()
            writer.close()
        await self._check()
        return len(lines) + 1

    @staticmethod
    async def _answers(peer: asyncio.StreamReader, most: int | None) -> None:
        """Read answers; each is one JSON value. `most`: go after so many."""
        while most != 0:
            try:
                line = await peer.readline()
            except ConnectionError:
                return
            if not line.endswith(b"\n"):
                return
            value = json.loads(line, parse_constant=_no_constant)
            for each in value if isinstance(value, list) else [value]:
                error = each.get("error")
                if error is not None and error["code"] == -32603:
                    raise Violation(f"a verb met a defect: {error['message']}")
                if error is not None and ("\n" in error["message"] or len(error["message"]) > 1200):
                    raise Violation(f"an error is no sentence: {error['message'][:200]!r}")

    async def _check(self) -> None:
        """Look whether the client has gone, and another one is answered."""
        async with asyncio.timeout(15):
            while self.server.clients:  # noqa: ASYNC110
                await asyncio.sleep(0)
        peer, writer = await asyncio.open_unix_connection(self.server.path, limit=8 << 20)
        writer.write(b'{"jsonrpc":"2.0","id":1,"method":"hello"}\n')
        answer = json.loads(await asyncio.wait_for(peer.readline(), 10))
        writer.close()
        await writer.wait_closed()
        if answer.get("result", {}).get("protocol") != 1:
            raise Violation(f"another client is not answered: {answer}")
        async with asyncio.timeout(10):
            while self.server.clients or self.server._tasks:  # noqa: ASYNC110
                await asyncio.sleep(0)


def _no_constant(text: str) -> None:
    raise Violation(f"an answer has {text}, which is no JSON")
