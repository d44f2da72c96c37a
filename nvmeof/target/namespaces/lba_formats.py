"""The LBA formats that every namespace can be given: what Format NVM, Namespace Management and Identify agree on."""

from __future__ import annotations

from nvmeof.errors import CommandError
from nvmeof.spec.status import Status

LBA_FORMATS: tuple[int, ...] = (512, 4096)
"""Bytes of a logical block by the index of the format; none has metadata."""


def formats_of(block_bytes: int) -> tuple[int, ...]:
    """Return the block sizes, in bytes, of the formats; an unusual size is the last one, only while it is in use."""
    return LBA_FORMATS if block_bytes in LBA_FORMATS else (*LBA_FORMATS, block_bytes)


def format_index_of(block_bytes: int) -> int:
    """Return the index of the format in use."""
    return formats_of(block_bytes).index(block_bytes)


def lookup(index: int, error_location: int = 0xFFFF) -> int:
    """Return the bytes of a logical block in the format of an index. Raises Invalid Format."""
    if not 0 <= index < len(LBA_FORMATS):
        raise CommandError(Status.INVALID_FORMAT, error_location, message=f"there is no LBA format {index}")
    return LBA_FORMATS[index]


def identify_formats(block_bytes: int) -> dict[str, object]:
    """Return NLBAF, FLBAS and the LBA format list of Identify Namespace."""
    formats = formats_of(block_bytes)
    return {
        "nlbaf": len(formats) - 1,
        "flbas": format_index_of(block_bytes),
        "lbaf": [{"lbads": size.bit_length() - 1} for size in formats],
    }
