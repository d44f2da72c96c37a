"""A subsystem's description of its paths, as mappings for ``json.dumps``."""

from __future__ import annotations

from typing import TypedDict

from nvmeof.host.facts import PathFacts


class NamespacePathFacts(TypedDict):
    """A namespace through one controller, and the traffic of that path."""

    nsid: int
    ana_state: str
    """By nvme-cli's words: optimized, non-optimized, inaccessible, persistent-loss, change."""
    anagrpid: int
    usable: bool
    ios: int
    bytes: int
    errors: int
    retries: int
    failovers: int


class MemberFacts(TypedDict):
    """One controller: path, current load, figures since the path was added, namespaces."""

    name: str
    path: PathFacts
    usable: bool
    outstanding: int
    outstanding_bytes: int
    bytes_per_second: int | None
    """Estimated, with the policy service-time."""
    ios: int
    bytes: int
    errors: int
    retries: int
    failovers: int
    namespaces: list[NamespacePathFacts]
    left_out: dict[str, str]
    """NSIDs that do not fit to the other paths, and why."""


class HeadFacts(TypedDict):
    """A namespace over all of its paths."""

    nsid: int
    paths: int
    waiting: int
    requeued: int
    failed: int


class SubsystemFacts(TypedDict):
    """A subsystem: name, I/O policy, controllers in the order in which they were added."""

    subnqn: str
    serial: str
    model: str
    iopolicy: str
    paths: list[MemberFacts]
    namespaces: list[HeadFacts]
