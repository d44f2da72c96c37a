"""The rules of reservations, without commands."""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from nvmeof.errors import CommandError
from nvmeof.spec.reservations import NotificationType, RegisterAction, ReservationType
from nvmeof.spec.sqe import SQE
from nvmeof.spec.status import Status
from nvmeof.target.namespaces.reservations import BARRED, REGISTRANTS_MAX, Group, Reservations, Standing
from tests.target.reservation_model import BEHAVIOR, COLUMNS, EAAR, WEAR, Model

HOSTS = range(4)
KEYS = range(4)  # few, so that hosts share them; 0 among them
TYPES = st.sampled_from(ReservationType)
DATA, OPCODE, RTYPE = SQE.error_location("sgl_address"), SQE.error_location("opcode"), SQE.error_location("cdw10", 8)


def hostid(host: int) -> bytes:
    return bytes([host + 1]) * 16


def registered(*pairs: tuple[int, int], rtype: ReservationType | None = None, holder: int = 0) -> Reservations:
    state = Reservations()
    for host, key in pairs:
        state = state.register(hostid(host), RegisterAction.REGISTER, 0, key).state
    return state if rtype is None else state.acquire(hostid(holder), dict(pairs)[holder], rtype).state


def refused(call) -> tuple[int, int]:
    with pytest.raises(CommandError) as caught:
        call()
    assert caught.value.dnr or caught.value.status == Status.INTERNAL_ERROR
    return caught.value.status, caught.value.error_location


@pytest.mark.parametrize("rtype", ReservationType)
@pytest.mark.parametrize("group", Group)
def test_every_cell_of_the_table(rtype, group):
    """Holders are never refused; the rest is the specification's table, of which the model has a separate copy."""
    state = registered((0, 1), (1, 2), rtype=rtype)
    row = BEHAVIOR[{Group.READ: "read", Group.WRITE: "write", Group.OTHER: "other"}[group]]
    column = COLUMNS[rtype]
    everybody = rtype in (WEAR, EAAR)
    assert state.standing(hostid(0)) is Standing.HOLDER
    assert state.standing(hostid(1)) is (Standing.HOLDER if everybody else Standing.REGISTRANT)
    assert state.standing(hostid(2)) is Standing.NON_REGISTRANT
    assert not state.bars(hostid(0), group)
    assert state.bars(hostid(1), group) == (row[column + 1] == "C")
    assert state.bars(hostid(2), group) == (row[column] == "C")
    released = state.release(hostid(0), 1, rtype).state
    assert not any(released.bars(hostid(host), group) for host in range(3))


def test_who_may_write_may_read():
    """A command that reads and writes is checked as a write alone."""
    for table in BARRED.values():
        assert table[Group.READ] <= table[Group.WRITE]


def test_error_locations():
    state = registered((0, 1), (1, 2), rtype=ReservationType.WRITE_EXCLUSIVE)
    conflict, one, two = Status.RESERVATION_CONFLICT, hostid(0), hostid(1)
    stranger, rtype = hostid(2), ReservationType.WRITE_EXCLUSIVE
    assert refused(lambda: state.register(one, RegisterAction.REGISTER, 1, 9)) == (conflict, DATA)
    assert refused(lambda: state.register(one, RegisterAction.REPLACE, 7, 9)) == (conflict, DATA)
    assert refused(lambda: state.register(one, RegisterAction.UNREGISTER, 7, 0)) == (conflict, DATA)
    assert refused(lambda: state.register(stranger, RegisterAction.UNREGISTER, 7, 0)) == (conflict, OPCODE)
    assert refused(lambda: state.register(stranger, RegisterAction.REPLACE, 7, 1)) == (conflict, OPCODE)
    assert refused(lambda: state.acquire(stranger, 1, rtype)) == (conflict, OPCODE)
    assert refused(lambda: state.acquire(one, 2, rtype)) == (conflict, DATA)
    assert refused(lambda: state.acquire(two, 2, rtype)) == (conflict, OPCODE)
    assert refused(lambda: state.acquire(one, 1, ReservationType.EXCLUSIVE_ACCESS)) == (conflict, OPCODE)
    everybody = registered((0, 1), (1, 2), rtype=ReservationType.WRITE_EXCLUSIVE_ALL_REGISTRANTS)
    assert refused(lambda: everybody.preempt(two, 2, 3, rtype)) == (conflict, DATA)
    assert refused(lambda: state.preempt(two, 2, 0, rtype)) == (Status.INVALID_FIELD, DATA)
    assert refused(lambda: state.release(one, 1, ReservationType.EXCLUSIVE_ACCESS)) == (Status.INVALID_FIELD, RTYPE)
    assert refused(lambda: state.release(stranger, 1, rtype)) == (conflict, OPCODE)
    assert refused(lambda: state.clear(two, 3)) == (conflict, DATA)


