"""A namespace as a seekable binary file.

Reads and writes begin and end at any byte. A block that a write covers in part is read, changed and written back, and
no other file object of this process writes to the block at that time: all file objects of a namespace share its
`RangeLock`.
"""

from __future__ import annotations

import errno
import io
import os
import threading
from typing import TYPE_CHECKING, Final, Literal, overload
from weakref import WeakValueDictionary

from nvmeof.host.blocking.api import Namespace
from nvmeof.host.blocking.range_lock import RangeLock

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

BUFFER_BYTES: Final = 1 << 20
"""Default size of the buffer of a buffered file, in bytes."""
MOST_BYTES: Final = 16 << 20
"""Upper bound of one transfer of the raw file, in bytes: reads and writes of files may be partial."""

_locks: WeakValueDictionary[tuple[str, int], RangeLock] = WeakValueDictionary()
_locks_lock = threading.Lock()


def _lock_of(namespace: Namespace) -> RangeLock:
    """Return the lock of a namespace, by subsystem and NSID, for all controllers that lead to it."""
    key = namespace.wrapped.port.subnqn, namespace.nsid
    with _locks_lock:
        lock = _locks.get(key)
        if lock is None:
            lock = _locks[key] = RangeLock()
        return lock


class BlockIO(io.RawIOBase):
    """The raw, unbuffered file of a namespace: each read and write is at least one command.

    ``writable``: whether it may be written. :func:`open` makes buffered ones. The position is that of this object;
    reads and writes of several threads through one object are serialised. Errors are those of the namespace's methods,
    and OSError as of a block device: ENOSPC for a write at the end.
    """

    def __init__(self, namespace: Namespace, *, writable: bool = False) -> None:
        super().__init__()
        namespace.refresh()
        self.namespace = namespace
        self.name = f"namespace {namespace.nsid} of {namespace.wrapped.port.subnqn}"
        self.mode = "rb+" if writable else "rb"
        self._writable = writable
        self._position = 0
        self._lock = threading.RLock()
        self._ranges = _lock_of(namespace)
        self._block_bytes = namespace.block_bytes
        self._size = namespace.size_bytes

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} mode={self.mode!r}>"

    def readable(self) -> bool:
        """Return True: a namespace can always be read."""
        self._check_open()
        return True

    def writable(self) -> bool:
        """Return whether it was opened for writing."""
        self._check_open()
        return self._writable

    def seekable(self) -> bool:
        """Return True: every byte has its place."""
        self._check_open()
        return True

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")

    def tell(self) -> int:
        """Return the position in bytes."""
        self._check_open()
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Change the position, from the beginning, the position or the end; it may be beyond the end."""
        self._check_open()
        with self._lock:
            if whence not in (os.SEEK_SET, os.SEEK_CUR, os.SEEK_END):
                raise ValueError(f"whence is 0, 1 or 2, not {whence}")
            begin = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
            if begin + offset < 0:
                raise OSError(errno.EINVAL, f"position {begin + offset} is before the beginning")
            self._position = begin + offset
            return self._position

    def truncate(self, size: int | None = None, /) -> int:
        """Refuse: raises io.UnsupportedOperation, for a namespace has the size that its subsystem gave it."""
        self._check_open()
        raise io.UnsupportedOperation(
            "a namespace cannot be truncated: its size is its subsystem's; deallocate() gives storage of blocks back"
        )

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Fill ``buffer`` from the position on, or a part of it; return how many bytes, 0 at the end."""
        self._check_open()
        with self._lock:
            view = memoryview(buffer).cast("B")
            count = min(len(view), MOST_BYTES, max(self._size - self._position, 0))
            if count:
                self._read(self._position, view[:count])
                self._position += count
            return count

    def _read(self, position: int, view: memoryview) -> None:
        size = self._block_bytes
        first, end = position // size, -(-(position + len(view)) // size)
        head, tail = position - first * size, end * size - position - len(view)
        if not head and not tail:
            self.namespace.read_into(first, view)
            return
        before, behind = memoryview(bytearray(head)), memoryview(bytearray(tail))
        self.namespace.readv(first, [before, view, behind])

    def write(self, data: ReadableBuffer, /) -> int:
        """Write ``data`` at the position, or a part; return how many bytes. Raises OSError (ENOSPC) at the end."""
        self._check_open()
        if not self._writable:
            raise io.UnsupportedOperation('not writable: open it with mode "r+b"')
        with self._lock:
            view = memoryview(data).cast("B")
            count = min(len(view), MOST_BYTES, max(self._size - self._position, 0))
            if count:
                self._write(self._position, view[:count])
                self._position += count
            elif len(view):
                raise OSError(errno.ENOSPC, f"the end of {self.name} is reached", self.name)
            return count

    def _write(self, position: int, view: memoryview) -> None:
        size = self._block_bytes
        first, end = position // size, -(-(position + len(view)) // size)
        head, tail = position - first * size, end * size - position - len(view)
        with self._ranges.held(first, end):
            if not head and not tail:
                self.namespace.write(first, view)
                return
            edges = [first, end - 1] if head and tail and end - first > 1 else [first if head else end - 1]
            old = self.namespace.read_many(edges)
            before = old[:head]
            behind = old[len(old) - tail :] if tail else old[:0]
            self.namespace.writev(first, [before, view, behind])

    def flush(self) -> None:
        """Send nothing: what was written is with the controller. :meth:`sync` brings it to the medium."""
        super().flush()

    def sync(self) -> None:
        """Bring all that was written to the medium, with a Flush command."""
        self._check_open()
        self.namespace.flush()

    def fileno(self) -> int:
        """Refuse: raises io.UnsupportedOperation, for there is no file descriptor."""
        raise io.UnsupportedOperation("a namespace has no file descriptor")


@overload
def open(namespace: Namespace, mode: Literal["rb"] = "rb", buffering: int = -1) -> io.BufferedReader: ...


@overload
def open(
    namespace: Namespace, mode: Literal["r+b", "rb+", "+rb", "br+", "b+r", "+br"], buffering: int = -1
) -> io.BufferedRandom: ...


@overload
def open(namespace: Namespace, mode: str, buffering: int = -1) -> io.BufferedIOBase | BlockIO: ...


def open(namespace: Namespace, mode: str = "rb", buffering: int = -1) -> io.BufferedIOBase | BlockIO:
    """Open a namespace as a binary file that can be sought: ``"rb"`` to read, ``"r+b"`` to read and write.

    ::

        with open(namespace, "r+b") as disk, pathlib.Path("image").open("rb") as image:
            shutil.copyfileobj(image, disk)

    ``buffering``: the size of the buffer in bytes; 0 for none (a :class:`BlockIO`), -1 for 1 MiB. As with any buffered
    file, later writes of others may not be seen until the position changes. Closing writes the buffer;
    ``disk.raw.sync()`` brings it to the medium. Raises ValueError for other modes: ``"wb"`` and ``"ab"`` would truncate
    and append, and a namespace has a fixed size.
    """
    kind = "".join(sorted(mode))
    if kind not in ("br", "+br"):
        if set(mode) & set("wax"):
            raise ValueError(f'mode {mode!r} would create, truncate or append; a namespace takes "rb" and "r+b"')
        raise ValueError(f'a namespace is a binary file: mode "rb" or "r+b", not {mode!r}')
    raw = BlockIO(namespace, writable=kind == "+br")
    if not buffering:
        return raw
    size = BUFFER_BYTES if buffering < 0 else buffering
    return io.BufferedRandom(raw, size) if kind == "+br" else io.BufferedReader(raw, size)
