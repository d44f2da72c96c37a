"""PDU headers as bytes. A connection's encoder can be replaced: that is where faults and odd peers come from."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from struct import Struct
from typing import Final

from ..pdu.capsule import CAPSULE_CMD_BYTES, CAPSULE_RESP, CAPSULE_RESP_BYTES
from ..pdu.digest import crc32c, digest_bytes
from ..pdu.header import CH, DIGEST_BYTES, Flags, PduType, align
from ..pdu.transfer import C2H_DATA, H2C_DATA, R2T_PDU, TRANSFER_BYTES
from ..wire import Buffer

PSDT_SGL: Final = 0x40
"""PSDT 01b in the SQE's flags: SGLs, and what Linux sends always."""

# CH; opcode, flags, CID; NSID to MPTR; SGL1 (address; length, type); CDW10 to CDW15
_COMMAND: Final = Struct("<8s BBH 20s QQ 24s")
_SGL_TYPE_SHIFT: Final = 56
"""Of the second half of SGL1: its length in the lowest 32 bits, its type in the highest 8."""
_WORDS: Final = CAPSULE_CMD_BYTES // 8
"""A CapsuleCmd without digest as 64-bit words; of these the batches change two."""
_CID_WORD: Final = 1
_SLBA_WORD: Final = 6
_CAPSULE_WORDS: Final = Struct(f"<{_WORDS}Q")
_PREFIXED: Final = Struct("<8sH14s")
# These come once per command, so their common headers are made once per connection.
_R2T: Final = Struct("<8sHHII4x")
_RESPONSE: Final = Struct("<8sIIHHHH")
assert _R2T.size == R2T_PDU.size and _RESPONSE.size == CAPSULE_RESP.size


