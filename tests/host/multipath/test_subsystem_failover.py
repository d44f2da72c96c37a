"""Failover over several paths of the model: lost paths, unknown outcomes, and statuses."""

from __future__ import annotations

import asyncio

import pytest

from nvmeof.errors import NvmeStatusError, OutcomeUnknown
from nvmeof.host.host_subsystem import HostSubsystem
from nvmeof.host.multipath.head import NoPathError
from nvmeof.host.multipath.iopolicy import IOPOLICIES
from nvmeof.spec.enums import AnaState
from nvmeof.spec.sqe import SQE, Sqe
from nvmeof.spec.status import Status, status_field

from .driven import block, drive, executed
from .model import COUNT, ModelDevice, Volume


@pytest.mark.parametrize("policy", IOPOLICIES)
def test_a_lost_path_costs_no_error(policy: str) -> None:
    device = ModelDevice(2)

    async def body(subsystem: HostSubsystem) -> None:
        namespace = subsystem.namespace(1)
        written = [asyncio.ensure_future(namespace.write(lba, block(lba + 1))) for lba in range(60)]
        await asyncio.sleep(0.0015)
        device.cut(0)
        await asyncio.gather(*written)
        assert await namespace.read(0, 60) == b"".join(block(lba + 1) for lba in range(60))
        await asyncio.sleep(11)  # reconnect_delay
        assert [member.path.state.value for member in subsystem.paths] == ["live", "live"]

    drive(device, body, iopolicy=policy)


def test_a_large_transfer_goes_on_over_the_other_path() -> None:
    device = ModelDevice(2, Volume(1, blocks=65536))

    async def body(subsystem: HostSubsystem) -> None:
        namespace, data = subsystem.namespace(1), bytes(range(256)) * 2 * 60_000
        writing = asyncio.ensure_future(namespace.write(0, data))
        await asyncio.sleep(0.003)
        device.cut(0)
        await writing
        into = bytearray(len(data))
        reading = asyncio.ensure_future(namespace.read_into(0, into))
        await asyncio.sleep(0.003)
        device.cut(1)
        await asyncio.wait_for(reading, 60)
        assert into == data

    drive(device, body, iopolicy="round-robin")


def test_all_paths_lost_and_back() -> None:
    device = ModelDevice(2)

    async def body(subsystem: HostSubsystem) -> None:
        namespace = subsystem.namespace(1)
        await namespace.write(0, block(1))
        for port in (0, 1):
            device.ports[port].up = False
            device.cut(port)
        waiting = asyncio.ensure_future(namespace.read(0))
        await asyncio.sleep(35)
        assert not waiting.done()
        device.ports[1].up = True
        assert await asyncio.wait_for(waiting, 11) == block(1)
        assert subsystem.core.heads[0].requeued >= 1

    drive(device, body)


def test_a_restarted_target_assigns_controller_identifiers_again() -> None:
    """A restarted target assigns from the beginning: a path may get the identifier that another path had."""
    device = ModelDevice(2)

    async def body(subsystem: HostSubsystem) -> None:
        namespace = subsystem.namespace(1)
        await namespace.write(0, block(1))
        assert [each["path"]["cntlid"] for each in subsystem.core.describe()["paths"]] == [1, 2]
        device.cut(0)
        device.cut(1)
        device.next_cntlid = 1
        device.ports[0].delay = 0.1  # the second path is connected first
        await asyncio.sleep(15)
        facts = subsystem.core.describe()["paths"]
        assert [(each["path"]["cntlid"], each["path"]["outages"][0]["attempts"]) for each in facts] == [(2, 1), (1, 1)]
        assert await namespace.read(0) == block(1)

    drive(device, body)


def test_all_paths_lost_for_good() -> None:
    device = ModelDevice(2)
    lost: list[str] = []

    async def body(subsystem: HostSubsystem) -> None:
        namespace = subsystem.namespace(1)
        await namespace.refresh()
        subsystem.core.on_lost.append(lambda member, error: lost.append(member.name))
        for port in (0, 1):
            device.ports[port].up = False
            device.cut(port)
        began = asyncio.get_running_loop().time()
        with pytest.raises(
            NoPathError, match=r"is left: all were removed, the last one after it was lost \(model p.:4420: p. refuses"
        ):
            await namespace.read(0)
        assert 19 < asyncio.get_running_loop().time() - began < 32
        assert sorted(lost) == ["model p0:4420", "model p1:4420"]
        with pytest.raises(NoPathError):
            await subsystem.identify()

    drive(device, body, ctrl_loss_tmo=20.0)


def test_fast_io_fail_tmo() -> None:
    device = ModelDevice(2)

    async def body(subsystem: HostSubsystem) -> None:
        namespace = subsystem.namespace(1)
        await namespace.refresh()
        for port in (0, 1):
            device.ports[port].up = False
            device.cut(port)
        began = asyncio.get_running_loop().time()
        with pytest.raises(NoPathError, match="past fast_io_fail_tmo"):
            await namespace.read(0)
        assert 1.9 < asyncio.get_running_loop().time() - began < 2.1
        device.ports[0].up = True
        await asyncio.sleep(11)
        await namespace.read(0)

    drive(device, body, fast_io_fail_tmo=2.0)


