import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeof.spec.reservations import (
    ALL_TYPES,
    CDW10_IGNORE_EXISTING_KEY,
    CDW10_PERSISTENCE,
    CDW10_TYPE,
    CNTLID_NONE,
    RESERVATION_KEYS,
    NotificationType,
    Registrant,
    Rescap,
    ReservationCommand,
    ReservationKeys,
    ReservationReport,
    ReservationType,
    mask_of,
    pack_keys,
    pack_release,
    unpack_release,
)

KEYS = st.integers(0, (1 << 64) - 1)


def test_cdw10():
    command = ReservationCommand(action=2, ignore_existing_key=True, rtype=6, cptpl=3)
    assert command.encode() == 2 | 1 << 3 | 6 << 8 | 3 << 30
    assert ReservationCommand.decode(command.encode()) == command
    assert ReservationCommand.decode(0xFFFFFFFF) == ReservationCommand(
        action=7, ignore_existing_key=True, rtype=255, cptpl=3
    )
    assert (CDW10_IGNORE_EXISTING_KEY, CDW10_TYPE, CDW10_PERSISTENCE) == (3, 8, 30)


@given(KEYS, KEYS)
def test_keys(crkey, key):
    assert pack_keys(crkey, key) == struct.pack("<QQ", crkey, key)
    assert RESERVATION_KEYS.unpack_from(pack_keys(crkey, key)) == ReservationKeys(crkey, key)
    assert unpack_release(pack_release(crkey) + b"more") == crkey
    assert pack_release(crkey) == struct.pack("<Q", crkey)


def test_capabilities():
    assert ALL_TYPES == 0b1111110
    assert ALL_TYPES | Rescap.IGNORE_EXISTING_KEY_1_3 | Rescap.PERSIST_THROUGH_POWER_LOSS == 0xFF


def test_mask():
    assert mask_of([]) == 0
    assert mask_of([NotificationType.RESERVATION_RELEASED]) == 0b100
    assert mask_of(kind for kind in NotificationType if kind) == 0b1110


@pytest.mark.parametrize(("extended", "width", "first"), [(True, 16, 64), (False, 8, 24)])
def test_report_layout(extended, width, first):
    hosts = [bytes([i]) * width for i in (1, 2)]
    report = ReservationReport(
        0x01020304,
        ReservationType.EXCLUSIVE_ACCESS,
        True,
        (Registrant(hosts[0], 0xA1, True, 5), Registrant(hosts[1], (1 << 64) - 2)),
    )
    raw = report.encode(extended=extended)
    size = 64 if extended else 24
    assert len(raw) == first + 2 * size
    assert struct.unpack_from("<IBHxxB", raw) == (0x01020304, 2, 2, 1)
    assert not any(raw[10:first])
    for i, (cntlid, status, key) in enumerate([(5, 1, 0xA1), (CNTLID_NONE, 0, (1 << 64) - 2)]):
        one = raw[first + i * size :][:size]
        if extended:
            assert struct.unpack("<HB5xQ16s32x", one) == (cntlid, status, key, hosts[i])
        else:
            assert struct.unpack("<HB5x8sQ", one) == (cntlid, status, hosts[i], key)
    decoded = ReservationReport.decode(raw, extended=extended)
    assert (decoded.registrants, decoded.count, decoded.rtype) == (report.registrants, 2, 2)
    assert (decoded.generation, decoded.persistent) == (0x01020304, True)
    assert decoded.encode(extended=extended) == raw


@given(st.integers(24, 64 + 64 * 3 + 40))
def test_report_that_ends_early(length):
    raw = ReservationReport(1, 0, False, tuple(Registrant(bytes([i]) * 16, i) for i in range(3))).encode()
    report = ReservationReport.decode(raw.ljust(300, b"\0")[:length])
    assert report.count == 3
    assert len(report.registrants) == min(max(length - 64, 0) // 64, 3)


def test_no_report():
    with pytest.raises(ValueError, match="24"):
        ReservationReport.decode(bytes(23))
