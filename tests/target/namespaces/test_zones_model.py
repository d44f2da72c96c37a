"""Any sequence of commands from several queues to zones, against a plain model of them."""

from __future__ import annotations

import struct

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from nvmeof.spec.status import Status
from nvmeof.spec.zns import ZoneState as S
from nvmeof.spec.zns import parse_zone_report
from nvmeof.target.namespaces.zone_geometry import ZoneGeometry
from nvmeof.target.storage.ramdisk import Ramdisk
from nvmeof.target.subsystem.config import NamespaceConfig
from tests.target.backend_tools import Hidden
from tests.target.harness import Pending, Target
from tests.target.zone_tools import BLOCK, append, read, receive, rw, send, write

ZONE, CAPACITY, ZONES = 16, 12, 6
OPEN, ACTIVE = 2, 3
CLOSE_, FINISH_, OPEN_, RESET_, OFFLINE_, EXTEND_ = 1, 2, 3, 4, 5, 16


class Refused(Exception):
    pass


class Model:
    """The specification in short sentences. `opened`: implicitly opened zones, the last written last."""

    def __init__(self) -> None:
        self.state = [S.EMPTY] * ZONES
        self.pointer = [0] * ZONES
        self.blocks: dict[int, bytes] = {}
        self.extension: dict[int, bytes] = {}
        self.implicit: list[int] = []

    def count(self, *states: S) -> int:
        return sum(state in states for state in self.state)

    def put(self, zone: int, state: S) -> None:
        if zone in self.implicit:
            self.implicit.remove(zone)
        if state is S.IMPLICITLY_OPENED:
            self.implicit.append(zone)
        self.state[zone] = state

    def activate(self, zone: int) -> None:
        inactive = self.state[zone] in (S.EMPTY, S.FULL)
        if inactive and self.count(S.IMPLICITLY_OPENED, S.EXPLICITLY_OPENED, S.CLOSED) == ACTIVE:
            raise Refused(Status.TOO_MANY_ACTIVE_ZONES)

    def open(self, zone: int, state: S) -> None:
        self.activate(zone)
        both = (S.IMPLICITLY_OPENED, S.EXPLICITLY_OPENED)
        if self.state[zone] not in both and self.count(*both) == OPEN:
            if not self.implicit:
                raise Refused(Status.TOO_MANY_OPEN_ZONES)
            self.put(self.implicit[0], S.CLOSED)
        self.put(zone, state)

    def write(self, slba: int | None, zone: int, blocks: list[bytes]) -> int:
        if slba is not None:
            if slba + len(blocks) > ZONES * ZONE:
                raise Refused(Status.LBA_OUT_OF_RANGE)
            if slba // ZONE != (slba + len(blocks) - 1) // ZONE:
                raise Refused(Status.ZONED_BOUNDARY_ERROR)
        state = self.state[zone]
        refusals = {
            S.FULL: Status.ZONE_IS_FULL,
            S.READ_ONLY: Status.ZONE_IS_READ_ONLY,
            S.OFFLINE: Status.ZONE_IS_OFFLINE,
        }
        if state in refusals:
            raise Refused(refusals[state])
        start = zone * ZONE + self.pointer[zone]
        if slba not in (None, start):
            raise Refused(Status.ZONE_INVALID_WRITE)
        if self.pointer[zone] + len(blocks) > CAPACITY:
            raise Refused(Status.ZONED_BOUNDARY_ERROR)
        self.open(zone, S.EXPLICITLY_OPENED if state is S.EXPLICITLY_OPENED else S.IMPLICITLY_OPENED)
        self.blocks.update({start + number: block for number, block in enumerate(blocks)})
        self.pointer[zone] += len(blocks)
        if self.pointer[zone] == CAPACITY:
            self.put(zone, S.FULL)
        return start

    def read(self, slba: int, nlb: int) -> bytes:
        if slba + nlb > ZONES * ZONE:
            raise Refused(Status.LBA_OUT_OF_RANGE)
        if any(self.state[block // ZONE] is S.OFFLINE for block in range(slba, slba + nlb)):
            raise Refused(Status.ZONE_IS_OFFLINE)
        return b"".join(self.blocks.get(block, bytes(BLOCK)) for block in range(slba, slba + nlb))

    def close(self, zone: int) -> None:
        if self.state[zone] not in (S.IMPLICITLY_OPENED, S.EXPLICITLY_OPENED, S.CLOSED):
            raise Refused(Status.INVALID_ZONE_STATE_TRANSITION)
        self.put(zone, S.CLOSED)

    def finish(self, zone: int) -> None:
        if self.state[zone] in (S.READ_ONLY, S.OFFLINE):
            raise Refused(Status.INVALID_ZONE_STATE_TRANSITION)
        self.put(zone, S.FULL)

    def open_explicitly(self, zone: int) -> None:
        if self.state[zone] in (S.FULL, S.READ_ONLY, S.OFFLINE):
            raise Refused(Status.INVALID_ZONE_STATE_TRANSITION)
        self.open(zone, S.EXPLICITLY_OPENED)

    def reset(self, zone: int) -> None:
        if self.state[zone] in (S.READ_ONLY, S.OFFLINE):
            raise Refused(Status.INVALID_ZONE_STATE_TRANSITION)
        self.put(zone, S.EMPTY)
        self.pointer[zone] = 0
        self.extension.pop(zone, None)
        for block in range(zone * ZONE, zone * ZONE + ZONE):
            self.blocks.pop(block, None)

    def offline(self, zone: int) -> None:
        if self.state[zone] not in (S.READ_ONLY, S.OFFLINE):
            raise Refused(Status.INVALID_ZONE_STATE_TRANSITION)
        self.put(zone, S.OFFLINE)
        self.extension.pop(zone, None)

    def extend(self, zone: int, extension: bytes) -> None:
        if self.state[zone] is not S.EMPTY:
            raise Refused(Status.INVALID_ZONE_STATE_TRANSITION)
        self.activate(zone)
        self.put(zone, S.CLOSED)
        self.extension[zone] = extension

    def all(self, action: int) -> None:
        chosen = {
            CLOSE_: (S.IMPLICITLY_OPENED, S.EXPLICITLY_OPENED),
            FINISH_: (S.IMPLICITLY_OPENED, S.EXPLICITLY_OPENED, S.CLOSED),
            OPEN_: (S.CLOSED,),
            RESET_: (S.IMPLICITLY_OPENED, S.EXPLICITLY_OPENED, S.CLOSED, S.FULL),
            OFFLINE_: (S.READ_ONLY,),
        }[action]
        zones = [zone for zone in range(ZONES) if self.state[zone] in chosen]
        if action == OPEN_ and self.count(S.EXPLICITLY_OPENED) + len(zones) > OPEN:
            raise Refused(Status.TOO_MANY_OPEN_ZONES)
        for zone in zones:
            self.one(action, zone)

    def one(self, action: int, zone: int) -> None:
        done = {
            CLOSE_: self.close,
            FINISH_: self.finish,
            OPEN_: self.open_explicitly,
            RESET_: self.reset,
            OFFLINE_: self.offline,
        }
        done[action](zone)


zones = st.integers(0, ZONES - 1)
blocks = st.integers(1, CAPACITY + 5)
actions = st.sampled_from([CLOSE_, FINISH_, OPEN_, RESET_, OFFLINE_])
queues = st.integers(0, 1)


class ZonesMachine(RuleBasedStateMachine):
    backend = Ramdisk

    @initialize()
    def start(self) -> None:
        geometry = ZoneGeometry(
            zone_bytes=ZONE * BLOCK,
            capacity_bytes=CAPACITY * BLOCK,
            max_open=OPEN,
            max_active=ACTIVE,
            extension_bytes=64,
        )
        self.target = Target()
        self.storage = type(self).backend(ZONES * ZONE * BLOCK)
        self.config = NamespaceConfig(backend=self.storage, zoned=geometry, nsid=2)
        self.target.subsystem.add_namespace(self.config)
        self.queues = [self.target.io(self.target.admin()) for _ in range(2)]
        self.model = Model()
        self.serial = 0

    def fresh(self, count: int) -> list[bytes]:
        self.serial += 1
        return [struct.pack("<II", self.serial, number) * (BLOCK // 8) for number in range(count)]

    def compare(self, completion, expectation):
        """Check that both succeed, or both fail alike; return the model's result."""
        if isinstance(completion, Pending):
            completion = completion.completion
        try:
            result = expectation()
        except Refused as refused:
            assert completion.status == refused.args[0], (hex(completion.status), refused)
            return None
        assert completion.status == 0, hex(completion.status)
        return result

    @rule(queue=queues, zone=zones, ahead=st.sampled_from([0, 0, 0, 0, -1, 1, 3]), count=blocks, zeroes=st.booleans())
    def write(self, queue: int, zone: int, ahead: int, count: int, zeroes: bool) -> None:
        slba = max(zone * ZONE + self.model.pointer[zone] + ahead, 0)
        data = [bytes(BLOCK)] * count if zeroes else self.fresh(count)
        if zeroes:
            completion = self.queues[queue].command(0x08, **rw(slba, count))
        else:
            completion = write(self.queues[queue], slba, b"".join(data))
        self.compare(completion, lambda: self.model.write(slba, min(slba // ZONE, ZONES - 1), data))

    @rule(queue=queues, zone=zones, count=blocks)
    def append(self, queue: int, zone: int, count: int) -> None:
        data = self.fresh(count)
        completion = append(self.queues[queue], zone * ZONE, b"".join(data))
        where = self.compare(completion, lambda: self.model.write(None, zone, data))
        assert where is None or completion.dw0 == where

    @rule(queue=queues, source=st.integers(0, ZONES * ZONE - 1), zone=zones, count=st.integers(1, 6))
    def copy(self, queue: int, source: int, zone: int, count: int) -> None:
        slba = zone * ZONE + self.model.pointer[zone]
        if max(source, slba) < min(source, slba) + count or slba + count > ZONES * ZONE:
            return
        descriptor = struct.pack("<8xQH14x", source, count - 1)
        sqe = self.queues[queue].sqe(0x19, descriptor, nsid=2, cdw10=slba, cdw12=0)

        def expectation() -> None:
            if source + count > ZONES * ZONE:
                raise Refused(Status.LBA_OUT_OF_RANGE)
            data = self.model.read(source, count)
            parts = [data[at : at + BLOCK] for at in range(0, len(data), BLOCK)]
            self.model.write(slba, zone, parts)

        self.compare(self.queues[queue].submit(sqe, descriptor), expectation)

    @rule(queue=queues, action=actions, zone=zones)
    def manage(self, queue: int, action: int, zone: int) -> None:
        completion = send(self.queues[queue], action, zone * ZONE)
        self.compare(completion, lambda: self.model.one(action, zone))

    @rule(queue=queues, action=st.sampled_from([CLOSE_, FINISH_, OPEN_, OPEN_, RESET_, OFFLINE_]))
    def manage_all(self, queue: int, action: int) -> None:
        completion = send(self.queues[queue], action, 0, select_all=True)
        self.compare(completion, lambda: self.model.all(action))

    @rule(queue=queues, zone=zones, byte=st.integers(0, 255))
    def extend(self, queue: int, zone: int, byte: int) -> None:
        extension = bytes([byte]) * 64
        completion = send(self.queues[queue], EXTEND_, zone * ZONE, extension)
        self.compare(completion, lambda: self.model.extend(zone, extension))

    @rule(zone=st.sampled_from([0, 0, 0, 1]), readable=st.booleans())
    def degrade(self, zone: int, readable: bool) -> None:
        self.namespace.zones.degrade(self.namespace.zones.zones[zone], readable=readable)
        if readable:
            if self.model.state[zone] is not S.OFFLINE:
                self.model.put(zone, S.READ_ONLY)
        else:
            self.model.put(zone, S.OFFLINE)
            self.model.extension.pop(zone, None)

    @rule()
    def erase(self) -> None:
        """Do a format or sanitize operation."""
        assert self.namespace.erased() is None
        self.storage.deallocate(0, ZONES * ZONE * BLOCK)
        self.model = Model()

    @rule()
    def restart(self) -> None:
        """Remove the namespace, and open it again."""
        self.target.subsystem.remove_namespace(2)
        self.target.subsystem.add_namespace(self.config)
        for zone in range(ZONES):
            if self.model.state[zone] in (S.IMPLICITLY_OPENED, S.EXPLICITLY_OPENED, S.CLOSED):
                data = self.model.pointer[zone] or zone in self.model.extension
                self.model.put(zone, S.CLOSED if data else S.EMPTY)

    @rule(queue=queues, slba=st.integers(0, ZONES * ZONE), count=st.integers(1, 2 * ZONE))
    def read(self, queue: int, slba: int, count: int) -> None:
        completion = self.queues[queue].submit(self.queues[queue].sqe(0x02, length=count * BLOCK, **rw(slba, count)))
        if isinstance(completion, Pending):
            completion = completion.completion
        data = self.compare(completion, lambda: self.model.read(slba, count))
        assert data is None or self.queues[queue].read_bytes(completion) == data

    @property
    def namespace(self):
        return self.target.subsystem.namespaces[2]

    @invariant()
    def all_is_as_in_the_model(self) -> None:
        if not hasattr(self, "model"):
            return
        report = self.queues[0].read_bytes(receive(self.queues[0], 0, 64 + ZONES * 128, action=1))
        number, found = parse_zone_report(report, 64)
        assert number == ZONES
        assert [zone.state for zone in found] == self.model.state
        for index, zone in enumerate(found):
            if zone.state in (S.EMPTY, S.IMPLICITLY_OPENED, S.EXPLICITLY_OPENED, S.CLOSED):
                assert zone.wp == index * ZONE + self.model.pointer[index]
            extension = report[64 + index * 128 + 64 : 64 + index * 128 + 128]
            assert extension == self.model.extension.get(index, bytes(64))
            assert bool(zone.za & 0x80) == (index in self.model.extension)
        machine = self.namespace.zones
        assert machine.opened == self.model.count(S.IMPLICITLY_OPENED, S.EXPLICITLY_OPENED) <= OPEN
        assert machine.active == self.model.count(S.IMPLICITLY_OPENED, S.EXPLICITLY_OPENED, S.CLOSED) <= ACTIVE

    def teardown(self) -> None:
        if not hasattr(self, "model"):
            return
        for zone in range(ZONES):
            if self.model.state[zone] is not S.OFFLINE:
                completion = read(self.queues[1], zone * ZONE, ZONE)
                assert self.queues[1].read_bytes(completion) == self.model.read(zone * ZONE, ZONE)


class HiddenMachine(ZonesMachine):
    backend = Hidden


SETTINGS = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestMemory = ZonesMachine.TestCase
TestMemory.settings = SETTINGS
TestHidden = HiddenMachine.TestCase
TestHidden.settings = settings(SETTINGS, max_examples=20)


def test_the_model_has_every_action_and_state():
    model = Model()
    with pytest.raises(Refused):
        model.offline(0)
    assert model.count(S.EMPTY) == ZONES
