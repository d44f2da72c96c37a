"""Erasing what a namespace holds: in pieces, with a pause after each, so that the event loop goes on.

Both Format NVM and Sanitize do it. The ranges go to the backend itself, where they take their turn behind what was
begun before: its range locks see to it that nothing old is written, or read, behind an erased piece.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from nvmeof.runtime import Runtime, pause, settled
from nvmeof.target.storage.base import Backend

Progress = Callable[[int], None]
"""Progress callback: called with the number of bytes erased since its last call."""

PIECE_BYTES: Final = 64 << 20
WRITE_BYTES: Final = 1 << 20
MEMORY_PIECE_BYTES: Final = 8 << 20
MEMORY_WRITE_BYTES: Final = 256 << 10
"""The same for memory, where the event loop itself does the work: well under a millisecond."""
_ZEROES: Final = bytes(4)


def piece_bytes(backend: Backend) -> int:
    """Return the bytes of a backend that are erased, or inspected, without yielding to the event loop."""
    return PIECE_BYTES if backend.memory is None else MEMORY_PIECE_BYTES


async def overwrite(runtime: Runtime, backend: Backend, pattern: bytes, report: Progress) -> None:
    """Write a pattern over all that the backend has space for, and have it on the media. Raises `OSError`."""
    size_bytes = backend.capabilities.size_bytes
    step = piece_bytes(backend)
    write_bytes = WRITE_BYTES if backend.memory is None else MEMORY_WRITE_BYTES
    data = memoryview(pattern * (write_bytes // len(pattern)))
    for offset in range(0, size_bytes, step):
        length = min(step, size_bytes - offset)
        for start, end in await settled(backend.allocated(offset, length)):
            for position in range(start, end, write_bytes):
                await settled(backend.write(position, data[: end - position]))
                await pause(runtime)
        report(length)
        await pause(runtime)
    await settled(backend.flush())


async def give_back(runtime: Runtime, backend: Backend, report: Progress) -> None:
    """Make everything read as zeroes, and give its space back. Raises `OSError`."""
    size_bytes = backend.capabilities.size_bytes
    step = piece_bytes(backend)
    for offset in range(0, size_bytes, step):
        length = min(step, size_bytes - offset)
        await settled(backend.write_zeroes(offset, length, deallocate=True))
        report(length)
        await pause(runtime)
    await settled(backend.flush())


def passes_to_erase(backend: Backend) -> list[bytes]:
    """Return the patterns to overwrite the media with before the data is erased; an empty list for none."""
    return [_ZEROES] if backend.overwrite_to_erase else []


async def erase(runtime: Runtime, backend: Backend, *, secure: bool, report: Progress) -> None:
    """Erase all data of a backend; with `secure`, overwrite the media as well. Raises `OSError`."""
    if secure:
        for pattern in passes_to_erase(backend):
            await overwrite(runtime, backend, pattern, report)
    await give_back(runtime, backend, report)


def bytes_to_erase(backend: Backend, *, secure: bool) -> int:
    """Return the total of the bytes that `erase` will report."""
    return backend.capabilities.size_bytes * (1 + (len(passes_to_erase(backend)) if secure else 0))
