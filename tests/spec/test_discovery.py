"""The Discovery log page."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nvmeof.spec.discovery import (
    DISCOVERY_LOG_ENTRY,
    DISCOVERY_LOG_HEADER,
    TSAS_RDMA,
    TSAS_TCP,
    build_discovery_entry,
    build_discovery_log,
    extend_discovery_entry,
    parse_discovery_entries,
)
from nvmeof.spec.enums import DISCOVERY_NQN, Adrfam, SubType, Trtype
from nvmeof.wire import layout


def test_sizes_and_offsets() -> None:
    assert DISCOVERY_LOG_HEADER.sizeof() == 1024
    assert layout(DISCOVERY_LOG_HEADER) == {
        "genctr": (0, 8),
        "numrec": (8, 8),
        "recfmt": (16, 2),
        "dlpf": (18, 1),
        "tdlpl": (20, 4),
    }
    assert DISCOVERY_LOG_ENTRY.sizeof() == 1024
    assert layout(DISCOVERY_LOG_ENTRY) == {
        "trtype": (0, 1),
        "adrfam": (1, 1),
        "subtype": (2, 1),
        "treq": (3, 1),
        "portid": (4, 2),
        "cntlid": (6, 2),
        "asqsz": (8, 2),
        "eflags": (10, 2),
        "trsvcid": (32, 32),
        "subnqn": (256, 256),
        "traddr": (512, 256),
        "tsas": (768, 256),
    }
    assert TSAS_TCP.sizeof() == TSAS_RDMA.sizeof() == 256
    assert layout(TSAS_RDMA) == {"qptype": (0, 1), "prtype": (1, 1), "cms": (2, 1), "pkey": (8, 2)}


def test_an_entry_as_bytes() -> None:
    entry = build_discovery_entry(
        trtype=Trtype.TCP,
        sectype=2,
        adrfam=Adrfam.IPV4,
        subtype=SubType.NVM,
        portid=1,
        cntlid=0xFFFF,
        asqsz=32,
        trsvcid="4420",
        traddr="192.0.2.1",
        subnqn=DISCOVERY_NQN,
    )
    assert entry[:12].hex() == "030102000100ffff20000000"
    assert entry[32:64] == b"4420".ljust(32)
    assert entry[256:512] == DISCOVERY_NQN.encode().ljust(256, b"\0")
    assert entry[512:768] == b"192.0.2.1".ljust(256)
    assert entry[768:770] == b"\2\0"


def test_nul_filled_addresses_are_read_too() -> None:
    raw = bytearray(build_discovery_entry(trtype=3, traddr="::1", trsvcid="8009"))
    raw[32:64] = b"8009".ljust(32, b"\0")
    raw[512:768] = b"::1".ljust(256, b"\0")
    (entry,) = parse_discovery_entries(raw)
    assert (entry.traddr, entry.trsvcid) == ("::1", "8009")


@given(st.integers(0, 2**64 - 1), st.integers(0, 4), st.integers(0, 1023))
def test_log_round_trip_and_cut(genctr: int, count: int, tail: int) -> None:
    data = build_discovery_log(genctr, [build_discovery_entry(trtype=4, portid=i) for i in range(count)])
    header = DISCOVERY_LOG_HEADER.parse(data[:1024])
    assert (header.genctr, header.numrec, header.recfmt) == (genctr, count, 0)
    entries = parse_discovery_entries(data[1024:] + bytes(tail))
    assert [entry.portid for entry in entries] == list(range(count))


def test_extended_entries_as_bytes() -> None:
    entry = bytes(range(256)) * 4
    extended = extend_discovery_entry(entry, [(2, b"disk 7")])
    assert extended == entry + b"\x14\x04\0\0\1\0\0\0" + b"\2\0\x08\0disk 7\0\0"
    assert extend_discovery_entry(entry) == entry + b"\x08\x04\0\0\0\0\0\0"
    page = build_discovery_log(5, [extended, extended], flags=1)
    assert page[16:24] == b"\0\0\1\0" + (1024 + 2 * 1044).to_bytes(4, "little")
