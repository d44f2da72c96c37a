"""The engine of `cp`: copies pieces of a source to a destination, many at a time."""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nvmeof.errors import ConfigurationError, NvmeofError
from nvmeof.host.cli.places import Extent, Place
from nvmeof.host.config_files.files import read_text, write_text

HOLE_BYTES = 64 << 10
"""Zeroes of this length become a hole; shorter ones are data."""
_ZEROES = bytes(HOLE_BYTES)
SAVE_SECONDS = 2.0


@dataclass(slots=True)
class Copied:
    """The amounts of a copy, in bytes."""

    data_bytes: int = 0
    hole_bytes: int = 0
    end: int = 0
    """How far the source went."""

    @property
    def done_bytes(self) -> int:
        return self.data_bytes + self.hole_bytes


@dataclass(slots=True)
class Progress:
    """The pieces that are done: all before ``mark``, and some behind it."""

    mark: int
    _behind: dict[int, int] = field(default_factory=dict)

    def add(self, offset: int, length: int) -> None:
        """Note a piece as done."""
        self._behind[offset] = length
        while self.mark in self._behind:
            self.mark += self._behind.pop(self.mark)


@dataclass(frozen=True, slots=True)
class Job:
    """A copy to make: ``length`` bytes (None: until the source ends) from ``source_offset`` to ``target_offset``."""

    source: Place
    target: Place
    source_offset: int = 0
    target_offset: int = 0
    length: int | None = None
    piece_bytes: int = 1 << 20
    depth: int = 8
    sparse: bool = True
    """Leave zeroes out where the destination keeps holes."""
    room: int | None = None
    """What the destination can take from ``target_offset`` on; None: it grows."""
    checksums: dict[int, tuple[int, int]] | None = None
    """Length and CRC-32 of each piece's data by its offset, where the copy is to be verified."""


class Copy:
    """One run of a :class:`Job` from ``start`` on, relative to its offsets. ::

    copied = await Copy(job, advance=bar.advance).run()
    """

    def __init__(self, job: Job, start: int = 0, *, advance: Callable[[int], None] = lambda count: None) -> None:
        self.job = job
        self.progress = Progress(start)
        self.copied = Copied(end=start)
        self._start = start
        self._advance = advance
        self._free: asyncio.Queue[bytearray] = asyncio.Queue()
        self._before: asyncio.Future[None] | None = None

    async def run(self) -> Copied:
        """Copy, and return the amounts. Raises the error of the first failed piece, when the others have ended."""
        for _ in range(self.job.depth):
            self._free.put_nowait(bytearray(self.job.piece_bytes))
        try:
            async with asyncio.TaskGroup() as tasks:
                async for extent, buffer, count in self._pieces():
                    before, self._before = self._before, asyncio.get_running_loop().create_future()
                    tasks.create_task(self._move(extent, buffer, count, before, self._before))
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
        return self.copied

    async def _pieces(self) -> AsyncIterator[tuple[Extent, bytearray | None, int | None]]:
        """Yield pieces: a hole, or a buffer for the data, already filled where the source can only be read in order."""
        job, size = self.job, self.job.piece_bytes
        if not job.source.seekable:
            at = self._start
            while job.length is None or at < job.length:
                buffer = await self._free.get()
                wanted = size if job.length is None else min(size, job.length - at)
                count = await job.source.read_into(job.source_offset + at, memoryview(buffer)[:wanted])
                if not count:
                    return
                if job.room is not None and at + count > job.room:
                    raise NvmeofError(
                        f"{job.source.name} is longer than the {job.room} bytes that {job.target.name} has room for: "
                        "give a --size"
                    )
                yield Extent(at, count), buffer, count
                at += count
                if count < wanted:
                    return
            return
        assert job.length is not None
        first = job.source_offset + self._start
        for extent in job.source.extents(first, job.length - self._start):
            at, end = extent.offset - job.source_offset, extent.offset + extent.length - job.source_offset
            # a hole that is not aligned to the blocks of both places is copied as data
            if extent.hole and job.sparse and self._aligned(at, end):
                for start in range(at, end, 1 << 30):
                    yield Extent(start, min(1 << 30, end - start), hole=True), None, None
                continue
            for start in range(at, end, size):
                yield Extent(start, min(size, end - start)), await self._free.get(), None

    def _aligned(self, at: int, end: int) -> bool:
        unit = max(self.job.source.block_bytes, self.job.target.block_bytes)
        return at % unit == 0 and (end % unit == 0 or end == self.job.length)

    async def _move(
        self,
        extent: Extent,
        buffer: bytearray | None,
        count: int | None,
        before: asyncio.Future[None] | None,
        done: asyncio.Future[None],
    ) -> None:
        job = self.job
        try:
            if buffer is None:
                await job.target.zero(job.target_offset + extent.offset, extent.length)
                holes = extent.length
            else:
                view = memoryview(buffer)[: extent.length]
                if count is None:
                    count = await job.source.read_into(job.source_offset + extent.offset, view)
                    if count < extent.length:
                        raise NvmeofError(f"{job.source.name} ended at byte {extent.offset + count}: it has shrunk")
                if job.checksums is not None:
                    job.checksums[extent.offset] = extent.length, zlib.crc32(view)
                if not job.target.seekable and before is not None:
                    await before
                holes = await self._put(extent, buffer, view)
            self.copied.hole_bytes += holes
            self.copied.data_bytes += extent.length - holes
            self.copied.end = max(self.copied.end, extent.offset + extent.length)
            self.progress.add(extent.offset, extent.length)
            self._advance(extent.length)
        finally:
            if buffer is not None:
                self._free.put_nowait(buffer)
            if not done.done():
                done.set_result(None)

    async def _put(self, extent: Extent, buffer: bytearray, view: memoryview) -> int:
        """Write a piece, its zeroes as holes where the destination has holes; return the bytes of the holes."""
        job, at = self.job, self.job.target_offset + extent.offset
        if not (job.sparse and job.target.keeps_holes):
            await job.target.write(at, view)
            return 0
        holes = 0
        for start, length, hole in runs(buffer, len(view)):
            if hole:
                await job.target.zero(at + start, length)
                holes += length
            else:
                await job.target.write(at + start, view[start : start + length])
        return holes


