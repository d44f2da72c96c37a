"""Commands that move data: read, write."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import Any

import click

from nvmeof.cli.types import BYTES, U64
from nvmeof.errors import ConfigurationError
from nvmeof.host.cli import options as opt
from nvmeof.host.cli import output as out
from nvmeof.host.cli import subsystem
from nvmeof.host.cli.files import Sink, Source
from nvmeof.host.namespace import Namespace

CHUNK_BYTES = 8 << 20
"""How much is in memory at a time; one chunk is read while the one before is written."""
SHOWN_BYTES = 64 << 10
"""Up to this, what goes to a terminal is shown as a hex dump."""

start_option = click.option("--start-block", type=U64, default=0, show_default=True, help="First logical block.")
block_count_option = click.option(
    "-c", "--block-count", type=U64, help="Number of blocks, 0's-based as nvme-cli has it."
)
blocks_option = click.option("--blocks", type=U64, help="Number of blocks, not 0's-based.")
_size = click.option("-z", "--data-size", type=BYTES, help="Size of the data in bytes: 4096, 4k, 1M.")
_data = click.option("-d", "--data", "path", type=click.Path(dir_okay=False), help="File.  [default: stdin or stdout]")


def range_blocks(
    namespace: Namespace, block_count: int | None, blocks: int | None, data_size: int | None
) -> int | None:
    """Return the number of blocks that the options ask for; None without these options. Raises
    :class:`ConfigurationError`.
    """
    if block_count is not None and blocks is not None:
        raise ConfigurationError("give --block-count (0's-based) or --blocks, not both")
    if block_count is not None:
        blocks = block_count + 1
    if blocks is None and data_size is not None:
        blocks = -(-data_size // namespace.block_bytes)
    if blocks is not None and blocks < 1:
        raise ConfigurationError("there is nothing to do for 0 blocks")
    if blocks is not None and data_size is not None and data_size > blocks * namespace.block_bytes:
        raise ConfigurationError(
            f"{data_size} bytes do not fit {blocks} blocks of {namespace.block_bytes} bytes; --block-count is 0's-based"
        )
    return blocks


def check_range(namespace: Namespace, start: int, count: int) -> None:
    """Raise :class:`ConfigurationError` where a range reaches beyond the namespace."""
    if start + count > namespace.size_blocks:
        raise ConfigurationError(
            f"blocks {start} to {start + count - 1} reach beyond the end of namespace {namespace.nsid}: "
            f"it has {namespace.size_blocks} blocks"
        )


@opt.command("read")
@opt.controller_options
@subsystem.multipath_options("-c")
@opt.namespace_option
@start_option
@block_count_option
@blocks_option
@_size
@_data
@opt.coroutine
async def read_command(
    nsid: int | None,
    start_block: int,
    block_count: int | None,
    blocks: int | None,
    data_size: int | None,
    path: str | None,
    **options: Any,
) -> None:
    """Read logical blocks to a file or stdout, one block unless told otherwise; a hex dump on a terminal.

    A file is replaced when all of the data is there, and not touched before.
    """
    sink = Sink(path)
    async with await subsystem.open_host(options) as controller:
        namespace = await opt.open_namespace(controller, nsid)
        count = range_blocks(namespace, block_count, blocks, data_size) or 1
        check_range(namespace, start_block, count)
        length = count * namespace.block_bytes if data_size is None else data_size
        if path is None and sys.stdout.isatty() and count * namespace.block_bytes <= SHOWN_BYTES:
            for line in out.hexdump((await namespace.read(start_block, count))[:length]):
                print(line)
            return
        with sink.filling(length), out.progress("read", length) as advance:
            await _read_to(namespace, start_block, count, length, sink, advance)
    out.remark(f"read {length} bytes from block {start_block} of namespace {namespace.nsid}")


async def _read_to(namespace: Namespace, lba: int, count: int, length: int, sink: Sink, advance: Any) -> None:
    step = max(CHUNK_BYTES // namespace.block_bytes, 1)
    buffers = [bytearray(min(step, count) * namespace.block_bytes) for _ in range(2)]
    writing: asyncio.Future[None] | None = None
    for index, start in enumerate(range(lba, lba + count, step)):
        blocks = min(step, lba + count - start)
        view = memoryview(buffers[index % 2])[: blocks * namespace.block_bytes]
        try:
            await namespace.read_into(start, view)
        except asyncio.CancelledError:
            if writing is not None:
                writing.cancel()
            raise
        except Exception:
            if writing is not None:  # the data read before the error belongs into the file
                with contextlib.suppress(OSError):
                    await writing
            raise
        if writing is not None:
            await writing
        writing = asyncio.ensure_future(sink.write(view[: min(len(view), length)]))
        length -= len(view)
        advance(len(view))
    if writing is not None:
        await writing


@opt.command("write")
@opt.controller_options
@subsystem.multipath_options("-c")
@opt.namespace_option
@start_option
@block_count_option
@blocks_option
@_size
@_data
@click.option("--force-unit-access", "--fua", "fua", is_flag=True, help="Force Unit Access.")
@opt.coroutine
async def write_command(
    nsid: int | None,
    start_block: int,
    block_count: int | None,
    blocks: int | None,
    data_size: int | None,
    path: str | None,
    fua: bool,
    **options: Any,
) -> None:
    """Write a file or stdin to logical blocks; the last block is filled up with zeroes."""
    with Source(path) as source:
        async with await subsystem.open_host(options) as controller:
            namespace = await opt.open_namespace(controller, nsid)
            count = range_blocks(namespace, block_count, blocks, data_size)
            length = data_size if data_size is not None else None if count is None else count * namespace.block_bytes
            if count is not None:
                check_range(namespace, start_block, count)
            available = source.size_bytes
            if length is not None and available is not None and available < length:
                raise ConfigurationError(f"{source.name} has {available} bytes; {length} were to be written")
            wanted = length if length is not None else available
            if wanted is not None and wanted > (namespace.size_blocks - start_block) * namespace.block_bytes:
                raise _too_long(namespace)
            with out.progress("write", wanted or 0) as advance:
                done = await _write_from(namespace, start_block, length, source, advance, fua=fua)
            if length is not None and done < length:
                raise ConfigurationError(f"the data ended after {done} bytes, which were written; {length} were wanted")
    used = -(-done // namespace.block_bytes)
    out.remark(f"wrote {done} bytes to {used} blocks from block {start_block} of namespace {namespace.nsid}")


def _too_long(namespace: Namespace) -> ConfigurationError:
    return ConfigurationError(
        f"the data is longer than the namespace, which ends at block {namespace.size_blocks - 1}: give a --data-size"
    )


async def _write_from(
    namespace: Namespace, start: int, length: int | None, source: Source, advance: Any, *, fua: bool
) -> int:
    """Write at most `length` bytes from block `start`; return how many were written. After an error a remark says
    how far the command came.
    """
    step = max(CHUNK_BYTES // namespace.block_bytes, 1) * namespace.block_bytes
    lba, done = start, 0

    def reading() -> asyncio.Future[bytes]:
        ahead = done + len(data)
        return asyncio.ensure_future(source.read(step if length is None else min(step, length - ahead)))

    data = b""
    try:
        data = await reading()
        while data:
            blocks = -(-len(data) // namespace.block_bytes)
            if lba + blocks > namespace.size_blocks:
                raise _too_long(namespace)
            following = reading()
            try:
                await namespace.write(lba, data.ljust(blocks * namespace.block_bytes, b"\0"), fua=fua)
            except BaseException:
                following.cancel()
                raise
            lba, done = lba + blocks, done + len(data)
            advance(len(data))
            data = b""
            data = await following
    except BaseException:
        if done:
            out.remark(f"stopped after {done} bytes, in {lba - start} blocks from block {start}")
        raise
    return done


COMMANDS = (read_command, write_command)
