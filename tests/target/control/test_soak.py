"""Random verbs while a host works: what the target says of itself is what was done, and no data is lost.

The model has what a sequence of verbs should leave behind. After each verb the target is compared with it, and the host
reads what it has written. At the end nothing may be in use that is not configured.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nvmeof import connect
from nvmeof.errors import NvmeofError
from nvmeof.target.control import Control, ControlClient, ControlError
from nvmeof.target.control.jsonrpc import Code, RpcError
from nvmeof.target.server import Target
from nvmeof.target.storage.ramdisk import Ramdisk
from tests.target.control.tools import HOST, NQN, OTHER, controlled

NSIDS = st.integers(2, 5)
SIZES = st.sampled_from(["1M", "2M", "3M"])
STATES = st.sampled_from(["optimized", "non-optimized", "inaccessible", "change"])
STEPS = st.one_of(
    st.tuples(st.just("add"), NSIDS, SIZES, st.booleans()),
    st.tuples(st.just("remove"), NSIDS, st.booleans()),
    st.tuples(st.just("disable"), NSIDS),
    st.tuples(st.just("enable"), NSIDS),
    st.tuples(st.just("resize"), NSIDS, SIZES),
    st.tuples(st.just("protect"), NSIDS, st.booleans()),
    st.tuples(st.just("move"), NSIDS, st.integers(1, 4)),
    st.tuples(st.just("replace"), NSIDS, SIZES),
    st.tuples(st.just("ana"), st.integers(2, 4), STATES),
    st.tuples(st.just("port"), st.integers(2, 3)),
    st.tuples(st.just("subsystem")),
    st.tuples(st.just("limits"), st.integers(1, 16)),
    st.tuples(st.just("referral"), st.integers(1, 3)),
    st.tuples(st.just("hosts"), st.booleans()),
    st.tuples(st.just("look")),
)
MIB = 1 << 20


@dataclass
class Disk:
    """A namespace of the model."""

    size: int
    enabled: bool
    read_only: bool = False
    group: int = 1


@dataclass
class Model:
    """What the target should be."""

    disks: dict[int, Disk] = field(default_factory=lambda: {1: Disk(4 * MIB, True)})
    states: dict[int, str] = field(default_factory=dict)
    ports: set[int] = field(default_factory=lambda: {1})
    subsystems: list[str] = field(default_factory=lambda: [NQN])
    queues: int = 128
    referrals: set[int] = field(default_factory=set)


class Operator:
    """Does steps to a target and to the model alike; a step that the model refuses has to be refused."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.control = Control(target)
        self.model = Model()

    async def step(self, step: tuple[Any, ...]) -> None:
        """Do one step, then compare target and model."""
        action: Callable[..., Awaitable[None]] = getattr(self, f"_{step[0]}")
        await action(*step[1:])
        await self._look()

    async def _do(self, possible: bool, verb: str, **params: Any) -> bool:
        try:
            await self.control.call(verb, params)
        except RpcError as error:
            assert not possible, f"{verb} {params}: {error}"
            assert error.code != Code.INTERNAL_ERROR, error
            return False
        assert possible, f"{verb} {params} should have been refused"
        return True

    async def _add(self, nsid: int, size: str, enabled: bool) -> None:
        new = nsid not in self.model.disks
        if await self._do(new, "namespace.add", storage=f"ramdisk:{size}", nsid=nsid, enabled=enabled):
            self.model.disks[nsid] = Disk(int(size[0]) * MIB, enabled)

    async def _remove(self, nsid: int, force: bool) -> None:
        if await self._do(nsid in self.model.disks, "namespace.remove", nsid=nsid, force=force):
            del self.model.disks[nsid]

    def _is(self, nsid: int, enabled: bool) -> bool:
        return nsid in self.model.disks and self.model.disks[nsid].enabled is enabled

    async def _disable(self, nsid: int) -> None:
        if await self._do(self._is(nsid, True), "namespace.disable", nsid=nsid):
            self.model.disks[nsid].enabled = False

    async def _enable(self, nsid: int) -> None:
        if await self._do(self._is(nsid, False), "namespace.enable", nsid=nsid):
            self.model.disks[nsid].enabled = True

    async def _resize(self, nsid: int, size: str) -> None:
        if await self._do(nsid in self.model.disks, "namespace.resize", nsid=nsid, size=size):
            self.model.disks[nsid].size = int(size[0]) * MIB

    async def _protect(self, nsid: int, protected: bool) -> None:
        if await self._do(nsid in self.model.disks, "namespace.protect", nsid=nsid, protected=protected):
            self.model.disks[nsid].read_only = protected

    async def _move(self, nsid: int, group: int) -> None:
        if await self._do(nsid in self.model.disks, "namespace.move", nsid=nsid, group=group):
            self.model.disks[nsid].group = group

    async def _replace(self, nsid: int, size: str) -> None:
        if await self._do(self._is(nsid, False), "namespace.replace", nsid=nsid, storage=f"ramdisk:{size}"):
            self.model.disks[nsid].size = int(size[0]) * MIB

    async def _ana(self, group: int, state: str) -> None:
        await self._do(True, "ana.set", group=group, state=state, portid=1)
        self.model.states[group] = state

    async def _port(self, portid: int) -> None:
        if portid in self.model.ports:
            await self._do(True, "port.remove", portid=portid)
            self.model.ports.discard(portid)
        else:
            await self._do(True, "port.add", address="127.0.0.1:0", portid=portid)
            self.model.ports.add(portid)

    async def _subsystem(self) -> None:
        if OTHER in self.model.subsystems:
            await self._do(True, "subsystem.remove", nqn=OTHER)
            self.model.subsystems.remove(OTHER)
        else:
            await self._do(True, "subsystem.add", nqn=OTHER, namespaces=["ramdisk:1M"])
            self.model.subsystems.append(OTHER)

    async def _limits(self, queues: int) -> None:
        await self._do(True, "subsystem.limits", subnqn=NQN, max_io_queues=queues)
        self.model.queues = queues

    async def _referral(self, number: int) -> None:
        known = number in self.model.referrals
        address = f"192.0.2.{number}"
        if await self._do(not known, "referral.add", portid=1, address=address):
            self.model.referrals.add(number)
        else:
            await self._do(True, "referral.remove", portid=1, address=address)
            self.model.referrals.discard(number)

    async def _hosts(self, anyone: bool) -> None:
        hosts = (await self.control.hosts.list(NQN))["hosts"]
        if hosts is None and not anyone:  # the working host stays allowed
            self.target.subsystem(NQN).hosts.replace([HOST], any_host=True)
        await self._do(True, "host.any", allowed=anyone, subnqn=NQN)

    async def _look(self) -> None:
        """Compare the target with the model."""
        model = self.model
        rows = await self.control.namespaces.list(NQN)
        assert {
            each["nsid"]: Disk(each["size_bytes"], each["enabled"], each["read_only"], each["anagrpid"])
            for each in rows
        } == model.disks
        states = {each["group"]: each["state"] for each in await self.control.ana.list() if each["portid"] == 1}
        assert all(states.get(group) == state for group, state in model.states.items())
        assert {each["portid"] for each in await self.control.ports.list()} == model.ports
        subsystems = await self.control.subsystems.list()
        assert [each["nqn"] for each in subsystems] == model.subsystems
        assert subsystems[0]["max_io_queues"] == model.queues
        assert len(await self.control.referrals.list()) == len(model.referrals)
        connections = await self.control.connections.list(NQN)
        assert {each["cntlid"] for each in connections} == {1}, "the host that works was never cut"
        saved = self.target.administration.save()
        assert len(saved["subsystems"]) == len(model.subsystems)