def test_a_key_that_is_registered_again():
    state = registered((0, 5))
    again = state.register(hostid(0), RegisterAction.REGISTER, 0, 5).state
    assert (again.registrants, again.generation) == (state.registrants, 2)


@pytest.mark.parametrize("rtype", ReservationType)
@pytest.mark.parametrize("new", ReservationType)
def test_a_change_of_the_type_is_notified_to_remaining_registrants(rtype, new):
    state = registered((0, 1), (1, 2), (2, 3), rtype=rtype)
    everybody = rtype in (WEAR, EAAR)
    outcome = state.preempt(hostid(1), 2, 0 if everybody else 1, new)
    told = {notice.kind: notice.hosts for notice in outcome.notices}
    expected = {NotificationType.REGISTRATION_PREEMPTED: {hostid(0), hostid(2)} if everybody else {hostid(0)}}
    if new is not rtype and not everybody:
        expected[NotificationType.RESERVATION_RELEASED] = {hostid(2)}
    assert told == expected
    assert outcome.preempted == expected[NotificationType.REGISTRATION_PREEMPTED]


@pytest.mark.parametrize("rtype", [None, ReservationType.WRITE_EXCLUSIVE, ReservationType.EXCLUSIVE_ACCESS])
def test_preempting_nobody(rtype):
    """Preempting nobody is an error only where all registrants hold the reservation."""
    state = registered((0, 1), (1, 2), rtype=rtype)
    outcome = state.preempt(hostid(1), 2, 77, ReservationType.EXCLUSIVE_ACCESS)
    assert outcome.state == replace(state, generation=3)
    assert not outcome.notices and not outcome.preempted


def test_ignoring_a_key_that_is_not_registered():
    state = Reservations()
    assert state.register(hostid(0), RegisterAction.UNREGISTER, 1, 0, ignore_key=True).state.generation == 1
    replaced = state.register(hostid(0), RegisterAction.REPLACE, 1, 8, ignore_key=True).state
    assert dict(replaced.registrants) == {hostid(0): 8}


def test_generation_wraps():
    state = Reservations(generation=0xFFFFFFFF)
    assert state.register(hostid(0), RegisterAction.REGISTER, 0, 1).state.generation == 0


def test_number_of_registrants():
    hosts = {i.to_bytes(16, "big"): i for i in range(REGISTRANTS_MAX)}
    state = Reservations(registrants=hosts)
    assert refused(lambda: state.register(b"x" * 16, RegisterAction.REGISTER, 0, 1))[0] == Status.INTERNAL_ERROR
    assert state.register(bytes(16), RegisterAction.REPLACE, 0, 1).state.registrants[bytes(16)] == 1


def test_a_registration_joins_the_holders():
    state = registered((0, 1), rtype=ReservationType.EXCLUSIVE_ACCESS_ALL_REGISTRANTS)
    state = state.register(hostid(1), RegisterAction.REGISTER, 0, 2).state
    assert state.holds(hostid(1))
    state = state.register(hostid(0), RegisterAction.UNREGISTER, 1, 0).state
    assert state.rtype is ReservationType.EXCLUSIVE_ACCESS_ALL_REGISTRANTS
    assert state.register(hostid(1), RegisterAction.UNREGISTER, 2, 0).state.rtype is None


@pytest.mark.parametrize(
    "change",
    [
        None,
        [],
        {"registrants": {"zz": 1}},
        {"registrants": {"00": 1}},
        {"registrants": {"11" * 16: -1}},
        {"registrants": {"11" * 16: 1 << 64}},
        {"registrants": [1]},
        {"type": 7},
        {"type": "x"},
        {"holder": ""},
        {"holder": "22" * 16},
        {"holder": 3},
        {"type": 0},
        {"type": 5},
        {"generation": None},
        {"registrants": {}, "type": 5, "holder": ""},
    ],
)
def test_invalid_documents(change):
    document = registered((0, 1), rtype=ReservationType.WRITE_EXCLUSIVE).document()
    assert Reservations.from_document(document).holds(hostid(0))
    with pytest.raises(ValueError):
        Reservations.from_document({**document, **change} if isinstance(change, dict) else change)


