"""CRC32C digests (RFC 3720 appendix B.4 polynomial; NVMe TCP Transport specification, section 3.6.1.1).

The ``crc32c`` package computes them at memory speed. Without it they are computed here: short data by a table, byte by
byte, long data by folding, some twenty times faster. Both are right; ``FAST`` says which one is in use.

Folding: a CRC is linear. Feeding a 32-bit word W to a register R gives Z(R ^ W), where Z feeds four bytes of zero; so
of n words the first half may be moved over the second one, each word by Z to the power n/2, and added (exclusive or)
to it: half as many words with the same CRC. All words of a half are moved at once: bytes.translate applies Z's table
to one of their four bytes, and the additions are those of long integers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Final

from ..wire import Buffer

_POLYNOMIAL: Final = 0x82F63B78  # reflected
_ONES: Final = 0xFFFFFFFF
FOLD_MIN_BYTES: Final = 256
"""Shorter data is computed faster by the table."""
_FOLD_MAX_BYTES: Final = 1 << 20
_LAST_WORDS: Final = 16
"""So few words are not folded further."""


log = logging.getLogger("nvmeof.digest")


def _make_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = value >> 1 ^ (_POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return tuple(table)


_TABLE: Final = _make_table()


def _feed(data: Buffer, register: int) -> int:
    table = _TABLE
    for byte in data:
        register = table[(register ^ byte) & 0xFF] ^ register >> 8
    return register


def crc32c_table(data: Buffer, value: int = 0) -> int:
    """Return the CRC32C of ``data``, going on from ``value``, byte by byte in plain Python."""
    return _feed(memoryview(data).cast("B"), value ^ _ONES) ^ _ONES


_Planes = tuple[bytes, bytes, bytes, bytes]


@cache
def _power(level: int) -> tuple[tuple[int, ...], ...]:
    """Return Z to the power 2**level: what becomes of each value of each of a word's four bytes."""
    if not level:
        return tuple(tuple(_feed(bytes(4), byte << shift) for byte in range(256)) for shift in (0, 8, 16, 24))
    first, second, third, fourth = half = _power(level - 1)
    return tuple(
        tuple(first[v & 0xFF] ^ second[v >> 8 & 0xFF] ^ third[v >> 16 & 0xFF] ^ fourth[v >> 24] for v in column)
        for column in half
    )


@cache
def _tables(level: int) -> tuple[_Planes, ...]:
    """Return the same for bytes.translate: for each byte of the outcome, one table per byte of the word."""
    columns = _power(level)
    return tuple(
        tuple(bytes(v >> shift & 0xFF for v in column) for column in columns)  # type: ignore[misc]
        for shift in (0, 8, 16, 24)
    )


def _fold(data: bytes, register: int) -> int:
    """Feed ``data``, four bytes times a power of two, to a register."""
    number = int.from_bytes
    data = (register ^ number(data[:4], "little")).to_bytes(4, "little") + data[4:]
    planes = [data[index::4] for index in range(4)]
    half = len(data) // 8
    while half >= _LAST_WORDS:
        a, b, c, d = (plane[:half] for plane in planes)
        for index, (t, u, v, w) in enumerate(_tables(half.bit_length() - 1)):
            planes[index] = (
                number(a.translate(t), "little")
                ^ number(b.translate(u), "little")
                ^ number(c.translate(v), "little")
                ^ number(d.translate(w), "little")
                ^ number(planes[index][half:], "little")
            ).to_bytes(half, "little")
        half //= 2
    rest = bytearray(4 * len(planes[0]))
    for index, plane in enumerate(planes):
        rest[index::4] = plane
    return _feed(rest, 0)


def crc32c_folded(data: Buffer, value: int = 0) -> int:
    """Return the CRC32C of ``data``, going on from ``value``: in plain Python, fast for long data."""
    if len(data) < FOLD_MIN_BYTES:
        return crc32c_table(data, value)
    view = memoryview(data).cast("B")
    register, start, end = value ^ _ONES, 0, len(view)
    while end - start >= FOLD_MIN_BYTES:
        size = min(1 << (end - start).bit_length() - 1, _FOLD_MAX_BYTES)
        register = _fold(bytes(view[start : start + size]), register)
        start += size
    return _feed(view[start:], register) ^ _ONES


crc32c: Callable[[Buffer, int], int]
"""CRC32C of a buffer, going on from a former value (0 at the start)."""

try:
    from crc32c import crc32c as _fast_crc32c
except ImportError:  # pragma: no cover - depends on what is installed
    crc32c = crc32c_folded
    FAST: bool = False
else:
    crc32c = _fast_crc32c
    FAST = True


@cache
def warn_if_slow() -> None:
    """Say once, when a connection has digests, that they are slow for want of the ``crc32c`` package."""
    if not FAST:
        log.warning(
            "digests are computed in Python, at some 100 MB/s at best: "
            "pip install 'nvmeof-mptcp[fast]' adds a fast CRC32C"
        )


def digest_bytes(data: Buffer) -> bytes:
    """Return the digest of ``data`` as it stands on the wire, 4 bytes."""
    return crc32c(data, 0).to_bytes(4, "little")
