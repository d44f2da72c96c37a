"""Helpers for tests of backends."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TypeVar

from nvmeof.target.backend.base import Backend

T = TypeVar("T")


async def settled(result: T | Awaitable[T]) -> T:
    """The result of an operation that may come at once or later."""
    if isinstance(result, Awaitable):
        return await result
    return result


async def read(backend: Backend, offset: int, length: int) -> bytes:
    lease = await settled(backend.acquire_read(offset, length))
    try:
        return bytes(lease.view)
    finally:
        lease.release()


async def write(backend: Backend, offset: int, data: memoryview, *, fua: bool = False) -> None:
    await settled(backend.write(offset, data, fua=fua))
