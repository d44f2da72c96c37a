"""Accounting of data in flight: a target's grants and R2Ts, a host's requests."""

from __future__ import annotations

from collections import deque
from typing import Final, Protocol

from ..errors import LocalProtocolError, PduError
from ..pdu.header import FLAGS_OFFSET, Flags
from ..pdu.termination import Fes
from ..pdu.transfer import CCCID_OFFSET, DATAL_OFFSET, TTAG_OFFSET
from .events import TransferDone

MAX_TTAG: Final = 0xFFFF


class Live(Protocol):
    """Says how long memory may be written to."""

    @property
    def valid(self) -> bool: ...


class _Always:
    valid: Final = True


ALWAYS: Final = _Always()
"""For memory that is live for as long as it is granted."""


class Grant(TransferDone):
    """Target: one command's data, asked for by R2Ts into ``buffer`` (the granted buffer, received in place).

    With ``unit_bytes`` the buffer is live memory that changes by whole units, for as long as ``live`` is valid. Data
    that cannot go there so is collected in a buffer of our own; ``place`` is where it belongs. A grant that is asked
    for at once is its own window, and when all is there its own event.
    """

    __slots__ = (
        "asked",
        "buffer",
        "collected_from",
        "end",
        "live",
        "next_offset",
        "place",
        "received",
        "ttag",
        "unit_bytes",
    )

    def __init__(
        self, cid: int, buffer: memoryview, context: object = None, unit_bytes: int = 0, live: Live = ALWAYS
    ) -> None:
        self.cid = cid
        self.context = context
        self.ok = True
        self.data = None
        self.unit_bytes = unit_bytes
        self.live = live
        self.buffer = self.place = buffer
        self.asked = 0
        self.received = 0
        self.next_offset = self.end = self.ttag = 0
        self.collected_from: int | None = None

    def collect(self, offset: int) -> None:
        """From ``offset`` on, the data goes to a buffer of our own."""
        self.buffer = memoryview(bytearray(len(self.place)))
        self.collected_from = offset
        self.unit_bytes = 0

    def commit(self) -> memoryview | None:
        """All has arrived: what was collected goes to its place in one step, unless a digest was wrong.

        When its place is not live any more, nothing goes there, and the whole data is returned.
        """
        start = self.collected_from
        if start is None or not self.ok:
            return None
        if self.live.valid:
            self.place[start:] = self.buffer[start:]
            return None
        self.buffer[:start] = self.place[:start]
        return self.buffer

    @property
    def grant(self) -> Grant:
        """As a window: whose it is."""
        return self

    @property
    def length(self) -> int:
        """As a window: how much it asks for."""
        return self.end


class R2tWindow:
    """Target: one of several R2Ts of a grant; ``next_offset`` is where its next H2CData must begin."""

    __slots__ = ("end", "grant", "length", "next_offset", "ttag")

    def __init__(self, ttag: int, grant: Grant, start: int, length: int) -> None:
        self.ttag = ttag
        self.grant = grant
        self.next_offset = start
        self.length = length
        self.end = start + length


class R2tTable:
    """The R2Ts of one connection, by TTAG."""

    __slots__ = ("_last", "granted_bytes", "windows")

    def __init__(self) -> None:
        self.windows: dict[int, R2tWindow | Grant] = {}
        self.granted_bytes = 0
        self._last = MAX_TTAG

    def _free(self) -> int:
        if self.full:
            raise LocalProtocolError("no TTAG is left")
        ttag = (self._last + 1) & MAX_TTAG
        while ttag in self.windows:
            ttag = (ttag + 1) & MAX_TTAG
        self._last = ttag
        return ttag

    def open(self, grant: Grant, length: int) -> R2tWindow:
        """A window of ``length`` more bytes of the grant. Raises LocalProtocolError when no TTAG is left."""
        ttag = self._free()
        window = self.windows[ttag] = R2tWindow(ttag, grant, grant.asked, length)
        grant.asked += length
        self.granted_bytes += length
        return window

    def open_whole(self, grant: Grant, length: int) -> int:
        """The whole of a grant as one window; returns its TTAG. Raises LocalProtocolError when none is left."""
        ttag = (self._last + 1) & MAX_TTAG
        if ttag in self.windows:
            ttag = self._free()
        self._last = grant.ttag = ttag
        self.windows[ttag] = grant
        grant.asked = grant.end = length
        self.granted_bytes += length
        return ttag

    @property
    def full(self) -> bool:
        """Whether every TTAG is in use."""
        return len(self.windows) > MAX_TTAG

    def clear(self) -> None:
        """Forget all windows."""
        self.windows.clear()
        self.granted_bytes = 0

    def accept(self, cccid: int, ttag: int, datao: int, datal: int, flags: int, limit_bytes: int) -> R2tWindow | Grant:
        """Return the window that an H2CData belongs to; raises PduError when it does not fit it.

        LAST_PDU may be missing on the last one: the R2T's length says that it is the last, as for nvmet.
        """
        window = self.windows.get(ttag)
        if window is None:
            raise PduError(Fes.INVALID_HEADER_FIELD, TTAG_OFFSET, f"H2CData for TTAG {ttag:#x}, which is not in use")
        if cccid != window.grant.cid:
            raise PduError(
                Fes.INVALID_HEADER_FIELD, CCCID_OFFSET, f"H2CData for CID {cccid:#x} under another command's TTAG"
            )
        if datal > limit_bytes:
            raise PduError(Fes.LIMIT_EXCEEDED, 0, f"H2CData of {datal} bytes, MAXH2CDATA is {limit_bytes}")
        if datao + datal > window.end:
            raise PduError(Fes.DATA_OUT_OF_RANGE, 0, f"H2CData {datao}+{datal} goes beyond its R2T, end {window.end}")
        if datao != window.next_offset:
            raise PduError(Fes.PDU_SEQUENCE_ERROR, 0, f"H2CData at {datao}, expected {window.next_offset}")
        if flags & Flags.LAST_PDU and datao + datal != window.end:
            raise PduError(Fes.INVALID_HEADER_FIELD, FLAGS_OFFSET, "LAST_PDU is not on the last H2CData of its R2T")
        window.next_offset += datal
        return window

    def close(self, window: R2tWindow | Grant) -> None:
        """The window's data has all arrived."""
        del self.windows[window.ttag]
        self.granted_bytes -= window.length


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
        """Where a C2HData goes; raises PduError when it does not fit what was asked for."""
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
        """The data that an R2T asks for; raises PduError when it must not ask for it."""
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
