"""What may be sent again when an association was lost, and when; what has to wait for that. Rules only.

A command that was not sent (:class:`CommandNotExecuted`) may always be sent. One that was sent and not answered
(:class:`OutcomeUnknown`) has been executed, or not, or may still be executed until the controller has quiesced. What it
is decides (:data:`RULES`):

- *at once*: it changes nothing, so that its first copy does no harm, whenever it is executed. - *quiesced*: done twice
it leaves what it leaves when done once, but an old copy that is executed late would undo a newer write of the same
blocks. It is sent again when no old copy can be executed any longer, and writes that overlap it are held back until it
is over (:class:`UnsettledWrites`). - *never*: executed twice it has another effect or result than executed once. Its
caller gets the error.

Sources: NVMe Base 2.1, Keep Alive (host and controller timers) and Command Quiesce Time (CQT of Identify Controller);
NVM Command Set and Zoned Namespace Command Set specifications for what a repeated command does. Linux
(nvme_failover_req, nvme_retry_req) sends everything that its block layer knows again at once, whatever CQT says.

Must not know queues, paths or time: a time is an argument.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from enum import Enum
from math import inf
from typing import Final, NamedTuple

from nvmeof.errors import CommandNotExecuted, NvmeofError
from nvmeof.spec.enums import Csi, NvmOpcode
from nvmeof.spec.sqe import DSM_RANGE, DSM_RANGE_BYTES, SQE
from nvmeof.wire import Buffer

FUSED_MASK: Final = 0b11
"""FUSE, bits 1:0 of byte 1 of an SQE."""
LBA_END: Final = 1 << 64
"""Beyond every logical block address."""


class Replay(Enum):
    """When a command of unknown outcome may be sent again."""

    AT_ONCE = "at once"
    QUIESCED = "quiesced"
    NEVER = "never"


class Rule(NamedTuple):
    """The rule of one command, and its reason; ``docs/host-recovery.md`` has the rules as a table."""

    replay: Replay
    reason: str


RULES: Final[dict[int, Rule]] = {
    NvmOpcode.FLUSH: Rule(Replay.AT_ONCE, "commits what was completed before; changes no data"),
    NvmOpcode.READ: Rule(Replay.AT_ONCE, "changes nothing"),
    NvmOpcode.VERIFY: Rule(Replay.AT_ONCE, "changes nothing"),
    NvmOpcode.RESERVATION_REPORT: Rule(Replay.AT_ONCE, "changes nothing"),
    NvmOpcode.IO_MANAGEMENT_RECEIVE: Rule(Replay.AT_ONCE, "changes nothing"),
    NvmOpcode.ZONE_MANAGEMENT_RECEIVE: Rule(Replay.AT_ONCE, "changes nothing"),
    NvmOpcode.WRITE: Rule(Replay.QUIESCED, "the same data at the same place"),
    NvmOpcode.WRITE_ZEROES: Rule(Replay.QUIESCED, "the same zeroes at the same place"),
    NvmOpcode.WRITE_UNCORRECTABLE: Rule(Replay.QUIESCED, "the same mark at the same place"),
    NvmOpcode.DATASET_MANAGEMENT: Rule(Replay.QUIESCED, "the same ranges, deallocated or not"),
    NvmOpcode.COMPARE: Rule(Replay.NEVER, "part of a protocol between hosts: its answer must be of one moment"),
    NvmOpcode.COPY: Rule(Replay.NEVER, "its sources may have changed since"),
    NvmOpcode.CANCEL: Rule(Replay.NEVER, "names commands of an association that has ended"),
    NvmOpcode.RESERVATION_REGISTER: Rule(Replay.NEVER, "the key that it expects may be its own new one"),
    NvmOpcode.RESERVATION_ACQUIRE: Rule(Replay.NEVER, "another host may have acted between the two"),
    NvmOpcode.RESERVATION_RELEASE: Rule(Replay.NEVER, "another host may have acted between the two"),
    NvmOpcode.IO_MANAGEMENT_SEND: Rule(Replay.NEVER, "what it does depends on its operation"),
    NvmOpcode.ZONE_MANAGEMENT_SEND: Rule(Replay.NEVER, "a zone that was reset may have been written since"),
    NvmOpcode.ZONE_APPEND: Rule(Replay.NEVER, "done twice it appends twice"),
}
"""The I/O commands. A vendor's own command is never sent again: its effect is unknown."""

FUSED_RULE: Final = Rule(Replay.NEVER, "the first half of a fused pair compares what the second one changes")
ZONED_RULE: Final = Rule(Replay.NEVER, "the write pointer has moved if it was executed")
UNKNOWN_RULE: Final = Rule(Replay.NEVER, "what it does is not known here")
ZONED_NEVER: Final = frozenset({NvmOpcode.WRITE, NvmOpcode.WRITE_ZEROES, NvmOpcode.WRITE_UNCORRECTABLE})
"""Commands that move a write pointer in a zoned namespace."""


def rule_of(sqe: Buffer, csi: int = Csi.NVM) -> Rule:
    """Return the rule for an I/O command, given its SQE and the command set of its namespace."""
    opcode = sqe[0]
    if sqe[1] & FUSED_MASK:
        return FUSED_RULE
    if csi == Csi.ZONED and opcode in ZONED_NEVER:
        return ZONED_RULE
    return RULES.get(opcode, UNKNOWN_RULE)


