"""Multipath against our own target with several ports, over TCP and MPTCP, while states and ports change."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from click.testing import CliRunner

import nvmeof
from nvmeof import NvmeofError, Ramdisk, Target
from nvmeof.host.__main__ import cli, main
from nvmeof.host.host_subsystem import HostSubsystem, PathAddress, connect_multipath
from nvmeof.host.multipath.iopolicy import IOPOLICIES
from nvmeof.spec.enums import AnaState
from nvmeof.target.subsystem.config import PortConfig
from tests.conformance.rawhost import until

from ..conftest import HOSTNQN

BLOCK = 512
WORKERS = 6
TRANSPORTS = [("tcp", "tcp"), ("mptcp", "mptcp"), ("tcp", "mptcp")]


def port_of(target: Target, portid: int) -> int:
    port: int = target.ports[portid].listeners[0].address.port
    return port


@asynccontextmanager
async def pair(*transports: str, **options: Any) -> AsyncIterator[tuple[Target, HostSubsystem]]:
    listen = ["127.0.0.1:0"] * len(transports or (1, 1))
    async with Target(namespaces=[Ramdisk("16M"), Ramdisk("16M")], listen=listen, trtype="mptcp") as target:
        where = [
            PathAddress("127.0.0.1", port_of(target, portid), transport)
            for portid, transport in enumerate(transports or ("tcp", "tcp"), 1)
        ]
        # a removed port ends its queues first, so that no write waits until the target has quiesced
        chosen = {"subnqn": target.subnqn, "hostnqn": HOSTNQN, "reconnect_delay": 0.2, "quiesce_tmo": 0.0, **options}
        async with await connect_multipath(*where, **chosen) as subsystem:
            yield target, subsystem


class Load:
    """Workers that each write one block and read it back, without errors and without old data."""

    def __init__(self, subsystem: HostSubsystem) -> None:
        self.namespace = subsystem.namespace(1)
        self.stopped = False
        self.turns = [0] * WORKERS
        self.tasks = [asyncio.ensure_future(self._work(worker)) for worker in range(WORKERS)]

    async def _work(self, worker: int) -> None:
        while not self.stopped:
            self.turns[worker] += 1
            stamp = struct.pack("<QQ", worker, self.turns[worker])
            await self.namespace.write(worker * 8, stamp * (BLOCK // 16))
            assert (await self.namespace.read(worker * 8))[:16] == stamp

    async def go_on(self, turns: int = 5) -> None:
        """Wait until every worker has done ``turns`` more rounds."""
        wanted = [done + turns for done in self.turns]
        async with asyncio.timeout(60):
            while any(done < least for done, least in zip(self.turns, wanted, strict=True)):
                failed = [task for task in self.tasks if task.done()]
                for task in failed:
                    task.result()
                await asyncio.sleep(0.005)

    async def stop(self) -> None:
        self.stopped = True
        await asyncio.wait_for(asyncio.gather(*self.tasks), 60)


@pytest.mark.parametrize("transports", TRANSPORTS)
@pytest.mark.parametrize("policy", IOPOLICIES)
async def test_ana_states_and_ports_change_under_load(transports: tuple[str, str], policy: str) -> None:
    async with pair(*transports, iopolicy=policy) as (target, subsystem):
        load = Load(subsystem)
        await load.go_on()
        administration = target.administration
        for portid in (1, 2, 1):
            administration.set_ana_state(AnaState.INACCESSIBLE, portid=portid)
            await load.go_on()
            administration.set_ana_state(AnaState.OPTIMIZED, portid=portid)
            await load.go_on()
        for portid in (1, 2):
            config = target.ports[portid].config
            port = port_of(target, portid)
            await administration.remove_port(portid)
            await load.go_on()
            await administration.add_port(PortConfig(host=config.host, port=port, transport=config.transport))
            await until(lambda: all(member.usable for member in subsystem.paths))
            await load.go_on()
        await load.stop()
        figures = subsystem.core.describe()["paths"]
        assert sum(each["ios"] for each in figures) >= 2 * sum(load.turns)
        assert all(each["outstanding"] == 0 for each in figures)


async def test_a_change_of_all_paths_holds_the_load_without_errors() -> None:
    async with pair(iopolicy="round-robin") as (target, subsystem):
        load = Load(subsystem)
        await load.go_on()
        target.administration.set_ana_state(AnaState.CHANGE)
        await until(lambda: subsystem.core.heads[0].waiting == WORKERS)
        target.administration.set_ana_state(AnaState.NON_OPTIMIZED)
        await load.go_on()
        await load.stop()


async def test_groups_prefer_different_paths() -> None:
    async with pair() as (target, subsystem):
        target.administration.move_namespace(2, 2)
        for group, portid in ((1, 2), (2, 1)):
            target.administration.set_ana_state(AnaState.NON_OPTIMIZED, group, portid=portid)
        await until(
            lambda: [
                [path["ana_state"] for path in each["namespaces"]] for each in subsystem.core.describe()["paths"]
            ] == [["optimized", "non-optimized"], ["non-optimized", "optimized"]]
        )  # fmt: skip
        for nsid in (1, 2):
            for lba in range(20):
                await subsystem.namespace(nsid).write(lba, bytes(BLOCK))
        counts = [[path["ios"] for path in each["namespaces"]] for each in subsystem.core.describe()["paths"]]
        assert counts == [[20, 0], [0, 20]]


async def test_namespaces_come_and_change_size() -> None:
    async with pair() as (target, subsystem):
        first = subsystem.namespace(1)
        await first.refresh()
        target.administration.resize_namespace(1, 32 << 20)
        nsid = await target.administration.add_namespace(Ramdisk("1M"))
        await until(lambda: first.size_bytes == 32 << 20 and len(subsystem.core.heads) == 3)
        await subsystem.namespace(nsid).write(0, bytes(BLOCK))
        await target.administration.remove_namespace(nsid)
        await until(lambda: [each.nsid for each in subsystem.core.all_namespaces()] == [1, 2])
        with pytest.raises(NvmeofError):
            await subsystem.namespace(nsid).read(0)


async def test_two_targets_are_not_one_subsystem() -> None:
    async with Target(namespaces=[Ramdisk("1M")], listen="127.0.0.1:0", trtype="tcp") as one:  # noqa: SIM117
        async with Target(namespaces=[Ramdisk("1M")], listen="127.0.0.1:0", trtype="tcp") as two:
            places = [f"127.0.0.1:{port_of(each, 1)}" for each in (one, two)]
            with pytest.raises(NvmeofError, match=r"they are not one subsystem|have the controller identifier"):
                await connect_multipath(*places, subnqn=one.subnqn, transport="tcp", hostnqn=HOSTNQN)


def test_the_public_names() -> None:
    assert nvmeof.connect_multipath is connect_multipath
    assert nvmeof.HostSubsystem is HostSubsystem


# -- the command line


@pytest.fixture
async def served() -> AsyncIterator[list[str]]:
    """Serve on two ports, and return the options that lead to both."""
    async with Target(namespaces=[Ramdisk("1M")], listen=["127.0.0.1:0"] * 2, trtype="tcp") as target:
        target.administration.set_ana_state(AnaState.NON_OPTIMIZED, portid=2)
        ports = [str(port_of(target, portid)) for portid in (1, 2)]
        yield ["-t", "tcp", "-a", "127.0.0.1", "-s", ports[0], "-s", ports[1], "-q", HOSTNQN, "-n", target.subnqn]


async def run(*words: str) -> tuple[int, str]:
    result = await asyncio.to_thread(CliRunner().invoke, cli, list(words))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


async def test_list_subsys(served: list[str]) -> None:
    code, text = await run("list-subsys", *served, "--iopolicy", "queue-depth")
    assert code == 0
    assert "iopolicy=queue-depth" in text
    assert f" +- nvme0 tcp traddr=127.0.0.1,trsvcid={served[5]} live  [namespace 1: optimized]" in text
    assert f" +- nvme1 tcp traddr=127.0.0.1,trsvcid={served[7]} live  [namespace 1: non-optimized]" in text
    code, text = await run("list-subsys", *served, "-o", "json")
    (host,) = json.loads(text)
    (subsystem,) = host["Subsystems"]
    assert [each["State"] for each in subsystem["Paths"]] == ["live", "live"]
    assert [each["ANAState"] for each in subsystem["Namespaces"][0]["Paths"]] == ["optimized", "non-optimized"]


async def test_bench_over_several_paths(served: list[str]) -> None:
    code, text = await run("bench", *served, "--iopolicy", "round-robin", "--runtime", "0.2", "-o", "json")
    assert code == 0
    result = json.loads(text)
    assert [each["path"]["state"] for each in result["paths"]] == ["live", "live"]
    assert result["ios"] > 0 and result["paths"][0]["ios"] >= result["ios"] and result["paths"][1]["ios"] == 0
    code, text = await run("bench", *served, "--runtime", "0.2")
    assert "failovers" in text and "non-optimized" in text


async def test_data_over_several_paths(served: list[str], tmp_path: Any) -> None:
    source, sink = tmp_path / "in", tmp_path / "out"
    source.write_bytes(bytes(range(256)) * 32)
    assert (await run("write", *served, "-z", "8192", "-d", str(source)))[0] == 0
    assert (await run("read", *served, "-z", "8192", "-d", str(sink)))[0] == 0
    assert sink.read_bytes() == source.read_bytes()


async def test_one_path_with_recovery(served: list[str]) -> None:
    """Recovery alone makes a subsystem of one path, and bench shows it."""
    one = [*served[:6], *served[8:]]
    code, text = await run("bench", *one, "--reconnect-delay", "1", "-l", "-1", "--runtime", "0.1", "-o", "json")
    assert code == 0
    (path,) = json.loads(text)["paths"]
    assert path["path"]["max_reconnects"] is None and path["usable"]


def test_options_that_contradict(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list-subsys", "-a", "127.0.0.1", "-a", "127.0.0.2", "-s", "1", "-s", "2", "-s", "3"]) == 2
    assert "--traddr was given 2 times and --trsvcid 3 times: give it once for all paths" in capsys.readouterr().err
