"""Helpers for tests of the commands about the media."""

from __future__ import annotations

import errno
import logging
from pathlib import Path
from typing import Any

from nvmeof.aio.runtime import AsyncioRuntime
from nvmeof.errors import CommandError
from nvmeof.spec.log_pages import DEVICE_SELF_TEST, SANITIZE_STATUS
from nvmeof.target.commands.table import execute, prepare
from nvmeof.target.core.completion import Completion
from nvmeof.target.core.metadata import MemoryStore
from nvmeof.target.storage.file import FileBackend
from nvmeof.target.storage.ramdisk import Ramdisk
from tests.target.harness import Pending, Target, TestQueue


def error(code: int = errno.EIO) -> OSError:
    return OSError(code, "broken")


class Flawed(Ramdisk):
    """A ramdisk whose operations fail where a test says so."""

    def __init__(self, size: str | int, **options: Any) -> None:
        super().__init__(size, **options)
        self.bad_blocks: set[int] = set()  # of 512 bytes: cannot be read
        self.fails: dict[str, OSError] = {}

    def _fail(self, name: str) -> None:
        if name in self.fails:
            raise self.fails[name]

    def _check(self, offset: int, length: int) -> None:
        if any(offset // 512 <= block < -(-(offset + length) // 512) for block in self.bad_blocks):
            raise error()

    def acquire_read(self, offset, length):
        self._check(offset, length)
        return super().acquire_read(offset, length)

    def verify(self, offset, length):
        self._check(offset, length)

    def write(self, offset, data, *, fua=False):
        self._fail("write")
        super().write(offset, data, fua=fua)

    def write_zeroes(self, offset, length, *, deallocate, fua=False):
        self._fail("write_zeroes")
        super().write_zeroes(offset, length, deallocate=deallocate, fua=fua)

    def flush(self):
        self._fail("flush")
        super().flush()

    def set_block_bytes(self, block_bytes):
        self._fail("set_block_bytes")
        super().set_block_bytes(block_bytes)


class Durable(MemoryStore):
    """A metadata store that reports itself durable: its values outlive their backend. It can fail."""

    durable = True

    def __init__(self) -> None:
        super().__init__()
        self.error: OSError | None = None

    def put(self, section, value):
        if self.error is not None:
            raise self.error
        super().put(section, value)
        return _Done()


class _Done:
    """A result that is done at once, and need not be awaited."""

    def __await__(self):
        return iter(())


def kept(backend: Ramdisk, metadata_store: Durable) -> Ramdisk:
    """Return a ramdisk that stores its metadata as a file does."""
    backend.metadata_store = metadata_store
    return backend


def finish(target: Target, result):
    """Return the completion of a command, once all background work has settled."""
    for _ in range(10000):
        if not isinstance(result, Pending):
            return result
        if result.step() is not None:
            return result.completion
        target.runtime.turn()
    raise AssertionError("the command does not end")


def submit(target: Target, queue: TestQueue, opcode: int, data: bytes | None = None, **fields):
    return finish(target, queue.submit(queue.sqe(opcode, data, **fields), data))


def sanitize_log(queue: TestQueue):
    return SANITIZE_STATUS.parse(queue.read_bytes(queue.log_page(0x81, 512)))


def self_test_log(queue: TestQueue):
    return DEVICE_SELF_TEST.parse(queue.read_bytes(queue.log_page(0x06, 564)))


def location(queue: TestQueue) -> int:
    return queue.controller.error_log.newest()[0].error_location


async def file_target(path: Path, **options: Any) -> tuple[FileBackend, Target]:
    """Return an opened file, and a target of it that runs in this loop; the options are the file's."""
    backend = FileBackend(path, **options)
    await backend.open()
    target = Target(backend)
    target.runtime = AsyncioRuntime(logging.getLogger("nvmeof.target"))
    return backend, target


async def execute_in_loop(queue: TestQueue, opcode: int, data: bytes | None = None, **fields):
    """Return the completion of a command of a backend that needs an event loop."""
    sqe = queue.sqe(opcode, data, **fields)
    try:
        spec, length = prepare(queue.ctx, sqe)
    except CommandError as error:
        return queue.ctx.refuse(sqe, error)
    result = execute(queue.ctx, spec, sqe, memoryview(bytearray(data)) if data is not None and length else None)
    return result if isinstance(result, Completion) else await result
