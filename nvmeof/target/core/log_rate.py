"""How many lines of the log the peers of a target may cause; the buckets are those of `nvmeof.log_rate`."""

from __future__ import annotations

from nvmeof.log_rate import CAUSES_MOST, LogRate, PeerRate, left_out_text
from nvmeof.target.core.audit import Audit

__all__ = ("CAUSES_MOST", "LogRate", "PeerLog", "PeerRate", "left_out_text")


class PeerLog:
    """The limits for what peers cause: strangers, who have not connected, and hosts that have. `audit`: who is told of
    what peers do, if anybody."""

    def __init__(self) -> None:
        self.audit: Audit | None = None
        self.strangers = PeerRate(20, 0.2)
        self.hosts = PeerRate(600, 5.0)
        """A host may have some hundred queues: each logs its start and its end."""
