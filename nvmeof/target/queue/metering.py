"""Counters and latency histograms of one queue's commands: what `--metrics` shows of them.

A meter is a watcher of its queue (:mod:`nvmeof.target.queue.watching`), so that a queue without one does nothing for
it. Commands that were served together cost one call. What a queue has counted is added to that of others by whoever
owns the meters (:mod:`nvmeof.target.meters`).

The latency of a command is the time from the end of the receive that brought its capsule until the socket took bytes
of what was queued up to its completion. The clock is read once per receive and once per send, so commands of one batch
have one latency. Time on the network, and in the receive buffer of the kernel, is not in it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from operator import sub
from typing import Final, NamedTuple

from nvmeof.protocol.events import Event
from nvmeof.spec.command_names import command_name
from nvmeof.spec.enums import FABRICS_OPCODE, AdminOpcode
from nvmeof.spec.sqe import Sqe
from nvmeof.spec.status import Status
from nvmeof.target.commands.context import CommandContext
from nvmeof.target.core.completion import Completion
from nvmeof.wire import Buffer

BUCKETS_PER_OCTAVE: Final = 4
"""A quantile that is interpolated within a bucket is off by less than a fifth: 2 ** (1 / 4) is 1.19."""
BOUNDS: Final = tuple(
    2.0 ** (step / BUCKETS_PER_OCTAVE) for step in range(-18 * BUCKETS_PER_OCTAVE, 4 * BUCKETS_PER_OCTAVE + 1)
)
"""Upper bounds of the buckets in seconds, 3.8 µs to 16 s; what took longer is in one more bucket."""
NOTES_MOST: Final = 256
"""So many notes are counted at once, which takes less than 0.1 ms."""
_NO_SECONDS: Final = 0.0


class Tally:
    """The figures of the commands of one kind: how many, their data, those that failed (by status), and their times.

    `count` has all of them, `size_bytes` the data of those that succeeded. `buckets` counts by latency, one bucket for
    each of `BOUNDS` and one above; empty where times are not taken. `seconds` is the sum of the times.
    """

    __slots__ = ("buckets", "count", "errors", "seconds", "size_bytes")

    def __init__(self, buckets: int = 0) -> None:
        self.count = 0
        self.size_bytes = 0
        self.errors: dict[int, int] = {}
        self.buckets = [0] * buckets
        self.seconds = _NO_SECONDS

    def take(self, count: int, size_bytes: int) -> None:
        """Count commands of so many bytes each."""
        self.count += count
        self.size_bytes += count * size_bytes

    def take_times(self, times: list[float], count: int) -> None:
        """Put times into their buckets, each that of so many commands. The list is sorted."""
        times.sort()
        self.seconds += sum(times) * count
        at, most, buckets = 0, len(times), self.buckets
        while at < most:
            bucket = bisect_left(BOUNDS, times[at])
            after = most if bucket == len(BOUNDS) else bisect_right(times, BOUNDS[bucket], at)
            buckets[bucket] += (after - at) * count
            at = after

    def add(self, other: Tally) -> None:
        """Add what another has counted."""
        self.count += other.count
        self.size_bytes += other.size_bytes
        self.seconds += other.seconds
        for status, count in other.errors.items():
            self.errors[status] = self.errors.get(status, 0) + count
        if other.buckets:
            mine = self.buckets or [0] * len(other.buckets)
            self.buckets = [one + more for one, more in zip(mine, other.buckets, strict=True)]


class Kind(NamedTuple):
    """What commands of a queue have in common: the NSID (0: of none that exists), and the command's name."""

    nsid: int
    command: str


