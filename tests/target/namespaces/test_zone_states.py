"""Every cell of the table of zone states, through the state machine and through commands."""

import pytest

from nvmeof.errors import CommandError
from nvmeof.spec.status import Status
from nvmeof.spec.zns import ZoneSendAction, ZoneState
from nvmeof.target.namespaces.zone_geometry import ZoneGeometry
from nvmeof.target.namespaces.zone_states import (
    ACTIONS,
    ACTIVE_STATES,
    COLUMNS,
    OPEN_STATES,
    SELECTED,
    TRANSITIONS,
    ZoneInput,
)
from nvmeof.target.storage.ramdisk import Ramdisk
from nvmeof.target.subsystem.config import NamespaceConfig
from tests.target.harness import Target
from tests.target.zone_tools import BLOCK, ZONE, append, descriptor, read, send, write

HOST = [what for what in ZoneInput if what in ACTIONS.values()]
E, IO, EO, C, F, RO, OFF = COLUMNS


def make(**geometry):
    target = Target()
    config = NamespaceConfig(
        backend=Ramdisk("1M"), zoned=ZoneGeometry(zone_bytes=ZONE * BLOCK, extension_bytes=64, **geometry)
    )
    target.subsystem.add_namespace(config)
    return target, target.io(target.admin()), target.subsystem.namespaces[2]


def bring(queue, namespace, state: ZoneState, zone: int = 1) -> None:
    """Bring a zone into a state by actions of a host or the target, with written data where possible."""
    zslba = zone * ZONE
    item = namespace.zones.zones[zone]
    if state in (IO, EO, C, F, RO, OFF):
        assert write(queue, zslba, b"a" * BLOCK).status == 0
    if state is EO:
        assert send(queue, ZoneSendAction.OPEN, zslba).status == 0
    elif state is C:
        assert send(queue, ZoneSendAction.CLOSE, zslba).status == 0
    elif state is F:
        assert send(queue, ZoneSendAction.FINISH, zslba).status == 0
    elif state is RO:
        namespace.zones.degrade(item)
    elif state is OFF:
        namespace.zones.degrade(item, readable=False)
    assert item.state is state


def test_the_table_is_complete():
    assert set(COLUMNS) == set(ZoneState) and set(TRANSITIONS) == set(ZoneInput)
    for what, row in TRANSITIONS.items():
        if what not in (ZoneInput.FILL, ZoneInput.UNFILL, ZoneInput.RELEASE):
            assert set(row) == set(ZoneState), what
    assert OPEN_STATES < ACTIVE_STATES
    for what, states in SELECTED.items():
        assert all(isinstance(TRANSITIONS[what][state], ZoneState) for state in states)
    # An action for all zones is for those that it changes, except that empty zones are never opened in such numbers.
    for what in (ZoneInput.CLOSE, ZoneInput.RESET, ZoneInput.TAKE_OFFLINE):
        changing = {s for s, n in TRANSITIONS[what].items() if isinstance(n, ZoneState) and n is not s}
        assert SELECTED[what] == changing


@pytest.mark.parametrize("what", HOST)
@pytest.mark.parametrize("state", COLUMNS)
def test_zone_management_send(state, what):
    _, queue, namespace = make()
    bring(queue, namespace, state)
    action = next(action for action, each in ACTIONS.items() if each is what)
    data = bytes(64) if what is ZoneInput.SET_EXTENSION else None
    completion = send(queue, action, ZONE, data)
    expected = TRANSITIONS[what][state]
    after = namespace.zones.zones[1].state
    if isinstance(expected, ZoneState):
        assert completion.status == 0 and after is expected
    else:
        assert completion.status == expected and after is state
        assert queue.controller.error_log.newest()[0].error_location == 40
    assert descriptor(queue, 1).state is after


@pytest.mark.parametrize("what", list(SELECTED))
@pytest.mark.parametrize("state", COLUMNS)
def test_zone_management_send_for_all(state, what):
    _, queue, namespace = make()
    bring(queue, namespace, state)
    action = next(action for action, each in ACTIONS.items() if each is what)
    assert send(queue, action, 12345, select_all=True).status == 0, "SLBA is not looked at"
    expected = TRANSITIONS[what][state] if state in SELECTED[what] else state
    assert namespace.zones.zones[1].state is expected
    assert all(zone.state is E for zone in namespace.zones.zones if zone.index != 1)


