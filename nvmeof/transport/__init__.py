"""Byte streams between target and host: tcp, mptcp and memory, and a registry for more.

The only place that knows sockets. Use: `get("mptcp").listen(...)`, `get("tcp").connect(...)`; see `base`.
"""

from nvmeof.transport.base import (
    Address,
    ConnectionInfo,
    Endpoint,
    Listener,
    ListenerInfo,
    SocketOptions,
    SubflowInfo,
    Transport,
    get,
    names,
    register,
    set_trtype_code,
)
from nvmeof.transport.memory import MemoryTransport, memory_pair
from nvmeof.transport.mptcp import MptcpTransport
from nvmeof.transport.tcp import TcpTransport

__all__ = [
    "Address",
    "ConnectionInfo",
    "Endpoint",
    "Listener",
    "ListenerInfo",
    "MemoryTransport",
    "MptcpTransport",
    "SocketOptions",
    "SubflowInfo",
    "TcpTransport",
    "Transport",
    "get",
    "memory_pair",
    "names",
    "register",
    "set_trtype_code",
]

for _transport in (TcpTransport(), MptcpTransport(), MemoryTransport()):
    register(_transport)
