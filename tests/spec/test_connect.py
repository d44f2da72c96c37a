"""Connect data, and how a refused Connect points at the bad field."""

from __future__ import annotations

import pytest

from nvmeof.spec.connect import (
    CONNECT,
    CONNECT_DATA,
    PROPERTY_SET,
    Authreq,
    Cattr,
    Connect,
    PropertyGet,
    PropertySet,
    connect_invalid_dw0,
    describe_connect_invalid,
)
from nvmeof.wire import build, layout


def test_connect_data_layout() -> None:
    assert CONNECT_DATA.sizeof() == 1024
    assert layout(CONNECT_DATA) == {"hostid": (0, 16), "cntlid": (16, 2), "subnqn": (256, 256), "hostnqn": (512, 256)}


def test_connect_data_as_bytes() -> None:
    data = build(CONNECT_DATA, hostid=bytes(range(16)), cntlid=0xFFFF, subnqn="nqn.a:b", hostnqn="nqn.c:d")
    assert data[:18] == bytes(range(16)) + b"\xff\xff"
    assert data[18:256] == bytes(238)
    assert data[256:264] == b"nqn.a:b\0"
    assert data[512:520] == b"nqn.c:d\0"
    assert CONNECT_DATA.build(CONNECT_DATA.parse(data)) == data


@pytest.mark.parametrize(
    ("field", "dw0"),
    [
        ("hostid", 0x10000), ("cntlid", 0x10010), ("subnqn", 0x10100), ("hostnqn", 0x10200), ("recfmt", 40),
        ("qid", 42), ("sqsize", 44), ("cattr", 46), ("kato", 48),
    ],
)  # fmt: skip
def test_invalid_parameter_offset(field: str, dw0: int) -> None:
    assert connect_invalid_dw0(field) == dw0
    assert describe_connect_invalid(dw0).startswith(field + " in the Connect ")


def test_invalid_parameter_of_no_field() -> None:
    with pytest.raises(KeyError):
        connect_invalid_dw0("nothing")
    assert describe_connect_invalid(0x10011) == "byte 17 in the Connect data"


def test_connect_command_of_linux() -> None:
    raw = bytearray(64)
    raw[0], raw[1], raw[4] = 0x7F, 0x40, 0x01
    raw[40:52] = bytes.fromhex("000001007f00040088130000")
    connect = CONNECT.unpack_from(raw)
    assert (connect.opcode, connect.fctype, connect.qid, connect.entries) == (0x7F, 1, 1, 128)
    assert connect.kato_seconds == 5.0
    assert not connect.flow_control
    assert Connect(cattr=Cattr.PRIORITY_LOW).flow_control


def test_property_sizes() -> None:
    assert [PropertyGet(attrib=attrib).size_bytes for attrib in (0, 1, 2, 7, 8, 9)] == [4, 8, 0, 0, 4, 8]
    assert PropertySet(attrib=1).size_bytes == 8
    assert PROPERTY_SET.pack(PropertySet(ofst=0x14, value=0x460001))[40:56].hex() == (
        "00000000140000000100460000000000"
    )


def test_flags() -> None:
    assert Authreq.ATR == 0x20000
    assert Authreq.ASCR == 0x40000
    assert Cattr.DISABLE_SQ_FLOW_CONTROL == 4
    assert Cattr.IO_QUEUE_DELETION == 8
