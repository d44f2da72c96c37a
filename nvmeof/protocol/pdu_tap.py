"""Counts the PDUs that pass a connection, for the trace hook. It needs nothing but the common headers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from struct import Struct

from ..pdu.header import CH_BYTES
from ..wire import Buffer
from .config import Tap

_TYPE_AND_PLEN = Struct("<B3xI")


class PduSplitter:
    """Splits one direction of a stream by PLEN: `take` returns what came since its last call.

    A PDU counts when its last byte is there. After a PLEN that is shorter than a common header, which ends the
    connection, bytes alone are counted.
    """

    __slots__ = ("_broken", "_counts", "_header", "_left", "_size_bytes", "_type")

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self._size_bytes = 0
        self._header = b""  # the beginning of a common header that is not whole
        self._type = 0
        self._left = 0  # bytes of the PDU that are still to come
        self._broken = False

    def feed(self, data: Buffer) -> None:
        """Take the next bytes of the stream, cut anywhere."""
        size = len(data)
        self._size_bytes += size
        if self._broken:
            return
        counts, at = self._counts, 0
        if self._header:
            at = self._complete_header(data)
        while at < size:
            left = self._left
            if not left:
                if size - at < CH_BYTES:
                    self._header = bytes(data[at:size])
                    return
                if not self._begin(*_TYPE_AND_PLEN.unpack_from(data, at)):
                    return
                left = self._left
            if left > size - at:
                self._left = left - (size - at)
                return
            at += left
            self._left = 0
            counts[self._type] = counts.get(self._type, 0) + 1

    def _complete_header(self, data: Buffer) -> int:
        """Add to a common header that was cut; return how many bytes of it are not of the PDU's own count."""
        have = len(self._header)
        self._header += bytes(data[: CH_BYTES - have])
        if len(self._header) < CH_BYTES:
            return len(data)
        good = self._begin(*_TYPE_AND_PLEN.unpack(self._header))
        self._header = b""
        if not good:
            return len(data)
        self._left -= have  # these came before
        return 0

    def _begin(self, pdu_type: int, plen: int) -> bool:
        """Begin a PDU; False when its length cannot be."""
        self._type, self._left = pdu_type, plen
        self._broken = plen < CH_BYTES
        return not self._broken

    def take(self) -> tuple[dict[int, int], int]:
        """Return the PDUs by type and the bytes since the last call."""
        taken = self._counts, self._size_bytes
        self._counts, self._size_bytes = {}, 0
        return taken


class PduTap(Tap):
    """Reports each receive and each send once: ``report(sent, counts by PDU type, bytes)``."""

    def __init__(self, report: Callable[[bool, Mapping[int, int], int], object]) -> None:
        self._report = report
        self._received = PduSplitter()
        self._sent = PduSplitter()

    def received(self, data: memoryview) -> None:
        """Take bytes from the peer."""
        self._received.feed(data)

    def sent(self, data: Buffer) -> None:
        """Take bytes that the socket has taken."""
        self._sent.feed(data)

    def passed(self) -> None:
        """Report what passed."""
        for sent, splitter in ((False, self._received), (True, self._sent)):
            counts, size_bytes = splitter.take()
            if size_bytes:
                self._report(sent, counts, size_bytes)


class Taps(Tap):
    """Two taps as one."""

    def __init__(self, first: Tap, second: Tap) -> None:
        self._taps = (first, second)

    def received(self, data: memoryview) -> None:
        """Show both what came."""
        for tap in self._taps:
            tap.received(data)

    def sent(self, data: Buffer) -> None:
        """Show both what went."""
        for tap in self._taps:
            tap.sent(data)

    def passed(self) -> None:
        """Call `passed` of both taps."""
        for tap in self._taps:
            tap.passed()
