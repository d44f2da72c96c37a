"""Remembers which subflows each connection began with: the kernel's receive window hangs on them.

On Linux 6.18 a subflow that joins later was seen to keep the smallest receive buffer (the second figure of
`net.ipv4.tcp_rmem`), whatever the connection's had grown to. By the source it is given a larger one only when that of
the connection grows again (net/mptcp/protocol.c, mptcp_rcv_space_adjust), and one at its maximum grows no more. So long
as one of the first subflows is left, the connection's window stays open. With none left it fell from megabytes to about
100 KiB, and packets were dropped as lying outside of it (MPTcpExtNoDSSInWindow). docs/experiments.md has figures.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, TypeAlias

from nvmeof.transport.base import Address
from nvmeof.transport.paths.driver import Flow

_JOINING_SECONDS: Final = 2.0
"""After a connection was seen first, subflows that appear so soon came with it."""
_STAYING: Final = 2
"""Over so many addresses first subflows stay: one is too few once its own link is down."""
_REMEMBERED: Final = 4096
"""Connections that are remembered; the one that was not looked at for longest is forgotten first."""

_Ends: TypeAlias = tuple[Address, Address]


class FirstSubflows:
    """The subflows that connections began with, known by their addresses and ports."""

    def __init__(self) -> None:
        self._connections: dict[int, tuple[float, set[_Ends]]] = {}

    def look(self, connections: Iterable[Sequence[Flow]], now: float) -> None:
        """Take note of connections' live subflows; `now` in seconds of a clock that goes on steadily."""
        for flows in connections:
            live = {_ends(flow) for flow in flows if flow.live}
            if not live:
                continue
            token = flows[0].token
            since, first = self._connections.pop(token, (now, set[_Ends]()))
            if now - since <= _JOINING_SECONDS:
                first |= live
            self._connections[token] = since, first
        while len(self._connections) > _REMEMBERED:
            del self._connections[next(iter(self._connections))]

    def __contains__(self, flow: Flow) -> bool:
        known = self._connections.get(flow.token)
        return known is not None and _ends(flow) in known[1]

    def spare(self, closing: Sequence[Flow], staying: Iterable[Flow]) -> bool:
        """Return whether subflows of one connection may close, since those that stay keep its window open. They do when
        first subflows stay over two local addresses, so that the next link that goes leaves one; a connection that
        began with two addresses can only keep one.
        """
        if not any(flow in self for flow in closing):
            return True
        began = {local.host for local, _ in self._connections[closing[0].token][1]}
        stay = {flow.info.local.host for flow in staying if flow in self}
        return len(stay) >= max(1, min(_STAYING, len(began) - 1))


def _ends(flow: Flow) -> _Ends:
    return flow.info.local, flow.info.peer
