#!/bin/bash
# asyncio leaves Nagle's algorithm on for MPTCP sockets, and cannot connect one.
#
# CPython 3.11.7, 3.12.1 and 3.13.0 on Linux 6.18.44 with uvloop 0.23.0. asyncio's documentation says that it sets
# TCP_NODELAY on all TCP sockets (asyncio transports, since 3.6). It looks at the socket's protocol number for that: one
# made with IPPROTO_MPTCP (262) keeps TCP_NODELAY 0, at both ends, also where the peer speaks plain TCP; small messages
# then wait for acknowledgements. And loop.sock_connect() to a numeric address ends in socket.gaierror (-7, "ai_socktype
# not supported"; python/cpython#123174), since the number is handed to getaddrinfo, which does not know it. uvloop does neither: TCP_NODELAY
# is 1 and the connect succeeds. Programs on asyncio have to set TCP_NODELAY, and to connect, themselves.
#
# Needs a kernel with MPTCP and a package index. Ends with 1 when it is otherwise.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check uvloop==0.23.0
exec "$folder/venv/bin/python" - <<'PY'
import asyncio
import socket
import sys

import uvloop

MPTCP = 262


async def one(protocol: int) -> tuple[object, int, int]:
    """Return what sock_connect raised, and TCP_NODELAY of a connected and an accepted socket."""
    accepted = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.set_result(nodelay(writer))
        writer.close()

    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, protocol)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    server = await asyncio.start_server(serve, sock=listener)
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, protocol)
    sock.setblocking(False)
    raised = None
    try:
        await asyncio.get_running_loop().sock_connect(sock, listener.getsockname())
    except socket.gaierror as error:
        raised = error.errno
        sock.setblocking(True)
        sock.connect(listener.getsockname())
        sock.setblocking(False)
    reader, writer = await asyncio.open_connection(sock=sock)
    found = raised, nodelay(writer), await accepted
    writer.close()
    server.close()
    return found


def nodelay(writer: asyncio.StreamWriter) -> int:
    return writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


expected = {
    ("asyncio", "TCP"): (None, 1, 1),
    ("asyncio", "MPTCP"): (socket.EAI_SOCKTYPE, 0, 0),
    ("uvloop", "TCP"): (None, 1, 1),
    ("uvloop", "MPTCP"): (None, 1, 1),
}
found = {}
for loop, run in (("asyncio", asyncio.run), ("uvloop", uvloop.run)):
    for name, protocol in (("TCP", socket.IPPROTO_TCP), ("MPTCP", MPTCP)):
        found[loop, name] = result = run(one(protocol))
        print(f"{loop:8} {name:6} sock_connect raised {result[0]}; TCP_NODELAY connected {result[1]}, accepted {result[2]}")
sys.exit(found != expected)
PY
