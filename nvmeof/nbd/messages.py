"""The fixed messages of NBD, big-endian (NBD protocol, "Newstyle negotiation", "Transmission phase")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import construct as c

from nvmeof.nbd.numbers import (
    EXTENDED_REPLY_MAGIC,
    EXTENDED_REQUEST_MAGIC,
    OPTION_MAGIC,
    OPTION_REPLY_MAGIC,
    REQUEST_MAGIC,
    SIMPLE_REPLY_MAGIC,
    STRUCTURED_REPLY_MAGIC,
)
from nvmeof.wire import Record

U16: Final = c.Int16ub
U32: Final = c.Int32ub
U64: Final = c.Int64ub


@dataclass(slots=True)
class OptionHeader:
    """What precedes the data of an option that a client sends; ``length`` bytes follow."""

    magic: int
    option: int
    length: int


@dataclass(slots=True)
class OptionReplyHeader:
    """What precedes the data of an option's reply; ``length`` bytes follow."""

    magic: int
    option: int
    reply_type: int
    length: int


@dataclass(slots=True)
class Request:
    """A compact request: ``length`` bytes at ``offset``; the data of a write follows."""

    magic: int
    flags: int
    command: int
    cookie: int
    offset: int
    length: int


@dataclass(slots=True)
class SimpleReply:
    """A simple reply; the data of a read follows unless ``error`` is set."""

    magic: int
    error: int
    cookie: int


@dataclass(slots=True)
class StructuredReply:
    """One chunk of a structured reply; ``length`` bytes of payload follow."""

    magic: int
    flags: int
    chunk: int
    cookie: int
    length: int


@dataclass(slots=True)
class ExtendedReply:
    """One chunk of an extended reply; ``offset`` is that of the request, ``length`` bytes of payload follow."""

    magic: int
    flags: int
    chunk: int
    cookie: int
    offset: int
    length: int


@dataclass(slots=True)
class ExportInfo:
    """NBD_INFO_EXPORT: the size in bytes, and :class:`TransmissionFlags`."""

    info: int
    size: int
    flags: int


@dataclass(slots=True)
class BlockSizes:
    """NBD_INFO_BLOCK_SIZE, in bytes."""

    info: int
    minimum: int
    preferred: int
    maximum: int


_REQUEST_FIELDS: Final = ("magic" / U32, "flags" / U16, "command" / U16, "cookie" / U64, "offset" / U64)

OPTION: Final[Record[OptionHeader]] = Record(
    c.Struct("magic" / U64, "option" / U32, "length" / U32), OptionHeader, byte_order=">"
)
OPTION_REPLY: Final[Record[OptionReplyHeader]] = Record(
    c.Struct("magic" / U64, "option" / U32, "reply_type" / U32, "length" / U32), OptionReplyHeader, byte_order=">"
)
REQUEST: Final[Record[Request]] = Record(c.Struct(*_REQUEST_FIELDS, "length" / U32), Request, byte_order=">")
EXTENDED_REQUEST: Final[Record[Request]] = Record(c.Struct(*_REQUEST_FIELDS, "length" / U64), Request, byte_order=">")
SIMPLE_REPLY: Final[Record[SimpleReply]] = Record(
    c.Struct("magic" / U32, "error" / U32, "cookie" / U64), SimpleReply, byte_order=">"
)
STRUCTURED_REPLY: Final[Record[StructuredReply]] = Record(
    c.Struct("magic" / U32, "flags" / U16, "chunk" / U16, "cookie" / U64, "length" / U32),
    StructuredReply,
    byte_order=">",
)
EXTENDED_REPLY: Final[Record[ExtendedReply]] = Record(
    c.Struct("magic" / U32, "flags" / U16, "chunk" / U16, "cookie" / U64, "offset" / U64, "length" / U64),
    ExtendedReply,
    byte_order=">",
)
EXPORT_INFO: Final[Record[ExportInfo]] = Record(
    c.Struct("info" / U16, "size" / U64, "flags" / U16), ExportInfo, byte_order=">"
)
BLOCK_SIZES: Final[Record[BlockSizes]] = Record(
    c.Struct("info" / U16, "minimum" / U32, "preferred" / U32, "maximum" / U32), BlockSizes, byte_order=">"
)


def pack_request(command: int, flags: int, cookie: int, offset: int, length: int) -> bytes:
    """Return a compact request."""
    return REQUEST.struct.pack(REQUEST_MAGIC, flags, command, cookie, offset, length)


def pack_extended_request(command: int, flags: int, cookie: int, offset: int, length: int) -> bytes:
    """Return an extended request."""
    return EXTENDED_REQUEST.struct.pack(EXTENDED_REQUEST_MAGIC, flags, command, cookie, offset, length)


def pack_simple_reply(cookie: int, error: int = 0) -> bytes:
    """Return a simple reply; the data of a read follows."""
    return SIMPLE_REPLY.struct.pack(SIMPLE_REPLY_MAGIC, error, cookie)


def pack_structured_reply(flags: int, chunk: int, cookie: int, length: int) -> bytes:
    """Return the header of a structured reply's chunk."""
    return STRUCTURED_REPLY.struct.pack(STRUCTURED_REPLY_MAGIC, flags, chunk, cookie, length)


def pack_extended_reply(flags: int, chunk: int, cookie: int, offset: int, length: int) -> bytes:
    """Return the header of an extended reply's chunk."""
    return EXTENDED_REPLY.struct.pack(EXTENDED_REPLY_MAGIC, flags, chunk, cookie, offset, length)


def pack_option(option: int, data: bytes = b"") -> bytes:
    """Return an option with its data."""
    return OPTION.struct.pack(OPTION_MAGIC, option, len(data)) + data


def pack_option_reply(option: int, reply_type: int, data: bytes = b"") -> bytes:
    """Return an option's reply with its data."""
    return OPTION_REPLY.struct.pack(OPTION_REPLY_MAGIC, option, reply_type, len(data)) + data
