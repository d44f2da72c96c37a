"""A subsystem over several paths of the model: joining, failover, waiting and failing."""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from nvmeof.errors import (
    ConfigurationError,
    ConnectionLost,
    NvmeofError,
    NvmeStatusError,
    OutcomeUnknown,
)
from nvmeof.host.device_registry import DeviceRegistry
from nvmeof.host.host_subsystem import HostSubsystem, PathAddress, connect_multipath
from nvmeof.host.multipath.head import NoPathError
from nvmeof.host.multipath.identity import PathMismatchError
from nvmeof.host.multipath.iopolicy import IOPOLICIES
from nvmeof.spec.enums import AnaState, LogPageId
from nvmeof.spec.log_pages import AnaGroup, build_ana_log
from nvmeof.spec.sqe import SQE, Sqe
from nvmeof.spec.status import Status, status_field

from .model import BLOCK_BYTES, COUNT, SUBNQN, ModelDevice, Volume
from .virtual import run

HOSTNQN = "nqn.2026-01.org.example:host"


async def connected(device: ModelDevice, *ports: int, **options: Any) -> HostSubsystem:
    where = [PathAddress(f"p{port}") for port in ports or range(len(device.ports))]
    chosen = {"subnqn": SUBNQN, "transport": "model", "hostnqn": HOSTNQN, "registry": DeviceRegistry(device)}
    return await connect_multipath(*where, **{**chosen, **options})


def drive(device: ModelDevice, body: Callable[[HostSubsystem], Awaitable[None]], **options: Any) -> None:
    """Run ``body`` with a subsystem over all ports, in virtual time."""

    async def whole() -> None:
        async with await connected(device, **options) as subsystem:
            await body(subsystem)

    run(whole())


def block(value: int) -> bytes:
    return bytes([value]) * BLOCK_BYTES


def executed(device: ModelDevice) -> list[int]:
    return [port.executed for port in device.ports]


# -- joining


def test_two_controllers_are_one_subsystem() -> None:
    device = ModelDevice(2, Volume(1), Volume(3))

    async def body(subsystem: HostSubsystem) -> None:
        assert [member.name for member in subsystem.paths] == ["model p0:4420", "model p1:4420"]
        assert [namespace.nsid for namespace in await subsystem.namespaces()] == [1, 3]
        assert (await subsystem.identify()).sn == "MODEL"
        facts = subsystem.core.describe()
        assert [each["path"]["cntlid"] for each in facts["paths"]] == [1, 2]
        assert [each["paths"] for each in facts["namespaces"]] == [2, 2]
        namespace = subsystem.namespace(3)
        assert namespace is subsystem.namespace(3)
        await namespace.write(5, block(7))
        assert await namespace.read(5) == block(7)
        with pytest.raises(NvmeStatusError, match="has no active namespace 2"):
            subsystem.namespace(2)

    drive(device, body)


@pytest.mark.parametrize(
    ("second", "words"),
    [
        ({"sn": "OTHER"}, "has the serial number 'OTHER', the other paths of .* 'MODEL': they are not one subsystem"),
        ({"mn": "Other"}, "has the model number 'Other'"),
        ({"cntlid": 1}, "two paths of .* have the controller identifier 0x1"),
        ({"cmic": 0}, r"does not support multiple controllers \(CMIC 0x0\)"),
    ],
)
def test_controllers_that_do_not_match(second: dict[str, Any], words: str) -> None:
    device = ModelDevice(2)
    device.ports[1].identify = second

    async def whole() -> None:
        with pytest.raises(PathMismatchError, match=words):
            await connected(device)
        assert not device.ports[0].controllers and not device.ports[1].controllers  # nothing is left open
        device.next_cntlid = 1
        async with await connected(device, 0) as subsystem:
            with pytest.raises(PathMismatchError, match=words):
                await subsystem.add_path(PathAddress("p1"))
            assert len(subsystem.paths) == 1
            await subsystem.namespace(1).write(0, block(1))

    run(whole())


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (
            Volume(1, nguid=b"\x0b" * 16),
            "another namespace behind NSID 1 than the other paths .NGUID 0b0b.* in place of",
        ),
        (Volume(1, eui64=b"\x0c" * 8), "EUI64 0c0c0c0c0c0c0c0c in place of none"),
        (Volume(1, uuid=b"\x0d" * 16), "UUID 0d0d"),
        (Volume(1, csi=2), "command set 2 in place of 0"),
        (Volume(1, nmic=0), r"which is not shared \(NMIC\)"),
        (Volume(1, lbads=12, blocks=8), "with blocks of 4096 bytes, the other paths with 512"),
    ],
)
def test_paths_that_disagree_about_a_namespace(other: Volume, words: str) -> None:
    device = ModelDevice(2)
    device.ports[1].volumes = {1: other}

    async def whole() -> None:
        with pytest.raises(PathMismatchError, match=words):
            await connected(device)

    run(whole())


