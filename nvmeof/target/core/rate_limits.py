"""How much a host, or all users of a namespace, may do in a second: token buckets for bytes and for operations.

Time is an argument everywhere: seconds of a monotonic clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from nvmeof.errors import ConfigurationError
from nvmeof.size_text import parse_size

BURST_SECONDS: Final = 0.1
_FORM: Final = "bytes=100M,operations=5000,burst=0.5"
_NEARLY: Final = 1e-6
"""Of a token: what rounding may lack."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimit:
    """A limit that an operator sets: so many bytes and commands in a second (None: any number).

    `burst_seconds`: after a pause, what comes in so long may pass at once. Raises `ConfigurationError`.
    """

    bytes_per_second: int | None = None
    operations_per_second: int | None = None
    burst_seconds: float = BURST_SECONDS

    def __post_init__(self) -> None:
        if self.bytes_per_second is None and self.operations_per_second is None:
            raise ConfigurationError(f"a rate limit is of bytes, of operations or both: write for instance {_FORM}")
        for name in ("bytes_per_second", "operations_per_second"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigurationError(f"{name} of a rate limit is 1 or more, not {value}")
        if not 0.001 <= self.burst_seconds <= 3600:
            raise ConfigurationError(f"the burst of a rate limit is 0.001 to 3600 seconds, not {self.burst_seconds}")


def parse_rate_limit(text: str) -> RateLimit:
    """Read ``bytes=100M,operations=5000,burst=0.5``, any of them. Raises `ConfigurationError`."""
    found: dict[str, str] = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        if name not in ("bytes", "operations", "burst") or not equals or name in found:
            raise ConfigurationError(f"{part!r} is no part of a rate limit: write for instance {_FORM}")
        found[name] = value
    try:
        return RateLimit(
            bytes_per_second=parse_size(found["bytes"]) if "bytes" in found else None,
            operations_per_second=int(found["operations"]) if "operations" in found else None,
            burst_seconds=float(found.get("burst", BURST_SECONDS)),
        )
    except ValueError:
        raise ConfigurationError(f"{text!r} is no rate limit: write for instance {_FORM}") from None


class Bucket:
    """Tokens that come at a rate; no more are kept than a burst has.

    What costs more than a burst passes when the bucket is full, and is paid for afterwards: the level is negative then.
    """

    __slots__ = ("_at", "_level", "depth", "rate")

    def __init__(self, rate: float, burst_seconds: float) -> None:
        self.rate = rate
        self.depth = max(rate * burst_seconds, 1.0)
        self._level = self.depth
        self._at: float | None = None

    def wait(self, cost: float, now: float) -> float:
        """Return in how many seconds something of a cost may pass; 0: now."""
        if self._at is not None and now > self._at:
            self._level = min(self.depth, self._level + (now - self._at) * self.rate)
        self._at = now
        lacking = min(cost, self.depth) - self._level
        return lacking / self.rate if lacking > _NEARLY else 0.0

    def take(self, cost: float) -> None:
        """Let something of a cost pass, which `wait` was asked for."""
        self._level -= cost

    def change(self, rate: float, burst_seconds: float, now: float) -> None:
        """Use another rate from now on; what was saved up stays as far as the new burst has room for it."""
        self.wait(0.0, now)
        self.rate = rate
        self.depth = max(rate * burst_seconds, 1.0)
        self._level = min(self._level, self.depth)


class Limiter:
    """The buckets of one limit, shared by all that it limits. `virtual` is the scheduler's (`throttle`)."""

    __slots__ = ("__weakref__", "_bytes", "_operations", "limit", "virtual")

    def __init__(self, limit: RateLimit) -> None:
        self.virtual = 0.0
        self._bytes = self._operations = None
        self.limit = limit
        self._bytes = _bucket(None, limit.bytes_per_second, limit.burst_seconds, 0.0)
        self._operations = _bucket(None, limit.operations_per_second, limit.burst_seconds, 0.0)

    def change(self, limit: RateLimit, now: float) -> None:
        """Hold to another limit from now on."""
        self.limit = limit
        self._bytes = _bucket(self._bytes, limit.bytes_per_second, limit.burst_seconds, now)
        self._operations = _bucket(self._operations, limit.operations_per_second, limit.burst_seconds, now)

    def wait(self, size_bytes: int, now: float) -> float:
        """Return in how many seconds a command of so many bytes may pass; 0: now."""
        most = 0.0 if self._bytes is None else self._bytes.wait(size_bytes, now)
        return most if self._operations is None else max(most, self._operations.wait(1.0, now))

    def take(self, size_bytes: int) -> None:
        """Let a command pass."""
        if self._bytes is not None:
            self._bytes.take(size_bytes)
        if self._operations is not None:
            self._operations.take(1.0)

    def cost_seconds(self, size_bytes: int) -> float:
        """Return the time for which a command uses up the limit."""
        of_bytes = 0.0 if self._bytes is None else size_bytes / self._bytes.rate
        return of_bytes if self._operations is None else max(of_bytes, 1.0 / self._operations.rate)


def _bucket(before: Bucket | None, rate: int | None, burst_seconds: float, now: float) -> Bucket | None:
    if rate is None:
        return None
    if before is None:
        return Bucket(rate, burst_seconds)
    before.change(rate, burst_seconds, now)
    return before
