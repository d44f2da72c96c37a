#!/bin/bash
# An MPTCP socket forgets the interface of a link-local address.
#
# Linux 6.18.44, Python 3.11.7 (only its socket module, which says what the kernel says); iproute2 and util-linux of
# Debian 12. A TCP socket that is bound to fe80::1 on an interface, connected or accepted there has that interface's
# number in the scope of getsockname(2), getpeername(2) and accept(2). An MPTCP socket has 0 in all of them, and no
# SO_BINDTOIFINDEX either: a program that hands such an address on has to remember the interface itself.
#
# Needs user and network namespaces. Ends with 1 when the kernel does otherwise.
set -eu
exec unshare -rn python3 - <<'PY'
import socket
import subprocess
import sys

for line in (
    "ip link set lo up",
    "ip link add one type veth peer name two",
    "ip link set one addrgenmode none",
    "ip addr add fe80::1/64 dev one nodad",
    "ip link set one up",
    "ip link set two up",
):
    subprocess.run(line.split(), check=True)
index = socket.if_nametoindex("one")
found = {}
for name, protocol in (("TCP", socket.IPPROTO_TCP), ("MPTCP", 262)):
    listener = socket.socket(socket.AF_INET6, socket.SOCK_STREAM, protocol)
    listener.bind(("fe80::1", 0, 0, index))
    listener.listen()
    near = socket.socket(socket.AF_INET6, socket.SOCK_STREAM, protocol)
    near.connect(("fe80::1", listener.getsockname()[1], 0, index))
    far, peer = listener.accept()
    names = (listener.getsockname(), near.getsockname(), near.getpeername(), far.getsockname(), peer)
    found[name] = [sockaddr[3] for sockaddr in names]
    print(f"{name:5} interface {index}: scopes of listener, local, peer, accepted, accepted peer: {found[name]}")
sys.exit(found != {"TCP": [index] * 5, "MPTCP": [0] * 5})
PY
