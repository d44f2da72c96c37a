"""What uses a part of a target at this moment: associations, and their commands in progress."""

from __future__ import annotations

from nvmeof.target.commands.admin_context import ConnectContext
from nvmeof.target.driver import QueueDriver
from nvmeof.target.server import Target
from nvmeof.target.subsystem.subsystem import Subsystem

ADMIN_QID = 0


def in_flight(driver: QueueDriver) -> int:
    """Return how many commands of a connection are in progress: in backends, or waiting for their data.

    Not those of an admin queue: it holds Asynchronous Event Requests for as long as it lives.
    """
    queue = driver.queue
    return len(queue.running) + len(queue.transfers) if queue.ctx.qid != ADMIN_QID else 0


def drivers_of(target: Target, subsystem: Subsystem | None, portid: int | None) -> list[QueueDriver]:
    """Return the connections of a subsystem, of a port, or of a subsystem on a port."""
    if subsystem is not None:
        return target.connections.of_subsystem(subsystem, portid)
    return [] if portid is None else target.connections.of_port(portid)


def associations(target: Target, subsystem: Subsystem | None = None, portid: int | None = None) -> list[str]:
    """Return a sentence for each association of a subsystem, a port, or both; discovery controllers among them."""
    if subsystem is not None:
        chosen = [subsystem]
    else:
        chosen = [*target.subsystems.values(), target.registry.discovery]
    return [
        f"controller {each.cntlid} of {each.host_nqn} on port {each.ana.portid}, subsystem {one.nqn}"
        for one in chosen
        for each in one.controllers.values()
        if portid in (None, each.ana.portid)
    ]


def commands_in_progress(target: Target, subsystem: Subsystem | None, portid: int | None) -> list[str]:
    """Return a sentence for each connection of a subsystem, a port or both that has commands in progress."""
    found = []
    for driver in drivers_of(target, subsystem, portid):
        ctx, count = driver.queue.ctx, in_flight(driver)
        if count and not isinstance(ctx, ConnectContext):
            found.append(f"{ctx.peer}: {count} commands of queue {ctx.qid} of {ctx.host_nqn} were cut")
    return found
