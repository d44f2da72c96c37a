"""Many reads or writes of one file in one system call, by the kernel's AIO (io_submit(2)).

On the page cache io_submit does the work before it returns: it costs one entry into the kernel, and one release of the
interpreter's lock, for all of them. With O_DIRECT the device works on all of them at once. Without AIO (another
processor, a kernel that forbids it, too many contexts: fs.aio-max-nr) it is a preadv or pwritev for each.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
from array import array
from collections.abc import Sequence
from typing import Final

RWF_NOWAIT: Final = 0x08
MOST: Final = 64
"""As many requests in one call, at the most."""
_IOCB_BYTES: Final = 64
_EVENT_BYTES: Final = 32
_PREAD, _PWRITE = 0, 1
# io_setup, io_destroy, io_submit, io_getevents, which libc has no functions for.
_GENERIC: Final = (0, 1, 2, 4)
_NUMBERS: Final = {"x86_64": (206, 207, 209, 208), "aarch64": _GENERIC, "riscv64": _GENERIC, "loongarch64": _GENERIC}
# struct iocb as 64-bit words: data, rw_flags (high half), opcode (low) and fd (high), buffer, bytes, offset, 2 more.
_DATA, _FLAGS, _OPCODE_FD, _BUFFER, _BYTES, _OFFSET, _WORDS = 0, 1, 2, 3, 4, 5, 8
# struct io_event: data, iocb, result, second result.
_RESULT, _EVENT_WORDS = 2, 4

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long


def address_of(buffer: memoryview) -> int:
    """Return the address of a writable buffer, which has to stay where it is for as long as that is used."""
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


class AioCalls:
    """Reads or writes of one file, up to `MOST` at a time; of one thread at a time. Raises `OSError` without AIO."""

    def __init__(self, fd: int, *, write: bool, flags: int = 0) -> None:
        numbers = _NUMBERS.get(platform.machine())
        if numbers is None or ctypes.sizeof(ctypes.c_void_p) != 8:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        setup, self._destroy_number, submit, getevents = numbers
        self._context = ctypes.c_ulong(0)
        if _syscall(ctypes.c_long(setup), ctypes.c_long(MOST), ctypes.byref(self._context)):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        self._submit, self._getevents = ctypes.c_long(submit), ctypes.c_long(getevents)
        requests, events = bytearray(_IOCB_BYTES * MOST), bytearray(_EVENT_BYTES * MOST)
        self._requests, self._events = memoryview(requests).cast("Q"), memoryview(events).cast("q")
        first = address_of(memoryview(requests))
        self._pointers = array("Q", range(first, first + _IOCB_BYTES * MOST, _IOCB_BYTES))
        self._pointers_at = ctypes.c_void_p(self._pointers.buffer_info()[0])
        self._events_at = ctypes.c_void_p(address_of(memoryview(events)))
        self._requests[_DATA::_WORDS] = memoryview(array("Q", range(MOST)))
        self._requests[_FLAGS::_WORDS] = memoryview(array("Q", [flags << 32]) * MOST)
        kind = (_PWRITE if write else _PREAD) | fd << 32
        self._requests[_OPCODE_FD::_WORDS] = memoryview(array("Q", [kind]) * MOST)

    def run(self, addresses: Sequence[int], lengths: Sequence[int], offsets: Sequence[int]) -> list[int] | None:
        """Do so many requests and wait for all of them.

        Returns None when each has moved all of its bytes; else, for each, how many it has moved, or an errno below 0.
        """
        count, requests = len(offsets), self._requests
        end = count * _WORDS
        wanted = memoryview(array("q", lengths))
        requests[_BUFFER:end:_WORDS] = memoryview(array("Q", addresses))
        requests[_BYTES:end:_WORDS] = memoryview(array("Q", lengths))
        requests[_OFFSET:end:_WORDS] = memoryview(array("Q", offsets))
        number = ctypes.c_long(count)
        taken = _syscall(self._submit, self._context, number, self._pointers_at)
        if taken < 0:
            return [-ctypes.get_errno()] * count
        self._wait(taken)
        results = self._events[_RESULT : taken * _EVENT_WORDS : _EVENT_WORDS]
        if taken == count and results == wanted:
            return None
        # One that the kernel has not taken is as if there had been no room: it is tried again in another way.
        moved = [-errno.EAGAIN] * count
        numbers = self._events[_DATA : taken * _EVENT_WORDS : _EVENT_WORDS].tolist()
        for index, result in zip(numbers, results.tolist(), strict=True):
            moved[index] = result
        return None if moved == list(lengths) else moved

    def _wait(self, count: int) -> None:
        got = 0
        while got < count:
            at = ctypes.c_void_p((self._events_at.value or 0) + got * _EVENT_BYTES)
            left = ctypes.c_long(count - got)
            here = _syscall(self._getevents, self._context, left, left, at, ctypes.c_void_p())
            if here < 0 and ctypes.get_errno() != errno.EINTR:
                code = ctypes.get_errno()  # only for a context that is none: no request of it can be in progress
                raise OSError(code, os.strerror(code))
            got += max(here, 0)

    def close(self) -> None:
        """Give the context back."""
        if self._context.value:
            _syscall(ctypes.c_long(self._destroy_number), self._context)
            self._context.value = 0


class PlainCalls:
    """The same as `AioCalls`, with a system call for each request."""

    def __init__(self, fd: int, *, write: bool, flags: int = 0) -> None:
        self._fd, self._flags = fd, flags
        self._write = write

    def run(self, addresses: Sequence[int], lengths: Sequence[int], offsets: Sequence[int]) -> list[int] | None:
        """Do so many requests, as `AioCalls.run`."""
        moved = []
        call = os.pwritev if self._write else os.preadv
        for address, length, offset in zip(addresses, lengths, offsets, strict=True):
            buffer = (ctypes.c_char * length).from_address(address)
            try:
                moved.append(call(self._fd, [buffer], offset, self._flags))
            except OSError as error:
                moved.append(-(error.errno or errno.EIO))
        return None if moved == list(lengths) else moved

    def close(self) -> None:
        """Do nothing: there is no context to give back."""


Calls = AioCalls | PlainCalls


def open_calls(fd: int, *, write: bool, flags: int = 0) -> Calls:
    """Return the best way to do many reads or writes of a file at a time."""
    try:
        return AioCalls(fd, write=write, flags=flags)
    except OSError:
        return PlainCalls(fd, write=write, flags=flags)
