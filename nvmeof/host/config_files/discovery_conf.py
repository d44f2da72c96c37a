"""``discovery.conf``: one discovery service per line, as options of ``nvme discover``.

Sources: nvme-cli Documentation/nvme-discover.txt, fabrics.c (how lines are split).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from nvmeof.errors import ConfigurationError
from nvmeof.host.config_files.fabrics_options import ADDRESS, BY_LETTER, BY_NAME, FabricsOption, Kind, Value
from nvmeof.host.config_files.files import DISCOVERY_CONF, read_text, write_text


@dataclass(slots=True)
class DiscoveryLine:
    """One line of discovery.conf: a discovery service, and the options of what is connected because of it."""

    options: dict[str, Value]
    line: int = field(default=0, compare=False)
    """Its number in the file, from 1; 0: not read from a file."""

    def __str__(self) -> str:
        return format_discovery_line(self)


def parse_discovery_conf(text: str, where: str = DISCOVERY_CONF) -> list[DiscoveryLine]:
    """Read the lines of discovery.conf; empty ones and those that begin with ``#`` are no services.

    Raises :class:`ConfigurationError`, one sentence with `where` and the line, for what is wrong in it.
    """
    return [
        DiscoveryLine(_parse_line(line.split(), f"{where}, line {number}"), number)
        for number, line in enumerate(text.split("\n"), 1)
        if line.strip() and not line.lstrip().startswith("#")
    ]


def _parse_line(words: list[str], where: str) -> dict[str, Value]:
    found: dict[str, Value] = {}
    rest = iter(words)
    for word in rest:
        for option, text in _options_of(word, where):
            if option.kind is Kind.FLAG:
                found[option.name] = True
                continue
            value = next(rest, None) if text is None else text
            if value is None:
                raise ConfigurationError(f"{where}: {word} needs a value behind it")
            found[option.name] = _value(option, value, where)
    if "traddr" not in found:
        raise ConfigurationError(f"{where}: no address: give one with --traddr")
    return found


def _options_of(word: str, where: str) -> Iterator[tuple[FabricsOption, str | None]]:
    """The options in one word of a line, each with the value that stands in the same word."""
    if word.startswith("--"):
        name, equals, text = word[2:].partition("=")
        option = BY_NAME.get(name.replace("-", "_"))
        if option is None:
            raise ConfigurationError(f"{where}: there is no option --{name}")
        if equals and option.kind is Kind.FLAG:
            raise ConfigurationError(f"{where}: --{name} takes no value")
        yield option, text if equals else None
        return
    if len(word) < 2 or word[0] != "-":
        raise ConfigurationError(f"{where}: {word!r} is no option: options begin with - or --")
    letters = word[1:]
    while letters:
        option = BY_LETTER.get(letters[0])
        if option is None:
            raise ConfigurationError(f"{where}: there is no option -{letters[0]}")
        letters = letters[1:]
        if option.kind is Kind.FLAG:
            yield option, None
            continue
        yield option, letters.removeprefix("=") or None
        return


def _value(option: FabricsOption, text: str, where: str) -> Value:
    if option.kind is Kind.TEXT:
        return text
    try:
        return int(text, 0) if text.lower().startswith(("0x", "-0x")) else int(text, 10)
    except ValueError:
        name = option.name.replace("_", "-")
        raise ConfigurationError(f"{where}: --{name} takes {option.kind.value}, not {text!r}") from None


def format_discovery_line(line: DiscoveryLine) -> str:
    """Return a line's text, with long options. Raises :class:`ConfigurationError` where nvme-cli could not read it."""
    words = []
    for name, value in line.options.items():
        option = BY_NAME.get(name)
        if option is None:
            raise ConfigurationError(f"{DISCOVERY_CONF} has no option {name}")
        if option.kind is Kind.FLAG:
            words += [f"--{name.replace('_', '-')}"] if value else []
            continue
        text = str(value)
        if not text or "=" in text or text.split() != [text]:
            raise ConfigurationError(
                f"{name} {text!r} cannot be in {DISCOVERY_CONF}: it is empty, or has a blank or '='"
            )
        words.append(f"--{name.replace('_', '-')}={text}")
    return " ".join(words)


def format_discovery_conf(lines: Iterable[DiscoveryLine]) -> str:
    """Return the text of discovery.conf with these lines. Raises as :func:`format_discovery_line`."""
    return "".join(format_discovery_line(line) + "\n" for line in lines)


def add_to_discovery_conf(path: Path, line: DiscoveryLine) -> bool:
    """Add a service to a file, whose other lines and remarks stay as they are; False: it was there already."""
    text = read_text(path) if path.exists() else ""
    key = [line.options.get(name) for name in ADDRESS]
    for other in parse_discovery_conf(text, str(path)):
        if [other.options.get(name) for name in ADDRESS] == key:
            return False
    write_text(path, text + ("\n" if text and not text.endswith("\n") else "") + format_discovery_line(line) + "\n")
    return True
