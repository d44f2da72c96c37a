"""The network namespaces of the scenarios, inside `unshare -rnm`."""

from __future__ import annotations

import shlex
import subprocess
import sys


def setup(links: int) -> None:
    """Make two namespaces, `links` veth pairs of 200 Mbit/s: 10.1.N.1 on tN here, 10.1.N.2 on hN there."""
    lines = ["mount -t tmpfs tmpfs /run", "ip netns add host", "ip link set lo up", "ip -n host link set lo up"]
    for n in range(1, links + 1):
        lines += [
            f"ip link add t{n} type veth peer name h{n} netns host",
            f"ip addr add 10.1.{n}.1/24 dev t{n}",
            f"ip link set t{n} up",
            f"ip -n host addr add 10.1.{n}.2/24 dev h{n}",
            f"ip -n host link set h{n} up",
            f"tc qdisc add dev t{n} root tbf rate 200mbit burst 64kb latency 50ms",
            f"ip netns exec host tc qdisc add dev h{n} root tbf rate 200mbit burst 64kb latency 50ms",
        ]
    for line in [*lines, "ip mptcp endpoint show"]:
        done = subprocess.run(line.split(), capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"SETUP {line}: {done.stderr.strip()}")


def sh(line: str) -> str:
    """Run a command, which must succeed; return its output."""
    done = subprocess.run(shlex.split(line), capture_output=True, text=True, timeout=20)
    if done.returncode:
        raise RuntimeError(f"{line}: {done.stderr}")
    return done.stdout


def endpoints() -> list[str]:
    return [line.split()[0] for line in sh("ip mptcp endpoint show").splitlines()]
