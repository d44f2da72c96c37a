"""I/O policies: which of a namespace's paths the next command takes.

numa, round-robin and queue-depth choose as Linux does (drivers/nvme/host/multipath.c of 6.12: __nvme_find_path,
nvme_numa_path, nvme_round_robin_path, nvme_queue_depth_path); service-time is device-mapper multipath's policy of that
name (drivers/md/dm-ps-service-time.c), with estimated throughputs in place of configured ones.

All policies take optimized paths before non-optimized ones, and no others. A policy sees paths through
:class:`Candidate`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Final, Generic, Protocol, TypeVar

from nvmeof.errors import ConfigurationError

UNUSABLE: Final = 0
NON_OPTIMIZED: Final = 1
OPTIMIZED: Final = 2
"""Values of :attr:`Candidate.access`: the controller is live and the namespace is in that ANA state through it."""
UNKNOWN_RATE: Final = 0.0
"""A throughput without a fresh measurement."""


class Candidate(Protocol):
    """A path as a policy sees it."""

    @property
    def access(self) -> int:
        """One of :data:`UNUSABLE`, :data:`NON_OPTIMIZED`, :data:`OPTIMIZED`."""
        ...

    @property
    def depth(self) -> int:
        """Commands outstanding on the path's controller, those of other namespaces included (Linux's nr_active)."""
        ...

    @property
    def outstanding_bytes(self) -> int:
        """Bytes of the data of these commands."""
        ...

    @property
    def bytes_per_second(self) -> float:
        """Estimated throughput; :data:`UNKNOWN_RATE` where there is no estimate."""
        ...


C = TypeVar("C", bound=Candidate)


class IoPolicy(ABC, Generic[C]):
    """Chooses a path for each command of one namespace. One object per head, since some policies remember their last
    choice.
    """

    name: str
    timed = False
    """The policy needs the paths' throughput: commands are timed."""

    @abstractmethod
    def choose(self, paths: Sequence[C], size_bytes: int) -> C | None:
        """Return the path for a command of ``size_bytes`` of data; None where none can be used now.

        ``paths``: in the order in which they were connected.
        """

    def forget(self, path: C | None = None) -> None:
        """Forget the remembered choice if it is ``path``, or in any case (None)."""

    def settled(self, paths: Sequence[C]) -> None:
        """Choose among all paths again, since one has become optimized."""


def best(paths: Sequence[C]) -> C | None:
    """Return the first optimized path, else the first non-optimized one (__nvme_find_path, all at one distance)."""
    found: C | None = None
    for path in paths:
        access = path.access
        if access == OPTIMIZED:
            return path
        if access == NON_OPTIMIZED and found is None:
            found = path
    return found


class Numa(IoPolicy[C]):
    """One path carries everything: the first optimized one, as long as it is optimized.

    Linux takes the path nearest to the CPU's memory node; controllers over TCP have none (numa_node -1), so that all
    paths are equally near, as here.
    """

    name = "numa"

    def __init__(self) -> None:
        self._current: C | None = None

    def choose(self, paths: Sequence[C], size_bytes: int) -> C | None:
        current = self._current
        if current is None or current.access != OPTIMIZED:
            self.settled(paths)
            current = self._current
        return current

    def forget(self, path: C | None = None) -> None:
        if path is None or self._current is path:
            self._current = None

    def settled(self, paths: Sequence[C]) -> None:
        self._current = best(paths)


class RoundRobin(IoPolicy[C]):
    """The optimized paths in turn, or without one the non-optimized paths."""

    name = "round-robin"

    def __init__(self) -> None:
        self._current: C | None = None

    def choose(self, paths: Sequence[C], size_bytes: int) -> C | None:
        old = self._current
        if old is None or old not in paths:
            self._current = best(paths)
            return self._current
        count = len(paths)
        at = paths.index(old)
        found: C | None = None
        for step in range(1, count):
            path = paths[(at + step) % count]
            access = path.access
            if access == OPTIMIZED:
                self._current = path
                return path
            if access == NON_OPTIMIZED:
                found = path  # Linux, too, takes the last one that it meets
        # the loop has left out the current path: it is next where it is better, or the only one
        if old.access == OPTIMIZED or (found is None and old.access == NON_OPTIMIZED):
            return old
        if found is not None:
            self._current = found
        return found

    def forget(self, path: C | None = None) -> None:
        if path is None or self._current is path:
            self._current = None

    def settled(self, paths: Sequence[C]) -> None:
        self._current = best(paths)


class QueueDepth(IoPolicy[C]):
    """The path with the fewest commands outstanding; the first of those that have equally few."""

    name = "queue-depth"

    def choose(self, paths: Sequence[C], size_bytes: int) -> C | None:
        found: C | None = None
        level = least = 0
        for path in paths:
            access = path.access
            if access == UNUSABLE or access < level:
                continue
            depth = path.depth
            if access > level or depth < least:
                found, level, least = path, access, depth
                if access == OPTIMIZED and not depth:
                    break
        return found


class ServiceTime(IoPolicy[C]):
    """The path on which the command is expected to complete first.

    The expectation is (bytes outstanding + bytes of the command) / throughput. A path without a fresh estimate counts
    as fast as the fastest one, so that it is tried. Of equal paths the faster one is taken, then the one not used for
    longest, as in device-mapper.
    """

    name = "service-time"
    timed = True

    def __init__(self) -> None:
        self._order: list[C] = []

    def choose(self, paths: Sequence[C], size_bytes: int) -> C | None:
        if len(self._order) != len(paths):
            self._order = [path for path in self._order if path in paths]
            self._order += [path for path in paths if path not in self._order]
        found: C | None = None
        level = UNUSABLE
        least = rate = fastest = 0.0
        for path in self._order:
            if path.access > level:
                level = path.access
        if level == UNUSABLE:
            return None
        speeds = [(path, path.bytes_per_second) for path in self._order if path.access == level]
        for _, speed in speeds:
            if speed > fastest:
                fastest = speed
        size = size_bytes or 1  # a command without data (Flush) takes time as well
        for path, speed in speeds:
            speed = speed or fastest or 1.0
            seconds = (path.outstanding_bytes + size) / speed
            if found is None or seconds < least or (seconds == least and speed > rate):
                found, least, rate = path, seconds, speed
        assert found is not None
        self._order.remove(found)
        self._order.append(found)
        return found

    def forget(self, path: C | None = None) -> None:
        if path is not None and path in self._order:
            self._order.remove(path)


IOPOLICIES: Final[dict[str, type[IoPolicy[Any]]]] = {
    policy.name: policy for policy in (Numa, RoundRobin, QueueDepth, ServiceTime)
}
"""The policies by name; the first three names are those of Linux's ``iopolicy``."""
DEFAULT_IOPOLICY: Final = Numa.name


def check_iopolicy(name: str) -> str:
    """Return the name of a policy. Raises :class:`ConfigurationError` for an unknown one."""
    if name not in IOPOLICIES:
        raise ConfigurationError(f"unknown I/O policy {name!r}: choose one of {', '.join(IOPOLICIES)}")
    return name
