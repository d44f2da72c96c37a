"""The ends of a queue of the offload device: drained under load, killed, hanging; and I/O that goes on afterwards."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from typing import Any

import pytest

from nvmeof import ConnectionLost, ConnectTimeout, LocalProtocolError, NvmeofError, Ramdisk, Target
from nvmeof.host.client import DEVICES, HostController
from nvmeof.host.device_registry import DeviceRegistry
from nvmeof.host.offload import process as process_module
from nvmeof.host.offload.device import OFFLOAD, OffloadDevice
from nvmeof.host.offload.layout import HEADER, SUBMISSION_BYTES
from nvmeof.host.offload.link import OffloadLink
from nvmeof.host.path import PathState
from tests.conformance.rawhost import until

from ..test_recovery_with_target import VerifyingLoad, one_path, target_of
from .test_device import MIB, alive, offloaded, pid_of

OURS = next(each for each in DEVICES if isinstance(each, OffloadDevice))


def served() -> Target:
    return Target(namespaces=[Ramdisk("16M")], listen="127.0.0.1:0", trtype="tcp")


class Reads:
    """Reads of 64 KiB, repeated until they fail, and their errors."""

    def __init__(self, controller: HostController, views: list[memoryview]) -> None:
        self.done = 0
        self.errors: list[NvmeofError] = []
        self.tasks = [asyncio.ensure_future(self._run(controller, each)) for each in views]

    async def _run(self, controller: HostController, view: memoryview) -> None:
        namespace = controller.namespace(1)
        try:
            while True:
                await namespace.read_into(0, view)
                self.done += 1
        except NvmeofError as error:
            self.errors.append(error)

    async def running(self) -> None:
        await until(lambda: self.done >= 50)

    async def end(self) -> None:
        await asyncio.wait_for(asyncio.gather(*self.tasks), 20)


@pytest.mark.parametrize("pool", [True, False])
async def test_a_drained_queue_touches_no_buffer_and_makes_no_upcall(pool: bool) -> None:
    """Canaries written after the drain stay; all of the buffers are in use when the drain begins."""
    size, count = 64 * 1024, 24
    async with served() as target:
        controller = await offloaded(target)
        await controller.namespace(1).write(0, b"\xaa" * size)
        buffer = controller.take_buffer(size * count)
        whole = buffer.view if pool else memoryview(bytearray(size * count))
        views = [whole[at : at + size] for at in range(0, len(whole), size)]
        for attempt in range(2):
            reads = Reads(controller, views)
            await reads.running()
            queue = controller.io_queues[0]
            assert queue.requests
            completed = queue.completed
            controller.device.drain_queue(queue)
            whole[:] = b"\x55" * len(whole)
            await asyncio.sleep(0.05)  # time for what must not happen
            assert queue.completed == completed
            assert whole == b"\x55" * len(whole), "the device touched a buffer after the drain"
            controller.association.queue_error(queue, ConnectionLost("drained by the test"))
            await reads.end()
            assert len(reads.errors) == count
            await controller.disconnect()
            if not attempt:
                controller = await offloaded(target)
        buffer.release()
    assert OURS.process_id() is None


GUARDED = """
import asyncio, ctypes, mmap, sys
import nvmeof
from nvmeof.errors import ConnectionLost, NvmeofError

SIZE, COUNT = 65536, 24
PROT_NONE, PROT_READ_WRITE = 0, 3

async def main():
    async with nvmeof.Target(namespaces=[nvmeof.Ramdisk("16M")], listen="127.0.0.1:0", trtype="tcp") as target:
        address = target.address
        controller = await nvmeof.connect(
            address.host, address.port, subnqn=target.subnqn, transport="tcp_offload",
            hostnqn="nqn.2026-01.org.example:guarded",
        )
        memory = mmap.mmap(-1, SIZE * COUNT)
        start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        whole, done = memoryview(memory), 0

        async def read(index):
            nonlocal done
            namespace = controller.namespace(1)
            try:
                while True:
                    await namespace.read_into(0, whole[index * SIZE : (index + 1) * SIZE])
                    done += 1
            except NvmeofError:
                pass

        tasks = [asyncio.ensure_future(read(index)) for index in range(COUNT)]
        while done < 100:
            await asyncio.sleep(0.01)
        queue = controller.io_queues[0]
        assert queue.requests
        controller.device.drain_queue(queue)
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.mprotect(ctypes.c_void_p(start), ctypes.c_size_t(SIZE * COUNT), PROT_NONE) == 0
        before = done
        await asyncio.sleep(0.2)
        assert done == before
        controller.association.queue_error(queue, ConnectionLost("drained"))
        await asyncio.gather(*tasks)
        await controller.disconnect()
        {then}
    print("untouched")

