"""How many lines of the log one peer may cause."""

from __future__ import annotations

from typing import Final

PEERS_MOST: Final = 256
"""Upper bound of the peers that are counted separately; beyond it the one with the oldest line is forgotten."""


class _Bucket:
    __slots__ = ("left", "left_out", "since")

    def __init__(self, left: float, now: float) -> None:
        self.left = left
        self.since = now
        self.left_out = 0


class LogRate:
    """A token bucket for each peer address, and one of eight times the size for all of them.

    `burst`: lines at once. `per_second`: lines that a peer may cause in the long run. Times are seconds on any clock
    that only goes forward.
    """

    def __init__(self, burst: int, per_second: float) -> None:
        self._burst = burst
        self._per_second = per_second
        self._peers: dict[str, _Bucket] = {}
        self._all: _Bucket | None = None

    def admit(self, peer: str, now: float) -> int | None:
        """Return None for a line that must be left out, else how many were left out since the last one of that peer.

        `peer`: a host and perhaps a port (``192.0.2.1:4420``); the port does not count.
        """
        host = peer.rpartition(":")[0] or peer
        bucket = self._peers.pop(host, None) or _Bucket(self._burst, now)
        self._peers[host] = bucket  # heard of last
        if len(self._peers) > PEERS_MOST:
            del self._peers[next(iter(self._peers))]
        if self._all is None:
            self._all = _Bucket(8 * self._burst, now)
        self._fill(bucket, now, 1)
        self._fill(self._all, now, 8)
        if bucket.left < 1 or self._all.left < 1:
            bucket.left_out += 1
            return None
        bucket.left -= 1
        self._all.left -= 1
        left_out, bucket.left_out = bucket.left_out, 0
        return left_out

    def _fill(self, bucket: _Bucket, now: float, times: int) -> None:
        bucket.left = min(times * self._burst, bucket.left + (now - bucket.since) * times * self._per_second)
        bucket.since = now


class PeerLog:
    """The limits for what peers cause: strangers, who have not connected, and hosts that have."""

    def __init__(self) -> None:
        self.strangers = LogRate(20, 0.2)
        self.hosts = LogRate(600, 5.0)
        """A host may have some hundred queues: each logs its start and its end."""


def left_out_text(left_out: int) -> str:
    """Return the part of a line that states how many lines before it were left out."""
    return f" ({left_out} lines about this peer were left out)" if left_out else ""