@given(st.dictionaries(st.binary(min_size=16, max_size=16), st.integers(0, (1 << 64) - 1), max_size=6), TYPES)
def test_documents(registrants, rtype):
    state = Reservations(registrants, generation=77, persistent=True)
    if registrants:
        host, key = next(iter(registrants.items()))
        state = state.acquire(host, key, rtype).state
    assert Reservations.from_document(json.loads(json.dumps(state.document()))) == state


class Actions(RuleBasedStateMachine):
    """Any sequence of actions of several hosts, against the model."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.state = Reservations()

    def compare(self, expected: int, act) -> None:
        notified, self.model.notified = self.model.notified, []
        aborted, self.model.aborted = self.model.aborted, set()
        before = self.state
        try:
            outcome = act(before)
        except CommandError as error:
            assert error.status == expected
            assert not notified and not aborted
            return
        assert expected == 0
        self.state = outcome.state
        told = {(int(notice.kind), host) for notice in outcome.notices for host in notice.hosts}
        assert told == {(kind, hostid(host)) for kind, host in notified}
        assert outcome.preempted == {hostid(host) for host in aborted}
        assert all(notice.hosts and notice.kind is not NotificationType.EMPTY for notice in outcome.notices)

    @rule(host=st.sampled_from(HOSTS), key=st.sampled_from(KEYS))
    def register(self, host, key):
        act = RegisterAction.REGISTER
        self.compare(self.model.register(host, key), lambda s: s.register(hostid(host), act, 99, key))

    @rule(host=st.sampled_from(HOSTS), crkey=st.sampled_from(KEYS), ignore=st.booleans())
    def unregister(self, host, crkey, ignore):
        act = RegisterAction.UNREGISTER
        expected = self.model.unregister(host, crkey, ignore)
        self.compare(expected, lambda s: s.register(hostid(host), act, crkey, 99, ignore_key=ignore))

    @rule(host=st.sampled_from(HOSTS), crkey=st.sampled_from(KEYS), key=st.sampled_from(KEYS), ignore=st.booleans())
    def replace(self, host, crkey, key, ignore):
        act = RegisterAction.REPLACE
        expected = self.model.replace(host, crkey, key, ignore)
        self.compare(expected, lambda s: s.register(hostid(host), act, crkey, key, ignore_key=ignore))

    @rule(host=st.sampled_from(HOSTS), rtype=TYPES)
    def acquire(self, host, rtype):
        key = self.model.keys.get(host, 1)
        self.compare(self.model.acquire(host, key, rtype), lambda s: s.acquire(hostid(host), key, rtype))

    @rule(
        host=st.sampled_from(HOSTS), prkey=st.sampled_from(KEYS), rtype=TYPES, holder=st.booleans(), same=st.booleans()
    )
    def preempt(self, host, prkey, rtype, holder, same):
        key = self.model.keys.get(host, 1)
        if holder:
            prkey = 0 if self.model.holder is None else self.model.keys[self.model.holder]
        if same and self.model.type:
            rtype = ReservationType(self.model.type)
        self.compare(self.model.preempt(host, key, prkey, rtype), lambda s: s.preempt(hostid(host), key, prkey, rtype))

    @rule(host=st.sampled_from(HOSTS), rtype=TYPES, right=st.booleans())
    def release(self, host, rtype, right):
        key = self.model.keys.get(host, 1)
        rtype = self.model.type if right and self.model.type else rtype
        self.compare(self.model.release(host, key, rtype), lambda s: s.release(hostid(host), key, rtype))

    @rule(host=st.sampled_from(HOSTS), crkey=st.sampled_from(KEYS))
    def clear(self, host, crkey):
        self.compare(self.model.clear(host, crkey), lambda s: s.clear(hostid(host), crkey))

    @invariant()
    def same(self) -> None:
        state, model = self.state, self.model
        assert dict(state.registrants) == {hostid(host): key for host, key in model.keys.items()}
        assert (state.rtype or 0) == model.type
        assert {host for host in HOSTS if state.holds(hostid(host))} == model.holders
        assert state.generation == model.generation
        for host in HOSTS:
            for group in ("read", "write", "other"):
                assert state.bars(hostid(host), Group[group.upper()]) == (model.behavior(host, group) == "C")


TestActions = Actions.TestCase
TestActions.settings = settings(max_examples=200, stateful_step_count=30, deadline=None)
