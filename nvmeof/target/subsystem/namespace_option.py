"""What ``--namespace`` says: a backend with its filters, and what the namespace on it is like.

The options of the namespace stand with those of the backend: ``nsid=7``, ``anagrpid=2``, ``read-only``, and those
of zones (``zoned``, ``zone-size=64M``, …).
"""

from __future__ import annotations

from dataclasses import replace

from nvmeof.errors import ConfigurationError
from nvmeof.target.namespaces.zone_geometry import ZONED_WORDS, ZoneGeometry, parse_zoned
from nvmeof.target.storage.kinds import make_backend
from nvmeof.target.storage.namespace_text import Element, parse_namespace_text
from nvmeof.target.subsystem.ana import ANA_GROUP
from nvmeof.target.subsystem.config import NamespaceConfig


def _number(name: str, text: str | None, most: int) -> int:
    try:
        number = int(text or "", 0)
    except ValueError:
        number = 0
    if not 1 <= number <= most:
        raise ConfigurationError(f"{name} is a number from 1 to {most:X}h, not {text!r}; write {name}=7")
    return number


def _zones(element: Element) -> tuple[Element, ZoneGeometry | None]:
    """Take the options of zones off an element."""
    words = [(name, value) for name, value in element.options if name in ZONED_WORDS]
    if not words:
        return element, None
    text = ",".join(name if value is None else f"{name}={value}" for name, value in words)
    _, zoned = parse_zoned(f",{text}")
    rest = tuple(option for option in element.options if option[0] not in ZONED_WORDS)
    return replace(element, options=rest), zoned


def parse_namespace_option(text: str) -> NamespaceConfig:
    """Make what ``--namespace TEXT`` describes. Raises `ConfigurationError` with what would be right.

    >>> parse_namespace_option("ramdisk:64M,nsid=7,delay:read=10ms").nsid
    7
    """
    given = parse_namespace_text(text)
    element, zoned = _zones(given.backend)
    options = dict(element.options)
    nsid = _number("nsid", options["nsid"], 0xFFFFFFFE) if "nsid" in options else None
    anagrpid = _number("anagrpid", options["anagrpid"], 0xFFFF) if "anagrpid" in options else ANA_GROUP
    read_only = "read-only" in options
    if read_only and options["read-only"] is not None:
        raise ConfigurationError("read-only is a flag; write it without a value")
    # A file is opened for reading only; other kinds need not know.
    ours = {"nsid", "anagrpid"} | (set() if element.name == "file" else {"read-only"})
    element = replace(element, options=tuple(option for option in element.options if option[0] not in ours))
    backend = make_backend(replace(given, backend=element))
    return NamespaceConfig(backend=backend, nsid=nsid, read_only=read_only, zoned=zoned, anagrpid=anagrpid)
