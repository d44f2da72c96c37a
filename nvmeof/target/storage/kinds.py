"""The kinds of backends and of filters by name: those of this package, and those that other packages bring.

Another package offers a :class:`BackendKind` in the entry-point group ``nvmeof.backends``, or a :class:`FilterKind` in
``nvmeof.filters``; the entry point's name is the name in the text of a namespace.
"""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

from nvmeof.errors import ConfigurationError
from nvmeof.target.storage.arguments import Arguments
from nvmeof.target.storage.base import DEFAULT_BLOCK_BYTES, Backend
from nvmeof.target.storage.file import FileBackend
from nvmeof.target.storage.filters import count, delay, error, log, rate
from nvmeof.target.storage.namespace_text import Element, NamespaceText
from nvmeof.target.storage.nbd import backend as nbd
from nvmeof.target.storage.ramdisk import Ramdisk
from nvmeof.target.storage.rbd import backend as rbd

logger = logging.getLogger("nvmeof.target")

BACKENDS_GROUP: Final = "nvmeof.backends"
FILTERS_GROUP: Final = "nvmeof.filters"


@dataclass(frozen=True, slots=True)
class BackendKind:
    """How a backend is made from its part of a namespace's text. `make` raises `ConfigurationError`."""

    make: Callable[[Arguments], Backend]
    options: tuple[str, ...]
    summary: str


@dataclass(frozen=True, slots=True)
class FilterKind:
    """How a filter is made in front of a backend. `make` raises `ConfigurationError`."""

    make: Callable[[Backend, Arguments], Backend]
    options: tuple[str, ...]
    summary: str


Kind = TypeVar("Kind", BackendKind, FilterKind)


def _ramdisk(arguments: Arguments) -> Backend:
    block_bytes = arguments.size("block-size") or DEFAULT_BLOCK_BYTES
    return Ramdisk(arguments.value, block_bytes=block_bytes, keep=arguments.flag("keep"))


def _file(arguments: Arguments) -> Backend:
    if not arguments.value:
        raise ConfigurationError("file: the path is missing; write file:PATH")
    size = arguments.text("size")
    return FileBackend(
        arguments.value,
        size=size,
        block_bytes=arguments.size("block-size"),
        read_only=arguments.flag("read-only"),
        shared=arguments.flag("shared"),
        kept=arguments.text("kept"),
        direct=arguments.flag("direct"),
    )


BACKENDS: Final = {
    "ramdisk": BackendKind(_ramdisk, ("block-size", "keep"), "memory of this process: ramdisk:1G"),
    "file": BackendKind(
        _file,
        ("size", "block-size", "read-only", "shared", "kept", "direct"),
        "a file or block device: file:/srv/disk.img",
    ),
    "nbd": BackendKind(nbd.make, nbd.OPTIONS, nbd.SUMMARY),
    "rbd": BackendKind(rbd.make, rbd.OPTIONS, rbd.SUMMARY),
}
FILTERS: Final = {
    "count": FilterKind(count.make, count.OPTIONS, count.SUMMARY),
    "delay": FilterKind(delay.make, delay.OPTIONS, delay.SUMMARY),
    "error": FilterKind(error.make, error.OPTIONS, error.SUMMARY),
    "log": FilterKind(log.make, log.OPTIONS, log.SUMMARY),
    "rate": FilterKind(rate.make, rate.OPTIONS, rate.SUMMARY),
}


def _lookup(name: str, own: Mapping[str, Kind], group: str, kind: type[Kind], what: str) -> Kind:
    """Return the kind of that name, of this package or of an entry point. Raises `ConfigurationError`."""
    if name in own:
        return own[name]
    entries: importlib.metadata.EntryPoints = importlib.metadata.entry_points(group=group)
    for entry in entries.select(name=name):
        try:
            found = entry.load()
        except Exception as failure:  # the other package's fault, whatever it is
            raise ConfigurationError(f"{what} {name!r} ({entry.value}) cannot be loaded: {failure}") from failure
        if not isinstance(found, kind):
            raise ConfigurationError(f"{what} {name!r} ({entry.value}) is no {kind.__name__}")
        return found
    names = sorted({*own, *(entry.name for entry in entries)})
    raise ConfigurationError(f"there is no {what} {name!r}: one of {', '.join(names)}")


def make_backend(text: NamespaceText) -> Backend:
    """Make a backend with its filters in front; it is not open yet. Raises `ConfigurationError`."""
    kind = _lookup(text.backend.name, BACKENDS, BACKENDS_GROUP, BackendKind, "backend")
    arguments = Arguments(text.backend)
    backend = kind.make(arguments)
    arguments.finish(kind.options)
    backend.element = text.backend
    for element in text.filters:
        backend = _filter(backend, element)
    return backend


def _filter(backend: Backend, element: Element) -> Backend:
    kind = _lookup(element.name, FILTERS, FILTERS_GROUP, FilterKind, "filter")
    arguments = Arguments(element)
    made = kind.make(backend, arguments)
    arguments.finish(kind.options)
    made.element = element
    return made
