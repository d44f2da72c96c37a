"""Data that goes straight to live memory: a reader sees old units or new ones, never a mixture."""

from __future__ import annotations

from itertools import cycle

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nvmeof.protocol.connection import Connection
from nvmeof.target.core.admission import AdmissionToken
from tests.protocol.wire import Arrived, Framing, feed, ready_target, sent, split

OLD, NEW = 0x11, 0xEE


class Socket:
    """Bytes in flight: some have arrived, and a receive gives at most those."""

    def __init__(self, stream: bytes) -> None:
        self.stream = stream
        self.arrived = 0
        self.taken = 0
        self.asked = 0

    @property
    def available(self) -> int:
        return self.arrived - self.taken

    def drive(self, connection: Connection) -> list[object]:
        """Do one receive, as a driver does it."""
        buffers = [connection.next_buffer(self._tell)]
        if connection.behind is not None:
            buffers.append(connection.behind)
        received = 0
        for buffer in buffers:
            count = min(len(buffer), self.available)
            buffer[:count] = self.stream[self.taken : self.taken + count]
            self.taken += count
            received += count
        return list(connection.bytes_received(received, 0.0)) if received else []

    def _tell(self) -> int:
        self.asked += 1
        return self.available


def asked(connection: Connection) -> list[tuple[int, int, int]]:
    """Return (TTAG, offset, length) of the R2Ts that are queued."""
    found = []
    for pdu in split(sent(connection)):
        assert pdu[0] == 9
        ttag = int.from_bytes(pdu[10:12], "little")
        found.append((ttag, int.from_bytes(pdu[12:16], "little"), int.from_bytes(pdu[16:20], "little")))
    return found


def cut(length: int, sizes: list[int]) -> list[int]:
    """Cut ``length`` into pieces of the given sizes, in turn."""
    pieces = []
    while length:
        pieces.append(min(sizes[len(pieces) % len(sizes)], length))
        length -= pieces[-1]
    return pieces


def check_units(live: bytes | bytearray, unit: int) -> int:
    """Return how many units are new; fail when one is neither old nor new."""
    old_unit, new_unit = bytes([OLD]) * unit, bytes([NEW]) * unit
    new = 0
    for start in range(0, len(live), unit):
        found = live[start : start + unit]
        assert found in (old_unit, new_unit), f"unit at {start} is torn"
        new += found == new_unit
    return new


def data_pdus(framing: Framing, ttag: int, offset: int, pieces: list[int]) -> bytes:
    """Return H2CData of those lengths, the last of them with LAST_PDU."""
    stream = b""
    for left, piece in zip(range(len(pieces), 0, -1), pieces, strict=True):
        stream += framing.h2c(7, ttag, offset, bytes([NEW]) * piece, left == 1)
        offset += piece
    return stream


@settings(max_examples=150, deadline=None)
@given(
    unit=st.sampled_from([512, 4096]),
    kilobytes=st.sampled_from([4, 28, 32, 44]),
    pdus=st.lists(st.sampled_from([700, 512, 1000, 4096, 20000, 1 << 20]), min_size=1, max_size=4),
    arrivals=st.lists(st.sampled_from([100, 512, 1460, 5000, 40000]), min_size=1, max_size=6),
    header_digest=st.booleans(),
    data_digest=st.booleans(),
    r2t_bytes=st.sampled_from([None, 4096, 7000, 16384]),
)
@example(512, 44, [1 << 20], [600], False, False, None)
@example(512, 44, [1 << 20], [1 << 20], False, False, None)
@example(4096, 44, [1000], [1 << 20], False, False, None)
def test_no_unit_is_ever_torn(unit, kilobytes, pdus, arrivals, header_digest, data_digest, r2t_bytes):
    framing = Framing(header_digest, data_digest)
    connection = ready_target(framing, r2t_bytes=r2t_bytes, maxh2cdata_bytes=1 << 20)
    length = kilobytes << 10
    live = bytearray([OLD]) * length
    feed(connection, framing.command(7, 1, length))
    sent(connection)
    connection.request_data(7, memoryview(live), "context", unit_bytes=unit)
    done: list[object] = []
    seen = 0
    while windows := asked(connection):
        for ttag, offset, size in windows:
            socket = Socket(data_pdus(framing, ttag, offset, cut(size, pdus)))
            for arrival in cycle(arrivals):
                socket.arrived = min(socket.arrived + arrival, len(socket.stream))
                while socket.available:
                    done += socket.drive(connection)
                    new = check_units(live, unit)
                    assert new >= seen
                    seen = new
                if socket.taken == len(socket.stream):
                    break
    assert done == [Arrived(7, "context", True)]
    assert seen == length // unit


