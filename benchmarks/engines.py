"""The load loop, twice: in C (fast enough to be waited for) and in Python (where there is no compiler)."""

from __future__ import annotations

import ctypes
import os
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from benchmarks import native
from benchmarks import wireformat as w
from benchmarks.session import BenchmarkError, protocol_in_use
from benchmarks.workload import Workload

IOV_MAX = 1024
STALL_SECONDS = 5.0
RX_BYTES = 1 << 18
PEER_CLOSED, STALLED, UNEXPECTED, QUEUE_FULL = -1, -2, -3, -4


@dataclass(frozen=True)
class Counts:
    """What a loop has done since it was made."""

    done: int
    sent: int
    rx_bytes: int
    tx_bytes: int
    recv_calls: int
    send_calls: int


class Engine(Protocol):
    """One connection under load. `run` goes on where the last one ended, with commands in flight between calls."""

    name: str

    def run(self, seconds: float) -> None: ...
    def drain(self, seconds: float) -> None: ...
    def counts(self) -> Counts: ...
    def take_latencies_ns(self) -> Sequence[int]: ...
    def close(self) -> None: ...


def _failure(code: int, head: bytes) -> BenchmarkError:
    if code == PEER_CLOSED:
        return BenchmarkError("the target closed the connection under load")
    if code == STALLED:
        return BenchmarkError(f"no reply for {STALL_SECONDS:g} s under load")
    if code == UNEXPECTED:
        return BenchmarkError(f"an unexpected reply came under load, it begins with {head.hex()}")
    if code == QUEUE_FULL:
        return BenchmarkError("the generator's send queue is full")
    return BenchmarkError(f"the connection broke under load: {os.strerror(code)}")


class NativeEngine:
    """loadgen.c."""

    name = "c"

    def __init__(self, library: ctypes.CDLL, sock: socket.socket, load: Workload, *, spin: bool) -> None:
        self._library, self._sock, self._load = library, sock, load
        self._memory = ctypes.create_string_buffer(library.lg_size())
        state = self._state = native.LoadgenStruct.from_buffer(self._memory)
        state.fd, state.spin, state.limit = sock.fileno(), spin, load.limit
        state.heads, state.ring, state.head_bytes = load.heads, load.ring, load.head_bytes
        state.payloads, state.payload_bytes = load.payloads, load.payload_bytes
        state.payload_stride, state.payload_count = load.payload_stride, load.payload_count
        state.r2t, state.unit_bytes = load.r2t, load.unit_bytes
        state.depth, state.batch = load.depth, load.batch
        state.check_head, state.check_plen = struct.unpack("<II", load.check)
        state.hdgst_bytes, state.ddgst_bytes = load.framing.hdgst_bytes, load.framing.ddgst_bytes
        state.data_offset, state.piece_bytes = load.framing.data_offset(w.RESPONSE_BYTES), load.piece_bytes
        state.payload_fd = self._payload_file = self._make_file()

    def _make_file(self) -> int:
        # over MPTCP sendfile copies all the same, and page by page: measured at half the rate of sendmsg
        if not self._load.r2t or protocol_in_use(self._sock) != "tcp" or not hasattr(os, "memfd_create"):
            return -1
        descriptor = os.memfd_create("payloads")
        with open(descriptor, "wb", closefd=False) as file:
            file.write(self._load.payloads)
        return descriptor

    def close(self) -> None:
        if self._payload_file >= 0:
            os.close(self._payload_file)
            self._payload_file = self._state.payload_fd = -1

    def _call(self, seconds: float, refilling: bool) -> None:
        code = self._library.lg_run(ctypes.addressof(self._state), seconds, refilling)
        if code:
            raise _failure(code, bytes(self._state.error_head))

    def run(self, seconds: float) -> None:
        self._call(seconds, True)

    def drain(self, seconds: float) -> None:
        self._call(seconds, False)

    def counts(self) -> Counts:
        s = self._state
        return Counts(s.done, s.sent, s.rx_bytes, s.tx_bytes, s.recv_calls, s.send_calls)

    def take_latencies_ns(self) -> Sequence[int]:
        taken = list(self._state.latencies_ns[: self._state.latency_count])
        self._state.latency_count = 0
        return taken


