"""Reads and writes of a file past the page cache (O_DIRECT), beside its ordinary descriptor.

O_DIRECT wants offset, length and memory aligned, to what statx(2) says (STATX_DIOALIGN, since Linux 6.1). Memory comes
from all over the target, so data goes by a piece of aligned memory of the thread. What is not aligned otherwise goes by
the page cache: the kernel keeps the two views of a file coherent, and range locks keep the requests apart.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import struct
import threading
from typing import Final

from nvmeof.errors import ConfigurationError

PIECE_BYTES: Final = 1 << 20
"""How much one call moves, at the most."""
_SAFE_ALIGNMENT: Final = 4096
_STATX_DIOALIGN: Final = 0x2000
_AT_EMPTY_PATH: Final = 0x1000
_STATX_BYTES: Final = 256
_DIOALIGN_AT: Final = 152  # stx_dio_mem_align, stx_dio_offset_align

_libc = ctypes.CDLL(None, use_errno=True)


def alignment_of(fd: int) -> int:
    """Return what offsets and lengths of O_DIRECT have to be multiples of, in bytes; 4096 where the kernel does not
    say."""
    buffer = ctypes.create_string_buffer(_STATX_BYTES)
    with contextlib.suppress(AttributeError):  # a libc without statx
        if not _libc.statx(fd, b"", _AT_EMPTY_PATH, _STATX_DIOALIGN, buffer):
            (mask,) = struct.unpack_from("=I", buffer)
            memory, offset = struct.unpack_from("=II", buffer, _DIOALIGN_AT)
            if mask & _STATX_DIOALIGN and offset:
                return int(max(memory, offset))
    return _SAFE_ALIGNMENT


class _Piece(threading.local):
    """Aligned memory of a thread."""

    def __init__(self) -> None:
        self.view = memoryview(mmap.mmap(-1, PIECE_BYTES))


class DirectFile:
    """The second descriptor of a file, with O_DIRECT. Raises `ConfigurationError` where there is none."""

    def __init__(self, fd: int, description: str, *, writable: bool) -> None:
        flags = os.O_DIRECT | os.O_CLOEXEC | (os.O_RDWR if writable else os.O_RDONLY)
        try:
            self.fd = os.open(f"/proc/self/fd/{fd}", flags)  # the same file, whatever its name is now
        except OSError as error:
            raise ConfigurationError(
                f"{description} cannot be served past the page cache ({error.strerror}): leave 'direct' out"
            ) from error
        self.alignment = alignment_of(self.fd)
        self._piece = _Piece()

    def fits(self, offset: int, length: int) -> bool:
        """Return whether a request is aligned."""
        return not (offset | length) % self.alignment

    def read(self, view: memoryview, offset: int) -> int:
        """Read into ``view``, at most `PIECE_BYTES`; return how many bytes. Raises `OSError`."""
        piece = self._piece.view[: len(view)]
        count = os.preadv(self.fd, [piece], offset)
        view[:count] = piece[:count]
        return count

    def write(self, data: memoryview, offset: int, *flags: int) -> int:
        """Write ``data``, at most `PIECE_BYTES`; return how many bytes. Raises `OSError`."""
        piece = self._piece.view[: len(data)]
        piece[:] = data[: len(piece)]
        return os.pwritev(self.fd, [piece], offset, *flags)

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.fd)


def unaligned(error: OSError) -> bool:
    """Return whether the kernel found a request not aligned, whatever it said before."""
    return error.errno == errno.EINVAL