WRITES = {
    "write": lambda queue, slba: write(queue, slba, b"b" * BLOCK),
    "append": lambda queue, slba: append(queue, ZONE, b"b" * BLOCK),
    "write zeroes": lambda queue, slba: queue.command(0x08, nsid=2, cdw10=slba),
    "write uncorrectable": lambda queue, slba: queue.command(0x04, nsid=2, cdw10=slba),
    "copy": lambda queue, slba: queue.command(0x19, bytes(32), nsid=2, cdw10=slba, cdw12=0),
}


@pytest.mark.parametrize("kind", WRITES)
@pytest.mark.parametrize("state", COLUMNS)
def test_writes(state, kind):
    _, queue, namespace = make()
    bring(queue, namespace, state)
    zone = namespace.zones.zones[1]
    pointer = zone.pointer
    completion = WRITES[kind](queue, pointer)
    if hasattr(completion, "completion"):
        completion = completion.completion
    expected = TRANSITIONS[ZoneInput.WRITE][state]
    if isinstance(expected, ZoneState):
        assert completion.status == 0 and zone.state is expected
        assert zone.pointer == zone.written == pointer + 1
    else:
        assert completion.status == expected and zone.state is state and zone.pointer == pointer
        assert queue.controller.error_log.newest()[0].error_location == 40


READS = {
    "read": lambda queue: read(queue, ZONE, 2),
    "compare": lambda queue: queue.command(0x05, b"a" * BLOCK, nsid=2, cdw10=ZONE),
    "verify": lambda queue: queue.command(0x0C, nsid=2, cdw10=ZONE, cdw12=1),
    "copy": lambda queue: queue.command(0x19, (ZONE).to_bytes(16, "big")[::-1].rjust(16, b"\0")[:0]
                                        + bytes(8) + ZONE.to_bytes(8, "little") + bytes(16), nsid=2, cdw10=0, cdw12=0),
}  # fmt: skip


@pytest.mark.parametrize("kind", READS)
@pytest.mark.parametrize("state", COLUMNS)
def test_reads(state, kind):
    _, queue, namespace = make()
    bring(queue, namespace, state)
    completion = READS[kind](queue)
    expected = TRANSITIONS[ZoneInput.READ][state]
    if isinstance(expected, ZoneState):
        good = 0 if state is not E or kind != "compare" else Status.COMPARE_FAILURE
        assert completion.status == good
    else:
        assert completion.status == expected
        assert queue.controller.error_log.newest()[0].error_location == 40
    assert namespace.zones.zones[1].state is state


@pytest.mark.parametrize("state", COLUMNS)
def test_filling(state):
    """The pointer reaches the capacity: the zone is full, from every state that can be written."""
    _, queue, namespace = make()
    bring(queue, namespace, state)
    zone = namespace.zones.zones[1]
    writable = isinstance(TRANSITIONS[ZoneInput.WRITE][state], ZoneState)
    completion = write(queue, zone.pointer, b"c" * BLOCK * (zone.limit - zone.pointer or 1))
    assert (completion.status == 0) == writable
    assert zone.state is (F if writable else state)
    opened = {TRANSITIONS[ZoneInput.WRITE][each] for each in COLUMNS} & set(ZoneState)
    assert set(TRANSITIONS[ZoneInput.FILL]) == opened


@pytest.mark.parametrize("state", COLUMNS)
def test_writes_that_fail(state):
    """From every state that can be written: the zone is as before, but open, or closed where the write would have
    filled it.
    """
    for fill in (False, True):
        _, queue, namespace = make()
        bring(queue, namespace, state)
        zones, zone = namespace.zones, namespace.zones.zones[1]
        following = TRANSITIONS[ZoneInput.WRITE][state]
        if not isinstance(following, ZoneState):
            continue
        pointer = zone.pointer
        place = zones.begin_write(pointer, zone.limit - pointer if fill else 1)
        assert zone.state is (F if fill else following)
        zones.end(place, good=False)
        assert zone.state is (TRANSITIONS[ZoneInput.UNFILL][F] if fill else following)
        assert zone.pointer == pointer and zones.active == 1 and zones.opened == (0 if fill else 1)
    assert set(TRANSITIONS[ZoneInput.UNFILL]) == {F}


