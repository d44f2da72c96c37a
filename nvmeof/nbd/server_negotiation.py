"""The server's half of fixed newstyle negotiation (NBD protocol, "Newstyle negotiation", "Option types")."""

from __future__ import annotations

import struct
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Final

from nvmeof.nbd.messages import BLOCK_SIZES, EXPORT_INFO, OPTION, BlockSizes, ExportInfo, pack_option_reply
from nvmeof.nbd.numbers import (
    BASE_ALLOCATION,
    INIT_MAGIC,
    MAX_STRING_BYTES,
    OPTION_MAGIC,
    HandshakeFlags,
    Info,
    Option,
    OptionReplyType,
    TransmissionFlags,
)
from nvmeof.nbd.option_data import (
    ContextRequest,
    InfoRequest,
    NbdProtocolError,
    pack_context,
    pack_named_info,
    pack_server,
)
from nvmeof.nbd.steps import ExportFacts, Lookup, Receive, Send, StartTls

CONTEXT_ID: Final = 1
"""Our identifier of base:allocation."""
OPTION_MAX_BYTES: Final = 64 << 10
"""Data of an option beyond this ends the connection; beyond what a name and its queries take it is refused."""
OPTIONS_MAX: Final = 1000
"""Options of one negotiation."""
_ZEROES: Final = bytes(124)

_Step = Receive | Send | StartTls | Lookup
_Steps = Generator[_Step, "bytes | ExportFacts | None", None]


@dataclass(frozen=True, slots=True)
class ServerSession:
    """The result of a negotiation: the export, the form of replies, and whether block status was agreed on.

    ``sizes_known``: the client has asked for the block sizes, so that it observes them.
    """

    export: ExportFacts
    structured: bool
    extended: bool
    block_status: bool
    sizes_known: bool


