"""Option types of both command lines. Every number may be decimal or hexadecimal (0x10); sizes have units."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    IntegerType = click.ParamType[int]
    FloatType = click.ParamType[float]
    AnyType = click.ParamType[Any]
else:  # generic for type checkers only, until click 8.2
    IntegerType = FloatType = AnyType = click.ParamType

_UNITS = {"k": 10, "m": 20, "g": 30, "t": 40, "p": 50}


def parse_integer(text: str) -> int | None:
    """Return the integer that `text` is, decimal or with 0x, 0o or 0b; None for anything else."""
    try:
        return int(text.strip(), 0)
    except ValueError:
        pass
    try:
        return int(text.strip(), 10)  # 0010 is ten
    except ValueError:
        return None


class Number(IntegerType):
    """An integer between two limits, decimal or hexadecimal."""

    name = "integer"

    def __init__(self, least: int = 0, most: int | None = None) -> None:
        self.least = least
        self.most = most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        number = value if isinstance(value, int) else parse_integer(value)
        if number is None:
            self.fail(f"{value!r} is not a number: write 16 or 0x10", param, ctx)
        if number < 0 <= self.least:
            self.fail(f"{value} is negative", param, ctx)
        if self.most is None and number < self.least:
            self.fail(f"{value} is less than {self.least}", param, ctx)
        if self.most is not None and not self.least <= number <= self.most:
            self.fail(f"{value} is not in the range {self.least} to {self.most}", param, ctx)
        return number


class Seconds(FloatType):
    """A time in seconds, with a fraction; at least `least`."""

    name = "seconds"

    def __init__(self, least: float = 0.0) -> None:
        self.least = least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            number = float(value)
        except ValueError:
            whole = parse_integer(value)
            if whole is None:
                self.fail(f"{value!r} is not a number of seconds: write 5 or 0.5", param, ctx)
            number = float(whole) if whole < 1 << 63 else math.inf
        if number < 0 <= self.least:
            self.fail(f"{value} is negative", param, ctx)
        if not math.isfinite(number) or number < self.least or number > 1e9:
            self.fail(f"{value} is not a number of seconds in the range {self.least:g} to 1000000000", param, ctx)
        return number


class Bytes(IntegerType):
    """A size: ``4096``, ``0x1000``, ``4k``, ``1M`` (binary units)."""

    name = "size"

    def __init__(self, most: int = (1 << 64) - 1) -> None:
        self.most = most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        text = value.strip().lower()
        number = parse_integer(text) if text.startswith("0x") else None
        if number is None:
            bare = text.removesuffix("b").removesuffix("i")
            shift = _UNITS.get(bare[-1:], 0)
            digits = bare[:-1] if shift else bare
            if not (digits.isascii() and digits.isdigit() and len(digits) <= 40):
                self.fail(f"{value!r} is not a size: give bytes, or 4k, 1M, 2G", param, ctx)
            number = int(digits) << shift
        if not 0 <= number <= self.most:
            self.fail(f"{value} is more than {self.most} bytes", param, ctx)
        return number


NUMBER = Number(0, (1 << 64) - 1)
BYTES = Bytes()
U8 = Number(0, (1 << 8) - 1)
U16 = Number(0, (1 << 16) - 1)
U32 = Number(0, (1 << 32) - 1)
U64 = NUMBER
SECONDS = Seconds()
