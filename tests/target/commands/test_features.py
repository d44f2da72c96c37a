"""Get and Set Features: every feature with every SEL, refusals with their locations, values after a reset and a
restart.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvmeof.spec.enums import FeatureId, LogPageId
from nvmeof.spec.features import FEATURE_DATA_BYTES, LBA_RANGE_TYPE
from nvmeof.spec.host_metadata import MetadataElement, build_host_metadata
from nvmeof.spec.log_pages import ERROR_INFORMATION_ENTRY
from nvmeof.spec.properties import CC_OFFSET
from nvmeof.spec.status import Status
from nvmeof.target.commands.rows.features import FeatureSpec, Scope, Value
from nvmeof.target.commands.rows.rows import Rows
from nvmeof.target.commands.standard import standard_tables
from nvmeof.target.storage.ramdisk import Ramdisk
from nvmeof.wire import build
from tests.target.harness import CC_ENABLE, FEATURES, HOSTID, Target, TestQueue

ALL = 0xFFFFFFFF
BLOCKS = (1 << 20) // 512


def ranges(*entries: dict[str, int]) -> bytes:
    return b"".join(build(LBA_RANGE_TYPE, **entry) for entry in entries).ljust(4096, b"\0")


def metadata(*elements: tuple[int, bytes]) -> bytes:
    return build_host_metadata(MetadataElement(kind, 0, value) for kind, value in elements)


def last_location(queue: TestQueue) -> int:
    entry = queue.read_bytes(queue.log_page(LogPageId.ERROR_INFORMATION, ERROR_INFORMATION_ENTRY.sizeof()))
    return ERROR_INFORMATION_ENTRY.parse(entry).parameter_error_location


class Case(NamedTuple):
    """A feature, its default, and a Set Features that changes it. `get`: CDW11 of Get Features."""

    fid: int
    default: int
    value: int
    scope: Scope = Scope.CONTROLLER
    saveable: bool = False
    get: int = 0
    read: int | None = None  # the current value then; None: `value`
    default_data: bytes | None = None
    data: bytes | None = None  # sent, and read back
    kept: bool = False  # over a reset, unsaved
    save: bool = False  # it has to be saved


LABEL = "a label, ünïcode".encode().ljust(256, b"\0")
ONE_RANGE = ranges({"type": 2, "attributes": 3, "slba": 8, "nlb": 7}, {"type": 0x80, "slba": 0, "nlb": 3})
CASES = (
    Case(0x01, 0x07, 0x01020303, saveable=True),
    Case(0x02, 0, 0x20, saveable=True),
    Case(
        0x03, 0, 1, Scope.NAMESPACE, True, kept=True, data=ONE_RANGE,
        default_data=ranges({"attributes": 1, "nlb": BLOCKS - 1}),
    ),
    Case(0x04, 343, 350, saveable=True),
    Case(0x04, 0, 1 << 20 | 280, saveable=True, get=1 << 20, read=280),
    Case(0x05, 0, 100, Scope.NAMESPACE, True, kept=True),
    Case(0x07, 0x7F007F, 0x30001),
    Case(0x0A, 0, 1, saveable=True),
    Case(0x0B, 0, 0x902),
    Case(0x0F, 0, 7000, kept=True),
    Case(0x16, 0, 0, data=b"\1\0\1".ljust(512, b"\0"), default_data=bytes(512)),
    Case(0x1F, 0, 0, Scope.NAMESPACE, True, kept=True, save=True, data=LABEL, default_data=bytes(256)),
    Case(0x7D, 0, 2 << 13, read=0, data=metadata((2, b"x"), (2, b"y")), default_data=bytes(4096)),
    Case(0x7E, 0, 0, data=metadata((1, b"nvme0")), default_data=bytes(4096)),
    Case(0x7F, 0, 0, Scope.NAMESPACE, data=metadata((1, b"disk")), default_data=bytes(4096)),
    Case(0x80, 0, 5, saveable=True, kept=True),
)  # fmt: skip
NAMED = [f"{case.fid:02x}-{case.get:x}" for case in CASES]


def nsid(case: Case) -> int:
    return 1 if case.scope is Scope.NAMESPACE else 0


def change(queue: TestQueue, case: Case, save: bool = False, to: int | None = None) -> Any:
    where = nsid(case) if to is None else to
    return queue.set_feature(case.fid, case.value, data=case.data, save=save or case.save, nsid=where)


def tell(queue: TestQueue, case: Case, sel: int = 0, at: int | None = None) -> tuple[int, bytes | None]:
    length = len(case.data) if case.data is not None else 0
    where = nsid(case) if at is None else at
    completion = queue.get_feature(case.fid, sel, cdw11=case.get, length=length, nsid=where)
    assert completion.status == 0, hex(completion.status)
    return completion.dw0, None if completion.data is None else bytes(completion.data)


def default(case: Case) -> tuple[int, bytes | None]:
    return case.default, case.default_data


def new(case: Case) -> tuple[int, bytes | None]:
    return case.value if case.read is None else case.read, case.data


def reset(queue: TestQueue) -> None:
    queue.set_property(CC_OFFSET, 0)
    queue.set_property(CC_OFFSET, CC_ENABLE)


@pytest.mark.parametrize("case", CASES, ids=NAMED)
def test_every_feature_with_every_sel(case):
    admin = Target().admin(kato=0)
    assert tell(admin, case, 0) == tell(admin, case, 1) == tell(admin, case, 2) == default(case)
    capabilities = 0b100 | (0b010 if nsid(case) else 0) | (0b001 if case.saveable else 0)
    assert admin.get_feature(case.fid, 3).dw0 == capabilities
    assert change(admin, case).status == 0
    assert tell(admin, case, 0) == new(case) and tell(admin, case, 1) == default(case)
    saved = case.save or case.fid == FeatureId.SOFTWARE_PROGRESS_MARKER
    assert tell(admin, case, 2) == (new(case) if saved else default(case))
    for sel in range(4, 8):
        assert admin.get_feature(case.fid, sel, cdw11=case.get, nsid=nsid(case)).status == Status.INVALID_FIELD
        assert last_location(admin) == 41


@pytest.mark.parametrize("case", CASES, ids=NAMED)
def test_unsaved_values_after_a_reset(case):
    target = Target()
    admin = target.admin(kato=0)
    change(admin, case)
    reset(admin)
    assert tell(admin, case) == (new(case) if case.kept else default(case))
    if case.fid != FeatureId.KEEP_ALIVE_TIMER:
        # Another controller: the values of the namespace are the same there.
        assert tell(target.admin(kato=0), case) == (new(case) if case.kept else default(case))


@pytest.mark.parametrize("case", CASES, ids=NAMED)
def test_saved_values(case):
    target = Target()
    admin, other = target.admin(), target.admin()
    before = tell(other, case)
    completion = change(admin, case, save=True)
    if not case.saveable:
        assert completion.status == Status.FEATURE_NOT_SAVEABLE and last_location(admin) == 43 | 7 << 8
        return
    assert completion.status == 0 and tell(admin, case, 0) == tell(admin, case, 2) == new(case)
    assert tell(admin, case, 1) == default(case)
    assert tell(other, case, 2) == new(case)
    assert tell(other, case) == (new(case) if nsid(case) else before), "a controller's own value lasts until its reset"
    for queue in (admin, other):
        reset(queue)
        assert tell(queue, case) == new(case)
    assert tell(target.admin(), case) == new(case)
    # A value that is set after that and not saved lasts until the next reset.
    if case.fid in (0x01, 0x0A) and case.default != case.value:
        assert admin.set_feature(case.fid, case.default).status == 0
        assert tell(admin, case) == default(case) and tell(admin, case, 2) == new(case)
        reset(admin)
        assert tell(admin, case) == new(case)


@pytest.mark.parametrize("case", CASES, ids=NAMED)
def test_nsids(case):
    target = Target(Ramdisk("1M"), Ramdisk("1M"))
    admin = target.admin()
    specific = bool(nsid(case))
    if FEATURES[case.fid].for_all:
        assert change(admin, case, to=ALL).status == 0
    else:
        assert change(admin, case, to=ALL).status == Status.INVALID_FIELD
        assert last_location(admin) == 4
        assert [change(admin, case, to=each).status for each in (1, 2)] == [0, 0]
    for each in (1, 2):
        assert tell(admin, case, at=each if specific else 0) == new(case)
    if specific:
        wrong = {0: Status.INVALID_NAMESPACE, 7: Status.INVALID_FIELD, 1025: Status.INVALID_NAMESPACE}
        for other, status in {**wrong, ALL: Status.INVALID_NAMESPACE}.items():
            length = len(case.data or b"")
            assert admin.get_feature(case.fid, length=length, nsid=other).status == status
            assert last_location(admin) == 4
    else:
        wrong = {1: Status.FEATURE_NOT_NAMESPACE_SPECIFIC, 1025: Status.INVALID_NAMESPACE}
        assert tell(admin, case, at=1) == new(case), "Get Features returns the value for all"
    for other, status in wrong.items():
        assert change(admin, case, to=other).status == status
        assert last_location(admin) == 4


def test_features_that_cannot_be_set_for_all_namespaces():
    assert [fid for fid, row in FEATURES.items() if not row.for_all] == [0x03]


def test_the_cases_cover_all_features():
    elsewhere = {0x06, 0x0E, 0x15, 0x17, 0x18, 0x19, 0x81, 0x82, 0x83, 0x84}
    assert {case.fid for case in CASES} == set(FEATURES) - elsewhere


def test_the_features_log_lists_the_working_ones():
    target = Target()
    for admin, controller in ((target.admin(), "io"), (target.discovery(), "discovery")):
        data = admin.read_bytes(admin.log_page(0x12, 1024))
        entries = {fid: int.from_bytes(data[4 * fid : 4 * fid + 4], "little") for fid in range(256)}
        for fid, entry in entries.items():
            assert admin.get_feature(fid, 3).status == (0 if entry else Status.INVALID_FIELD), controller
            assert not entry or (entry & 1 and entry >> 20 == FEATURES[fid].scope.value >> 20)
    scopes = {case.fid: case.scope for case in CASES}
    assert all(FEATURES[fid].scope is scope for fid, scope in scopes.items())


REFUSED = [
    (0x01, 0x08, 44 | 3 << 8),
    (0x02, 1, 44),
    (0x02, 0x100, 45),
    (0x04, 1 << 16, 46),
    (0x04, 2 << 20, 46 | 4 << 8),
    (0x04, 1 << 22, 46 | 6 << 8),
    (0x04, 1 << 25, 47 | 1 << 8),
    (0x05, 1 << 16, 46),
    (0x05, 1 << 17, 46 | 1 << 8),
    (0x07, 0xFFFF, 44),
    (0x07, 0xFFFF0000, 46),
    (0x0A, 2, 44 | 1 << 8),
    (0x0B, 1 << 6, 44 | 6 << 8),
    (0x0B, 1 << 31, 47 | 7 << 8),
    (0x80, 1 << 8, 45),
]


@pytest.mark.parametrize(("fid", "value", "location"), REFUSED)
def test_values_that_features_refuse(fid, value, location):
    admin = Target().admin()
    assert admin.set_feature(fid, value, nsid=1 if FEATURES[fid].scope is Scope.NAMESPACE else 0).status == (
        Status.INVALID_FIELD
    )
    assert last_location(admin) == location


DATA = 24
BAD_DATA = [
    (0x03, 0, ranges({"type": 5, "nlb": 1}), Status.INVALID_FIELD, DATA),
    (0x03, 0, ranges({"attributes": 4, "nlb": 1}), Status.INVALID_FIELD, DATA),
    (0x03, 0, ranges({"nlb": BLOCKS}), Status.LBA_OUT_OF_RANGE, DATA),
    (0x03, 0, ranges({"slba": (1 << 64) - 1, "nlb": (1 << 64) - 1}), Status.LBA_OUT_OF_RANGE, DATA),
    (0x03, 1, ranges({"slba": 8, "nlb": 3}, {"slba": 5, "nlb": 3}), Status.OVERLAPPING_RANGE, DATA),
    (0x03, 64, ranges({"nlb": 3}), Status.INVALID_FIELD, 44 | 6 << 8),
    (0x16, 0, b"\2", Status.INVALID_FIELD, DATA),
    (0x16, 0, b"\0\2", Status.INVALID_FIELD, DATA),
    (0x16, 0, b"\0\0\2", Status.INVALID_FIELD, DATA),
    (0x16, 0, b"\0\0\0\2", Status.INVALID_FIELD, DATA),
    (0x16, 0, b"\0\0\0\0\1", Status.INVALID_FIELD, DATA),
    (0x1F, 0, b"a" * 256, Status.INVALID_FIELD, DATA),
    (0x1F, 0, b"\xff".ljust(256, b"\0"), Status.INVALID_FIELD, DATA),
    (0x7D, 0, metadata((1, b"x")), Status.INVALID_FIELD, 45 | 5 << 8),
    (0x7E, 2 << 13, metadata((1, b"x")), Status.INVALID_FIELD, 45 | 5 << 8),
    (0x7F, 3 << 13, metadata((1, b"x")), Status.INVALID_FIELD, 45 | 5 << 8),
    (0x7E, 1, metadata((1, b"x")), Status.INVALID_FIELD, 44),
    (0x7E, 0, metadata((1, b"x"), (1, b"y")), Status.INVALID_FIELD, DATA),
    (0x7E, 1 << 13, metadata((1, b"x")), Status.INVALID_FIELD, DATA),
    (0x7E, 0, b"\1\0\0\0\0\0", Status.INVALID_FIELD, DATA),
    (0x7E, 0, b"\1\0\x20\0\0\0", Status.INVALID_FIELD, DATA),
    (0x7E, 0, b"\1\0\1\0\xff\xff", Status.INVALID_FIELD, DATA),
    (0x7E, 0, b"\2\0\1\0" + (4090).to_bytes(2, "little"), Status.INVALID_FIELD, DATA),
]


@pytest.mark.parametrize(("fid", "value", "data", "status", "location"), BAD_DATA)
def test_data_that_features_refuse(fid, value, data, status, location):
    admin = Target().admin()
    row = FEATURES[fid]
    where = 1 if row.scope is Scope.NAMESPACE else 0
    before = admin.get_feature(fid, length=row.data_bytes, nsid=where).data
    data = data.ljust(row.data_bytes, b"\0")
    assert admin.set_feature(fid, value, data=data, nsid=where, save=fid == 0x1F).status == status
    assert last_location(admin) == location
    assert admin.get_feature(fid, length=row.data_bytes, nsid=where).data == before


def test_a_label_is_always_saved():
    admin = Target().admin()
    assert admin.set_feature(0x1F, data=LABEL, nsid=1).status == Status.INVALID_FIELD
    assert last_location(admin) == 43 | 7 << 8


def test_metadata_elements_are_added_replaced_and_deleted():
    admin = Target(Ramdisk("1M"), Ramdisk("1M")).admin()
    plain, enhanced, namespace = 0x7E, 0x7D, 0x7F
    admin.set_feature(plain, 0, data=metadata((1, b"a"), (2, b"b")))
    admin.set_feature(plain, 0, data=metadata((1, b"new"), (3, b"c")))
    assert admin.get_feature(plain, length=4096).data == metadata((2, b"b"), (1, b"new"), (3, b"c"))
    assert admin.set_feature(plain, 1 << 13, data=metadata((2, b""), (9, b""))).status == 0
    assert admin.get_feature(plain, length=4096).data == metadata((1, b"new"), (3, b"c"))
    for text in (b"first", b"second"):
        admin.set_feature(enhanced, 2 << 13, data=metadata((0x10, text)))
    assert admin.get_feature(enhanced, length=4096).data == metadata((0x10, b"first"), (0x10, b"second"))
    big = metadata((0x11, b"x" * 4000))
    assert admin.set_feature(enhanced, 2 << 13, data=big).status == 0
    assert admin.set_feature(enhanced, 2 << 13, data=big).status == Status.INVALID_FIELD
    assert last_location(admin) == DATA
    assert admin.set_feature(enhanced, 1 << 13, data=metadata((0x10, b""))).status == 0
    assert admin.get_feature(enhanced, length=4096).data == big
    admin.set_feature(namespace, 0, data=metadata((1, b"one")), nsid=1)
    assert admin.get_feature(namespace, length=4096, nsid=2).data == bytes(4096)
    # Generating defaults (GDHM) generates none.
    assert admin.get_feature(plain, 1, cdw11=1, length=4096).data == bytes(4096)


def test_number_of_queues():
    target = Target(max_io_queues=8)
    admin = target.admin()
    assert admin.get_feature(7).dw0 == 0x70007
    assert admin.set_feature(7, 0x30001).dw0 == 0x30001
    assert admin.get_feature(7).dw0 == 0x30001 and admin.get_feature(7, 1).dw0 == 0x70007
    assert admin.set_feature(7, 0xFF00FF).dw0 == 0x70007
    target.io(admin)
    assert admin.set_feature(7, 1).status == Status.COMMAND_SEQUENCE_ERROR


def test_temperature_thresholds():
    admin = Target().admin()
    admin.set_feature(4, 0xF << 16 | 350, save=True)
    admin.set_feature(4, 1 << 20 | 280, save=True)
    assert admin.get_feature(4, cdw11=1 << 20).dw0 == 280 and admin.get_feature(4).dw0 == 350
    reset(admin)
    assert admin.get_feature(4, cdw11=1 << 20).dw0 == 280 and admin.get_feature(4).dw0 == 350
    for sel in range(3):
        assert admin.get_feature(4, sel, cdw11=0xF << 16).status == Status.INVALID_FIELD
        assert last_location(admin) == 46
        assert admin.get_feature(4, sel, cdw11=3 << 16).status == Status.INVALID_FIELD


def test_timestamp():
    target = Target()
    admin = target.admin()
    target.runtime.time += 1.5
    reset(admin)
    target.runtime.time += 2.5
    assert admin.read_bytes(admin.get_feature(0x0E, length=8)) == (2500).to_bytes(6, "little") + b"\0\0"
    stamp = 1_700_000_000_123
    assert admin.set_feature(0x0E, data=stamp.to_bytes(8, "little")).status == 0
    target.runtime.time += 0.5
    data = admin.read_bytes(admin.get_feature(0x0E, length=8))
    assert abs(int.from_bytes(data[:6], "little") - stamp - 500) <= 1 and data[6] == 1 << 1
    assert admin.set_feature(0x0E).status == Status.DATA_SGL_LENGTH_INVALID
    assert admin.read_bytes(admin.get_feature(0x0E, 1, length=8)) == bytes(8)


def test_host_identifier_is_connects():
    admin = Target().admin()
    assert admin.read_bytes(admin.get_feature(0x81, cdw11=1, length=16)) == HOSTID
    assert admin.get_feature(0x81, cdw11=0, length=16).status == Status.INVALID_FIELD
    assert admin.set_feature(0x81, 1, data=bytes(16)).status == Status.COMMAND_SEQUENCE_ERROR
    assert admin.get_feature(0x81, 3).dw0 == 0


def test_write_cache_exists_only_where_something_is_cached():
    admin = Target().admin()
    assert admin.get_feature(6).status == Status.INVALID_FIELD
    assert admin.set_feature(6, 1).status == Status.INVALID_FIELD


def test_unsupported_fields():
    admin = Target().admin()
    for fid in (0x00, 0x08, 0x09, 0x0C, 0x0D, 0x10, 0x12, 0x13, 0xC0, 0xFF):
        assert admin.set_feature(fid, 1).status == Status.INVALID_FIELD
        assert last_location(admin) == 40
        assert admin.get_feature(fid).status == Status.INVALID_FIELD
        assert last_location(admin) == 40


def test_uuid_index_is_ignored():
    """No feature differs by UUID, as bit 19 of the log reports."""
    admin = Target().admin()
    assert admin.command(0x09, cdw10=0x0A, cdw11=1, cdw14=0x7F).status == 0
    assert admin.command(0x0A, cdw10=0x0A, cdw14=0x7F).dw0 == 1
    assert not any(row.log_entry & 1 << 19 for row in FEATURES.values())


def test_features_of_a_discovery_controller():
    queue = Target().discovery()
    assert queue.set_feature(0x0F, 30000).status == 0
    assert queue.get_feature(0x0F).dw0 == 30000
    assert queue.get_feature(0x07).status == Status.INVALID_FIELD
    assert queue.set_feature(0x0B, 0x100).status == Status.INVALID_FIELD
    assert {fid for fid, row in FEATURES.items() if row.discovery} == {0x0B, 0x0F}


def test_a_feature_that_cannot_be_changed(monkeypatch):
    row = FeatureSpec(0x06, "Frozen", lambda controller, sqe: Value(3), lambda controller, sqe: Value(3))
    monkeypatch.setitem(FEATURES, 0x06, row)
    admin = Target().admin()
    assert admin.get_feature(6).dw0 == 3 and admin.get_feature(6, 3).dw0 == 0
    assert admin.set_feature(6, 1).status == Status.FEATURE_NOT_CHANGEABLE
    assert last_location(admin) == 40
    with pytest.raises(ValueError, match="Frozen: feature 06h has a row already"):
        standard_tables(Rows(features=(row,)))


# Properties


SIMPLE = sorted({case.fid for case in CASES if case.data is None} | {0x19})
READ_MASK = {0x04: 0xFFFF}


@settings(max_examples=200, deadline=None)
@given(
    fid=st.sampled_from(SIMPLE),
    value=st.one_of(st.integers(0, 0xFFFFFFFF), st.integers(0, 0x3FF), st.sampled_from([1 << i for i in range(32)])),
    saved=st.booleans(),
    where=st.sampled_from([0, 1, ALL]),
)
def test_any_dwords_are_refused_with_a_place_or_read_back(fid, value, saved, where):
    admin = Target(Ramdisk("64K")).admin()
    specific = FEATURES[fid].scope is Scope.NAMESPACE
    at = 1 if specific else 0
    select = value & 0x300000 if fid == 0x04 else 0
    before = admin.get_feature(fid, cdw11=select, nsid=at)
    completion = admin.set_feature(fid, value, save=saved, nsid=where)
    after = admin.get_feature(fid, cdw11=select, nsid=at)
    if completion.status:
        assert completion.dnr and last_location(admin) != 0xFFFF
        assert after.dw0 == before.dw0
    elif fid == 0x07:
        assert after.dw0 == completion.dw0
    elif fid == 0x0F:
        # Rounded up to 100 ms, as far as that fits.
        assert min(value, 0xFFFFFFFF // 100 * 100) <= after.dw0 < value + 100
    else:
        assert after.dw0 == value & READ_MASK.get(fid, 0xFFFFFFFF)


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=64), action=st.integers(0, 3), fid=st.sampled_from([0x7D, 0x7E, 0x7F]))
def test_any_metadata_is_refused_or_well_formed(data, action, fid):
    admin = Target().admin()
    where = 1 if fid == 0x7F else 0
    completion = admin.set_feature(fid, action << 13, data=data.ljust(4096, b"\0"), nsid=where)
    assert completion.status in (0, Status.INVALID_FIELD)
    assert len(admin.read_bytes(admin.get_feature(fid, length=4096, nsid=where))) == 4096


def test_the_length_of_a_features_data_is_that_of_the_specification():
    assert {fid: row.data_bytes for fid, row in FEATURES.items()} == {
        fid: FEATURE_DATA_BYTES.get(fid, 0) for fid in FEATURES
    }
