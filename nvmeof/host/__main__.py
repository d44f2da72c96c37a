"""``python -m nvmeof.host``: an NVMe/TCP and NVMe-over-MPTCP host for the command line, after nvme-cli.

Exit codes: 0 when all went well, 1 when a command failed, 2 when it was asked for wrongly.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

import click

from nvmeof.errors import ConfigurationError, LocalProtocolError, NvmeofError
from nvmeof.host.cli import bench, data, mptcpize, paths, show
from nvmeof.host.cli.output import remark
from nvmeof.version import __version__

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("-v", "--verbose", count=True, help="Say more on stderr; twice for everything.")
@click.version_option(__version__, prog_name="nvmeof-host")
def cli(verbose: int) -> None:
    """Discover, connect to and use NVMe/TCP and NVMe-over-MPTCP subsystems."""
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    logging.basicConfig(level=level, format="nvmeof-host: %(message)s", stream=sys.stderr)
    if not verbose:
        # what it warns of comes as the command's own sentence too
        logging.getLogger("nvmeof.host").setLevel(logging.ERROR)


for _command in (*show.COMMANDS, *data.COMMANDS, *bench.COMMANDS, *paths.COMMANDS, *mptcpize.COMMANDS):
    cli.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code. One sentence on stderr for whatever goes wrong."""
    try:
        cli.main(
            args=list(arguments) if arguments is not None else None, prog_name="nvmeof-host", standalone_mode=False
        )
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except click.UsageError as error:
        hint = f" (see {error.ctx.command_path} --help)" if error.ctx else ""
        remark(error.format_message().rstrip(".") + hint)
        return EXIT_USAGE
    except (ConfigurationError, LocalProtocolError) as error:
        remark(str(error))
        return EXIT_USAGE
    except NvmeofError as error:
        remark(str(error))
        return EXIT_FAILED
    except BrokenPipeError:
        # whoever read our output has had enough; leave nothing for the interpreter to flush
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except OSError as error:
        remark(f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error))
        return EXIT_FAILED
    except (KeyboardInterrupt, click.Abort):
        remark("interrupted")
        return EXIT_INTERRUPTED
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else EXIT_FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
