"""One path over each transport to our own target, which restarts while a verifying load runs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from nvmeof import FileBackend, NvmeofError, Ramdisk, Target
from nvmeof.errors import ConnectionLost
from nvmeof.host.host_subsystem import HostSubsystem, connect_multipath
from nvmeof.host.multipath.identity import PathMismatchError
from nvmeof.host.namespace import Namespace
from nvmeof.host.path import PathState
from nvmeof.target.subsystem.config import NamespaceConfig, PortConfig, SubsystemConfig, TargetConfig

from ..conformance import rawhost
from .conftest import HOSTNQN

until = partial(rawhost.until, seconds=20.0)

TRANSPORTS = ["tcp", "mptcp", "memory"]
NQN = "nqn.2026-01.org.example:recovery"
BLOCKS = 64


def target_of(
    transport: str, port: int = 0, cqt: float = 0.0, disk: Path | None = None, nguid: bytes | None = None
) -> Target:
    """Return a target with one namespace: in memory, or in a file, which survives a restart."""
    backend = Ramdisk("1M") if disk is None else FileBackend(disk, size="1M")
    namespaces = (NamespaceConfig(backend=backend, nguid=nguid),)
    subsystem = SubsystemConfig(nqn=NQN, namespaces=namespaces, command_quiesce_seconds=cqt)
    host = "recovery" if transport == "memory" else "127.0.0.1"
    return Target(TargetConfig(subsystems=(subsystem,), ports=(PortConfig(transport=transport, host=host, port=port),)))


@asynccontextmanager
async def one_path(target: Target, transport: str, **options: Any) -> AsyncIterator[HostSubsystem]:
    address = target.address
    chosen = {"reconnect_delay": 0.05, "hostnqn": HOSTNQN, "transport": transport, "native_multipath": False, **options}
    async with await connect_multipath(f"{address.host}:{address.port}", subnqn=NQN, **chosen) as subsystem:
        yield subsystem


class VerifyingLoad:
    """Writers that each own some blocks, write new data to them again and again, and read it back."""

    def __init__(self, namespace: Namespace, writers: int = 8) -> None:
        self.namespace = namespace
        self.stop = False
        self.rounds = 0
        self.tasks = [asyncio.create_task(self._run(number, writers)) for number in range(writers)]

    async def _run(self, number: int, writers: int) -> None:
        own = range(number, BLOCKS, writers)
        value = number
        while not self.stop:
            value += writers
            data = value.to_bytes(8, "little") * 64
            for lba in own:
                await self.namespace.write(lba, data)
            for lba in own:
                assert await self.namespace.read(lba, 1) == data, f"block {lba} has not what was written last"
            self.rounds += 1

    async def end(self) -> None:
        self.stop = True
        await asyncio.wait_for(asyncio.gather(*self.tasks), 30)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_no_io_is_lost_when_connections_are(transport: str) -> None:
    async with target_of(transport) as target, one_path(target, transport, nr_io_queues=2) as subsystem:
        load = VerifyingLoad(subsystem.namespace(1))
        path = subsystem.paths[0].path
        for count in range(1, 4):
            before = load.rounds
            await until(lambda before=before: load.rounds > before + 3)
            path.fail(ConnectionLost("cut by the test"))
            await until(lambda count=count: len(path.outages) == count and path.state is PathState.LIVE)
        await load.end()
        assert all(each.reconnected_at is not None for each in path.outages)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_no_io_is_lost_when_the_target_restarts(transport: str, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    target = target_of(transport, disk=disk)
    await target.start()
    port = target.address.port
    try:
        async with one_path(target, transport) as subsystem:
            load = VerifyingLoad(subsystem.namespace(1))
            path = subsystem.paths[0].path
            await until(lambda: load.rounds > 5)
            await target.stop(0.0)
            await until(lambda: path.state is not PathState.LIVE)
            await until(lambda: path.reconnects > 1)
            target = target_of(transport, port, disk=disk)
            await target.start()
            await until(lambda: path.state is PathState.LIVE)
            before = load.rounds
            await until(lambda: load.rounds > before + 5)
            await load.end()
    finally:
        await target.stop()


async def test_another_namespace_behind_the_same_nsid_is_an_error_and_not_data() -> None:
    target = target_of("tcp", nguid=b"the first".ljust(16))
    await target.start()
    port = target.address.port
    try:
        async with one_path(target, "tcp") as subsystem:
            namespace = subsystem.namespace(1)
            await namespace.write(0, b"first" + bytes(507))
            await target.stop(0.0)
            waiting = asyncio.create_task(namespace.read(0, 1))
            target = target_of("tcp", port, nguid=b"another one".ljust(16))
            await target.start()
            with pytest.raises(PathMismatchError, match="another one now"):
                await asyncio.wait_for(waiting, 20)
            with pytest.raises(PathMismatchError, match="open it again"):
                await namespace.write(0, bytes(512))
            # a namespace that is opened again is the new one
            assert await subsystem.namespace(1).read(0, 1) == bytes(512)
    finally:
        await target.stop()


async def test_a_target_that_does_not_come_back_is_reported_once_and_ends_waiting_commands() -> None:
    target = target_of("tcp")
    await target.start()
    async with one_path(target, "tcp", ctrl_loss_tmo=0.15) as subsystem:
        lost: list[NvmeofError] = []
        subsystem.core.on_lost.append(lambda member, error: lost.append(error))
        path = subsystem.paths[0].path
        namespace = subsystem.namespace(1)
        await namespace.read(0, 1)
        await target.stop(0.0)
        await until(lambda: path.state is not PathState.LIVE)
        waiting = [asyncio.create_task(namespace.read(lba, 1)) for lba in range(3)]
        for task in waiting:
            with pytest.raises(NvmeofError):
                await asyncio.wait_for(task, 20)
        await until(lambda: path.state is PathState.DEAD)
        assert len(lost) == 1 and len(path.outages) == 1
        assert path.outages[0].attempts == 3


async def test_fast_io_fail_ends_waiting_commands_and_the_path_comes_back(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    target = target_of("tcp", disk=disk)
    await target.start()
    port = target.address.port
    try:
        async with one_path(target, "tcp", fast_io_fail_tmo=0.2) as subsystem:
            path = subsystem.paths[0].path
            namespace = subsystem.namespace(1)
            await namespace.write(0, b"kept".ljust(512))
            await target.stop(0.0)
            await until(lambda: path.state is not PathState.LIVE)
            begun = time.monotonic()
            with pytest.raises(NvmeofError, match="past fast_io_fail_tmo"):
                await namespace.read(0, 1)
            assert time.monotonic() - begun < 10
            assert path.failfast_expired
            target = target_of("tcp", port, disk=disk)
            await target.start()
            await until(lambda: path.state is PathState.LIVE)
            assert await namespace.read(0, 1) == b"kept".ljust(512)
    finally:
        await target.stop()


async def test_a_write_of_unknown_outcome_waits_until_the_target_has_quiesced() -> None:
    """CQT 200 ms and KATO 0.4 s by traffic: 1.4 s from the loss on; overlapping requests wait behind it."""
    async with (
        target_of("tcp", cqt=0.2) as target,
        one_path(target, "tcp", keep_alive_tmo=0.4, nr_io_queues=1) as subsystem,
    ):
        path = subsystem.paths[0].path
        namespace = subsystem.namespace(1)
        await namespace.read(0, 1)
        ended: list[str] = []

        async def write(name: str) -> None:
            await namespace.write(0, name.encode().ljust(512))
            ended.append(name)

        writing = asyncio.create_task(write("one"))
        await asyncio.sleep(0)  # it is sent in this turn, and answered in a later one
        noticed = time.monotonic()
        path.fail(ConnectionLost("cut by the test"))
        await until(lambda: path.state is PathState.LIVE)
        overlapping = asyncio.create_task(write("two"))
        await namespace.write(1, bytes(512))
        await namespace.read(0, 1)
        await asyncio.wait_for(asyncio.gather(writing, overlapping), 30)
        assert time.monotonic() - noticed >= 3 * 0.4 + 0.2
        assert ended == ["one", "two"]
        assert await namespace.read(0, 1) == b"two".ljust(512)
