"""The target's role against a hand-written host: commands, R2Ts, data, completions, and errors."""

from __future__ import annotations

import pytest

from nvmeof.errors import LocalProtocolError
from nvmeof.protocol.connection import State
from nvmeof.protocol.events import CommandBatch, CommandData, ProtocolFailure

from .wire import (
    BOTH,
    FRAMINGS,
    LAST,
    PLAIN,
    READ,
    SUCCESS,
    WRITE,
    Arrived,
    Framing,
    commands,
    crc,
    failure,
    feed,
    ready_target,
    sent,
    split,
    term_req,
)

# -- commands -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("framing", FRAMINGS)
def test_batch(framing: Framing) -> None:
    t = ready_target(framing)
    [event] = feed(t, b"".join(framing.command(cid, READ, 4096) for cid in range(20)))
    assert isinstance(event, CommandBatch)
    assert (event.count, event.stride) == (20, 76 if framing.header_digest else 72)
    assert commands([event]) == list(range(20))
    assert t.in_flight == 20


@pytest.mark.parametrize("framing", FRAMINGS)
def test_in_capsule_data_ends_a_batch(framing: Framing) -> None:
    t = ready_target(framing)
    stream = [framing.command(0), framing.command(1), framing.command(2, WRITE, data=b"abc" * 1000), framing.command(3)]
    a, b, c = feed(t, b"".join(stream))
    assert commands([a, b, c]) == [0, 1, 2, 3]
    assert isinstance(b, CommandData)
    assert (bytes(b.data), b.digest_ok) == (b"abc" * 1000, True)
    assert b.sqe[0] == WRITE


def test_runs_of_every_length_and_alignment() -> None:
    """The batch is found by words of eight bytes where aligned, else one by one."""
    for before in (b"", Framing().command(100, WRITE, data=b"x"), Framing().command(100, WRITE, data=b"x" * 8)):
        for count in range(1, 12):
            t = ready_target(entries=64)
            odd = Framing().command(count, WRITE, data=b"y")
            events = feed(t, before + b"".join(Framing().command(cid) for cid in range(count)) + odd)
            assert commands(events) == ([100] if before else []) + [*range(count), count]
            assert sum(isinstance(event, CommandBatch) for event in events) == 1


def test_pdo_of_a_capsule_without_data_is_ignored() -> None:
    t = ready_target()
    command = bytearray(PLAIN.command(5))
    command[3] = 72
    [event] = feed(t, bytes(command) + PLAIN.command(6))[:1]
    assert isinstance(event, CommandBatch)
    assert commands([event])[0] == 5


@pytest.mark.parametrize("entries", [2, 32, 65536])
def test_as_many_commands_as_the_queue_holds(entries: int) -> None:
    count = min(entries, 100)
    t = ready_target(entries=entries)
    t.in_flight = entries - count
    events = feed(t, b"".join(PLAIN.command(cid) for cid in range(count)))
    assert len(commands(events)) == count
    assert failure(feed(t, PLAIN.command(count))) == (2, 0)


@pytest.mark.parametrize("framing", [PLAIN, BOTH])
def test_overflow_in_the_middle_of_a_batch(framing: Framing) -> None:
    """Commands that fit the queue are served; the first one beyond ends the connection."""
    t = ready_target(framing, entries=4)
    batch, end = feed(t, b"".join(framing.command(cid) for cid in range(9)))
    assert commands([batch]) == [0, 1, 2, 3]
    assert isinstance(end, ProtocolFailure)
    assert sent(t) == term_req(3, 2, 0, framing.command(4)[:72])


def test_overflow_by_in_capsule_data() -> None:
    t = ready_target(entries=1)
    events = feed(t, PLAIN.command(0, WRITE, data=b"x" * 512) * 2)
    assert commands(events) == [0]
    assert failure(events) == (2, 0)


def test_a_completion_makes_room() -> None:
    t = ready_target(entries=2)
    for cid in range(10):
        assert commands(feed(t, PLAIN.command(cid))) == [cid]
        t.send_completion(cid)
    assert t.in_flight == 0