async def soak(steps: list[tuple[Any, ...]]) -> None:
    """Do all steps while a host writes and reads the first namespace."""
    async with Target(namespaces=[Ramdisk("4M")], trtype="tcp") as target:
        where = target.address
        host = await connect(where.host, where.port, subnqn=NQN, transport="tcp", hostnqn=HOST, nr_io_queues=1)
        operator, done, stopping = Operator(target), 0, False

        async def work() -> None:
            nonlocal done
            disk = host.namespace(1)
            while not stopping:
                data = done.to_bytes(8, "little") * 64
                await disk.write(done % 8192, data)
                assert bytes(await disk.read(done % 8192, 1)) == data
                done += 1

        async def stranger() -> None:
            """Use whatever else there is; being refused is no fault."""
            while not stopping:
                for nsid in range(2, 6):
                    try:
                        await host.namespace(nsid).read(0, 1)
                    except NvmeofError:
                        pass
                    await asyncio.sleep(0)

        tasks = [asyncio.create_task(work()), asyncio.create_task(stranger())]
        try:
            for step in steps:
                before = done
                await operator.step(step)
                while done == before and not tasks[0].done():  # noqa: ASYNC110
                    await asyncio.sleep(0)
                assert not tasks[0].done(), tasks[0]
        finally:
            stopping = True
            results = await asyncio.gather(*tasks, return_exceptions=True)
            await host.disconnect()
        assert results == [None, None], results
    assert not target.drivers and not target.tasks and target.pool.used_bytes == 0


@given(st.lists(STEPS, max_size=12))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_random_verbs_while_a_host_works(steps: list[tuple[Any, ...]]) -> None:
    asyncio.run(soak(steps))


def test_a_long_sequence_leaves_no_error_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """A seeded run of 300 verbs: no line of the log is an error, and every step does what the model says."""
    chance = random.Random(27)
    states, sizes = ["optimized", "non-optimized", "inaccessible", "change"], ["1M", "2M", "3M"]
    makers: list[Callable[[], tuple[Any, ...]]] = [
        lambda: ("add", chance.randint(2, 5), chance.choice(sizes), chance.random() < 0.7),
        lambda: ("remove", chance.randint(2, 5), chance.random() < 0.3),
        lambda: (chance.choice(["disable", "enable"]), chance.randint(2, 5)),
        lambda: (chance.choice(["resize", "replace"]), chance.randint(2, 5), chance.choice(sizes)),
        lambda: ("protect", chance.randint(2, 5), chance.random() < 0.5),
        lambda: ("move", chance.randint(2, 5), chance.randint(1, 4)),
        lambda: ("ana", chance.randint(2, 4), chance.choice(states)),
        lambda: ("port", chance.randint(2, 3)),
        lambda: ("subsystem",),
        lambda: ("referral", chance.randint(1, 3)),
    ]
    with caplog.at_level(logging.ERROR, logger="nvmeof"):
        asyncio.run(soak([chance.choice(makers)() for _ in range(300)]))
    assert not [each for each in caplog.records if each.levelno >= logging.ERROR], caplog.text


