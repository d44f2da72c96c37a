"""Accounting of data in flight: a target's transfers and their R2Ts, a host's requests."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol, final

from ..errors import LocalProtocolError, PduError
from ..pdu.header import FLAGS_OFFSET, Flags
from ..pdu.termination import Fes
from ..pdu.transfer import CCCID_OFFSET, DATAL_OFFSET, TTAG_OFFSET
from ..wire import Buffer

MAX_TTAG: Final = 0xFFFF


class BufferValidity(Protocol):
    """Whether a buffer may still be written."""

    @property
    def valid(self) -> bool: ...


class _Always:
    valid: Final = True


ALWAYS: Final = _Always()
"""The validity of a buffer that may be written until its data has arrived."""


class ReadGroup(NamedTuple):
    """Successful Reads of one length, whose data has ``length`` bytes each. ``places``: where each of them stands among
    all Reads that are answered together."""

    cids: Sequence[int]
    data: Sequence[Buffer]
    length: int
    places: Sequence[int]


@final
class R2tTransfer:
    """Target: the data of one command, from its R2T to the event of its arrival. One object is the accounting of what
    was requested, the owner of the payload that is received into ``buffer``, and the event: ``ok`` is false when a data
    digest was wrong, and ``context`` is the caller's.

    With ``unit_bytes`` the buffer is memory that others read: it changes by whole units, for as long as ``validity`` is
    valid. Data that cannot go there so is collected in a private buffer, and goes there in one step at the end. If
    ``validity`` has ended by then, ``data`` is all of it. Nearly always one R2T requests all of it, and the transfer
    stands for that R2T as well (``ttag``); else there is an `R2tPart` for each.
    """

    __slots__ = (
        "_final",
        "asked",
        "buffer",
        "cid",
        "collected_from",
        "context",
        "ok",
        "received",
        "ttag",
        "unit_bytes",
        "validity",
    )

    def __init__(
        self,
        cid: int,
        buffer: memoryview,
        context: object = None,
        unit_bytes: int = 0,
        validity: BufferValidity = ALWAYS,
    ) -> None:
        self.cid = cid
        self.buffer = buffer
        self.context = context
        self.unit_bytes = unit_bytes
        self.validity = validity
        self.ok = True
        self.asked = 0
        """Bytes that R2Ts were sent for."""
        self.received = 0
        """Bytes that H2CData headers announced; with several R2Ts, the bytes of those that are complete."""
        self.collected_from: int | None = None
        """Offset from which on the data is in a private buffer; None: none of it."""

    begin: Final = 0
    ttag: int
    _final: memoryview  # where collected data belongs

    def collect(self, offset: int) -> None:
        """Receive the data from ``offset`` on into a private buffer."""
        self._final = self.buffer
        self.buffer = memoryview(bytearray(len(self.buffer)))
        self.collected_from = offset
        self.unit_bytes = 0

    def collect_rest(self, payload_bytes: int, position: int) -> memoryview:
        """Collect the rest of the payload of an H2CData, of which ``position`` bytes are there; returns its buffer."""
        begin = self.received - payload_bytes
        self.collect(begin + position)
        return self.buffer[begin : self.received]

    def commit(self) -> None:
        """Move collected data to where it belongs in one step, if its digests are right and it still may go there."""
        start = self.collected_from
        if start is None or not self.ok:
            return
        if self.validity.valid:
            self._final[start:] = self.buffer[start:]
            self.buffer = self._final
            self.collected_from = None
        else:
            self.buffer[:start] = self._final[:start]

    @property
    def data(self) -> memoryview | None:
        """Return all data when it did not go to ``buffer``; else None."""
        return None if self.collected_from is None or not self.ok else self.buffer

    @property
    def transfer(self) -> R2tTransfer:
        """As an R2T: whose data it asks for."""
        return self

    def __repr__(self) -> str:
        return f"R2tTransfer(cid={self.cid:#x}, {self.received} of {self.asked} bytes, ok={self.ok})"


class R2tPart:
    """Target: one of several R2Ts of a transfer. Offsets are those of the whole data.

    It asks for the bytes from ``begin`` to ``asked``; up to ``received`` H2CData headers have announced them.
    """

    __slots__ = ("asked", "begin", "received", "transfer", "ttag")

    def __init__(self, ttag: int, transfer: R2tTransfer, begin: int, length: int) -> None:
        self.ttag = ttag
        self.transfer = transfer
        self.begin = self.received = begin
        self.asked = begin + length

    def collect_rest(self, payload_bytes: int, position: int) -> memoryview:
        """Return a private buffer for the rest of the payload, as for the transfer."""
        begin = self.received - payload_bytes
        self.transfer.collect(begin + position)
        return self.transfer.buffer[begin : self.received]


class R2tTable:
    """The R2Ts of one connection that wait for data, by TTAG."""

    __slots__ = ("_last", "open")

    def __init__(self) -> None:
        self.open: dict[int, R2tPart | R2tTransfer] = {}
        self._last = MAX_TTAG

    def _free(self) -> int:
        if self.full:
            raise LocalProtocolError("no TTAG is left")
        ttag = (self._last + 1) & MAX_TTAG
        while ttag in self.open:
            ttag = (ttag + 1) & MAX_TTAG
        self._last = ttag
        return ttag

    def open_part(self, transfer: R2tTransfer, length: int) -> R2tPart:
        """Open an R2T for ``length`` more bytes of a transfer. Raises LocalProtocolError when no TTAG is left."""
        ttag = self._free()
        part = self.open[ttag] = R2tPart(ttag, transfer, transfer.asked, length)
        transfer.asked += length
        return part

    def open_whole(self, transfer: R2tTransfer, length: int) -> int:
        """Open one R2T for all of a transfer; returns its TTAG. Raises LocalProtocolError when none is left."""
        ttag = (self._last + 1) & MAX_TTAG
        if ttag in self.open:
            ttag = self._free()
        self._last = transfer.ttag = ttag
        self.open[ttag] = transfer
        transfer.asked = length
        return ttag

    @property
    def full(self) -> bool:
        """Whether every TTAG is in use."""
        return len(self.open) > MAX_TTAG

    def clear(self) -> None:
        """Forget all R2Ts."""
        self.open.clear()

    @property
    def asked_bytes(self) -> int:
        """Bytes that the R2Ts ask for, of which some may have arrived."""
        return sum(r2t.asked - r2t.begin for r2t in self.open.values())

    def accept(
        self, cccid: int, ttag: int, datao: int, datal: int, flags: int, limit_bytes: int
    ) -> R2tPart | R2tTransfer:
        """Return the R2T that an H2CData belongs to; raises PduError when it does not fit it.

        LAST_PDU may be missing on the last one: the R2T's length says that it is the last, as for nvmet.
        """
        r2t = self.open.get(ttag)
        if r2t is None:
            raise PduError(Fes.INVALID_HEADER_FIELD, TTAG_OFFSET, f"H2CData for TTAG {ttag:#x}, which is not in use")
        if cccid != r2t.transfer.cid:
            raise PduError(
                Fes.INVALID_HEADER_FIELD, CCCID_OFFSET, f"H2CData for CID {cccid:#x} under another command's TTAG"
            )
        if datal > limit_bytes:
            raise PduError(Fes.LIMIT_EXCEEDED, 0, f"H2CData of {datal} bytes, MAXH2CDATA is {limit_bytes}")
        if datao + datal > r2t.asked:
            raise PduError(Fes.DATA_OUT_OF_RANGE, 0, f"H2CData {datao}+{datal} goes beyond its R2T, end {r2t.asked}")
        if datao != r2t.received:
            raise PduError(Fes.PDU_SEQUENCE_ERROR, 0, f"H2CData at {datao}, expected {r2t.received}")
        if flags & Flags.LAST_PDU and datao + datal != r2t.asked:
            raise PduError(Fes.INVALID_HEADER_FIELD, FLAGS_OFFSET, "LAST_PDU is not on the last H2CData of its R2T")
        r2t.received += datal
        return r2t


class Request:
    """Host: one command that has been sent. Its buffers belong to it until its completion or the queue's end."""

    __slots__ = ("asked", "cid", "data_in", "data_out", "digest_ok", "ended", "r2t_ends", "received")

    def __init__(self, cid: int, data_out: memoryview | None, data_in: memoryview | None) -> None:
        self.cid = cid
        self.data_out = data_out
        self.data_in = data_in
        self.received = 0
        self.asked = 0
        self.digest_ok = True
        self.ended = False
        self.r2t_ends: deque[int] = deque()  # stream positions at which the answers to R2Ts end

    def accept_data(self, datao: int, datal: int, flags: int) -> memoryview:
        """Return the buffer for a C2HData. Raises PduError when the data does not fit the command."""
        size = 0 if self.data_in is None else len(self.data_in)
        if self.data_in is None or datao + datal > size:
            raise PduError(Fes.DATA_OUT_OF_RANGE, 0, f"C2HData {datao}+{datal} for a command that asked for {size}")
        if self.ended or datao != self.received:
            raise PduError(Fes.PDU_SEQUENCE_ERROR, 0, f"C2HData at {datao}, expected {self.received}")
        if flags & Flags.SUCCESS and not flags & Flags.LAST_PDU:
            raise PduError(Fes.INVALID_HEADER_FIELD, FLAGS_OFFSET, "SUCCESS without LAST_PDU")
        self.received += datal
        self.ended = bool(flags & Flags.LAST_PDU)
        return self.data_in[datao : datao + datal]

    def accept_r2t(self, r2to: int, r2tl: int, maxr2t: int, sent_bytes: int) -> memoryview:
        """Return the data that an R2T requests. Raises PduError for an R2T that is not allowed."""
        size = 0 if self.data_out is None else len(self.data_out)
        if r2tl == 0:
            raise PduError(Fes.INVALID_HEADER_FIELD, DATAL_OFFSET, "R2T of no bytes")
        if self.data_out is None or r2to + r2tl > size:
            raise PduError(Fes.DATA_OUT_OF_RANGE, 0, f"R2T {r2to}+{r2tl} for a command that has {size} bytes")
        if r2to != self.asked:
            raise PduError(Fes.PDU_SEQUENCE_ERROR, 0, f"R2T at {r2to}, expected {self.asked}")
        while self.r2t_ends and self.r2t_ends[0] <= sent_bytes:
            self.r2t_ends.popleft()
        if len(self.r2t_ends) >= maxr2t:
            raise PduError(Fes.LIMIT_EXCEEDED, 0, f"more than {maxr2t} R2Ts for one command")
        self.asked += r2tl
        return self.data_out[r2to : r2to + r2tl]
