"""The memory that application and device share: its parts, the records of the rings, and the rings themselves.

A ring has one writer and one reader, and neither has a word in memory that the other polls: the doorbell, an eventfd,
counts what has been written, in units of 16 bytes. The kernel orders the two processes by it: what was written before
the doorbell rang is seen after it was read. Nothing says how far the reader has come either: each ring is larger than
all that can be outstanding (:data:`COMMANDS_MAX`), so that a place is written again only after the command that had it
was answered.

This module must not know processes, queues or event loops.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from enum import IntEnum
from functools import lru_cache
from struct import Struct
from typing import Final

UNIT_BYTES: Final = 16
"""Records begin at multiples of this, and a doorbell counts in it."""
COMMANDS_MAX: Final = 16384
"""Entries that all queues of one device may have together."""
SUBMISSION_BYTES: Final = 2 << 20
COMPLETION_BYTES: Final = 1 << 20
MAX_TRANSFER_BYTES: Final = 1 << 20
"""Largest data of one command: the device's ``max_hw_sectors``."""


class Kind(IntEnum):
    """The kinds of records. COMMAND, SERIES and DRAIN go to the device; COMPLETIONS, GOOD, DRAINED and ERROR come from
    it."""

    PAD = 0
    """Nothing: the rest of the ring is too short for the record that follows at its beginning."""
    COMMAND = 1
    """One command: its SQE follows the header."""
    SERIES = 2
    """Reads or Writes of one length: the SQE of all, then their SLBAs, CIDs and data offsets follow; without the last
    where the data of all lies one behind the other (flag WHOLE)."""
    DRAIN = 3
    """Stop a queue."""
    COMPLETIONS = 4
    """Completed commands of a queue: CID, status and DW0, DW1 of each follow."""
    DRAINED = 5
    """The queue has stopped: the last record of it, and no buffer is touched after it."""
    ERROR = 6
    """The queue is broken: the sentence, in UTF-8, follows."""
    GOOD = 7
    """Commands of a queue that have succeeded with result 0: the CID of each follows."""


# Members of an enumeration are slow to get: plain integers where every command passes.
COMMAND_KIND: Final = int(Kind.COMMAND)
COMPLETIONS_KIND: Final = int(Kind.COMPLETIONS)
GOOD_KIND: Final = int(Kind.GOOD)
_PAD: Final = int(Kind.PAD)
_LAST_KIND: Final = int(max(Kind))
READ: Final = 1
"""Flag of a command: its data comes from the controller."""
WRITE: Final = 2
"""Flag of a command: its data goes to the controller."""
WHOLE: Final = 4
"""Flag of a SERIES: the data of its commands lies one behind the other, from the header's offset on."""

HEADER: Final = Struct("<BBHHHII")
"""Kind, flags, queue, length in units, then: CID of a COMMAND, else the number of items; bytes of data of each command;
offset of a COMMAND's data in the memory."""
COMMAND: Final = Struct("<BBHHHII64s")
"""A header and the SQE behind it: all of a COMMAND, the beginning of a SERIES."""
COMPLETION: Final = Struct("<HHII")
"""CID, status, DW0, DW1."""
_COMMAND_BYTES: Final = COMMAND.size
_pack_command: Final = COMMAND.pack_into
COMMAND_UNITS: Final = COMMAND.size // UNIT_BYTES
HEADER_BYTES: Final = HEADER.size
SERIES_MAX: Final = 1024
"""Commands of one SERIES, at most."""
COMPLETIONS_MAX: Final = 1024

assert HEADER.size == UNIT_BYTES
assert COMMAND.size == 80
assert COMMANDS_MAX * COMMAND.size < SUBMISSION_BYTES
assert COMMANDS_MAX * 2 * UNIT_BYTES < COMPLETION_BYTES


RingRecord = tuple[int, int, int, int, int, int, int]
"""Kind, flags, queue, number of items or CID, bytes of data, offset of data, offset of what follows the header."""


@lru_cache(maxsize=2048)
def series_items(count: int, *, whole: bool) -> Struct:
    """Return the layout of the items of a SERIES: SLBAs, CIDs, and the offsets of data unless it is ``whole``."""
    return Struct(f"<{count}Q{count}H{'' if whole else f'{count}I'}")


@lru_cache(maxsize=2048)
def completion_items(count: int) -> Struct:
    """Return the layout of the items of COMPLETIONS."""
    return Struct("<" + "HHII" * count)


@lru_cache(maxsize=2048)
def good_items(count: int) -> Struct:
    """Return the layout of the items of GOOD."""
    return Struct(f"<{count}H")


