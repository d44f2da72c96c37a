"""TTAGs: never one that is in use, both ends of the range."""

from __future__ import annotations

import pytest

from nvmeof.errors import LocalProtocolError
from nvmeof.protocol.events import TransferDone
from nvmeof.protocol.transfers import MAX_TTAG, Grant, R2tTable

from .wire import WRITE, Framing, feed, ready_target, sent, split

PLAIN = Framing()


def test_ttags_count_up_and_wrap() -> None:
    table = R2tTable()
    grant = Grant(1, memoryview(bytearray(8)), None)
    seen = []
    for _ in range(MAX_TTAG + 3):
        window = table.open(grant, 1)
        seen.append(window.ttag)
        table.close(window)
    assert seen == [*range(MAX_TTAG + 1), 0, 1]
    assert table.granted_bytes == 0


def test_ttags_in_use_are_skipped() -> None:
    table = R2tTable()
    grant = Grant(1, memoryview(bytearray(8)), None)
    kept = {table.open(grant, 1).ttag for _ in range(3)}
    last = None
    for _ in range(MAX_TTAG - 2):
        last = table.open(grant, 1)
    assert last is not None
    assert last.ttag == MAX_TTAG
    assert table.full
    table.close(last)
    assert len(table.windows) == MAX_TTAG
    assert table.open(grant, 1).ttag == MAX_TTAG
    assert kept == {0, 1, 2}
    table.close(table.windows[1])
    assert table.open(grant, 1).ttag == 1


def test_data_under_the_lowest_and_the_highest_ttag() -> None:
    t = ready_target()
    t._r2ts._last = MAX_TTAG - 1
    feed(t, PLAIN.command(1, WRITE, 4) + PLAIN.command(2, WRITE, 4))
    for cid in (1, 2):
        t.request_data(cid, memoryview(bytearray(4)), None)
    assert [int.from_bytes(pdu[10:12], "little") for pdu in split(sent(t))] == [0xFFFF, 0]
    events = feed(t, PLAIN.h2c(2, 0, 0, b"abcd") + PLAIN.h2c(1, 0xFFFF, 0, b"abcd"))
    assert events == [TransferDone(2, None, True), TransferDone(1, None, True)]
    assert not t._r2ts.windows


def test_no_ttag_left() -> None:
    t = ready_target(maxr2t=1 << 32, r2t_bytes=4, entries=65536)
    feed(t, PLAIN.command(1, WRITE, 1 << 19))
    buffer = memoryview(bytearray(1 << 19))
    t.request_data(1, buffer, None)
    assert len(t._r2ts.windows) == 65536
    assert t.granted_bytes == 65536 * 4
    with pytest.raises(LocalProtocolError):
        t.request_data(2, buffer, None)
    sent(t)
    feed(t, PLAIN.h2c(1, 5, 20, b"abcd"))
    assert sent(t) == PLAIN.r2t(1, 5, 65536 * 4, 4)


def test_asking_again_and_again_is_bounded_by_the_data() -> None:
    """A host may allow 2^32 R2Ts; what is asked for is what it has, no more."""
    t = ready_target(maxr2t=1 << 32)
    feed(t, PLAIN.command(1, WRITE, 8))
    t.request_data(1, memoryview(bytearray(8)), None)
    assert sent(t) == PLAIN.r2t(1, 0, 0, 8)