class Encoder:
    """Encoder of one connection's PDUs, with the results of its handshake.

    ``pda_bytes`` is the alignment of data that the peer asked for.
    """

    __slots__ = (
        "_command_end",
        "_command_flags",
        "_command_header",
        "_data_end",
        "_data_flags",
        "_r2t_header",
        "_response_header",
        "_success_headers",
        "data_digest",
        "header_digest",
    )

    def __init__(self, header_digest: bool = False, data_digest: bool = False, pda_bytes: int = 4) -> None:
        self.header_digest = header_digest
        self.data_digest = data_digest
        digest = DIGEST_BYTES if header_digest else 0
        self._command_flags = Flags.HDGSTF if header_digest else 0
        self._data_flags = self._command_flags | (Flags.DDGSTF if data_digest else 0)
        self._command_end = align(CAPSULE_CMD_BYTES + digest, pda_bytes)
        self._data_end = align(TRANSFER_BYTES + digest, pda_bytes)
        pack, flags = CH.struct.pack, self._command_flags
        self._command_header = pack(PduType.CAPSULE_CMD, flags, CAPSULE_CMD_BYTES, 0, CAPSULE_CMD_BYTES + digest)
        self._r2t_header = pack(PduType.R2T, flags, TRANSFER_BYTES, 0, TRANSFER_BYTES + digest)
        self._response_header = pack(PduType.CAPSULE_RESP, flags, CAPSULE_RESP_BYTES, 0, CAPSULE_RESP_BYTES + digest)
        self._success_headers: dict[tuple[int, int], tuple[bytes, bytes]] = {}

    def _seal(self, header: bytes, end: int) -> bytes:
        """Add the header digest, and padding up to ``end`` where data begins there."""
        if self.header_digest:
            header += digest_bytes(header)
        return header.ljust(end, b"\0")

    def command(self, cid: int, sqe: Buffer, sgl: tuple[int, int, int], data_bytes: int) -> bytes:
        """Build a CapsuleCmd up to its data. ``sgl`` is SGL1's (address, length, type); ``data_bytes`` is what
        follows."""
        if type(sqe) is not bytes:
            sqe = bytes(sqe)
        if data_bytes:
            end = self._command_end
            plen = end + data_bytes + (DIGEST_BYTES if self.data_digest else 0)
            common = CH.struct.pack(PduType.CAPSULE_CMD, self._data_flags, CAPSULE_CMD_BYTES, end, plen)
        else:
            end, common = 0, self._command_header
        header = _COMMAND.pack(
            common, sqe[0], sqe[1] & 0x3F | PSDT_SGL, cid, sqe[4:24],
            sgl[0], sgl[1] | sgl[2] << _SGL_TYPE_SHIFT, sqe[40:64],
        )  # fmt: skip
        return self._seal(header, end) if end or self.header_digest else header

    def commands(
        self, cids: Sequence[int], sqe: bytes, slbas: Sequence[int], sgl: tuple[int, int, int], data_bytes: int
    ) -> bytes:
        """Build CapsuleCmds up to their data, one behind the other, that differ only in CID and SLBA (CDW10, CDW11).

        ``sqe`` is that of all; its own CID and SLBA count for nothing. Raises ``OverflowError`` for an SLBA beyond 64
        bits.
        """
        whole = self.command(0, sqe, sgl, data_bytes)
        rest = whole[CAPSULE_CMD_BYTES:]
        words = _CAPSULE_WORDS.unpack_from(whole)
        first = words[_CID_WORD]
        many = array("Q", words) * len(cids)
        many[_CID_WORD::_WORDS] = array("Q", [first | cid << 16 for cid in cids])
        many[_SLBA_WORD::_WORDS] = array("Q", slbas)
        if sys.byteorder == "big":
            many.byteswap()
        raw = many.tobytes()
        if not rest:
            return raw
        capsules = [raw[at : at + CAPSULE_CMD_BYTES] for at in range(0, len(raw), CAPSULE_CMD_BYTES)]
        if self.header_digest:
            return b"".join([self._seal(capsule, len(whole)) for capsule in capsules])
        return b"".join([capsule + rest for capsule in capsules])

    def response(self, cid: int, status_field: int, dw0: int, dw1: int, sqhd: int, sqid: int) -> bytes:
        """Build a whole CapsuleResp."""
        header = _RESPONSE.pack(self._response_header, dw0, dw1, sqhd, sqid, cid, status_field)
        return self._seal(header, 0) if self.header_digest else header

    def _data_plen(self, datal: int) -> int:
        return self._data_end + datal + (DIGEST_BYTES if self.data_digest else 0)

    def c2h_data(self, cid: int, datao: int, datal: int, flags: int) -> bytes:
        """Build a C2HData up to its data; ``flags`` are LAST_PDU and SUCCESS."""
        header = C2H_DATA.struct.pack(
            PduType.C2H_DATA, self._data_flags | flags, TRANSFER_BYTES, self._data_end, self._data_plen(datal),
            cid, datao, datal,
        )  # fmt: skip
        return self._seal(header, self._data_end)

    def c2h_headers(self, cids: Sequence[int], datal: int, flags: int) -> list[bytes]:
        """Build one C2HData header for each command, whose data has the same length and is whole in one PDU."""
        parts = self._success_headers.get((datal, flags))
        if parts is None:
            whole = self.c2h_data(0, 0, datal, flags)
            if len(self._success_headers) >= 64:  # lengths in use are few; a peer that tries all must not fill memory
                self._success_headers.clear()
            parts = self._success_headers[datal, flags] = (whole[:8], whole[10:TRANSFER_BYTES])
        before, after = parts
        pack = _PREFIXED.pack
        headers = [pack(before, cid, after) for cid in cids]
        if self.header_digest:
            padding = bytes(self._data_end - TRANSFER_BYTES - DIGEST_BYTES)
            return [header + crc32c(header, 0).to_bytes(DIGEST_BYTES, "little") + padding for header in headers]
        if self._data_end == TRANSFER_BYTES:
            return headers
        padding = bytes(self._data_end - TRANSFER_BYTES)
        return [header + padding for header in headers]

    def responses(self, cids: Sequence[int], sqhd: int, sqid: int) -> list[bytes]:
        """Build a successful CapsuleResp for each command."""
        pack, common = _RESPONSE.pack, self._response_header
        whole = [pack(common, 0, 0, sqhd, sqid, cid, 0) for cid in cids]
        if self.header_digest:
            return [header + crc32c(header, 0).to_bytes(DIGEST_BYTES, "little") for header in whole]
        return whole

    def h2c_data(self, cid: int, ttag: int, datao: int, datal: int, last: bool) -> bytes:
        """Build an H2CData up to its data."""
        flags = self._data_flags | (Flags.LAST_PDU if last else 0)
        header = H2C_DATA.struct.pack(
            PduType.H2C_DATA, flags, TRANSFER_BYTES, self._data_end, self._data_plen(datal), cid, ttag, datao, datal
        )
        return self._seal(header, self._data_end)

    def r2t(self, cid: int, ttag: int, r2to: int, r2tl: int) -> bytes:
        """Build a whole R2T."""
        header = _R2T.pack(self._r2t_header, cid, ttag, r2to, r2tl)
        return self._seal(header, 0) if self.header_digest else header
