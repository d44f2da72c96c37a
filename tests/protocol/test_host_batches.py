"""Batches of commands: the bytes of as many single commands, and all possible answers."""

from __future__ import annotations

import struct

import pytest

from nvmeof.errors import LocalProtocolError
from nvmeof.protocol.events import Completions
from nvmeof.spec.status import Status

from .test_host import FRAMINGS
from .wire import LAST, READ, SUCCESS, WRITE, Framing, failure, feed, ready_host, sent, sqe

SLBAS = [0, 7, 0x1_2345_6789, (1 << 64) - 8]
CIDS = [5, 0xFFFF, 0, 0x1234]


def at(slba: int, opcode: int) -> bytes:
    """Return an SQE with an SLBA, and other fields set too."""
    return struct.pack("<BBHI", opcode, 0, 0, 3) + bytes(32) + struct.pack("<QII", slba, 7 | 1 << 30, 0) + b"\x77" * 8


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("cpda", [0, 31])
@pytest.mark.parametrize("size", [512, 4096, 65536])
def test_a_batch_equals_as_many_commands(framing: Framing, cpda: int, size: int) -> None:
    one, many = (ready_host(framing, cpda=cpda, incapsule_bytes=4096) for _ in range(2))
    buffers = [memoryview(bytearray([index]) * size) for index in range(4)]
    for cid, slba, buffer in zip(CIDS, SLBAS, buffers, strict=True):
        one.send_command(cid, at(slba, READ), data_in=buffer)
    many.send_reads(CIDS, at(99, READ), SLBAS, buffers)
    assert sent(many) == sent(one)
    more = [cid ^ 0x100 for cid in CIDS]
    for cid, slba, buffer in zip(more, SLBAS, buffers, strict=True):
        one.send_command(cid, at(slba, WRITE), buffer)
    many.send_writes(more, at(99, WRITE), SLBAS, buffers)
    assert sent(many) == sent(one)
    assert many.outstanding == one.outstanding == 8


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("flag", [0, SUCCESS])
@pytest.mark.parametrize("cut", [1, 100, 1 << 20])
def test_answers_in_any_order_and_cut_anywhere(framing: Framing, flag: int, cut: int) -> None:
    h = ready_host(framing)
    buffers = [memoryview(bytearray(1000)) for _ in range(4)]
    h.send_reads(CIDS, at(0, READ), SLBAS, buffers)
    stream = b""
    for index in (2, 0, 3, 1):
        stream += framing.c2h(CIDS[index], 0, bytes([index + 1]) * 1000, LAST | flag)
        if not flag:
            stream += framing.response(CIDS[index], dw0=index)
    events = [event for start in range(0, len(stream), cut) for event in feed(h, stream[start : start + cut])]
    assert all(isinstance(event, Completions) for event in events)
    assert [entry[:2] for event in events for entry in event.entries] == [(CIDS[index], 0) for index in (2, 0, 3, 1)]
    assert [bytes(buffer) for buffer in buffers] == [bytes([index + 1]) * 1000 for index in range(4)]
    assert not h.outstanding


def test_data_in_parts_after_a_batch() -> None:
    """Data that is not in one PDU takes the general path, with the same result."""
    f, h = Framing(), ready_host()
    buffers = [memoryview(bytearray(100)) for _ in range(4)]
    h.send_reads(CIDS, at(0, READ), SLBAS, buffers)
    stream = f.c2h(CIDS[0], 0, b"a" * 60, 0) + f.c2h(CIDS[1], 0, b"b" * 100) + f.c2h(CIDS[0], 60, b"A" * 40)
    stream += f.response(CIDS[0]) + f.response(CIDS[1])
    stream += f.response(CIDS[2])  # success without data
    stream += f.response(CIDS[3], status=Status.LBA_OUT_OF_RANGE << 1)
    entries = [entry[:2] for event in feed(h, stream) for entry in event.entries]
    assert entries == [
        (CIDS[0], 0),
        (CIDS[1], 0),
        (CIDS[2], Status.DATA_TRANSFER_ERROR << 1),
        (CIDS[3], Status.LBA_OUT_OF_RANGE << 1),
    ]
    assert bytes(buffers[0]) == b"a" * 60 + b"A" * 40


@pytest.mark.parametrize(
    "stream",
    [
        Framing().c2h(5, 0, b"b" * 100) * 2,
        Framing().c2h(5, 0, b"b" * 100) + Framing().r2t(5, 1, 0, 10),
        Framing().c2h(5, 0, b"b" * 101),
        Framing().c2h(5, 1, b"b" * 99),
        Framing().response(6),
        Framing().c2h(5, 0, b"b" * 100) + Framing().response(5) * 2,
    ],
)
def test_wrong_answers_to_a_batch_end_the_connection(stream: bytes) -> None:
    h = ready_host()
    h.send_reads([5], at(0, READ), [0], [memoryview(bytearray(100))])
    assert failure(feed(h, stream))


def test_a_released_buffer_is_not_touched() -> None:
    f, h = Framing(), ready_host()
    buffers = [memoryview(bytearray(100)) for _ in range(2)]
    h.send_reads([1, 2], at(0, READ), [0, 1], buffers)
    feed(h, f.c2h(1, 0, b"x" * 100))  # the response is due
    h.give_back(1)
    h.give_back(2)
    buffers[0][:] = bytes(100)
    events = feed(h, f.response(1) + f.c2h(2, 0, b"y" * 100) + f.response(2))
    assert [entry[:2] for event in events for entry in event.entries] == [(1, 0), (2, 0)]
    assert not any(buffers[0]) and not any(buffers[1])


def test_released_data_of_a_batch_is_sent_unchanged() -> None:
    h = ready_host(incapsule_bytes=4096)
    data = bytearray(b"q" * 512)
    h.send_writes([1], at(0, WRITE), [0], [memoryview(data)])
    h.give_back(1, memoryview(data))
    data[:] = bytes(512)
    assert sent(h).endswith(b"q" * 512)


def test_misuse_of_a_batch() -> None:
    h = ready_host()
    buffer = memoryview(bytearray(512))
    h.send_reads([1], at(0, READ), [0], [buffer])
    h.send_command(2, sqe())
    for cids, buffers in [
        ([3, 1], [buffer, buffer]),
        ([2], [buffer]),
        ([3], [buffer, buffer]),
        ([3, 4], [buffer, buffer[:256]]),
    ]:
        with pytest.raises(LocalProtocolError):
            h.send_reads(cids, at(0, READ), [0] * len(cids), buffers)
    with pytest.raises(LocalProtocolError, match="in use"):
        h.send_command(1, sqe())
    h.close()
    with pytest.raises(LocalProtocolError, match="state"):
        h.send_writes([9], at(0, WRITE), [0], [buffer])
