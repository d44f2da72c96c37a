"""A queue without sockets and a host that writes bytes to it; commands for both, right and wrong ones."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from nvmeof.protocol.connection import ConnectionConfig, TargetConnection
from nvmeof.protocol.pdu_tap import PduTap
from nvmeof.spec.enums import AnaState
from nvmeof.target.commands.admin_context import ConnectContext
from nvmeof.target.core.pool import BufferPool
from nvmeof.target.core.throttle import Throttle
from nvmeof.target.namespaces.feature_values import Value
from nvmeof.target.queue.detached import DetachedCommands
from nvmeof.target.queue.fast_path import FastPath
from nvmeof.target.queue.limited import LimitedQueue
from nvmeof.target.queue.queue import TargetQueue
from nvmeof.target.queue.tracing import CommandTrace
from nvmeof.target.storage.ramdisk import Ramdisk
from nvmeof.target.subsystem.config import NamespaceConfig
from nvmeof.trace import Side, Trace, TracedQueue
from tests.conformance.rawhost import (
    FLUSH,
    IN_CAPSULE,
    R2T,
    READ,
    RESPONSE,
    TRANSPORT,
    WRITE,
    WRITE_ZEROES,
    RawHost,
    connect_data,
    icreq,
    io_sqe,
    make_sqe,
)
from tests.protocol.wire import sent, split
from tests.target.harness import HOST, HOSTID, NQN, Pending, Target

BLOCKS = 64
WRITE_UNCORRECTABLE, COMPARE = 0x04, 0x05
SIZE = BLOCKS * 512
OK, FIELD, CONFLICT, RANGE, INACCESSIBLE = 0, 0x02, 0x03, 0x80, 0x302


class NoFastPath(FastPath):
    """A fast path without templates, so that each command takes the general path."""

    __slots__ = ()

    def _template(self, *command: object) -> None:
        return None


@dataclass
class FakeDriver:
    spawned: list[tuple[Pending, Callable[[Any], None]]] = field(default_factory=list)
    wakes: int = 0
    ended: list[str] = field(default_factory=list)
    waiting: bool = False
    held_back: bool = False

    def spawn(self, pending, done):
        self.spawned.append((Pending(pending), done))

    def wake(self):
        self.wakes += 1

    def wait_for_room(self):
        self.waiting = True

    def hold_receiving(self, crowded):
        self.held_back = crowded

    def finish(self, reason, *, fault=False):
        self.ended.append(reason)


class Wire(RawHost):
    """A queue and a host that writes bytes to it."""

    def __init__(self, target: Target, *, dgst: int = 0, cattr: int = 0, entries: int = 128, fast_path: bool = True,
                 pool: BufferPool | None = None,
                 detached_commands: DetachedCommands | None = None, trace: Trace | None = None,
                 throttle: Throttle | None = None) -> None:  # fmt: skip
        self.header_digest, self.data_digest = bool(dgst & 1), bool(dgst & 2)
        self.target = target
        self.driver = FakeDriver()
        self.connection = TargetConnection(ConnectionConfig(header_digest=True, data_digest=True))
        self.pool = pool or BufferPool(1 << 20)
        parts = (self.connection, self.pool, detached_commands or DetachedCommands(), self.driver)
        self.queue = TargetQueue(*parts) if throttle is None else LimitedQueue(*parts, throttle)
        seen = target.port.seen_at("192.0.2.1", 4420)
        self.queue.ctx = ConnectContext(target.runtime, target.registry, seen, self.queue)
        if trace is not None:
            self.queue.trace = CommandTrace(trace, TracedQueue(Side.TARGET, "host"), target.runtime.now)
            self.connection.tap = PduTap(self.queue.trace.pdus)
        if not fast_path:
            self.queue.fast_path.__class__ = NoFastPath
        controller = next(iter(target.subsystem.controllers.values()))
        self.feed(icreq(dgst=dgst))
        sqe = make_sqe(0, 0x7F, nsid=1, length=1024, sgl=IN_CAPSULE, cdw10=1 << 16, cdw11=entries - 1 | cattr << 16)
        answer = self.feed(self.capsule(sqe, connect_data(NQN, HOST, HOSTID, controller.cntlid)))
        assert self.queue.ctx.qid == 1, answer

    def feed(self, data: bytes, size: int = 1 << 30) -> bytes:
        """Return the output for `data`, received in pieces of at most `size`. Views stay live, as with a socket."""
        out = b""
        while data:
            buffer = self.connection.next_buffer()
            part = data[: min(size, len(buffer))]
            buffer[: len(part)] = part
            data = data[len(part) :]
            self.queue.handle(self.connection.bytes_received(len(part), 0.0), 0.0)
            out += sent(self.connection)
        self.queue.staging.settle()  # as the driver does
        return out


@dataclass(frozen=True)
class Command:
    opcode: int
    cid: int
    nsid: int = 1
    slba: int = 0
    nlb: int = 8
    flags: int = 0x40
    extra: int = 0  # more of CDW12: LR, FUA, PRINFO
    sgl: int | None = None
    sgl_skew: int = 0
    address: int = 0
    value: int = 0
    longer: int = 0

    def bytes(self, wire: Wire) -> bytes:
        moves = self.opcode in (READ, WRITE, COMPARE)
        sends = self.opcode in (WRITE, COMPARE)
        sgl = (IN_CAPSULE if sends else TRANSPORT) if self.sgl is None else self.sgl
        length = self.nlb * 512 + self.sgl_skew if moves else 0
        sqe = make_sqe(
            self.cid, self.opcode, nsid=self.nsid, length=length, sgl=sgl, address=self.address, flags=self.flags,
            cdw10=self.slba & 0xFFFFFFFF, cdw11=self.slba >> 32, cdw12=self.nlb - 1 | self.extra,
        )  # fmt: skip
        data = b""
        if sends and sgl == IN_CAPSULE:
            data = bytes([self.value]) * (self.nlb * 512 + self.longer)
        return wire.capsule(sqe, data)


PLAIN = st.builds(
    Command,
    opcode=st.sampled_from([READ, READ, READ, WRITE, WRITE]),
    cid=st.integers(0, 7),
    slba=st.integers(0, BLOCKS - 8),
    value=st.integers(1, 255),
)
ASKED = st.builds(
    Command,
    opcode=st.just(WRITE),
    cid=st.integers(0, 7),
    slba=st.integers(0, BLOCKS - 8),
    sgl=st.just(TRANSPORT),
)
ODD = st.builds(
    Command,
    opcode=st.sampled_from([READ, WRITE, WRITE_ZEROES, WRITE_UNCORRECTABLE, FLUSH, COMPARE, COMPARE, 0x7E]),
    cid=st.integers(0, 7),
    nsid=st.sampled_from([1, 1, 2, 9, 0xFFFFFFFF]),
    slba=st.sampled_from([0, 1, BLOCKS - 8, BLOCKS - 7, BLOCKS - 1, BLOCKS, 2 * BLOCKS - 8, 1 << 32, (1 << 64) - 8]),
    nlb=st.sampled_from([1, 8, 8, 12]),
    flags=st.sampled_from([0x40, 0x40, 0x40, 0x41, 0x41, 0x42, 0x00, 0x80]),
    extra=st.sampled_from([0, 0, 1 << 31, 1 << 30, 1 << 26, 1 << 24, 1 << 20]),
    sgl=st.sampled_from([None, None, None, TRANSPORT, IN_CAPSULE, 0x40]),
    sgl_skew=st.sampled_from([0, 0, 0, 512, -1]),
    address=st.sampled_from([0, 0, 8]),
    value=st.integers(1, 255),
    longer=st.sampled_from([0, 0, 4]),
)
BATCHES = st.lists(st.lists(st.one_of(PLAIN, PLAIN, ASKED, ODD), max_size=24), min_size=1, max_size=4)
CHANGES = st.sampled_from(
    ["nothing", "nothing", "remove", "add", "grow", "shrink", "inaccessible", "optimized", "cache", "detach", "attach"]
)


def two_namespaces() -> Target:
    target = Target(Ramdisk(SIZE), Ramdisk(2 * SIZE))
    target.admin()
    return target


def change(target: Target, what: str) -> None:
    subsystem = target.subsystem
    if what == "remove" and 1 in subsystem.namespaces:
        subsystem.remove_namespace(1)
    elif what == "add" and 1 not in subsystem.namespaces:
        subsystem.add_namespace(NamespaceConfig(backend=Ramdisk(SIZE), nsid=1))
    elif what in ("grow", "shrink") and 1 in subsystem.namespaces:
        subsystem.resize_namespace(1, 2 * SIZE if what == "grow" else SIZE // 2)
    elif what == "inaccessible":
        subsystem.set_ana_state(AnaState.INACCESSIBLE)
    elif what == "optimized":
        subsystem.set_ana_state(AnaState.OPTIMIZED)
    elif what == "detach":
        next(iter(subsystem.controllers.values())).detach(1)
    elif what == "attach" and 1 in subsystem.namespaces:
        next(iter(subsystem.controllers.values())).attach(subsystem.namespaces[1])
    elif what == "cache":
        next(iter(subsystem.controllers.values())).features.values[6, 0] = Value(0)


def wire_of_reads(length: int, count: int, backend: type[Ramdisk] = Ramdisk, pool: BufferPool | None = None) -> Wire:
    """Return a wire that has received ``count`` Reads of ``length`` bytes at once, and sent nothing yet."""
    target = Target(backend("1M"))
    target.admin()
    wire = Wire(target, fast_path=False, pool=pool)
    data = b"".join(wire.capsule(io_sqe(cid, READ, 0, length // 512)) for cid in range(count))
    buffer = wire.connection.next_buffer()
    buffer[: len(data)] = data
    wire.queue.handle(wire.connection.bytes_received(len(data), 0.0), 0.0)
    return wire


def statuses(out: bytes) -> list[tuple[int, int]]:
    return [
        (cid, status >> 1 & 0x7FF)
        for cid, status in (struct.unpack_from("<HH", pdu, 20) for pdu in split(out) if pdu[0] == RESPONSE)
    ]


def r2ts(out: bytes) -> list[tuple[int, int, int]]:
    """Return (CID, TTAG, length) of R2Ts."""
    found = [struct.unpack_from("<HHII", pdu, 8) for pdu in split(out) if pdu[0] == R2T]
    return [(cid, ttag, length) for cid, ttag, _, length in found]


def with_admin(*backends) -> Target:
    target = Target(*backends)
    target.admin()
    return target
