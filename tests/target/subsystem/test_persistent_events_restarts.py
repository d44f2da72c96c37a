"""Persistent events, power cycles and counters over restarts and kills."""

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvmeof.errors import ConfigurationError
from nvmeof.spec.log_pages import SMART_HEALTH
from nvmeof.spec.persistent_events import HARDWARE_ERROR, EventType, HardwareErrorCode
from nvmeof.target.core.metadata import MemoryStore
from nvmeof.target.namespaces.namespace import NamespaceCounters
from nvmeof.target.server import Target as WholeTarget
from nvmeof.target.storage.json_file_store import JsonFileStore
from nvmeof.target.storage.ramdisk import Ramdisk
from nvmeof.target.subsystem import lifetime_counters as lifetime_module
from nvmeof.target.subsystem.config import NamespaceConfig, PortConfig, SubsystemConfig, TargetConfig
from nvmeof.target.subsystem.lifetime_counters import SAVE_SECONDS
from nvmeof.target.subsystem.persistent_events import History
from nvmeof.target.subsystem.subsystem import Subsystem
from tests.target.event_log_tools import kinds, reset
from tests.target.harness import NQN, Target

REPOSITORY = Path(__file__).resolve().parents[3]


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 14), st.binary(max_size=20), st.none() | st.integers(0, 65535), st.integers(0, 65535)),
        max_size=10,
    )
)
def test_events_persist_over_a_restart(events):
    metadata_store = MemoryStore()
    history = History(metadata_store)
    for kind, data, portid, cntlid in events:
        history.add(EventType(kind), data, now=0.0, timestamp=bytes(range(8)), cntlid=cntlid, portid=portid)
    generation = history.next_generation()
    again = History(metadata_store)
    assert again.events == history.events and again.generation == generation


@pytest.mark.parametrize("kept", [7, [], {"events": 3}, {"events": [[1]]}, {"generation": "x"}])
def test_stored_events_that_cannot_be_read(kept, caplog):
    metadata_store = MemoryStore()
    metadata_store.put("history", kept)
    history = History(metadata_store)
    history.add(EventType.HARDWARE_ERROR, b"", now=0.0)
    assert len(history) == 1
    assert "cannot be read" in caplog.text or kept == []


class Full(MemoryStore):
    def put(self, section, value):
        raise OSError(28, "No space left on device")


def test_a_metadata_store_that_fails_is_a_line_of_the_log(caplog):
    target = Target(metadata_store=Full())
    admin = target.admin()
    reset(admin)
    assert kinds(admin) == [EventType.POWER_ON_OR_RESET]
    assert "could not be stored: [Errno 28] No space left on device" in caplog.text


async def test_a_file_that_fails_later_is_a_line_of_the_log(tmp_path, caplog):
    directory = tmp_path / "there"
    directory.mkdir()
    metadata_store = JsonFileStore(directory / "state")
    subsystem = Subsystem(SubsystemConfig(nqn=NQN, metadata_store=metadata_store))
    directory.rmdir()
    subsystem.history.add(EventType.HARDWARE_ERROR, b"", now=0.0)
    await metadata_store.close()
    await asyncio.sleep(0)
    assert "the history could not be stored" in caplog.text


def _subsystem(path):
    return Subsystem(SubsystemConfig(nqn=NQN, metadata_store=JsonFileStore(path)))


async def test_power_cycles_and_hours_go_on(tmp_path):
    path = tmp_path / "state"
    for run in range(1, 4):
        subsystem = _subsystem(path)
        await subsystem.power_on(1000.0 * run)
        assert subsystem.lifetime.power_cycles == run
        assert subsystem.lifetime.power_on_seconds(1000.0 * run) == 3600.0 * (run - 1)
        await subsystem.power_off(1000.0 * run + 3600)
        assert subsystem.lifetime.unsafe_shutdowns == 0
    assert len(_subsystem(path).history) == 3


async def test_an_unsafe_shutdown_is_counted_and_recorded(tmp_path):
    path = tmp_path / "state"
    await _subsystem(path).power_on(0.0)
    subsystem = _subsystem(path)
    await subsystem.power_on(0.0)
    assert (subsystem.lifetime.power_cycles, subsystem.lifetime.unsafe_shutdowns) == (2, 1)
    codes = [HARDWARE_ERROR.parse(e.data).nssheec for e in subsystem.history.events if e.type == 5]
    assert codes == [HardwareErrorCode.UNSAFE_SHUTDOWN]
    await subsystem.power_off(1.0)
    again = _subsystem(path)
    await again.power_on(2.0)
    assert again.lifetime.unsafe_shutdowns == 1


def test_counters_of_namespaces_go_on():
    metadata_store = MemoryStore()
    target = Target(Ramdisk("1M"), Ramdisk("1M"), metadata_store=metadata_store)
    target.subsystem.power_on(0.0)
    admin = target.admin()
    queue = target.io(admin)
    for _ in range(3):
        queue.command(0x02, length=512, nsid=1)
    queue.command(0x01, bytes(1024), nsid=2, cdw12=1)
    target.subsystem.remove_namespace(1)
    admin.command(0xFE)
    target.subsystem.power_off(1.0)

    target = Target(Ramdisk("1M", block_bytes=1024), Ramdisk("1M"), metadata_store=metadata_store)
    admin = target.admin()

    def smart(nsid):
        data = SMART_HEALTH.parse(admin.read_bytes(admin.log_page(2, 512, nsid=nsid)))
        return data.host_read_commands, data.host_write_commands

    assert smart(0) == (3, 1) and smart(1) == (3, 0) and smart(2) == (0, 1)
    assert target.subsystem.namespaces[1].counters.blocks_read == 1, "three blocks of 512 bytes, in blocks of 1024"
    assert target.subsystem.lifetime.errors == 1