@pytest.mark.parametrize("meanwhile", [ZoneInput.FINISH, ZoneInput.DEGRADE, ZoneInput.LOSE])
def test_a_write_that_fails_in_a_zone_that_has_moved_on(meanwhile):
    _, queue, namespace = make()
    zones, zone = namespace.zones, namespace.zones.zones[1]
    place = zones.begin_write(ZONE, 1)
    if meanwhile is ZoneInput.FINISH:
        assert send(queue, ZoneSendAction.FINISH, ZONE).status == 0
    else:
        zones.degrade(zone, readable=meanwhile is ZoneInput.DEGRADE)
    state = zone.state
    zones.end(place, good=False)
    assert zone.state is state and zone.written == ZONE


@pytest.mark.parametrize("state", COLUMNS)
def test_release(state):
    """Only an implicitly open zone is closed for another zone."""
    _, queue, namespace = make(max_open=1)
    bring(queue, namespace, state)
    completion = write(queue, 3 * ZONE, b"d" * BLOCK)
    zone = namespace.zones.zones[1]
    if state is EO:
        assert completion.status == Status.TOO_MANY_OPEN_ZONES and zone.state is EO
        assert queue.controller.error_log.newest()[0].error_location == 40
    else:
        assert completion.status == 0
        assert zone.state is (TRANSITIONS[ZoneInput.RELEASE][state] if state is IO else state)
    assert set(TRANSITIONS[ZoneInput.RELEASE]) == {IO}


@pytest.mark.parametrize("readable", [True, False])
@pytest.mark.parametrize("state", COLUMNS)
def test_degrade_and_lose(state, readable):
    _, queue, namespace = make()
    bring(queue, namespace, state)
    zone = namespace.zones.zones[1]
    namespace.zones.degrade(zone, readable=readable)
    assert zone.state is TRANSITIONS[ZoneInput.DEGRADE if readable else ZoneInput.LOSE][state]


@pytest.mark.parametrize("state", COLUMNS)
def test_restart(state):
    """The namespace is removed and comes back: its backend has stored the zones."""
    target, queue, namespace = make()
    bring(queue, namespace, state)
    before = namespace.zones.zones[1].record
    target.subsystem.remove_namespace(2)
    target.subsystem.add_namespace(NamespaceConfig(backend=namespace.backend, zoned=namespace.geometry, nsid=2))
    again = target.subsystem.namespaces[2]
    zone = again.zones.zones[1]
    assert again is not namespace and zone.state is TRANSITIONS[ZoneInput.RESTART][state]
    assert (zone.record.attributes, zone.record.written) == (before.attributes, before.written)
    if state is not OFF:
        assert queue.read_bytes(read(queue, ZONE, 1)) == (bytes(BLOCK) if state is E else b"a" * BLOCK)


def test_an_opened_zone_without_data_is_empty_again_after_a_restart():
    target, queue, namespace = make()
    send(queue, ZoneSendAction.OPEN, 0)
    send(queue, ZoneSendAction.SET_EXTENSION, ZONE, b"x" * 64)
    target.subsystem.remove_namespace(2)
    target.subsystem.add_namespace(NamespaceConfig(backend=namespace.backend, zoned=namespace.geometry, nsid=2))
    zones = target.subsystem.namespaces[2].zones
    assert (zones.zones[0].state, zones.zones[1].state, zones.active) == (E, C, 1)


@pytest.mark.parametrize("state", COLUMNS)
def test_counts(state):
    _, queue, namespace = make()
    bring(queue, namespace, state)
    assert namespace.zones.active == (state in ACTIVE_STATES) and namespace.zones.opened == (state in OPEN_STATES)
    namespace.zones.reset_all()
    assert namespace.zones.active == namespace.zones.opened == 0


@pytest.mark.parametrize("state", COLUMNS)
def test_finished_by_the_controller(state):
    _, queue, namespace = make()
    bring(queue, namespace, state)
    zone = namespace.zones.zones[1]
    expected = TRANSITIONS[ZoneInput.FINISH][state]
    if isinstance(expected, ZoneState):
        namespace.zones.finish(zone)
        assert zone.state is F and bool(zone.attributes & 1) == (state is not F)
        assert send(queue, ZoneSendAction.RESET, ZONE).status == 0 and zone.attributes == 0
    else:
        with pytest.raises(CommandError):
            namespace.zones.finish(zone)
