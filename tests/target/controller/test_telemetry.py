import errno
import json
from dataclasses import replace

import pytest

from nvmeof.spec.enums import FeatureId
from nvmeof.spec.features import HOST_BEHAVIOR_SUPPORT
from nvmeof.spec.persistent_events import EventType
from nvmeof.spec.properties import CC_OFFSET
from nvmeof.spec.status import Status
from nvmeof.spec.telemetry import HEADER
from nvmeof.target.controller import telemetry
from nvmeof.target.controller.telemetry import HostInitiated
from nvmeof.target.core.metadata import MemoryStore
from nvmeof.target.storage.ramdisk import Ramdisk
from nvmeof.target.subsystem.config import NamespaceConfig
from nvmeof.wire import build
from tests.target.harness import ADMIN, CC_ENABLE, HOST, NQN, Pending, Target

CREATE = 1
TELEMETRY_EVENT = 2 | 2 << 8 | 8 << 16


class Failing(Ramdisk):
    """A backend whose reads fail."""

    memory = None

    def acquire_read(self, offset, length):
        raise OSError(errno.EIO, "the medium is bad")


def page(queue, lid=7, *, lsp=0, rae=True):
    header = HEADER.parse(queue.read_bytes(queue.log_page(lid, 512, lsp=lsp, rae=True)))
    size = 512 * (max(header.da3lb, header.da4lb) + 1)
    return header, queue.read_bytes(queue.log_page(lid, size, rae=rae))


def documents(raw, last_block):
    text = raw[512 : 512 * (last_block + 1)].decode("ascii")
    return [json.loads(line) for line in text.splitlines()]


def enable_area_4(queue):
    assert queue.set_feature(0x16, data=build(HOST_BEHAVIOR_SUPPORT, etdas=1)).status == 0


def test_nothing_was_captured_yet():
    admin = Target().admin()
    for lid in (7, 8):
        header, raw = page(admin, lid)
        assert header.lid == lid and len(raw) == 512
        assert (header.da1lb, header.da2lb, header.da3lb, header.da4lb) == (0, 0, 0, 0)
        assert (header.tcda, header.tcdgn) == (0, 0)
    assert raw[380:384] == b"\0\2\0\0"


def test_a_capture_is_json_with_all_areas():
    target = Target(Ramdisk("1M"), Ramdisk("2M"))
    admin = target.admin()
    queue = target.io(admin)
    queue.command(0x02, length=512, nsid=1)
    queue.command(0x02, length=512, nsid=9)
    header, raw = page(admin, lsp=CREATE)
    assert (header.ths, header.thdgn) == (1, 1) and header.rid.rstrip(b"\0") == b"asked for by a host"
    assert 0 < header.da1lb < header.da2lb < header.da3lb and header.da4lb == 0
    for last, count in ((header.da1lb, 1), (header.da2lb, 2), (header.da3lb, 3)):
        found = documents(raw, last)
        assert [each["area"] for each in found] == list(range(1, count + 1)), "an area is whole text by itself"
    first, second, third = found
    assert first["format"] == "nvmeof-telemetry-1" and first["subsystem"]["nqn"] == NQN
    assert first["controller"]["state"] == "ready" and first["controller"]["host_nqn"] == HOST
    assert [each["qid"] for each in first["queues"]] == [0, 1]
    assert (first["queues"][1]["commands"], first["queues"][1]["refused"]) == (2, 1)
    assert [each["nsid"] for each in second["namespaces"]] == [1, 2] and second["namespaces"][0]["reads"] == 1
    assert "Timestamp" in second["features"] and "Host Identifier" not in second["features"]
    assert third["error_log"][0]["nsid"] == 9 and third["error_log"][0]["opcode"] == 2
    assert third["connections"] == []


def test_a_capture_has_figures_of_the_connection():
    target = Target()
    queue = target.queue()
    queue.ctx.connection = lambda: {"rtt_us": 17}
    queue.connect()
    queue.set_property(CC_OFFSET, CC_ENABLE)
    header, raw = page(queue, lsp=CREATE)
    assert documents(raw, header.da3lb)[2]["connections"] == [{"qid": 0, "rtt_us": 17}]


