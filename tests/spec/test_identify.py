"""Identify structures: every field's offset against the specification, lists and descriptors."""

from __future__ import annotations

import struct

import construct as c
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeof.spec import identify, identify_namespace
from nvmeof.spec.enums import Cns, NamespaceIdType
from nvmeof.spec.identify import (
    CONTROLLER_LIST,
    IDENTIFY_CONTROLLER,
    IDENTIFY_CONTROLLER_NVM,
    IO_COMMAND_SETS,
    NAMESPACE_DESCRIPTOR_HEADER,
    NAMESPACE_LIST,
    POWER_STATE,
    IdentifyCommand,
    NamespaceDescriptor,
    build_controller_list,
    build_namespace_descriptors,
    build_namespace_list,
    mdts_bytes,
    mdts_field,
    parse_controller_list,
    parse_namespace_descriptors,
    parse_namespace_list,
    valid_namespace_list_start,
)
from nvmeof.spec.identify_namespace import (
    FLBAS,
    IDENTIFY_NAMESPACE,
    IDENTIFY_NAMESPACE_INDEPENDENT,
    IDENTIFY_NAMESPACE_NVM,
    LBA_FORMAT,
    flbas_field,
    format_index,
)
from nvmeof.wire import build, layout

CONTROLLER_OFFSETS = {
    "vid": 0, "ssvid": 2, "sn": 4, "mn": 24, "fr": 64, "rab": 72, "ieee": 73, "cmic": 76, "mdts": 77, "cntlid": 78,
    "ver": 80, "rtd3r": 84, "rtd3e": 88, "oaes": 92, "ctratt": 96, "rrls": 100, "bpcap": 102, "nssl": 104, "plsi": 110,
    "cntrltype": 111, "fguid": 112, "crdt1": 128, "crdt2": 130, "crdt3": 132, "crcap": 134, "ciu": 135, "cirn": 136,
    "nvmsr": 253, "vwci": 254, "mec": 255, "oacs": 256, "acl": 258, "aerl": 259, "frmw": 260, "lpa": 261, "elpe": 262,
    "npss": 263, "avscc": 264, "apsta": 265, "wctemp": 266, "cctemp": 268, "mtfa": 270, "hmpre": 272, "hmmin": 276,
    "tnvmcap": 280, "unvmcap": 296, "rpmbs": 312, "edstt": 316, "dsto": 318, "fwug": 319, "kas": 320, "hctma": 322,
    "mntmt": 324, "mxtmt": 326, "sanicap": 328, "hmminds": 332, "hmmaxd": 336, "nsetidmax": 338, "endgidmax": 340,
    "anatt": 342, "anacap": 343, "anagrpmax": 344, "nanagrpid": 348, "pels": 352, "domainid": 356, "kpioc": 358,
    "mptfawr": 360, "megcap": 368, "tmpthha": 384, "cqt": 386, "sqes": 512, "cqes": 513, "maxcmd": 514, "nn": 516,
    "oncs": 520, "fuses": 522, "fna": 524, "vwc": 525, "awun": 526, "awupf": 528, "icsvscc": 530, "nwpc": 531,
    "acwu": 532, "cdfs": 534, "sgls": 536, "mnan": 540, "maxdna": 544, "maxcna": 560, "oaqd": 564, "rhiri": 568,
    "hirt": 569, "cmmrtd": 570, "nmmrtd": 572, "minmrtg": 574, "maxmrtg": 575, "trattr": 576, "mcudmq": 578,
    "mnsudmq": 580, "mcmr": 582, "nmcmr": 584, "mcdqpc": 586, "subnqn": 768, "ioccsz": 1792, "iorcsz": 1796,
    "icdoff": 1800, "fcatt": 1802, "msdbd": 1803, "ofcs": 1804, "dctype": 1806, "ccrl": 1807, "psd": 2048, "vs": 3072,
}  # fmt: skip

NAMESPACE_OFFSETS = {
    "nsze": 0, "ncap": 8, "nuse": 16, "nsfeat": 24, "nlbaf": 25, "flbas": 26, "mc": 27, "dpc": 28, "dps": 29,
    "nmic": 30, "rescap": 31, "fpi": 32, "dlfeat": 33, "nawun": 34, "nawupf": 36, "nacwu": 38, "nabsn": 40, "nabo": 42,
    "nabspf": 44, "noiob": 46, "nvmcap": 48, "npwg": 64, "npwa": 66, "npdg": 68, "npda": 70, "nows": 72, "mssrl": 74,
    "mcl": 76, "msrc": 80, "kpios": 81, "nulbaf": 82, "kpiodaag": 84, "anagrpid": 92, "nsattr": 99, "nvmsetid": 100,
    "endgid": 102, "nguid": 104, "eui64": 120, "lbaf": 128, "vs": 384,
}  # fmt: skip

