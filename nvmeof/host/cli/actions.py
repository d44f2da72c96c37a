"""Commands that do one thing to a namespace or a controller and report it: each is a row, not a function."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import click

from nvmeof.host.cli import options as opt
from nvmeof.host.cli import output as out
from nvmeof.host.cli.structures import Asked, Option
from nvmeof.host.cli.subsystem import multipath_options, open_host
from nvmeof.host.client import HostController

Outcome: TypeAlias = str | tuple[str, dict[str, Any]]
"""What was done, as a sentence; or with what ``-o json`` prints of it."""


@dataclass(frozen=True, slots=True)
class Action:
    """A row: a command that does one thing."""

    name: str
    help: str
    run: Callable[[Asked], Awaitable[Outcome]]
    options: tuple[Option, ...] = ()
    namespace: bool = True
    """It is done to one namespace, ``-N``, over any of its paths; otherwise to a controller."""
    taken: tuple[str, ...] = ()
    """Short forms of its options that recovery has otherwise."""

    def command(self) -> click.Command:
        """Return the command."""

        async def callback(output: str = "normal", nsid: int | None = None, **options: Any) -> None:
            opened = await (open_host(options) if self.namespace else opt.open_controller(options))
            async with opened as host:
                namespace = await opt.open_namespace(host, nsid) if self.namespace else None
                # a row for one path has a controller, the others use their namespace only
                asked = Asked(host if isinstance(host, HostController) else None, namespace, options)  # type: ignore[arg-type]
                if not self.namespace:
                    asked.options["nsid"] = nsid
                outcome = await self.run(asked)
            tell(outcome, output)

        callback.__doc__ = self.help
        made: Callable[..., Any] = opt.coroutine(callback)
        shared = (multipath_options(*self.taken), opt.namespace_option) if self.namespace else ()
        for option in reversed((*self.options, opt.controller_options, *shared, opt.output_option)):
            made = option(made)
        return opt.command(self.name)(made)


def tell(outcome: Outcome, output: str) -> None:
    """Print what was done: a sentence on stderr, or the data on stdout."""
    text, data = (outcome, {}) if isinstance(outcome, str) else outcome
    if output == "json":
        out.print_json(data)
    elif data:
        print(text)
    else:
        out.remark(text)
