"""A path to a subsystem: one controller as it lives on across associations, as Linux's ``struct nvme_ctrl`` does.

A :class:`Controller` is one association and ends with it. A :class:`Path` makes one after the other: when one is lost
it waits ``reconnect_delay`` and reconnects, again and again until that succeeds, ``ctrl_loss_tmo`` has passed, or the
target's error is final. States and the changes between them are Linux's (``nvme_change_ctrl_state``,
drivers/nvme/host/core.c); the order of events is that of its nvme-tcp driver.

This module must not know how I/O is sent over a path: its users do. It must not know sockets, clocks or event loops:
time and waiting come from the runtime.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from functools import partial
from math import inf
from typing import Generic, TypeVar

from nvmeof.errors import (
    AuthenticationError,
    CommandNotExecuted,
    ConnectionLost,
    LocalProtocolError,
    NvmeofError,
    NvmeStatusError,
    TransportError,
)
from nvmeof.host.controller import Controller
from nvmeof.host.facts import PathFacts
from nvmeof.host.options import ConnectOptions, RecoveryOptions
from nvmeof.host.replay import quiesce_seconds
from nvmeof.runtime import Future, Runtime, TimerHandle
from nvmeof.spec.enums import Ctratt
from nvmeof.spec.status import Status

log = logging.getLogger("nvmeof.host")

OUTAGES_KEPT = 64
"""Outages that a path remembers."""


class PathState(Enum):
    """Where a path is, by the names that Linux shows in sysfs."""

    NEW = "new"
    LIVE = "live"
    RESETTING = "resetting"
    CONNECTING = "connecting"
    DELETING = "deleting"
    DELETING_NOIO = "deleting (no IO)"
    DEAD = "dead"


TRANSITIONS: dict[PathState, frozenset[PathState]] = {
    PathState.LIVE: frozenset({PathState.CONNECTING}),
    PathState.RESETTING: frozenset({PathState.LIVE}),
    PathState.CONNECTING: frozenset({PathState.NEW, PathState.RESETTING}),
    PathState.DELETING: frozenset({PathState.NEW, PathState.LIVE, PathState.RESETTING, PathState.CONNECTING}),
    PathState.DELETING_NOIO: frozenset({PathState.DELETING}),
    PathState.DEAD: frozenset({PathState.DELETING, PathState.DELETING_NOIO}),
}
"""The states that each state may follow. A path that has been deleted is ``dead``; Linux frees it instead."""

ControllerT = TypeVar("ControllerT", bound=Controller)


@dataclass(slots=True)
class Outage:
    """One time for which a path was not live; see :class:`nvmeof.host.facts.OutageFacts`."""

    reason: str
    noticed_at: float
    attempts: int = 0
    failfast_at: float | None = None
    reconnected_at: float | None = None


class Path(Generic[ControllerT]):
    """One controller across its associations. ``make`` makes the next association with ``options``, not connected yet.

    ::

        path = Path(options, lambda: Controller(device, options, runtime), runtime, RecoveryOptions(reconnect_delay=1))
        await path.connect()
        controller = await path.usable()  # waits while the path reconnects

    ``controller`` is the live association, or None. Requests of a lost one end with :class:`OutcomeUnknown` or
    :class:`CommandNotExecuted`. The path never sends I/O by itself.
    """

    def __init__(
        self,
        options: ConnectOptions,
        make: Callable[[], ControllerT],
        runtime: Runtime,
        recovery: RecoveryOptions | None = None,
    ) -> None:
        self.options = options
        self.runtime = runtime
        self.recovery = recovery or RecoveryOptions()
        self.state = PathState.NEW
        self.controller: ControllerT | None = None
        self.error: NvmeofError | None = None
        """Why the last association, or the last attempt at one, ended."""
        self.failfast_expired = False
        """fast_io_fail_tmo has passed in this outage: commands must not wait for this path."""
        self.reconnects = 0
        """Attempts in this outage (Linux: ``nr_reconnects``)."""
        self.outages: deque[Outage] = deque(maxlen=OUTAGES_KEPT)
        self.on_change: list[Callable[[], object]] = []
        """Called after each change of ``state``, and when ``failfast_expired`` is set."""
        self.on_lost: list[Callable[[NvmeofError], object]] = []
        """Called once, when the path is removed because it cannot be recovered; not for :meth:`delete`."""
        self.prepare: list[Callable[[ControllerT], Awaitable[None]]] = []
        """Awaited with each association before the path is live (rescan, ANA log); what is raised fails the attempt."""
        self._make = make
        self._attempting: ControllerT | None = None
        self._reconnect_timer: TimerHandle | None = None
        self._failfast_timer: TimerHandle | None = None
        self._waiters: list[Future[None]] = []

    def __repr__(self) -> str:
        return f"<{type(self).__name__} to {self.name}: {self.state.value}>"

    @property
    def name(self) -> str:
        """The path for messages: subsystem, transport and address."""
        options = self.options
        return f"{options.subnqn} over {options.transport} at {options.traddr}:{options.trsvcid}"

    def describe(self) -> PathFacts:
        """Return the path's state and history, for people and JSON."""
        options = self.options
        return {
            "transport": options.transport,
            "traddr": options.traddr,
            "trsvcid": options.trsvcid,
            "state": self.state.value,
            "cntlid": self.controller.cntlid if self.controller is not None else None,
            "attempts": self.reconnects,
            "max_reconnects": self.recovery.max_reconnects,
            "error": None if self.error is None else str(self.error),
            "outages": [
                {
                    "reason": each.reason,
                    "noticed_at": each.noticed_at,
                    "attempts": each.attempts,
                    "failfast_at": each.failfast_at,
                    "reconnected_at": each.reconnected_at,
                }
                for each in self.outages
            ],
        }

    @property
    def association(self) -> ControllerT | None:
        """The association that there is, live or being made; None where the last one has ended."""
        found = self.controller or self._attempting
        return None if found is None or found.error is not None else found

    # -- for those who send I/O

    @property
    def may_come_back(self) -> bool:
        """Whether a command may wait for this path: it is live, or will be, and fast_io_fail_tmo has not passed."""
        return not self.failfast_expired and self.state in _QUEUEING

    async def usable(self) -> ControllerT:
        """Return the live association, and wait for it while the path reconnects.

        Raises :class:`CommandNotExecuted` when fast_io_fail_tmo passes, and when the path is deleted or lost; the
        caller sends nothing then.
        """
        while (controller := self.controller) is None:
            if not self.may_come_back:
                raise self.unusable()
            waiter: Future[None] = self.runtime.create_future()
            self._waiters.append(waiter)
            try:
                await waiter
            finally:
                if waiter in self._waiters:
                    self._waiters.remove(waiter)
        return controller

    def unusable(self) -> CommandNotExecuted:
        """Return the failure of a command that does not wait for this path, with its reason."""
        if self.state is PathState.NEW:
            why = "is not connected: await its connect() first"
        elif self.state in (PathState.CONNECTING, PathState.RESETTING):
            why = "has been lost for longer than fast_io_fail_tmo, and is still being reconnected"
        elif self.error is not None:
            why = f"is {self.state.value} ({self.error})"
        else:
            why = f"is {self.state.value}"
        failure = CommandNotExecuted(f"the path to {self.name} {why}; the command was not sent")
        failure.__cause__ = self.error
        return failure

    def quiesced_at(self, controller: Controller) -> float:
        """Return when ``controller``, an association of this path, executes no further command, by the runtime's clock.

        ``inf`` while it has not ended. One that confirmed its reset or shutdown is quiet since then; for others see
        :func:`nvmeof.host.replay.quiesce_seconds`.
        """
        ended_at = controller.association.ended_at
        if ended_at is None:
            return inf
        info = controller.identified
        if controller.quiesced or info is None:
            return ended_at
        return ended_at + quiesce_seconds(
            info.cqt,
            self.options.keep_alive_tmo,
            traffic_based=bool(info.ctratt & Ctratt.TRAFFIC_BASED_KEEP_ALIVE),
            quiesce_tmo=self.recovery.quiesce_tmo,
        )

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    # -- states

    def _change(self, state: PathState) -> bool:
        """Change the state where Linux's table allows it; return whether it was."""
        if self.state not in TRANSITIONS.get(state, frozenset()):
            return False
        was, self.state = self.state, state
        log.debug("%s: %s -> %s", self.name, was.value, state.value)
        if state is PathState.LIVE:
            self._stop_failfast()
        elif state is PathState.CONNECTING and was is PathState.RESETTING:
            self._start_failfast()
        elif state is PathState.DELETING:
            self._stop_failfast(clear=False)
        self._changed()
        return True

    def _changed(self) -> None:
        if self.controller is not None or not self.may_come_back:
            self._wake()
        for listener in list(self.on_change):
            listener()

    def _start_failfast(self) -> None:
        seconds = self.recovery.fast_io_fail_tmo
        if seconds is not None and self._failfast_timer is None and not self.failfast_expired:
            self._failfast_timer = self.runtime.call_later(seconds, self._failfast)

    def _stop_failfast(self, *, clear: bool = True) -> None:
        if self._failfast_timer is not None:
            self._failfast_timer.cancel()
            self._failfast_timer = None
        if clear:
            self.failfast_expired = False

    def _failfast(self) -> None:
        self._failfast_timer = None
        if self.state is not PathState.CONNECTING:
            return
        log.warning("%s: failfast expired; commands that wait for it fail, reconnecting goes on", self.name)
        self.failfast_expired = True
        if self.outages:
            self.outages[-1].failfast_at = self.runtime.now()
        self._changed()

    # -- the first association

    async def connect(self) -> None:
        """Connect for the first time. Raises what :meth:`Controller.connect` does: nothing is tried again then."""
        if not self._change(PathState.CONNECTING):
            raise LocalProtocolError(f"a path is connected once; the one to {self.name} is {self.state.value}")
        try:
            controller = await self._associate()
        except BaseException as error:
            self.error = error if isinstance(error, NvmeofError) else ConnectionLost("the connection was given up")
            self._change(PathState.DELETING)
            self._change(PathState.DEAD)
            raise
        self._live(controller)

    async def _associate(self) -> ControllerT:
        """Make one association and prepare it. Raises :class:`NvmeofError`; nothing of it is left then."""
        controller = self._attempting = self._make()
        controller.on_lost.append(partial(self._association_lost, controller))
        try:
            await controller.connect()
            for step in list(self.prepare):
                await step(controller)
            if controller.error is not None:
                raise controller.error
            if self.state is not PathState.CONNECTING:
                raise ConnectionLost(f"the path to {self.name} was deleted")
        except BaseException as error:
            reason = error if isinstance(error, NvmeofError) else ConnectionLost("the connection was given up")
            await controller.abandon(reason)
            raise
        finally:
            if self._attempting is controller:
                self._attempting = None
        return controller

    def _live(self, controller: ControllerT) -> None:
        self.reconnects = 0
        self.error = None
        self.controller = controller
        if self.outages and self.outages[-1].reconnected_at is None:
            outage = self.outages[-1]
            outage.reconnected_at = self.runtime.now()
            log.warning(
                "%s: reconnected as controller %#x after %.1f s (attempts: %d)",
                self.name, controller.cntlid, outage.reconnected_at - outage.noticed_at, outage.attempts,
            )  # fmt: skip
        self._change(PathState.LIVE)

    # -- error recovery

    def fail(self, error: NvmeofError) -> None:
        """Start error recovery of a live path for a reason of the caller's: the association ends at once."""
        controller = self.controller
        if controller is not None:
            controller.association.queue_error(controller.association.admin_queue, error)

    def _association_lost(self, controller: ControllerT, error: NvmeofError) -> None:
        if controller is not self.controller:
            return  # an association that is being made, reset or shut down: the coroutine that does so sees the loss
        self._begin_outage(error)
        self.runtime.spawn(controller.abandon(error))
        if self._change(PathState.CONNECTING):
            self._reconnect_or_remove(None)

    def _begin_outage(self, error: NvmeofError) -> None:
        self.controller = None
        self.error = error
        self.outages.append(Outage(str(error), self.runtime.now()))
        self._change(PathState.RESETTING)

    def _reconnect_or_remove(self, error: NvmeofError | None) -> None:
        """Arm the next attempt, or remove the path: Linux's nvme_tcp_reconnect_or_remove and nvmf_should_reconnect."""
        if self.state is not PathState.CONNECTING:
            return
        most = self.recovery.max_reconnects
        final = error is not None and is_final(error)
        if not final and (most is None or self.reconnects < most):
            delay = self.recovery.reconnect_delay
            log.info("%s: reconnecting in %g s", self.name, delay)
            self._reconnect_timer = self.runtime.call_later(delay, self._attempt)
            return
        reason = error or self.error or ConnectionLost("lost")
        why = "the target refuses it for good" if final else f"ctrl_loss_tmo, after {self.reconnects} attempts"
        log.warning("%s: removed (%s): %s", self.name, why, reason)
        self.error = reason
        self._change(PathState.DELETING)
        self._change(PathState.DEAD)
        listeners, self.on_lost = self.on_lost, []
        for listener in listeners:
            listener(reason)

    def _attempt(self) -> None:
        self._reconnect_timer = None
        if self.state is PathState.CONNECTING:
            self.reconnects += 1
            if self.outages:
                self.outages[-1].attempts += 1
            self.runtime.spawn(self._reconnect())

    async def _reconnect(self) -> None:
        try:
            controller = await self._associate()
        except Exception as error:
            if not isinstance(error, NvmeofError):
                log.debug("%s", self.name, exc_info=error)
                error = TransportError(f"internal error: {type(error).__name__}: {error}")
            self._attempt_failed(error)
        else:
            self._live(controller)

    def _attempt_failed(self, error: NvmeofError) -> None:
        if self.state is not PathState.CONNECTING:
            return
        most = self.recovery.max_reconnects
        self.error = error
        log.info(
            "%s: attempt %d%s to reconnect failed: %s",
            self.name, self.reconnects, "" if most is None else f"/{most}", error,
        )  # fmt: skip
        self._reconnect_or_remove(error)

    # -- in order

    async def reset(self) -> None:
        """Reset the controller: end the association in order, and reconnect at once.

        Outstanding commands end with :class:`OutcomeUnknown`. When the first attempt fails, its error is raised, and
        further ones follow as after a loss. Raises LocalProtocolError for a path that is not live.
        """
        controller = self.controller
        if controller is None or self.state is not PathState.LIVE:
            raise LocalProtocolError(f"only a live path can be reset; the one to {self.name} is {self.state.value}")
        self._begin_outage(ConnectionLost("the controller was reset by this host"))
        done: Future[None] = self.runtime.create_future()
        self.runtime.spawn(self._reset(controller, done))
        await done

    async def _reset(self, controller: ControllerT, done: Future[None]) -> None:
        failure: NvmeofError | None = ConnectionLost("the program ended")
        try:
            await controller.disable()
            if self._change(PathState.CONNECTING):
                self.reconnects += 1
                self.outages[-1].attempts += 1
                await self._reconnect()
            failure = None
            if self.state is not PathState.LIVE:
                failure = self.error or ConnectionLost(f"the path to {self.name} is {self.state.value}")
        finally:
            if not done.done():
                if failure is None:
                    done.set_result(None)
                else:
                    done.set_exception(failure)

    async def delete(self) -> None:
        """Shut the controller down in order, and end the path for good. Never raises; safe to call again.

        Commands that wait for the path fail at once.
        """
        if not self._change(PathState.DELETING):
            return
        if self._reconnect_timer is not None:
            self._reconnect_timer.cancel()
            self._reconnect_timer = None
        controller, self.controller = self.controller, None
        attempt = self._attempting
        self._change(PathState.DELETING_NOIO)
        try:
            if attempt is not None:
                await attempt.abandon(ConnectionLost(f"the path to {self.name} was deleted"))
            if controller is not None:
                await controller.shutdown()
        finally:
            self._change(PathState.DEAD)


_QUEUEING = frozenset({PathState.LIVE, PathState.RESETTING, PathState.CONNECTING})
"""States in which a command may wait. A path that is new, or on its way out, refuses it."""


def is_final(error: NvmeofError) -> bool:
    """Return whether a failed attempt shows that no later one can work: `nvmf_should_reconnect` of Linux.

    That is a failed authentication, or a status with DNR set. Connect Invalid Parameters (182h) and Connect Invalid
    Host (184h) say by their meaning that the same parameters will not do (NVMe over Fabrics, Connect response),
    whatever DNR says.
    """
    if isinstance(error, AuthenticationError):
        return True
    if not isinstance(error, NvmeStatusError):
        return False
    return error.dnr or error.status in (Status.CONNECT_INVALID_PARAMETERS, Status.CONNECT_INVALID_HOST)