STRUCTURES: list[tuple[str, c.Struct, int, dict[str, int]]] = [
    ("controller", IDENTIFY_CONTROLLER, 4096, CONTROLLER_OFFSETS),
    ("namespace", IDENTIFY_NAMESPACE, 4096, NAMESPACE_OFFSETS),
    (
        "power state",
        POWER_STATE,
        32,
        {
            "mp": 0, "flags": 3, "enlat": 4, "exlat": 8, "rrt": 12, "rrl": 13, "rwt": 14, "rwl": 15, "idlp": 16,
            "ips": 18, "actp": 20, "apws": 22, "epfrt": 23, "fqvt": 24, "epfvt": 25, "epfrts_fqvts": 26, "epfvts": 27,
        },
    ),
    (
        "controller nvm",
        IDENTIFY_CONTROLLER_NVM,
        4096,
        {
            "vsl": 0, "wzsl": 1, "wusl": 2, "dmrl": 3, "dmrsl": 4, "dmsl": 8, "kpiocap": 16, "wzdsl": 17, "aocs": 18,
            "ver": 20, "lbamqf": 24,
        },
    ),
    (
        "namespace nvm",
        IDENTIFY_NAMESPACE_NVM,
        4096,
        {
            "lbstm": 0, "pic": 8, "pifa": 9, "elbaf": 12, "npdgl": 268, "nprg": 272, "npra": 276, "nors": 280,
            "npdal": 284, "lbapss": 288, "tlbaag": 292,
        },
    ),
    (
        "namespace independent",
        IDENTIFY_NAMESPACE_INDEPENDENT,
        4096,
        {
            "nsfeat": 0, "nmic": 1, "rescap": 2, "fpi": 3, "anagrpid": 4, "nsattr": 8, "nvmsetid": 10, "endgid": 12,
            "nstat": 14, "kpios": 15, "maxkt": 16, "rgrpid": 20,
        },
    ),
    ("LBA format", LBA_FORMAT, 4, {"ms": 0, "lbads": 2, "rp": 3}),
    ("command sets", IO_COMMAND_SETS, 4096, {"combinations": 0}),
    ("controller list", CONTROLLER_LIST, 4096, {"numids": 0, "ids": 2}),
    ("namespace list", NAMESPACE_LIST, 4096, {"nsids": 0}),
    ("descriptor", NAMESPACE_DESCRIPTOR_HEADER, 4, {"nidt": 0, "nidl": 1}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "declaration", "size", "offsets"), STRUCTURES, ids=[row[0] for row in STRUCTURES])
def test_size_and_offsets(name: str, declaration: c.Struct, size: int, offsets: dict[str, int]) -> None:
    assert declaration.sizeof() == size
    assert {field: offset for field, (offset, _) in layout(declaration).items()} == offsets


@pytest.mark.parametrize(
    ("field", "width"),
    [
        ("sn", 20), ("mn", 40), ("fr", 8), ("ieee", 3), ("fguid", 16), ("cirn", 8), ("tnvmcap", 16), ("oacs", 2),
        ("kas", 2), ("anagrpmax", 4), ("oncs", 2), ("sgls", 4), ("maxdna", 16), ("subnqn", 256), ("ioccsz", 4),
        ("iorcsz", 4), ("icdoff", 2), ("ofcs", 2), ("psd", 1024), ("vs", 1024),
    ],
)  # fmt: skip
def test_widths_of_the_controller(field: str, width: int) -> None:
    assert layout(IDENTIFY_CONTROLLER)[field][1] == width


def test_the_controller_structure_as_bytes() -> None:
    data = build(
        IDENTIFY_CONTROLLER,
        vid=0x1234,
        sn="S1",
        mn="model",
        fr="1.0",
        mdts=5,
        cntlid=7,
        ver=0x020100,
        tnvmcap=1 << 70,
        nn=1024,
        subnqn="nqn.2026-01.io.nvmeof:x",
        ioccsz=516,
        psd=[{"mp": 2500}],
    )
    assert len(data) == 4096
    assert data[0:2] == b"\x34\x12"
    assert data[4:24] == b"S1".ljust(20)
    assert data[24:64] == b"model".ljust(40)
    assert data[64:72] == b"1.0".ljust(8)
    assert data[77] == 5
    assert data[78:80] == b"\7\0"
    assert data[80:84] == b"\0\1\2\0"
    assert int.from_bytes(data[280:296], "little") == 1 << 70
    assert data[516:520] == struct.pack("<I", 1024)
    assert data[768:1024] == b"nqn.2026-01.io.nvmeof:x".ljust(256, b"\0")
    assert data[1792:1796] == struct.pack("<I", 516)
    assert data[2048:2050] == struct.pack("<H", 2500)
    parsed = IDENTIFY_CONTROLLER.parse(data)
    assert (parsed.sn, parsed.mn, parsed.subnqn) == ("S1", "model", "nqn.2026-01.io.nvmeof:x")
    assert parsed.psd[0].mp == 2500
    assert IDENTIFY_CONTROLLER.build(parsed) == data


