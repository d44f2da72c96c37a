from hypothesis import given, settings
from hypothesis import strategies as st

from nvmeof.spec.enums import FeatureId
from nvmeof.spec.log_pages import SMART_HEALTH
from nvmeof.spec.namespace_management import NAMESPACE_CREATE
from nvmeof.spec.persistent_events import (
    CHANGE_NAMESPACE,
    FORMAT_COMPLETION,
    FORMAT_START,
    HARDWARE_ERROR,
    HEADER,
    RESET_INFORMATION,
    SANITIZE_COMPLETION,
    SANITIZE_START,
    TIMESTAMP_CHANGE,
    EventType,
    HardwareErrorCode,
    parse_events,
)
from nvmeof.spec.properties import CC_OFFSET
from nvmeof.spec.status import Status
from nvmeof.target.commands.logs import logs_health
from nvmeof.target.core.metadata import MemoryStore
from nvmeof.target.storage.pools import RamdiskPool
from nvmeof.target.storage.ramdisk import Ramdisk
from nvmeof.target.subsystem.persistent_events import FREQUENT_EVENTS, HISTORY_BYTES, History, set_feature
from nvmeof.wire import build
from tests.target.event_log_tools import ESTABLISH, HEADER_ONLY, PEL, READ, RELEASE, events_of, kinds, reset
from tests.target.harness import CC_ENABLE, NQN, Target
from tests.target.media_tools import Flawed, error, submit

# The page and its contexts


def test_the_header_field_by_field():
    target = Target()
    target.subsystem.power_on(target.runtime.time)
    admin = target.admin()
    target.runtime.time += 7200
    raw = admin.read_bytes(admin.log_page(PEL, 512, lsp=ESTABLISH))
    header = HEADER.parse(raw)
    assert (header.lid, header.tnev, header.lrev, header.lhl) == (0x0D, 1, 3, 492)
    assert header.tll == 512 + 24 + 8 and (header.poh, header.pwrcc) == (2, 1)
    assert (header.sn, header.subnqn) == (target.subsystem.config.serial_number, NQN)
    assert header.mn == "nvmeof" and (header.vid, header.ssvid) == (0, 0)
    assert (header.gnum, header.rci) == (1, 0)
    assert int.from_bytes(header.tstmp[:6], "little") == 7200_000
    bits = int.from_bytes(header.seb, "little")
    always = {1, 3, 4, 5, 0x0B, 0x0C}
    assert always <= {bit for bit in range(256) if bits >> bit & 1} <= always | {6, 7, 8, 9, 10}


ACTIONS = st.lists(st.sampled_from([READ, ESTABLISH, RELEASE, HEADER_ONLY, "reset", "event"]), max_size=20)


@settings(max_examples=60, deadline=None)
@given(ACTIONS)
def test_contexts_against_a_model(actions):
    target = Target()
    admin = target.admin()
    controller = admin.controller
    context = None
    generation = 0
    for action in actions:
        if action == "reset":
            reset(admin)
            context = None
            continue
        if action == "event":
            controller.record(EventType.HARDWARE_ERROR, b"\x06\0\0\0")
            continue
        completion = admin.log_page(PEL, 8192, lsp=action)
        if (action == READ and context is None) or (action == ESTABLISH and context is not None):
            assert completion.status == Status.COMMAND_SEQUENCE_ERROR
            continue
        assert completion.status == 0
        if action == RELEASE:
            assert not any(completion.data)
            context = None
            continue
        existed = context is not None
        if context is None:
            generation += 1
            context = list(reversed(target.subsystem.history.events))
        header = HEADER.parse(bytes(completion.data)[:512])
        assert (header.gnum, header.tnev) == (generation, len(context))
        if action == HEADER_ONLY:
            assert header.rci == (1 << 18 | 1 << 16 | controller.port.portid if existed else 0)
            assert not any(bytes(completion.data)[512:])
        else:
            assert header.rci == 0
            if header.tll <= 8192:
                assert list(parse_events(completion.data)) == context


