"""The standard streams of a command line: always open, interruptible, and named in errors.

A supervisor may start a program with fewer than three descriptors, a disk or a device that the output goes to may be
full, a reader may have gone away or may not read. :func:`prepare` makes descriptors 0 to 2 exist and puts streams in
place that behave well in all of these cases; :func:`finish` leaves nothing behind that the interpreter could trip over
at its end.

- A missing descriptor becomes /dev/null. A program that is asked for output and has none says so
(:class:`~nvmeof.errors.ConfigurationError`); a service does without. - An error of a stream carries the stream's name
as `OSError.filename`: "standard output". - With `patience_seconds` None, output waits until there is room, and SIGINT
raises :class:`KeyboardInterrupt` during the wait even where an event loop has the signal. With a number, it waits that
long and then raises :class:`BlockingIOError`: a service goes on when its log is not read.
"""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from typing import IO, Any, Final

from nvmeof.errors import ConfigurationError

STDIN: Final = 0
STDOUT: Final = 1
STDERR: Final = 2
NAMES: Final = {STDIN: "standard input", STDOUT: "standard output", STDERR: "standard error"}
HINTS: Final = {STDIN: "give the data in a file", STDOUT: "redirect it, to a file or to /dev/null"}
"""The remedies for a missing stream."""
_PIECE_BYTES: Final = select.PIPE_BUF
"""Bytes that a pipe takes at once when poll reports room (pipe(7), PIPE_BUF)."""

_missing: set[int] = set()
"""Descriptors that did not exist when the program began."""


def _exists(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def _open_missing() -> None:
    """Make descriptors 0 to 2 exist, so that no file or connection gets one of these numbers."""
    for descriptor in NAMES:
        if not _exists(descriptor):
            _missing.add(descriptor)
            # the lowest free number is the missing one: those below it exist
            os.open(os.devnull, os.O_RDWR)


def is_missing(descriptor: int) -> bool:
    """Return whether the program was started without this descriptor."""
    return descriptor in _missing


def demand(descriptor: int, hint: str = "") -> None:
    """Raise :class:`~nvmeof.errors.ConfigurationError` where the program was started without this descriptor."""
    if descriptor in _missing:
        raise ConfigurationError(f"{NAMES[descriptor]} is closed: {hint or HINTS[descriptor]}")


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGINT raise KeyboardInterrupt while the main thread is in a system call that may block.

    A signal handler that only notes the signal (an event loop's) would let the system call start again (PEP 475).
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler) or handler is signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


class OutputFile(io.FileIO):
    """Standard output or standard error, below the buffer: waits for room as the module says, names its errors."""

    def __init__(self, descriptor: int, patience_seconds: float | None = None) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._what = NAMES[descriptor]
        self._patience_ms = None if patience_seconds is None else int(patience_seconds * 1000)
        self._blocked = False
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)

    def wait_no_longer(self) -> None:
        """Fail at once where there is no room, from here on."""
        self._patience_ms = 0

    def write(self, data: Any, /) -> int:
        """Write some of `data`. Raises OSError with the stream's name as `filename`."""
        piece = memoryview(data).cast("B")[:_PIECE_BYTES]
        while True:
            self._wait_for_room()
            try:
                return os.write(self.fileno(), piece)
            except BlockingIOError:
                continue  # another writer was faster, and the descriptor does not block
            except OSError as error:
                raise type(error)(error.errno, error.strerror, self._what) from None

    def _wait_for_room(self) -> None:
        if self._poll.poll(0):
            self._blocked = False
            return
        if not self._blocked or self._patience_ms is None:
            with interruptible():  # not around the write: what was written must count as written
                if self._poll.poll(self._patience_ms):
                    return
        self._blocked = True  # the next lines do not wait again until there is room
        raise BlockingIOError(errno.EAGAIN, "no process reads it", self._what)


