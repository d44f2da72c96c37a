"""A target alone, driven by its event loop over an endpoint without a kernel: what one end's driver costs.

A target and a host in one process (`benchmarks.both_ends`) share code that the interpreter specializes for one role;
a real process has one. Here the peer is a script: prepared capsules in, what comes back is counted, and no payload is
copied on the way. Nothing but public names is used, so that the same file runs against another checkout of the package.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import nvmeof
from benchmarks import wireformat as w
from benchmarks.session import Session, SessionOptions, bring_up
from nvmeof.transport import (
    Address,
    ConnectionInfo,
    Endpoint,
    Listener,
    ListenerInfo,
    SocketOptions,
    Transport,
    register,
)

COMMANDS: Final = 32
"""Commands of one round of a case."""
BLOCK_BYTES: Final = 512
SIZE_BYTES: Final = 64 << 20
SUBNQN: Final = "nqn.2026-01.org.example:driven"


@dataclass(frozen=True)
class DrivenCase:
    """What a round is made of: ``size`` bytes in each command, ``depth`` of them under way at once."""

    name: str
    opcode: int
    size: int
    depth: int
    nsid: int = 1
    in_capsule: bool = False


CASES: Final = (
    DrivenCase("the target's driver, 4 KiB reads one by one", w.READ, 4096, 1),
    DrivenCase("the target's driver, 4 KiB reads at depth 32", w.READ, 4096, 32),
    DrivenCase("the target's driver, 4 KiB writes one by one", w.WRITE, 4096, 1, in_capsule=True),
    DrivenCase("the target's driver, 4 KiB writes at depth 32", w.WRITE, 4096, 32, in_capsule=True),
    DrivenCase("the target's driver, 128 KiB writes one by one", w.WRITE, 1 << 17, 1),
    DrivenCase("the target's driver, 128 KiB writes at depth 8", w.WRITE, 1 << 17, 8),
)
FILE_CASES: Final = (
    DrivenCase("the target's driver, 4 KiB reads of a file one by one", w.READ, 4096, 1, nsid=2),
    DrivenCase("the target's driver, 4 KiB reads of a file at depth 32", w.READ, 4096, 32, nsid=2),
    DrivenCase("the target's driver, 4 KiB writes of a file at depth 32", w.WRITE, 4096, 32, nsid=2, in_capsule=True),
    DrivenCase("the target's driver, 128 KiB reads of a file at depth 8", w.READ, 1 << 17, 8, nsid=2),
    DrivenCase("the target's driver, 128 KiB writes of a file at depth 8", w.WRITE, 1 << 17, 8, nsid=2),
)
"""Storage has threads: these counts vary more than the others, and are no part of the guard."""


class ScriptedEndpoint(Endpoint):
    """The target's end of a connection whose peer is a script.

    `put` queues bytes for the target, or the number of bytes of a payload, which are received without being copied.
    What the target sends goes to ``taken`` as its buffers, which must not be kept.
    """

    def __init__(self, taken: Callable[[Sequence[Any]], None]) -> None:
        self.local_address = Address("script", 1)
        self.peer_address = Address("script", 2)
        self.transport_name = "scripted"
        self.recv_into = self._recv_into
        self.recv_both = self._recv_both
        self.sendmsg = self._sendmsg
        self.taken = taken
        self._inbox: deque[bytes | int] = deque()
        self._reader: Callable[[], object] | None = None
        self._scheduled = False
        self._closed = False

    def put(self, *pieces: bytes | int) -> None:
        """Let the target receive ``pieces``: bytes as they are, or so many bytes of any content."""
        self._inbox.extend(pieces)
        self._schedule()

    def _recv_into(self, buffer: memoryview | bytearray) -> int:
        inbox, room, n = self._inbox, len(buffer), 0
        while inbox and n < room:
            piece = inbox[0]
            length = piece if isinstance(piece, int) else len(piece)
            here = min(length, room - n)
            if not isinstance(piece, int):
                buffer[n : n + here] = piece[:here]
            n += here
            if here == length:
                inbox.popleft()
            else:
                inbox[0] = piece - here if isinstance(piece, int) else piece[here:]
        if not n:
            raise BlockingIOError(11, "nothing is there")
        return n

    def _recv_both(self, buffer: memoryview, behind: memoryview) -> int:
        n = self._recv_into(buffer)
        return n + self._recv_into(behind) if n == len(buffer) and self._inbox else n

    def _sendmsg(self, buffers: Sequence[Any]) -> int:
        self.taken(buffers)
        return sum(map(len, buffers))

    def _schedule(self) -> None:
        if self._reader is not None and self._inbox and not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._run)

    def _run(self) -> None:
        self._scheduled = False
        if self._reader is not None and self._inbox:
            self._reader()
            self._schedule()

    def set_reader(self, callback: Callable[[], object] | None) -> None:
        self._reader = callback
        if callback is not None:
            self._schedule()

    def set_writer(self, callback: Callable[[], object] | None) -> None:
        assert callback is None, "everything is taken"

    def fileno(self) -> int:
        return -1

    def available(self) -> int:
        return sum(piece if isinstance(piece, int) else len(piece) for piece in self._inbox)

    def shutdown(self) -> None:
        pass

    def close(self) -> None:
        self._closed = True
        self._reader = None

    abort = close

    @property
    def closed(self) -> bool:
        return self._closed

    def describe(self) -> ConnectionInfo:
        local, peer = self.local_address, self.peer_address
        return ConnectionInfo(transport="scripted", protocol="scripted", local=local, peer=peer, closed=self._closed)


class _Listener(Listener):
    address = Address("script", 1)

    def close(self) -> None:
        pass

    def describe(self) -> ListenerInfo:
        return ListenerInfo(transport="scripted", protocol="scripted", address=self.address)


class ScriptedTransport(Transport):
    """Gives a target connections that the benchmark makes itself."""

    name = "scripted"
    trtype = 250

    def __init__(self) -> None:
        self.accepted: Callable[[Endpoint], None] | None = None

    async def listen(
        self, host: str, port: int, options: SocketOptions, accepted: Callable[[Endpoint], None]
    ) -> list[Listener]:
        self.accepted = accepted
        return [_Listener()]

    async def connect(self, host: str, port: int, options: SocketOptions) -> Endpoint:
        raise NotImplementedError("only a target uses this transport")


class _Stream:
    """A blocking stream over a scripted endpoint, for the bring-up."""

    def __init__(self, loop: asyncio.AbstractEventLoop, endpoint: ScriptedEndpoint) -> None:
        self.endpoint = endpoint
        self._loop = loop
        self._got = bytearray()
        endpoint.taken = self._take

    def _take(self, buffers: Sequence[Any]) -> None:
        self._got += b"".join(buffers)

    def sendall(self, data: bytes, /) -> None:
        self._loop.call_soon(self.endpoint.put, bytes(data))

    def recv_into(self, buffer: memoryview, /) -> int:
        while not self._got:
            self._loop.run_until_complete(asyncio.sleep(0))
        n = min(len(buffer), len(self._got))
        buffer[:n] = self._got[:n]
        del self._got[:n]
        return n

    def close(self) -> None:
        self.endpoint.close()


class DrivenTarget:
    """A target with a ramdisk and a file, and one I/O queue of it whose host is the script.

    ``options``: further arguments of the target.
    """

    def __init__(self, **options: Any) -> None:
        self._loop = asyncio.SelectorEventLoop()
        self._transport = ScriptedTransport()
        register(self._transport)
        self._folder = tempfile.TemporaryDirectory()
        path = Path(self._folder.name) / "namespace.img"
        path.write_bytes(random.Random(2).randbytes(SIZE_BYTES))
        self._target = nvmeof.Target(
            namespaces=[nvmeof.Ramdisk(SIZE_BYTES), nvmeof.FileBackend(str(path))],
            trtype="scripted",
            listen="script:1",
            subnqn=SUBNQN,
            **options,
        )
        self._loop.run_until_complete(self._target.start())
        self._session: Session = bring_up(SessionOptions("script", 1, SUBNQN, depth=32), self._dial)
        stream: Any = self._session.io.sock
        self._endpoint: ScriptedEndpoint = stream.endpoint

    def _dial(self) -> _Stream:
        assert self._transport.accepted is not None
        stream = _Stream(self._loop, ScriptedEndpoint(lambda _: None))
        self._loop.call_soon(self._transport.accepted, stream.endpoint)
        return stream

    def case(self, case: DrivenCase) -> Callable[[], int]:
        """Return a function that runs one round of ``case`` and returns the number of its commands."""
        return _Script(self._loop, self._endpoint, self._session, case).round

    def close(self) -> None:
        """Stop the target."""
        self._session.close()
        self._loop.run_until_complete(self._target.stop())
        self._loop.close()
        self._folder.cleanup()


class _Script:
    """The host of one case: a new command for each that has ended, and data where it is asked for."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, endpoint: ScriptedEndpoint, session: Session, case: DrivenCase
    ) -> None:
        self._loop, self._endpoint, self._case = loop, endpoint, case
        framing, rng = session.io.framing, random.Random(1)
        inline = case.size if case.in_capsule else 0
        sgl = w.IN_CAPSULE if inline else w.TRANSPORT_SGL
        blocks = case.size // BLOCK_BYTES
        starts = (rng.randrange(SIZE_BYTES // case.size) * blocks for _ in range(COMMANDS))
        self._capsules = [
            framing.head(w.CAPSULE_CMD, w.rw_sqe(case.opcode, cid, case.nsid, start, blocks, case.size, sgl), inline)
            for cid, start in enumerate(starts)
        ]
        assert framing.maxh2cdata_bytes >= case.size
        self._framing = framing
        self._inline = inline
        self._reply_bytes = w.RESPONSE_BYTES + (case.size if case.opcode == w.READ else 0)
        self._ended = self._begun = self._got = 0

    def round(self) -> int:
        """Run `COMMANDS` commands to their ends."""
        self._ended = self._begun = 0
        self._endpoint.taken = self._read if self._case.opcode == w.READ else self._wrote
        self._loop.call_soon(self._begin, self._case.depth)
        self._loop.run_forever()
        return COMMANDS

    def _begin(self, count: int) -> None:
        capsules = self._capsules[self._begun : self._begun + count]
        self._begun += len(capsules)
        if self._inline:
            self._endpoint.put(*(piece for capsule in capsules for piece in (capsule, self._inline)))
        elif capsules:
            self._endpoint.put(b"".join(capsules))

    def _finished(self, count: int) -> None:
        self._ended += count
        if self._ended == COMMANDS:
            self._loop.stop()
        elif count:
            self._begin(count)

    def _read(self, buffers: Sequence[Any]) -> None:
        self._got += sum(map(len, buffers))
        whole, self._got = divmod(self._got, self._reply_bytes)
        self._finished(whole)

    def _wrote(self, buffers: Sequence[Any]) -> None:
        answers, done = b"".join(buffers), 0
        for at in range(0, len(answers), w.RESPONSE_BYTES):
            if answers[at] == w.CAPSULE_RESP:
                done += 1
                continue
            *_, cccid, ttag, offset, length = w.DATA_HEADER.unpack_from(answers, at)
            header = w.DATA_HEADER.pack(0, 0, 0, 0, 0, cccid, ttag, offset, length)[8:]
            self._endpoint.put(self._framing.head(w.H2C_DATA, header, length, w.LAST_PDU), length)
        self._finished(done)
