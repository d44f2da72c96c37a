"""What the programs of this package do with an error: one sentence on stderr, and an exit code.

0 when all went well, 1 when something could not be done, 2 for wrong usage, 130 when SIGINT ended it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import click

from nvmeof.cli import streams
from nvmeof.cli.early import EXIT_INTERRUPTED, raise_at_interrupt
from nvmeof.cli.help import invoke
from nvmeof.errors import ConfigurationError, LocalProtocolError, NvmeofError

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2


def run_program(
    program: str,
    command: click.Command,
    arguments: Sequence[str] | None = None,
    *,
    demand_output: bool = True,
    patience_seconds: float | None = None,
) -> int:
    """Run a command line and return its exit code; whatever goes wrong is one sentence on stderr.

    ``arguments``: those of the process when None. ``demand_output``, ``patience_seconds``: see
    :func:`nvmeof.cli.streams.prepare`. Raises only what is a fault of the program itself.
    """
    streams.prepare(demand_output=demand_output, patience_seconds=patience_seconds)
    raise_at_interrupt()
    try:
        invoke(command, program, arguments)
        streams.flush()
        code = 0
    except BaseException as error:
        code = report(program, error)
    streams.finish()
    return code


def report(program: str, error: BaseException) -> int:
    """Say on stderr in one sentence what went wrong, and return the exit code. Raises an unexpected error again."""
    if isinstance(error, BaseExceptionGroup):
        return report(program, error.exceptions[0])
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else EXIT_FAILED
    if isinstance(error, BrokenPipeError):
        return EXIT_FAILED  # the reader of our output has had enough
    if isinstance(error, KeyboardInterrupt | click.Abort):
        streams.interrupted()
        text, code = "interrupted", EXIT_INTERRUPTED
    elif isinstance(error, click.UsageError):
        hint = f" (see {error.ctx.command_path} --help)" if error.ctx else ""
        text, code = " ".join(error.format_message().split()).rstrip(".") + hint, EXIT_USAGE
    elif isinstance(error, click.ClickException):
        text, code = error.format_message(), EXIT_FAILED
    elif isinstance(error, NvmeofError):
        text = str(error)
        code = EXIT_USAGE if isinstance(error, ConfigurationError | LocalProtocolError) else EXIT_FAILED
    elif isinstance(error, OSError):
        text, code = streams.sentence(error), EXIT_FAILED
    else:
        raise error
    streams.remark(program, text)
    return code
