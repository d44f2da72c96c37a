"""The variable data of NBD's options and replies (NBD protocol, "Option types", "Option reply types").

Decoding raises :class:`NbdProtocolError` with a sentence about what is wrong.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from nvmeof.errors import NvmeofError
from nvmeof.nbd.numbers import MAX_STRING_BYTES, Info

_U16: Final = struct.Struct(">H")
_U32: Final = struct.Struct(">I")


class NbdProtocolError(NvmeofError):
    """The peer broke the NBD protocol, or refused what is needed. The message is one sentence."""


class Reader:
    """Takes fields out of the data of an option, one behind the other."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, length: int) -> bytes:
        """Return the next ``length`` bytes."""
        end = self._at + length
        if end > len(self._data):
            raise NbdProtocolError(f"an option's data ends after {len(self._data)} bytes, {end} are announced in it")
        piece, self._at = self._data[self._at : end], end
        return piece

    def number16(self) -> int:
        """Return the next 16-bit number."""
        return int(_U16.unpack(self.take(2))[0])

    def number32(self) -> int:
        """Return the next 32-bit number."""
        return int(_U32.unpack(self.take(4))[0])

    def text(self, length: int | None = None) -> str:
        """Return text of ``length`` bytes; None: its length precedes it."""
        length = self.number32() if length is None else length
        if length > MAX_STRING_BYTES:
            raise NbdProtocolError(f"a name of {length} bytes is longer than {MAX_STRING_BYTES} bytes")
        try:
            return self.take(length).decode()
        except UnicodeDecodeError:
            raise NbdProtocolError("a name is not UTF-8") from None

    @property
    def rest(self) -> bytes:
        """What has not been taken."""
        return self._data[self._at :]

    def finish(self) -> None:
        """Raise unless all has been taken."""
        if self.rest:
            raise NbdProtocolError(f"an option's data has {len(self.rest)} bytes too many")


def _text(text: str) -> bytes:
    data = text.encode()
    return _U32.pack(len(data)) + data


@dataclass(frozen=True, slots=True)
class InfoRequest:
    """The data of INFO and GO: the export, and the pieces of information that are asked for."""

    export: str
    infos: tuple[int, ...] = ()

    def pack(self) -> bytes:
        """Return the option's data."""
        return _text(self.export) + _U16.pack(len(self.infos)) + b"".join(_U16.pack(info) for info in self.infos)

    @classmethod
    def parse(cls, data: bytes) -> InfoRequest:
        """Read the option's data."""
        reader = Reader(data)
        export = reader.text()
        infos = tuple(reader.number16() for _ in range(reader.number16()))
        reader.finish()
        return cls(export, infos)


@dataclass(frozen=True, slots=True)
class ContextRequest:
    """The data of LIST_META_CONTEXT and SET_META_CONTEXT: the export, and queries."""

    export: str
    queries: tuple[str, ...] = ()

    def pack(self) -> bytes:
        """Return the option's data."""
        return _text(self.export) + _U32.pack(len(self.queries)) + b"".join(_text(query) for query in self.queries)

    @classmethod
    def parse(cls, data: bytes) -> ContextRequest:
        """Read the option's data."""
        reader = Reader(data)
        export = reader.text()
        count = reader.number32()
        if count > len(reader.rest) // 4:
            raise NbdProtocolError(f"{count} queries do not fit an option's data of {len(data)} bytes")
        queries = tuple(reader.text() for _ in range(count))
        reader.finish()
        return cls(export, queries)


def pack_server(name: str, description: str = "") -> bytes:
    """Return the data of REP_SERVER: one export of a list."""
    return _text(name) + description.encode()


def parse_server(data: bytes) -> tuple[str, str]:
    """Return name and description of an export in a list."""
    reader = Reader(data)
    name = reader.text()
    return name, reader.rest.decode("utf-8", "replace")


def pack_context(identifier: int, name: str) -> bytes:
    """Return the data of REP_META_CONTEXT."""
    return _U32.pack(identifier) + name.encode()


def parse_context(data: bytes) -> tuple[int, str]:
    """Return the identifier and the name of a context."""
    reader = Reader(data)
    identifier = reader.number32()
    return identifier, reader.text(len(reader.rest))


def pack_named_info(info: Info, text: str) -> bytes:
    """Return the data of REP_INFO with text: NAME or DESCRIPTION."""
    return _U16.pack(info) + text.encode()


def pack_status(identifier: int, extents: Sequence[tuple[int, int]]) -> bytes:
    """Return the payload of a BLOCK_STATUS chunk: lengths in bytes and flags, of 32 bits each."""
    return _U32.pack(identifier) + b"".join(struct.pack(">II", length, flags) for length, flags in extents)


def pack_status_extended(identifier: int, extents: Sequence[tuple[int, int]]) -> bytes:
    """Return the payload of a BLOCK_STATUS_EXT chunk: lengths in bytes and flags, of 64 bits each."""
    header = struct.pack(">II", identifier, len(extents))
    return header + b"".join(struct.pack(">QQ", length, flags) for length, flags in extents)


def parse_status(payload: bytes, *, extended: bool) -> tuple[int, list[tuple[int, int]]]:
    """Return the context's identifier, and lengths in bytes with flags."""
    reader = Reader(payload)
    identifier = reader.number32()
    count = reader.number32() if extended else len(reader.rest) // 8
    size, form = (16, ">QQ") if extended else (8, ">II")
    if not count or len(reader.rest) != count * size:
        raise NbdProtocolError(f"a block status of {len(payload)} bytes is not made of whole ranges")
    extents = list(struct.iter_unpack(form, reader.rest))
    if any(not length for length, _ in extents):
        raise NbdProtocolError("a block status has a range of 0 bytes")
    return identifier, [(int(length), int(flags)) for length, flags in extents]


def pack_error(error: int, message: str = "", offset: int | None = None) -> bytes:
    """Return the payload of an ERROR chunk, or with ``offset`` of an ERROR_OFFSET chunk."""
    text = message.encode()[:MAX_STRING_BYTES]
    payload = _U32.pack(error) + _U16.pack(len(text)) + text
    return payload if offset is None else payload + struct.pack(">Q", offset)


def parse_error(payload: bytes) -> tuple[int, str]:
    """Return error and message of an ERROR or ERROR_OFFSET chunk."""
    reader = Reader(payload)
    error = reader.number32()
    message = reader.take(reader.number16()).decode("utf-8", "replace")
    if not error:
        raise NbdProtocolError("an error chunk says that there is no error")
    return error, message