def test_the_keep_alive_detects_a_half_open_path() -> None:
    device = ModelDevice(2)

    async def body(subsystem: HostSubsystem) -> None:
        namespace = subsystem.namespace(1)
        await namespace.refresh()
        device.ports[0].loses_answers = True
        began = asyncio.get_running_loop().time()
        await namespace.write(0, block(5))
        assert asyncio.get_running_loop().time() - began < 15
        assert await namespace.read(0) == block(5)

    drive(device, body)


def test_a_command_that_must_not_be_executed_twice() -> None:
    device = ModelDevice(2)

    async def body(subsystem: HostSubsystem) -> None:
        port = subsystem.namespace(1).port
        count = SQE.pack(Sqe(opcode=COUNT, nsid=1, cdw10=5))
        await port.io(count)
        device.ports[0].loses_answers = True
        with pytest.raises(OutcomeUnknown):
            await port.io(count)
        assert device.counts[5] == 2  # the command was executed once, and the caller has to find out
        device.ports[0].loses_answers = False
        device.set_ana(1, AnaState.INACCESSIBLE)
        device.ports[1].ana[1] = AnaState.INACCESSIBLE
        await asyncio.sleep(20)
        await port.io(count)
        assert device.counts[5] == 3

    drive(device, body)


def test_a_cancelled_write_on_a_slow_path_does_not_overtake_a_new_one() -> None:
    """The command of a cancelled caller is still outstanding: overlapping ones wait for its completion, on any path."""
    device = ModelDevice(2)
    device.ports[0].delay = 1.5

    async def body(subsystem: HostSubsystem) -> None:
        namespace = subsystem.namespace(1)
        await namespace.refresh()
        first = asyncio.ensure_future(namespace.write(0, block(1)))
        await asyncio.sleep(0.1)
        first.cancel()
        await asyncio.wait([first])
        subsystem.iopolicy = "queue-depth"
        device.ports[0].ana[1] = AnaState.NON_OPTIMIZED
        device.set_ana(0, AnaState.NON_OPTIMIZED)
        await namespace.write(0, block(2))
        await asyncio.sleep(10)
        assert await namespace.read(0) == block(2)
        assert subsystem.paths[0].depth == 0

    drive(device, body)


@pytest.mark.parametrize("cancelled", [False, True])
def test_an_old_copy_of_a_write_does_not_overtake_a_new_one(cancelled: bool) -> None:
    """The target executes for two seconds more, and reports it (CQT): overlapping writes wait for that time."""
    device = ModelDevice(2, cqt_ms=2500)
    device.ports[0].linger = 2.0

    async def body(subsystem: HostSubsystem) -> None:
        namespace, loop = subsystem.namespace(1), asyncio.get_running_loop()
        await namespace.refresh()
        first = asyncio.ensure_future(namespace.write(0, block(1)))
        await asyncio.sleep(0)
        device.cut(0)
        began = loop.time()
        if cancelled:
            first.cancel()
        second = asyncio.ensure_future(namespace.write(0, block(2)))
        await namespace.write(1, block(3))  # other blocks need not wait
        assert loop.time() - began < 1
        await second
        assert loop.time() - began == pytest.approx(12.5, abs=0.1)  # twice KATO (5 s) and CQT
        assert first.cancelled() if cancelled else first.done()
        assert await namespace.read(0) == block(2)

    drive(device, body)


@pytest.mark.parametrize(
    ("status", "tries", "where"),
    [
        (status_field(Status.INTERNAL_ERROR), 3, "same"),
        (status_field(Status.INTERNAL_PATH_ERROR), 1, "other"),
        (status_field(Status.INTERNAL_ERROR, dnr=True), 1, "error"),
        (status_field(Status.INTERNAL_ERROR), 7, "error"),
        (status_field(Status.INTERNAL_PATH_ERROR, dnr=True), 1, "error"),
    ],
)
def test_statuses(status: int, tries: int, where: str) -> None:
    device = ModelDevice(2)
    device.ports[0].statuses = [status] * tries

    async def body(subsystem: HostSubsystem) -> None:
        namespace = subsystem.namespace(1)
        await namespace.refresh()
        if where == "error":
            with pytest.raises(NvmeStatusError):
                await namespace.read(0)
        else:
            await namespace.read(0)
            assert executed(device) == ([1, 0] if where == "same" else [0, 1])
        first = subsystem.paths[0].figures
        assert first.retries == (tries if where == "same" else 5 if tries == 7 else 0)
        assert first.errors == (6 if tries == 7 else tries)
        assert first.failovers == (where == "other")

    drive(device, body)
