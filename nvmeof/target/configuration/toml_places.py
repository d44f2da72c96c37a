"""Lines of a text that is TOML: where a value stands, so that a message about it can name its line.

tomllib tells no lines. This finds those of tables, of arrays of tables, and of keys at the beginning of a line, where
people write them; a value inside of an inline table has the line of the key that it belongs to.
"""

from __future__ import annotations

import re
from typing import Final

from nvmeof.json_places import Place

_NAME: Final = r'(?:[A-Za-z0-9_-]+|"(?:[^"\\]|\\.)*"|\'[^\']*\')'
_KEY: Final = rf"{_NAME}(?:\s*\.\s*{_NAME})*"
_HEADER: Final = re.compile(rf"\s*(\[\[?)\s*({_KEY})\s*\]")
_ENTRY: Final = re.compile(rf"\s*({_KEY})\s*=")


def _names(text: str) -> list[str]:
    return [each.strip("\"'") for each in re.findall(_NAME, text)]


def _lines(text: str) -> dict[Place, int]:
    """The line of each table and key, in the order of the file."""
    found: dict[Place, int] = {(): 1}
    counts: dict[Place, int] = {}
    table: Place = ()
    for number, line in enumerate(text.splitlines(), 1):
        header = _HEADER.match(line)
        if header is not None:
            table = ()
            names = _names(header[2])
            for index, name in enumerate(names):
                table = (*table, name)
                last = index == len(names) - 1
                if last and header[1] == "[[":
                    counts[table] = counts.get(table, -1) + 1
                if table in counts:
                    table = (*table, counts[table])
            found.setdefault(table, number)
            continue
        entry = _ENTRY.match(line)
        if entry is not None:
            found.setdefault((*table, *_names(entry[1])), number)
    return found


def line_of(text: str, place: Place) -> int:
    """Return the line, from 1, of the value at `place`, or of what it stands in."""
    lines = _lines(text)
    while place not in lines:
        place = place[:-1]
    return lines[place]
