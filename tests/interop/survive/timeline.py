"""The time line of one host's records of an event: when it was noticed, when commands failed over, when all was
back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .events import Event
from .rig import ADDRESSES, Run, Seen

WELL = {"state": "live", "ana": "optimized"}


@dataclass(frozen=True, slots=True)
class Line:
    """One host's time line. Seconds after the cause, ``back`` after the undo; None: never."""

    noticed: float | None
    failed_over: float | None
    longest_wait: float
    back: float | None
    commands: int
    errors: int
    wrong: int
    first_error: str
    error_after: float | None
    faults: list[str]
    """Unexpected observations."""


def line(run: Run, seen: Seen) -> Line:
    """Return the time line of one host's records."""
    event, found = run.event, seen.result
    changes = [(at - seen.clock_ahead, key, value) for at, key, value in found["changes"]]
    carried = [(at - seen.clock_ahead, path, count) for at, path, count in found["carried"]]
    errors = [(at - seen.clock_ahead, text) for at, text in found["errors"]]
    noticed = next((at for at, key, _ in changes if at >= run.caused_at and _concerns(event, key)), None)
    back = _back(run, changes)
    return Line(
        noticed=None if noticed is None else noticed - run.caused_at,
        failed_over=_failed_over(run, carried),
        longest_wait=found["longest_seconds"],
        back=back,
        commands=found["reads"] + found["writes"],
        errors=found["error_count"],
        wrong=len(found["wrong"]),
        first_error=errors[0][1] if errors else "",
        error_after=errors[0][0] - run.caused_at if errors else None,
        faults=_faults(event, found, noticed is not None and back is None),
    )


def _concerns(event: Event, key: str) -> bool:
    return key == "bytes" or any(key.startswith(ADDRESSES[int(path) - 1]) for path in event.paths)


def _failed_over(run: Run, carried: list[tuple[float, str, int]]) -> float | None:
    """Return when a path other than the one in use before first completed a command."""
    before = [path for at, path, _ in carried if at < run.caused_at]
    if not before:
        return None
    other = next((at for at, path, _ in carried if at >= run.caused_at and path != before[-1]), None)
    return None if other is None else other - run.caused_at


def _back(run: Run, changes: list[tuple[float, str, str]]) -> float | None:
    """Return when everything was back to the state before the event, for good."""
    now: dict[str, str] = {}
    well_since: float | None = None
    before: dict[str, str] | None = None
    for at, key, value in changes:
        if at >= run.caused_at and before is None:
            before = dict(now)
        now[key] = value
        if before is not None:
            well_since = at if now == before else None
    if before is None:
        return None
    return None if well_since is None else well_since - run.undone_at


def _faults(event: Event, found: dict[str, Any], never_back: bool) -> list[str]:
    faults = [f"wrong data: {text}" for _, text in found["wrong"][:3]]
    if event.survives:
        faults += [f"lost: {text}" for _, text in found["errors"][:3]]
        if never_back:
            faults.append("not all paths came back")
        if not found["errors"] and not found["compared"]:
            faults.append("nothing was compared at the end")
    elif not found["errors"]:
        faults.append("no command failed")
    return faults
