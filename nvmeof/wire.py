"""Wire structures: declared once with construct, the hot ones run through ``struct``.

Two kinds of structure share this module.

*Hot* ones (SQE, CQE, PDU headers) are a :class:`Record`: the construct declaration is turned into a
``struct.Struct`` at import, next to a slots dataclass for those who want an object. A declaration that cannot be
turned (of another byte order than its record, of variable length, nested) raises :class:`DeclarationError` there and
then, not at the first packet.

*Cold* ones (Identify, log pages, Connect data) stay plain construct. :func:`build` encodes them from the fields that
are not zero, :func:`layout` tells where each field lies.

All NVMe structures are little-endian; those of NBD are big-endian, and their records say so.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any, Generic, TypeAlias, TypeVar

import construct as c

Buffer: TypeAlias = bytes | bytearray | memoryview
Declaration: TypeAlias = c.Struct
"""A fixed-size construct Struct."""

T = TypeVar("T")

U8 = c.Int8ul
U16 = c.Int16ul
U24 = c.Int24ul
U32 = c.Int32ul
U64 = c.Int64ul
U128 = c.BytesInteger(16, swapped=True)

_CODES = frozenset("BHIQbhiq")
_ORDERS = {"<": "little", ">": "big"}


class DeclarationError(TypeError):
    """A construct declaration that a struct codec cannot be derived from, or that its dataclass does not match."""


def _strip(subcon: Any) -> Any:
    """Return the construct below names and defaults: neither changes the bytes."""
    while isinstance(subcon, c.Renamed | c.Default):
        subcon = subcon.subcon
    return subcon


def _code(name: str | None, subcon: Any, byte_order: str = "<") -> str:
    """Return the struct code of one declared field. ``byte_order``: ``<`` or ``>``, that of the whole record."""
    bare = _strip(subcon)
    if name is None:
        if isinstance(bare, c.Padded) and isinstance(bare.subcon, type(c.Pass)) and isinstance(bare.length, int):
            return f"{bare.length}x"
        raise DeclarationError(f"an unnamed field that is no plain padding: {subcon!r}")
    if isinstance(bare, c.FormatField):
        order, code = bare.fmtstr[0], bare.fmtstr[1:]
        # four bytes are L in construct's declarations; one letter per width is easier to read in a format
        code = {"L": "I", "l": "i"}.get(code, code)
        if code not in _CODES:
            raise DeclarationError(f"field {name}: format {bare.fmtstr!r} is not an integer")
        if order != byte_order and bare.length > 1:
            raise DeclarationError(f"field {name} is not {_ORDERS[byte_order]}-endian")
        return code
    if isinstance(bare, c.Bytes) and isinstance(bare.length, int):
        return f"{bare.length}s"
    raise DeclarationError(f"field {name} has no fixed {_ORDERS[byte_order]}-endian form: {subcon!r}")


class Record(Generic[T]):
    """One fixed-size structure: the declaration, its dataclass, and the ``struct.Struct`` derived from both.

    ``cls`` is a ``dataclass(slots=True)`` with the declaration's named fields in the same order. Padding is skipped
    on unpacking and zero on packing. ``byte_order``: ``<`` (little-endian) or ``>`` (big-endian), of all fields.
    Raises :class:`DeclarationError` when declaration, class and byte order cannot be brought together.
    """

    __slots__ = (
        "_bytes_fields",
        "_get",
        "_single",
        "byte_order",
        "cls",
        "declaration",
        "offsets",
        "size",
        "struct",
        "widths",
    )

    def __init__(self, declaration: Declaration, cls: type[T], *, byte_order: str = "<") -> None:
        self.byte_order = byte_order
        codes: list[str] = []
        self.offsets: dict[str, int] = {}
        self.widths: dict[str, int] = {}
        self._bytes_fields: list[str] = []
        position = 0
        for subcon in declaration.subcons:
            name = subcon.name
            code = _code(name, subcon, byte_order)
            width = struct.calcsize("<" + code)
            if name is not None:
                self.offsets[name] = position
                self.widths[name] = width
                if code.endswith("s"):
                    self._bytes_fields.append(name)
            codes.append(code)
            position += width
        self._check_class(cls, list(self.offsets))
        self.declaration = declaration
        self.cls = cls
        self.struct = struct.Struct(byte_order + "".join(codes))
        self.size: int = self.struct.size
        self._get = attrgetter(*self.offsets)
        self._single = len(self.offsets) == 1

    @staticmethod
    def _check_class(cls: type[T], names: list[str]) -> None:
        if not names:
            raise DeclarationError("a record without named fields")
        if not dataclasses.is_dataclass(cls) or "__slots__" not in cls.__dict__:
            raise DeclarationError(f"{cls.__name__} is not a dataclass with slots")
        fields = [field.name for field in dataclasses.fields(cls)]
        if fields != names:
            raise DeclarationError(f"{cls.__name__} has the fields {fields}, its declaration {names}")

    def __repr__(self) -> str:
        return f"<Record {self.cls.__name__}, {self.size} bytes>"

    def unpack_from(self, buffer: Buffer, offset: int = 0) -> T:
        """Return the record at ``offset``. Raises ``struct.error`` when the buffer is too short."""
        return self.cls(*self.struct.unpack_from(buffer, offset))

    def _values(self, obj: T) -> tuple[Any, ...]:
        # struct would pad or cut a bytes field silently
        for name in self._bytes_fields:
            if len(getattr(obj, name)) != self.widths[name]:
                raise struct.error(f"{name} takes exactly {self.widths[name]} bytes")
        values = self._get(obj)
        return (values,) if self._single else values

    def pack(self, obj: T) -> bytes:
        """Encode. Raises ``struct.error`` for a value that does not fit its field."""
        return self.struct.pack(*self._values(obj))

    def pack_into(self, buffer: bytearray | memoryview, offset: int, obj: T) -> None:
        """Encode in place. Raises ``struct.error`` for a value that does not fit, or a buffer that is too short."""
        self.struct.pack_into(buffer, offset, *self._values(obj))

    def select(self, *fields: str, before: int = 0, size: int | None = None) -> struct.Struct:
        """Return a Struct that unpacks only ``fields`` and skips all other bytes.

        ``before``: bytes ahead of the record (a PDU header, say). ``size``: length in all, so that ``iter_unpack``
        strides over a batch; the default ends with the record. Fields must be given in declared order.
        """
        total = before + self.size if size is None else size
        position, parts = 0, [self.byte_order]
        for name in fields:
            start = before + self.offsets[name]
            if start < position:
                raise DeclarationError(f"field {name} is out of order in the selection")
            width = self.widths[name]
            code = f"{width}s" if name in self._bytes_fields else self._integer_code(name)
            parts.append(f"{start - position}x{code}")
            position = start + width
        if position > total:
            raise DeclarationError(f"the selection ends at byte {position}, beyond {total}")
        parts.append(f"{total - position}x")
        return struct.Struct("".join(parts))

    def _integer_code(self, name: str) -> str:
        subcon = next(s for s in self.declaration.subcons if s.name == name)
        return _code(name, subcon, self.byte_order)

    def error_location(self, field: str, bit: int = 0) -> int:
        """Return the position of ``field`` as a Parameter Error Location: byte in bits 7:0, bit in 10:8 (NVMe Base,
        Error log)."""
        return (self.offsets[field] + bit // 8) | (bit % 8) << 8


class PaddedText(c.Adapter):  # type: ignore[type-arg]
    """A string in a field of ``length`` bytes, filled up with ``fill``: b"\\0" for NQNs, b" " for serial and model.

    Decoding ends a NUL-filled field at its first NUL, and strips trailing blanks from a blank-filled one. Bytes that
    are no UTF-8 come out backslash-escaped, so that what a peer sent is always printable. Encoding a string that is
    too long raises ``construct.StringError``.
    """

    def __init__(self, length: int, fill: bytes = b"\0") -> None:
        super().__init__(c.Bytes(length))
        self.length = length
        self.fill = fill

    def _decode(self, obj: bytes, context: Any, path: Any) -> str:
        raw = bytes(obj).partition(b"\0")[0]
        if self.fill != b"\0":
            raw = raw.rstrip(self.fill)
        return raw.decode("utf-8", "backslashreplace")

    def _encode(self, obj: str | bytes, context: Any, path: Any) -> bytes:
        raw = obj.encode() if isinstance(obj, str) else bytes(obj)
        if len(raw) > self.length:
            raise c.StringError(f"{raw!r} is longer than {self.length} bytes", path=str(path))
        return raw.ljust(self.length, self.fill)


def _merge(zero: Any, value: Any, where: str) -> Any:
    """Return ``value`` laid over ``zero``: missing fields, list items and trailing bytes stay zero."""
    if isinstance(zero, Mapping):
        unknown = [key for key in value if key not in zero]
        if unknown:
            raise KeyError(f"{where} has no field {unknown[0]!r}")
        return {key: _merge(old, value[key], f"{where}.{key}") if key in value else old for key, old in zero.items()}
    if isinstance(zero, Sequence) and not isinstance(zero, str | bytes):
        if len(value) > len(zero):
            raise ValueError(f"{where} holds {len(zero)} items, not {len(value)}")
        return [*(_merge(old, new, where) for old, new in zip(zero, value, strict=False)), *zero[len(value) :]]
    if isinstance(zero, bytes):
        if len(value) > len(zero):
            raise ValueError(f"{where} holds {len(zero)} bytes, not {len(value)}")
        return bytes(value).ljust(len(zero), b"\0")
    return value


def build(declaration: Declaration, /, **values: Any) -> bytes:
    """Encode a cold structure from the fields that are not zero.

    Nested structures are dicts, arrays may be shorter than declared, byte fields too; all the rest is zero (blanks in
    blank-filled text). Raises ``KeyError`` for an unknown field, ``ValueError`` for what is too long, and
    ``construct.ConstructError`` for a number that does not fit.
    """
    zero = declaration.parse(bytes(declaration.sizeof()))
    zero.pop("_io", None)
    return declaration.build(_merge(_plain(zero), values, declaration.name or "structure"))


def build_cached(declaration: Declaration, /, **values: Any) -> bytes:
    """Encode as :func:`build` does, with a cache for structures that are built repeatedly with the same fields."""
    key = (id(declaration), repr(values))
    found = _built.get(key)
    if found is None:
        if len(_built) >= _BUILT_MAX:
            _built.clear()
        # The declaration goes along so that its id stays its own.
        found = _built[key] = (declaration, build(declaration, **values))
    return found[1]


_BUILT_MAX = 256
_built: dict[tuple[int, str], tuple[Declaration, bytes]] = {}


def _plain(parsed: Any) -> Any:
    if isinstance(parsed, Mapping):
        return {key: _plain(value) for key, value in parsed.items() if key != "_io"}
    if isinstance(parsed, list):
        return [_plain(item) for item in parsed]
    return parsed


def plain(parsed: Any) -> Any:
    """Convert a result of construct to plain dicts, lists and values: for JSON output and comparisons."""
    return _plain(parsed)


def _fields(declaration: Declaration) -> Iterator[tuple[str | None, int, int]]:
    position = 0
    for subcon in declaration.subcons:
        width = subcon.sizeof()
        yield subcon.name, position, width
        position += width


def layout(declaration: Declaration) -> dict[str, tuple[int, int]]:
    """Return offset and size in bytes of every named field of a fixed-size declaration, in order."""
    return {name: (offset, width) for name, offset, width in _fields(declaration) if name is not None}


def offset_of(declaration: Declaration, field: str) -> int:
    """Return the byte offset of a field: for an error location in command data (Connect's IPO). ``KeyError`` if
    unknown."""
    return layout(declaration)[field][0]


class Bits:
    """The bit fields of one little-endian integer (a property, a feature's dword), declared once with construct.

    Fields are given from bit 0 up, as name and width in bits; a name that starts with ``_`` is reserved (zero when
    encoded, ignored when decoded). Shifts and masks are derived from the construct declaration.
    """

    __slots__ = ("declaration", "fields", "size")

    def __init__(self, size: int, /, **widths: int) -> None:
        if sum(widths.values()) != 8 * size:
            raise DeclarationError(f"the bit fields fill {sum(widths.values())} of {8 * size} bits")
        # construct counts from the most significant bit of a big-endian integer
        declared = [
            c.Padding(width) if name.startswith("_") else name / c.BitsInteger(width)
            for name, width in reversed(widths.items())
        ]
        self.declaration = c.ByteSwapped(c.BitStruct(*declared))
        self.size = size
        self.fields: dict[str, tuple[int, int]] = {}
        """Shift and (unshifted) mask of each field."""
        position = 8 * size
        for subcon in declared:
            position -= subcon.sizeof()
            if subcon.name is not None:
                self.fields[subcon.name] = position, (1 << subcon.sizeof()) - 1

    def decode(self, value: int) -> dict[str, int]:
        """Return all fields of an integer, raw."""
        return {name: value >> shift & mask for name, (shift, mask) in self.fields.items()}

    def encode(self, **values: int) -> int:
        """Return the integer with these fields. ``KeyError`` for an unknown name, ``ValueError`` for a value too
        large."""
        result = 0
        for name, value in values.items():
            shift, mask = self.fields[name]
            if not 0 <= value <= mask:
                raise ValueError(f"{name} takes 0 to {mask}, not {value}")
            result |= int(value) << shift
        return result
