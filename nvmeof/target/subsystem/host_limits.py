"""The rate limits of the hosts of one subsystem: one that a host has by its NQN, or one that each other host has."""

from __future__ import annotations

from collections.abc import Mapping
from weakref import WeakValueDictionary

from nvmeof.spec.nqn import check_nqn
from nvmeof.target.core.rate_limits import Limiter, RateLimit


class HostLimits:
    """Gives all associations of a host one limiter. `each`: the limit of a host that has none of its own."""

    def __init__(self, each: RateLimit | None, own: Mapping[str, RateLimit]) -> None:
        self.each = each
        self.own = dict(own)
        self._limiters: WeakValueDictionary[str, Limiter] = WeakValueDictionary()  # as long as there is an association

    def of(self, nqn: str) -> RateLimit | None:
        """Return the limit of a host."""
        return self.own.get(nqn, self.each)

    def limiter(self, nqn: str, now: float) -> Limiter | None:
        """Return what the associations of a host share; None: it has no limit. Holds to its present limit."""
        limit = self.of(nqn)
        if limit is None:
            return None
        limiter = self._limiters.get(nqn)
        if limiter is None:
            limiter = self._limiters[nqn] = Limiter(limit)
        elif limiter.limit != limit:
            limiter.change(limit, now)
        return limiter

    def set(self, nqn: str | None, limit: RateLimit | None) -> None:
        """Give a host a limit of its own, or (None) each host that has none; no limit: take it back.

        Raises `ConfigurationError` for what is no NQN.
        """
        if nqn is None:
            self.each = limit
        elif limit is None:
            self.own.pop(nqn, None)
        else:
            check_nqn(nqn, "the NQN of a host with a limit")
            self.own[nqn] = limit
