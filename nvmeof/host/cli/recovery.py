"""Options of recovery, under nvme-cli's names, for the commands that keep a connection for long."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from nvmeof.cli.help import GroupedOption
from nvmeof.cli.types import SECONDS, Seconds
from nvmeof.host.options import RecoveryKeywords

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS: tuple[tuple[tuple[str, ...], Seconds, str], ...] = (
    (
        ("-c", "--reconnect-delay"),
        SECONDS,
        "Before each attempt.  [default: 10]",
    ),
    (("-l", "--ctrl-loss-tmo"), Seconds(-1), "Of attempts; -1: for ever.  [default: 600]"),
    (
        ("-F", "--fast_io_fail_tmo", "--fast-io-fail-tmo"),
        SECONDS,
        "Until commands that wait fail.",
    ),
    (("--quiesce-tmo",), SECONDS, "Until a lost write is sent again."),
)
NAMES = tuple(declarations[-1].removeprefix("--").replace("-", "_") for declarations, _, _ in _OPTIONS)


def recovery_options(*taken: str) -> Callable[[F], F]:
    """Add the options to a command; ``taken``: short forms that the command uses, as ``read`` does ``-c``."""

    def add(command: F) -> F:
        for declarations, kind, text in reversed(_OPTIONS):
            names = [name for name in declarations if name not in taken]
            command = click.option(
                *names, type=kind, metavar="SECONDS", help=text, cls=GroupedOption, group="Recovery"
            )(command)
        return command

    return add


def recovery_keywords(options: dict[str, Any]) -> RecoveryKeywords:
    """Return the recovery options that were given; without any, a lost connection is an error at once."""
    found: RecoveryKeywords = {}
    for name in NAMES:
        if options.get(name) is not None:
            found[name] = options[name]  # type: ignore[literal-required]
    return found
