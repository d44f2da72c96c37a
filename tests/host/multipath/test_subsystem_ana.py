"""ANA over several paths of the model: states, their log, and I/O that waits for a state."""

from __future__ import annotations

import asyncio
import logging
import struct

import pytest

from nvmeof.errors import NvmeofError
from nvmeof.host.host_subsystem import HostSubsystem
from nvmeof.host.multipath.head import NoPathError
from nvmeof.spec.enums import AnaState
from nvmeof.spec.log_pages import AnaGroup, build_ana_log
from nvmeof.spec.status import Status, status_field

from .driven import block, connected, drive
from .model import ModelDevice
from .virtual import run


def test_ana_states_are_followed_by_event() -> None:
    device = ModelDevice(2)

    async def body(subsystem: HostSubsystem) -> None:
        namespace = subsystem.namespace(1)
        await namespace.read(0)
        device.set_ana(0, AnaState.INACCESSIBLE)
        await asyncio.sleep(0.1)
        before = device.ports[0].executed
        for _ in range(10):
            await namespace.read(0)
        assert device.ports[0].executed == before
        assert sum(member.figures.errors for member in subsystem.paths) == 0  # no command met the state
        device.set_ana(0, AnaState.OPTIMIZED)
        await asyncio.sleep(0.1)
        await namespace.read(0)
        assert device.ports[0].executed == before + 1  # numa goes back to the first path at once, as Linux does

    drive(device, body)


def test_a_command_that_meets_a_state_goes_elsewhere_and_the_log_is_read() -> None:
    device = ModelDevice(2)

    async def body(subsystem: HostSubsystem) -> None:
        namespace = subsystem.namespace(1)
        await namespace.read(0)
        reads = device.ports[0].log_reads
        device.ports[0].ana[1] = AnaState.INACCESSIBLE  # and no event was sent
        await namespace.write(0, block(1))
        await asyncio.sleep(0.1)
        assert device.ports[0].log_reads > reads
        assert subsystem.paths[0].namespaces[1].ana_state == AnaState.INACCESSIBLE
        assert (subsystem.paths[0].figures.errors, subsystem.paths[0].figures.failovers) == (1, 1)

    drive(device, body)


@pytest.mark.parametrize("state", [AnaState.CHANGE, AnaState.INACCESSIBLE])
def test_io_waits_while_no_path_can_be_used(state: AnaState) -> None:
    """B4 of the lab: for any time, also past fast_io_fail_tmo, since the controllers are live."""
    device = ModelDevice(2)

    async def body(subsystem: HostSubsystem) -> None:
        namespace = subsystem.namespace(1)
        for port in (0, 1):
            device.set_ana(port, state)
        await asyncio.sleep(0.1)
        waiting = asyncio.ensure_future(namespace.write(0, block(9)))
        await asyncio.sleep(15)
        assert not waiting.done()
        assert subsystem.core.heads[0].waiting == 1
        device.set_ana(1, AnaState.NON_OPTIMIZED)
        await asyncio.wait_for(waiting, 1)
        assert await namespace.read(0) == block(9)

    drive(device, body, fast_io_fail_tmo=2.0)


def test_a_change_that_does_not_end_resets_the_controller() -> None:
    device = ModelDevice(1)

    async def body(subsystem: HostSubsystem) -> None:
        first = device.ports[0].controllers[0]
        device.set_ana(0, AnaState.CHANGE)
        await asyncio.sleep(19)
        assert device.ports[0].controllers == [first]
        await asyncio.sleep(2)  # twice ANATT (10 s) after the log was read
        (second,) = device.ports[0].controllers
        assert second is not first
        await asyncio.sleep(21)
        assert device.ports[0].controllers[0] is not second  # the time has begun again
        device.set_ana(0, AnaState.OPTIMIZED)
        await subsystem.namespace(1).read(0)
        last = device.ports[0].controllers[0]
        await asyncio.sleep(60)
        assert device.ports[0].controllers == [last]

    drive(device, body)


