"""The destinations of `read` and sources of `write`: files, pipes, devices, the standard streams.

Nothing is overwritten before all of the data is there: a file gets a temporary name beside its own until then. A
blocking call occupies only a thread that is not joined at the end, so that SIGINT takes effect at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self, TypeVar

from nvmeof.cli import streams
from nvmeof.errors import ConfigurationError
from nvmeof.host.cli import output as out

T = TypeVar("T")

_PIECE_BYTES = 1 << 20


async def in_thread(function: Callable[[], T]) -> T:
    """Call `function`, which may block without end, in a daemon thread; cancelling leaves the thread behind."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def body() -> None:
        result: T | None = None
        problem: BaseException | None = None
        try:
            result = function()
        except BaseException as error:
            problem = error
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(settle, result, problem)

    threading.Thread(target=body, daemon=True, name="file data").start()
    return await future


def _named(error: OSError, name: str) -> OSError:
    return type(error)(error.errno, error.strerror, name)


class Sink:
    """Where `read` puts data: `path`, or standard output for None and "-". Opens nothing before :meth:`filling`."""

    def __init__(self, path: str | None) -> None:
        self.path = None if path is None or path == "-" else path
        self.name = streams.NAMES[streams.STDOUT] if self.path is None else self.path
        self.done_bytes = 0
        self._fd = -1
        self._at_work = threading.Lock()  # held by the thread that writes a piece
        self._stopped = False
        if self.path is None:
            streams.demand(streams.STDOUT, "give a file with --data")

    @contextlib.contextmanager
    def filling(self, length_bytes: int) -> Iterator[None]:
        """Take `length_bytes`; at the end of the block the file has its name. The error says how many bytes were
        written.

        An existing file keeps its owner and mode. Devices, pipes and files in a directory that cannot be changed are
        written in place. Raises OSError.
        """
        if self.path is None:
            sys.stdout.flush()
            self._fd = sys.stdout.fileno()
            with self._telling(length_bytes, ""):
                yield
            return
        final = Path(self.path).resolve()  # the file behind a link, not the link
        try:
            before = final.stat()
        except FileNotFoundError:
            before = None
        partial = self._open_partial(final, before)
        try:
            with self._telling(length_bytes, "" if partial is None else f"{partial}; {self.path} is as it was"):
                yield
                if partial is not None:
                    partial.replace(final)
        finally:
            if self._stop(wait=partial is not None):
                os.close(self._fd)
            if partial is not None and not self.done_bytes:
                partial.unlink(missing_ok=True)

    def _open_partial(self, final: Path, before: os.stat_result | None) -> Path | None:
        """Open a file of a new name beside `final`, or `final` itself (None)."""
        if before is None or stat.S_ISREG(before.st_mode):
            for number in range(1, 1000):
                partial = final.with_name(f"{final.name[:200]}.{number}.partial")
                try:
                    self._fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
                except FileExistsError:
                    continue
                except OSError as error:
                    if before is None or not isinstance(error, PermissionError):
                        raise _named(error, self.name) from None
                    break
                if before is not None:
                    with contextlib.suppress(OSError):
                        os.fchown(self._fd, before.st_uid, before.st_gid)
                    with contextlib.suppress(OSError):
                        os.fchmod(self._fd, stat.S_IMODE(before.st_mode))
                return partial
        with streams.interruptible():
            try:
                self._fd = os.open(final, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
            except OSError as error:
                raise _named(error, self.name) from None
        return None

    @contextlib.contextmanager
    def _telling(self, length_bytes: int, where: str) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self._stop(wait=bool(where))  # the count is what was written so far: a thread may still be writing
            if self.done_bytes and not isinstance(error, BrokenPipeError):
                kept = f", which are in {where}" if where else ""
                out.remark(f"stopped after {self.done_bytes} of {length_bytes} bytes{kept}")
            raise

    def _stop(self, *, wait: bool) -> bool:
        """Stop the threads from writing further pieces; return whether none is writing. Only files are waited for."""
        self._stopped = True
        idle = self._at_work.acquire(blocking=wait)
        if idle:
            self._at_work.release()
        return idle

    async def write(self, data: memoryview) -> None:
        """Write all of `data`. Raises OSError with the name of file or stream."""
        await in_thread(lambda: self._write(data))

    def _write(self, data: memoryview) -> None:
        while data:
            with self._at_work:
                if self._stopped:
                    return
                try:
                    count = os.write(self._fd, data[:_PIECE_BYTES])
                except OSError as error:
                    raise _named(error, self.name) from None
                self.done_bytes += count
            data = data[count:]


class Source:
    """Where `write` gets data from: `path`, or standard input for None and "-". Raises OSError when it is opened."""

    def __init__(self, path: str | None) -> None:
        self.name = path if path is not None and path != "-" else streams.NAMES[streams.STDIN]
        self._own = path is not None and path != "-"
        if self._own:
            with streams.interruptible():  # a named pipe waits for its writer
                self._fd = os.open(self.name, os.O_RDONLY | os.O_CLOEXEC)
        else:
            streams.demand(streams.STDIN, "give a file with --data")
            self._fd = sys.stdin.fileno()
        status = os.fstat(self._fd)
        if stat.S_ISDIR(status.st_mode):
            raise ConfigurationError(f"{self.name} is a directory: give a file with --data")
        self.size_bytes: int | None = None
        """How much there is, where that is known."""
        if stat.S_ISREG(status.st_mode):
            self.size_bytes = max(status.st_size - os.lseek(self._fd, 0, os.SEEK_CUR), 0)

    async def read(self, length_bytes: int) -> bytes:
        """Read `length_bytes`, fewer only at the end of the data: pipes give less at a time."""
        return await in_thread(lambda: self._read(length_bytes))

    def _read(self, length_bytes: int) -> bytes:
        parts = []
        while length_bytes > 0:
            try:
                part = os.read(self._fd, min(length_bytes, _PIECE_BYTES))
            except OSError as error:
                raise _named(error, self.name) from None
            if not part:
                break
            parts.append(part)
            length_bytes -= len(part)
        return b"".join(parts)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._own:
            os.close(self._fd)