def test_the_capture_stays_until_the_next_one():
    target = Target()
    admin = target.admin()
    before = page(admin, lsp=CREATE)
    admin.command(0xFE)
    assert page(admin) == before, "reading without the bit changes nothing"
    admin.set_property(CC_OFFSET, CC_ENABLE & ~1)
    admin.set_property(CC_OFFSET, CC_ENABLE)
    assert page(admin) == before, "nor does a reset"
    header, raw = page(admin, lsp=CREATE)
    assert header.thdgn == 2 and raw != before[1]
    assert [event.type for event in target.subsystem.history.events].count(EventType.TELEMETRY_CREATED) == 2
    created = [event for event in target.subsystem.history.events if event.type == EventType.TELEMETRY_CREATED]
    assert created[-1].data == raw[:512]


def test_the_generation_wraps():
    admin = Target().admin()
    page(admin, lsp=CREATE)
    admin.controller.parts[HostInitiated].generation = 255
    assert page(admin, lsp=CREATE)[0].thdgn == 0


@pytest.mark.parametrize(("mcda", "areas"), [(0, 4), (1, 1), (2, 2), (3, 3), (4, 4)])
@pytest.mark.parametrize("etdas", [False, True])
def test_areas_that_are_made(mcda, areas, etdas):
    admin = Target().admin()
    if etdas:
        enable_area_4(admin)
    header, raw = page(admin, lsp=CREATE | mcda << 1)
    expected = areas if etdas else min(areas, 3)
    last = header.da4lb if expected == 4 else header.da3lb
    assert [each["area"] for each in documents(raw, last)] == list(range(1, expected + 1))
    assert (header.da4lb > header.da3lb) is (expected == 4)
    ends = [header.da1lb, header.da2lb, header.da3lb]
    assert ends == sorted(ends) and len(set(ends)) == min(expected, 3)


@pytest.mark.parametrize("mcda", [5, 6, 7])
def test_areas_that_do_not_exist(mcda):
    admin = Target().admin()
    assert admin.log_page(7, 512, lsp=CREATE | mcda << 1).status == Status.INVALID_FIELD


def test_area_4_is_shown_only_while_the_host_supports_it():
    admin = Target().admin()
    enable_area_4(admin)
    assert page(admin, lsp=CREATE)[0].da4lb
    admin.set_feature(0x16, data=bytes(512))
    header, raw = page(admin)
    assert header.da4lb == 0 and len(raw) == 512 * (header.da3lb + 1)


def test_the_page_is_bounded(monkeypatch):
    monkeypatch.setattr(telemetry, "AREA_BYTES_MAX", 300)
    admin = Target().admin()
    header, raw = page(admin, lsp=CREATE)
    assert len(raw) <= 512 * 7
    assert documents(raw, header.da3lb)[1]["left_out"] == "too long"


def test_the_page_is_bounded_with_a_long_history():
    target = Target(max_namespaces=1024)
    for _ in range(200):
        target.subsystem.add_namespace(NamespaceConfig(backend=Ramdisk("1M")))
    admin = target.admin()
    enable_area_4(admin)
    header, raw = page(admin, lsp=CREATE)
    found = documents(raw, header.da4lb)
    assert len(found[1]["namespaces"]) == 64 and len(found[3]["namespaces"]) == 201


# Captures of the controller


def event_request(admin):
    pending = admin.submit(admin.sqe(0x0C))
    assert isinstance(pending, Pending)
    return pending


def test_a_media_error_is_captured_and_reported():
    target = Target(Failing("1M"))
    admin, other = target.admin(), target.admin()
    for each in (admin, other):
        assert each.set_feature(0x0B, 1 << 10).status == 0
    pending, others = event_request(admin), event_request(other)
    queue = target.io(admin)
    assert queue.command(0x02, length=512, nsid=1).status == Status.UNRECOVERED_READ_ERROR
    assert pending.step().dw0 == others.step().dw0 == TELEMETRY_EVENT
    header, raw = page(admin, 8)
    assert (header.tcda, header.tcdgn) == (1, 1) and raw[381] == 2 and b"media error" in header.rid
    found = documents(raw, header.da3lb)
    assert found[0]["queues"][1]["refused"] == 1 and found[2]["error_log"][0]["nsid"] == 1
    assert page(admin, 7)[0].tcda == 1
    kinds = [event.type for event in target.subsystem.history.events]
    assert EventType.HARDWARE_ERROR in kinds and EventType.TELEMETRY_CREATED in kinds


