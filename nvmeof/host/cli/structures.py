"""Commands that read one structure of a controller and show it: each is a row, not a function.

A row says how the structure's bytes are read, and how they look as JSON; the rest (options, connecting, the three
formats) is the same for all.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import click

from nvmeof.host.cli import options as opt
from nvmeof.host.cli import output as out
from nvmeof.host.client import HostController
from nvmeof.host.namespace import Namespace

Option: TypeAlias = Callable[[Callable[..., Any]], Callable[..., Any]]

FORMATS = ("normal", "json", "binary")
output_option = click.option(
    "-o",
    "--output-format",
    "output",
    type=click.Choice(FORMATS),
    default="normal",
    show_default=True,
    help="For people, for programs, or the bytes themselves.",
)
raw_option = click.option("-b", "--raw-binary", "raw", is_flag=True, help="As -o binary.")


@dataclass(frozen=True, slots=True)
class Asked:
    """The request of a command: where, and with which options."""

    controller: HostController
    namespace: Namespace | None
    """The namespace, where the row takes one."""
    options: dict[str, Any]

    @property
    def nsid(self) -> int:
        """The namespace's number. Raises AssertionError where the row takes none."""
        assert self.namespace is not None
        return self.namespace.nsid

    def __getitem__(self, name: str) -> Any:
        return self.options[name]


@dataclass(frozen=True, slots=True)
class Structure:
    """A row: a command that reads a structure and shows it."""

    name: str
    help: str
    read: Callable[[Asked], Awaitable[bytes]]
    as_json: Callable[[bytes, Asked], Any]
    """The object that nvme-cli prints of it."""
    lines: Callable[[bytes, Asked], Iterable[str]] | None = None
    """What a person sees; None: the fields of the JSON."""
    options: tuple[Option, ...] = ()
    namespace: bool = False
    """It is of one namespace, ``-N``."""

    def command(self) -> click.Command:
        """Return the command."""

        async def callback(output: str, raw: bool, nsid: int | None = None, **options: Any) -> None:
            async with await opt.open_controller(options) as controller:
                namespace = await opt.open_namespace(controller, nsid) if self.namespace else None
                asked = Asked(controller, namespace, options)
                data = await self.read(asked)
            self._show(data, asked, "binary" if raw else output)

        callback.__doc__ = self.help
        made: Callable[..., Any] = opt.coroutine(callback)
        shared = (opt.namespace_option,) if self.namespace else ()
        for option in reversed((*self.options, opt.controller_options, *shared, raw_option, output_option)):
            made = option(made)
        return opt.command(self.name)(made)

    def _show(self, data: bytes, asked: Asked, output: str) -> None:
        if output == "binary":
            write_bytes(data)
        elif output == "json":
            out.print_json(self.as_json(data, asked))
        elif self.lines is not None:
            for line in self.lines(data, asked):
                print(out.clean(line))
        else:
            for line in text_of(self.as_json(data, asked)):
                print(out.clean(line))


def write_bytes(data: bytes) -> None:
    """Write bytes on stdout."""
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def text_of(value: Any, indent: str = "") -> Iterator[str]:
    """Yield the lines of a JSON value for a person: ``name : value``, nested objects indented, no brackets."""
    if isinstance(value, dict):
        plain = {name: each for name, each in value.items() if not isinstance(each, dict | list)}
        width = max((len(name.strip()) for name in plain), default=0)
        for name, each in value.items():
            if name in plain:
                yield f"{indent}{name.strip():<{width}} : {each}"
            elif each or isinstance(each, dict):
                yield f"{indent}{name.strip()}:"
                yield from text_of(each, f"{indent}  ")
            else:
                yield f"{indent}{name.strip()} : none"
    elif isinstance(value, list):
        for number, each in enumerate(value):
            if isinstance(each, dict) and len(each) == 1 and not isinstance(next(iter(each.values())), dict | list):
                yield from text_of(each, indent)
            elif isinstance(each, dict | list):
                yield f"{indent}[{number}]"
                yield from text_of(each, f"{indent}  ")
            else:
                yield f"{indent}{each}"
    else:
        yield f"{indent}{value}"