class _Missing(io.TextIOBase):
    """In place of a stream that does not exist and that the program cannot do without."""

    def __init__(self, descriptor: int, hint: str) -> None:
        self._descriptor = descriptor
        self._hint = hint

    @property
    def buffer(self) -> Any:
        return self

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8"

    def isatty(self) -> bool:
        return False

    def _refuse(self, *_: Any) -> Any:
        demand(self._descriptor, self._hint)

    fileno = read = write = _refuse


def _output(descriptor: int, old: Any, patience_seconds: float | None) -> Any:
    """Return the text stream for a descriptor, with the encoding of the interpreter's stream."""
    raw = OutputFile(descriptor, patience_seconds)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=getattr(old, "encoding", None) or "utf-8",
        errors="backslashreplace",
        line_buffering=descriptor == STDERR or raw.isatty(),
        write_through=False,
    )


def prepare(*, demand_output: bool = True, patience_seconds: float | None = None) -> None:
    """Make the standard streams usable. Called first of all, by a program's entry point.

    `demand_output`: printing where standard output was not there raises :class:`~nvmeof.errors.ConfigurationError`, one
    sentence; without it, what is printed goes nowhere. `patience_seconds`: how long output waits for room; None: until
    it is interrupted.
    """
    logging.raiseExceptions = False  # a line of the log that cannot be written has no traceback
    _open_missing()
    if sys.stdin is None:
        sys.stdin = _Missing(STDIN, HINTS[STDIN]) if demand_output else open(os.devnull)  # noqa: PTH123, SIM115
    for descriptor, name in ((STDOUT, "stdout"), (STDERR, "stderr")):
        old = getattr(sys, name)
        if old is None and demand_output and descriptor in HINTS:
            setattr(sys, name, _Missing(descriptor, HINTS[descriptor]))
        elif old is None or (old is getattr(sys, f"__{name}__") and _is_descriptor(old, descriptor)):
            # what a test or another program has put there stays
            setattr(sys, name, _output(descriptor, old, patience_seconds))


def _is_descriptor(stream: IO[str], descriptor: int) -> bool:
    try:
        return stream.fileno() == descriptor
    except (OSError, ValueError):
        return False


def discard(descriptor: int) -> None:
    """Redirect output to a descriptor to nowhere, so that the interpreter's end neither waits nor fails."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


def flush() -> None:
    """Write out what is buffered for standard output. Raises OSError as :class:`OutputFile` does."""
    if not isinstance(sys.stdout, _Missing):
        sys.stdout.flush()


def _ours() -> Iterator[tuple[int, Any, OutputFile]]:
    for descriptor, stream in ((STDOUT, sys.stdout), (STDERR, sys.stderr)):
        raw = getattr(getattr(stream, "buffer", None), "raw", None)
        if isinstance(raw, OutputFile):
            yield descriptor, stream, raw


def interrupted() -> None:
    """End the interruptible phase after SIGINT: a second one ends the process, and no output waits for a reader."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    for _, _, raw in _ours():
        raw.wait_no_longer()
    with contextlib.suppress(OSError, ValueError):
        if sys.stderr.isatty():
            print(file=sys.stderr)  # the terminal has shown ^C


def finish() -> None:
    """Discard output that can no longer be written, without a message: the exit code stays as it is."""
    for descriptor, stream, raw in _ours():
        raw.wait_no_longer()
        try:
            stream.flush()
        except (OSError, ValueError):
            discard(descriptor)
            with contextlib.suppress(OSError, ValueError):
                stream.flush()


def remark(program: str, text: str) -> None:
    """Print one line on standard error, control characters escaped. Never fails: nothing is left to say it with."""
    line = "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text)
    with contextlib.suppress(OSError, ValueError):
        print(f"{program}: {line}", file=sys.stderr, flush=True)


def sentence(error: OSError) -> str:
    """Describe an OSError: the file or stream, and the reason."""
    reason = error.strerror or str(error) or type(error).__name__
    return f"{error.filename}: {reason}" if error.filename else reason
