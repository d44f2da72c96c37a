"""What waits to be sent, as buffers for one ``sendmsg``, and who may touch them until when.

A payload that the kernel has taken is copied and free. What it has not taken may still change (a namespace's memory
is *live*), so of a PDU that was taken in part the rest is copied there and then, and with data digests the digest is
computed in the step that sends. A read-only view is held to be stable: its owner promises not to change it.
Buffers of which nothing was taken stay live, their header's bytes gone or not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from ..pdu.digest import crc32c
from ..pdu.header import DIGEST_BYTES
from ..wire import Buffer

SEND_WINDOW_BYTES: Final = 512 * 1024
"""With data digests: how much is digested at a time, and so copied at the most when the kernel takes only a part."""


def _stable(buffer: Buffer) -> Buffer:
    if isinstance(buffer, bytes) or (isinstance(buffer, memoryview) and buffer.readonly):
        return buffer
    return bytes(buffer)


def _part_of(buffer: Buffer, owner: object) -> bool:
    return isinstance(buffer, memoryview) and buffer.obj is owner


class Output:
    """The send queue of one connection. Read ``ready`` and ``pending_bytes``, don't change them."""

    __slots__ = ("_releases", "_waiting", "data_digest", "ended", "pending_bytes", "ready", "sent_bytes")

    def __init__(self) -> None:
        self.ready: list[Buffer] = []
        self.data_digest = False
        self.pending_bytes = 0
        self.sent_bytes = 0
        self.ended = False
        """Nothing more is taken: what would be queued is dropped, and released at once."""
        self._waiting: deque[Buffer | tuple[bytes, Buffer]] = deque()
        self._releases: deque[tuple[int, Callable[[], None]]] = deque()

    @property
    def end_position(self) -> int:
        """The position in the stream at which the next PDU will begin, in bytes since the start."""
        return self.sent_bytes + self.pending_bytes

    def add(self, buffer: Buffer) -> None:
        """Queue bytes as they are."""
        if self.ended:
            return
        self.pending_bytes += len(buffer)
        if self.data_digest:
            self._waiting.append(buffer)
        else:
            self.ready.append(buffer)

    def add_data(self, header: bytes, data: Buffer, release: Callable[[], None] | None = None) -> None:
        """Queue a header and its data; ``release`` is called once the kernel has taken all of it."""
        if self.ended:
            if release is not None:
                release()
            return
        self.pending_bytes += len(header) + len(data)
        if self.data_digest:
            self.pending_bytes += DIGEST_BYTES
            self._waiting.append((header, data))
        else:
            ready = self.ready
            ready.append(header)
            ready.append(data)
        if release is not None:
            self._releases.append((self.sent_bytes + self.pending_bytes, release))

    def add_many(self, buffers: list[Buffer], size_bytes: int) -> None:
        """Queue prepared buffers of ``size_bytes`` in all; only without data digests."""
        if self.ended:
            return
        self.ready += buffers
        self.pending_bytes += size_bytes

    def when_taken(self, release: Callable[[], None]) -> None:
        """Call ``release`` once the kernel has taken all that is queued now, or it was dropped."""
        if self.pending_bytes:
            self._releases.append((self.sent_bytes + self.pending_bytes, release))
        else:
            release()

    def add_many_data(self, headers: list[bytes], data: list[Buffer], responses: list[bytes], length: int) -> None:
        """Queue headers, their data of ``length`` bytes each and, when there are any, the responses behind them."""
        if self.ended:
            return
        waiting, count = self._waiting, len(headers)
        self.pending_bytes += count * (len(headers[0]) + length + DIGEST_BYTES)
        if responses:
            self.pending_bytes += count * len(responses[0])
            for header, view, response in zip(headers, data, responses, strict=True):
                waiting.append((header, view))
                waiting.append(response)
        else:
            waiting.extend(zip(headers, data, strict=True))

    def take(self) -> list[Buffer]:
        """Return the buffers for one ``sendmsg``. Live memory is read in that same step."""
        if self.data_digest and not self.ready:
            self._digest_some()
        return self.ready

    def _digest_some(self) -> None:
        ready, waiting, size = self.ready, self._waiting, 0
        while waiting and size < SEND_WINDOW_BYTES:
            item = waiting.popleft()
            if isinstance(item, tuple):
                header, data = item
                ready += (header, data, crc32c(data, 0).to_bytes(DIGEST_BYTES, "little"))
                size += len(data)
            else:
                ready.append(item)
                size += len(item)

    def taken(self, n: int) -> None:
        """Remove ``n`` bytes, which the kernel took of what ``take`` gave."""
        self.sent_bytes += n
        self.pending_bytes -= n
        if not self.pending_bytes:
            self.ready.clear()
        else:
            self._keep_rest(n)
        releases = self._releases
        while releases and releases[0][0] <= self.sent_bytes:
            releases.popleft()[1]()

    def _keep_rest(self, n: int) -> None:
        ready = self.ready
        whole = 0
        for buffer in ready:
            if n < len(buffer):
                break
            n -= len(buffer)
            whole += 1
        del ready[:whole]
        if n:
            ready[0] = _stable(ready[0][n:])
        if self.data_digest:  # the digests are computed: what they were computed over must stay
            ready[:] = [_stable(buffer) for buffer in ready]

    def keep(self, owner: object) -> None:
        """Copy the queued data of the object ``owner``, whose memory is about to be returned."""
        self.ready[:] = [bytes(buffer) if _part_of(buffer, owner) else buffer for buffer in self.ready]
        for index, item in enumerate(self._waiting):
            if isinstance(item, tuple) and _part_of(item[1], owner):
                self._waiting[index] = (item[0], bytes(item[1]))

    def add_last(self, buffer: Buffer) -> None:
        """Queue the connection's last PDU, after what is queued."""
        self.add(buffer)
        self.ended = True

    def drop(self) -> None:
        """Drop the queued output, release its buffers, and accept nothing more."""
        self.ended = True
        self.ready.clear()
        self._waiting.clear()
        self.pending_bytes = 0
        releases = self._releases
        while releases:
            releases.popleft()[1]()