CALLS: list[Callable[[random.Random], tuple[str, dict[str, Any]]]] = [
    lambda chance: ("namespace.add", {"storage": "ramdisk:1M", "nsid": chance.randint(2, 4), "subnqn": NQN}),
    lambda chance: ("namespace.add", {"storage": "ramdisk:1M,delay:read=5ms", "nsid": chance.randint(2, 4)}),
    lambda chance: ("namespace.remove", {"nsid": chance.randint(2, 4), "force": chance.random() < 0.3, "subnqn": NQN}),
    lambda chance: (f"namespace.{chance.choice(['enable', 'disable', 'protect'])}", {"nsid": chance.randint(2, 4)}),
    lambda chance: ("namespace.replace", {"nsid": chance.randint(2, 4), "storage": "ramdisk:2M"}),
    lambda chance: ("namespace.resize", {"nsid": chance.randint(2, 4), "size": "1M", "subnqn": NQN}),
    lambda chance: ("port.add", {"address": "127.0.0.1:0", "portid": chance.randint(2, 3)}),
    lambda chance: ("port.remove", {"portid": chance.randint(2, 3), "force": chance.random() < 0.5}),
    lambda chance: ("subsystem.add", {"nqn": OTHER, "namespaces": ["ramdisk:1M"]}),
    lambda chance: ("subsystem.remove", {"nqn": OTHER, "force": chance.random() < 0.5}),
    lambda chance: ("subsystem.unlink", {"nqn": OTHER, "portid": chance.randint(1, 3)}),
    lambda chance: ("subsystem.link", {"nqn": OTHER, "portid": chance.randint(1, 3)}),
    lambda chance: ("ana.set", {"group": 2, "state": "inaccessible", "change_seconds": 0.01}),
    lambda chance: (chance.choice(["config", "connection.list", "port.list", "counters", "status", "ana.list"]), {}),
]
"""Verbs for operators that know nothing of each other; the host that works uses none of what they change."""


def test_operators_beside_each_other_break_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Four of them, seeded: each verb is done or refused with a sentence, and the host never sees an error."""

    async def operate(path: Path, seed: int) -> int:
        chance, done = random.Random(seed), 0
        async with ControlClient(path) as client:
            for _ in range(80):
                verb, params = chance.choice(CALLS)(chance)
                try:
                    await client.call(verb, params)
                    done += 1
                except ControlError as error:
                    assert error.code != Code.INTERNAL_ERROR, f"{verb} {params}: {error}"
        return done

    async def work(host: Any, stopping: asyncio.Event) -> None:
        number = 0
        while not stopping.is_set():
            data = number.to_bytes(8, "little") * 64
            await host.namespace(1).write(number % 2048, data)
            assert bytes(await host.namespace(1).read(number % 2048, 1)) == data
            number += 1

    async def visit(port: int, stopping: asyncio.Event) -> None:
        """Connect again and again, use what there is, and leave."""
        while not stopping.is_set():
            try:
                host = await connect("127.0.0.1", port, subnqn=NQN, transport="tcp", nr_io_queues=1)
                for nsid in (2, 3, 4):
                    try:
                        await host.namespace(nsid).read(0, 1)
                    except NvmeofError:
                        pass
                await host.disconnect()
            except NvmeofError:
                pass
            await asyncio.sleep(0.01)

    async def run() -> None:
        stopping = asyncio.Event()
        async with controlled(tmp_path / "s") as server:
            target = server.control.target
            port = target.address.port
            host = await connect("127.0.0.1", port, subnqn=NQN, transport="tcp", hostnqn=HOST, nr_io_queues=1)
            others = [asyncio.create_task(work(host, stopping)), asyncio.create_task(visit(port, stopping))]
            done = await asyncio.gather(*(operate(tmp_path / "s", seed) for seed in range(4)))
            assert min(done) > 10, "some of what each wanted was possible"
            assert not others[0].done(), others[0]
            stopping.set()
            await asyncio.gather(*others)
            await host.disconnect()
            document = target.administration.save()
            assert {each["nqn"] for each in document["subsystems"]} <= {NQN, OTHER}
            for namespace in await server.control.namespaces.list(NQN):
                await server.control.namespaces.remove(namespace["nsid"], NQN)
            assert not target.subsystem(NQN).namespaces and not target.subsystem(NQN).disabled
        assert not target.drivers and not target.tasks and target.pool.used_bytes == 0
        assert not target.unflushed

    with caplog.at_level(logging.ERROR, logger="nvmeof"):
        asyncio.run(run())
    assert not [each for each in caplog.records if each.levelno >= logging.ERROR], caplog.text