class RingWriter:
    """The writing end of a ring at ``start`` of ``memory``; ``doorbell`` is an eventfd."""

    __slots__ = ("_at", "_doorbell", "_memory", "_pending", "_size", "_start")

    def __init__(self, memory: memoryview, start: int, size: int, doorbell: int) -> None:
        self._memory = memory
        self._start = start
        self._size = size
        self._doorbell = doorbell
        self._at = 0
        self._pending = 0

    @property
    def pending(self) -> bool:
        """Whether records wait for the doorbell."""
        return self._pending > 0

    def place(self, units: int) -> int:
        """Return the offset in the memory for a record of so many units, which the caller fills in."""
        size = units * UNIT_BYTES
        at = self._at
        if at + size > self._size:
            rest = (self._size - at) // UNIT_BYTES
            if rest:
                HEADER.pack_into(self._memory, self._start + at, Kind.PAD, 0, 0, rest, 0, 0, 0)
            self._pending += rest
            at = 0
        self._at = at + size
        self._pending += units
        return self._start + at

    def command(self, flags: int, queue: int, cid: int, sqe: bytes, data_bytes: int, offset: int) -> None:
        """Write a COMMAND."""
        at = self._at
        after = at + _COMMAND_BYTES
        if after <= self._size:  # as `place`, without the call
            self._at = after
            self._pending += COMMAND_UNITS
            at += self._start
        else:
            at = self.place(COMMAND_UNITS)
        _pack_command(self._memory, at, COMMAND_KIND, flags, queue, COMMAND_UNITS, cid, data_bytes, offset, sqe)

    def series(
        self, flags: int, queue: int, count: int, data_bytes: int, offset: int, sqe: bytes, items: Sequence[int]
    ) -> None:
        """Write a SERIES of at most :data:`SERIES_MAX` commands; ``items`` as :func:`series_items` wants them."""
        layout = series_items(count, whole=flags & WHOLE != 0)
        units = -(-(COMMAND.size + layout.size) // UNIT_BYTES)
        at = self.place(units)
        COMMAND.pack_into(self._memory, at, Kind.SERIES, flags, queue, units, count, data_bytes, offset, sqe)
        layout.pack_into(self._memory, at + COMMAND.size, *items)

    def completions(self, queue: int, values: list[int], count: int) -> None:
        """Write COMPLETIONS of at most :data:`COMPLETIONS_MAX` commands; ``values``: CID, status, DW0 and DW1 of
        each."""
        units = 1 - (-count * COMPLETION.size // UNIT_BYTES)
        at = self.place(units)
        HEADER.pack_into(self._memory, at, Kind.COMPLETIONS, 0, queue, units, count, 0, 0)
        completion_items(count).pack_into(self._memory, at + HEADER_BYTES, *values)

    def good(self, queue: int, cids: Sequence[int]) -> None:
        """Write GOOD for at most :data:`COMPLETIONS_MAX` commands."""
        count = len(cids)
        units = 1 - (-count * 2 // UNIT_BYTES)
        at = self.place(units)
        HEADER.pack_into(self._memory, at, GOOD_KIND, 0, queue, units, count, 0, 0)
        good_items(count).pack_into(self._memory, at + HEADER_BYTES, *cids)

    def signal(self, kind: Kind, queue: int, text: bytes = b"") -> None:
        """Write a DRAIN, DRAINED or ERROR."""
        units = 1 - (-len(text) // UNIT_BYTES)
        at = self.place(units)
        HEADER.pack_into(self._memory, at, kind, 0, queue, units, len(text), 0, 0)
        self._memory[at + HEADER_BYTES : at + HEADER_BYTES + len(text)] = text

    def ring(self) -> None:
        """Ring the doorbell, where records wait for that."""
        pending, self._pending = self._pending, 0
        if pending and self._doorbell >= 0:
            os.eventfd_write(self._doorbell, pending)

    def close(self) -> None:
        """Forget the doorbell, whose descriptor is about to be closed: what is written from now on goes nowhere."""
        self._doorbell = -1


class RingReader:
    """The reading end of a ring. ``units`` of it have been announced and not been read."""

    __slots__ = ("_at", "_doorbell", "_memory", "_size", "_start", "units")

    def __init__(self, memory: memoryview, start: int, size: int, doorbell: int) -> None:
        self._memory = memory
        self._start = start
        self._size = size
        self._doorbell = doorbell
        self._at = 0
        self.units = 0

    def listen(self) -> None:
        """Take note of what the doorbell has counted, without waiting for it."""
        try:
            self.units += os.eventfd_read(self._doorbell)
        except BlockingIOError:
            pass

    def records(self) -> Iterator[RingRecord]:
        """Yield the announced records. Each is read, for every reader, when it is yielded.

        Raises ValueError for what no writer writes.
        """
        memory, start, size, unpack = self._memory, self._start, self._size, HEADER.unpack_from
        while self.units:
            at = self._at
            kind, flags, queue, length, count, data_bytes, offset = unpack(memory, start + at)
            after = at + length * UNIT_BYTES
            if not 0 < length <= self.units or after > size or kind > _LAST_KIND:
                raise ValueError(f"a record of kind {kind} and {length} units at {at} of a ring")
            self._at = 0 if after == size else after
            self.units -= length
            if kind != _PAD:
                yield kind, flags, queue, count, data_bytes, offset, start + at + HEADER_BYTES

    def announced(self, kind: Kind, queue: int) -> bool:
        """Return whether such a record is among those that have not been read. Raises as :meth:`records`."""
        before = self._at, self.units
        try:
            return any(record[0] == kind and record[2] == queue for record in self.records())
        finally:
            self._at, self.units = before