class QueueMeter:
    """Counts the commands of one queue: what its two kinds have in common. They implement `QueueWatcher`.

    `portid`: the port that the connection came by. What comes after it is known from a successful Connect on.
    """

    __slots__ = ("_ctx", "_tallies", "hostnqn", "portid", "qid", "subnqn")

    buckets: int = 0

    def __init__(self, portid: int) -> None:
        self.portid = portid
        self.qid = 0
        self.subnqn = ""
        self.hostnqn = ""
        self._ctx: CommandContext | None = None
        self._tallies: dict[int, Tally] = {}  # by NSID << 8 | opcode; by -1 - FCTYPE of Fabrics commands

    def figures(self) -> list[tuple[Kind, Tally]]:
        """Return what was counted so far."""
        self._take_notes()
        return [(self._kind(key), tally) for key, tally in self._tallies.items()]

    def _take_notes(self) -> None:
        """Count what was only noted so far."""
        raise NotImplementedError

    def _kind(self, key: int) -> Kind:
        if key < 0:
            return Kind(0, _label(command_name(self.qid, FABRICS_OPCODE, -1 - key)))
        return Kind(key >> 8, _label(command_name(self.qid, key & 0xFF)))

    def _tally(self, key: int) -> Tally:
        """Return the tally of a key; NSIDs that are no namespace have one together."""
        tally = self._tallies.get(key)
        if tally is not None:
            return tally
        ctx = self._ctx
        if key >= 0 and (ctx is None or not ctx.qid or key >> 8 not in ctx.namespaces):
            key &= 0xFF
        return self._tallies.setdefault(key, Tally(self.buckets))

    def _look_at(self, sqe: Sqe, completion: Completion) -> tuple[int, int]:
        """Count a refused command's status; return the key of a command, and the bytes that it has moved."""
        opcode = sqe.opcode
        key = -1 - (sqe.nsid & 0xFF) if opcode == FABRICS_OPCODE else sqe.nsid << 8 | opcode
        status = completion.status
        if status:
            errors = self._tally(key).errors
            errors[status] = errors.get(status, 0) + 1
            return key, 0
        return key, sqe.sgl_length if self.qid else 0

    # -- what the queue tells ------------------------------------------------------------------------------------

    def connected(self, ctx: CommandContext) -> None:
        self._ctx = ctx
        self.qid, self.subnqn, self.hostnqn = ctx.qid, ctx.view.subnqn, ctx.host_nqn

    def held(self, cid: int) -> None:
        pass

    def admitted(self, sqe: Sqe, data_bytes: int) -> None:
        pass

    def backend_called(self, *sqes: Sqe) -> None:
        pass

    def completed(self, sqe: Sqe, completion: Completion) -> None:
        raise NotImplementedError

    def forget(self, cid: int) -> None:
        pass

    def asked(self, opcode: int, nsid: int, cid: int, data_bytes: int) -> None:
        pass

    def begun(self, opcode: int, nsid: int, cids: Sequence[int], data_bytes: int) -> None:
        pass

    def ended_together(self, opcode: int, nsid: int, cids: Sequence[int], data_bytes: int) -> None:
        raise NotImplementedError

    def written(self, opcode: int, nsid: int, cid: int, data_bytes: int) -> None:
        raise NotImplementedError

    def served(self, opcode: int, nsid: int, cids: Sequence[int], data_bytes: int) -> None:
        raise NotImplementedError

    def ended(self, reason: str) -> None:
        self._take_notes()
        self._ctx = None


class CountingMeter(QueueMeter):
    """Counts commands and takes no times. Commands like the one before cost two comparisons and an addition."""

    __slots__ = ("_bytes", "_key", "_nsid", "_opcode", "_run")

    def __init__(self, portid: int) -> None:
        super().__init__(portid)
        self._opcode = self._nsid = self._bytes = -1
        self._run = 0  # commands of that opcode, NSID and size that are not counted yet

    def _take_notes(self) -> None:
        if self._run:
            self._tally(self._nsid << 8 | self._opcode).take(self._run, self._bytes)
            self._run = 0

    def _change(self, opcode: int, nsid: int, data_bytes: int, count: int) -> None:
        self._take_notes()
        self._opcode, self._nsid, self._bytes, self._run = opcode, nsid, data_bytes, count

    def completed(self, sqe: Sqe, completion: Completion) -> None:
        key, size = self._look_at(sqe, completion)
        self._tally(key).take(1, size)

    def served(self, opcode: int, nsid: int, cids: Sequence[int], data_bytes: int) -> None:
        if data_bytes == self._bytes and opcode == self._opcode and nsid == self._nsid:
            self._run += len(cids)
        else:
            self._change(opcode, nsid, data_bytes, len(cids))

    ended_together = served

    def written(self, opcode: int, nsid: int, cid: int, data_bytes: int) -> None:
        if data_bytes == self._bytes and opcode == self._opcode and nsid == self._nsid:
            self._run += 1
        else:
            self._change(opcode, nsid, data_bytes, 1)


def _label(name: str) -> str:
    """Return a command's name as the value of a label: ``get_log_page``."""
    return name.lower().replace(" ", "_").replace("/", "")


