"""Callers' buffers as plain views of bytes, cut and put together as block commands want them.

This module must not know commands, queues or namespaces.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nvmeof.errors import LocalProtocolError
from nvmeof.wire import Buffer


def plain_view(data: Buffer) -> memoryview:
    """Return a one-dimensional view of the bytes of ``data``. Raises LocalProtocolError for one with gaps in it."""
    view = data if type(data) is memoryview else memoryview(data)
    if not view.c_contiguous:
        raise LocalProtocolError("a buffer for data must be contiguous")
    return view if view.format == "B" and view.ndim == 1 else view.cast("B")


def writable(destination: Buffer) -> memoryview:
    """Return a view for data to land in. Raises LocalProtocolError for a buffer that cannot be written."""
    view = plain_view(destination)
    if view.readonly:
        raise LocalProtocolError("the destination of a read must be writable")
    return view


def pieces(whole: memoryview, piece_bytes: int, count: int) -> list[memoryview]:
    """Cut ``whole`` into ``count`` pieces. Raises LocalProtocolError where it is not as long as these together."""
    if len(whole) != piece_bytes * count:
        raise LocalProtocolError(
            f"{count} times {piece_bytes} bytes need a buffer of {piece_bytes * count} bytes, not {len(whole)}"
        )
    return [whole[at : at + piece_bytes] for at in range(0, len(whole), piece_bytes)] if piece_bytes else []


def check_lengths(buffers: Sequence[memoryview], piece_bytes: int, count: int) -> None:
    """Raise LocalProtocolError unless there are ``count`` buffers of ``piece_bytes`` each."""
    if len(buffers) != count:
        raise LocalProtocolError(f"{count} addresses need as many buffers, not {len(buffers)}")
    for each in buffers:
        if len(each) != piece_bytes:
            raise LocalProtocolError(f"each buffer takes {piece_bytes} bytes, and one has {len(each)}")


class BlockVector:
    """Buffers that follow one another on the medium, as runs of whole blocks.

    ``parts``: ``(first block, buffer)`` for each run, counted from the first buffer's beginning. A buffer that begins
    and ends between two blocks is a part as it is; of the others the whole blocks within them are, and a block that
    several buffers share is a buffer of this object: filled from them when made with ``gather`` (a write), else copied
    to them by :meth:`scatter`.
    """

    def __init__(self, views: Sequence[memoryview], block_bytes: int, *, gather: bool) -> None:
        self.parts: list[tuple[int, memoryview]] = []
        self._copies: list[tuple[memoryview, memoryview]] = []  # of a shared block, and of the caller's buffer
        shared = memoryview(b"")
        position = 0
        for view in views:
            while view:
                into = position % block_bytes
                whole = 0 if into else len(view) // block_bytes * block_bytes
                if whole:
                    self.parts.append((position // block_bytes, view[:whole]))
                    position += whole
                    view = view[whole:]
                    continue
                if not into:
                    shared = memoryview(bytearray(block_bytes))
                    self.parts.append((position // block_bytes, shared))
                piece = view[: block_bytes - into]
                self._copies.append((shared[into : into + len(piece)], piece))
                position += len(piece)
                view = view[len(piece) :]
        if gather:
            for block, piece in self._copies:
                block[:] = piece

    def scatter(self) -> None:
        """Copy data that was read into shared blocks to the buffers."""
        for block, piece in self._copies:
            piece[:] = block


class DeviceBuffer:
    """Memory that a device reads and writes without a copy, taken by an application until :meth:`release`.

    ::

        with controller.take_buffer(131072) as buffer:
            await namespace.read_into(0, buffer.view)

    ``view``: all of it, writable; slices of it serve as well. Between the call of an operation and its return the
    memory is the device's, as any buffer is. Its content at first is not defined.
    """

    __slots__ = ("_release", "view")

    def __init__(self, view: memoryview, release: Callable[[memoryview], None] | None = None) -> None:
        self.view = view
        self._release = release

    def __len__(self) -> int:
        return len(self.view)

    def __enter__(self) -> DeviceBuffer:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Give the memory back; neither it nor a slice of it may be used after this. Safe to call twice.

        Raises LocalProtocolError, and gives nothing back, while a command is under way with a part of it.
        """
        release, self._release = self._release, None
        if release is not None:
            try:
                release(self.view)
            except BaseException:
                self._release = release
                raise
            self.view = memoryview(b"")
