"""SQE, CQE and SGL descriptors: literals from the NVMe Base specification, and both codecs in agreement."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeof.spec.connect import AUTHENTICATION, CONNECT, DISCONNECT, PROPERTY_GET, PROPERTY_SET
from nvmeof.spec.cqe import CQE, CQE_BYTES, Cqe
from nvmeof.spec.sgl import DATA_BLOCK_IN_CAPSULE, FLAGS_SGL, KEYED_SGL, SGL, TRANSPORT_DATA_BLOCK, Sgl
from nvmeof.spec.sqe import CDW12_DEALLOCATE, CDW12_FUA, COPY_RANGE, DSM_RANGE, SQE, SQE_BYTES, DsmRange, Sqe
from nvmeof.wire import Record

# fmt: off
RECORDS: list[tuple[Record[Any], int, dict[str, int]]] = [
    (
        SQE,
        64,
        {
            "opcode": 0, "flags": 1, "cid": 2, "nsid": 4, "cdw2": 8, "cdw3": 12, "mptr": 16, "sgl_address": 24,
            "sgl_length": 32, "sgl_type": 39, "cdw10": 40, "cdw11": 44, "cdw12": 48, "cdw13": 52, "cdw14": 56,
            "cdw15": 60,
        },
    ),
    (CQE, 16, {"dw0": 0, "dw1": 4, "sqhd": 8, "sqid": 10, "cid": 12, "status": 14}),
    (SGL, 16, {"address": 0, "length": 8, "type": 15}),
    (KEYED_SGL, 16, {"address": 0, "length": 8, "length_high": 10, "key": 11, "type": 15}),
    (
        COPY_RANGE,
        32,
        {
            "snsid": 0, "slba": 8, "nlb": 16, "extension_type": 18, "extension_value": 20, "options": 22,
            "reference_tag": 24, "application_tag": 28, "application_tag_mask": 30,
        },
    ),
    (DSM_RANGE, 16, {"attributes": 0, "length_blocks": 4, "slba": 8}),
    (
        CONNECT,
        64,
        {
            "opcode": 0, "flags": 1, "cid": 2, "fctype": 4, "recfmt": 40, "qid": 42, "sqsize": 44, "cattr": 46,
            "kato": 48,
        },
    ),
    (PROPERTY_GET, 64, {"opcode": 0, "flags": 1, "cid": 2, "fctype": 4, "attrib": 40, "ofst": 44}),
    (PROPERTY_SET, 64, {"opcode": 0, "flags": 1, "cid": 2, "fctype": 4, "attrib": 40, "ofst": 44, "value": 48}),
    (DISCONNECT, 64, {"opcode": 0, "flags": 1, "cid": 2, "fctype": 4, "recfmt": 40}),
    (
        AUTHENTICATION,
        64,
        {"opcode": 0, "flags": 1, "cid": 2, "fctype": 4, "spsp0": 41, "spsp1": 42, "secp": 43, "length": 44},
    ),
]
# fmt: on
IDS = [record.cls.__name__ for record, _, _ in RECORDS]


@pytest.mark.parametrize(("record", "size", "offsets"), RECORDS, ids=IDS)
def test_size_and_offsets(record: Record[Any], size: int, offsets: dict[str, int]) -> None:
    assert record.size == size == record.declaration.sizeof()
    assert record.offsets == offsets


@pytest.mark.parametrize(("record", "size", "offsets"), RECORDS, ids=IDS)
@given(data=st.data())
def test_derived_codec_agrees_with_construct(
    record: Record[Any], size: int, offsets: dict[str, int], data: st.DataObject
) -> None:
    raw = data.draw(st.binary(min_size=size, max_size=size))
    unpacked = record.unpack_from(raw)
    parsed = record.declaration.parse(raw)
    values = {field.name: getattr(unpacked, field.name) for field in dataclasses.fields(unpacked)}
    assert values == {name: parsed[name] for name in offsets}
    packed = record.pack(unpacked)
    assert packed == record.declaration.build(values)
    assert record.unpack_from(packed) == unpacked
    for name, offset in offsets.items():
        end = offset + record.widths[name]
        assert packed[offset:end] == raw[offset:end]


def test_constants() -> None:
    assert SQE_BYTES == 64
    assert CQE_BYTES == 16
    assert DATA_BLOCK_IN_CAPSULE == 0x01
    assert TRANSPORT_DATA_BLOCK == 0x5A
    assert FLAGS_SGL == 0x40


def test_the_sgl_in_the_sqe_is_the_descriptor() -> None:
    sqe = SQE.pack(Sqe(sgl_address=0x1122334455667788, sgl_length=0x01020304, sgl_type=0x5A))
    assert SGL.unpack_from(sqe, 24) == Sgl(0x1122334455667788, 0x01020304, 0x5A)


def test_a_read_command_byte_by_byte() -> None:
    sqe = Sqe(
        opcode=2, flags=0x40, cid=0x1234, nsid=1, sgl_length=4096, sgl_type=0x5A, cdw10=0x89ABCDEF, cdw11=1, cdw12=7
    )
    raw = SQE.pack(sqe)
    assert raw[:8].hex() == "0240341201000000"
    assert raw[24:40].hex() == "0000000000000000001000000000005a"
    assert raw[40:52].hex() == "efcdab890100000007000000"
    assert sqe.slba == 0x1_89AB_CDEF
    assert sqe.transfer_blocks == 8
    assert (sqe.fuse, sqe.psdt) == (0, 1)


def test_transfer_blocks_ignores_the_flags_of_cdw12() -> None:
    assert Sqe(cdw12=CDW12_FUA | CDW12_DEALLOCATE | 0xFFFF).transfer_blocks == 65536
    assert CDW12_FUA == 0x40000000
    assert CDW12_DEALLOCATE == 0x02000000


def test_fused_and_fabrics_fields() -> None:
    assert Sqe(flags=0x41).fuse == 1
    assert Sqe(flags=0x42).fuse == 2
    assert Sqe(opcode=0x7F, nsid=0xABCDEF04).fctype == 4


def test_error_location_of_the_sqe() -> None:
    assert SQE.error_location("cdw10") == 40
    assert SQE.error_location("cdw12", bit=30) == 51 | 6 << 8
    assert SQE.error_location("sgl_type") == 39


def test_cqe_result_is_both_dwords() -> None:
    assert Cqe(dw0=1, dw1=2).result == 0x2_0000_0001
    assert CQE.pack(Cqe(1, 2, 3, 4, 5, 6)).hex() == "01000000020000000300040005000600"


def test_dsm_range() -> None:
    raw = bytes.fromhex("00000000080000001000000000000000")
    assert DSM_RANGE.unpack_from(raw) == DsmRange(0, 8, 16)
