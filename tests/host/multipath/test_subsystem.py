"""A subsystem over several paths of the model: joining, policies, and paths and namespaces that come and go."""

from __future__ import annotations

import asyncio
import struct
from typing import Any

import pytest

from nvmeof.errors import ConfigurationError, ConnectionLost, NvmeofError, NvmeStatusError
from nvmeof.host.host_subsystem import HostSubsystem, PathAddress
from nvmeof.host.multipath.head import NoPathError
from nvmeof.host.multipath.identity import PathMismatchError
from nvmeof.host.multipath.iopolicy import IOPOLICIES
from nvmeof.spec.enums import AnaState, LogPageId

from .driven import block, connected, drive, executed
from .model import BLOCK_BYTES, ModelDevice, Volume
from .virtual import run

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