@pytest.mark.parametrize("framing", FRAMINGS)
def test_in_capsule_data_up_to_the_limit(framing: Framing) -> None:
    t = ready_target(framing, incapsule_bytes=16384)
    [event] = feed(t, framing.command(1, WRITE, data=bytes(16384)))
    assert isinstance(event, CommandData)
    assert failure(feed(t, framing.command(2, WRITE, data=bytes(16385)))) == (1, 4)


def test_in_capsule_limit_can_change() -> None:
    t = ready_target()
    t.set_incapsule(0)
    assert failure(feed(t, PLAIN.command(2, WRITE, data=b"x"))) == (1, 4)
    with pytest.raises(LocalProtocolError):
        t.set_incapsule(1 << 20)


# -- digests ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [0, 1, 5, 19])
def test_header_digest_of_a_command(bad: int) -> None:
    """Commands before the broken one are served. FEI is the digest that was received."""
    framing = Framing(True)
    t = ready_target(framing)
    stream = bytearray(b"".join(framing.command(cid) for cid in range(20)))
    stream[bad * 76 + 72 : bad * 76 + 76] = b"\x01\x02\x03\x04"
    events = feed(t, bytes(stream))
    assert commands(events) == list(range(bad))
    assert failure(events) == (3, 0x04030201)
    assert sent(t) == term_req(3, 3, 0x04030201, framing.command(bad)[:72])


def test_a_broken_header_is_a_digest_error_wherever_it_is_broken() -> None:
    for position in range(2, 76):  # type and flags come before the digest
        t = ready_target(BOTH)
        pdu = bytearray(BOTH.command(1, WRITE, data=bytes(512)))
        digest = int.from_bytes(pdu[72:76], "little")
        pdu[position] ^= 0x10
        received = int.from_bytes(pdu[72:76], "little")
        assert failure(feed(t, bytes(pdu))) == (3, received), position
        assert (received == digest) == (position < 72), position


def test_header_digest_of_h2c_data() -> None:
    t = ready_target(BOTH)
    feed(t, BOTH.command(1, WRITE, 8))
    t.request_data(1, memoryview(bytearray(8)), None)
    pdu = bytearray(BOTH.h2c(1, 0, 0, bytes(8)))
    pdu[24] ^= 1
    assert failure(feed(t, bytes(pdu))) == (3, int.from_bytes(pdu[24:28], "little"))


@pytest.mark.parametrize("framing", [Framing(h, d) for h in (False, True) for d in (False, True)])
@pytest.mark.parametrize("other", [Framing(h, d) for h in (False, True) for d in (False, True)])
def test_digests_that_were_not_negotiated(framing: Framing, other: Framing) -> None:
    """In every PDU that has or lacks them, on both paths."""
    if framing == other:
        return
    for i in range(3):
        t = ready_target(framing)
        feed(t, framing.command(1, WRITE, 8))
        t.request_data(1, memoryview(bytearray(8)), None)
        pdu = [other.command(2), other.command(2, WRITE, data=b"12345678"), other.h2c(1, 0, 0, bytes(8))][i]
        if i == 0 and framing.header_digest == other.header_digest:
            assert commands(feed(t, pdu)) == [2]
        else:
            assert failure(feed(t, pdu)) == (1, 1)


def test_a_wrong_data_digest_of_a_capsule_fails_its_command_only() -> None:
    t = ready_target(BOTH)
    pdu = bytearray(BOTH.command(1, WRITE, data=bytes(512)))
    pdu[-1] ^= 1
    events = feed(t, bytes(pdu) + BOTH.command(2, WRITE, data=bytes(512)))
    assert [event.digest_ok for event in events if isinstance(event, CommandData)] == [False, True]
    assert t.state is State.TARGET_READY


