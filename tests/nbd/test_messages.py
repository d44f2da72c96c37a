"""The layouts of NBD's messages, against literals from the protocol's document."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeof.nbd import messages as m
from nvmeof.nbd import option_data as od
from nvmeof.nbd.numbers import AllocationFlags, errno_of
from nvmeof.wire import Record

U16, U32, U64 = (st.integers(0, (1 << bits) - 1) for bits in (16, 32, 64))
NAMES = st.text(max_size=40)


@pytest.mark.parametrize(
    ("record", "size"),
    [
        (m.OPTION, 16),
        (m.OPTION_REPLY, 20),
        (m.REQUEST, 28),
        (m.EXTENDED_REQUEST, 32),
        (m.SIMPLE_REPLY, 16),
        (m.STRUCTURED_REPLY, 20),
        (m.EXTENDED_REPLY, 32),
        (m.EXPORT_INFO, 12),
        (m.BLOCK_SIZES, 14),
    ],
    ids=lambda value: value.cls.__name__ if isinstance(value, Record) else "",
)
def test_sizes(record: Record[object], size: int) -> None:
    assert record.size == size


def test_literals() -> None:
    assert m.pack_request(1, 3, 7, 0x1000, 512).hex() == f"2560951300030001{7:016x}{0x1000:016x}00000200"
    assert (
        m.pack_extended_request(6, 2, 7, 0, 1 << 33).hex() == f"21e41c71000200060000000000000007{0:016x}{1 << 33:016x}"
    )
    assert m.pack_simple_reply(9, 22).hex() == f"6744669800000016{9:016x}"
    assert m.pack_structured_reply(1, 0x8001, 5, 6).hex() == f"668e33ef00018001{5:016x}00000006"
    assert m.pack_extended_reply(1, 1, 5, 4096, 520).hex() == f"6e8a278c00010001{5:016x}{4096:016x}{520:016x}"
    assert m.pack_option(7, b"abc").hex() == "49484156454f50540000000700000003616263"
    assert m.pack_option_reply(7, 1).hex() == "0003e889045565a9000000070000000100000000"


@given(flags=U16, command=U16, cookie=U64, offset=U64, length=U64)
def test_requests(flags: int, command: int, cookie: int, offset: int, length: int) -> None:
    wide = m.EXTENDED_REQUEST.unpack_from(m.pack_extended_request(command, flags, cookie, offset, length))
    assert (wide.command, wide.flags, wide.cookie, wide.offset, wide.length) == (command, flags, cookie, offset, length)
    compact = m.REQUEST.unpack_from(m.pack_request(command, flags, cookie, offset, length & 0xFFFFFFFF))
    assert (compact.cookie, compact.offset, compact.length) == (cookie, offset, length & 0xFFFFFFFF)


@given(export=NAMES, infos=st.lists(U16, max_size=8), queries=st.lists(NAMES, max_size=8))
def test_option_data(export: str, infos: list[int], queries: list[str]) -> None:
    info = od.InfoRequest(export, tuple(infos))
    assert od.InfoRequest.parse(info.pack()) == info
    contexts = od.ContextRequest(export, tuple(queries))
    assert od.ContextRequest.parse(contexts.pack()) == contexts
    assert od.parse_server(od.pack_server(export, "what")) == (export, "what")
    assert od.parse_context(od.pack_context(3, export)) == (3, export)


@given(data=st.binary(max_size=64))
def test_any_option_data_is_read_or_refused(data: bytes) -> None:
    for parse in (od.InfoRequest.parse, od.ContextRequest.parse, od.parse_server, od.parse_context, od.parse_error):
        try:
            parse(data)
        except od.NbdProtocolError:
            pass


EXTENTS = st.lists(st.tuples(st.integers(1, 0xFFFFFFFF), st.integers(0, 3)), min_size=1, max_size=20)


@given(extents=EXTENTS)
def test_block_status(extents: list[tuple[int, int]]) -> None:
    assert od.parse_status(od.pack_status(1, extents), extended=False) == (1, extents)
    assert od.parse_status(od.pack_status_extended(1, extents), extended=True) == (1, extents)


@pytest.mark.parametrize("payload", [b"", bytes(4), bytes(11), struct.pack(">III", 1, 0, AllocationFlags.HOLE)])
def test_invalid_block_status(payload: bytes) -> None:
    with pytest.raises(od.NbdProtocolError):
        od.parse_status(payload, extended=False)


def test_errors() -> None:
    assert od.parse_error(od.pack_error(28, "no room")) == (28, "no room")
    assert od.parse_error(od.pack_error(5, "here", 4096)[:-8]) == (5, "here")
    with pytest.raises(od.NbdProtocolError, match="no error"):
        od.parse_error(od.pack_error(0))
    assert errno_of(108) == 108 and errno_of(12345) == 22