def test_a_context_belongs_to_one_controller():
    target = Target()
    first, second = target.admin(), target.admin()
    assert first.log_page(PEL, 512, lsp=ESTABLISH).status == 0
    assert second.log_page(PEL, 512, lsp=READ).status == Status.COMMAND_SEQUENCE_ERROR
    assert second.log_page(PEL, 512, lsp=ESTABLISH).status == 0


def test_later_events_are_not_in_a_context():
    target = Target()
    admin = target.admin()
    before = admin.read_bytes(admin.log_page(PEL, 4096, lsp=ESTABLISH))
    admin.controller.record(EventType.HARDWARE_ERROR, b"\x06\0\0\0")
    assert admin.read_bytes(admin.log_page(PEL, 4096, lsp=READ)) == before
    admin.log_page(PEL, 512, lsp=RELEASE)
    assert kinds(admin)[0] == EventType.HARDWARE_ERROR


# Recorded events


def test_power_on_and_resets():
    target = Target()
    target.subsystem.power_on(target.runtime.time)
    admin = target.admin()
    target.runtime.time += 3
    reset(admin)
    newest, oldest = events_of(admin)
    assert newest.type == oldest.type == EventType.POWER_ON_OR_RESET
    assert oldest.data == target.subsystem.config.firmware.encode().ljust(8) and oldest.cntlid == 0xFFFF
    descriptor = RESET_INFORMATION.parse(newest.data[8:])
    assert (descriptor.cntlid, descriptor.cpwrc, descriptor.poms) == (admin.controller.cntlid, 1, 3000)
    assert int.from_bytes(descriptor.cts[:6], "little") == 3000 and newest.portid == 1


def test_a_timestamp_that_is_set():
    target = Target()
    admin = target.admin()
    target.runtime.time += 5
    stamp = (1_700_000_000_000).to_bytes(6, "little") + bytes(2)
    assert admin.set_feature(FeatureId.TIMESTAMP, data=stamp).status == 0
    (event,) = [each for each in events_of(admin) if each.type == EventType.TIMESTAMP_CHANGE]
    data = TIMESTAMP_CHANGE.parse(event.data)
    assert int.from_bytes(data.ptstp[:6], "little") == 5000 and data.msr == 5000
    assert event.timestamp[:6] == stamp[:6] and event.timestamp[6] == 1 << 1


def test_features_that_change():
    target = Target()
    admin = target.admin()
    admin.set_feature(FeatureId.ARBITRATION, 0x07)
    assert EventType.SET_FEATURE not in kinds(admin), "it was that already"
    admin.set_feature(FeatureId.ARBITRATION, 0x01020303)
    (event,) = [each for each in events_of(admin) if each.type == EventType.SET_FEATURE]
    assert event.data == b"\x0a\0\0\0" + b"\1\0\0\0" + b"\3\3\2\1" + bytes(4)
    admin.set_feature(FeatureId.ASYNC_EVENT_CONFIGURATION, 0x100)
    admin.set_feature(FeatureId.ARBITRATION, 0x1F0)
    assert kinds(admin).count(EventType.SET_FEATURE) == 1, "not what every host sets, nor what was refused"


def test_the_data_of_a_set_feature_event():
    assert set_feature([1, 2, 3], b"ab\0\0", 9) == (b"\x0b\0\2\0" + b"\1\0\0\0\2\0\0\0\3\0\0\0" + b"ab" + b"\x09\0\0\0")


def test_a_fatal_configuration():
    target = Target()
    admin = target.queue()
    admin.connect()
    admin.set_property(CC_OFFSET, CC_ENABLE | 3 << 7)
    (event,) = target.subsystem.history.events
    assert HARDWARE_ERROR.parse(event.data).nssheec == HardwareErrorCode.CONTROLLER_FATAL_STATUS


