"""Controller properties: bit positions against literals, units, round trips."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeof.spec.properties import (
    NSSR_RESET,
    PROPERTIES,
    VERSION_1_4,
    VERSION_2_1,
    Cap,
    Cc,
    CcCss,
    Crto,
    Csts,
    Shn,
    Shst,
    Vs,
)


def test_offsets_and_sizes() -> None:
    assert {offset: (info.name, info.size) for offset, info in PROPERTIES.items()} == {
        0x00: ("CAP", 8),
        0x08: ("VS", 4),
        0x14: ("CC", 4),
        0x1C: ("CSTS", 4),
        0x20: ("NSSR", 4),
        0x64: ("NSSD", 4),
        0x68: ("CRTO", 4),
    }
    assert {info.name for info in PROPERTIES.values() if info.writable} == {"CC", "NSSR", "NSSD"}
    assert all(info.readable for info in PROPERTIES.values())
    assert NSSR_RESET.to_bytes(4, "big") == b"NVMe"


@pytest.mark.parametrize(
    ("field", "shift", "mask"),
    [
        ("mqes", 0, 0xFFFF), ("cqr", 16, 1), ("ams", 17, 3), ("to", 24, 0xFF), ("dstrd", 32, 0xF), ("nssrs", 36, 1),
        ("css", 37, 0xFF), ("bps", 45, 1), ("cps", 46, 3), ("mpsmin", 48, 0xF), ("mpsmax", 52, 0xF), ("pmrs", 56, 1),
        ("cmbs", 57, 1), ("nsss", 58, 1), ("crms", 59, 3), ("nsses", 61, 1),
    ],
)  # fmt: skip
def test_cap_bits(field: str, shift: int, mask: int) -> None:
    assert Cap.BITS.fields[field] == (shift, mask)


def test_cc_and_csts_bits() -> None:
    assert Cc.BITS.fields == {
        "en": (0, 1), "css": (4, 7), "mps": (7, 0xF), "ams": (11, 7), "shn": (14, 3), "iosqes": (16, 0xF),
        "iocqes": (20, 0xF), "crime": (24, 1),
    }  # fmt: skip
    assert Csts.BITS.fields == {
        "rdy": (0, 1), "cfs": (1, 1), "shst": (2, 3), "nssro": (4, 1), "pp": (5, 1), "st": (6, 1),
    }  # fmt: skip
    assert Crto.BITS.fields == {"crwmt": (0, 0xFFFF), "crimt": (16, 0xFFFF)}


def test_the_cc_of_linux() -> None:
    assert Cc.decode(0x460060) == Cc(css=CcCss.ALL_SUPPORTED)
    assert Cc.decode(0x460061) == Cc(en=True, css=CcCss.ALL_SUPPORTED, iosqes_bytes=64, iocqes_bytes=16)
    assert Cc.decode(0x464061) == Cc(en=True, css=CcCss.ALL_SUPPORTED, shn=Shn.NORMAL)
    assert Cc(en=True).encode() == 0x460001


def test_cap_units() -> None:
    cap = Cap(mqes_entries=1024, timeout_seconds=7.5, cqr=True, css=0x41, mpsmax_bytes=65536)
    value = cap.encode()
    assert value & 0xFFFF == 1023
    assert value >> 24 & 0xFF == 15
    assert value >> 37 & 0xFF == 0x41
    assert value >> 52 & 0xF == 4
    assert Cap.decode(value) == cap
    # a timeout is never shortened by rounding
    assert Cap.decode(Cap(timeout_seconds=7.6).encode()).timeout_seconds == 8.0


@given(st.integers(0, 2**64 - 1))
def test_cap_round_trip(value: int) -> None:
    cap = Cap.decode(value)
    known = sum(mask << shift for shift, mask in Cap.BITS.fields.values())
    assert cap.encode() == value & known
    assert 1 <= cap.mqes_entries <= 65536


@given(st.integers(0, 2**32 - 1))
def test_other_round_trips(value: int) -> None:
    for cls in (Cc, Csts, Crto, Vs):
        known = sum(mask << shift for shift, mask in cls.BITS.fields.values())
        assert cls.decode(value).encode() == value & known


def test_values_that_cannot_be_encoded() -> None:
    with pytest.raises(ValueError, match="power of two"):
        Cap(mpsmin_bytes=5000).encode()
    with pytest.raises(ValueError, match="power of two"):
        Cc(mps_bytes=2048).encode()
    with pytest.raises(ValueError, match="mqes"):
        Cap(mqes_entries=0).encode()
    with pytest.raises(ValueError, match="to takes"):
        Cap(timeout_seconds=200).encode()


def test_version() -> None:
    assert Vs.decode(VERSION_2_1) == Vs(2, 1)
    assert Vs.decode(VERSION_1_4) < Vs(2, 0)
    assert str(Vs(1, 4)) == "1.4"
    assert str(Vs(1, 2, 1)) == "1.2.1"
    assert Vs(2, 1).encode() == 0x020100


def test_shutdown_status() -> None:
    assert Csts(rdy=True, shst=Shst.COMPLETE).encode() == 0b1001
    assert Csts.decode(0b1001).shst == Shst.COMPLETE