class PythonEngine:
    """The same loop without a compiler. Slower than a good target at depth: the output says which one ran."""

    name = "python"

    def __init__(self, sock: socket.socket, load: Workload, *, spin: bool) -> None:
        self._sock, self._load, self._spin = sock, load, spin
        heads, payloads = memoryview(load.heads), memoryview(load.payloads)
        step, stride = load.head_bytes, load.payload_stride
        self._heads = [heads[i * step : (i + 1) * step] for i in range(load.ring)]
        self._payloads = [payloads[i * stride : (i + 1) * stride] for i in range(load.payload_count)]
        self._queue: deque[memoryview | bytes] = deque()
        self._rx = bytearray(RX_BYTES)
        self._partial = 0
        self._done = self._sent = self._rx_bytes = self._tx_bytes = self._recvs = self._sends = 0
        self._tag = self._tag_ns = 0
        self._latencies: list[int] = []
        sock.setblocking(False)

    def counts(self) -> Counts:
        return Counts(self._done, self._sent, self._rx_bytes, self._tx_bytes, self._recvs, self._sends)

    def take_latencies_ns(self) -> Sequence[int]:
        taken, self._latencies = self._latencies, []
        return taken

    def close(self) -> None:
        """Nothing is held beside the caller's socket."""

    def run(self, seconds: float) -> None:
        self._loop(seconds, True)

    def drain(self, seconds: float) -> None:
        self._loop(seconds, False)

    def _refill(self, now: int) -> None:
        load, before = self._load, self._sent
        room = load.depth - (self._sent - self._done)
        if room < load.batch:
            return
        if load.limit:
            room = min(room, load.limit - self._sent)
        inline = load.payload_bytes and not load.r2t
        for _ in range(room):
            self._queue.append(self._heads[self._sent % load.ring])
            if inline:
                self._queue.append(self._payloads[self._sent % load.payload_count])
            self._sent += 1
        if self._sent != before and not self._tag:
            self._tag, self._tag_ns = self._sent, now

    def _flush(self) -> None:
        queue = self._queue
        while queue:
            batch = [queue.popleft() for _ in range(min(len(queue), IOV_MAX))]
            try:
                taken = self._sock.sendmsg(batch)
            except BlockingIOError:
                taken = 0
            self._sends += 1
            self._tx_bytes += taken
            for index, part in enumerate(batch):
                if taken < len(part):
                    queue.extendleft(reversed([part[taken:], *batch[index + 1 :]]))
                    return
                taken -= len(part)

    def _completed(self, count: int, now: int) -> None:
        self._done += count
        if self._tag and self._done >= self._tag:
            self._latencies.append(now - self._tag_ns)
            self._tag = 0

    def _answer_r2t(self, pdu: memoryview) -> None:
        load, framing = self._load, self._load.framing
        _, _, _, _, _, cccid, ttag, offset, length = w.DATA_HEADER.unpack_from(pdu)
        payload = self._payloads[self._done % load.payload_count]
        piece = load.piece_bytes
        if offset % piece or offset + length > load.payload_bytes:
            raise _failure(UNEXPECTED, bytes(pdu[:8]))
        while length:
            size = min(length, piece)
            length -= size
            header = struct.pack("<HHII4x", cccid, ttag, offset, size)
            self._queue.append(framing.head(w.H2C_DATA, header, size, 0 if length else w.LAST_PDU))
            at = offset // piece * (piece + framing.ddgst_bytes)
            self._queue.append(payload[at : at + size + framing.ddgst_bytes])
            offset += size

    def _take_small(self, have: int, now: int) -> None:
        unit, at = self._load.unit_bytes, 0
        view = memoryview(self._rx)
        while have - at >= unit:
            pdu = view[at : at + unit]
            if pdu[0] == w.R2T:
                self._answer_r2t(pdu)
            elif pdu[0] == w.CAPSULE_RESP and not (pdu[22] | pdu[23] << 8) >> 1:
                self._completed(1, now)
            else:
                raise _failure(UNEXPECTED, bytes(pdu[:8]))
            at += unit
        view[: have - at] = bytes(view[at:have])
        self._partial = have - at

    def _take_counted(self, received: int, now: int) -> None:
        unit = self._load.unit_bytes
        skip = (unit - self._partial) % unit
        if skip + 8 <= received and self._rx[skip : skip + 8] != self._load.check:
            raise _failure(UNEXPECTED, bytes(self._rx[skip : skip + 8]))
        count, self._partial = divmod(self._partial + received, unit)
        self._completed(count, now)

    def _receive(self) -> int:
        try:
            if self._load.r2t:
                return self._sock.recv_into(memoryview(self._rx)[self._partial :])
            return self._sock.recv_into(self._rx)
        except BlockingIOError:
            if not self._spin:
                select.select([self._sock], [self._sock] if self._queue else [], [], 0.1)
            return -1

    def _loop(self, seconds: float, refilling: bool) -> None:
        now = last = time.monotonic_ns()
        end = now + int(seconds * 1e9)
        while now < end:
            if refilling:
                self._refill(now)
            self._flush()
            if self._done == self._sent and (not refilling or 0 < self._load.limit <= self._done):
                return
            received = self._receive()
            now = time.monotonic_ns()
            if received > 0:
                last = now
                self._recvs += 1
                self._rx_bytes += received
                if self._load.r2t:
                    self._take_small(self._partial + received, now)
                else:
                    self._take_counted(received, now)
            elif received == 0:
                raise _failure(PEER_CLOSED, b"")
            elif now - last > STALL_SECONDS * 1e9:
                raise _failure(STALLED, b"")


def make_engine(kind: str, sock: socket.socket, load: Workload, *, spin: bool) -> tuple[Engine, str]:
    """``kind``: ``c``, ``python`` or ``auto`` (C where a compiler exists). The note says why it is not C."""
    note = ""
    if kind != "python":
        library, note = native.build()
        if library is not None:
            sock.setblocking(False)
            return NativeEngine(library, sock, load, spin=spin), ""
        if kind == "c":
            raise BenchmarkError(note)
    return PythonEngine(sock, load, spin=spin), note
