"""Write nvmeof/host/cli/command_table.py: names and summaries of the host's commands, by the modules that have them.

python tools/command_table.py
"""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import click

from nvmeof.host import cli

TABLE = Path(cli.__file__).with_name("command_table.py")
HEAD = '''"""The commands of ``nvmeof-host`` by name: the module that has each, and what the list says of it.

So that ``--help`` imports none of them: with all it would take several times as long. Made by tools/command_table.py.
"""

from __future__ import annotations

from typing import Final

_SUMMARIES: Final = {
'''
TAIL = '''}

COMMANDS: Final = {
    name: (f"nvmeof.host.cli.{module}", summary)
    for module, commands in _SUMMARIES.items()
    for name, summary in commands.items()
}
"""By name: module and summary."""
'''
WHOLE = 1000
"""Letters of a summary that nothing cuts."""
LINE = 120


def quoted(text: str, room: int) -> str:
    """Return Python text for a string, in pieces of so many letters."""
    pieces, line = [], ""
    for word in text.split(" "):
        if len(line) + len(word) + 1 > room:
            pieces.append(line)
            line = ""
        line += f"{word} "
    pieces.append(line.removesuffix(" "))
    return "\n        ".join('"' + piece.replace("\\", "\\\\").replace('"', '\\"') + '"' for piece in pieces)


def main() -> None:
    """Write the table."""
    text = HEAD
    for module in sorted(pkgutil.iter_modules(cli.__path__)):
        commands: list[click.Command] = getattr(import_module(f"{cli.__name__}.{module.name}"), "COMMANDS", [])
        if commands and module.name != TABLE.stem:
            text += f'    "{module.name}": {{\n'
            for command in commands:
                summary = command.get_short_help_str(WHOLE)
                room = LINE - len(f'        "{command.name}": "",')
                text += f'        "{command.name}": {quoted(summary, room)},\n'
            text += "    },\n"
    TABLE.write_text(text + TAIL)
    subprocess.run([sys.executable, "-m", "ruff", "format", "-q", str(TABLE)], check=True)


if __name__ == "__main__":
    main()
