"""Replies in the form that a client has negotiated: simple, structured or extended."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

from nvmeof.nbd.messages import (
    EXTENDED_REPLY,
    SIMPLE_REPLY,
    STRUCTURED_REPLY,
    pack_extended_reply,
    pack_simple_reply,
    pack_structured_reply,
)
from nvmeof.nbd.numbers import (
    EXTENDED_REPLY_MAGIC,
    REPLY_DONE,
    SIMPLE_REPLY_MAGIC,
    STRUCTURED_REPLY_MAGIC,
    Chunk,
)
from nvmeof.nbd.option_data import pack_error, pack_status, pack_status_extended
from nvmeof.nbd.server_negotiation import CONTEXT_ID, ServerSession

_DATA: Final = int(Chunk.OFFSET_DATA)
_STATUS_LENGTH_MAX: Final = 0xFFFFFFFF & ~0xFFFF
"""A range of a block status that is not extended has 32 bits."""


class Replies:
    """Builds the replies of one session."""

    def __init__(self, session: ServerSession) -> None:
        self._structured = session.structured or session.extended
        self._extended = session.extended
        form = EXTENDED_REPLY if self._extended else STRUCTURED_REPLY if self._structured else SIMPLE_REPLY
        # With the offset that the data of a chunk begins with.
        self._data_header = struct.Struct(f"{form.struct.format}Q") if self._structured else form.struct
        self.data_header_bytes = self._data_header.size

    def _chunk(self, chunk: int, cookie: int, offset: int, length: int) -> bytes:
        if self._extended:
            return pack_extended_reply(REPLY_DONE, chunk, cookie, offset, length)
        return pack_structured_reply(REPLY_DONE, chunk, cookie, length)

    def lay_out_reads(
        self, reply: memoryview, cookies: Sequence[int], offsets: Sequence[int], length: int
    ) -> list[memoryview]:
        """Write the headers of reads of one length into the buffer of their replies; where the data of each goes.

        ``reply`` has ``length`` and :attr:`data_header_bytes` bytes for each.
        """
        pack_into, header = self._data_header.pack_into, self.data_header_bytes
        size, data = header + length, length + 8
        places: list[memoryview] = []
        at = 0
        for cookie, offset in zip(cookies, offsets, strict=True):
            if self._extended:
                pack_into(reply, at, EXTENDED_REPLY_MAGIC, REPLY_DONE, _DATA, cookie, offset, data, offset)
            elif self._structured:
                pack_into(reply, at, STRUCTURED_REPLY_MAGIC, REPLY_DONE, _DATA, cookie, data, offset)
            else:
                pack_into(reply, at, SIMPLE_REPLY_MAGIC, 0, cookie)
            places.append(reply[at + header : at + size])
            at += size
        return places

    def done(self, cookie: int, offset: int) -> bytes:
        """Return the reply of a command without data that has succeeded."""
        return self._chunk(Chunk.NONE, cookie, offset, 0) if self._extended else pack_simple_reply(cookie)

    def error(self, cookie: int, offset: int, error: int, message: str, *, structured: bool) -> bytes:
        """Return the reply of a command that has failed. ``structured``: it is one that needs a structured reply."""
        if not self._extended and not (self._structured and structured):
            return pack_simple_reply(cookie, error)
        payload = pack_error(error, message)
        return self._chunk(Chunk.ERROR, cookie, offset, len(payload)) + payload

    def status(self, cookie: int, offset: int, extents: list[tuple[int, int]]) -> bytes:
        """Return a block status: lengths in bytes and flags."""
        if self._extended:
            payload = pack_status_extended(CONTEXT_ID, extents)
            return self._chunk(Chunk.BLOCK_STATUS_EXT, cookie, offset, len(payload)) + payload
        fitting: list[tuple[int, int]] = []
        for length, flags in extents:
            fitting.append((min(length, _STATUS_LENGTH_MAX), flags))
            if length > _STATUS_LENGTH_MAX:
                break
        payload = pack_status(CONTEXT_ID, fitting)
        return self._chunk(Chunk.BLOCK_STATUS, cookie, offset, len(payload)) + payload