class ServerNegotiation:
    """One client's negotiation. :meth:`run` is the generator of steps; :attr:`session` is set when it agreed.

    ``names``: exports for LIST, name and description. ``tls``: None for none, False when a client may have it, True
    when a client must.
    """

    def __init__(self, names: Sequence[tuple[str, str]], *, tls: bool | None = None) -> None:
        self.session: ServerSession | None = None
        self._names = names
        self._tls = tls
        self._secure = False
        self._structured = self._extended = False
        self._context_of: str | None = None
        self._zeroes = True

    def run(self) -> _Steps:
        """Negotiate. Raises :class:`NbdProtocolError` when the connection has to be ended."""
        flags = HandshakeFlags.FIXED_NEWSTYLE | HandshakeFlags.NO_ZEROES
        yield Send(struct.pack(">QQH", INIT_MAGIC, OPTION_MAGIC, flags))
        chosen = int.from_bytes((yield from self._receive(4)), "big")
        if chosen & ~flags:
            raise NbdProtocolError(f"the client sets flags that it was not offered: {chosen:#x}")
        self._zeroes = not chosen & HandshakeFlags.NO_ZEROES
        for _ in range(OPTIONS_MAX):
            header = OPTION.unpack_from((yield from self._receive(OPTION.size)))
            if header.magic != OPTION_MAGIC:
                raise NbdProtocolError("the client sends something that is no option")
            if header.length > OPTION_MAX_BYTES:
                raise NbdProtocolError(f"the client sends an option of {header.length} bytes: too many")
            data = (yield from self._receive(header.length)) if header.length else b""
            yield from self._option(header.option, data)
            if self.session is not None or header.option == Option.ABORT:
                return
        raise NbdProtocolError(f"the client sends more than {OPTIONS_MAX} options")

    @staticmethod
    def _receive(count: int) -> Generator[_Step, bytes | ExportFacts | None, bytes]:
        data = yield Receive(count)
        assert isinstance(data, bytes)
        return data

    @staticmethod
    def _lookup(name: str) -> Generator[_Step, bytes | ExportFacts | None, ExportFacts | None]:
        found = yield Lookup(name)
        assert not isinstance(found, bytes)
        return found

    def _option(self, option: int, data: bytes) -> _Steps:
        if self._tls and not self._secure and option not in (Option.ABORT, Option.STARTTLS):
            if option == Option.EXPORT_NAME:
                raise NbdProtocolError("the client does not use TLS, which is required here")
            yield _error(option, OptionReplyType.ERR_TLS_REQD, "this server requires TLS")
            return
        try:
            yield from self._known_option(option, data)
        except NbdProtocolError as error:
            if option == Option.EXPORT_NAME:
                raise
            yield _error(option, OptionReplyType.ERR_INVALID, str(error))

    def _known_option(self, option: int, data: bytes) -> _Steps:
        if option == Option.EXPORT_NAME:
            yield from self._export_name(data)
        elif option in (Option.INFO, Option.GO):
            yield from self._info(option, InfoRequest.parse(data))
        elif option in (Option.LIST_META_CONTEXT, Option.SET_META_CONTEXT):
            yield from self._contexts(option, ContextRequest.parse(data))
        elif option not in (Option.ABORT, Option.LIST, Option.STARTTLS, Option.STRUCTURED_REPLY,
                            Option.EXTENDED_HEADERS):  # fmt: skip
            yield _error(option, OptionReplyType.ERR_UNSUP, "this server does not have that option")
        elif data:
            yield _error(option, OptionReplyType.ERR_INVALID, "that option takes no data")
        else:
            yield from self._plain_option(option)

    def _plain_option(self, option: int) -> _Steps:
        """Do an option without data."""
        acknowledgement = pack_option_reply(option, OptionReplyType.ACK)
        if option == Option.LIST:
            names = (pack_option_reply(option, OptionReplyType.SERVER, pack_server(*each)) for each in self._names)
            acknowledgement = b"".join(names) + acknowledgement
        elif option == Option.STARTTLS:
            if self._tls is None:
                yield _error(option, OptionReplyType.ERR_UNSUP, "this server has no certificate for TLS")
            elif self._secure:
                yield _error(option, OptionReplyType.ERR_INVALID, "TLS is in use already")
            else:
                yield StartTls(acknowledgement)
                # What was negotiated in clear may have been another's.
                self._secure, self._structured, self._extended, self._context_of = True, False, False, None
            return
        elif option == Option.STRUCTURED_REPLY:
            if self._extended:
                yield _error(option, OptionReplyType.ERR_EXT_HEADER_REQD, "extended headers are in use already")
                return
            self._structured = True
        elif option == Option.EXTENDED_HEADERS:
            self._extended = True
        yield Send(acknowledgement)

    def _export_name(self, data: bytes) -> _Steps:
        if len(data) > MAX_STRING_BYTES:
            raise NbdProtocolError(f"the client names an export with {len(data)} bytes: too many")
        if self._extended:
            raise NbdProtocolError("the client uses NBD_OPT_EXPORT_NAME after extended headers were agreed on")
        name = data.decode("utf-8", "replace")
        export = yield from self._lookup(name)
        if export is None:
            raise NbdProtocolError(f"the client wants the export {name!r}, which does not exist")
        yield Send(struct.pack(">QH", export.size, self._flags(export)) + (_ZEROES if self._zeroes else b""))
        self._begin(export, name, False)

    def _flags(self, export: ExportFacts) -> int:
        """DF means something with structured replies only."""
        structured = self._structured or self._extended
        return export.flags | (TransmissionFlags.SEND_DF if structured else 0)

    def _info(self, option: int, request: InfoRequest) -> _Steps:
        export = yield from self._lookup(request.export)
        if export is None:
            yield _error(option, OptionReplyType.ERR_UNKNOWN, f"there is no export {request.export!r}")
            return
        kind = OptionReplyType.INFO
        parts = [EXPORT_INFO.pack(ExportInfo(Info.EXPORT, export.size, self._flags(export)))]
        if Info.BLOCK_SIZE in request.infos:
            sizes = BlockSizes(Info.BLOCK_SIZE, export.minimum, export.preferred, export.maximum)
            parts.append(BLOCK_SIZES.pack(sizes))
        if Info.NAME in request.infos:
            parts.append(pack_named_info(Info.NAME, export.name))
        if Info.DESCRIPTION in request.infos and export.description:
            parts.append(pack_named_info(Info.DESCRIPTION, export.description))
        replies = [pack_option_reply(option, kind, part) for part in parts]
        yield Send(b"".join(replies) + pack_option_reply(option, OptionReplyType.ACK))
        if option == Option.GO:
            self._begin(export, request.export, Info.BLOCK_SIZE in request.infos)

    def _begin(self, export: ExportFacts, name: str, sizes_known: bool) -> None:
        context = self._context_of == name
        self.session = ServerSession(export, self._structured, self._extended, context, sizes_known)

    def _contexts(self, option: int, request: ContextRequest) -> _Steps:
        setting = option == Option.SET_META_CONTEXT
        if setting:
            self._context_of = None
        if not (self._structured or self._extended):
            yield _error(option, OptionReplyType.ERR_INVALID, "ask for structured replies or extended headers first")
            return
        if (yield from self._lookup(request.export)) is None:
            yield _error(option, OptionReplyType.ERR_UNKNOWN, f"there is no export {request.export!r}")
            return
        wanted = BASE_ALLOCATION in request.queries
        if not setting:
            wanted = wanted or not request.queries or "base:" in request.queries
        reply = b""
        if wanted:
            data = pack_context(CONTEXT_ID if setting else 0, BASE_ALLOCATION)
            reply = pack_option_reply(option, OptionReplyType.META_CONTEXT, data)
            self._context_of = request.export if setting else self._context_of
        yield Send(reply + pack_option_reply(option, OptionReplyType.ACK))


def _error(option: int, kind: OptionReplyType, message: str) -> Send:
    return Send(pack_option_reply(option, kind, message.encode()))