def test_rae_keeps_the_capture_available():
    target = Target(Failing("1M"))
    admin = target.admin()
    admin.set_feature(0x0B, 1 << 10)
    target.io(admin).command(0x02, length=512, nsid=1)
    assert event_request_done(admin) == TELEMETRY_EVENT
    assert page(admin, 8)[0].tcda == 1
    assert page(admin, 8, rae=False)[0].tcda == 1
    header, raw = page(admin, 8)
    assert header.tcda == 0 and header.tcdgn == 1 and header.da3lb and raw[512:], "the data is still there"
    assert page(admin, 7)[0].tcda == 0


def event_request_done(admin):
    return admin.command(0x0C).dw0


def test_repeated_errors_are_not_captured_for_a_while():
    target = Target(Failing("1M"))
    admin = target.admin()
    queue = target.io(admin)
    for _ in range(10):
        queue.command(0x02, length=512, nsid=1)
    assert page(admin, 8)[0].tcdgn == 1
    target.runtime.time += telemetry.QUIET_SECONDS
    queue.command(0x02, length=512, nsid=1)
    assert page(admin, 8)[0].tcdgn == 2


def test_an_internal_error_is_captured_and_an_error_event(monkeypatch):
    target = Target()
    admin = target.admin()
    pending = event_request(admin)

    def broken(ctx, sqe, data):
        raise RuntimeError("a defect")

    monkeypatch.setitem(ADMIN, 0x18, replace(ADMIN[0x18], handler=broken))
    assert admin.command(0x18).status == Status.INTERNAL_ERROR
    assert pending.step().dw0 == 0 | 4 << 8 | 1 << 16, "Transient Internal Error, without being enabled"
    assert b"internal error: a defect" in page(admin, 8)[0].rid


def test_a_capture_that_fails_is_a_line_of_the_log(monkeypatch, caplog):
    target = Target(Failing("1M"))
    admin = target.admin()

    def broken(controller):
        raise RuntimeError("a defect")

    monkeypatch.setattr(telemetry, "_area_1", broken)
    completion = target.io(admin).command(0x02, length=512, nsid=1)
    assert completion.status == Status.UNRECOVERED_READ_ERROR
    assert "could not be recorded: RuntimeError: a defect" in caplog.text


def test_a_protocol_fault_is_captured_for_the_others():
    target = Target()
    admin, other = target.admin(), target.admin()
    queue = target.io(admin)
    queue.ctx.detach("protocol error: nonsense", fault=True)
    header, raw = page(other, 8)
    assert b"queue 1 ended: protocol error: nonsense" in header.rid
    assert documents(raw, header.da1lb)[0]["controller"]["cntlid"] == admin.controller.cntlid
    target.io(other).ctx.detach("closed by the host")
    assert page(other, 8)[0].tcdgn == 1, "an ordinary end is no fault"


def test_discovery_controllers_have_none():
    target = Target()
    queue = target.discovery()
    queue.ctx.detach("protocol error", fault=True)
    assert target.registry.discovery.telemetry is None or not target.registry.discovery.telemetry.areas


def test_a_capture_outlives_the_process_except_area_4():
    metadata_store = MemoryStore()
    target = Target(Failing("1M"), metadata_store=metadata_store)
    admin = target.admin()
    enable_area_4(admin)
    target.io(admin).command(0x02, length=512, nsid=1)
    header, raw = page(admin, 8)
    assert header.da4lb > header.da3lb
    metadata_store.put("telemetry", json.loads(json.dumps(metadata_store.get("telemetry"))))
    again = Target(Failing("1M"), metadata_store=metadata_store).admin()
    enable_area_4(again)
    kept, text = page(again, 8)
    assert (kept.tcda, kept.tcdgn, kept.rid) == (1, 1, header.rid)
    assert kept.da3lb == header.da3lb and text[512:] == raw[512 : 512 * (header.da3lb + 1)]


@pytest.mark.parametrize("kept", [17, {}, {"areas": 3}, {"areas": ["é"], "generation": 1, "reason": ""}, []])
def test_an_unreadable_capture_is_ignored(kept, caplog):
    metadata_store = MemoryStore()
    metadata_store.put("telemetry", kept)
    admin = Target(metadata_store=metadata_store).admin()
    assert page(admin, 8)[0].da3lb == 0
    assert "cannot be read" in caplog.text


def test_features_by_name():
    admin = Target().admin()
    admin.set_feature(FeatureId.ARBITRATION, 0x03)
    header, raw = page(admin, lsp=CREATE)
    features = documents(raw, header.da2lb)[1]["features"]
    assert features["Arbitration"] == 3