def test_persistent_loss_on_the_last_path_is_an_error() -> None:
    device = ModelDevice(2)

    async def body(subsystem: HostSubsystem) -> None:
        device.set_ana(0, AnaState.PERSISTENT_LOSS)
        await asyncio.sleep(0.1)
        await subsystem.namespace(1).read(0)
        device.set_ana(1, AnaState.PERSISTENT_LOSS)
        await asyncio.sleep(0.1)
        with pytest.raises(NoPathError, match="model p0:4420 is persistent-loss; model p1:4420 is persistent-loss"):
            await subsystem.namespace(1).read(0)

    drive(device, body)


def bad_logs() -> list[tuple[str, bytes, str]]:
    good = build_ana_log(1, [AnaGroup(1, AnaState.OPTIMIZED, 1, (1,))])
    return [
        (
            "short",
            build_ana_log(1, [AnaGroup(n, 1, 1, (n,)) for n in (1, 2, 3)])[:60],
            "state 0x0|lists group 0|does not",
        ),
        ("huge", good[:20] + struct.pack("<I", 1 << 30) + good[24:], "cannot be read to its end|does not end within"),
        ("group 9", build_ana_log(1, [AnaGroup(9, 1, 1, (1,))]), r"lists group 9, and groups are 1 to 4 \(ANAGRPMAX\)"),
        ("group 0", build_ana_log(1, [AnaGroup(0, 1, 1, (1,))]), "lists group 0"),
        ("twice", build_ana_log(1, [AnaGroup(1, 1, 1, (1,)), AnaGroup(1, 2, 1)]), "lists group 1 twice"),
        ("state", build_ana_log(1, [AnaGroup(1, 7, 1, (1,))]), "group 1 is in state 0x7, which does not exist"),
        ("nsid", build_ana_log(1, [AnaGroup(1, 1, 1, (99,))]), r"group 1 has namespace 99, and there are 1 to 16"),
        ("both", build_ana_log(1, [AnaGroup(1, 1, 1, (1,)), AnaGroup(2, 1, 1, (1,))]), "in group 1 and in group 2"),
        ("many", build_ana_log(1, [AnaGroup(n, 1, 1) for n in range(1, 6)]), "has 5 groups where .* says 4"),
        ("empty", build_ana_log(1, []), r"namespace 1 is in none of its groups: it names group 1 \(ANAGRPID\)"),
        ("no such group", build_ana_log(1, [AnaGroup(2, 1, 1)]), "namespace 1 is in none of its groups"),
    ]


@pytest.mark.parametrize(("log", "words"), [each[1:] for each in bad_logs()], ids=[each[0] for each in bad_logs()])
def test_an_invalid_ana_log(log: bytes, words: str, caplog: pytest.LogCaptureFixture) -> None:
    """An invalid log is an error at the start; later the path is left out, and the log is read again: no hang, and no
    endless loop.
    """
    device = ModelDevice(2)
    device.ports[1].ana_log = lambda: log

    async def whole() -> None:
        with pytest.raises(NvmeofError, match=words):
            await connected(device, 1)
        device.ports[1].ana_log = None
        async with await connected(device, 1) as subsystem:
            namespace = subsystem.namespace(1)
            await namespace.read(0)
            device.ports[1].ana_log = lambda: log
            device.set_ana(1, AnaState.INACCESSIBLE)
            await asyncio.sleep(0.1)
            with pytest.raises(NoPathError, match=r"model p1:4420 is not usable \(.*"):
                await namespace.read(0)
            reads = device.ports[1].log_reads
            with caplog.at_level(logging.ERROR, "nvmeof.host"):
                caplog.clear()
                await asyncio.sleep(60)
            assert 6 <= device.ports[1].log_reads - reads <= 40
            assert not caplog.records  # the error was logged once
            device.ports[1].ana_log = None
            device.set_ana(1, AnaState.OPTIMIZED)
            await asyncio.sleep(0.1)
            await namespace.read(0)

    run(whole())


def test_the_log_of_a_controller_that_contradicts_it_is_read_ever_less_often() -> None:
    device = ModelDevice(1)
    device.ports[0].statuses = [status_field(Status.ANA_INACCESSIBLE)] * 10_000

    async def body(subsystem: HostSubsystem) -> None:
        reads = device.ports[0].log_reads
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(30):
                await subsystem.namespace(1).read(0)
        assert device.ports[0].log_reads - reads < 60
        device.ports[0].statuses.clear()
        await asyncio.sleep(3)
        await subsystem.namespace(1).read(0)

    drive(device, body)
