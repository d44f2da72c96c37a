"""``completion`` and ``man``: shell completion and manual pages, made from the command line."""

from __future__ import annotations

from pathlib import Path

import click

from nvmeof.cli import manual
from nvmeof.errors import NvmeofError
from nvmeof.host.cli import options as opt
from nvmeof.host.cli import output as out
from nvmeof.version import __version__

SHELLS = ("bash", "zsh", "fish")


@click.command("completion")
@click.argument("shell", type=click.Choice(SHELLS))
def completion_command(shell: str) -> None:
    """Print what makes a shell complete commands, options and saved connections.

    bash: `eval "$(nvmeof-host completion bash)"` in ~/.bashrc; zsh: the same with zsh in ~/.zshrc; fish: `nvmeof-host
    completion fish > ~/.config/fish/completions/nvmeof-host.fish`.
    """
    from click.shell_completion import get_completion_class

    made = get_completion_class(shell)
    assert made is not None
    root = click.get_current_context().find_root().command
    variable = f"_{opt.PROGRAM.upper().replace('-', '_')}_COMPLETE"
    print(made(root, {}, opt.PROGRAM, variable).source())


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
