"""What a controller counts for its Asymmetric Namespace Access log (NVMe Base, log page 0Ch)."""

from __future__ import annotations


class AnaLogCounts:
    """Change counts since the last reset: `changes` of the whole log, beginning at 0, and one of each group.

    A group's begins at 1, since 0 in its descriptor means that nothing is counted.
    """

    __slots__ = ("_groups", "changes")

    def __init__(self) -> None:
        self.changes = 0
        self._groups: dict[int, int] = {}

    def note(self, *groups: int) -> None:
        """Count one change of the log, in which the descriptors of `groups` have changed."""
        self.changes += 1
        for group in set(groups):
            self._groups[group] = self._groups.get(group, 0) + 1

    def of_group(self, group: int) -> int:
        """Return the change count of a group's descriptor."""
        return 1 + self._groups.get(group, 0)

    def reset(self) -> None:
        """Restart the change count, as a Controller Level Reset does."""
        self.changes = 0
        self._groups.clear()
