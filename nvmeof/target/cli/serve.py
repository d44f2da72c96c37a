"""Serving from the command line: start, say so, and stop at a signal."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import platform
import signal
import sys
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from nvmeof.aio import mdns
from nvmeof.cli import streams
from nvmeof.errors import ConfigurationError, NvmeofError
from nvmeof.size_text import format_size
from nvmeof.target.cli.limits import raise_file_limit
from nvmeof.target.cli.options import Options, load, make_audit_log, make_configured, make_target
from nvmeof.target.cli.reloads import Reloads
from nvmeof.target.cli.report import facts, remark, say, say_configured, warn
from nvmeof.target.cli.restart import Predecessor, Restarts, Successor
from nvmeof.target.cli.service import Service
from nvmeof.target.configuration.files import Loaded
from nvmeof.target.configuration.merge import merged, plain_document
from nvmeof.target.document import Document, TargetSettings, from_document
from nvmeof.target.handover import Handover
from nvmeof.target.server import Target
from nvmeof.target.storage.handed_over import copied_bytes
from nvmeof.transport import base
from nvmeof.transport.service_manager import InheritedSocket

if TYPE_CHECKING:  # what is asked for is imported then: the start of others does not wait for it
    from nvmeof.target.control import ControlServer
    from nvmeof.target.metrics.server import MetricsServer

MDNS_HOST_CHARACTERS: Final = 40
"""Of the host's name in an instance name, which may have 63 bytes (RFC 6763, 4.1.1)."""
RESTART_DRAIN_SECONDS: Final = 2.0
"""How long a restart waits for commands in progress."""

logger = logging.getLogger("nvmeof.target")


async def serve(options: Options) -> None:
    """Serve as `Serving`, and tell a service manager about it. A restart that fails after it has handed over is served
    here again."""
    with Service() as service:
        if options.output == "json":
            streams.demand(streams.STDOUT)
        if options.mdns:
            mdns.check_available()
        options.inherited = tuple(service.ports())
        options.metrics = options.metrics or service.metrics_address()
        if options.metrics is not None:
            from nvmeof.target.metrics import page

            page.check_available()
        predecessor = Predecessor.from_environment()
        try:
            loaded = None if options.config is None else load(options)
            if loaded is not None and options.check:
                click.echo(f"{loaded.path}: good: {_counts(loaded)}")
                return
            handover: Handover | None = None
            if predecessor is not None:
                await predecessor.prepare(partial(served_settings, loaded))
                handover = await predecessor.take()
            serving = Serving(options, service, loaded, predecessor, handover)
        except NvmeofError as error:
            if predecessor is not None:
                predecessor.failed(error)
            raise
        while (taken_back := await serving.run()) is not None:
            serving = Serving(options, service, serving.loaded, None, taken_back)


def served_settings(loaded: Loaded | None, left: Document) -> TargetSettings:
    """Return what a process serves that takes over: what was served last, with what the file says otherwise than when
    it was read last. `left`: `document` and `file`, as `Serving` writes them. Raises `ConfigurationError`."""
    document: Document = left["document"]
    if loaded is not None and left["file"] is not None:
        document = merged(document, left["file"], plain_document(loaded.settings))
    settings = from_document(document)
    for port in settings.config.ports:
        base.get(port.transport)
    return settings


