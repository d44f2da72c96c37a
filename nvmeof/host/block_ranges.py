"""Ranges of logical blocks, cut as commands want them, and the descriptors that travel as data.

This module must not know queues, ports or namespaces.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from nvmeof.host.results import IdentifyNamespace
from nvmeof.spec.sqe import COPY_RANGE, DSM_RANGE, CopyRange, DsmRange

COPY_FORMAT_ACROSS = 2
"""Copy descriptor format 2h: each range names its namespace."""
COPY_RANGES_MAX = 256
"""The largest value of the 8-bit number of ranges."""
_COPY_BLOCKS_MAX = 1 << 16


def cut(lba: int, blocks: int, most: int) -> Iterator[tuple[int, int]]:
    """Cut a range into pieces ``(lba, blocks)`` of at most ``most`` blocks."""
    while blocks > 0:
        count = min(blocks, most)
        yield lba, count
        lba += count
        blocks -= count


def copy_commands(
    lba: int, sources: Iterable[tuple[int, int]], info: IdentifyNamespace
) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """Yield the Copy commands for ``sources``: where each copies to, and its source ranges.

    They obey MSSRL, MSRC and MCL of ``info``, where these say anything.
    """
    longest = min(info.mssrl or _COPY_BLOCKS_MAX, _COPY_BLOCKS_MAX)
    most_ranges, most_blocks = min(info.msrc + 1, COPY_RANGES_MAX), info.mcl or 1 << 64
    if not info.mcl and not info.msrc and not info.mssrl:
        most_ranges = COPY_RANGES_MAX  # nothing is said: the controller has its own opinion
    longest = min(longest, most_blocks)
    ranges: list[tuple[int, int]] = []
    total = 0
    for source, blocks in sources:
        for piece in cut(source, blocks, longest):
            if len(ranges) == most_ranges or total + piece[1] > most_blocks:
                yield lba, ranges
                lba, ranges, total = lba + total, [], 0
            ranges.append(piece)
            total += piece[1]
    if ranges:
        yield lba, ranges


def pack_copy_ranges(ranges: Iterable[tuple[int, int]], from_nsid: int | None) -> bytes:
    """Pack source ranges of Copy; with ``from_nsid`` of descriptor format 2h, else of format 0h."""
    return b"".join(
        COPY_RANGE.pack(CopyRange(snsid=from_nsid or 0, slba=lba, nlb=blocks - 1)) for lba, blocks in ranges
    )


def pack_dsm_ranges(ranges: Iterable[tuple[int, int]]) -> bytes:
    """Pack ranges of Dataset Management."""
    return b"".join(DSM_RANGE.pack(DsmRange(length_blocks=blocks, slba=lba)) for lba, blocks in ranges)
