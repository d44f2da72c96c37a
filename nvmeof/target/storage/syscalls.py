"""System calls that the standard library lacks: fallocate with a mode, block device ioctls, and sched_yield(2)."""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import errno
import fcntl
import os
import struct
from pathlib import Path

FALLOC_FL_KEEP_SIZE = 0x01
FALLOC_FL_PUNCH_HOLE = 0x02
FALLOC_FL_ZERO_RANGE = 0x10
_BLKDISCARD = 0x1277
_BLKZEROOUT = 0x127F
_BLKGETSIZE64 = 0x80081272
_BLKROGET = 0x125E

_libc = ctypes.CDLL(None, use_errno=True)
_fallocate = getattr(_libc, "fallocate64", None) or getattr(_libc, "fallocate", None)
if _fallocate is not None:
    _fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    _fallocate.restype = ctypes.c_int

UNSUPPORTED = frozenset({errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.ENOTTY, errno.EINVAL})


def yield_cpu() -> None:
    """Let the other threads of this CPU run, without the interpreter's lock: os.sched_yield keeps it before 3.12."""
    _libc.sched_yield()


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """Call fallocate(2). Raises `OSError`, EOPNOTSUPP also where libc has no such function."""
    if _fallocate is None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
    while _fallocate(fd, mode, offset, length) != 0:
        code = ctypes.get_errno()
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Give the space of a range back; it reads as zeroes."""
    fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length)


def zero_range(fd: int, offset: int, length: int) -> None:
    """Make a range read as zeroes, its space kept."""
    fallocate(fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, offset, length)


def discard_device(fd: int, offset: int, length: int) -> None:
    """Discard a range of a block device, in bytes (ioctl BLKDISCARD). Raises `OSError`."""
    fcntl.ioctl(fd, _BLKDISCARD, struct.pack("=QQ", offset, length))


def zero_device(fd: int, offset: int, length: int) -> None:
    """Write zeroes to a range of a block device, in bytes (ioctl BLKZEROOUT). Raises `OSError`."""
    fcntl.ioctl(fd, _BLKZEROOUT, struct.pack("=QQ", offset, length))


def device_size(fd: int) -> int:
    """Return the size of a block device in bytes. Raises `OSError`."""
    (size,) = struct.unpack("=Q", fcntl.ioctl(fd, _BLKGETSIZE64, bytes(8)))
    return int(size)


def device_read_only(fd: int) -> bool:
    """Return whether a block device is set read-only. Raises `OSError`."""
    (flag,) = struct.unpack("=i", fcntl.ioctl(fd, _BLKROGET, bytes(4)))
    return bool(flag)


def device_identity(fd: int) -> str:
    """Return what identifies a block device, whatever its name: a world wide name, serial number or backing file."""
    number = os.fstat(fd).st_rdev
    directory = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    known = []
    # Of a partition the disk's, one directory above.
    for name in ("wwid", "device/wwid", "device/serial", "serial", "loop/backing_file", "dm/uuid", "md/uuid"):
        for each in (directory / name, directory.resolve().parent / name):
            with contextlib.suppress(OSError, UnicodeDecodeError):
                known.append(each.read_text().strip())
    with contextlib.suppress(OSError, UnicodeDecodeError):
        known.append((directory / "start").read_text().strip())  # of a partition
    return " ".join(known)


def sync_directory(path: Path) -> None:
    """Commit the names in a directory to non-volatile media (fsync of the directory). Raises `OSError`."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
