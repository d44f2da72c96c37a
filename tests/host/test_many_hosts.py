"""Several hosts, subsystems and controllers under load at once, in one process, while some of them come and go."""

from __future__ import annotations

import asyncio
import random
import uuid
from contextlib import AsyncExitStack

import pytest

import nvmeof
from nvmeof import HostController, Ramdisk, Target, connect
from nvmeof.host.association import HostState
from nvmeof.host.async_events import AsyncEvent
from nvmeof.host.load import Load, round_robin
from nvmeof.host.namespace import Namespace
from nvmeof.target.subsystem.config import NamespaceConfig, PortConfig, SubsystemConfig, TargetConfig

HOSTS = 4
ROUNDS = 12
REGION_BLOCKS = 512
"""Blocks of one host in each namespace, which no other host writes."""


def _subsystem(number: int) -> SubsystemConfig:
    nqn = f"nqn.2026-01.org.example:many-{number}"
    return SubsystemConfig(nqn=nqn, namespaces=(NamespaceConfig(backend=Ramdisk("4M")),))


async def _host(stack: AsyncExitStack, target: Target, number: int, nqn: str, **more: int) -> HostController:
    """Return a controller for host ``number`` over one of the target's ports, the ports in turn."""
    listener = target.listeners[number % len(target.listeners)].describe()
    controller = await connect(
        listener.address.host,
        listener.address.port,
        subnqn=nqn,
        transport=listener.transport,
        hostnqn=f"nqn.2026-01.org.example:host-{number}",
        hostid=uuid.UUID(int=number + 1),
        **{"nr_io_queues": 1 + number % 3, "queue_size": 16, **more},
    )
    return await stack.enter_async_context(controller)


async def _verify(namespace: Namespace, number: int, seed: int) -> int:
    """Write contents that differ by host, round and block, read them back, and return how many blocks differ."""
    chooser, first, wrong = random.Random(seed), number * REGION_BLOCKS, 0
    for _ in range(ROUNDS):
        blocks = chooser.choice((1, 8, 16, 200))
        lba = first + chooser.randrange(REGION_BLOCKS - blocks)
        data = chooser.randbytes(blocks * namespace.block_bytes)
        await namespace.write(lba, data)
        found = await namespace.read(lba, blocks)
        wrong += found != data
    return wrong


@pytest.mark.parametrize("transport", ["tcp", "memory"])
async def test_several_hosts_and_controllers_under_load(transport: str) -> None:
    """Each host reads what it wrote, and no lost or reconnecting host ends the association of another."""
    where = "127.0.0.1" if transport == "tcp" else "many"
    ports = tuple(
        PortConfig(transport=transport, host=f"{where}{'' if transport == 'tcp' else n}", port=0) for n in (1, 2)
    )
    subsystems = (_subsystem(1), _subsystem(2))
    async with Target(TargetConfig(subsystems=subsystems, ports=ports)) as target, AsyncExitStack() as stack:
        controllers = [[await _host(stack, target, number, each.nqn) for each in subsystems] for number in range(HOSTS)]
        every = [controller for of_host in controllers for controller in of_host]
        for subsystem in subsystems:
            cntlids = [each.cntlid for each in every if each.subnqn == subsystem.nqn]
            assert len(set(cntlids)) == HOSTS
        namespaces = {controller: (await controller.namespaces())[0] for controller in every}
        events: list[AsyncEvent] = []
        for controller in every:
            controller.on_event.append(events.append)

        # a load over the queues of one host's two controllers, and another over those of a host that will be lost
        queues = [queue for controller in controllers[0] for queue in controller.io_queues]
        load = Load(namespaces[controllers[0][0]], queues, "randread", 4096, depth=4, next_queue=round_robin(queues))
        leaving = await _host(stack, target, 9, subsystems[0].nqn)
        doomed = Load((await leaving.namespaces())[0], leaving.io_queues, "randread", 65536, depth=8)
        load.start()
        doomed.start()
        load.open_window()

        async def come_and_go() -> None:
            async with AsyncExitStack() as own:
                for number in (5, 6, 7):
                    visitor = await _host(own, target, number, subsystems[1].nqn)
                    await visitor.namespace(1).read(0, 8)
                    added = await target.add_namespace(Ramdisk("1M"))
                    await target.remove_namespace(added)
                    await visitor.disconnect()

        async def lose() -> None:
            await asyncio.sleep(0)
            for endpoint in list(leaving.endpoints()):
                endpoint.abort()

        async with asyncio.timeout(40), asyncio.TaskGroup() as group:
            checks = [
                group.create_task(_verify(namespace, number, seed))
                for number, of_host in enumerate(controllers)
                for seed, controller in enumerate(of_host)
                for namespace in (namespaces[controller],)
            ]
            group.create_task(come_and_go())
            group.create_task(lose())
        assert [check.result() for check in checks] == [0] * len(checks)
        figures = load.close_window()
        load.stop()
        await asyncio.wait_for(load.finished, 10)
        await asyncio.wait_for(doomed.finished, 10)
        assert figures.ios > 0 and load.error is None
        assert isinstance(doomed.error, nvmeof.ConnectionLost) and leaving.state is HostState.FAILED
        assert {controller.state for controller in every} == {HostState.LIVE}
        assert not any(queue.load for controller in every for queue in controller.io_queues)
        assert {event.log_page for event in events} <= {0x04}