class Serving:
    """A target from its start to its stop, or until another process has taken over.

    `loaded`: what its file says; None: there is none. `predecessor` and `handover`: the process before, and what it has
    left; without a predecessor it is what this process takes back. SIGINT, SIGTERM and SIGHUP stop it (a second one at
    once); with a file, SIGHUP reads it again, and with an audit log it opens that again; SIGUSR2 restarts it.
    """

    def __init__(
        self,
        options: Options,
        service: Service,
        loaded: Loaded | None,
        predecessor: Predecessor | None,
        handover: Handover | None,
    ) -> None:
        self._options = options
        self._service = service
        self._predecessor = predecessor
        self._handover = handover
        self._audit = audit = make_audit_log(options)
        if handover is not None:
            options.metrics = handover.extra["metrics"]
            left = {"document": handover.document, "file": handover.extra["file"]}
            self.target = make_configured(options, served_settings(loaded, left), audit, handover)
        elif loaded is None:
            self.target = make_target(options, audit)
        else:
            self.target = make_configured(options, loaded.settings, audit)
        self._reloads = None if loaded is None else Reloads(self.target, options, loaded, service, _status)
        self._restarts = Restarts(service.environment(), self._running)
        self._control = None if options.control is None else self._control_at(options.control)
        self._metrics: MetricsServer | None = None
        self._stopping = asyncio.Event()
        self._signals = 0

    @property
    def loaded(self) -> Loaded | None:
        """What the file said when it was read last."""
        return None if self._reloads is None else self._reloads.loaded

    # -- from the start to the end -------------------------------------------------------------------------------

    async def run(self) -> Handover | None:
        """Serve to the end. Returns what this process has to serve on with, when another could not take it over.

        Raises `NvmeofError` for what cannot be served, and for storage that could not be flushed at the end.
        """
        raise_file_limit(self.target.config.max_connections)
        self._listen_to_signals()
        successor: Successor | None = None
        handover: Handover | None = None
        await self._start()
        try:
            await self._begin()
            async with mdns.announced(_announcements(self.target)) if self._options.mdns else nullcontext():
                successor = await self._restarts.wait(self._stopping)
        finally:
            sockets = [] if self._metrics is None or successor is None else self._metrics.handed_over()
            await self._end_beside()
            if successor is None:
                await self.target.stop()
            else:
                handover = await self._hand_over(sockets)
            if self._audit is not None:
                self._audit.close()
        if successor is not None and handover is not None:
            return await self._give(successor, handover)
        if self.target.unflushed:
            raise NvmeofError(
                f"{', '.join(self.target.unflushed)} could not be flushed: what was written last may be lost"
            )
        logger.info("stopped")
        return None

    async def _start(self) -> None:
        """Open everything."""
        try:
            await self.target.start()
        except (OSError, NvmeofError) as error:
            if self._predecessor is not None:
                self._predecessor.failed(error)
            if isinstance(error, NvmeofError):
                raise
            where = f"{error.filename}: " if error.filename else ""
            raise NvmeofError(f"{where}{error.strerror or error}") from error
        freeze_heap()

    async def _begin(self) -> None:
        """Serve metrics and control, take over where there is something to take over, and say what is served."""
        options, target = self._options, self.target
        try:
            if options.metrics is not None:
                from nvmeof.target.metrics.server import metrics_server

                self._metrics = await metrics_server(target, options.metrics)
            if self._control is not None:
                await self._control.start()
        except NvmeofError as error:
            if self._predecessor is not None:
                self._predecessor.failed(error)
            raise
        if self._handover is None:
            self._say()
        else:
            if self._predecessor is not None:
                await self._predecessor.opened()
            target.accept()
            self._handover.close()
            logger.info("process %d serves %s", os.getpid(), _status(target))
        if self._reloads is not None:
            self._reloads.started()
        if self._predecessor is not None:
            await self._predecessor.released()
        self._service.started(_status(target))

    def _say(self) -> None:
        """Say on standard output what is served."""
        described = self.target.administration.describe()
        told = facts(described) if self._reloads is None else described
        try:
            if self._options.output == "json":
                click.echo(json.dumps(told))
            elif self._reloads is None:
                say(told)
            else:
                say_configured(told)
            sys.stdout.flush()
        except OSError as error:
            streams.discard(streams.STDOUT)
            remark(f"what is served could not be said: {streams.sentence(error)}; serving all the same")
        if self._reloads is None:
            warn(told)

    async def _end_beside(self) -> None:
        """End what is beside the target."""
        if self._control is not None:
            await self._control.stop()
        await self._restarts.end()
        if self._reloads is not None:
            await self._reloads.end()
        if self._metrics is not None:
            await self._metrics.stop()

    # -- restarts ------------------------------------------------------------------------------------------------

    def _running(self) -> Document:
        """Return what the next process has to check. Raises `ConfigurationError` where none can take over."""
        check_memory(self.target)
        file = None if self._reloads is None else self._reloads.document
        return {"document": self.target.administration.save(), "file": file}

    async def _hand_over(self, sockets: list[InheritedSocket]) -> Handover:
        try:
            handover = await self.target.hand_over(RESTART_DRAIN_SECONDS)
        except BaseException:
            await self.target.stop()
            raise
        handover.sockets += sockets
        handover.extra = {
            "file": None if self._reloads is None else self._reloads.document,
            "metrics": None if self._metrics is None else str(self._metrics.address),
        }
        return handover

    async def _give(self, successor: Successor, handover: Handover) -> Handover | None:
        """Let the next process take over; return what this one has to serve on with if it has not."""
        if await successor.take(handover):
            self._service.main_process(successor.pid)
            successor.release()
            handover.close()
            handover.close_sockets()
            logger.info("process %d has taken over; process %d ends", successor.pid, os.getpid())
            return None
        if self._stopping.is_set():
            logger.info("stopped")
            return None
        return handover

    # -- signals -------------------------------------------------------------------------------------------------

    def _listen_to_signals(self) -> None:
        loop = asyncio.get_running_loop()
        ending = [signal.SIGINT, signal.SIGTERM]
        if self._reloads is not None or self._audit is not None:
            loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        elif signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup has it ignored
            ending.append(signal.SIGHUP)
        for number in ending:
            loop.add_signal_handler(number, self._stop, number)
        loop.add_signal_handler(signal.SIGUSR2, self._restarts.wanted)

    def _hang_up(self) -> None:
        if self._audit is not None:
            self._audit.reopen()
        if self._reloads is not None:
            self._reloads.wanted()

    def _stop(self, number: signal.Signals) -> None:
        if self._restarts.handing_over:
            if number is signal.SIGINT:
                logger.warning("SIGINT: another process is taking over: end that one")
            else:
                self._stopping.set()
                self._restarts.terminate()
            return
        if number is signal.SIGINT and self._restarts.give_up(number.name):
            return
        self._signals += 1
        if self._signals > 1:
            logger.warning("%s again: stopping at once", number.name)
            self.target.stop_now()
        else:
            logger.info("%s: stopping", number.name)
            self._service.stopping()
            self._stopping.set()

    def _control_at(self, path: str) -> ControlServer:
        """Return the control socket. Raises `ConfigurationError` for a path that there is none for."""
        from nvmeof.target.control import Control, ControlServer
        from nvmeof.target.control.process import Hooks
        from nvmeof.target.control.where import control_path

        reloads, restart = self._reloads, self._restarts.restart
        hooks = Hooks(restart=restart)
        if reloads is not None:
            hooks = Hooks(reloads.path, reloads.reload, reloads.saved, restart)
        return ControlServer(Control(self.target, hooks), control_path(path))


def check_memory(target: Target) -> None:
    """Raise `ConfigurationError` when there is not the memory to copy the ramdisks that have to be copied."""
    needed = 0
    for subsystem in target.subsystems.values():
        for namespace in (*subsystem.namespaces.values(), *subsystem.disabled.values()):
            needed += copied_bytes(namespace.backend)
    if not needed:
        return
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text().split("MemAvailable:", 1)[1].split()
        available = int(lines[0]) << 10
    if needed > available:
        raise ConfigurationError(
            f"{format_size(needed)} of ramdisks have to be copied, and {format_size(available)} of memory are free: "
            "make ramdisks that are handed over without a copy, with ramdisk:SIZE,keep or --keep-ramdisks"
        )
    logger.info("restart: %s of ramdisks are copied, for want of `keep`: hosts wait for that", format_size(needed))


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


def freeze_heap() -> None:
    """Exclude the present objects from garbage collection: a full collection would stop the event loop for long."""
    gc.collect()
    gc.freeze()