def test_counters_of_removed_namespaces_are_summed_up(monkeypatch):
    monkeypatch.setattr(lifetime_module, "_NAMESPACES_MAX", 3)
    metadata_store = MemoryStore()
    subsystem = Subsystem(SubsystemConfig(nqn=NQN, metadata_store=metadata_store))
    for number in range(10):
        namespace = subsystem.add_namespace(NamespaceConfig(backend=Ramdisk("1M"), nsid=number + 1))
        namespace.counters.reads = number
        subsystem.remove_namespace(number + 1)
    subsystem.power_off(0.0)
    kept = metadata_store.get("lifetime")
    assert len(kept["namespaces"]) == 3 and kept["gone"]["reads"] == sum(range(7))
    assert subsystem.lifetime.totals.reads == Subsystem(subsystem.config).lifetime.totals.reads == 45


def test_counters_go_on_in_blocks_of_another_size():
    counters = NamespaceCounters(reads=3, blocks_read=17, blocks_written=8, media_errors=1)
    counters.rescale(9, 12)
    assert (counters.reads, counters.blocks_read, counters.blocks_written, counters.media_errors) == (3, 2, 1, 1)
    counters.rescale(12, 9)
    assert counters.blocks_read == 16


class Slow(Ramdisk):
    """A backend whose reads complete when the test says so."""

    memory = None

    async def acquire_read(self, offset, length):
        await self.gate
        return super().acquire_read(offset, length)


def test_a_controller_is_busy_while_an_io_command_is_outstanding():
    backend = Slow("1M")
    target = Target(backend)
    backend.gate = target.runtime.create_future()
    admin = target.admin()
    queue = target.io(admin)
    pending = queue.submit(queue.sqe(0x02, length=512, nsid=1))
    target.runtime.time += 150
    data = SMART_HEALTH.parse(admin.read_bytes(admin.log_page(2, 512)))
    assert data.controller_busy_time == 2, "minutes"
    backend.gate.set_result(None)
    pending.step()
    target.runtime.time += 1000
    assert target.subsystem.lifetime.busy_seconds(target.runtime.time) == 150


def test_busy_time():
    lifetime = Target().subsystem.lifetime
    lifetime.begin(10.0)
    lifetime.begin(11.0)
    lifetime.end(15.0)
    assert lifetime.busy_seconds(16.0) == 6.0
    lifetime.end(20.0)
    assert lifetime.busy_seconds(100.0) == 10.0


PROGRAM = """
import asyncio, sys
from nvmeof.spec.persistent_events import EventType
from nvmeof.target.storage.json_file_store import JsonFileStore
from nvmeof.target.subsystem.config import NamespaceConfig, PortConfig, SubsystemConfig, TargetConfig
from nvmeof.target.subsystem.subsystem import Subsystem

async def main():
    store = JsonFileStore(sys.argv[1])
    subsystem = Subsystem(SubsystemConfig(nqn="nqn.2026-01.org.example:disk", metadata_store=store))
    await subsystem.power_on(0.0)
    subsystem.history.add(EventType.HARDWARE_ERROR, b"before", now=1.0)
    await subsystem.metadata_store.close()
    print("written", flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


def test_events_outlive_a_kill(tmp_path):
    path = tmp_path / "state"
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(path)], stdout=subprocess.PIPE, cwd=REPOSITORY
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"written\n"
        process.send_signal(signal.SIGKILL)
    subsystem = _subsystem(path)
    assert [event.data[:6] for event in subsystem.history.events][-1] == b"before"
    assert subsystem.lifetime.unsafe and subsystem.lifetime.power_cycles == 2


def _target(path):
    config = SubsystemConfig(
        nqn=NQN, metadata_store=JsonFileStore(path), namespaces=(NamespaceConfig(backend=Ramdisk("1M")),)
    )
    return WholeTarget(TargetConfig(subsystems=(config,), ports=(PortConfig(transport="memory", host="here"),)))


async def test_a_target_stores_its_state_with_and_without_a_stop(tmp_path):
    path = tmp_path / "state"
    async with _target(path) as target:
        assert target.subsystems[NQN].lifetime.power_cycles == 1
        target.subsystems[NQN].namespaces[1].counters.reads = 5
    async with _target(path) as target:
        lifetime = target.subsystems[NQN].lifetime
        assert (lifetime.power_cycles, lifetime.unsafe_shutdowns, lifetime.totals.reads) == (2, 0, 5)
        document = path.read_bytes()
    path.write_bytes(document)  # as after a kill
    async with _target(path) as target:
        lifetime = target.subsystems[NQN].lifetime
        assert (lifetime.power_cycles, lifetime.unsafe_shutdowns, lifetime.totals.reads) == (3, 1, 5)


async def test_counters_are_stored_periodically(tmp_path):
    path = tmp_path / "state"
    async with _target(path) as target:
        subsystem = target.subsystems[NQN]
        subsystem.namespaces[1].counters.reads = 7
        now = target.loop.time()
        subsystem.tick(now + 10)
        await asyncio.sleep(0.05)
        assert _subsystem(path).lifetime.totals.reads == 0
        subsystem.tick(now + SAVE_SECONDS + 1)
        for _ in range(200):
            if _subsystem(path).lifetime.totals.reads:
                break
            await asyncio.sleep(0.01)
        assert _subsystem(path).lifetime.totals.reads == 7


async def test_state_that_cannot_be_stored_is_reported_at_the_start(tmp_path):
    with pytest.raises(ConfigurationError, match=r"cannot use .* as a state file"):
        await _target(tmp_path / "nowhere" / "state").start()
