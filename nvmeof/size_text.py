"""Sizes as people write them: 256M, 1G, 2T, 1048576."""

from __future__ import annotations

import re

from nvmeof.errors import ConfigurationError

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40, "P": 1 << 50}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGTP]?)(?:I?B)?", re.IGNORECASE)
_HEXADECIMAL = re.compile(r"0x[0-9a-f]+", re.IGNORECASE)


def parse_size(text: str | int, *, zero: bool = False) -> int:
    """Return the bytes of a size such as `1G`, `512MiB`, `4096` or `0x1000` (units are powers of 1024).

    Raises `ConfigurationError` for anything else, for a fraction of a byte and, unless `zero`, for zero.
    """
    if isinstance(text, int):
        value = text
    elif not isinstance(text, str):
        raise ConfigurationError(f"{text!r} is not a size: write for example '256M', '1G' or 4096")
    elif _HEXADECIMAL.fullmatch(text.strip()):
        value = int(text.strip(), 16)
    else:
        match = _SIZE.fullmatch(text.strip())
        if match is None:
            raise ConfigurationError(f"{text!r} is not a size: write for example 256M, 1G or 2T")
        number, unit = match.groups()
        scaled = float(number) * _UNITS[unit.upper()] if "." in number else int(number) * _UNITS[unit.upper()]
        if scaled != int(scaled):
            raise ConfigurationError(f"{text!r} is not a whole number of bytes")
        value = int(scaled)
    if value < 0 or not (value or zero):
        raise ConfigurationError(f"a size must be greater than zero, not {text!r}")
    return value


def format_size(size_bytes: int) -> str:
    """Return the shortest exact form of a size: 1073741824 -> `1G`, 1000 -> `1000`."""
    for unit in "PTGMK":
        if size_bytes and size_bytes % _UNITS[unit] == 0:
            return f"{size_bytes // _UNITS[unit]}{unit}"
    return str(size_bytes)