def test_namespace_structures_are_in_identify_by_name() -> None:
    assert identify.IDENTIFY_NAMESPACE is identify_namespace.IDENTIFY_NAMESPACE


@given(st.binary(min_size=384, max_size=384))
def test_namespace_fields_survive_a_round_trip(head: bytes) -> None:
    raw = head.ljust(4096, b"\0")
    once = IDENTIFY_NAMESPACE.build(IDENTIFY_NAMESPACE.parse(raw))
    assert len(once) == 4096
    for start, end in ((83, 84), (88, 92), (96, 99)):  # reserved
        assert once[start:end] == bytes(end - start)
        raw = raw[:start] + bytes(end - start) + raw[end:]
    assert once == raw


@pytest.mark.parametrize(("index", "field"), [(0, 0x00), (1, 0x01), (15, 0x0F), (16, 0x20), (63, 0x6F)])
def test_lba_format_index(index: int, field: int) -> None:
    assert flbas_field(index) == field
    assert format_index(field) == index
    assert format_index(field | 0x10) == index
    assert FLBAS.fields["extended_metadata"] == (4, 1)


@given(st.sets(st.integers(1, 5000), max_size=1500), st.integers(0, 5000))
def test_namespace_list(nsids: set[int], after: int) -> None:
    data = build_namespace_list(nsids, after)
    assert len(data) == 4096
    expected = sorted(nsid for nsid in nsids if nsid > after)[:1024]
    assert parse_namespace_list(data) == expected
    assert list(NAMESPACE_LIST.parse(data).nsids)[: len(expected)] == expected


def test_namespace_list_start() -> None:
    assert valid_namespace_list_start(0)
    assert valid_namespace_list_start(0xFFFFFFFD)
    assert not valid_namespace_list_start(0xFFFFFFFE)
    assert not valid_namespace_list_start(0xFFFFFFFF)


@given(st.sets(st.integers(0, 0xFFEF), max_size=2100), st.integers(0, 0xFFEF))
def test_controller_list(cntlids: set[int], first: int) -> None:
    data = build_controller_list(cntlids, first)
    assert len(data) == 4096
    expected = sorted(cntlid for cntlid in cntlids if cntlid >= first)[:2047]
    assert parse_controller_list(data) == expected
    assert CONTROLLER_LIST.parse(data).numids == len(expected)


def test_a_controller_list_with_a_wrong_count_fails() -> None:
    with pytest.raises(struct.error):
        parse_controller_list(b"\x03\0\1\0")


def test_namespace_descriptors_as_bytes() -> None:
    items = [
        NamespaceDescriptor(NamespaceIdType.NGUID, bytes(range(16))),
        NamespaceDescriptor(NamespaceIdType.UUID, bytes(range(16, 32))),
        NamespaceDescriptor(NamespaceIdType.EUI64, bytes(range(8))),
        NamespaceDescriptor(NamespaceIdType.CSI, b"\0"),
    ]
    data = build_namespace_descriptors(items)
    assert len(data) == 4096
    assert data[:4] == b"\x02\x10\0\0"
    assert data[20:24] == b"\x03\x10\0\0"
    assert data[40:44] == b"\x01\x08\0\0"
    assert data[52:57] == b"\x04\x01\0\0\0"
    assert parse_namespace_descriptors(data) == items


def test_namespace_descriptors_refuse_wrong_lengths() -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        build_namespace_descriptors([NamespaceDescriptor(NamespaceIdType.UUID, bytes(8))])
    with pytest.raises(ValueError, match="do not fit"):
        build_namespace_descriptors([NamespaceDescriptor(NamespaceIdType.UUID, bytes(16))] * 205)


@given(st.binary(max_size=200))
def test_any_bytes_parse_as_descriptors_without_an_error(data: bytes) -> None:
    total = sum(4 + len(item.nid) for item in parse_namespace_descriptors(data))
    assert total <= len(data)


def test_unknown_descriptor_types_are_returned() -> None:
    assert parse_namespace_descriptors(b"\x09\x02\0\0ab\0\0\0\0") == [NamespaceDescriptor(9, b"ab")]


def test_identify_command_dwords() -> None:
    command = IdentifyCommand(cns=Cns.CSI_NAMESPACE, cntid=0x1234, cnssi=0x55, csi=2, uuid_index=3)
    assert command.encode() == (0x12340005, 0x02000055, 3)
    assert IdentifyCommand.decode(*command.encode()) == command


@pytest.mark.parametrize(("mdts", "limit"), [(1, 8192), (5, 131072), (8, 1 << 20)])
def test_mdts(mdts: int, limit: int) -> None:
    assert mdts_bytes(mdts) == limit
    assert mdts_field(limit) == mdts
    assert mdts_field(limit + 4096) == mdts


def test_mdts_limits() -> None:
    assert mdts_bytes(0) is None
    assert mdts_field(None) == 0
    assert mdts_bytes(1, 65536) == 131072
    with pytest.raises(ValueError, match="4096"):
        mdts_field(4096)
