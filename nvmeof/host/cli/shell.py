"""``completion`` and ``man``: shell completion and manual pages, made from the command line."""

from __future__ import annotations

from pathlib import Path

import click

from nvmeof.cli import manual
from nvmeof.cli.completion import SHELLS as SHELLS
from nvmeof.cli.completion import completion_source
from nvmeof.errors import NvmeofError
from nvmeof.host.cli import options as opt
from nvmeof.host.cli import output as out
from nvmeof.version import __version__


@click.command("completion")
@click.argument("shell", type=click.Choice(SHELLS))
def completion_command(shell: str) -> None:
    """Print what makes a shell complete commands, options and saved connections.

    bash: `eval "$(nvmeof-host completion bash)"` in ~/.bashrc; zsh: the same with zsh in ~/.zshrc; fish: `nvmeof-host
    completion fish > ~/.config/fish/completions/nvmeof-host.fish`.
    """
    print(completion_source(opt.PROGRAM, click.get_current_context().find_root().command, shell))


@click.command("man")
@click.argument("directory", type=click.Path(file_okay=False))
def man_command(directory: str) -> None:
    """Write the manual pages into DIRECTORY, ~/.local/share/man/man1 for instance."""
    root, count = click.get_current_context().find_root().command, 0
    try:
        Path(directory).mkdir(parents=True, exist_ok=True)
        for name, text in manual.pages(opt.PROGRAM, root, __version__):
            Path(directory, name).write_text(text, encoding="utf-8")
            count += 1
    except OSError as error:
        raise NvmeofError(f"{error.filename or directory} cannot be written: {error.strerror}") from None
    out.remark(f"wrote {count} pages to {directory}: man {opt.PROGRAM}")


COMMANDS = (completion_command, man_command)
