"""Run inside `unshare -rnm` by test_mptcp_paths: a target here, a host in a second namespace, two links between.

Prints one JSON object: what describe() says at both ends after `bytes` have gone from host to target; with TLS where
the environment has TLS.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from functools import partial
from typing import Any

from nvmeof.aio.runloop import run
from nvmeof.aio.tls import ServerHandshake, TlsEndpoint, connect_tls
from nvmeof.errors import TransportError
from nvmeof.security.tls.credentials import TlsCredentials
from nvmeof.security.tls.key import TlsKey
from nvmeof.security.tls.suites import SUITES
from nvmeof.transport import Endpoint, SocketOptions, get

TLS = "TLS" in os.environ
KEY, NAMES = TlsKey(bytes(range(32))), ("nqn.host", "nqn.subsystem")
SETUP = """
mount -t tmpfs tmpfs /run
ip netns add host
ip link set lo up
ip link add target1 type veth peer name host1 netns host
ip link add target2 type veth peer name host2 netns host
ip addr add 10.1.1.1/24 dev target1
ip addr add 10.1.2.1/24 dev target2
ip link set target1 up
ip link set target2 up
ip -n host addr add 10.1.1.2/24 dev host1
ip -n host addr add 10.1.2.2/24 dev host2
ip -n host link set host1 up
ip -n host link set host2 up
ip mptcp limits set subflows 8 add_addr_accepted 8
ip -n host mptcp limits set subflows 8 add_addr_accepted 8
ip mptcp endpoint add 10.1.2.1 dev target2 signal
ip netns exec host tc qdisc add dev host1 root tbf rate 200mbit burst 64kb latency 50ms
ip netns exec host tc qdisc add dev host2 root tbf rate 200mbit burst 64kb latency 50ms
"""


async def move(endpoint: Endpoint, count: int, *, sending: bool) -> None:
    """Send or receive ``count`` bytes."""
    done = asyncio.get_running_loop().create_future()
    buffer = memoryview(bytearray(1 << 18))
    moved = 0

    def step() -> None:
        nonlocal moved
        size = min(len(buffer), count - moved)
        try:
            moved += endpoint.sendmsg([buffer[:size]]) if sending else endpoint.recv_into(buffer[:size])
        except BlockingIOError:  # of TLS: less than a record has come, or the one before has not gone
            return
        if moved == count:
            (endpoint.set_writer if sending else endpoint.set_reader)(None)
            done.set_result(None)

    (endpoint.set_writer if sending else endpoint.set_reader)(step)
    await done


def shake_hands(accepted: list[Endpoint], endpoint: Endpoint) -> None:
    """Add an endpoint to the accepted ones when its TLS handshake is complete."""

    def done(result: TlsEndpoint | TransportError) -> None:
        assert isinstance(result, TlsEndpoint), result
        accepted.append(result)

    ServerHandshake(endpoint, lambda identity: KEY.candidates(identity, *NAMES), SUITES, done, 10).start()


async def as_host(port: int, count: int) -> dict[str, Any]:
    """Connect over the first link, send, wait for the target's byte, describe."""
    reach = partial(get("mptcp").connect, "10.1.1.1", port, SocketOptions(congestion="cubic"))
    endpoint = await (connect_tls(reach, TlsCredentials(KEY), *NAMES, 10) if TLS else reach())
    await asyncio.sleep(0.3)  # the target's second address is announced after the connection is established
    await move(endpoint, count, sending=True)
    await move(endpoint, 1, sending=False)
    info = endpoint.describe().as_dict()
    info["left"] = await without_first_subflow(endpoint)
    await move(endpoint, 1, sending=True)
    endpoint.close()
    return info


async def without_first_subflow(endpoint: Endpoint) -> list[str]:
    """Close the first subflow; return the local addresses of those that are listed then."""
    removal = await asyncio.create_subprocess_exec("ip", "mptcp", "endpoint", "delete", "id", "0", "10.1.1.2")
    assert await removal.wait() == 0
    left: list[str] = []
    for _ in range(500):  # the kernel closes it in its own time
        left = [flow.local.host for flow in endpoint.describe().subflows]
        if "10.1.1.2" not in left:
            break
        await asyncio.sleep(0.01)
    return left


async def as_target(loop: str, count: int) -> dict[str, Any]:
    """Listen, start the host in its namespace, receive, describe."""
    accepted: list[Endpoint] = []
    take = partial(shake_hands, accepted) if TLS else accepted.append
    (listener,) = await get("mptcp").listen("0.0.0.0", 0, SocketOptions(congestion="cubic"), take)
    command = [sys.executable, __file__, "host", loop, str(listener.address.port), str(count)]
    host = await asyncio.create_subprocess_exec("ip", "netns", "exec", "host", *command, stdout=subprocess.PIPE)
    while not accepted:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    await move(accepted[0], count, sending=False)
    described = accepted[0].describe().as_dict()
    accepted[0].sendmsg([b"."])
    await move(accepted[0], 1, sending=False)
    result = {"target": described, "host": json.loads((await host.communicate())[0])}
    accepted[0].close()
    listener.close()
    return result


def main() -> None:
    role, loop, *rest = sys.argv[1:]
    if role == "host":
        coroutine = as_host(int(rest[0]), int(rest[1]))
    else:
        for line in SETUP.strip().splitlines():
            done = subprocess.run(line.split(), capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"SETUP {line}: {done.stderr.strip()}")
        coroutine = as_target(loop, int(rest[0]))
    print(json.dumps(run(coroutine, uvloop=loop == "uvloop")))


main()
