"""Watches links and subflows: closes what leads nowhere, and uses a path again that has come back.

A cut link closes nothing in the kernel: its subflow stays, and what was given to it waits for a retransmission
timeout. Two things tell: rtnetlink, at once, when this machine's own link goes down; and TCP_INFO, after some seconds,
when the path is broken further away (timeouts in a row, nothing acknowledged, while another subflow of the same
connection gets through). In both cases the path is suspended, so that its subflows close and the connection's data
takes the others. The last live subflow of a connection is never closed; with no link left, or only
those of backup paths, none is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Final

from nvmeof.errors import TransportError
from nvmeof.transport.base import Endpoint, SubflowInfo, log
from nvmeof.transport.paths.driver import Connections, Flow, PathDriver, flows_of
from nvmeof.transport.paths.events import AddressEvent, LinkEvent, NetworkEvents
from nvmeof.transport.paths.interfaces import Interface, interfaces
from nvmeof.transport.paths.model import PathEndpoint, PathFlag

LINK: Final = "its link is down"
SILENT: Final = "nothing comes back over it"

_SETTLE_SECONDS: Final = 0.1
"""Between a link's event and the look at all links, so that several come together."""
_TIMEOUTS: Final = 3
"""Retransmission timeouts in a row that make a subflow suspect..."""
_QUIET_MS: Final = 2000
"""... when the peer has acknowledged nothing for that long either."""
_RETRY_SECONDS: Final = (2.0, 60.0)
"""First and longest pause before a silent path is tried again."""
_CONNECTIONS_PER_ROUND: Final = 64
"""How many connections are looked at in one round: 64 take about 5 ms."""


@dataclass(slots=True)
class PathState:
    """A path, and what the keeper knows of it."""

    endpoint: PathEndpoint
    up: bool = True
    reason: str | None = None
    """Why it is suspended."""
    since: float = 0.0
    """Loop time of the last change."""
    retry_at: float = 0.0
    pause_seconds: float = _RETRY_SECONDS[0]
    used: bool = False
    """Whether a subflow of ours ran over it."""
    missing: bool = False
    """Used before, but no subflow of ours runs over it now."""


def stalled(flow: SubflowInfo) -> bool:
    """Whether what a subflow sends gets no answer. A subflow with nothing to send is never stalled."""
    return (
        flow.state == "ESTABLISHED"
        and (flow.unacked_segments or 0) > 0
        and (flow.timeouts or 0) >= _TIMEOUTS
        and (flow.last_ack_received_ms or 0) >= _QUIET_MS
    )