def test_a_format():
    target = Target(Ramdisk("1M"))
    admin = target.admin()
    assert submit(target, admin, 0x80, nsid=1, cdw10=1).status == 0
    completed, started = events_of(admin)[:2]
    assert (started.type, completed.type) == (EventType.FORMAT_START, EventType.FORMAT_COMPLETION)
    start, end = FORMAT_START.parse(started.data), FORMAT_COMPLETION.parse(completed.data)
    assert (start.nsid, start.fcdw10, end.nsid, end.fstat, end.info) == (1, 1, 1, 0, 0)


def test_a_format_that_fails():
    backend = Flawed("1M")
    backend.fails["write_zeroes"] = error()
    target = Target(backend)
    admin = target.admin()
    status = submit(target, admin, 0x80, nsid=1).status
    assert status
    (event,) = [each for each in events_of(admin) if each.type == EventType.FORMAT_COMPLETION]
    end = FORMAT_COMPLETION.parse(event.data)
    assert end.fstat == 1 and end.info >> 1 & 0x7FF == status


def test_a_sanitize_operation():
    target = Target(Ramdisk("1M"))
    admin = target.admin()
    assert submit(target, admin, 0x84, cdw10=2).status == 0
    for _ in range(1000):
        target.runtime.turn()
    found = {event.type: event.data for event in events_of(admin)}
    assert SANITIZE_START.parse(found[EventType.SANITIZE_START]).scdw10 == 2
    assert SANITIZE_COMPLETION.parse(found[EventType.SANITIZE_COMPLETION]).sprog == 0xFFFF


def test_namespaces_that_are_created_and_deleted():
    target = Target(pool=RamdiskPool("10M"))
    admin = target.admin()
    data = build(NAMESPACE_CREATE, nsze=2048, ncap=2048, nmic=1)
    completion = submit(target, admin, 0x0D, data)
    assert completion.status == 0
    assert submit(target, admin, 0x0D, nsid=completion.dw0, cdw10=1).status == 0
    deleted, created = [CHANGE_NAMESPACE.parse(e.data) for e in events_of(admin) if e.type == 6]
    for event, select in ((created, 0), (deleted, 1)):
        assert (event.nmcdw10, event.nsid, event.nsze, event.ncap) == (select, completion.dw0, 2048, 2048)
        assert (event.nmic, event.anagrpid, event.endgid) == (1, 1, 1)


def test_smart_is_recorded_once_a_day():
    target = Target()
    admin = target.admin()
    controller = admin.controller
    for _ in range(3):
        logs_health.snapshot(controller)
    target.runtime.time += 24 * 3600
    logs_health.snapshot(controller)
    logs_health.snapshot(target.admin().controller)
    found = [event for event in events_of(admin) if event.type == EventType.SMART_SNAPSHOT]
    assert len(found) == 2
    assert SMART_HEALTH.parse(found[0].data).available_spare == 100 and len(found[0].data) == 512


def test_discovery_controllers_record_nothing():
    target = Target()
    queue = target.discovery()
    reset(queue)
    assert not target.registry.discovery.history.events


# Bounds


def test_the_oldest_events_are_dropped():
    history = History(MemoryStore())
    for number in range(300):
        history.add(EventType.SMART_SNAPSHOT, number.to_bytes(2, "little") + bytes(510), now=number * 1000.0)
    assert sum(event.length_bytes for event in history.events) <= HISTORY_BYTES
    assert len(history) == HISTORY_BYTES // 536
    assert history.events[-1].data[:2] == (299).to_bytes(2, "little")


def test_frequent_events_are_not_all_recorded():
    history = History(MemoryStore())
    for number in range(100):
        history.add(EventType.POWER_ON_OR_RESET, b"", now=number / 10)
    assert len(history) == FREQUENT_EVENTS and history.suppressed == 100 - FREQUENT_EVENTS
    history.add(EventType.HARDWARE_ERROR, b"", now=10.0)
    history.add(EventType.POWER_ON_OR_RESET, b"", now=70.0)
    assert len(history) == FREQUENT_EVENTS + 2


# Over restarts
