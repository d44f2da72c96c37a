"""The text of a namespace: ``KIND:VALUE[,option=value][,flag][,filter:[option=value...]]``.

    ramdisk:1G
    file:/srv/disk.img,block-size=4096,read-only
    ramdisk:256M,delay:read=10ms,error:kind=write,rate=0.01

Parts are separated by commas. A name followed by a colon begins a filter, a name followed by `=` is an option of what
stands to the left, a name alone is a flag of it. One rule of quoting: a comma inside a value is written twice (as QEMU
does it). A colon needs none, since only the first one of a part counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from nvmeof.errors import ConfigurationError

_NAME = r"[a-z][a-z0-9-]*"
_FILTER = re.compile(rf"({_NAME}):(.*)", re.DOTALL)
_OPTION = re.compile(rf"({_NAME})(?:=(.*))?", re.DOTALL)
_PARTS = re.compile(r"(?:[^,]|,,)+")


@dataclass(frozen=True, slots=True)
class Element:
    """A backend or a filter: its name, its value (empty where it has none), and its options; a flag's value is None."""

    name: str
    value: str = ""
    options: tuple[tuple[str, str | None], ...] = ()


@dataclass(frozen=True, slots=True)
class NamespaceText:
    """A backend, and the filters in front of it from the innermost to the outermost."""

    backend: Element
    filters: tuple[Element, ...] = ()


def _parts(text: str) -> list[str]:
    parts, at = [], 0
    while True:
        match = _PARTS.match(text, at)
        if match is None:
            raise ConfigurationError(f"{text!r}: a part between commas is empty; a comma inside a value is written ,,")
        parts.append(match[0].replace(",,", ","))
        if match.end() == len(text):
            return parts
        at = match.end() + 1


def parse_namespace_text(text: str) -> NamespaceText:
    """Take the text of a namespace apart. Raises `ConfigurationError` that says what is wrong with which part."""
    elements: list[Element] = []
    for part in _parts(text):
        begins = _FILTER.fullmatch(part)
        if not elements and begins is None:
            raise ConfigurationError(f"{text!r}: write KIND:VALUE first, for example ramdisk:1G or file:/srv/disk.img")
        equals = part.find("=")
        if begins is not None and not (elements and -1 < equals < part.find(":")):
            if not elements:
                elements.append(Element(begins[1], begins[2]))
            else:
                first = [_option(text, begins[2])] if begins[2] else []
                elements.append(Element(begins[1], "", tuple(first)))
            continue
        last = elements[-1]
        elements[-1] = Element(last.name, last.value, (*last.options, _option(text, part)))
    for element in elements:
        names = [name for name, _ in element.options]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ConfigurationError(f"{text!r}: {element.name} has the option {twice} twice")
    return NamespaceText(elements[0], tuple(elements[1:]))


def _option(text: str, part: str) -> tuple[str, str | None]:
    match = _OPTION.fullmatch(part)
    if match is None:
        raise ConfigurationError(f"{text!r}: {part!r} is no option; write NAME=VALUE, and a comma in a value as ,,")
    return match[1], match[2]


def _format_element(element: Element, *, backend: bool) -> Iterable[str]:
    options = [name if value is None else f"{name}={value}" for name, value in element.options]
    if backend:
        yield f"{element.name}:{element.value}"
    else:
        yield f"{element.name}:{options.pop(0) if options else ''}"
    yield from options


def format_namespace_text(namespace: NamespaceText) -> str:
    """Return the text that `parse_namespace_text` takes apart into the same."""
    parts = list(_format_element(namespace.backend, backend=True))
    for element in namespace.filters:
        parts += _format_element(element, backend=False)
    return ",".join(part.replace(",", ",,") for part in parts)
