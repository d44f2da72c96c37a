"""How the commands are called here, for lines that a person copies: they have to work as they are printed."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path


def command_line(role: str) -> str:
    """Return the words that start the command of ``role`` (``target`` or ``host``), quoted for a shell.

    The installed command by its name where the shell finds the one of this environment, else by its path, which needs
    no environment; ``PYTHON -m nvmeof.ROLE`` where it is not installed.
    """
    name = f"nvmeof-{role}"
    installed = Path(sys.executable).with_name(name)
    if not installed.exists():
        return f"{shlex.quote(sys.executable or 'python3')} -m nvmeof.{role}"
    found = shutil.which(name)
    if found is not None and Path(found).resolve() == installed.resolve():
        return name
    try:
        below = installed.relative_to(Path.cwd())
    except ValueError:
        return shlex.quote(str(installed))
    return shlex.quote(str(below) if below.parent.name else f"./{below}")
