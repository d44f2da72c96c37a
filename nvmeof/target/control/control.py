"""All verbs of a target: as methods for a program, and by their names for a socket."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

from nvmeof.errors import ConfigurationError, LocalProtocolError, NvmeofError
from nvmeof.target.control.connections import Connections, Counters
from nvmeof.target.control.jsonrpc import Code, RpcError
from nvmeof.target.control.namespaces import Namespaces
from nvmeof.target.control.ports import Ana, Paths, Ports, Referrals
from nvmeof.target.control.process import Hooks, Process, Session, masked
from nvmeof.target.control.schema import ArgumentError, bind
from nvmeof.target.control.subsystems import Hosts, Subsystems
from nvmeof.target.control.verbs import Verb, VerbGroup
from nvmeof.target.core.audit import AuditEvent
from nvmeof.target.server import Target

logger = logging.getLogger("nvmeof.target.control")

GROUPS: Final[tuple[type[VerbGroup], ...]] = (
    Process, Subsystems, Namespaces, Hosts, Ports, Ana, Paths, Referrals, Connections, Counters,
)  # fmt: skip
_MESSAGE_CHARACTERS: Final = 1000


def all_verbs() -> list[Verb]:
    """Return the verbs, in the order of reading; no target is needed."""
    return [verb for group in GROUPS for verb, _ in group.own_verbs().values()]


class Control:
    """The verbs of a target, in groups: ``await Control(target).namespaces.add("ramdisk:64M", nsid=7)``.

    They take effect for hosts at once. All raise `ConfigurationError` for an object that does not exist or a value that
    cannot be used, with nothing changed; `LocalProtocolError` before the target's start; `OSError` and `TransportError`
    for what the operating system does not allow. `hooks`: what the program that runs the target knows of it.
    """

    def __init__(self, target: Target, hooks: Hooks | None = None) -> None:
        self.target = target
        self.process = Process(target, hooks or Hooks(), lambda: list(self.verbs.values()))
        self.subsystems = Subsystems(target)
        self.namespaces = Namespaces(target)
        self.hosts = Hosts(target)
        self.ports = Ports(target)
        self.ana = Ana(target)
        self.paths = Paths(target)
        self.referrals = Referrals(target)
        self.connections = Connections(target)
        self.counters = Counters(target)
        groups: list[VerbGroup] = [
            self.process, self.subsystems, self.namespaces, self.hosts, self.ports, self.ana, self.paths,
            self.referrals, self.connections, self.counters,
        ]  # fmt: skip
        self._methods = {
            name: (verb, getattr(group, attribute))
            for group in groups
            for name, (verb, attribute) in type(group).own_verbs().items()
        }

    @property
    def verbs(self) -> dict[str, Verb]:
        """The verbs by name."""
        return {name: verb for name, (verb, _) in self._methods.items()}

    async def call(
        self,
        name: str,
        params: Mapping[str, Any] | Sequence[Any] = (),
        *,
        session: Session | None = None,
        caller: str = "",
    ) -> Any:
        """Call a verb by its name, with arguments in the types of JSON; return its result in those types.

        `session`: the connection that it came by. `caller`: who asked, for the log. Raises `RpcError`, whatever goes
        wrong.
        """
        found = self._methods.get(name)
        if found is None:
            raise RpcError(Code.METHOD_NOT_FOUND, f"there is no verb {ascii(name)[:60]}; the verb `verbs` lists them")
        verb, method = found
        try:
            arguments = bind(verb.parameters, params)
        except ArgumentError as error:
            raise RpcError(Code.INVALID_PARAMS, f"{name}: {error}") from None
        if verb.takes_session:
            arguments["session"] = session
        try:
            result = await _executed(name, method, arguments)
        except RpcError as error:
            self._audit(verb, arguments, caller, error)
            raise
        except asyncio.CancelledError:
            self._audit(verb, arguments, caller, RpcError(Code.FAILED, "it was given up before its end"))
            raise
        if verb.changes:
            said = masked(verb, arguments)
            logger.info("%s%s %s", f"{caller}: " if caller else "", name, said)
            self._audit(verb, arguments, caller)
            self.target.registry.happenings.tell("called", verb=name, params=said, caller=caller)
        return result

    def _audit(self, verb: Verb, arguments: dict[str, Any], caller: str, error: RpcError | None = None) -> None:
        """Tell the audit log of a call that changes the target; without secrets. An error's reason may name a file,
        and what it was given that was no secret."""
        audit = self.target.audit
        if audit is None or not verb.changes:
            return
        who, params = caller or "this program", json.dumps(masked(verb, arguments), default=str)
        if error is None:
            audit(AuditEvent.ADMINISTRATION, granted=True, peer=who, verb=verb.name, params=params)
            return
        reason = "not said: it was given secrets" if verb.secret & set(arguments) else error.message
        audit(
            AuditEvent.ADMINISTRATION,
            granted=False,
            peer=who,
            verb=verb.name,
            params=params,
            code=error.code,
            reason=reason,
        )


async def _executed(name: str, method: Callable[..., Awaitable[Any]], arguments: dict[str, Any]) -> Any:
    """Return what a verb returns. Raises `RpcError`, whatever goes wrong."""
    try:
        return await method(**arguments)
    except (NvmeofError, OSError) as error:
        raise _told(error) from error
    except Exception as error:  # a defect: the caller gets a sentence, and the target goes on
        logger.error("%s failed: %s: %s", name, type(error).__name__, error)
        logger.debug("where that happened", exc_info=error)
        text = f"{name} failed by a defect of the target: {type(error).__name__}: {error}"
        raise RpcError(Code.INTERNAL_ERROR, _line(text)) from error


def _told(error: NvmeofError | OSError) -> RpcError:
    if isinstance(error, ConfigurationError):
        code = Code.CONFIGURATION
    elif isinstance(error, LocalProtocolError):
        code = Code.STATE
    else:
        code = Code.FAILED
    text = str(error)
    if isinstance(error, OSError) and not isinstance(error, NvmeofError):
        where = f"{error.filename}: " if error.filename else ""
        text = f"{where}{error.strerror or error}"
    return RpcError(code, _line(text), {"type": type(error).__name__})


def _line(text: str) -> str:
    """Return a message as one printable line, and not longer than a page: it may repeat what a client sent."""
    shown = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text[:_MESSAGE_CHARACTERS])
    return shown if len(text) <= _MESSAGE_CHARACTERS else f"{shown}…"