asyncio.run(main())
"""


@pytest.mark.parametrize("touched", [False, True])
def test_guarded_memory_is_not_touched_after_the_drain(touched: bool) -> None:
    """Buffers without access rights: the first byte written there ends this process (SIGSEGV). One write tests the
    guard itself.
    """
    script = GUARDED.replace("{then}", "whole[0] = 1" if touched else "")
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=100)
    if touched:
        assert done.returncode == -signal.SIGSEGV
    else:
        assert (done.returncode, done.stdout) == (0, "untouched\n"), done.stderr


async def test_a_device_that_is_killed_is_a_queue_error() -> None:
    async with served() as target:
        controller = await offloaded(target)
        other = await offloaded(target)
        buffer = controller.take_buffer(8 * 65536)
        reads = Reads(controller, [buffer.view[at : at + 65536] for at in range(0, len(buffer), 65536)])
        await reads.running()
        lost: list[NvmeofError] = []
        for each in (controller, other):
            each.on_lost.append(lost.append)
        pid = pid_of(OURS)
        os.kill(pid, signal.SIGKILL)
        await reads.end()
        await until(lambda: len(lost) == 2)
        sentence = f"the offload device (process {pid}) was ended by signal 9"
        assert [str(each) for each in lost] == [sentence] * 2 and isinstance(lost[0], ConnectionLost)
        assert all(isinstance(each, ConnectionLost) and sentence in str(each) for each in reads.errors)
        async with await offloaded(target) as third:
            assert pid_of(OURS) != pid
            await third.namespace(1).read_into(0, buffer.view[:65536])
        for each in (controller, other):
            await each.disconnect()
        buffer.release()
    assert OURS.process_id() is None


async def test_a_command_of_the_turn_in_which_the_device_died_is_lost_and_rings_no_doorbell() -> None:
    """The descriptor of its doorbell is closed, and may already name another file."""
    async with served() as target:
        controller = await offloaded(target)
        link = controller.io_queues[0].private
        assert isinstance(link, OffloadLink)
        link.process.kill("was ended by the test")
        reads = [asyncio.ensure_future(controller.namespace(1).read(0)) for _ in range(3)]
        many = asyncio.ensure_future(controller.namespace(1).read_many([0, 1]))
        for each in (*reads, many):
            with pytest.raises(ConnectionLost, match="was ended by the test"):
                await each
        await controller.disconnect()


async def test_io_goes_on_over_a_new_device() -> None:
    async with target_of("tcp") as target, one_path(target, OFFLOAD, nr_io_queues=2) as subsystem:
        load = VerifyingLoad(subsystem.namespace(1))
        path = subsystem.paths[0].path
        pids = set()
        for _ in range(2):
            rounds = load.rounds
            await until(lambda rounds=rounds: load.rounds > rounds + 3)  # type: ignore[misc]
            pids.add(pid_of(OURS))
            os.kill(pid_of(OURS), signal.SIGKILL)
            await until(lambda: path.state is not PathState.LIVE)
            await until(lambda: path.state is PathState.LIVE)
        await load.end()
        assert len(pids) == 2 and len(path.outages) == 2
        assert all("was ended by signal 9" in each.reason for each in path.outages)
    assert OURS.process_id() is None


async def test_no_io_is_lost_when_connections_are() -> None:
    async with target_of("tcp") as target, one_path(target, OFFLOAD) as subsystem:
        load = VerifyingLoad(subsystem.namespace(1))
        path = subsystem.paths[0].path
        await until(lambda: load.rounds > 3)
        path.fail(ConnectionLost("cut by the test"))
        await until(lambda: len(path.outages) == 1 and path.state is PathState.LIVE)
        await load.end()


async def test_a_device_that_hangs_is_ended_by_the_drain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "STOP_SECONDS", 0.2)
    async with served() as target:
        controller = await offloaded(target, io_timeout=0.5, keep_alive_tmo=0)
        await controller.namespace(1).read(0)
        pid = pid_of(OURS)
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(ConnectionLost, match="was not answered in time"):
            await controller.namespace(1).read(0)
        assert not alive(pid)
        await controller.disconnect()
        async with await offloaded(target) as again:
            await again.namespace(1).read(0)


async def test_a_device_that_hangs_gets_no_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "STOP_SECONDS", 0.2)
    async with served() as target, await offloaded(target) as controller:
        os.kill(pid_of(OURS), signal.SIGSTOP)
        with pytest.raises(ConnectTimeout, match="did not answer, and was ended: connect again"):
            await offloaded(target, connect_timeout=0.3)
        await until(lambda: controller.error is not None)
        assert "did not answer, and was ended" in str(controller.error)


async def test_an_invalid_write_of_the_device_ends_it() -> None:
    async with served() as target:
        controller = await offloaded(target, keep_alive_tmo=0)
        link = controller.io_queues[0].private
        assert isinstance(link, OffloadLink)
        reader: Any = link.process._in
        HEADER.pack_into(link.process._memory, SUBMISSION_BYTES + reader._at, 77, 0, 0, 1, 0, 0, 0)
        os.eventfd_write(link.process._completions, 1)
        await until(lambda: controller.error is not None)
        assert "wrote a record of kind 77 and 1 units" in str(controller.error)
        await controller.disconnect()


async def test_a_cancelled_connect_leaves_nothing_behind() -> None:
    accepted: list[asyncio.StreamWriter] = []

    async def silent(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.append(writer)

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    async with served() as target, server:
        port = server.sockets[0].getsockname()[1]
        async with await offloaded(target) as controller:
            link = controller.io_queues[0].private
            assert isinstance(link, OffloadLink)
            free = len(link.process._free_slots)
            target_like: Any = type("Silent", (), {"address": target.address, "subnqn": target.subnqn})()
            connecting = asyncio.ensure_future(_connect_to(target_like, port))
            await until(lambda: bool(accepted))
            connecting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await connecting
            await until(lambda: len(link.process._free_slots) == free)
            await controller.namespace(1).read(0)
        for writer in accepted:
            writer.close()


async def _connect_to(target: Any, port: int) -> HostController:
    from nvmeof.host.client import connect

    return await connect("127.0.0.1", port, subnqn=target.subnqn, transport=OFFLOAD)


async def test_a_command_that_is_too_long_breaks_its_queue_with_a_sentence() -> None:
    async with served() as target:
        controller = await offloaded(target)
        with pytest.raises(LocalProtocolError, match=r"transfers 1048576 bytes with one command, and one has 2097152"):
            await controller.io(bytes(64), data_in=memoryview(bytearray(2 * MIB)))
        await controller.disconnect()


async def test_the_device_ends_with_its_parent() -> None:
    script = """
        import asyncio, os, sys, nvmeof
        from nvmeof.host.client import DEVICES
        async def main():
            controller = await nvmeof.connect("127.0.0.1", int(sys.argv[1]), subnqn=sys.argv[2],
                                              transport="tcp_offload", hostnqn="nqn.2026-01.org.example:x")
            print(list(DEVICES)[1].process_id(), flush=True)
            os.kill(os.getpid(), 9)
        asyncio.run(main())
    """
    async with served() as target:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", textwrap.dedent(script), str(target.address.port), target.subnqn,
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert child.stdout is not None
        pid = int(await child.stdout.readline())
        await child.wait()
        await until(lambda: not alive(pid) or _is_zombie(pid))


def _is_zombie(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


async def test_several_devices_are_apart() -> None:
    first, second = OffloadDevice(), OffloadDevice()
    async with served() as target:
        one = await offloaded(target, registry=DeviceRegistry(first))
        async with await offloaded(target, registry=DeviceRegistry(second)) as other:
            os.kill(pid_of(first), signal.SIGKILL)
            await until(lambda: one.error is not None)
            await other.namespace(1).read(0)
        await one.disconnect()
