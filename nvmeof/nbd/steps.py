"""What a negotiation asks of its driver. A negotiation is a generator that yields steps and is sent their results.

::

    steps = negotiate(...)
    answer = None
    while True:
        step = steps.send(answer)       # StopIteration.value is the result
        ...                             # Receive -> the bytes; Send, StartTls -> None; Lookup -> the export or None
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Receive:
    """Receive exactly ``count`` bytes."""

    count: int


@dataclass(frozen=True, slots=True)
class Send:
    """Send ``data``."""

    data: bytes


@dataclass(frozen=True, slots=True)
class StartTls:
    """Send ``data``, then do TLS's handshake. Bytes that came before it must end the connection."""

    data: bytes = b""


@dataclass(frozen=True, slots=True)
class Lookup:
    """Look an export up by its name, with its present size."""

    name: str


@dataclass(frozen=True, slots=True)
class ExportFacts:
    """What is told about an export. Sizes in bytes; ``flags`` are :class:`~nvmeof.nbd.numbers.TransmissionFlags`."""

    size: int
    flags: int
    minimum: int = 1
    preferred: int = 4096
    maximum: int = 32 << 20
    name: str = ""
    description: str = ""
