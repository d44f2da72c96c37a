"""The few NVMe/TCP layouts that the load generator needs, written down apart from the package it measures.

A load generator that used the package's own codecs would repeat its mistakes, and would slow down with it.
Layouts: NVMe/TCP transport specification (PDU headers), NVMe Base specification (SQE, CQE, Connect).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple

try:
    from crc32c import crc32c as _fast_crc32c

    crc32c: Callable[[bytes | bytearray | memoryview], int] = _fast_crc32c
except ImportError:  # the table is slow, but only prepared bytes and single checks pass through it

    def _make_table() -> list[int]:
        table = []
        for byte in range(256):
            value = byte
            for _ in range(8):
                value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
            table.append(value)
        return table

    _TABLE = _make_table()

    def _table_crc32c(data: bytes | bytearray | memoryview) -> int:
        value = 0xFFFFFFFF
        for byte in data:
            value = _TABLE[(value ^ byte) & 0xFF] ^ value >> 8
        return value ^ 0xFFFFFFFF

    crc32c = _table_crc32c

ICREQ, ICRESP, H2C_TERM, C2H_TERM, CAPSULE_CMD, CAPSULE_RESP, H2C_DATA, C2H_DATA, R2T = 0, 1, 2, 3, 4, 5, 6, 7, 9
HDGSTF, DDGSTF, LAST_PDU, SUCCESS = 1, 2, 4, 8

COMMON_HEADER = struct.Struct("<BBBBI")  # pdu_type flags hlen pdo plen
INITIALIZE = struct.Struct("<HBBI112x")  # pfv hpda/cpda dgst maxr2t/maxh2cdata, after the common header
DATA_HEADER = struct.Struct("<BBBBIHHII4x")  # common header, cccid ttag datao datal; R2T has the same shape
CQE = struct.Struct("<IIHHHH")  # dw0 dw1 sqhd sqid cid status
SQE = struct.Struct("<BBHIIIQQI3xBIIIIII")  # opcode flags cid nsid cdw2 cdw3 mptr sgl(address length type) cdw10-15

PSDT_SGL = 0x40
IN_CAPSULE, TRANSPORT_SGL = 0x01, 0x5A
FABRICS, CONNECT, PROPERTY_SET, PROPERTY_GET = 0x7F, 0x01, 0x00, 0x04
WRITE, READ, IDENTIFY, SET_FEATURES = 0x01, 0x02, 0x06, 0x09

CAPSULE_BYTES = 72  # CapsuleCmd header plus SQE
RESPONSE_BYTES = 24  # CapsuleResp; also the headers of C2HData, H2CData and R2T


class Framing(NamedTuple):
    """What a queue's handshake agreed on, as far as sizes on the wire depend on it."""

    header_digest: bool = False
    data_digest: bool = False
    alignment_bytes: int = 4  # of the data in a PDU from host to controller (CPDA)
    maxh2cdata_bytes: int = 1 << 20

    @property
    def hdgst_bytes(self) -> int:
        return 4 if self.header_digest else 0

    @property
    def ddgst_bytes(self) -> int:
        return 4 if self.data_digest else 0

    def flags(self, payload: bool) -> int:
        return (HDGSTF if self.header_digest else 0) | (DDGSTF if self.data_digest and payload else 0)

    def data_offset(self, hlen: int) -> int:
        """PDO of a host's PDU whose header is ``hlen`` bytes long."""
        return -(-(hlen + self.hdgst_bytes) // self.alignment_bytes) * self.alignment_bytes

    def head(self, pdu_type: int, header: bytes, payload_bytes: int = 0, flags: int = 0) -> bytes:
        """Everything of a PDU that stands before its payload; ``header`` comes without the common header."""
        hlen = 8 + len(header)
        pdo = self.data_offset(hlen) if payload_bytes else 0
        plen = pdo + payload_bytes + self.ddgst_bytes if payload_bytes else hlen + self.hdgst_bytes
        flags |= self.flags(payload_bytes > 0)
        block = COMMON_HEADER.pack(pdu_type, flags, hlen, pdo, plen) + header
        if self.header_digest:
            block += crc32c(block).to_bytes(4, "little")
        return block.ljust(pdo, b"\0")

    def tail(self, payload: bytes | bytearray | memoryview) -> bytes:
        """The data digest that follows a payload, or nothing."""
        return crc32c(payload).to_bytes(4, "little") if self.data_digest else b""


def rw_sqe(opcode: int, cid: int, nsid: int, slba: int, blocks: int, length: int, sgl_type: int) -> bytes:
    """A Read or Write of ``blocks`` logical blocks, ``length`` bytes, at ``slba``."""
    return SQE.pack(
        opcode, PSDT_SGL, cid, nsid, 0, 0, 0, 0, length, sgl_type, slba & 0xFFFFFFFF, slba >> 32, blocks - 1, 0, 0, 0
    )


def reply_templates(framing: Framing, payload_bytes: int, success: bool) -> dict[str, bytes]:
    """The fixed parts of a controller's replies, for a server that answers without reading: see floor.py."""
    response = framing_reply(framing, CAPSULE_RESP, bytes(16))
    data = framing_reply(
        framing, C2H_DATA, struct.pack("<HHII4x", 0, 0, 0, payload_bytes), payload_bytes, LAST_PDU | SUCCESS * success
    )
    r2t = framing_reply(framing, R2T, struct.pack("<HHII4x", 1, 1, 0, payload_bytes))
    return {
        "data_head": data,
        "data_tail": bytes(framing.ddgst_bytes) + (b"" if success else response),
        "response": response,
        "r2t": r2t,
    }


def framing_reply(framing: Framing, pdu_type: int, header: bytes, payload_bytes: int = 0, flags: int = 0) -> bytes:
    """As `Framing.head`, in the other direction (the generator asks for no padding, HPDA 0)."""
    return framing._replace(alignment_bytes=4).head(pdu_type, header, payload_bytes, flags)
