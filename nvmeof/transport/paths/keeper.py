"""Watches links and subflows: closes subflows of dead paths, and uses a path again when it works again.

A cut link closes nothing in the kernel: its subflow stays, and what was given to it waits for a retransmission timeout.
Two sources report it: rtnetlink, at once, when this machine's own link goes down; and TCP_INFO, after some seconds,
when the path is broken further away (timeouts in a row, nothing acknowledged, while another subflow of the same
connection gets through). In both cases the path is suspended, so that its subflows close and the connection's data
takes the others; a path that is there again gets new subflows. Left to the kernel, whose old subflows go on when their
links are back, is what closing would cost more than it gives: the last live subflow of a connection, the last two of
those that it began with (`first_subflows`), and all of them while no link is left or only those of backup paths.
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
from nvmeof.transport.paths.first_subflows import FirstSubflows
from nvmeof.transport.paths.interfaces import Interface, interfaces
from nvmeof.transport.paths.model import PathEndpoint

LINK: Final = "its link is down"
SILENT: Final = "nothing comes back over it"

_SETTLE_SECONDS: Final = (0.1, 0.5)
"""After a link's event so long without another one, and at most so long, before all links are looked at: which of them
stay decides what is done about those that go."""
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
    left: bool = False
    """Its link is down, and its subflows are left to the kernel until the link is back."""
    trusted_until: float = 0.0
    """Not taken for silent before: the kernel's next try may come as late as the link was down."""


def stalled(flow: SubflowInfo) -> bool:
    """Return whether data of a subflow is not acknowledged. A subflow with nothing to send is never stalled."""
    return (
        flow.state == "ESTABLISHED"
        and (flow.unacked_segments or 0) > 0
        and (flow.timeouts or 0) >= _TIMEOUTS
        and (flow.last_ack_received_ms or 0) >= _QUIET_MS
    )


class PathKeeper:
    """Keeps the paths of one session; `paths` may grow and shrink while it runs. Starts on the running loop."""

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
        self._first = FirstSubflows()
        self._next_connection = 0
        self._soon: asyncio.TimerHandle | None = None
        self._soon_since = 0.0
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
        now = self._loop.time()
        quiet, most = _SETTLE_SECONDS
        if self._soon is None:
            self._soon_since = now
        else:
            self._soon.cancel()
        self._soon = self._loop.call_at(min(now + quiet, self._soon_since + most), self._look)

    def _look(self) -> None:
        """Compare the paths with the links as they are now."""
        self._soon = None
        try:
            known = interfaces()
        except OSError as error:
            log.debug("looking at the links: %s", error.strerror or error)  # the next event, or round, looks again
            return
        links = [(state, carries(state.endpoint, known)) for state in self._paths]
        connections: list[list[Flow]] = []
        if any(state.up and not alive and not state.left for state, alive in links):
            connections = flows_of(self._connections())
            self._first.look(connections, self._loop.time())
        ours = {state.endpoint.address for state in self._paths}
        ways = {state.endpoint.address for state, alive in links if alive and not state.endpoint.backup}
        ways |= {host for each in known.values() if each.up for host in each.addresses if host not in ours}
        for state, alive in links:
            if alive:
                if state.left:
                    now = self._loop.time()
                    state.left, state.trusted_until = False, now + (now - state.since) + _QUIET_MS / 1000
                if not state.up and state.reason == LINK:
                    self._resume(state)
            elif state.up and not state.left:
                if self._better_closed(state, connections, ways):
                    self._suspend(state, LINK, [flow for each in connections for flow in each])
                else:
                    state.left, state.since = True, self._loop.time()
                    log.info("path %s is down, its subflows are left to the kernel", state.endpoint)

    def _better_closed(self, state: PathState, connections: list[list[Flow]], ways: set[str]) -> bool:
        """Return whether every connection over a path has subflows over other `ways` (local addresses) that can stand
        in. Where there is no better way, open subflows go on when their links are back, and that costs less than new
        ones (docs/experiments.md, on windows).
        """
        if not connections:
            return bool(ways & {each.endpoint.address for each in self._paths})
        for each in connections:
            over = _over(state.endpoint, each)
            rest = [flow for flow in each if flow.live and flow.local_host in ways]
            if over and not (rest and self._first.spare(over, rest)):
                return False
        return True

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
            if any(each.left or (not each.up and each.reason == LINK) for each in self._paths):
                self._look_soon()  # the event of its return may have been missed
        except OSError as error:
            log.debug("looking at the subflows: %s", error.strerror or error)

    def _some_connections(self) -> list[Endpoint]:
        """Return all of a few connections; of many, the next ones in turn."""
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
        self._first.look(connections, now)
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
            trusted = state.left or now < state.trusted_until
            if state.up and not trusted and _silent(over) and self._others_work(state, connections):
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
                if (
                    flow.local_host not in managed
                    and stalled(flow.info)
                    and healthy
                    and self._first.spare([flow], healthy)
                ):
                    log.warning("subflow %s - %s is closed: %s", flow.info.local, flow.info.peer, SILENT)
                    try:
                        self._driver.close_flow(flow)
                    except (OSError, TransportError) as error:
                        log.debug("closing a subflow: %s", error)

    def _others_work(self, state: PathState, connections: list[list[Flow]]) -> bool:
        """Return whether every connection over a path has another subflow that gets through, and that can stand in."""
        for each in connections:
            over = _over(state.endpoint, each)
            rest = [flow for flow in each if flow not in over and _healthy(flow.info)]
            if over and not (rest and self._first.spare(over, rest)):
                return False
        return True

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
    """Return whether a path's address sits on an interface that is up (its own, where it names one)."""
    if endpoint.device is not None:
        interface = known.get(endpoint.device)
        return interface is not None and interface.up and endpoint.address in interface.addresses
    return any(each.up and endpoint.address in each.addresses for each in known.values())


def _over(endpoint: PathEndpoint, flows: Iterable[Flow]) -> list[Flow]:
    return [flow for flow in flows if flow.live and flow.local_host == endpoint.address]


def _healthy(flow: SubflowInfo) -> bool:
    return flow.state == "ESTABLISHED" and not flow.timeouts


def _silent(over: list[Flow]) -> bool:
    """Return whether a subflow over a path is stalled, and no other one over it got an answer lately (it may be
    idle)."""
    return any(stalled(flow.info) for flow in over) and all(
        (flow.info.last_ack_received_ms or 0) >= _QUIET_MS for flow in over
    )


def _answered(over: list[Flow]) -> bool:
    """Return whether a subflow over a path got an answer just now: the peer may have opened the way again by itself."""
    return any(_healthy(flow.info) and (flow.info.last_ack_received_ms or 0) < _QUIET_MS for flow in over)
