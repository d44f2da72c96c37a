"""Commands that move or change data: read, write, flush, write-zeroes, dsm."""

from __future__ import annotations

import asyncio
import sys
from contextlib import contextmanager
from typing import IO, Any, cast

import click

from nvmeof.errors import ConfigurationError
from nvmeof.host.cli import options as opt
from nvmeof.host.cli import output as out
from nvmeof.host.namespace import Namespace

CHUNK_BYTES = 8 << 20
"""How much is in memory at a time; one chunk is read while the one before is written."""
SHOWN_BYTES = 64 << 10
"""Up to this, what goes to a terminal is shown as a hex dump."""

_start = click.option("--start-block", type=opt.NUMBER, default=0, show_default=True, help="First logical block.")
_count = click.option("-c", "--block-count", type=opt.NUMBER, help="Number of blocks, 0's-based as nvme-cli has it.")
_blocks = click.option("--blocks", type=opt.NUMBER, help="Number of blocks, as people count.")
_size = click.option("-z", "--data-size", type=opt.BYTES, help="Size of the data in bytes: 4096, 4k, 1M.")
_data = click.option("-d", "--data", "path", type=click.Path(dir_okay=False), help="File.  [default: stdin or stdout]")


def _range_blocks(
    namespace: Namespace, block_count: int | None, blocks: int | None, data_size: int | None
) -> int | None:
    """How many blocks the options ask for; None where they say nothing."""
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


@contextmanager
def _opened(path: str | None, mode: str) -> Any:
    if path is None or path == "-":
        yield cast("IO[bytes]", sys.stdin.buffer if "r" in mode else sys.stdout.buffer)
        return
    with open(path, mode) as file:  # noqa: PTH123
        yield file


@click.command("read")
@opt.controller_options
@opt.namespace_option
@_start
@_count
@_blocks
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
    """Read logical blocks to a file or stdout, one block unless told otherwise; a hex dump on a terminal."""
    async with await opt.open_controller(options) as controller:
        namespace = await opt.open_namespace(controller, nsid)
        count = _range_blocks(namespace, block_count, blocks, data_size) or 1
        length = count * namespace.block_bytes if data_size is None else data_size
        if path is None and sys.stdout.isatty() and count * namespace.block_bytes <= SHOWN_BYTES:
            for line in out.hexdump((await namespace.read(start_block, count))[:length]):
                print(line)
            return
        with _opened(path, "wb") as file, out.progress("read", length) as advance:
            await _read_to(namespace, start_block, count, length, file, advance)
    out.remark(f"read {length} bytes from block {start_block} of namespace {namespace.nsid}")


