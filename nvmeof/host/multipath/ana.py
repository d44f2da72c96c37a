"""The ANA states of one controller: the ANA log read strictly and on demand, the transition time obeyed.

Source: NVMe Base 8.1.1 and the Asymmetric Namespace Access log page (0Ch); nvme_parse_ana_log, nvme_read_ana_log and
nvme_anatt_timeout of drivers/nvme/host/multipath.c (Linux 6.12).

Must not know policies or I/O queues.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Final

from nvmeof.errors import NvmeofError, NvmeStatusError
from nvmeof.host.admin_commands import AdminCommands
from nvmeof.host.results import AnaLog, IdentifyController
from nvmeof.runtime import Runtime, TimerHandle
from nvmeof.spec.enums import AnaState, Cmic
from nvmeof.spec.log_pages import AnaGroup

log = logging.getLogger("nvmeof.host")

ANATT_FACTOR: Final = 2
"""A change may take so many times ANATT until the controller is reset: Linux's slack for transport and events."""
_STATES: Final = frozenset(AnaState)


def uses_ana(info: IdentifyController) -> bool:
    """Return whether the controller reports ANA (CMIC bit 3), and therefore has the log page."""
    return bool(info.cmic & Cmic.ANA_REPORTING)


def check_ana_identify(info: IdentifyController) -> None:
    """Check the fields of Identify Controller that bound the ANA log.

    Raises :class:`NvmeofError`, one sentence, where the fields are invalid (Linux: "Invalid MNAN value"; NVMe Base:
    MNAN is not 0 and NANAGRPID at most ANAGRPMAX for a controller with ANA).
    """
    if not info.nanagrpid or info.nanagrpid > info.anagrpmax:
        raise NvmeofError(
            f"controller {info.cntlid:#x} reports ANA with {info.nanagrpid} groups (NANAGRPID) and group identifiers "
            f"up to {info.anagrpmax} (ANAGRPMAX), which is invalid: update the target"
        )
    if not info.mnan or info.mnan > info.nn:
        raise NvmeofError(
            f"controller {info.cntlid:#x} reports ANA with at most {info.mnan} namespaces (MNAN) of {info.nn} (NN), "
            "which is invalid: update the target"
        )


def check_ana_log(ana: AnaLog, info: IdentifyController) -> None:
    """Check a log against its controller: groups that can exist, known states, each namespace once.

    Raises :class:`NvmeofError`, one sentence, for an invalid log.
    """
    fault = next(_faults(ana.groups, info), None)
    if fault is not None:
        raise NvmeofError(f"the ANA log of controller {info.cntlid:#x} is invalid: {fault}")


def _faults(groups: list[AnaGroup], info: IdentifyController) -> Iterator[str]:
    if len(groups) > info.nanagrpid:
        yield f"it has {len(groups)} groups where Identify Controller says {info.nanagrpid} (NANAGRPID)"
    seen: set[int] = set()
    grouped: dict[int, int] = {}
    for group in groups:
        if not 1 <= group.grpid <= info.anagrpmax:
            yield f"it lists group {group.grpid}, and groups are 1 to {info.anagrpmax} (ANAGRPMAX)"
        if group.grpid in seen:
            yield f"it lists group {group.grpid} twice"
        seen.add(group.grpid)
        if group.state not in _STATES:
            yield f"group {group.grpid} is in state {group.state:#x}, which does not exist"
        for nsid in group.nsids:
            if nsid == 0 or nsid > info.nn:
                yield f"group {group.grpid} has namespace {nsid}, and there are 1 to {info.nn} (NN)"
            if nsid in grouped:
                yield f"namespace {nsid} is in group {grouped[nsid]} and in group {group.grpid}"
            grouped[nsid] = group.grpid


def not_in_log(info: IdentifyController, nsid: int, anagrpid: int) -> NvmeofError:
    """Return the error for a log that has a namespace in none of its groups, by its NSID or by its ANAGRPID."""
    return NvmeofError(
        f"the ANA log of controller {info.cntlid:#x} is invalid: namespace {nsid} is in none of its groups: "
        f"it names group {anagrpid} (ANAGRPID)"
    )


async def read_ana_log(commands: AdminCommands) -> AnaLog:
    """Read and check the whole log of a controller.

    Raises :class:`NvmeofError`, one sentence, for a log that is invalid or ends too early, and what commands raise.
    """
    info = await commands.identify()
    check_ana_identify(info)
    try:
        ana = await commands.ana_log()
    except NvmeStatusError as error:
        raise NvmeofError(f"the ANA log of controller {info.cntlid:#x} cannot be read to its end: {error}") from error
    check_ana_log(ana, info)
    return ana


class AnaFollower:
    """Keeps the last good ANA log of an association, and reads it again on demand: one read at a time.

    ``changed(log)`` is called with each valid log. ``overdue()`` is called when a group has been in the Change state
    for twice ANATT, and again after each further such time in that state. ``failed(error)`` is called with the error of
    an invalid log; the states of the last valid log stay in effect.
    """

    def __init__(
        self,
        commands: AdminCommands,
        info: IdentifyController,
        runtime: Runtime,
        *,
        changed: Callable[[AnaLog], object],
        overdue: Callable[[], object],
        failed: Callable[[NvmeofError], object],
    ) -> None:
        self.log: AnaLog | None = None
        self._commands = commands
        self._anatt_seconds = info.anatt
        self._runtime = runtime
        self._changed = changed
        self._overdue = overdue
        self._failed = failed
        self._reading = False
        self._again = False
        self._stopped = False
        self._timer: TimerHandle | None = None

    async def start(self) -> None:
        """Read the log for the first time. Raises as :func:`read_ana_log` does."""
        self._take(await read_ana_log(self._commands))

    def refresh(self) -> None:
        """Read the log again, after an event or a command's ANA error."""
        if self._stopped:
            return
        self._again = True
        if not self._reading:
            self._reading = True
            self._runtime.spawn(self._refresh())

    async def _refresh(self) -> None:
        try:
            while self._again and not self._stopped:
                self._again = False
                try:
                    ana = await read_ana_log(self._commands)
                except NvmeofError as error:
                    if not self._stopped:
                        self._failed(error)
                else:
                    self._take(ana)
        finally:
            self._reading = False

    def _take(self, ana: AnaLog) -> None:
        if self._stopped:
            return
        self.log = ana
        changing = any(group.state == AnaState.CHANGE for group in ana.groups)
        if changing:
            # each log with a group in Change starts the whole time again, as mod_timer does in nvme_read_ana_log
            self._set_timer()
        elif self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._changed(ana)

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        seconds = max(self._anatt_seconds, 1) * ANATT_FACTOR
        self._timer = self._runtime.call_later(seconds, self._expired)

    def _expired(self) -> None:
        self._timer = None
        if not self._stopped:
            self._overdue()

    def stop(self) -> None:
        """Stop following, since the association is over."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
