"""Streams of PDUs for a target: right ones, nearly right ones, and bytes."""

from __future__ import annotations

import struct
from typing import Final

from tests.fuzz.bytes_reader import Reader
from tests.protocol.wire import LAST, Framing, icreq, icresp, term_req

MOST: Final = 64
"""PDUs of one stream."""
NSIDS: Final = (0, 1, 1, 1, 2, 2, 3, 0xFFFFFFFE, 0xFFFFFFFF)
ADMIN: Final = (
    0x00, 0x01, 0x02, 0x02, 0x04, 0x05, 0x06, 0x06, 0x08, 0x09, 0x09, 0x0A, 0x0A, 0x0C, 0x0D, 0x10, 0x11, 0x14, 0x15,
    0x18, 0x19, 0x1A, 0x1C, 0x1E, 0x24, 0x7C, 0x7F, 0x80, 0x81, 0x82, 0x84, 0x86, 0xC0, 0xFF,
)  # fmt: skip
IO: Final = (
    0x00, 0x01, 0x01, 0x01, 0x02, 0x02, 0x02, 0x04, 0x05, 0x08, 0x09, 0x0C, 0x0D, 0x0E, 0x11, 0x12, 0x15, 0x18, 0x19,
    0x79, 0x7A, 0x7D, 0x7F, 0x80, 0xFF,
)  # fmt: skip
FABRICS: Final = (0, 0, 1, 1, 4, 5, 5, 6, 6, 8, 9)
PROPERTIES: Final = (0x00, 0x08, 0x14, 0x14, 0x1C, 0x20, 0x24, 0x68, 0x13)
_LENGTHS: Final = (0, 1, 4, 16, 64, 512, 512, 1024, 1024, 4096, 4096, 8192, 65536, 1 << 20, 0xFFFFFFFF)


def dword(reader: Reader) -> int:
    """Return a dword of a command: mostly small."""
    kind = reader.below(8)
    if kind < 3:
        return 0
    if kind < 6:
        return reader.number()
    return reader.number(4) if kind == 6 else 0xFFFFFFFF


def sqe(reader: Reader, *, admin: bool, length: int | None = None) -> bytes:
    """Return a submission queue entry. `length`: of its data in the capsule."""
    opcode = reader.choose(ADMIN if admin else IO) if reader.below(16) else reader.number()
    flags = 0x40 if reader.below(8) else reader.number()
    cid, nsid = reader.number(), reader.choose(NSIDS)
    dwords = [dword(reader) for _ in range(6)]
    if opcode == 0x7F:
        nsid = reader.choose(FABRICS) | nsid << 8
        dwords[1] = reader.choose(PROPERTIES)
    elif not admin and reader.below(4):  # an I/O command that is mostly right
        dwords[:3] = [reader.below(64), 0, reader.below(8)]
    described = reader.choose(_LENGTHS) if length is None else length
    if length is None and not admin and reader.below(4):
        described = (dwords[2] + 1) * 512
    kind = (0x5A if length is None else 0x01) if reader.below(16) else reader.number()
    address = 0 if reader.below(8) else reader.number(4)
    head = struct.pack("<BBHI16xQI3xB", opcode, flags, cid, nsid & 0xFFFFFFFF, address, described & 0xFFFFFFFF, kind)
    return head + struct.pack("<6I", *(each & 0xFFFFFFFF for each in dwords))


def connect(reader: Reader, subnqn: bytes, hostnqn: bytes, cntlid: int) -> tuple[bytes, bytes]:
    """Return a Connect that is nearly right, and its data."""
    qid, sqsize = reader.choose((0, 0, 1, 1, 2, 0xFFFF)), reader.choose((31, 31, 0, 1, 127, 0xFFFF))
    names = [subnqn, hostnqn]
    if not reader.below(8):
        names[reader.below(2)] = reader.take(reader.below(256))
    data = struct.pack("<16sH238x256s256s256x", reader.take(1) * 16, cntlid, *names)
    length = 1024 if reader.below(8) else reader.size()
    head = struct.pack("<BBHI16xQI3xB", 0x7F, 0x40, reader.number(), 1, 0, length, 0x01)
    return head + struct.pack("<III12x", qid << 16, sqsize, reader.choose((0, 5000, 0xFFFFFFFF))), data[:length]


def stream(reader: Reader, framing: Framing, *, admin: bool) -> list[bytes]:
    """Return PDUs, and bytes that are none."""
    found: list[bytes] = []
    while reader.left and len(found) < MOST:
        kind = reader.below(12)
        if kind < 4:
            pdu = framing.pdu(4, 0, sqe(reader, admin=admin))
        elif kind < 6:
            data = reader.take(8).ljust(reader.size(), b"d")
            pdu = framing.pdu(4, 0, sqe(reader, admin=admin, length=len(data)), data)
        elif kind == 6:
            data = bytes(reader.size())
            pdu = framing.h2c(
                reader.number(), reader.below(8), reader.choose(_LENGTHS[:12]), data, bool(reader.below(2))
            )
        elif kind == 7:
            pdu = (icreq, icresp)[reader.below(2)](reader.below(2), reader.below(4), reader.number(), reader.number())
        elif kind == 8:
            pdu = term_req(2 + reader.below(2), reader.below(8), reader.number(4), bytes(reader.below(160)))
        elif kind == 9:
            pdu = framing.pdu(
                reader.choose((5, 7, 9, 10, 255)), reader.number(), bytes(16), reader.take(reader.below(9))
            )
        elif kind == 10 and found:
            pdu = found[reader.below(len(found))]
        else:
            pdu = reader.take(1 + reader.below(40))
        if not reader.below(6):
            pdu = damaged(reader, pdu)
        found.append(pdu)
    return found


def damaged(reader: Reader, pdu: bytes) -> bytes:
    """Return a PDU with a fault."""
    if not pdu:
        return pdu
    at, value = reader.below(min(len(pdu), 72)), reader.number()
    how = reader.below(4)
    if how == 0:
        return pdu[:at]
    if how == 1:
        return pdu[:at] + bytes([value]) + pdu[at + 1 :]
    if how == 2:
        return pdu[:at] + bytes([pdu[at] ^ 1 << value % 8]) + pdu[at + 1 :]
    return pdu + bytes(value % 16)


FRAMINGS: Final = (Framing(), Framing(), Framing(True), Framing(False, True), Framing(True, True))
__all__ = ["FRAMINGS", "LAST", "connect", "damaged", "sqe", "stream"]