@settings(max_examples=100, deadline=None)
@given(
    unit=st.sampled_from([512, 4096]),
    kilobytes=st.lists(st.sampled_from([4, 32, 44, 128]), min_size=2, max_size=6),
    arrivals=st.lists(st.sampled_from([100, 1460, 40000, 100_000, 300_000]), min_size=1, max_size=6),
)
def test_several_writes_arrive_behind_one_another(unit, kilobytes, arrivals):
    framing = Framing()
    connection = ready_target(framing, maxh2cdata_bytes=1 << 20)
    lives = [bytearray([OLD]) * (size << 10) for size in kilobytes]
    stream = b""
    for cid, live in enumerate(lives):
        feed(connection, framing.command(cid, 1, len(live)))
        connection.request_data(cid, memoryview(live), cid, unit_bytes=unit)
        [(ttag, _, size)] = asked(connection)
        stream += framing.h2c(cid, ttag, 0, bytes([NEW]) * size)
    socket = Socket(stream)
    done: list[object] = []
    for arrival in cycle(arrivals):
        socket.arrived = min(socket.arrived + arrival, len(stream))
        while socket.available:
            done += socket.drive(connection)
            for live in lives:
                check_units(live, unit)
        if socket.taken == len(stream):
            break
    assert done == [Arrived(cid, cid, True) for cid in range(len(lives))]
    assert all(live == bytearray([NEW]) * len(live) for live in lives)


def test_the_socket_is_asked_again_only_when_the_known_bytes_do_not_suffice():
    framing = Framing()
    connection = ready_target(framing, maxh2cdata_bytes=1 << 20)
    stream = b""
    for cid in range(4):
        feed(connection, framing.command(cid, 1, 65536))
        sent(connection)
        connection.request_data(cid, memoryview(bytearray(65536)), None, unit_bytes=512)
        [(ttag, _, _)] = asked(connection)
        stream += framing.h2c(cid, ttag, 0, bytes(65536))
    socket = Socket(stream)
    socket.arrived = 3 * (65536 + 24)
    events = []
    while socket.available:
        events += socket.drive(connection)
    assert len(events) == 3
    assert socket.asked == 1
    socket.arrived = len(stream)
    while socket.available:
        events += socket.drive(connection)
    assert len(events) == 4
    assert socket.asked == 2


@pytest.mark.parametrize("cut_at", [0, 24, 600, 30000, 65559])
@pytest.mark.parametrize("data_digest", [False, True])
def test_memory_that_is_no_longer_live_does_not_change(cut_at, data_digest):
    framing = Framing(data_digest=data_digest)
    connection = ready_target(framing, maxh2cdata_bytes=1 << 20)
    live = bytearray([OLD]) * 65536
    alive = AdmissionToken()
    feed(connection, framing.command(7, 1, len(live)))
    sent(connection)
    connection.request_data(7, memoryview(live), None, unit_bytes=512, validity=alive)
    [(ttag, _, _)] = asked(connection)
    socket = Socket(framing.h2c(7, ttag, 0, bytes([NEW]) * len(live)))
    socket.arrived = cut_at
    events = []
    while socket.available:
        events += socket.drive(connection)
    assert not events
    alive.valid, before = False, bytes(live)
    check_units(before, 512)
    socket.arrived = len(socket.stream)
    while socket.available:
        events += socket.drive(connection)
    assert bytes(live) == before
    assert events == [Arrived(7, None, True, memoryview(bytes([NEW]) * len(live)))]


def test_a_wrong_digest_leaves_nothing_behind():
    framing = Framing(data_digest=True)
    connection = ready_target(framing, maxh2cdata_bytes=1 << 20)
    live = bytearray([OLD]) * 65536
    feed(connection, framing.command(7, 1, len(live)))
    sent(connection)
    connection.request_data(7, memoryview(live), None, unit_bytes=512)
    [(ttag, _, _)] = asked(connection)
    pdu = bytearray(framing.h2c(7, ttag, 0, bytes([NEW]) * len(live)))
    pdu[100] ^= 1
    assert feed(connection, bytes(pdu)) == [Arrived(7, None, False)]
    assert live == bytearray([OLD]) * len(live)


def test_whole_units_are_received_in_place():
    connection = ready_target(maxh2cdata_bytes=1 << 20)
    live = bytearray(65536)
    feed(connection, Framing().command(7, 1, len(live)))
    sent(connection)
    connection.request_data(7, memoryview(live), None, unit_bytes=512)
    [(ttag, _, _)] = asked(connection)
    feed(connection, Framing().h2c(7, ttag, 0, bytes([NEW]) * len(live))[: 24 + 100])
    buffer = connection.next_buffer(lambda: 1000)
    assert buffer.obj is live and len(buffer) == 1024 - 100, "the 100 that are there and 924 more are two units"
    assert live[:100] == bytearray([NEW]) * 100, "copied in the step that receives the rest of the unit"


@pytest.mark.parametrize("first_cut", [[16384], [512, 15872], [100, 16284]])
@pytest.mark.parametrize("second_cut", [[16384], [512, 15872], [700, 15684]])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_windows_may_be_answered_in_any_order(first_cut, second_cut, order):
    framing = Framing()
    connection = ready_target(framing, r2t_bytes=16384, maxr2t=2, maxh2cdata_bytes=1 << 20)
    live = bytearray([OLD]) * 32768
    feed(connection, framing.command(7, 1, len(live)))
    sent(connection)
    connection.request_data(7, memoryview(live), None, unit_bytes=512)
    windows = asked(connection)
    assert len(windows) == 2
    events = []
    for index in order:
        ttag, offset, _ = windows[index]
        socket = Socket(data_pdus(framing, ttag, offset, (first_cut, second_cut)[index]))
        while socket.taken < len(socket.stream):
            socket.arrived = min(socket.arrived + 1000, len(socket.stream))
            while socket.available:
                events += socket.drive(connection)
                check_units(live, 512)
    assert events == [Arrived(7, None, True)]
    assert check_units(live, 512) == 64