def test_two_namespaces_with_one_identifier() -> None:
    device = ModelDevice(1, Volume(1, uuid=b"\x01" * 16), Volume(2, uuid=b"\x01" * 16))

    async def whole() -> None:
        with pytest.raises(PathMismatchError, match=r"a namespace 2 with the UUID 0101.* of namespace 1"):
            await connected(device)

    run(whole())


def test_private_namespaces_of_each_controller() -> None:
    """Without ANA, NVM Sets and namespace management, an NSID may mean a namespace per controller."""
    device = ModelDevice(2)
    device.identify |= {"cmic": 0b10, "oaes": 1 << 8}
    device.ports[0].volumes = {1: Volume(1, nmic=0, nguid=b"\x01" * 16), 2: Volume(2)}
    device.ports[1].volumes = {1: Volume(1, nmic=0, nguid=b"\x02" * 16), 2: Volume(2)}

    async def body(subsystem: HostSubsystem) -> None:
        with pytest.raises(ConfigurationError, match=r"several paths have a separate namespace 1 \(model p0:4420, "):
            subsystem.namespace(1)
        for value, member in enumerate(subsystem.paths, 1):
            await subsystem.namespace(1, member).write(0, block(value))
        for value, port in enumerate(device.ports, 1):
            assert port.volumes is not None and port.volumes[1].data[:BLOCK_BYTES] == block(value)
        assert [namespace.nsid for namespace in await subsystem.namespaces()] == [1, 1, 2]

    drive(device, body)


def test_native_multipath_off() -> None:
    device = ModelDevice(2)

    async def body(subsystem: HostSubsystem) -> None:
        with pytest.raises(ConfigurationError, match="several paths have a separate namespace 1"):
            subsystem.namespace(1)
        first, second = (subsystem.namespace(1, member) for member in subsystem.paths)
        await first.write(0, block(1))
        assert await second.read(0) == block(1)
        assert executed(device) == [1, 1]
        device.ports[0].up = False
        device.cut(0)
        with pytest.raises(NoPathError, match=r"model p0:4420 is past fast_io_fail_tmo \(p0 refuses connections\)"):
            await first.read(0)
        assert await second.read(0) == block(1)

    drive(device, body, native_multipath=False, fast_io_fail_tmo=30.0)


# -- policies


@pytest.mark.parametrize(
    ("policy", "share"),
    [("numa", [60, 0, 0]), ("round-robin", [30, 30, 0]), ("queue-depth", [60, 0, 0]), ("service-time", None)],
)
def test_the_policies_use_optimized_paths(policy: str, share: list[int] | None) -> None:
    device = ModelDevice(3)
    device.ports[2].ana[1] = AnaState.NON_OPTIMIZED

    async def body(subsystem: HostSubsystem) -> None:
        namespace = subsystem.namespace(1)
        for lba in range(60):
            await namespace.write(lba, block(lba))
        assert executed(device)[2] == 0
        if share is not None:
            assert executed(device) == share
        figures = [member.figures for member in subsystem.paths]
        assert sum(each.ios for each in figures) == 60
        assert sum(each.bytes for each in figures) == 60 * BLOCK_BYTES
        device.set_ana(0, AnaState.INACCESSIBLE)
        device.set_ana(1, AnaState.INACCESSIBLE)
        for lba in range(60):
            assert await namespace.read(lba) == block(lba)
        assert executed(device)[2] == 60

    drive(device, body, iopolicy=policy)


def test_queue_depth_divides_outstanding_commands_by_speed() -> None:
    device = ModelDevice(2)
    device.ports[0].delay, device.ports[1].delay = 0.001, 0.004

    async def body(subsystem: HostSubsystem) -> None:
        namespace = subsystem.namespace(1)
        await namespace.refresh()

        async def one() -> None:
            for lba in range(50):
                await namespace.read(lba % 64)

        await asyncio.gather(*(one() for _ in range(8)))
        fast, slow = executed(device)
        assert fast + slow == 400 and 3 < fast / slow < 5  # four times as fast, four times as many

    drive(device, body, iopolicy="queue-depth")


def test_service_time_avoids_a_slow_path() -> None:
    device = ModelDevice(2)
    device.ports[0].delay, device.ports[1].delay = 0.010, 0.001

    async def body(subsystem: HostSubsystem) -> None:
        namespace = subsystem.namespace(1)
        for lba in range(500):
            await namespace.read(lba % 64)
        slow, fast = executed(device)
        assert slow < 20 and fast > 480
        device.ports[0].delay, device.ports[1].delay = 0.001, 0.020
        for lba in range(500):
            await namespace.read(lba % 64)
        assert device.ports[0].executed > 400  # the estimate has converged

    drive(device, body, iopolicy="service-time")


