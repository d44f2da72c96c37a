"""``python -m nvmeof.host``: an NVMe/TCP and NVMe-over-MPTCP host for the command line, after nvme-cli.

Exit codes: 0 when all went well, 1 when a command failed, 2 when it was asked for wrongly, 130 when SIGINT ended it.
"""

from __future__ import annotations

if __name__ == "__main__":
    from nvmeof.cli import early

    early.exit_at_interrupt()

import logging
import sys
from collections.abc import Sequence

import click

from nvmeof.cli import streams
from nvmeof.cli.early import EXIT_INTERRUPTED, raise_at_interrupt
from nvmeof.cli.help import invoke
from nvmeof.errors import ConfigurationError, LocalProtocolError, NvmeofError
from nvmeof.host.cli import bench, data, logs, mptcpize, paths, show
from nvmeof.host.cli.options import PROGRAM
from nvmeof.host.cli.output import remark
from nvmeof.version import __version__

EXIT_FAILED = 1
EXIT_USAGE = 2


@click.group(
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.option("-v", "--verbose", count=True, help="Say more on stderr; twice for everything.")
@click.version_option(__version__, prog_name=PROGRAM)
@click.pass_context
def cli(ctx: click.Context, verbose: int) -> None:
    """Discover, connect to and use NVMe/TCP and NVMe-over-MPTCP subsystems."""
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    logging.basicConfig(level=level, format=f"{PROGRAM}: %(message)s", stream=sys.stderr)
    if not verbose:
        # what it warns of comes as the command's own sentence too
        logging.getLogger("nvmeof.host").setLevel(logging.ERROR)
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())


for _command in (*show.COMMANDS, *logs.COMMANDS, *data.COMMANDS, *bench.COMMANDS, *paths.COMMANDS, *mptcpize.COMMANDS):
    cli.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code. One sentence on stderr for whatever goes wrong."""
    streams.prepare()
    raise_at_interrupt()
    try:
        invoke(cli, PROGRAM, arguments)
        streams.flush()
        code = 0
    except BaseException as error:
        code = _failed(error)
    streams.finish()
    return code


def _failed(error: BaseException) -> int:
    """Say in one sentence what went wrong; the exit code."""
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else EXIT_FAILED
    if isinstance(error, KeyboardInterrupt | click.Abort):
        streams.interrupted()
        remark("interrupted")
        return EXIT_INTERRUPTED
    if isinstance(error, BrokenPipeError):
        return EXIT_FAILED  # whoever read our output has had enough
    if isinstance(error, OSError):
        remark(streams.sentence(error))
        return EXIT_FAILED
    if isinstance(error, click.UsageError):
        hint = f" (see {error.ctx.command_path} --help)" if error.ctx else ""
        remark(" ".join(error.format_message().split()).rstrip(".") + hint)
        return EXIT_USAGE
    if isinstance(error, click.ClickException):
        remark(error.format_message())
        return EXIT_FAILED
    if isinstance(error, NvmeofError):
        remark(str(error))
        return EXIT_USAGE if isinstance(error, ConfigurationError | LocalProtocolError) else EXIT_FAILED
    raise error


if __name__ == "__main__":
    sys.exit(main())
