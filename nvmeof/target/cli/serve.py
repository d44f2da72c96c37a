"""Serving from the command line: start, say so, and stop at a signal."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import platform
import resource
import signal
import sys
from contextlib import nullcontext
from typing import Final

import click

from nvmeof.aio import mdns
from nvmeof.cli import streams
from nvmeof.errors import NvmeofError
from nvmeof.target.cli.options import Options, make_target
from nvmeof.target.cli.report import facts, remark, say, warn
from nvmeof.target.server import Target

_FILES_WANTED: Final = 65536
MDNS_HOST_CHARACTERS: Final = 40
"""Of the host's name in an instance name, which may have 63 bytes (RFC 6763, 4.1.1)."""

logger = logging.getLogger("nvmeof.target")


async def serve(options: Options) -> None:
    """Start, say so, and stop on SIGINT, SIGTERM or SIGHUP (a second one stops at once)."""
    if options.output == "json":
        streams.demand(streams.STDOUT)
    if options.mdns:
        mdns.check_available()
    target = make_target(options)
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    signals = 0

    def stop(number: signal.Signals) -> None:
        nonlocal signals
        signals += 1
        if signals > 1:
            logger.warning("%s again: stopping at once", number.name)
            target.stop_now()
        else:
            logger.info("%s: stopping", number.name)
            stopping.set()

    ending = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup has it ignored
        ending.append(signal.SIGHUP)
    for number in ending:
        loop.add_signal_handler(number, stop, number)
    try:
        await target.start()
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise NvmeofError(f"{where}{error.strerror or error}") from error
    freeze_heap()
    try:
        told = facts(target.administration.describe())
        try:
            if options.output == "json":
                click.echo(json.dumps(told))
            else:
                say(told)
            sys.stdout.flush()
        except OSError as error:
            streams.discard(streams.STDOUT)
            remark(f"what is served could not be said: {streams.sentence(error)}; serving all the same")
        warn(told)
        async with mdns.announced(_announcements(target)) if options.mdns else nullcontext():
            await stopping.wait()
    finally:
        await target.stop()
    if target.unflushed:
        raise NvmeofError(f"{', '.join(target.unflushed)} could not be flushed: what was written last may be lost")
    logger.info("stopped")


def _announcements(target: Target) -> list[mdns.MdnsService]:
    """Return what is announced: a discovery service for each TCP port that is listened on, at all of its addresses."""
    ports: dict[int, dict[str, None]] = {}
    for listener in [listener for port in target.ports.values() for listener in port.all_listeners]:
        address = listener.address
        ports.setdefault(address.port, {}).update(dict.fromkeys(mdns.addresses_of(address.host)))
    host = platform.node().partition(".")[0][:MDNS_HOST_CHARACTERS]
    return [mdns.MdnsService(f"nvmeof {host} {port}", tuple(addresses), port) for port, addresses in ports.items()]


def freeze_heap() -> None:
    """Exclude the present objects from garbage collection: a full collection would stop the event loop for long."""
    gc.collect()
    gc.freeze()


def raise_file_limit() -> None:
    """Raise the limit of open files to the hard limit, since each connection is a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES_WANTED if hard == resource.RLIM_INFINITY else min(_FILES_WANTED, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
