"""The verbs of connections, and the counters of namespaces, hosts and queues."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated, Final, Literal

from nvmeof.target.commands.admin_context import ConnectContext
from nvmeof.target.commands.context import CommandContext
from nvmeof.target.control.in_use import in_flight
from nvmeof.target.control.verbs import Cntlid, Facts, Subnqn, Table, VerbGroup, verb
from nvmeof.target.driver import QueueDriver
from nvmeof.target.namespaces.namespace import BLOCK_COUNTERS

PIECE: Final = 16
"""So many connections are looked at before others get a turn of the event loop: each costs system calls."""


class Connections(VerbGroup):
    """Connections of hosts."""

    prefix = "connection"

    @verb("list")
    async def list(
        self,
        subnqn: Annotated[str | None, "NQN of the subsystem; all unless given"] = None,
        subflows: Annotated[bool, "with the kernel's figures of each subflow"] = False,
    ) -> Table:
        """List the open connections: whose, since when, transport in use, digests, security, commands in flight.

        A connection is a queue; `cntlid` and `host` say which association it belongs to. One that has made no Connect
        has neither. `since` is seconds of the Unix epoch.
        """
        found = []
        for number, driver in enumerate(sorted(self._target.drivers, key=_order)):
            if number % PIECE == PIECE - 1:
                await asyncio.sleep(0)
            if driver in self._target.drivers and subnqn in (None, _subnqn(driver)):
                found.append(self._described(driver, subflows))
        return found

    def _described(self, driver: QueueDriver, subflows: bool) -> Facts:
        ctx, info = driver.queue.ctx, driver.endpoint.describe().as_dict()
        flows = info["subflows"]
        parameters = driver.connection.parameters
        names = (("header", "header_digest"), ("data", "data_digest"))
        facts = {
            "subnqn": None,
            "host": None,
            "cntlid": None,
            "qid": None,
            **_whose(driver),
            "portid": driver.port.portid,
            "peer": ctx.peer,
            "local": info["local"],
            "since": time.time() - (self._target.loop.time() - driver.opened_at),
            "transport": info["transport"],
            "protocol": info["protocol"],
            "fallback_reason": info["fallback_reason"],
            "tls": info.get("tls"),
            "digests": [word for word, name in names if parameters is not None and getattr(parameters, name)],
            "subflow_count": max(1, len(flows)),
            "rtt_us": info["rtt_us"],
            "bytes_sent": info["bytes_sent"],
            "bytes_received": info["bytes_received"],
        }
        return {**facts, "subflows": flows} if subflows else facts

    @verb("end", changes=True)
    async def end(self, cntlid: Cntlid, subnqn: Subnqn = None) -> None:
        """End the association of a controller, with all of its connections. Its host may connect again at once."""
        self._administration.end_controller(cntlid, "ended through the control socket", subnqn=self._nqn(subnqn))


def _order(driver: QueueDriver) -> tuple[str, int, int, str]:
    facts = _whose(driver)
    return (str(facts.get("subnqn", "")), facts.get("cntlid", 0), facts.get("qid", 0), driver.queue.ctx.peer)


def _subnqn(driver: QueueDriver) -> str | None:
    found: str | None = _whose(driver).get("subnqn")
    return found


def _whose(driver: QueueDriver) -> Facts:
    """Return whose a connection is and what its queue has done; empty before its Connect."""
    ctx = driver.queue.ctx
    if isinstance(ctx, ConnectContext):
        return {}
    return {
        "subnqn": ctx.view.subnqn,
        "host": ctx.host_nqn,
        "hostid": ctx.hostid.hex(),
        "cntlid": ctx.view.cntlid,
        "qid": ctx.qid,
        "entries": ctx.entries,
        "flow_control": ctx.flow_control,
        "authentication": ctx.authentication.text if ctx.authentication is not None else None,
        "in_flight": in_flight(driver),
        "commands": ctx.counters.commands,
        "refused": ctx.counters.errors,
    }


class Counters(VerbGroup):
    """What namespaces, hosts and queues have done."""

    @verb("counters")
    async def counters(
        self, by: Annotated[Literal["namespace", "host", "queue"], "what is counted for"] = "namespace"
    ) -> Table:
        """Show counters: of namespaces since the start (kept ones too), of queues and hosts since they connected.

        Those of a host are the sums over its connections that are open.
        """
        if by == "namespace":
            return list(self._namespaces())
        queues = [self._queue(driver) for driver in sorted(self._target.drivers, key=_order) if _whose(driver)]
        return queues if by == "queue" else list(_by_host(queues))

    def _namespaces(self) -> Iterator[Facts]:
        for subsystem in self._target.subsystems.values():
            for nsid, namespace in sorted({**subsystem.namespaces, **subsystem.disabled}.items()):
                counted = asdict(namespace.counters)
                sizes = {
                    name.replace("blocks", "bytes"): counted.pop(name) << namespace.block_shift
                    for name in BLOCK_COUNTERS
                }
                yield {
                    "subnqn": subsystem.nqn,
                    "nsid": nsid,
                    **counted,
                    **sizes,
                    "in_flight": len(namespace.in_progress),
                }

    def _queue(self, driver: QueueDriver) -> Facts:
        ctx = driver.queue.ctx
        assert isinstance(ctx, CommandContext), "a queue that has made no Connect is not counted"
        return {
            "subnqn": ctx.view.subnqn,
            "host": ctx.host_nqn,
            "cntlid": ctx.view.cntlid,
            "qid": ctx.qid,
            "commands": ctx.counters.commands,
            "refused": ctx.counters.errors,
            "in_flight": in_flight(driver),
        }


def _by_host(queues: Table) -> Iterator[Facts]:
    sums: dict[tuple[str, str], Counter[str]] = {}
    for each in queues:
        total = sums.setdefault((each["subnqn"], each["host"]), Counter())
        total.update({name: each[name] for name in ("commands", "refused", "in_flight")})
        total["queues"] += 1
    for (subnqn, host), total in sorted(sums.items()):
        names = ("queues", "commands", "refused", "in_flight")
        yield {"subnqn": subnqn, "host": host, **{name: total[name] for name in names}}
