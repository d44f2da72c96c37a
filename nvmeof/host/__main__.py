"""``python -m nvmeof.host``: an NVMe/TCP and NVMe-over-MPTCP host for the command line, after nvme-cli.

Exit codes: 0 when all went well, 1 when a command failed, 2 for wrong usage, 130 when SIGINT ended it.
"""

from __future__ import annotations

if __name__ == "__main__":
    from nvmeof.cli import early

    early.exit_at_interrupt()

import logging
import sys
from collections.abc import Sequence

import click

from nvmeof.cli.exit_codes import run_program
from nvmeof.cli.lazy import LazyGroup
from nvmeof.cli.line_log import to_stderr
from nvmeof.host.cli.command_table import COMMANDS
from nvmeof.host.cli.program import PROGRAM
from nvmeof.version import __version__


@click.group(
    cls=LazyGroup,
    lazy=COMMANDS,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.option("-v", "--verbose", count=True, help="Say more on stderr; twice for everything.")
@click.version_option(__version__, prog_name=PROGRAM)
@click.pass_context
def cli(ctx: click.Context, verbose: int) -> None:
    """Discover, connect to and use NVMe/TCP and NVMe-over-MPTCP subsystems."""
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    to_stderr(level, f"{PROGRAM}: %(message)s")
    if not verbose:
        # what it warns of comes as the command's own sentence too
        logging.getLogger("nvmeof.host").setLevel(logging.ERROR)
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code. One sentence on stderr for whatever goes wrong."""
    return run_program(PROGRAM, cli, arguments)


if __name__ == "__main__":
    sys.exit(main())