def runs(buffer: bytearray, length: int) -> list[tuple[int, int, bool]]:
    """Return the stretches ``(start, length, zero)`` of a piece, in units of :data:`HOLE_BYTES`."""
    found: list[tuple[int, int, bool]] = []
    for start in range(0, length, HOLE_BYTES):
        count = min(HOLE_BYTES, length - start)
        # startswith compares in place; a short rest at the end belongs to the stretch before
        zero = count == HOLE_BYTES and buffer.startswith(_ZEROES, start)
        if found and (found[-1][2] == zero or (count < HOLE_BYTES and not zero and not found[-1][2])):
            found[-1] = (found[-1][0], found[-1][1] + count, zero)
        else:
            found.append((start, count, zero))
    return found


async def verify(job: Job, length: int, *, advance: Callable[[int], None] = lambda count: None) -> None:
    """Read the destination, and compare it with the data that was read from the source. Raises NvmeofError where they
    differ.

    Holes, and pieces of an earlier run, are read from the source again.
    """
    free: asyncio.Queue[tuple[bytearray, bytearray]] = asyncio.Queue()
    for _ in range(job.depth):
        free.put_nowait((bytearray(job.piece_bytes), bytearray(job.piece_bytes)))

    async def check(start: int, count: int, known: int | None, buffers: tuple[bytearray, bytearray]) -> None:
        try:
            view = memoryview(buffers[0])[:count]
            await _read_padded(job.target, job.target_offset + start, view)
            found = zlib.crc32(view)
            if known is None:
                other = memoryview(buffers[1])[:count]
                await _read_padded(job.source, job.source_offset + start, other)
                known = zlib.crc32(other)
            if found != known:
                raise NvmeofError(
                    f"{job.target.name} differs from {job.source.name} within bytes {start} to {start + count - 1}"
                )
            advance(count)
        finally:
            free.put_nowait(buffers)

    try:
        async with asyncio.TaskGroup() as tasks:
            for start, count, known in _checked_pieces(job, length):
                tasks.create_task(check(start, count, known, await free.get()))
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None


def _checked_pieces(job: Job, length: int) -> Iterator[tuple[int, int, int | None]]:
    """Yield all pieces up to ``length``, each with its checksum if it was read in this run."""
    at = 0
    for start, (count, crc) in sorted((job.checksums or {}).items()):
        for gap in range(at, start, job.piece_bytes):
            yield gap, min(job.piece_bytes, start - gap), None
        yield start, count, crc
        at = start + count
    for gap in range(at, length, job.piece_bytes):
        yield gap, min(job.piece_bytes, length - gap), None


async def _read_padded(place: Place, offset: int, view: memoryview) -> None:
    """Fill ``view``, which may end within a block."""
    rest = len(view) % place.block_bytes
    if not rest:
        await place.read_into(offset, view)
        return
    whole = bytearray(len(view) + place.block_bytes - rest)
    await place.read_into(offset, memoryview(whole))
    view[:] = whole[: len(view)]


# -- resuming


@dataclass(slots=True)
class State:
    """The progress of a copy, in a file: what is copied, and up to where it is on the medium."""

    path: Path
    facts: dict[str, Any]
    done: int = 0
    partial: str | None = None

    @classmethod
    def load(cls, path: str) -> State:
        """Read the file; return a new state where there is none. Raises :class:`ConfigurationError` for any other
        file.
        """
        where = Path(path)
        if not where.exists():
            return cls(where, {})
        try:
            found = json.loads(read_text(where))
            return cls(where, dict(found["copy"]), int(found["done"]), found["partial"])
        except (ValueError, KeyError, TypeError, RecursionError):
            raise ConfigurationError(f"{path} is no state of an interrupted copy: name another file") from None

    def begin(self, facts: dict[str, Any]) -> int:
        """Return where the copy goes on. Raises :class:`ConfigurationError` for the state of another copy."""
        if self.facts and self.facts != facts:
            changed = ", ".join(name for name in facts if self.facts.get(name) != facts[name])
            raise ConfigurationError(
                f"{self.path} is of another copy ({changed} changed): name another file, or remove it to start over"
            )
        self.facts = facts
        return self.done

    def save(self, done: int, partial: Path | None) -> None:
        """Write the file atomically."""
        self.done, self.partial = done, None if partial is None else str(partial)
        write_text(
            self.path, json.dumps({"copy": self.facts, "done": self.done, "partial": self.partial}, indent=2) + "\n"
        )

    def remove(self) -> None:
        """Remove the file: the copy is complete."""
        self.path.unlink(missing_ok=True)