class PathKeeper:
    """Keeps the paths of one session; `paths` may grow and shrink meanwhile. Starts on the running loop."""

    def __init__(
        self,
        driver: PathDriver,
        paths: list[PathState],
        connections: Connections,
        *,
        interval_seconds: float = 1.0,
        changed: Callable[[PathState], object] | None = None,
    ) -> None:
        self._driver = driver
        self._paths = paths
        self._connections = connections
        self._interval = interval_seconds
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._next_connection = 0
        self._soon: asyncio.TimerHandle | None = None
        self._events = NetworkEvents(self._event, self._look_soon)
        self._tick: asyncio.TimerHandle = self._loop.call_later(interval_seconds, self._round)
        self._look_soon()

    def close(self) -> None:
        """Stop watching. Idempotent."""
        self._events.close()
        self._tick.cancel()
        if self._soon is not None:
            self._soon.cancel()

    # -- links

    def _event(self, event: LinkEvent | AddressEvent) -> None:
        if any(event.device == each.endpoint.device or each.endpoint.device is None for each in self._paths):
            self._look_soon()

    def _look_soon(self) -> None:
        if self._soon is None:
            self._soon = self._loop.call_later(_SETTLE_SECONDS, self._look)

    def _look(self) -> None:
        """Compare the paths with the links as they are now."""
        self._soon = None
        try:
            known = interfaces()
        except OSError as error:
            log.debug("looking at the links: %s", error.strerror or error)  # the next event, or round, looks again
            return
        links = [(state, carries(state.endpoint, known)) for state in self._paths]
        ours = {state.endpoint.address for state in self._paths}
        flows: list[Flow] = []
        if any(state.up and not alive for state, alive in links):
            flows = [flow for each in flows_of(self._connections()) for flow in each]
        # With no link left, or only those of backup paths, there is nowhere better to go: subflows that nobody closed
        # go on when their links are back, and that costs less than making them anew (docs/experiments.md, on windows).
        others = any(alive and not state.endpoint.flags & PathFlag.BACKUP for state, alive in links) or any(
            flow.live
            and flow.local_host not in ours
            and any(each.up and flow.local_host in each.addresses for each in known.values())
            for flow in flows
        )
        for state, alive in links:
            if state.up and not alive and others:
                self._suspend(state, LINK, flows)
            elif not state.up and alive and state.reason == LINK:
                self._resume(state)

    def _suspend(self, state: PathState, reason: str, flows: Iterable[Flow]) -> None:
        endpoint = state.endpoint
        state.up, state.reason, state.since = False, reason, self._loop.time()
        log.warning("path %s is taken out of use: %s", endpoint, reason)
        self._act("closing the subflows over", state, lambda: self._driver.suspend(endpoint, _over(endpoint, flows)))
        if self._changed is not None:
            self._changed(state)

    def _resume(self, state: PathState) -> None:
        state.up, state.reason, state.since = True, None, self._loop.time()
        # time for its subflow to come about, before it counts as silent again
        state.retry_at, state.missing = state.since + state.pause_seconds, state.used
        log.warning("path %s is used again", state.endpoint)
        self._act("opening subflows over", state, lambda: self._driver.resume(state.endpoint))
        if self._changed is not None:
            self._changed(state)

    def _act(self, what: str, state: PathState, action: Callable[[], object]) -> None:
        try:
            action()
        except (OSError, TransportError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            log.warning("%s %s failed: %s", what, state.endpoint, reason)

    # -- subflows

    def _round(self) -> None:
        self._tick = self._loop.call_later(self._interval, self._round)
        try:
            self._judge(flows_of(self._some_connections()))
            self._driver.reconcile()
            if any(not each.up and each.reason == LINK for each in self._paths):
                self._look_soon()  # an event that tells of its return may have been missed
        except OSError as error:
            log.debug("looking at the subflows: %s", error.strerror or error)

    def _some_connections(self) -> list[Endpoint]:
        """All of a few connections; of many, the next ones in turn."""
        every = list(self._connections())
        if len(every) <= _CONNECTIONS_PER_ROUND:
            return every
        start = self._next_connection % len(every)
        self._next_connection = start + _CONNECTIONS_PER_ROUND
        return list(islice([*every[start:], *every], _CONNECTIONS_PER_ROUND))

    def _judge(self, connections: list[list[Flow]]) -> None:
        if not connections:
            return
        now = self._loop.time()
        flows = [flow for each in connections for flow in each]
        managed = set()
        for state in self._paths:
            managed.add(state.endpoint.address)
            over = _over(state.endpoint, flows)
            connected = [flow for flow in over if flow.info.state == "ESTABLISHED"]
            if connected:
                state.used, state.missing = True, False
            elif state.up and state.used and not state.missing:
                # lost just now, or a new connection whose subflow is on its way
                state.missing = True
                state.retry_at = max(state.retry_at, now + state.pause_seconds)
            if state.up and _silent(over) and _others_work(state, connections):
                self._back_off(state, now)
                self._suspend(state, SILENT, over)
            elif not state.up and state.reason == SILENT and (now >= state.retry_at or _answered(connected)):
                self._resume(state)
                self._back_off(state, now)
            elif state.up and over and any(_healthy(flow.info) for flow in over):
                state.pause_seconds = _RETRY_SECONDS[0]
            elif state.up and state.missing and now >= state.retry_at:
                # a subflow was refused or lost, though the link is there: the kernel does not try again by itself,
                # and the pauses between its SYNs grow with the time that the path was dead
                self._back_off(state, now)
                self._again(state)
        for each in connections:
            healthy = [flow for flow in each if _healthy(flow.info)]
            for flow in each:
                if flow.local_host not in managed and stalled(flow.info) and healthy:
                    log.warning("subflow %s - %s is closed: %s", flow.info.local, flow.info.peer, SILENT)
                    try:
                        self._driver.close_flow(flow)
                    except (OSError, TransportError) as error:
                        log.debug("closing a subflow: %s", error)

    def _again(self, state: PathState) -> None:
        log.info("path %s is tried again", state.endpoint)

        def renew() -> None:
            self._driver.suspend(state.endpoint, ())
            self._driver.resume(state.endpoint)

        self._act("opening subflows over", state, renew)

    def _back_off(self, state: PathState, now: float) -> None:
        state.retry_at = now + state.pause_seconds
        state.pause_seconds = min(_RETRY_SECONDS[1], state.pause_seconds * 2)


def carries(endpoint: PathEndpoint, known: dict[str, Interface]) -> bool:
    """Whether a path's address sits on an interface that is up (its own, where it names one)."""
    if endpoint.device is not None:
        interface = known.get(endpoint.device)
        return interface is not None and interface.up and endpoint.address in interface.addresses
    return any(each.up and endpoint.address in each.addresses for each in known.values())


def _over(endpoint: PathEndpoint, flows: Iterable[Flow]) -> list[Flow]:
    return [flow for flow in flows if flow.live and flow.local_host == endpoint.address]


def _healthy(flow: SubflowInfo) -> bool:
    return flow.state == "ESTABLISHED" and not flow.timeouts


def _silent(over: list[Flow]) -> bool:
    """Whether a subflow over a path is stalled, and no other one over it got an answer lately (it may be idle)."""
    return any(stalled(flow.info) for flow in over) and all(
        (flow.info.last_ack_received_ms or 0) >= _QUIET_MS for flow in over
    )


def _answered(over: list[Flow]) -> bool:
    """Whether a subflow over a path got an answer just now: the peer may have opened the way again by itself."""
    return any(_healthy(flow.info) and (flow.info.last_ack_received_ms or 0) < _QUIET_MS for flow in over)


def _others_work(state: PathState, connections: list[list[Flow]]) -> bool:
    """Whether every connection over a path has another subflow that gets through."""
    for each in connections:
        over = {id(flow) for flow in _over(state.endpoint, each)}
        if over and not any(_healthy(flow.info) for flow in each if id(flow) not in over):
            return False
    return True
