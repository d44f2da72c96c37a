"""What the maker of a backend or filter is given: the value and the options of its part of a namespace's text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

from nvmeof.errors import ConfigurationError
from nvmeof.size_text import parse_size
from nvmeof.target.storage.namespace_text import Element

T = TypeVar("T")
_SECONDS = re.compile(r"(\d+(?:\.\d+)?)(us|ms|s|)")
_SCALE = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "": 1.0}


class Arguments:
    """The options of one backend or filter. Each is taken once, by its type; `finish` refuses the rest. Every method
    raises `ConfigurationError` for text of another type.

        def make(arguments: Arguments) -> Backend:
            return MyBackend(arguments.value, block_bytes=arguments.size("block-size", 512))
    """

    def __init__(self, element: Element) -> None:
        self.name = element.name
        self.value = element.value
        self._left = dict(element.options)

    def text(self, option: str, default: str | None = None) -> str | None:
        """Return an option's text, or the default."""
        if option not in self._left:
            return default
        value = self._left.pop(option)
        if value is None:
            raise ConfigurationError(f"{self.name}: {option} needs a value; write {option}=VALUE")
        return value

    def flag(self, option: str) -> bool:
        """Return whether a flag is given."""
        if option not in self._left:
            return False
        if self._left.pop(option) is not None:
            raise ConfigurationError(f"{self.name}: {option} is a flag; write it without a value")
        return True

    def size(self, option: str, default: int | None = None) -> int | None:
        """Return a size in bytes (`64M`)."""
        text = self.text(option)
        return default if text is None else parse_size(text)

    def number(self, option: str, default: float, *, least: float, most: float) -> float:
        """Return a number from `least` to `most`."""
        text = self.text(option)
        if text is None:
            return default
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not least <= value <= most:
            raise ConfigurationError(f"{self.name}: {option} is a number from {least:g} to {most:g}, not {text!r}")
        return value

    def seconds(self, option: str, default: float = 0.0) -> float:
        """Return a time in seconds (`10ms`, `1.5s`, `200us`; seconds without a unit)."""
        text = self.text(option)
        if text is None:
            return default
        match = _SECONDS.fullmatch(text)
        if match is None:
            raise ConfigurationError(f"{self.name}: {option} is a time such as 10ms, 200us or 1.5s, not {text!r}")
        return float(match[1]) * _SCALE[match[2]]

    def choice(self, option: str, choices: Mapping[str, T], default: str) -> T:
        """Return the value of a word."""
        text = self.text(option, default) or default
        if text not in choices:
            raise ConfigurationError(f"{self.name}: {option} is one of {', '.join(choices)}, not {text!r}")
        return choices[text]

    def finish(self, known: tuple[str, ...]) -> None:
        """Raise `ConfigurationError` for options that were not taken. `known`: the names to list in the message."""
        for option in self._left:
            has = f"has the options {', '.join(known)}" if known else "has no options"
            raise ConfigurationError(f"{self.name} has no option {option!r}; it {has}")
