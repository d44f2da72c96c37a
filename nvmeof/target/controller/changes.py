"""The changes that a controller has not reported yet: namespaces and zones that have changed since their log page was
read."""

from __future__ import annotations


class ChangedNamespaces(set[int]):
    """NSIDs for the Changed Attached Namespace List (log page 04h)."""

    def reset(self) -> None:
        """Forget the changes, as a Controller Level Reset does."""
        self.clear()


class ChangedAllocations(ChangedNamespaces):
    """NSIDs for the Changed Allocated Namespace List (log page 1Ch)."""


class ChangedZones(dict[int, set[int]]):
    """The first blocks of zones, by NSID, for the Changed Zone List (log page BFh)."""

    def reset(self) -> None:
        """Forget the changes, as a Controller Level Reset does."""
        self.clear()
