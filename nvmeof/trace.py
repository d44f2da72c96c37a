"""The trace hook: typed events of each queue of a target or a host, for listeners.

A listener is a callable that takes one event. A target gets it as ``Target(trace=...)``, a host as
``connect(..., trace=...)``; several are made one by :func:`join`. Without one, each place that could report costs one
test. Metrics, logs of slow commands and tests listen here; nothing of them is in the code that serves commands.

A command of a target: :class:`CommandAdmitted`, :class:`BackendCalled`, :class:`CommandCompleted`; of a host:
:class:`CommandSent`, :class:`CommandCompleted`. What moves below them: :class:`PdusMoved`. Commands that are served
together (runs of like Reads and Writes of memory) are reported together: one event with several CIDs.

This module knows neither the protocol nor an event loop: numbers are those of the specifications, times are seconds of
the reporting end's runtime.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, TypeAlias

logger = logging.getLogger("nvmeof.trace")
FABRICS: Final = 0x7F
"""The opcode of Fabrics commands, which FCTYPE distinguishes."""
NO_CNTLID: Final = 0xFFFF


class Side(Enum):
    """Which end reports."""

    TARGET = "target"
    HOST = "host"


@dataclass(slots=True, eq=False)
class TracedQueue:
    """The queue that an event is about: one object per connection, so that it can be a key.

    What comes after ``peer`` is known from a successful Connect on: before, ``cntlid`` is FFFFh and the names are
    empty. A host knows names and ``qid`` from the start.
    """

    side: Side
    peer: str
    """The other end's address."""
    qid: int = 0
    cntlid: int = NO_CNTLID
    subnqn: str = ""
    hostnqn: str = ""


@dataclass(slots=True)
class TraceEvent:
    """The common fields of all events: the queue, and when it was (seconds on the clock of the reporting end's
    runtime)."""

    queue: TracedQueue
    at: float


@dataclass(slots=True)
class PdusMoved(TraceEvent):
    """One receive brought bytes, or one send took some.

    ``counts``: by PDU type, the PDUs whose last byte is among them. ``size_bytes``: all of the bytes, those of PDUs
    that are not whole yet too.
    """

    sent: bool
    counts: Mapping[int, int]
    size_bytes: int


@dataclass(slots=True)
class CommandEvent(TraceEvent):
    """The common fields of events about commands. All commands of one event are alike but for their CIDs and
    addresses."""

    opcode: int
    fctype: int | None
    """FCTYPE of a Fabrics command (opcode 7Fh); None for others."""
    nsid: int
    """0 for a Fabrics command."""
    cids: Sequence[int]
    data_bytes: int
    """The data of each command, by its SGL."""

    @property
    def count(self) -> int:
        """How many commands this event is about."""
        return len(self.cids)


@dataclass(slots=True)
class CommandAdmitted(CommandEvent):
    """Target: commands have passed the checks that come before their data. Those that do not are completed only."""


@dataclass(slots=True)
class BackendCalled(CommandEvent):
    """Target: I/O commands have their data and memory, and are given to the namespace's backend, by their handler.

    A fused pair is one call, reported with both CIDs under the opcode of its first half.
    """


@dataclass(slots=True)
class CommandSent(CommandEvent):
    """Host: a command has got its CID and was given to the connection."""


@dataclass(slots=True)
class CommandCompleted(CommandEvent):
    """Target: the completion was queued. Host: the completion has come.

    ``seconds``: at a target since the command was admitted, or since it had to wait for its turn before that; 0 for
    what was refused or served in the step in which it was looked at. At a host since it was sent.
    """

    status: int
    """SCT << 8 | SC; 0: success."""
    seconds: float


@dataclass(slots=True)
class QueueEnded(TraceEvent):
    """The last event of a queue. ``unfinished``: commands, event requests among them, that get no completion."""

    reason: str
    unfinished: int


Event: TypeAlias = PdusMoved | CommandAdmitted | BackendCalled | CommandSent | CommandCompleted | QueueEnded
Trace: TypeAlias = Callable[[Event], object]
"""A listener. It is called in the middle of the work: it must be quick, must not wait, and must not change what reports
(close a queue, remove a namespace); it may keep the event. An attribute ``pdus = False`` says that it wants no
:class:`PdusMoved`: when no listener does, PDUs are not counted at all."""


