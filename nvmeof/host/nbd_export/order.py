"""The order of writes that share logical blocks, where some clients write parts of a block."""

from __future__ import annotations

import asyncio


class Claim:
    """The blocks of one write that is under way."""

    __slots__ = ("end", "first", "merging", "released")

    def __init__(self, first: int, end: int, merging: bool) -> None:
        self.first = first
        self.end = end
        self.merging = merging
        self.released: asyncio.Event | None = None  # made when another one waits for it


class WriteOrder:
    """Lets a write of parts of blocks (read, merge, write) wait for the writes of the same blocks, and the reverse.

    Without it a merged block could bring back what another write has replaced. Writes of whole blocks do not wait for
    each other.
    """

    def __init__(self) -> None:
        self._claims: dict[Claim, None] = {}
        self._merging = 0

    async def claim(self, first: int, end: int, *, merging: bool) -> Claim:
        """Return the claim of the blocks from ``first`` to before ``end``, once the writes before it allow it."""
        claim = Claim(first, end, merging)
        before: list[Claim] = []
        if merging or self._merging:
            before = [
                each for each in self._claims if each.first < end and first < each.end and (merging or each.merging)
            ]
        self._claims[claim] = None
        self._merging += merging
        try:
            for each in before:
                if each in self._claims:
                    if each.released is None:
                        each.released = asyncio.Event()
                    await each.released.wait()
        except BaseException:
            self.release(claim)
            raise
        return claim

    def release(self, claim: Claim) -> None:
        """Give the blocks up."""
        del self._claims[claim]
        self._merging -= claim.merging
        if claim.released is not None:
            claim.released.set()