async def _read_to(namespace: Namespace, lba: int, count: int, length: int, file: IO[bytes], advance: Any) -> None:
    step = max(CHUNK_BYTES // namespace.block_bytes, 1)
    buffers = [bytearray(min(step, count) * namespace.block_bytes) for _ in range(2)]
    writing: asyncio.Task[Any] | None = None
    try:
        for index, start in enumerate(range(lba, lba + count, step)):
            blocks = min(step, lba + count - start)
            view = memoryview(buffers[index % 2])[: blocks * namespace.block_bytes]
            await namespace.read_into(start, view)
            if writing is not None:
                await writing
            writing = asyncio.create_task(asyncio.to_thread(file.write, view[: min(len(view), length)]))
            length -= len(view)
            advance(len(view))
        if writing is not None:
            await writing
        await asyncio.to_thread(file.flush)
    finally:
        if writing is not None:
            await asyncio.wait([writing])


@click.command("write")
@opt.controller_options
@opt.namespace_option
@_start
@_count
@_blocks
@_size
@_data
@click.option("--force-unit-access", "--fua", "fua", is_flag=True, help="On the medium before the completion.")
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
    async with await opt.open_controller(options) as controller:
        namespace = await opt.open_namespace(controller, nsid)
        count = _range_blocks(namespace, block_count, blocks, data_size)
        length = data_size if data_size is not None else None if count is None else count * namespace.block_bytes
        with _opened(path, "rb") as file, out.progress("write", length or _file_size(file)) as advance:
            written = await _write_from(namespace, start_block, length, file, advance, fua=fua)
        if length is not None and written < length:
            raise ConfigurationError(f"the data ended after {written} bytes; {length} were to be written")
    used = -(-written // namespace.block_bytes)
    out.remark(f"wrote {written} bytes to {used} blocks from block {start_block} of namespace {namespace.nsid}")


def _file_size(file: IO[bytes]) -> int:
    try:
        position = file.tell()
        end = file.seek(0, 2)
        file.seek(position)
        return end - position
    except OSError:
        return 0


async def _write_from(
    namespace: Namespace, lba: int, length: int | None, file: IO[bytes], advance: Any, *, fua: bool
) -> int:
    step = max(CHUNK_BYTES // namespace.block_bytes, 1) * namespace.block_bytes
    end = namespace.size_blocks
    done = 0
    following = await asyncio.to_thread(_read_exactly, file, step if length is None else min(step, length))
    while following:
        data, done = following, done + len(following)
        padded = data.ljust(-(-len(data) // namespace.block_bytes) * namespace.block_bytes, b"\0")
        if lba + len(padded) // namespace.block_bytes > end:
            raise ConfigurationError(f"the data is longer than the namespace, which ends at block {end}")
        wanted = step if length is None else min(step, length - done)
        reading = asyncio.create_task(asyncio.to_thread(_read_exactly, file, wanted))
        try:
            await namespace.write(lba, padded, fua=fua)
        finally:
            following = await reading
        lba += len(padded) // namespace.block_bytes
        advance(len(data))
    return done


def _read_exactly(file: IO[bytes], length: int) -> bytes:
    """``length`` bytes, fewer only at the end of the file: pipes give less at a time."""
    parts = []
    while length > 0:
        part = file.read(length)
        if not part:
            break
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


@click.command("flush")
@opt.controller_options
@opt.namespace_option
@opt.coroutine
async def flush_command(nsid: int | None, **options: Any) -> None:
    """Bring all completed writes to the medium."""
    async with await opt.open_controller(options) as controller:
        namespace = await opt.open_namespace(controller, nsid)
        await namespace.flush()
    out.remark(f"flushed namespace {namespace.nsid}")


@click.command("write-zeroes")
@opt.controller_options
@opt.namespace_option
@_start
@_count
@_blocks
@click.option("--deac", is_flag=True, help="Deallocate the blocks where that reads as zeroes.")
@opt.coroutine
async def write_zeroes_command(
    nsid: int | None, start_block: int, block_count: int | None, blocks: int | None, deac: bool, **options: Any
) -> None:
    """Set logical blocks to zero without sending zeroes."""
    async with await opt.open_controller(options) as controller:
        namespace = await opt.open_namespace(controller, nsid)
        count = _range_blocks(namespace, block_count, blocks, None) or 1
        await namespace.write_zeroes(start_block, count, deallocate=deac)
    out.remark(f"zeroed {count} blocks from block {start_block} of namespace {namespace.nsid}")


@click.command("dsm")
@opt.controller_options
@opt.namespace_option
@click.option("--slbs", required=True, metavar="LIST", help="First blocks, separated by commas.")
@click.option("--blocks", "lengths", required=True, metavar="LIST", help="Lengths in blocks, separated by commas.")
@click.option("--ad", is_flag=True, required=True, help="Deallocate.")
@opt.coroutine
async def dsm_command(nsid: int | None, slbs: str, lengths: str, ad: bool, **options: Any) -> None:
    """Dataset Management: deallocate ranges."""
    try:
        starts, counts = ([int(item, 0) for item in text.split(",")] for text in (slbs, lengths))
    except ValueError:
        raise ConfigurationError("--slbs and --blocks take numbers separated by commas") from None
    if len(starts) != len(counts):
        raise ConfigurationError(f"{len(starts)} first blocks, but {len(counts)} lengths")
    async with await opt.open_controller(options) as controller:
        namespace = await opt.open_namespace(controller, nsid)
        await namespace.deallocate(zip(starts, counts, strict=True))
    out.remark(f"deallocated {sum(counts)} blocks in {len(counts)} ranges of namespace {namespace.nsid}")


COMMANDS = (read_command, write_command, flush_command, write_zeroes_command, dsm_command)
