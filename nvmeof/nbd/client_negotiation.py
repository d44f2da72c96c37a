"""The client's half of fixed newstyle negotiation (NBD protocol, "Newstyle negotiation", "Option types")."""

from __future__ import annotations

import struct
from collections.abc import Generator
from dataclasses import dataclass
from typing import Final

from nvmeof.nbd.messages import BLOCK_SIZES, EXPORT_INFO, OPTION_REPLY, pack_option
from nvmeof.nbd.numbers import (
    BASE_ALLOCATION,
    DEFAULT_MAX_PAYLOAD_BYTES,
    INIT_MAGIC,
    OLDSTYLE_MAGIC,
    OPTION_ERROR,
    OPTION_MAGIC,
    OPTION_REPLY_MAGIC,
    HandshakeFlags,
    Info,
    Option,
    OptionReplyType,
)
from nvmeof.nbd.option_data import ContextRequest, InfoRequest, NbdProtocolError, parse_context
from nvmeof.nbd.steps import ExportFacts, Receive, Send, StartTls

_REPLY_MAX_BYTES: Final = 64 << 10
_REPLIES_MAX: Final = 1000
_GREETING: Final = struct.Struct(">QQH")
_NAMED_EXPORT: Final = struct.Struct(">QH")
_OLD_ZEROES: Final = 124
_WHY: Final = {
    OptionReplyType.ERR_POLICY: "its policy forbids that",
    OptionReplyType.ERR_TLS_REQD: "it requires TLS: write nbds in place of nbd",
    OptionReplyType.ERR_UNKNOWN: "it has no export of that name",
    OptionReplyType.ERR_SHUTDOWN: "it is shutting down",
}

Steps = Generator[Receive | Send | StartTls, bytes, "ClientSession"]
_Replies = Generator[Receive | Send | StartTls, bytes, list[tuple[int, bytes]]]


@dataclass(frozen=True, slots=True)
class ClientSession:
    """The result of a negotiation. ``context``: the identifier of base:allocation, None where there is none."""

    export: ExportFacts
    structured: bool = False
    context: int | None = None


def negotiate(export: str, *, tls: bool = False) -> Steps:
    """Negotiate transmission of ``export``: TLS where asked for, structured replies and block status where there are.

    Raises :class:`NbdProtocolError` when the server refuses, or is no NBD server.
    """
    magic, style, bits = _GREETING.unpack((yield Receive(_GREETING.size)))
    if magic != INIT_MAGIC:
        raise NbdProtocolError("there is no NBD server: its first bytes are others")
    if style == OLDSTYLE_MAGIC or not bits & HandshakeFlags.FIXED_NEWSTYLE:
        raise NbdProtocolError("the NBD server has no fixed newstyle negotiation, only an older one")
    if style != OPTION_MAGIC:
        raise NbdProtocolError("there is no NBD server: its greeting has another number")
    flags = bits & (HandshakeFlags.FIXED_NEWSTYLE | HandshakeFlags.NO_ZEROES)
    yield Send(struct.pack(">I", flags))
    if tls:
        yield from _start_tls()
    structured = bool((yield from _option(Option.STRUCTURED_REPLY, optional=True)))
    context = None
    if structured:
        query = ContextRequest(export, (BASE_ALLOCATION,)).pack()
        for kind, data in (yield from _option(Option.SET_META_CONTEXT, query, optional=True)):
            if kind == OptionReplyType.META_CONTEXT and parse_context(data)[1] == BASE_ALLOCATION:
                context = parse_context(data)[0]
    request = InfoRequest(export, (Info.BLOCK_SIZE,)).pack()
    replies = yield from _option(Option.GO, request, optional=True)
    if replies:
        return ClientSession(_facts(export, replies), structured, context)
    yield Send(pack_option(Option.EXPORT_NAME, export.encode()))
    size, transmission = _NAMED_EXPORT.unpack((yield Receive(_NAMED_EXPORT.size)))
    if not flags & HandshakeFlags.NO_ZEROES:
        yield Receive(_OLD_ZEROES)
    return ClientSession(ExportFacts(size, transmission, name=export), structured, context)


def _start_tls() -> Generator[Receive | Send | StartTls, bytes, None]:
    replies = yield from _option(Option.STARTTLS, optional=True)
    if not replies:
        raise NbdProtocolError("the NBD server has no TLS: write nbd in place of nbds, or give it certificates")
    yield StartTls()


def _option(option: Option, data: bytes = b"", *, optional: bool = False) -> _Replies:
    """Send an option; return its replies, those before the acknowledgement first. Empty: not supported."""
    yield Send(pack_option(option, data))
    replies: list[tuple[int, bytes]] = []
    while len(replies) < _REPLIES_MAX:
        header = OPTION_REPLY.unpack_from((yield Receive(OPTION_REPLY.size)))
        if header.magic != OPTION_REPLY_MAGIC or header.option != option:
            raise NbdProtocolError("the NBD server answers with something that is no reply to the option sent")
        if header.length > _REPLY_MAX_BYTES:
            raise NbdProtocolError(f"the NBD server answers an option with {header.length} bytes: too many")
        payload = (yield Receive(header.length)) if header.length else b""
        if header.reply_type & OPTION_ERROR:
            if optional and header.reply_type == OptionReplyType.ERR_UNSUP:
                return []
            if option == Option.SET_META_CONTEXT and header.reply_type != OptionReplyType.ERR_UNKNOWN:
                return []
            raise _refused(header.reply_type, payload)
        replies.append((header.reply_type, payload))
        if header.reply_type == OptionReplyType.ACK:
            return replies
    raise NbdProtocolError("the NBD server answers one option without an end")


def _refused(kind: int, payload: bytes) -> NbdProtocolError:
    said = payload.decode("utf-8", "replace")
    known = kind in OptionReplyType._value2member_map_
    why = _WHY.get(OptionReplyType(kind)) if known else None
    name = OptionReplyType(kind).name if known else f"{kind:#x}"
    text = why or f"it answers {name}"
    return NbdProtocolError(f"the NBD server refuses: {text}{f' ({said!r})' if said else ''}")


def _facts(export: str, replies: list[tuple[int, bytes]]) -> ExportFacts:
    size = flags = None
    sizes = (1, 4096, DEFAULT_MAX_PAYLOAD_BYTES)
    for kind, data in replies:
        if kind != OptionReplyType.INFO or len(data) < 2:
            continue
        info = int.from_bytes(data[:2], "big")
        if info == Info.EXPORT and len(data) == EXPORT_INFO.size:
            found = EXPORT_INFO.unpack_from(data)
            size, flags = found.size, found.flags
        elif info == Info.BLOCK_SIZE and len(data) == BLOCK_SIZES.size:
            block = BLOCK_SIZES.unpack_from(data)
            sizes = (block.minimum, block.preferred, block.maximum)
    if size is None or flags is None:
        raise NbdProtocolError("the NBD server does not say how large the export is")
    minimum, preferred, maximum = sizes
    if not minimum or minimum & minimum - 1 or minimum > 64 << 10 or maximum < minimum:
        raise NbdProtocolError(f"the NBD server announces impossible block sizes: {minimum}, {preferred}, {maximum}")
    return ExportFacts(size, flags, minimum, preferred, maximum, export)
