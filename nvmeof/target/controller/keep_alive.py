"""Traffic based keep alive on the controller's side (NVMe Base, Keep Alive)."""

from __future__ import annotations

from collections.abc import Callable

from nvmeof.errors import CommandError
from nvmeof.runtime import Runtime, TimerHandle
from nvmeof.spec.status import Status
from nvmeof.target.projection.association import Activity
from nvmeof.target.subsystem.config import SubsystemConfig

_PRECISE_SECONDS = 1.0  # a shorter interval has a separate timer: others are checked once a second


def _forever() -> float:
    return 0.0


def _ignore() -> None:
    pass


class KeepAliveTimer:
    """Intervals, in each of which a command has to come: any is enough, wherever in the interval it was.

    `seconds` returns the present length of an interval, 0 for as long as it takes; `expired` is called when one has
    passed in silence. A queue that receives a command sets `activity`.
    """

    __slots__ = ("_expired", "_runtime", "_seconds", "_start", "_timer", "activity")

    def __init__(
        self, runtime: Runtime, activity: Activity, seconds: Callable[[], float], expired: Callable[[], None]
    ) -> None:
        self._runtime = runtime
        self._seconds = seconds
        self._expired = expired
        self._start = runtime.now()
        self._timer: TimerHandle | None = None
        self.activity = activity

    def restart(self) -> None:
        """Begin a new interval."""
        self._start = self._runtime.now()
        self.activity.heard = False
        self.cancel()
        seconds = self._seconds()
        if 0 < seconds < _PRECISE_SECONDS:
            self._timer = self._runtime.call_later(seconds, self._on_timer)

    def cancel(self) -> None:
        """Stop the timer; `restart` starts it again."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def end(self) -> None:
        """Stop the timer for good, and drop the callbacks."""
        self.cancel()
        self._seconds = _forever
        self._expired = _ignore

    def _on_timer(self) -> None:
        self._timer = None
        self.check(self._runtime.now())

    def deadline(self) -> float | None:
        """Return when the interval ends; None: never."""
        seconds = self._seconds()
        return self._start + seconds if seconds else None

    def check(self, now: float) -> bool:
        """Call at the deadline or later: the next interval begins, or it has expired (True)."""
        deadline = self.deadline()
        if deadline is None or now < deadline:
            return False
        if self.activity.heard:
            self.restart()
            return False
        self._expired()
        return True


def check_kato(config: SubsystemConfig, kato_ms: int, location: int) -> None:
    """Raise Keep Alive Timeout Invalid for a KATO (milliseconds) outside of what the operator allows.

    No keep alive (0) is left to `SubsystemConfig.any_keep_alive_seconds`. (NVMe Base, Keep Alive.) `location`: of the
    field.
    """
    least, most = config.keep_alive_min_seconds, config.keep_alive_max_seconds
    if kato_ms and (kato_ms < least * 1000 or (most and kato_ms > most * 1000)):
        raise CommandError(
            Status.KEEP_ALIVE_INVALID,
            location,
            message=f"a keep alive timeout of {kato_ms / 1000:g} s, which this subsystem does not allow",
        )
