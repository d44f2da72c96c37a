"""Calls of a target's verbs from a command line: which socket, how long, and how Ctrl-C ends them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine, Mapping
from typing import Any, Final, TypeVar

import click
from click.shell_completion import CompletionItem

from nvmeof.cli import interrupts
from nvmeof.target.control import ControlClient
from nvmeof.target.control.where import VARIABLE, control_path

T = TypeVar("T")
PROGRAM: Final = "nvmeof-target"
_COMPLETION_SECONDS: Final = 1.0
_LISTS: Final[Mapping[str, tuple[str, str]]] = {
    "subnqn": ("subsystem.list", "nqn"),
    "nqn": ("subsystem.list", "nqn"),
    "nsid": ("namespace.list", "nsid"),
    "portid": ("port.list", "portid"),
    "cntlid": ("connection.list", "cntlid"),
}
"""By parameter, the verb that lists its values, and the field of them."""


def client(ctx: click.Context | None = None) -> ControlClient:
    """Return a client for the socket that the command line names. Raises ConfigurationError where there is none."""
    at: click.Context | None = ctx or click.get_current_context()
    while at is not None and "socket" not in at.params:
        at = at.parent
    given: str | None = None if at is None else at.params["socket"]
    return ControlClient(control_path(given or os.environ.get(VARIABLE)))


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine; Ctrl-C ends it in order."""
    return interrupts.run(PROGRAM, coroutine, asyncio.run)


async def call(to: ControlClient, verb: str, params: Mapping[str, Any]) -> Any:
    """Connect, call one verb, and return its result."""
    async with to:
        return await to.call(verb, params)


def complete(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the values that a running target has for a parameter; none where no target answers at once."""
    listed = _LISTS.get(parameter.name or "")
    if listed is None:
        return []
    verb, field = listed
    try:
        values = asyncio.run(asyncio.wait_for(call(client(ctx), verb, {}), _COMPLETION_SECONDS))
    except Exception:  # whatever is wrong, a shell completes nothing
        return []
    texts = dict.fromkeys(str(each[field]) for each in values if each.get(field) is not None)
    return [CompletionItem(text) for text in texts if text.startswith(incomplete)]
