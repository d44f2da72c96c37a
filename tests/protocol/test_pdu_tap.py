"""The tap that counts PDUs: the same counts however a stream is cut; a receive and a send are one report each."""

from __future__ import annotations

import struct
from collections import Counter
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from nvmeof.protocol.connection import Tap
from nvmeof.protocol.pdu_tap import PduSplitter, PduTap, Taps
from nvmeof.wire import Buffer

from .wire import LAST, SUCCESS, WRITE, Framing, feed, ready_host, ready_target, sent, sqe

PLAIN = Framing()
COMMAND, RESPONSE, H2C, C2H, R2T = 4, 5, 6, 7, 9
Report = tuple[bool, dict[int, int], int]


class Reports(list[Report]):
    def __call__(self, sent: bool, counts: dict[int, int], size_bytes: int) -> None:
        self.append((sent, dict(counts), size_bytes))


def pdu(kind: int, plen: int) -> bytes:
    return struct.pack("<BBBBI", kind, 0, 0, 0, plen).ljust(plen, b"x")


@given(
    st.lists(st.tuples(st.sampled_from([0, 4, 5, 6, 7, 9, 200]), st.integers(8, 300)), max_size=12),
    st.lists(st.integers(0, 4000), max_size=30),
    st.integers(0, 300),
)
def test_counts_do_not_depend_on_the_cuts(pdus: list[tuple[int, int]], cuts: list[int], missing: int) -> None:
    stream = b"".join(pdu(*each) for each in pdus)
    stream = stream[: max(len(stream) - missing, 0)]
    splitter, counts, size = PduSplitter(), Counter[int](), 0
    places = sorted({min(cut, len(stream)) for cut in cuts} | {0, len(stream)})
    for start, end in pairwise(places):
        splitter.feed(memoryview(stream)[start:end])
        if start % 2:
            found, more = splitter.take()
            counts.update(found)
            size += more
    found, more = splitter.take()
    counts.update(found)
    whole, expected = 0, Counter[int]()
    for kind, plen in pdus:
        whole += plen
        if whole <= len(stream):
            expected[kind] += 1
    assert counts == expected
    assert size + more == len(stream)


@given(st.integers(0, 7), st.integers(1, 20))
def test_after_a_length_that_cannot_be_bytes_are_counted_alone(plen: int, step: int) -> None:
    splitter = PduSplitter()
    stream = pdu(COMMAND, 72) + struct.pack("<BBBBI", 5, 0, 0, 0, plen) + pdu(R2T, 24)
    for at in range(0, len(stream), step):
        splitter.feed(stream[at : at + step])
    assert splitter.take() == ({COMMAND: 1}, 72 + 8 + 24)


def test_a_receive_and_a_send_are_one_report_each() -> None:
    """Several buffers of one send; a payload that is received in place, with the beginning of what comes behind it."""
    t, reports = ready_target(), Reports()
    t.tap = PduTap(reports)
    feed(t, b"".join(PLAIN.command(cid) for cid in range(3)) + PLAIN.command(9, WRITE, 40_000))
    assert reports == [(False, {COMMAND: 4}, 4 * 72)]
    reports.clear()
    t.send_reads([0, 1, 2], [bytes(512)] * 3, 512)
    t.request_data(9, memoryview(bytearray(40_000)), None)
    out = sent(t)
    assert reports == [(True, {C2H: 3, RESPONSE: 3, R2T: 1}, len(out))]
    reports.clear()
    data = PLAIN.h2c(9, 0, 0, bytes(40_000)) + PLAIN.command(10)
    buffer = t.next_buffer()
    buffer[:24] = data[:24]
    t.bytes_received(24, 0.0)
    place, behind = t.next_buffer(), t.behind
    assert len(place) == 40_000 and behind is not None
    behind[:72] = data[-72:]
    t.bytes_received(40_072, 0.0)
    assert reports == [(False, {}, 24), (False, {H2C: 1, COMMAND: 1}, 40_072)]


def test_a_payload_in_place_without_anything_behind_it_is_reported() -> None:
    h, reports = ready_host(), Reports()
    h.tap = PduTap(reports)
    h.send_command(1, sqe(), data_in=memoryview(bytearray(40_000)))
    sent(h)
    sent(h)  # nothing is sent: nothing is reported
    answer = PLAIN.c2h(1, 0, bytes(40_000), LAST | SUCCESS)
    feed(h, answer, 10_000)
    assert reports[0] == (True, {COMMAND: 1}, 72)
    assert [each[1] for each in reports[1:]] == [{}] * (len(reports) - 2) + [{C2H: 1}]
    assert sum(each[2] for each in reports[1:]) == len(answer)


def test_two_taps_see_the_same() -> None:
    class Recorder(Tap):
        seen = b""

        def received(self, data: memoryview) -> None:
            self.seen += b"<" + bytes(data)

        def sent(self, data: Buffer) -> None:
            self.seen += b">" + bytes(data)

    t, recorder, reports = ready_target(), Recorder(), Reports()
    t.tap = Taps(recorder, PduTap(reports))
    feed(t, PLAIN.command(1))
    t.send_completion(1)
    out = sent(t)
    assert recorder.seen == b"<" + PLAIN.command(1) + b">" + out
    assert reports == [(False, {COMMAND: 1}, 72), (True, {RESPONSE: 1}, 24)]
