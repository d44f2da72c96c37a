"""The verbs of the target as a whole: what it is, its configuration, its log, and its events."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Protocol

from nvmeof.errors import ConfigurationError
from nvmeof.target.configuration.files import write_configuration
from nvmeof.target.control.verbs import Facts, Table, Texts, Verb, VerbGroup, verb
from nvmeof.target.document import Document
from nvmeof.target.server import Target
from nvmeof.version import __version__

PROTOCOL: Final = 1
"""The version of the verbs: it counts up with a change that a client of the version before does not understand."""
EVENT_KINDS: Final = (
    "connected",
    "disconnected",
    "refused",
    "subsystem-added",
    "subsystem-removed",
    "hosts-changed",
    "namespace-added",
    "namespace-removed",
    "namespace-changed",
    "namespace-moved",
    "ana-changed",
    "port-added",
    "port-removed",
    "port-changed",
    "called",
)
"""The kinds of events; ``called`` is a verb that was called to change something."""
_LOGGER: Final = "nvmeof"
_SHOWN_CHARACTERS: Final = 200
"""The most of an argument that the log and events show."""

Level = Literal["debug", "info", "warning", "error"]


class Session(Protocol):
    """What a verb may ask of the connection that it is called by."""

    def watch(self, kinds: frozenset[str] | None) -> None:
        """Send events of these kinds (None: of all) from now on, in place of those before; an empty set: none."""
        ...


@dataclass(frozen=True, slots=True)
class Hooks:
    """What the program that runs the target knows of it.

    `config_path`: the file of its configuration, where `save` writes unless told otherwise. `reload` reads that file
    again and returns a sentence for each change. `saved` is called when the file was written. `restart` starts a new
    process that takes over, and returns who that is when it is ready.
    """

    config_path: Path | None = None
    reload: Callable[[], Awaitable[list[str]]] | None = None
    saved: Callable[[], Awaitable[None]] | None = None
    restart: Callable[[], Awaitable[Facts]] | None = None


class Process(VerbGroup):
    """The target as a whole."""

    def __init__(self, target: Target, hooks: Hooks, verbs: Callable[[], list[Verb]]) -> None:
        super().__init__(target)
        self._hooks = hooks
        self._verbs = verbs

    @verb("hello")
    async def hello(self) -> Facts:
        """Say what answers: the version of this protocol, of the package, and the process."""
        return {"protocol": PROTOCOL, "version": __version__, "pid": os.getpid(), "verbs": len(self._verbs())}

    @verb("verbs")
    async def verbs(self) -> Table:
        """List the verbs, with a description and the JSON Schema of the parameters of each."""
        return [each.described() for each in self._verbs()]

    @verb("status")
    async def status(self) -> Facts:
        """Show the target in numbers: how long it has run, and how many there are of what."""
        target = self._target
        started = target.registry.started_at
        subsystems = target.subsystems.values()
        return {
            "pid": os.getpid(),
            "version": __version__,
            "uptime_seconds": 0.0 if started is None else target.loop.time() - started,
            "time": time.time(),
            "subsystems": len(subsystems),
            "namespaces": sum(len(each.namespaces) for each in subsystems),
            "disabled": sum(len(each.disabled) for each in subsystems),
            "ports": len(target.ports),
            "controllers": sum(len(each.controllers) for each in subsystems),
            "discovery_controllers": len(target.registry.discovery.controllers),
            "connections": len(target.drivers),
            "memory_used_bytes": target.pool.used_bytes,
            "log_level": _level(),
        }

    @verb("log-level", changes=True)
    async def log_level(
        self, level: Annotated[Level | None, "the least that is logged; unchanged unless given"] = None
    ) -> Facts:
        """Change or show what is logged."""
        if level is not None:
            logging.getLogger(_LOGGER).setLevel(level.upper())
        return {"level": _level()}

    @verb("config")
    async def config(self) -> Document:
        """Show the configuration of what the target is now, as a configuration file has it, keys of hosts included."""
        return self._administration.save()

    @verb("save", changes=True)
    async def save(
        self,
        path: Annotated[str | None, "an absolute path; the file of --config unless given"] = None,
        form: Annotated[
            Literal["toml", "json", "nvmetcli"] | None, "the form; by the name of the file unless given"
        ] = None,
    ) -> Facts:
        """Write the configuration of what the target is now to a file. Returns what the form has no place for."""
        where = self._hooks.config_path if path is None else Path(path)
        if where is None:
            raise ConfigurationError("the target was started without --config: give the path of a file")
        if not where.is_absolute():
            raise ConfigurationError(f"the path of a file is absolute here, not {where}")
        remarks = await asyncio.to_thread(write_configuration, where, self._administration.save(), form)
        if where == self._hooks.config_path and self._hooks.saved is not None:
            await self._hooks.saved()
        return {"path": str(where), "left_out": remarks}

    @verb("reload", changes=True)
    async def reload(self) -> Texts:
        """Read the file of --config again and apply what has changed in it; when that fails, nothing is changed."""
        if self._hooks.reload is None:
            raise ConfigurationError("the target was started without --config: there is no file to read again")
        return await self._hooks.reload()

    @verb("restart", changes=True)
    async def restart(self) -> Facts:
        """Let a new process take over, with sockets, ramdisks and all else that is in memory; no connect is refused.

        Returns when the new process has read its configuration and is about to take over. When it cannot, nothing is
        changed. This connection ends then, and the new process has a socket at the same path.
        """
        if self._hooks.restart is None:
            raise ConfigurationError("this target is part of a program, which has no way to restart it")
        return await self._hooks.restart()

    @verb("watch")
    async def watch(
        self,
        kinds: Annotated[Texts | None, "kinds of events; all unless given, none for an empty list"] = None,
        session: Session | None = None,
    ) -> Facts:
        """Send events to this connection from now on: notifications of the method `event`.

        A client that does not read them is cut. Kinds: connected, disconnected, refused, subsystem-added,
        subsystem-removed, hosts-changed, namespace-added, namespace-removed, namespace-changed, namespace-moved,
        ana-changed, port-added, port-removed, port-changed, and called, which is a verb that changes something.
        """
        for each in kinds or ():
            if each not in EVENT_KINDS:
                raise ConfigurationError(f"there are no events {each!r}; there are {', '.join(EVENT_KINDS)}")
        if session is None:
            raise ConfigurationError("events go to connections: in a program, use target.registry.happenings.listen")
        session.watch(None if kinds is None else frozenset(kinds))
        return {"kinds": list(EVENT_KINDS if kinds is None else kinds)}


def _level() -> str:
    return logging.getLevelName(logging.getLogger(_LOGGER).getEffectiveLevel()).lower()


def masked(verb_: Verb, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call for the log and for events, without secrets."""
    return {
        name: "…" if name in verb_.secret else _short(value) for name, value in arguments.items() if name != "session"
    }


def _short(value: Any) -> Any:
    """Return a value as it is, or the beginning of its text where that is long."""
    text = str(value)
    return value if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"
