"""Every PDU's fields against the byte numbers of the NVMe TCP Transport specification, section 3.6."""

from __future__ import annotations

import dataclasses
from struct import Struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeof.pdu import capsule, handshake, header, termination, transfer
from nvmeof.wire import Record

CH = {"pdu_type": (0, 1), "flags": (1, 1), "hlen": (2, 1), "pdo": (3, 1), "plen": (4, 4)}

LAYOUTS: dict[str, tuple[Record[Any], int, dict[str, tuple[int, int]]]] = {
    "CH": (header.CH, 8, {}),
    "ICReq": (handshake.ICREQ, 128, {"pfv": (8, 2), "hpda": (10, 1), "dgst": (11, 1), "maxr2t": (12, 4)}),
    "ICResp": (handshake.ICRESP, 128, {"pfv": (8, 2), "cpda": (10, 1), "dgst": (11, 1), "maxh2cdata": (12, 4)}),
    "TermReq": (termination.TERM_REQ, 24, {"fes": (8, 2), "fei": (10, 4)}),
    "H2CData": (transfer.H2C_DATA, 24, {"cccid": (8, 2), "ttag": (10, 2), "datao": (12, 4), "datal": (16, 4)}),
    "C2HData": (transfer.C2H_DATA, 24, {"cccid": (8, 2), "datao": (12, 4), "datal": (16, 4)}),
    "R2T": (transfer.R2T_PDU, 24, {"cccid": (8, 2), "ttag": (10, 2), "r2to": (12, 4), "r2tl": (16, 4)}),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_sizes_and_offsets(name: str) -> None:
    record, size, fields = LAYOUTS[name]
    assert record.size == record.struct.size == size
    assert record.declaration.sizeof() == size
    assert {field: (record.offsets[field], record.widths[field]) for field in record.offsets} == CH | fields


def test_capsules() -> None:
    assert capsule.CAPSULE_CMD_BYTES == 72
    assert capsule.CAPSULE_RESP_BYTES == capsule.CAPSULE_RESP.size == 24
    assert capsule.command_header(1, 0, 76).hex() == "040148004c000000"
    response = capsule.CAPSULE_RESP.pack(5, 1, 24, 0, 28, 0x11223344, 0x55667788, 0x99AA, 0xBBCC, 0xDDEE, 0xFF00)
    assert response.hex() == "050118001c0000004433221188776655aa99ccbbeedd00ff"


def test_numbers() -> None:
    assert {t.name: t.value for t in header.PduType} == {
        "ICREQ": 0x00,
        "ICRESP": 0x01,
        "H2C_TERM_REQ": 0x02,
        "C2H_TERM_REQ": 0x03,
        "CAPSULE_CMD": 0x04,
        "CAPSULE_RESP": 0x05,
        "H2C_DATA": 0x06,
        "C2H_DATA": 0x07,
        "R2T": 0x09,
    }
    names = ("HDGSTF", "DDGSTF", "LAST_PDU", "SUCCESS")
    assert [getattr(header.Flags, name) for name in names] == [1, 2, 4, 8]
    assert {f.name: f.value for f in termination.Fes} == {
        "INVALID_HEADER_FIELD": 1,
        "PDU_SEQUENCE_ERROR": 2,
        "HEADER_DIGEST_ERROR": 3,
        "DATA_OUT_OF_RANGE": 4,
        "LIMIT_EXCEEDED": 5,
        "UNSUPPORTED_PARAMETER": 6,
    }
    assert {d.name: d.value for d in handshake.Dgst} == {"HDGST_ENABLE": 1, "DDGST_ENABLE": 2}
    assert (header.TYPE_OFFSET, header.FLAGS_OFFSET, header.HLEN_OFFSET, header.PDO_OFFSET, header.PLEN_OFFSET) == (
        0,
        1,
        2,
        3,
        4,
    )
    assert (transfer.CCCID_OFFSET, transfer.TTAG_OFFSET, transfer.DATAO_OFFSET, transfer.DATAL_OFFSET) == (
        8,
        10,
        12,
        16,
    )


@pytest.mark.parametrize(("pda", "alignment"), [(0, 4), (1, 8), (30, 124), (31, 128)])
def test_data_alignment_is_a_0s_based_count_of_dwords(pda: int, alignment: int) -> None:
    assert handshake.pda_to_bytes(pda) == alignment
    assert handshake.pda_from_bytes(alignment) == pda


@given(st.integers(0, 1000), st.integers(1, 32).map(lambda n: 4 * n))
def test_align(offset: int, alignment: int) -> None:
    aligned = header.align(offset, alignment)
    assert aligned % alignment == 0
    assert offset <= aligned < offset + alignment


@given(st.data())
@pytest.mark.parametrize("name", LAYOUTS)
def test_derived_and_declared_codec_agree(name: str, data: st.DataObject) -> None:
    record, size, _ = LAYOUTS[name]
    values = {field: data.draw(st.integers(0, 2 ** (8 * width) - 1), field) for field, width in record.widths.items()}
    obj = record.cls(**values)
    raw = record.pack(obj)
    assert len(raw) == size
    assert raw == record.declaration.build(values)
    assert record.unpack_from(raw) == obj
    assert dataclasses.asdict(record.unpack_from(b"\xee" + raw, 1)) == values
    into = bytearray(size + 2)
    record.pack_into(into, 1, obj)
    assert into == b"\0" + raw + b"\0"


@given(raw=st.binary(min_size=128, max_size=128))
@pytest.mark.parametrize("name", LAYOUTS)
def test_any_bytes_decode_alike(name: str, raw: bytes) -> None:
    record, size, _ = LAYOUTS[name]
    parsed = record.declaration.parse(raw[:size])
    assert dataclasses.asdict(record.unpack_from(raw)) == {field: parsed[field] for field in record.offsets}


def test_fields_are_little_endian() -> None:
    raw = transfer.H2C_DATA.pack(transfer.H2CData(6, 4, 24, 24, 0x01020304, 0x0506, 0x0708, 0x090A0B0C, 0x0D0E0F10))
    assert raw == Struct("<4BIHHII4x").pack(6, 4, 24, 24, 0x01020304, 0x0506, 0x0708, 0x090A0B0C, 0x0D0E0F10)
    assert raw.hex() == "060418180403020106050807" + "0c0b0a09" + "100f0e0d" + "00000000"
