"""Runs of like reads and writes of a file: many blocks in one system call.

Reads come from the page cache, on the event loop, where the data is cached (RWF_NOWAIT). A run of writes is handed over
to one thread as a whole, since the kernel may let a write to the page cache wait (for its journal, or while too much is
dirty), and ext4 takes no RWF_NOWAIT for it. Neighbours are joined. Requests that a run cannot do are executed one by
one.
"""

from __future__ import annotations

import asyncio
import errno
import mmap
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Final

from nvmeof.target.core.owner import OWNER
from nvmeof.target.core.pool import BufferPool
from nvmeof.target.storage.base import RunErrors
from nvmeof.target.storage.file_calls import NOT_SUPPORTED, FileCalls
from nvmeof.target.storage.kernel_aio import MOST, RWF_NOWAIT, Calls, address_of, open_calls
from nvmeof.target.storage.ranges import RangeLocks
from nvmeof.target.storage.threads import ThreadBatches

_PIECE_BYTES: Final = 1 << 19
_NOT_SUPPORTED: Final = frozenset(-code for code in NOT_SUPPORTED)


def _joined(offsets: Sequence[int], length: int) -> list[int] | None:
    """Return how many requests are adjacent in each stretch, in order; None when no request follows another."""
    if not any(after - before == length for before, after in pairwise(offsets)):
        return None
    counts = [1]
    for before, after in pairwise(offsets):
        if after - before == length:
            counts[-1] += 1
        else:
            counts.append(1)
    return counts


class FileRuns:
    """The runs of one open file (:class:`~nvmeof.target.storage.base.Runs`), until `close`."""

    most = MOST

    def __init__(
        self, file: FileCalls, ranges: RangeLocks, pool: BufferPool, threads: Callable[[], ThreadBatches]
    ) -> None:
        self._file = file
        self._ranges = ranges
        self._pool = pool
        self._threads = threads
        self._reads: Calls | None = None
        self._idle: list[Calls] = []  # for writes: one for each thread that has one under way
        self._idle_direct: list[Calls] = []  # the same with memory aligned for O_DIRECT
        self._pieces: list[memoryview] = []  # aligned memory that no run uses
        self._nowait = file.direct is None  # reads wait for the device
        self._closed = False

    def read(self, offsets: Sequence[int], length: int) -> tuple[memoryview, list[int]] | None:
        """Read blocks of ``length`` bytes, one behind the other, into memory that `release` takes back.

        Returns the memory with the indexes of the blocks that have to be read in another way; None when all have to.
        """
        if not self._nowait or self._closed or self._ranges.run_busy(offsets, length, exclusive=False):
            return None
        view = self._pool.take(length * len(offsets))
        if view is None:
            return None
        if self._reads is None:
            self._reads = open_calls(self._file.fd, write=False, flags=RWF_NOWAIT)
        moved = self._run(self._reads, [view], offsets, length)
        if moved is None:
            return view, []
        missing = [index for index, count in enumerate(moved) if count != length]
        if len(missing) == len(offsets):
            self._nowait = not _NOT_SUPPORTED.issuperset(moved)
            self._pool.give(view)
            return None
        return view, missing

    def release(self, view: memoryview) -> None:
        """Take the memory of `read` back."""
        self._pool.give(view)

    def write(
        self, buffers: Sequence[memoryview], offsets: Sequence[int], length: int, done: Callable[[RunErrors], None]
    ) -> bool:
        """Write blocks of ``length`` bytes, adjacent in one buffer or each in its own. Return False where other
        operations use these ranges now.

        ``done`` gets, on the event loop, the errors by index.
        """
        if self._closed:
            return False
        lock = self._ranges.try_run(offsets, length, OWNER.get())
        if lock is None:
            return False
        future: asyncio.Future[RunErrors] = asyncio.get_running_loop().create_future()

        def after(delivered: bool) -> None:
            self._ranges.release(lock)

        def finished(result: asyncio.Future[RunErrors]) -> None:
            error = result.exception()
            if error is None:
                done(result.result())
            elif isinstance(error, OSError):
                done(dict.fromkeys(range(len(offsets)), error))
            else:
                done(dict.fromkeys(range(len(offsets)), OSError(errno.EIO, f"{type(error).__name__}: {error}")))

        future.add_done_callback(finished)
        self._threads().run(lambda: self.write_now(buffers, offsets, length), future, after)
        return True

    def _run(
        self, calls: Calls, buffers: Sequence[memoryview], offsets: Sequence[int], length: int
    ) -> list[int] | None:
        """Execute a run; return how many bytes each request has moved, None for all of them."""
        count = len(offsets)
        if len(buffers) == count:
            return calls.run([address_of(buffer) for buffer in buffers], [length] * count, offsets)
        first = address_of(buffers[0])
        counts = _joined(offsets, length)
        if counts is None:
            return calls.run(range(first, first + count * length, length), [length] * count, offsets)
        starts = [0]
        for joined in counts[:-1]:
            starts.append(starts[-1] + joined)
        lengths = [joined * length for joined in counts]
        moved = calls.run([first + at * length for at in starts], lengths, [offsets[at] for at in starts])
        if moved is None:
            return None
        # Of neighbours that were not moved as a whole none counts: each request is tried again alone.
        return [
            length if result == size else result if result < 0 else -errno.EAGAIN
            for result, size, joined in zip(moved, lengths, counts, strict=True)
            for _ in range(joined)
        ]

    def _aligned(self, size: int) -> memoryview:
        """Return memory for O_DIRECT of at least ``size`` bytes."""
        try:
            piece = self._pieces.pop()
        except IndexError:
            piece = memoryview(b"")
        return piece if len(piece) >= size else memoryview(mmap.mmap(-1, max(size, _PIECE_BYTES)))

    def _run_writes(
        self, idle: list[Calls], fd: int, buffers: Sequence[memoryview], offsets: Sequence[int], length: int
    ) -> list[int] | None:
        try:
            calls = idle.pop()
        except IndexError:
            calls = open_calls(fd, write=True)
        moved = self._run(calls, buffers, offsets, length)
        idle.append(calls)
        return moved

    def write_now(self, buffers: Sequence[memoryview], offsets: Sequence[int], length: int) -> RunErrors:
        """Write locked ranges, in a thread, at most `most` blocks; return the errors by index."""
        file = self._file
        moved: list[int] | None = [0] * len(offsets)
        if file.reaches(max(offsets) + length):
            direct = file.direct
            if direct is None or not all(direct.fits(offset, length) for offset in offsets):
                moved = self._run_writes(self._idle, file.fd, buffers, offsets, length)
            else:
                aligned = self._aligned(length * len(offsets))
                for number, part in enumerate(buffers):
                    aligned[number * len(part) : (number + 1) * len(part)] = part
                moved = self._run_writes(self._idle_direct, direct.fd, [aligned], offsets, length)
                self._pieces.append(aligned)
        if moved is None:
            return {}
        errors: RunErrors = {}
        for index, count in enumerate(moved):
            if count == length:
                continue
            start = max(count, 0)
            whole = buffers[index] if len(buffers) == len(offsets) else buffers[0][index * length :][:length]
            try:
                file.write_fully(whole[start:], offsets[index] + start)
            except OSError as error:
                errors[index] = error
        return errors

    def close(self) -> None:
        """Release the kernel's contexts, when no run is outstanding."""
        self._closed = True
        if self._reads is not None:
            self._idle.append(self._reads)
        for calls in (*self._idle, *self._idle_direct):
            calls.close()
        self._idle.clear()
        self._idle_direct.clear()
