"""Serving from the command line: start, say so, and stop at a signal."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import platform
import signal
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Final

import click

from nvmeof.aio import mdns
from nvmeof.cli import streams
from nvmeof.errors import NvmeofError
from nvmeof.target.cli.limits import raise_file_limit
from nvmeof.target.cli.options import Options, load, make_audit_log, make_configured, make_target
from nvmeof.target.cli.report import facts, remark, say, say_configured, warn
from nvmeof.target.cli.service import Service
from nvmeof.target.configuration.difference import apply, difference
from nvmeof.target.configuration.files import Loaded
from nvmeof.target.control import Control, ControlServer
from nvmeof.target.control.process import Hooks
from nvmeof.target.control.where import control_path
from nvmeof.target.core.audit import AuditEvent
from nvmeof.target.metrics import page
from nvmeof.target.metrics.server import MetricsServer, metrics_server
from nvmeof.target.server import Target

MDNS_HOST_CHARACTERS: Final = 40
"""Of the host's name in an instance name, which may have 63 bytes (RFC 6763, 4.1.1)."""

_AUDITED_CHARACTERS = 2000
"""Of what a reload has changed; the log has all of it."""
logger = logging.getLogger("nvmeof.target")


async def serve(options: Options) -> None:
    """Serve as `serve_until_stopped`, and tell a service manager about it."""
    with Service() as service:
        await serve_until_stopped(options, service)


async def serve_until_stopped(options: Options, service: Service) -> None:
    """Start, say so, and stop on SIGINT, SIGTERM or SIGHUP (a second one stops at once); with a file, SIGHUP reads it
    again, and with an audit log it opens that again."""
    if options.output == "json":
        streams.demand(streams.STDOUT)
    if options.mdns:
        mdns.check_available()
    options.inherited = tuple(service.ports())
    options.metrics = options.metrics or service.metrics_address()
    if options.metrics is not None:
        page.check_available()
    loaded = None if options.config is None else load(options)
    if loaded is not None and options.check:
        click.echo(f"{loaded.path}: good: {_counts(loaded)}")
        return
    audit = make_audit_log(options)
    target = make_target(options, audit) if loaded is None else make_configured(options, loaded, audit)
    raise_file_limit(target.config.max_connections)
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
            service.stopping()
            stopping.set()

    ending = [signal.SIGINT, signal.SIGTERM]
    reloads = None if loaded is None else Reloads(target, options, loaded, service)
    if reloads is not None or audit is not None:

        def hang_up() -> None:
            if audit is not None:
                audit.reopen()
            if reloads is not None:
                reloads.wanted()

        loop.add_signal_handler(signal.SIGHUP, hang_up)
    elif signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup has it ignored
        ending.append(signal.SIGHUP)
    control = None if options.control is None else _control(target, options.control, reloads)
    for number in ending:
        loop.add_signal_handler(number, stop, number)
    try:
        await target.start()
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise NvmeofError(f"{where}{error.strerror or error}") from error
    metrics: MetricsServer | None = None
    freeze_heap()
    try:
        if options.metrics is not None:
            metrics = await metrics_server(target, options.metrics)
        if control is not None:
            await control.start()
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
        service.started(_status(target))
        async with mdns.announced(_announcements(target)) if options.mdns else nullcontext():
            await stopping.wait()
    finally:
        if control is not None:
            await control.stop()
        if reloads is not None:
            await reloads.end()
        if metrics is not None:
            await metrics.stop()
        await target.stop()
        if audit is not None:
            audit.close()
    if target.unflushed:
        raise NvmeofError(f"{', '.join(target.unflushed)} could not be flushed: what was written last may be lost")
    logger.info("stopped")


def _control(target: Target, path: str, reloads: Reloads | None) -> ControlServer:
    """Return the control socket of a target. Raises ConfigurationError for a path that there is none for."""
    hooks = Hooks() if reloads is None else Hooks(reloads.path, reloads.reload, reloads.saved)
    return ControlServer(Control(target, hooks), control_path(path))


def _announcements(target: Target) -> list[mdns.MdnsService]:
    """Return what is announced: a discovery service for each TCP port that is listened on, at all of its addresses."""
    ports: dict[int, dict[str, None]] = {}
    for listener in [listener for port in target.ports.values() for listener in port.all_listeners]:
        address = listener.address
        ports.setdefault(address.port, {}).update(dict.fromkeys(mdns.addresses_of(address.host)))
    host = platform.node().partition(".")[0][:MDNS_HOST_CHARACTERS]
    return [mdns.MdnsService(f"nvmeof {host} {port}", tuple(addresses), port) for port, addresses in ports.items()]


def _status(target: Target) -> str:
    return f"{len(target.subsystems)} subsystems at {', '.join(map(str, target.addresses))}"


def _counts(loaded: Loaded) -> str:
    config = loaded.settings.config
    namespaces = sum(len(each.namespaces) for each in config.subsystems)
    counts = ((len(config.subsystems), "subsystem"), (namespaces, "namespace"), (len(config.ports), "port"))
    return ", ".join(f"{count} {word}{'' if count == 1 else 's'}" for count, word in counts)


class Reloads:
    """Reads the configuration file again at each SIGHUP, and when it is asked to, one after the other; what cannot be
    done changes nothing."""

    def __init__(self, target: Target, options: Options, loaded: Loaded, service: Service) -> None:
        self._service = service
        self._target = target
        self._options = options
        self._loaded = loaded
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._one = asyncio.Lock()

    @property
    def path(self) -> Path:
        """The absolute path of the file."""
        return self._loaded.path.absolute()

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
            self._service.reloading()
            try:
                said = await self.reload()
            except NvmeofError as error:
                logger.error("SIGHUP: %s", error)
                self._audit(False, str(error))
            else:
                self._audit(True, "; ".join(said))
            self._service.started(_status(self._target))

    def _audit(self, granted: bool, text: str) -> None:
        """Tell the audit log of a reload that a signal has asked for; one by the control is told there."""
        audit = self._target.audit
        if audit is not None:
            reason = text[:_AUDITED_CHARACTERS]
            audit(AuditEvent.ADMINISTRATION, granted=granted, peer="SIGHUP", verb="reload", reason=reason)

    async def reload(self) -> list[str]:
        """Read the file again and apply the difference to what it said before; return a sentence for each change.

        Raises ConfigurationError, with nothing changed.
        """
        async with self._one:
            loaded = await asyncio.to_thread(load, self._options)
            plan = difference(self._target.administration, self._loaded.settings, loaded.settings)
            said = await apply(plan)
            for line in said:
                logger.info("reload: %s", line)
            self._loaded = loaded
            logger.info("reload: %s was read again: %d changes", loaded.path, len(plan.steps))
            return said

    async def saved(self) -> None:
        """Take the file, which was written with the target's present state, as what was read last."""
        async with self._one:
            self._loaded = await asyncio.to_thread(load, self._options)


def freeze_heap() -> None:
    """Exclude the present objects from garbage collection: a full collection would stop the event loop for long."""
    gc.collect()
    gc.freeze()