@pytest.mark.parametrize("broken", range(3))
@pytest.mark.parametrize("size", [12, 3 * 40000])
def test_a_wrong_data_digest_of_any_h2c_data_fails_the_transfer(broken: int, size: int) -> None:
    t = ready_target(BOTH)
    feed(t, BOTH.command(1, WRITE, size))
    t.request_data(1, memoryview(bytearray(size)), "context")
    third = size // 3
    events = []
    for i in range(3):
        pdu = bytearray(BOTH.h2c(1, 0, i * third, b"\xaa" * third, last=i == 2))
        if i == broken:
            pdu[-1] ^= 0x80
        events += feed(t, bytes(pdu))
    assert events == [Arrived(1, "context", False)]
    assert t.state is State.TARGET_READY


# -- completions and data out -------------------------------------------------------------------------------------


@pytest.mark.parametrize("framing", FRAMINGS)
def test_completion(framing: Framing) -> None:
    t = ready_target(framing, qid=9, entries=4)
    feed(t, framing.command(3))
    t.send_completion(3, 0x4002, 0xA1A2A3A4, 0xB1B2B3B4)
    assert sent(t) == framing.response(3, 0x4002, sqhd=1, sqid=9, dw0=0xA1A2A3A4, dw1=0xB1B2B3B4)
    assert t.in_flight == 0


def test_sqhd_wraps_at_the_queues_size() -> None:
    t = ready_target(entries=3)
    heads = []
    for cid in range(7):
        feed(t, PLAIN.command(cid))
        t.send_completion(cid)
        heads.append(int.from_bytes(sent(t)[16:18], "little"))
    assert heads == [1, 2, 0, 1, 2, 0, 1]


def test_sqhd_of_the_largest_queue() -> None:
    t = ready_target(entries=65536)
    t._fetched = 65534
    feed(t, PLAIN.command(0) + PLAIN.command(1))
    t.send_completion(0)
    t.send_completion(1)
    assert [int.from_bytes(pdu[16:18], "little") for pdu in split(sent(t))] == [0, 0]


def test_sqhd_counts_connect() -> None:
    t = ready_target()
    t.set_queue(0, 32)
    feed(t, PLAIN.command(0))
    t.set_queue(5, 2)
    t.send_completion(0)
    assert sent(t) == PLAIN.response(0, sqhd=1, sqid=5)


def test_without_flow_control_only_connects_completion_has_an_sqhd() -> None:
    t = ready_target()
    feed(t, PLAIN.command(0) + PLAIN.command(1))
    t.set_queue(1, 32, flow_control=False)
    t.send_completion(0)
    t.send_completion(1)
    assert sent(t) == PLAIN.response(0, sqhd=0xFFFF) + PLAIN.response(1, sqhd=0)


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("flow_control", [True, False])
@pytest.mark.parametrize("hpda", [0, 2, 31])
def test_read(framing: Framing, flow_control: bool, hpda: int) -> None:
    t = ready_target(framing, flow_control=flow_control, hpda=hpda)
    t._announce_disabled = False
    feed(t, framing.command(3))
    out = Framing(framing.header_digest, framing.data_digest, 4 * (hpda + 1))
    data = bytes(range(256)) * 2
    t.send_read(3, data)
    if flow_control:
        assert sent(t) == out.c2h(3, 0, data, LAST) + out.response(3, sqhd=1)
    else:
        assert sent(t) == out.c2h(3, 0, data, LAST | SUCCESS)
    assert t.in_flight == 0


@pytest.mark.parametrize("answer", [(0x4002, 0, 0), (0, 5, 0), (0, 0, 5)])
def test_success_flag_only_for_plain_success(answer: tuple[int, int, int]) -> None:
    t = ready_target(flow_control=False)
    t._announce_disabled = False
    feed(t, PLAIN.command(3))
    t.send_read(3, b"data", *answer)
    assert sent(t) == PLAIN.c2h(3, 0, b"data", LAST) + PLAIN.response(3, answer[0], dw0=answer[1], dw1=answer[2])
    assert t.in_flight == 0


