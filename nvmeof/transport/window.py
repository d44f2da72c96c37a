"""The receive window of MPTCP connections: opened by what a connection receives, where the kernel is late.

Linux 6.18 was seen to let the receive buffer of an MPTCP socket stand at its first size (`tcp_rmem`, 128 KiB) for as
long as the connection had been idle before. By the source that is its estimate of the round trip, the time of the first
window's worth of data, pauses included (net/mptcp/protocol.c, mptcp_rcv_space_adjust; net/ipv4/tcp_input.c,
tcp_rcv_rtt_measure). With so small a buffer the window seems to close, too, until the peer's probe, 200 ms later.

SO_RCVBUF would be a remedy with a price: it ends the kernel's own tuning for good, and cannot go beyond
`net.core.rmem_max`. SO_RCVLOWAT raises the same buffer, and the subflows' window clamps, without either
(net/mptcp/sockopt.c, mptcp_set_rcvlowat, since Linux 6.7); set back to 1 at once, it leaves nothing else behind.
Before 6.7 it changes nothing here. docs/mptcp-receive-buffer.md tells what was measured.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Final

from nvmeof.transport.base import Endpoint

BULK_BYTES: Final = 16 * 1024
"""So much waiting to be read at once is bulk..."""
STEPS: Final = (
    (64 * 1024, 1024 * 1024),
    (4 * 1024 * 1024, 2 * 1024 * 1024),
    (16 * 1024 * 1024, 4 * 1024 * 1024),
)
"""... and so is the first figure, received in all: then the window is at least the second, in bytes."""


def open_window(sock: socket.socket, window_bytes: int) -> None:
    """Raise the receive buffer of an MPTCP socket, if it is smaller, so that a window of that size fits.

    The kernel's own tuning goes on from there; it caps `window_bytes` at half of `tcp_rmem`'s maximum. Without effect
    where SO_RCVBUF was set, and before Linux 6.7. Does not raise: what is lost is speed at a connection's start.
    """
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, window_bytes)
        # readiness at the first byte again: nothing ran in between that could have waited for more
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
    except OSError:
        pass


class WindowOpener:
    """Stands before an endpoint's `recv_into` and `recv_both` until its connection has received 16 MiB.

    The window is opened *before* a read: only a read that finds something announces a larger window to the peer
    (net/mptcp/protocol.c, mptcp_cleanup_rbuf).
    """

    __slots__ = ("_endpoint", "_opened", "_received", "_recv_both", "_recv_into", "_steps")

    def __init__(self, endpoint: Endpoint, opened: Callable[[int], object]) -> None:
        self._endpoint = endpoint
        self._opened = opened
        self._recv_into, self._recv_both = endpoint.recv_into, endpoint.recv_both
        self._steps = list(STEPS)
        self._received = 0
        endpoint.recv_into, endpoint.recv_both = self.recv_into, self.recv_both

    def recv_into(self, buffer: memoryview | bytearray) -> int:
        """Receive, and count."""
        self._before()
        n = self._recv_into(buffer)
        self._received += n
        return n

    def recv_both(self, buffer: memoryview, behind: memoryview) -> int:
        """Receive, and count."""
        self._before()
        n = self._recv_both(buffer, behind)
        self._received += n
        return n

    def _before(self) -> None:
        if not self._steps:
            return  # a caller that fetched the methods before the last step uses them for a while
        received, window = self._steps[0]
        first = len(self._steps) == len(STEPS)
        if self._received < received and not (first and self._endpoint.available() >= BULK_BYTES):
            return
        del self._steps[0]
        self._opened(window)
        if not self._steps:
            self._endpoint.recv_into, self._endpoint.recv_both = self._recv_into, self._recv_both
