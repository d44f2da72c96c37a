"""Lines of a text that is JSON: where a value stands, so that a message about it can name its line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TypeAlias

Place: TypeAlias = tuple[str | int, ...]
"""Where a value is in a document: keys and indices, outermost first."""


def line_of(text: str, place: Place) -> int:
    """Return the line, from 1, of the value at `place` in a text that is JSON."""
    position = _skip(text, 0)
    for step in place:
        position = next((at for key, at in _members(text, position) if key == step), position)
    return text.count("\n", 0, position) + 1


_DECODER = json.JSONDecoder()


def _skip(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def _members(text: str, position: int) -> Iterator[tuple[str | int, int]]:
    """Key or index of each value in the list or object that begins at `position`, and where the value begins."""
    closing = {"{": "}", "[": "]"}.get(text[position])
    is_object = closing == "}"
    index = 0
    position = _skip(text, position + 1)
    while closing is not None and text[position] != closing:
        key: str | int = index
        if is_object:
            key, position = _DECODER.raw_decode(text, position)
            position = _skip(text, _skip(text, position) + 1)  # behind the colon
        yield key, position
        _, position = _DECODER.raw_decode(text, position)
        position = _skip(text, position)
        if text[position] == ",":
            position = _skip(text, position + 1)
        index += 1