def test_read_of_nothing_is_a_completion() -> None:
    t = ready_target(flow_control=False)
    t._announce_disabled = False
    feed(t, PLAIN.command(3))
    released = []
    t.send_read(3, b"", release=lambda: released.append(1))
    assert sent(t) == PLAIN.response(3)
    assert released == [1]


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("flow_control", [True, False])
@pytest.mark.parametrize("hpda", [0, 31])
def test_reads_sent_together_equal_reads_one_by_one(framing: Framing, flow_control: bool, hpda: int) -> None:
    memory = bytes(range(256)) * 64
    views = [memory[i * 512 : i * 512 + 512] for i in range(8)]
    streams = []
    for at_once in (False, True):
        t = ready_target(framing, flow_control=flow_control, hpda=hpda)
        t._announce_disabled = False
        feed(t, b"".join(framing.command(cid) for cid in range(8)))
        if at_once:
            t.send_reads(range(8), list(views), 512)
        else:
            for cid, view in enumerate(views):
                t.send_read(cid, view)
        assert t.in_flight == 0
        total = t.backlog_bytes
        streams.append(sent(t))
        assert len(streams[-1]) == total
    assert streams[0] == streams[1]


def test_stored_lengths_are_bounded() -> None:
    t = ready_target(entries=65536)
    t.in_flight = 500
    for length in range(1, 500):
        t.send_reads([length], [bytes(length)], length)
        assert sent(t)[:24] == PLAIN.c2h(length, 0, bytes(length))[:24]
    assert len(t.encoder._success_headers) <= 65


def test_data_digest_is_that_of_the_data() -> None:
    t = ready_target(Framing(False, True))
    feed(t, PLAIN.command(3))
    t.send_read(3, b"123456789")
    assert sent(t)[24 : 24 + 13] == b"123456789" + crc(b"123456789")


def test_backlog_stops_reading_until_it_is_taken() -> None:
    t = ready_target(entries=1024)
    t.in_flight = 1024
    block = bytes(1 << 20)
    for cid in range(8):
        t.send_read(cid, block)
        assert t.want_read == (cid < 7), cid
    assert t.backlog_bytes > 8 << 20
    sent(t, 1 << 20)
    assert t.want_read
    sent(t)
    for cid in range(5000):
        t.send_completion(cid)
    assert not t.want_read
    sent(t)  # type: ignore[unreachable]
    assert t.want_read


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("flow_control", [True, False])
@pytest.mark.parametrize("announce", [True, False])
def test_completions_sent_together_equal_completions_one_by_one(
    framing: Framing, flow_control: bool, announce: bool
) -> None:
    streams = []
    for at_once in (False, True):
        t = ready_target(framing, flow_control=flow_control)
        t._announce_disabled = announce and not flow_control
        feed(t, b"".join(framing.command(cid) for cid in range(8)))
        if at_once:
            t.send_completions(range(8))
        else:
            for cid in range(8):
                t.send_completion(cid)
        assert t.in_flight == 0
        streams.append(sent(t))
    assert streams[0] == streams[1]


@pytest.mark.parametrize("framing", FRAMINGS)
def test_runs_of_in_capsule_data(framing: Framing) -> None:
    """Lengths differ, one has a wrong digest where there are digests, one comes with more padding than needed."""
    t = ready_target(framing)
    data = [b"a" * 512, b"b" * 4096, b"c" * 8192, b"d", b"e" * 512]
    capsules = [framing.command(cid, WRITE, data=part) for cid, part in enumerate(data)]
    if framing.data_digest:
        capsules[1] = capsules[1][:-1] + bytes([capsules[1][-1] ^ 1])
    capsules[3] = Framing(framing.header_digest, framing.data_digest, 96 if framing.pda < 96 else 128).command(
        3, WRITE, data=data[3]
    )
    events = feed(t, b"".join(capsules))
    assert [bytes(event.data) for event in events] == data
    assert [event.digest_ok for event in events] == [cid != 1 or not framing.data_digest for cid in range(5)]
    assert t.in_flight == 5
