"""``cp``: copying between files, namespaces and the standard streams."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack, suppress
from typing import Any

import click

from nvmeof.cli.types import BYTES, Bytes, Number
from nvmeof.errors import ConfigurationError
from nvmeof.host.cli import options as opt
from nvmeof.host.cli import output as out
from nvmeof.host.cli.copying import SAVE_SECONDS, Copied, Copy, Job, State, verify
from nvmeof.host.cli.places import Destination, FilePlace, NamespacePlace, Place, open_source
from nvmeof.host.cli.subsystem import multipath_options, open_url
from nvmeof.host.config_files.saved import find_target, read_saved
from nvmeof.host.url import is_url

PIECE_MAX_BYTES = 64 << 20


def _is_target(text: str) -> bool:
    """Return whether SOURCE or DEST is a namespace: a URL, or the name of a saved connection."""
    return is_url(text) or ("/" not in text and text != "-" and text in read_saved())


async def _namespace(text: str, options: dict[str, Any]) -> NamespacePlace:
    url = find_target(text)
    host = await open_url(url, options)
    try:
        namespace = await opt.open_namespace(host, url.nsid)
        info = await host.identify()
    except BaseException:
        await host.disconnect()
        raise
    return NamespacePlace(f"namespace {namespace.nsid} of {host.options.subnqn}", host, namespace, info.oncs)


def _length(source: Place, target: Place, options: dict[str, Any]) -> tuple[int | None, int | None]:
    """Return the bytes to copy (None: until the source ends), and the room for them (None: no limit).

    Raises :class:`ConfigurationError`.
    """
    for place, offset in ((source, options["skip"]), (target, options["seek"])):
        if offset % place.block_bytes:
            raise ConfigurationError(f"{place.name} has blocks of {place.block_bytes} bytes: {offset} is no multiple")
        if offset and not place.seekable:
            raise ConfigurationError(f"{place.name} is read and written from its beginning: leave the offset out")
    length: int | None = options["size"]
    if source.size_bytes is not None:
        there = source.size_bytes - options["skip"]
        if there < 0 or (length is not None and length > there):
            wanted = options["skip"] + (length or 0)
            raise ConfigurationError(f"{source.name} has {source.size_bytes} bytes, fewer than {wanted}")
        length = there if length is None else length
    if length is not None and length % source.block_bytes:
        raise ConfigurationError(f"{source.name} has blocks of {source.block_bytes} bytes: {length} is no multiple")
    room = None if target.size_bytes is None or _grows(target) else target.size_bytes - options["seek"]
    if room is not None and length is not None and length > room:
        raise ConfigurationError(
            f"{target.name} has room for {max(room, 0)} bytes, and {length} were to be copied: give a --size"
        )
    return length, room


def _grows(target: Place) -> bool:
    return isinstance(target, FilePlace) and target.regular


class _Run:
    """One call of `cp`: its places and its progress."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.state = State.load(options["resume"]) if options["resume"] else None
        self.destination: Destination | None = None
        self.started = time.perf_counter()

    async def open(self, source: str, target: str, stack: AsyncExitStack) -> Job:
        """Open both places, the source first. Raises the error of a place that cannot be opened."""
        one = await _namespace(source, self.options) if _is_target(source) else open_source(source)
        stack.push_async_callback(one.close)
        known = None if self.state is None else self.state.partial
        if _is_target(target):
            other: Place = await _namespace(target, self.options)
        else:
            try:
                self.destination = Destination(target, partial=known)
            except FileNotFoundError as error:
                if known is None:
                    raise
                raise ConfigurationError(
                    f"{error.filename} is gone: remove {self.options['resume']} to start over"
                ) from None
            other = self.destination.place
        stack.push_async_callback(other.close)
        try:
            return self._job(one, other)
        except ConfigurationError:
            if self.destination is not None and known is None:
                self.destination.forget()
            raise

    def _job(self, one: Place, other: Place) -> Job:
        """Return what is to be copied between two open places. Raises :class:`ConfigurationError`."""
        if self.options["verify"] and not other.seekable:
            raise ConfigurationError(f"{other.name} cannot be read again: leave --verify out")
        if self.state is not None and not (one.seekable and other.seekable):
            raise ConfigurationError("a copy from or to a pipe cannot be resumed: leave --resume out")
        unit = max(one.block_bytes, other.block_bytes)
        piece = max(self.options["piece"] // unit * unit, unit)
        length, room = _length(one, other, self.options)
        return Job(
            one,
            other,
            self.options["skip"],
            self.options["seek"],
            length,
            piece,
            self.options["depth"],
            self.options["sparse"],
            room,
            {} if self.options["verify"] else None,
        )

    async def copy(self, job: Job) -> Copied:
        """Copy, and note the progress where the copy can be resumed."""
        start = 0
        if self.state is not None:
            facts = {
                "source": await job.source.identity(),
                "destination": await job.target.identity() if self.destination is None else self.destination.path,
                "skip": job.source_offset, "seek": job.target_offset, "size": job.length,
            }  # fmt: skip
            start = self.state.begin(facts)
            if start:
                out.remark(f"goes on at byte {start}")
        if isinstance(job.target, FilePlace) and job.length is not None and not start:
            await job.target.reserve(job.target_offset + job.length)
        with out.progress("copy", job.length) as advance:
            advance(start)
            copy = Copy(job, start, advance=advance)
            saver = asyncio.create_task(self._save_now_and_then(copy)) if self.state is not None else None
            try:
                copied = await copy.run()
                await job.target.flush() if job.target.seekable else None
            except BaseException:
                await self._stopped(copy)
                raise
            finally:
                if saver is not None:
                    saver.cancel()
                    with suppress(asyncio.CancelledError):
                        await saver
        return copied

    async def _save_now_and_then(self, copy: Copy) -> None:
        while True:
            await asyncio.sleep(SAVE_SECONDS)
            await self._save(copy)

    async def _save(self, copy: Copy) -> None:
        assert self.state is not None
        done = copy.progress.mark  # before the flush: what is done now will be on the medium
        await copy.job.target.flush()
        self.state.save(done, None if self.destination is None else self.destination.partial)

    async def _stopped(self, copy: Copy) -> None:
        """Report how far the copy came, and any destination that is left half-written."""
        done, length = copy.progress.mark, copy.job.length
        where = ""
        if self.destination is not None and self.destination.partial is not None:
            if not copy.copied.done_bytes and self.state is None:
                self.destination.forget()
                return
            where = f", which are in {self.destination.partial}; {self.destination.path} is unchanged"
        if self.state is not None:
            with suppress(Exception):
                await self._save(copy)
                where += f"; the same command with --resume {self.state.path} goes on there"
        if copy.copied.done_bytes and copy.job.target.seekable:
            total = "" if length is None else f" of {length}"
            out.remark(f"stopped after {done}{total} bytes{where}")

    async def finish(self, job: Job, copied: Copied) -> None:
        """Verify if asked to, give the file its name, and remove the state."""
        if self.options["verify"]:
            try:
                with out.progress("verify", copied.end) as advance:
                    await verify(job, copied.end, advance=advance)
            except BaseException:
                if self.destination is not None and self.destination.partial is not None:
                    out.remark(f"the copy is in {self.destination.partial}; {self.destination.path} is unchanged")
                raise
        if self.destination is not None:
            if isinstance(job.target, FilePlace) and self.destination.partial is not None:
                await job.target.reserve(job.target_offset + copied.end)
            self.destination.complete()
        if self.state is not None:
            self.state.remove()

    def tell(self, job: Job, copied: Copied, output: str) -> None:
        """Print what was done."""
        seconds = time.perf_counter() - self.started
        if output == "json":
            out.print_json(
                {
                    "source": job.source.name,
                    "destination": job.target.name,
                    "bytes": copied.done_bytes,
                    "data_bytes": copied.data_bytes,
                    "hole_bytes": copied.hole_bytes,
                    "seconds": round(seconds, 3),
                    "bytes_per_second": round(copied.done_bytes / seconds) if seconds else 0,
                    "verified": self.options["verify"],
                }
            )
            return
        parts = [f"copied {copied.done_bytes} bytes from {job.source.name} to {job.target.name}"]
        if copied.hole_bytes:
            parts.append(f"{copied.hole_bytes} of them holes")
        if self.options["verify"]:
            parts.append("verified")
        rate = out.size(copied.done_bytes / seconds) if seconds else "0 B"
        out.remark(f"{', '.join(parts)}; {seconds:.2f} s, {rate}/s")
        rest = copied.end % job.target.block_bytes
        if rest:
            out.remark(f"the last block was filled up with {job.target.block_bytes - rest} zeroes")


@opt.command("cp")
@click.argument("source", shell_complete=opt.complete_target)
@click.argument("dest", shell_complete=opt.complete_target)
@opt.url_options
@multipath_options()
@click.option("-z", "--size", type=BYTES, metavar="SIZE", help="Bytes to copy.  [default: all of SOURCE]")
@click.option("--skip", type=BYTES, default=0, metavar="SIZE", help="Offset in SOURCE.")
@click.option("--seek", type=BYTES, default=0, metavar="SIZE", help="Offset in DEST.")
@click.option(
    "--piece", type=Bytes(PIECE_MAX_BYTES), default=1 << 20, metavar="SIZE", help="Bytes per piece.  [default: 1M]"
)
@click.option(
    "-d", "--depth", type=Number(1, 1024), default=8, show_default=True, metavar="N", help="Pieces at a time."
)
@click.option("--sparse/--no-sparse", default=True, help="Leave holes and zeroes out.  [default: --sparse]")
@click.option("--verify", is_flag=True, help="Read DEST again, and compare.")
@click.option(
    "--resume", metavar="FILE", type=click.Path(dir_okay=False), help="Store the progress in FILE, and resume there."
)
@opt.output_option
@opt.coroutine
async def cp_command(source: str, dest: str, output: str, **options: Any) -> None:
    """Copy between files, namespaces and standard streams.

    SOURCE and DEST: a file, - for stdin or stdout, a URL (nvme+mptcp://HOST/NQN?nsid=1), or a saved connection.
    A file of a saved connection's name is ./NAME. DEST takes its name when all of it is there.
    """
    if source == dest:
        raise ConfigurationError(f"{source} would be copied onto itself")
    run = _Run(options)
    async with AsyncExitStack() as stack:
        job = await run.open(source, dest, stack)
        copied = await run.copy(job)
        await run.finish(job, copied)
    run.tell(job, copied, output if dest != "-" else "normal")


COMMANDS = (cp_command,)
