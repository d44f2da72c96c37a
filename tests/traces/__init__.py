"""The traffic of a Linux kernel's initiator and target, as fixtures.

Each `NAME.trace.xz` is one capture, cut by `tools/trace_fixture.py`. Uncompressed, it is one line of JSON and then the
bytes of all PDUs end to end. The JSON:

    source the two ends, in one sentence
    cut        what was left out, in one sentence
    pdus       a list of [connection, direction, microseconds, length] in the order of the capture, one PDU each

Connections are counted from 0, the direction is "h2c" or "c2h", the time is relative to the first packet. Each
connection's PDUs put together are the byte stream that its receiver got.
"""

from __future__ import annotations

import json
import lzma
from dataclasses import dataclass
from functools import cache
from pathlib import Path

DIRECTORY = Path(__file__).parent
SUFFIX = ".trace.xz"


@dataclass(frozen=True, slots=True)
class Pdu:
    """One PDU as captured: all its bytes, digests and padding included."""

    connection: int
    direction: str
    time_seconds: float
    data: bytes


@dataclass(frozen=True, slots=True)
class Trace:
    """One capture in order."""

    name: str
    source: str
    pdus: tuple[Pdu, ...]

    @property
    def connections(self) -> range:
        """Return the numbers of its connections."""
        return range(1 + max(pdu.connection for pdu in self.pdus))

    def stream(self, connection: int, direction: str) -> bytes:
        """Return all bytes of one connection in one direction."""
        return b"".join(p.data for p in self.pdus if p.connection == connection and p.direction == direction)


def names() -> list[str]:
    """Return the fixtures' names."""
    return sorted(path.name.removesuffix(SUFFIX) for path in DIRECTORY.glob(f"*{SUFFIX}"))


@cache
def load(name: str) -> Trace:
    """Return a fixture by its name."""
    header, _, body = lzma.decompress((DIRECTORY / f"{name}{SUFFIX}").read_bytes()).partition(b"\n")
    content = json.loads(header)
    pdus, offset = [], 0
    for connection, direction, micros, length in content["pdus"]:
        pdus.append(Pdu(connection, direction, micros / 1e6, body[offset : offset + length]))
        offset += length
    assert offset == len(body), f"{name}: {len(body) - offset} bytes are left over"
    return Trace(name, content["source"], tuple(pdus))


def streams() -> list[tuple[str, int, str, bytes]]:
    """Yield (name, connection, direction, bytes) for every stream of every fixture, in order."""
    return [
        (name, connection, direction, load(name).stream(connection, direction))
        for name in names()
        for connection in load(name).connections
        for direction in ("h2c", "c2h")
    ]