class LatencyMeter(QueueMeter):
    """Counts commands, and how long they took. `clock` returns seconds, and is read once per receive and send.

    While a command is served it is only noted, and many notes, which are mostly alike, are counted together.

    `handle` stands in front of the queue's own; `sendmsg` returns a function that stands in front of an endpoint's.
    Notes have a time when their commands came, in `_begins`, and later one when the socket has taken what was queued,
    in `_ends`: those that have none yet are not counted yet.
    """

    __slots__ = ("_arrived", "_began", "_begins", "_clock", "_ends", "_handle", "_notes")

    buckets = len(BOUNDS) + 1

    def __init__(self, portid: int, clock: Callable[[], float], handle: Callable[[list[Event], float], object]) -> None:
        super().__init__(portid)
        self._clock = clock
        self._handle = handle
        self._arrived = clock()
        self._began: dict[int, float] = {}  # by CID, commands that did not complete in the step in which they came
        self._notes: list[tuple[int, int, int]] = []  # what is not counted yet: key, how many, bytes of each
        self._begins: list[float] = []
        self._ends: list[float] = []

    def handle(self, events: list[Event], now: float) -> None:
        """Note when the events came, and hand them on."""
        self._arrived = self._clock()
        self._handle(events, now)

    def sendmsg(self, send: Callable[[Sequence[Buffer]], int]) -> Callable[[Sequence[Buffer]], int]:
        """Return `send` with a look at the clock behind it, when completions were queued."""
        begins, ends, clock, take_notes = self._begins, self._ends, self._clock, self._take_notes

        def metered(buffers: Sequence[Buffer]) -> int:
            taken = send(buffers)
            fresh = len(begins) - len(ends)
            if fresh:
                if fresh == 1:
                    ends.append(clock())
                else:
                    ends.extend([clock()] * fresh)
                if len(ends) >= NOTES_MOST:
                    take_notes()
            return taken

        return metered

    def _take_notes(self) -> None:
        notes, begins, ends = self._notes, self._begins, self._ends
        most = len(ends)
        if not most:
            return
        done, times = notes[:most], list(map(sub, ends, begins))
        del notes[:most], begins[:most]
        ends.clear()
        groups = {done[0]: times}
        if done.count(done[0]) != most:
            groups = {}
            for note, seconds in zip(done, times, strict=True):
                groups.setdefault(note, []).append(seconds)
        for (key, count, size), found in groups.items():
            tally = self._tally(key)
            tally.take(len(found) * count, size)
            tally.take_times(found, count)

    # -- what the queue tells ------------------------------------------------------------------------------------

    def held(self, cid: int) -> None:
        self._began.setdefault(cid, self._arrived)

    def admitted(self, sqe: Sqe, data_bytes: int) -> None:
        self._began.setdefault(sqe.cid, self._arrived)

    def completed(self, sqe: Sqe, completion: Completion) -> None:
        key, size = self._look_at(sqe, completion)
        began = self._arrived
        if completion.status != Status.COMMAND_ID_CONFLICT:  # else the CID is another command's, which goes on
            began = self._began.pop(sqe.cid, began)
        if not self.qid and sqe.opcode == AdminOpcode.ASYNC_EVENT_REQUEST:  # which waits on purpose
            self._tally(key).take(1, size)
            return
        self._notes.append((key, 1, size))
        self._begins.append(began)

    def forget(self, cid: int) -> None:
        self._began.pop(cid, None)

    def asked(self, opcode: int, nsid: int, cid: int, data_bytes: int) -> None:
        self._began[cid] = self._arrived

    def begun(self, opcode: int, nsid: int, cids: Sequence[int], data_bytes: int) -> None:
        for cid in cids:
            self._began.setdefault(cid, self._arrived)

    def served(self, opcode: int, nsid: int, cids: Sequence[int], data_bytes: int) -> None:
        self._notes.append((nsid << 8 | opcode, len(cids), data_bytes))
        self._begins.append(self._arrived)

    def ended_together(self, opcode: int, nsid: int, cids: Sequence[int], data_bytes: int) -> None:
        arrived, began = self._arrived, self._began
        self._notes += [(nsid << 8 | opcode, 1, data_bytes)] * len(cids)
        self._begins += [began.pop(cid, arrived) for cid in cids]

    def written(self, opcode: int, nsid: int, cid: int, data_bytes: int) -> None:
        self._notes.append((nsid << 8 | opcode, 1, data_bytes))
        self._begins.append(self._began.pop(cid, self._arrived))

    def ended(self, reason: str) -> None:
        self._take_notes()
        for key, count, size in self._notes:  # their completions were never taken
            self._tally(key).take(count, size)
        self._notes.clear()
        self._begins.clear()
        self._began.clear()
        self._ctx = None
        self._handle = _nothing


def _nothing(events: list[Event], now: float) -> None:
    """Hand nothing on: the queue has ended."""