class Listeners:
    """Several listeners as one; a listener that raises is logged and removed."""

    def __init__(self, *listeners: Trace) -> None:
        self._listeners = listeners

    def __call__(self, event: Event) -> None:
        for listener in self._listeners:
            try:
                listener(event)
            except Exception as error:
                self._listeners = tuple(each for each in self._listeners if each is not listener)
                logger.error("a trace listener failed and is called no more: %s: %s", type(error).__name__, error)
                logger.debug("%r", listener, exc_info=error)

    @property
    def pdus(self) -> bool:
        """Return whether one of the listeners takes PDUs."""
        return any(getattr(listener, "pdus", True) for listener in self._listeners)


def join(*listeners: Trace | None) -> Listeners | None:
    """Make one listener of several; None when there is none. One that fails does not disturb the work, nor the others.

    ::

        counts = Counts()
        async with Target(namespaces=[Ramdisk("1G")], trace=join(counts, print)) as target:
            ...
    """
    given = [listener for listener in listeners if listener is not None]
    return Listeners(*given) if given else None


class Counts:
    """A listener that counts. Keys of the commands' counters are opcodes."""

    def __init__(self) -> None:
        self.admitted: Counter[int] = Counter()
        self.backend_called: Counter[int] = Counter()
        self.sent: Counter[int] = Counter()
        self.completed: Counter[int] = Counter()
        self.failed: Counter[int] = Counter()
        """Of those completed: the ones with another status than success."""
        self.unfinished = 0
        self.queues_ended = 0
        self.events: Counter[type[Event]] = Counter()
        """Events by type: how often the hook was called."""
        self.pdus_received: Counter[int] = Counter()
        """By PDU type."""
        self.pdus_sent: Counter[int] = Counter()
        self.received_bytes = 0
        self.sent_bytes = 0

    def __call__(self, event: Event) -> None:
        self.events[type(event)] += 1
        if isinstance(event, PdusMoved):
            (self.pdus_sent if event.sent else self.pdus_received).update(event.counts)
            if event.sent:
                self.sent_bytes += event.size_bytes
            else:
                self.received_bytes += event.size_bytes
        elif isinstance(event, CommandAdmitted):
            self.admitted[event.opcode] += event.count
        elif isinstance(event, BackendCalled):
            self.backend_called[event.opcode] += event.count
        elif isinstance(event, CommandSent):
            self.sent[event.opcode] += event.count
        elif isinstance(event, CommandCompleted):
            self.completed[event.opcode] += event.count
            if event.status:
                self.failed[event.opcode] += event.count
        else:
            self.queues_ended += 1
            self.unfinished += event.unfinished


class QueueTrace:
    """What a queue reports by: it makes the events, and remembers since when each command has been there.

    ``queue``: what the events name; ``now``: the runtime's clock.
    """

    __slots__ = ("_began", "_now", "_trace", "queue")

    def __init__(self, trace: Trace, queue: TracedQueue, now: Callable[[], float]) -> None:
        self._trace = trace
        self._now = now
        self._began: dict[int, float] = {}  # by CID, commands without a completion
        self.queue = queue

    @property
    def wants_pdus(self) -> bool:
        """Whether the listener wants to hear of PDUs."""
        return bool(getattr(self._trace, "pdus", True))

    def pdus(self, sent: bool, counts: Mapping[int, int], size_bytes: int) -> None:
        """Report the PDUs of one receive or one send."""
        self._trace(PdusMoved(self.queue, self._now(), sent, counts, size_bytes))

    def forget(self, cid: int) -> None:
        """Forget a command that is never going to have a completion, although its queue goes on."""
        self._began.pop(cid, None)

    def ended(self, reason: str) -> None:
        """Report the end of the queue."""
        unfinished = len(self._began)
        self._began.clear()
        self._trace(QueueEnded(self.queue, self._now(), reason, unfinished))


def command_key(opcode: int, nsid: int) -> tuple[int, int | None, int]:
    """Return opcode, FCTYPE and NSID as in events; in a Fabrics command FCTYPE is the first byte of the NSID."""
    return (opcode, nsid & 0xFF, 0) if opcode == FABRICS else (opcode, None, nsid)
