"""``nvmeof-target completion``: what a shell has to know of the command line, made from it."""

from __future__ import annotations

from typing import Final

import click

from nvmeof.cli.completion import SHELLS, completion_source

PROGRAM: Final = "nvmeof-target"


@click.command("completion")
@click.argument("shell", type=click.Choice(SHELLS))
def completion_command(shell: str) -> None:
    """Print what makes a shell complete commands and options.

    Also NQNs, NSIDs and Port IDs of a target that runs. bash: `eval "$(nvmeof-target completion bash)"` in ~/.bashrc;
    zsh: the same with zsh in ~/.zshrc; fish: `nvmeof-target completion fish >
    ~/.config/fish/completions/nvmeof-target.fish`.
    """
    print(completion_source(PROGRAM, click.get_current_context().find_root().command, shell))


COMMANDS: Final = (completion_command,)
