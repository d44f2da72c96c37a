"""What makes a shell complete a program's commands, options and arguments."""

from __future__ import annotations

from typing import Final

import click

SHELLS: Final = ("bash", "zsh", "fish")


def completion_source(program: str, root: click.Command, shell: str) -> str:
    """Return the script of one of `SHELLS` for a program whose root command is `root`."""
    from click.shell_completion import get_completion_class

    made = get_completion_class(shell)
    assert made is not None
    variable = f"_{program.upper().replace('-', '_')}_COMPLETE"
    return made(root, {}, program, variable).source()
