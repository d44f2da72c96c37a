"""A read-only namespace in which each eight bytes hold their own offset, big endian, after nbdkit's pattern plug-in."""

from __future__ import annotations

import errno
from collections.abc import Awaitable

from nvmeof.size_text import format_size, parse_size
from nvmeof.target.storage.arguments import Arguments
from nvmeof.target.storage.base import Backend, Capabilities, Lease
from nvmeof.target.storage.kinds import BackendKind


class Pattern(Backend):
    """`size`: bytes, or text such as `64M`."""

    def __init__(self, size: str, block_bytes: int = 512) -> None:
        self._capabilities = Capabilities(size_bytes=parse_size(size), block_bytes=block_bytes, can_write=False)

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    @property
    def description(self) -> str:
        return f"pattern {format_size(self._capabilities.size_bytes)}"

    def acquire_read(self, offset: int, length: int) -> Lease:
        data = b"".join(at.to_bytes(8, "big") for at in range(offset, offset + length, 8))
        return Lease(memoryview(data), stable=True)

    def write(self, offset: int, data: memoryview, *, fua: bool = False) -> Awaitable[None] | None:
        raise OSError(errno.EROFS, "a pattern cannot be written")

    def write_zeroes(self, offset: int, length: int, *, deallocate: bool, fua: bool = False) -> Awaitable[None] | None:
        raise OSError(errno.EROFS, "a pattern cannot be written")

    def deallocate(self, offset: int, length: int) -> Awaitable[None] | None:
        raise OSError(errno.EROFS, "a pattern cannot be written")

    def flush(self) -> None:
        return None

    def resize(self, size_bytes: int) -> None:
        raise OSError(errno.EROFS, "a pattern has the size that it was made with")


def make(arguments: Arguments) -> Backend:
    """Make the backend from the text of a namespace: ``pattern:SIZE[,block-size=4096]``."""
    return Pattern(arguments.value, arguments.size("block-size", 512) or 512)


KIND = BackendKind(make, ("block-size",), "blocks that hold their own offset: pattern:64M")
