"""Which namespaces are attached to a host's controllers, remembered beyond the controllers' lives.

Controllers are made when a host connects and go when it leaves (the dynamic controller model), but attaching and
detaching are to last. So what was last asked for a host's controllers is stored by host NQN, and the host's next
controller starts with it.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

HOSTS_MAX = 4096
"""How many hosts with attachments of their own are remembered; those that are connected always are."""


class Attachments:
    """By host NQN, as far as it differs from the default: configured namespaces are attached, created ones are not."""

    def __init__(self) -> None:
        self._default: set[int] = set()
        self._hosts: dict[str, dict[int, bool]] = {}

    def copy(self) -> Attachments:
        """Return a copy."""
        other = Attachments()
        other._default = set(self._default)
        other._hosts = {host: dict(changes) for host, changes in self._hosts.items()}
        return other

    def set_default(self, nsid: int, attached: bool) -> None:
        """Set whether `nsid` is attached to controllers of hosts without a recorded choice."""
        if attached:
            self._default.add(nsid)
        else:
            self._default.discard(nsid)

    def attached(self, host_nqn: str, nsid: int) -> bool:
        """Return whether a new controller of that host is attached to that namespace."""
        return self._hosts.get(host_nqn, {}).get(nsid, nsid in self._default)

    def remember(self, host_nqn: str, nsid: int, attached: bool, *, connected: Collection[str] = ()) -> None:
        """Record that a host's controller was attached or detached. `connected`: hosts whose records must not be
        evicted for it."""
        changes = self._hosts.pop(host_nqn, {})
        if attached == (nsid in self._default):
            changes.pop(nsid, None)
        else:
            changes[nsid] = attached
        if not changes:
            return
        self._hosts[host_nqn] = changes  # the last that was changed comes last
        if len(self._hosts) > HOSTS_MAX:
            oldest = next((host for host in self._hosts if host != host_nqn and host not in connected), None)
            if oldest is not None:
                del self._hosts[oldest]

    def only(self, host_nqn: str, nsid: int) -> None:
        """Record that a private namespace is attached to that host's controllers, and to no other host's."""
        for host in list(self._hosts):
            if host != host_nqn:
                self._drop(host, nsid)

    def forget(self, nsid: int) -> None:
        """Remove the records of a namespace that was deleted."""
        self._default.discard(nsid)
        for host in list(self._hosts):
            self._drop(host, nsid)

    def _drop(self, host: str, nsid: int) -> None:
        changes = self._hosts[host]
        changes.pop(nsid, None)
        if not changes:
            del self._hosts[host]

    # What is stored: hosts with the NSIDs that were attached and those that were detached, the last changed at the end

    def to_json(self) -> list[dict[str, Any]]:
        """Return the value to store in a metadata store."""
        return [
            {
                "host": host,
                "attached": sorted(nsid for nsid, attached in changes.items() if attached),
                "detached": sorted(nsid for nsid, attached in changes.items() if not attached),
            }
            for host, changes in self._hosts.items()
        ]

    def load(self, value: Any) -> None:
        """Take over what `to_json` made. Raises `ValueError` (or a relative of it) for anything else."""
        hosts: dict[str, dict[int, bool]] = {}
        for entry in value:
            changes = {int(nsid): True for nsid in entry["attached"]}
            changes.update({int(nsid): False for nsid in entry["detached"]})
            hosts[str(entry["host"])] = changes
        self._hosts = hosts

    def prune(self, nsids: Collection[int]) -> None:
        """Forget namespaces that are not among `nsids`."""
        for host in list(self._hosts):
            for nsid in [nsid for nsid in self._hosts[host] if nsid not in nsids]:
                self._hosts[host].pop(nsid)
            if not self._hosts[host]:
                del self._hosts[host]
