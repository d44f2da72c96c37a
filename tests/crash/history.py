"""What hosts were told, and so what blocks may hold after a loss of power."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from tests.crash.block_layer import SECTOR, Journal

_NEVER: Final = 1 << 60


@dataclass(eq=False)
class Written:
    """A command that writes, by blocks: their content, and where in the journal it was sent and completed.

    `secured`: where its data has to be there from on, whatever happens.
    """

    blocks: dict[int, bytes]
    fua: bool
    sent: int
    completed: int = _NEVER
    secured: int = _NEVER

    def within(self, block: int, count: int) -> bool:
        """Return whether all of it is in that range."""
        return all(block <= each < block + count for each in self.blocks)


@dataclass
class History:
    """The commands of hosts, beside the journal of what the storage did for them."""

    journal: Journal
    writes: list[Written] = field(default_factory=list)
    told: int = 0
    """Where the host was told last that what it had written may be lost: no Flush secures that any more."""

    @property
    def now(self) -> int:
        return len(self.journal.entries)

    def sent(self, blocks: dict[int, bytes], *, fua: bool) -> Written:
        """A write is sent."""
        self.journal.note("sent")
        self.writes.append(Written(blocks, fua, self.now))
        return self.writes[-1]

    def completed(self, write: Written) -> None:
        """It has completed with success."""
        self.journal.note("completed")
        write.completed = self.now
        if write.fua:
            write.secured = self.now

    def flushing(self) -> list[Written]:
        """A Flush is sent; returns what it is about."""
        self.journal.note("flush")
        return [write for write in self.writes if write.completed <= self.now]

    def lost(self) -> None:
        """The host is told that what it wrote before may be lost."""
        self.journal.note("told")
        self.told = self.now

    def flushed(self, about: list[Written]) -> None:
        """It has completed."""
        self.journal.note("flushed")
        for write in about:
            if write.sent <= self.told:
                continue
            write.secured = min(write.secured, self.now)

    def allowed(self, block: int, cut: int, first: bytes) -> set[bytes]:
        """Return what a block may hold after a loss of power there; `first`: what it held in the beginning."""
        of_block = [write for write in self.writes if block in write.blocks and write.sent <= cut]
        secured = [write for write in of_block if write.secured <= cut]
        found = {
            write.blocks[block]
            for write in of_block
            if not any(write.completed < other.sent for other in secured if other is not write)
        }
        return found if secured else found | {first}

    def wrong(self, media: bytes, cut: int, block_bytes: int) -> Iterator[str]:
        """Yield what is wrong with the content of a file of zeroes after a loss of power.

        Each sector by itself: of a block of several a write that nothing has secured may have come in part.
        """
        for block in range(len(media) // block_bytes):
            allowed = self.allowed(block, cut, bytes(block_bytes))
            held = media[block * block_bytes : (block + 1) * block_bytes]
            if held in allowed:
                continue
            for at in range(0, block_bytes, SECTOR):
                found, possible = held[at : at + SECTOR], {each[at : at + SECTOR] for each in allowed}
                if found not in possible:
                    yield f"after {cut} steps block {block} holds {found[:4]!r}, not {[x[:4] for x in possible]}"
