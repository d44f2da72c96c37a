"""TTAGs: never one that is in use, both ends of the range."""

from __future__ import annotations

import pytest

from nvmeof.errors import LocalProtocolError
from nvmeof.protocol.transfers import MAX_TTAG, R2tTable, R2tTransfer

from .wire import WRITE, Arrived, Framing, feed, ready_target, sent, split

PLAIN = Framing()


def test_ttags_count_up_and_wrap() -> None:
    table = R2tTable()
    transfer = R2tTransfer(1, memoryview(bytearray(8)))
    seen = []
    for _ in range(MAX_TTAG + 3):
        part = table.open_part(transfer, 1)
        seen.append(part.ttag)
        del table.open[part.ttag]
    assert seen == [*range(MAX_TTAG + 1), 0, 1]
    assert table.asked_bytes == 0


def test_ttags_in_use_are_skipped() -> None:
    table = R2tTable()
    transfer = R2tTransfer(1, memoryview(bytearray(8)))
    kept = {table.open_part(transfer, 1).ttag for _ in range(3)}
    last = None
    for _ in range(MAX_TTAG - 2):
        last = table.open_part(transfer, 1)
    assert last is not None
    assert last.ttag == MAX_TTAG
    assert table.full
    del table.open[last.ttag]
    assert len(table.open) == MAX_TTAG
    assert table.open_part(transfer, 1).ttag == MAX_TTAG
    assert kept == {0, 1, 2}
    del table.open[1]
    assert table.open_part(transfer, 1).ttag == 1


def test_data_under_the_lowest_and_the_highest_ttag() -> None:
    t = ready_target()
    t._r2ts._last = MAX_TTAG - 1
    feed(t, PLAIN.command(1, WRITE, 4) + PLAIN.command(2, WRITE, 4))
    for cid in (1, 2):
        t.request_data(cid, memoryview(bytearray(4)), None)
    assert [int.from_bytes(pdu[10:12], "little") for pdu in split(sent(t))] == [0xFFFF, 0]
    events = feed(t, PLAIN.h2c(2, 0, 0, b"abcd") + PLAIN.h2c(1, 0xFFFF, 0, b"abcd"))
    assert events == [Arrived(2, None, True), Arrived(1, None, True)]
    assert not t._r2ts.open


def test_no_ttag_left() -> None:
    t = ready_target(maxr2t=1 << 32, r2t_bytes=4, entries=65536)
    feed(t, PLAIN.command(1, WRITE, 1 << 19))
    buffer = memoryview(bytearray(1 << 19))
    t.request_data(1, buffer, None)
    assert len(t._r2ts.open) == 65536
    assert t.asked_bytes == 65536 * 4
    with pytest.raises(LocalProtocolError):
        t.request_data(2, buffer, None)
    sent(t)
    feed(t, PLAIN.h2c(1, 5, 20, b"abcd"))
    assert sent(t) == PLAIN.r2t(1, 5, 65536 * 4, 4)


def test_requests_are_bounded_by_the_data() -> None:
    """A host may allow 2^32 R2Ts; the target asks for no more than the data."""
    t = ready_target(maxr2t=1 << 32)
    feed(t, PLAIN.command(1, WRITE, 8))
    t.request_data(1, memoryview(bytearray(8)), None)
    assert sent(t) == PLAIN.r2t(1, 0, 0, 8)
