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
from nvmeof.target.cli.options import Options, load, make_audit_log, make_configured, make_target
from nvmeof.target.cli.report import facts, remark, say, say_configured, warn
from nvmeof.target.configuration.difference import apply, difference
from nvmeof.target.configuration.files import Loaded
from nvmeof.target.server import Target

_FILES_WANTED: Final = 65536
MDNS_HOST_CHARACTERS: Final = 40
"""Of the host's name in an instance name, which may have 63 bytes (RFC 6763, 4.1.1)."""

logger = logging.getLogger("nvmeof.target")


async def serve(options: Options) -> None:
    """Start, say so, and stop on SIGINT, SIGTERM or SIGHUP (a second one stops at once); with a file, SIGHUP reads it
    again, and with an audit log it opens that again."""
    if options.output == "json":
        streams.demand(streams.STDOUT)
    if options.mdns:
        mdns.check_available()
    loaded = None if options.config is None else load(options)
    if loaded is not None and options.check:
        click.echo(f"{loaded.path}: good: {_counts(loaded)}")
        return
    audit = make_audit_log(options)
    target = make_target(options, audit) if loaded is None else make_configured(options, loaded, audit)
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
    reloads = None if loaded is None else Reloads(target, options, loaded)
    if reloads is not None or audit is not None:

        def hang_up() -> None:
            if audit is not None:
                audit.reopen()
            if reloads is not None:
                reloads.wanted()

        loop.add_signal_handler(signal.SIGHUP, hang_up)
    elif signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup has it ignored
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
        described = target.administration.describe()
        told = facts(described) if loaded is None else described
        try:
            if options.output == "json":
                click.echo(json.dumps(told))
            elif loaded is None:
                say(told)
            else:
                say_configured(told)
            sys.stdout.flush()
        except OSError as error:
            streams.discard(streams.STDOUT)
            remark(f"what is served could not be said: {streams.sentence(error)}; serving all the same")
        if loaded is None:
            warn(told)
        if reloads is not None:
            reloads.started()
        async with mdns.announced(_announcements(target)) if options.mdns else nullcontext():
            await stopping.wait()
    finally:
        if reloads is not None:
            await reloads.end()
        await target.stop()
        if audit is not None:
            audit.close()
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


def _counts(loaded: Loaded) -> str:
    config = loaded.settings.config
    namespaces = sum(len(each.namespaces) for each in config.subsystems)
    counts = ((len(config.subsystems), "subsystem"), (namespaces, "namespace"), (len(config.ports), "port"))
    return ", ".join(f"{count} {word}{'' if count == 1 else 's'}" for count, word in counts)


class Reloads:
    """Reads the configuration file again at each SIGHUP, one after the other; what cannot be done changes nothing."""

    def __init__(self, target: Target, options: Options, loaded: Loaded) -> None:
        self._target = target
        self._options = options
        self._loaded = loaded
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def wanted(self) -> None:
        """Read the file again when the target has started, and the reload before has ended."""
        self._wanted.set()

    def started(self) -> None:
        """Begin to look for signals."""
        self._task = asyncio.create_task(self._run())

    async def end(self) -> None:
        """Read no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            try:
                await self._reload()
            except NvmeofError as error:
                logger.error("SIGHUP: %s", error)

    async def _reload(self) -> None:
        loaded = await asyncio.to_thread(load, self._options)
        plan = difference(self._target.administration, self._loaded.settings, loaded.settings)
        for line in await apply(plan):
            logger.info("SIGHUP: %s", line)
        self._loaded = loaded
        logger.info("SIGHUP: %s was read again: %d changes", loaded.path, len(plan.steps))


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