def replay_at(sqe: Buffer, error: NvmeofError, quiesced_at: float, csi: int = Csi.NVM) -> float | None:
    """Return from when on a command may be sent again that ended with ``error``; None: never, its caller gets the
    error.

    ``quiesced_at``: when its association can execute no further command (:meth:`Path.quiesced_at`); ``-inf`` is at
    once.
    """
    if isinstance(error, CommandNotExecuted):
        return -inf
    match rule_of(sqe, csi).replay:
        case Replay.AT_ONCE:
            return -inf
        case Replay.QUIESCED:
            return quiesced_at
        case Replay.NEVER:
            return None


def quiesce_seconds(cqt_ms: int, keep_alive_tmo: float, *, traffic_based: bool, quiesce_tmo: float | None) -> float:
    """Return how long after a loss was noticed commands of the lost association may still be executed.

    ``cqt_ms``: CQT of Identify Controller, 0 where the controller reports none. ``keep_alive_tmo``: KATO in seconds.
    A controller notices the loss of its host after one whole keep alive interval, which may have begun just
    before; with keep alive by traffic (CTRATT.TBKAS) an interval in which a command came counts as heard, which is one
    interval more. From then on CQT runs. ``quiesce_tmo``: seconds that the user wants in place of this; None: as
    described, and 0 with CQT 0, which is what Linux does always.
    """
    if quiesce_tmo is not None:
        return quiesce_tmo
    if not cqt_ms:
        return 0.0
    return (3 if traffic_based else 2) * keep_alive_tmo + cqt_ms / 1000


# -- which blocks a command changes


@dataclass(frozen=True, slots=True)
class Extent:
    """The logical blocks that a command changes: ``(first, end)`` ranges of one namespace, the end not included."""

    nsid: int
    ranges: tuple[tuple[int, int], ...]

    def overlaps(self, other: Extent) -> bool:
        """Return whether a block exists that both change."""
        return self.nsid == other.nsid and any(
            max(first, other_first) < min(end, other_end)
            for first, end in self.ranges
            for other_first, other_end in other.ranges
        )


_BY_RANGE = frozenset({NvmOpcode.WRITE, NvmOpcode.WRITE_ZEROES, NvmOpcode.WRITE_UNCORRECTABLE})
_FROM_FIRST = frozenset({NvmOpcode.COPY, NvmOpcode.ZONE_APPEND, NvmOpcode.ZONE_MANAGEMENT_SEND})
CHANGES_BLOCKS: Final = _BY_RANGE | _FROM_FIRST | {NvmOpcode.DATASET_MANAGEMENT}
"""Commands that change data, or whether there is any."""
ZONE_SELECT_ALL: Final = 1 << 8
"""CDW13 of Zone Management Send."""


def changed_blocks(sqe: Buffer, data: Buffer | None = None) -> Extent | None:
    """Return the blocks that a command changes, None where it changes none. ``data``: what the command transfers.

    Never too few: of a Copy, a Zone Append and a Zone Management Send all blocks from the first one on, of ranges that
    cannot be read all blocks.
    """
    opcode = sqe[0]
    if opcode not in CHANGES_BLOCKS:
        return None
    decoded = SQE.unpack_from(sqe)
    if opcode in _BY_RANGE:
        return Extent(decoded.nsid, ((decoded.slba, decoded.slba + (decoded.cdw12 & 0xFFFF) + 1),))
    if opcode in _FROM_FIRST:
        everything = opcode == NvmOpcode.ZONE_MANAGEMENT_SEND and decoded.cdw13 & ZONE_SELECT_ALL
        return Extent(decoded.nsid, ((0 if everything else decoded.slba, LBA_END),))
    count = (decoded.cdw10 & 0xFF) + 1
    if data is None or len(data) < count * DSM_RANGE_BYTES:
        return Extent(decoded.nsid, ((0, LBA_END),))
    pieces = [DSM_RANGE.unpack_from(data, index * DSM_RANGE_BYTES) for index in range(count)]
    return Extent(decoded.nsid, tuple((each.slba, each.slba + each.length_blocks) for each in pieces))


class UnsettledWrites:
    """Writes of which an old copy may still be executed, or which are being sent again, by a key of the caller's.

    The sender calls :meth:`blocks` before each write, and holds back a blocked one until :meth:`settle` or
    :meth:`expire` has released others. So no write that was acknowledged is overwritten by an older one.
    """

    __slots__ = ("_writes",)

    def __init__(self) -> None:
        self._writes: dict[Hashable, tuple[Extent, float]] = {}

    def __bool__(self) -> bool:
        return bool(self._writes)

    def __len__(self) -> int:
        return len(self._writes)

    def add(self, key: Hashable, extent: Extent, until: float = inf) -> None:
        """Note a write of unknown outcome.

        ``until``: ``inf`` while it will be sent again, so that it blocks others until it is settled; of a write that
        is given up the time at which its association has quiesced, when it can no longer be executed.
        """
        known = self._writes.get(key)
        if known is not None and until != inf:
            until = max(until, known[1] if known[1] != inf else until)
        self._writes[key] = (extent, until)

    def settle(self, key: Hashable) -> bool:
        """Forget a write that has been completed; return whether it was known."""
        return self._writes.pop(key, None) is not None

    def expire(self, now: float) -> bool:
        """Forget the writes that can no longer be executed at ``now``; return whether there were any."""
        over = [key for key, (_, until) in self._writes.items() if until <= now]
        for key in over:
            del self._writes[key]
        return bool(over)

    @property
    def next_expiry(self) -> float:
        """When :meth:`expire` will find something; ``inf`` for never by itself."""
        return min((until for _, until in self._writes.values()), default=inf)

    def blocks(self, extent: Extent | None, key: Hashable = None) -> bool:
        """Return whether a write of ``extent`` must wait; ``key``: the write itself, where it is one of those noted
        here."""
        return extent is not None and any(
            other.overlaps(extent) for other_key, (other, _) in self._writes.items() if other_key != key
        )