def test_the_policy_changes_while_it_runs() -> None:
    device = ModelDevice(2)

    async def body(subsystem: HostSubsystem) -> None:
        namespace = subsystem.namespace(1)
        for policy in IOPOLICIES:
            subsystem.iopolicy = policy
            for lba in range(10):
                await namespace.read(lba)
        with pytest.raises(ConfigurationError, match="unknown I/O policy 'none'"):
            subsystem.iopolicy = "none"
        assert subsystem.iopolicy == "service-time"

    drive(device, body)


# -- ANA


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


# -- failing over


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


# -- coming and going


def test_paths_come_and_go_under_load() -> None:
    device = ModelDevice(3)

    async def body(subsystem: HostSubsystem) -> None:
        namespace, stop = subsystem.namespace(1), False
        await namespace.refresh()

        async def worker(lba: int) -> int:
            turns = 0
            while not stop:
                turns += 1
                await namespace.write(lba, struct.pack("<Q", turns) * (BLOCK_BYTES // 8))
                assert (await namespace.read(lba))[:8] == struct.pack("<Q", turns)
            return turns

        workers = [asyncio.ensure_future(worker(lba)) for lba in range(8)]
        for _ in range(3):
            for _ in range(3):
                await asyncio.sleep(0.05)
                await subsystem.remove_path(subsystem.paths[0])
                await asyncio.sleep(0.05)
                there = {member.path.options.traddr for member in subsystem.paths}
                await subsystem.add_path(PathAddress(next(p for p in ("p0", "p1", "p2") if p not in there)))
        stop = True
        assert all(turns > 20 for turns in await asyncio.gather(*workers))
        assert all(not port.controllers or len(port.controllers) == 1 for port in device.ports)

    drive(device, body, iopolicy="round-robin")


def test_the_last_path_can_be_removed_and_another_added() -> None:
    device = ModelDevice(2)

    async def whole() -> None:
        async with await connected(device, 0) as subsystem:
            namespace = subsystem.namespace(1)
            await namespace.write(0, block(3))
            await subsystem.remove_path(subsystem.path("p0"))
            with pytest.raises(NoPathError, match="all were removed"):
                await namespace.read(0)
            await subsystem.add_path(PathAddress("p1"))
            assert await namespace.read(0) == block(3)
            with pytest.raises(ConfigurationError, match="no path leads to p0; the paths are: model p1:4420"):
                subsystem.path("p0")
            with pytest.raises(ConfigurationError, match=r"model p1:4420 is already a path to "):
                await subsystem.add_path(PathAddress("p1"))

    run(whole())


def test_a_namespace_that_became_another_one_is_an_error_and_not_data() -> None:
    device = ModelDevice(1)

    async def body(subsystem: HostSubsystem) -> None:
        namespace = subsystem.namespace(1)
        await namespace.write(0, block(1))
        device.volumes[1] = Volume(1, nguid=b"\x77" * 16)
        device.cut(0)
        with pytest.raises(PathMismatchError, match="is another one now than the one in use: open it again"):
            await namespace.read(0)
        assert await subsystem.namespace(1).read(0) == bytes(BLOCK_BYTES)

    drive(device, body)


def test_a_path_that_comes_back_with_another_namespace_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    device = ModelDevice(2)

    async def body(subsystem: HostSubsystem) -> None:
        namespace = subsystem.namespace(1)
        await namespace.write(0, block(1))
        device.ports[0].volumes = {1: Volume(1, nguid=b"\x77" * 16)}
        device.cut(0)
        await asyncio.sleep(11)
        assert "namespace 1 is left out" in caplog.text
        assert await namespace.read(0) == block(1)
        assert "another namespace behind NSID 1" in subsystem.core.describe()["paths"][0]["left_out"]["1"]

    drive(device, body)


@pytest.mark.parametrize("how", ["at once", "unseen", "one path lost for good"])
def test_a_namespace_that_was_replaced_on_all_paths_gets_all_of_them(how: str) -> None:
    """The first path that sees the new namespace leaves it out as long as another path may have the old one."""
    device = ModelDevice(2)

    async def body(subsystem: HostSubsystem) -> None:
        namespace = subsystem.namespace(1)
        await namespace.write(0, block(1))
        if how == "at once":
            device.volumes[1] = Volume(1, nguid=b"\x77" * 16)
            for port in (0, 1):
                device.raise_event(port, 2, 0, LogPageId.CHANGED_NAMESPACES)
        else:
            for port in (0, 1):
                device.ports[port].up = False
                device.cut(port)
            device.volumes[1] = Volume(1, nguid=b"\x77" * 16)
            for port in (0, 1) if how == "unseen" else (0,):
                device.ports[port].up = True
        await asyncio.sleep(30)
        with pytest.raises(PathMismatchError, match="open it again"):
            await namespace.read(0)
        assert await subsystem.namespace(1).read(0) == bytes(BLOCK_BYTES)
        paths = subsystem.core.describe()["paths"]
        assert [[each["nsid"] for each in path["namespaces"]] for path in paths] == [[1]] * len(paths)
        assert not any(path["left_out"] for path in paths)

    drive(device, body, reconnect_delay=1, ctrl_loss_tmo=5)


def test_namespaces_that_change_while_they_are_used() -> None:
    device = ModelDevice(2)

    async def body(subsystem: HostSubsystem) -> None:
        namespace = subsystem.namespace(1)
        await namespace.refresh()
        volume = device.volumes[1]
        volume.data += bytes(64 * BLOCK_BYTES)
        volume.blocks = 128
        device.volumes[2] = Volume(2)
        for port in (0, 1):
            device.raise_event(port, 2, 0, LogPageId.CHANGED_NAMESPACES)
        await asyncio.sleep(1)
        assert namespace.size_blocks == 128
        await namespace.write(127, block(1))
        assert [each.nsid for each in await subsystem.namespaces()] == [1, 2]
        del device.volumes[2]
        device.raise_event(0, 2, 0, LogPageId.CHANGED_NAMESPACES)
        await asyncio.sleep(1)
        assert [each.nsid for each in await subsystem.namespaces()] == [1]

    drive(device, body)


def test_a_namespace_that_grew_while_no_path_was_there() -> None:
    device = ModelDevice(2)

    async def body(subsystem: HostSubsystem) -> None:
        namespace = subsystem.namespace(1)
        await namespace.refresh()
        for port in (0, 1):
            device.cut(port)
        volume = device.volumes[1]
        volume.data += bytes(64 * BLOCK_BYTES)
        volume.blocks = 128
        await asyncio.sleep(15)
        assert namespace.size_blocks == 128
        await namespace.write(127, block(1))

    drive(device, body)


def test_the_smallest_transfer_size_of_all_paths_holds() -> None:
    device = ModelDevice(2)

    async def whole() -> None:
        async with await connected(device, 0) as subsystem:
            namespace = subsystem.namespace(1)
            await namespace.read(0, 32)
            assert executed(device) == [1, 0]
            device.ports[1].identify = {"mdts": 1}
            await subsystem.add_path(PathAddress("p1"))
            await asyncio.sleep(1)
            await namespace.read(0, 32)
            assert executed(device) == [3, 0]

    run(whole())


def test_cancelling_a_command_in_every_state() -> None:
    device = ModelDevice(2)

    async def body(subsystem: HostSubsystem) -> None:
        namespace = subsystem.namespace(1)
        await namespace.refresh()
        for state in ("outstanding", "waiting"):
            if state == "waiting":
                for port in (0, 1):
                    device.set_ana(port, AnaState.INACCESSIBLE)
                await asyncio.sleep(0.1)
            buffer = bytearray(BLOCK_BYTES)
            task = asyncio.ensure_future(namespace.read_into(0, buffer))
            await asyncio.sleep(0.0005)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.sleep(0.1)
            assert all(member.depth == 0 and member.outstanding_bytes == 0 for member in subsystem.paths)
            assert subsystem.core.heads[0].waiting == 0

    drive(device, body)


def test_disconnecting_ends_waiting_commands() -> None:
    device = ModelDevice(1)

    async def whole() -> None:
        subsystem = await connected(device)
        namespace = subsystem.namespace(1)
        await namespace.refresh()
        device.set_ana(0, AnaState.INACCESSIBLE)
        await asyncio.sleep(0.1)
        task = asyncio.ensure_future(namespace.read(0))
        await asyncio.sleep(0.1)
        await subsystem.disconnect()
        with pytest.raises(ConnectionLost, match="the host disconnected from"):
            await task
        await subsystem.disconnect()
        assert not device.ports[0].controllers

    run(whole())


def test_one_of_the_paths_is_enough_unless_all_are_wanted() -> None:
    device = ModelDevice(2)
    device.ports[0].up = False

    async def whole() -> None:
        async with await connected(device) as subsystem:
            assert [member.name for member in subsystem.paths] == ["model p1:4420"]
        with pytest.raises(NvmeofError, match="p0 refuses connections"):
            await connected(device, all_paths=True)
        device.ports[1].up = False
        with pytest.raises(NvmeofError, match="p0 refuses connections"):
            await connected(device)

    run(whole())
