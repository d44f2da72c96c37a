"""Run inside `unshare -rnm` by test_link_local: a target here, a host in a second namespace, one link between.

The target's end of the link is veth0 with fe80::1, the host's is eth7 with fe80::2: neither interface exists at the
other side. Prints one JSON object: what each step printed.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from typing import Any

import nvmeof

SETUP = """
mount -t tmpfs tmpfs /run
ip netns add host
ip link set lo up
ip link add veth0 type veth peer name eth7 netns host
ip link set veth0 addrgenmode none
ip -n host link set eth7 addrgenmode none
ip addr add fe80::1/64 dev veth0 nodad
ip addr add 2001:db8::1/64 dev veth0 nodad
ip -n host addr add fe80::2/64 dev eth7 nodad
ip -n host addr add 2001:db8::2/64 dev eth7 nodad
ip link set veth0 up
ip -n host link set lo up
ip -n host link set eth7 up
"""
ENDS_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL")
"""Prefix of a program that ends with its parent, also when the parent is killed."""
SUBNQN = "nqn.2026-01.org.example:link"
HOSTNQN = "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555"


def in_host(*command: str) -> dict[str, Any]:
    """Run a program in the host's namespace; return its status and its output."""
    done = subprocess.run(["ip", "netns", "exec", "host", *command], capture_output=True, text=True, timeout=30)
    return {"status": done.returncode, "out": done.stdout, "error": done.stderr}


def nvmeof_host(command: str, *options: str) -> dict[str, Any]:
    return in_host(sys.executable, "-m", "nvmeof.host", command, "-q", HOSTNQN, *options)


async def library(port: int) -> dict[str, Any]:
    """Do what a program does: discover, connect with an entry, connect with its fields."""
    found = [each for each in await nvmeof.discover("fe80::1%eth7", port, hostnqn=HOSTNQN) if each.is_nvm]
    peers = []
    for entry in found:
        async with await nvmeof.connect(entry, hostnqn=HOSTNQN, nr_io_queues=2) as controller:
            peers += [each["peer"] for each in controller.describe()]
        options = {"subnqn": entry.subnqn, "hostnqn": HOSTNQN}
        async with await nvmeof.connect(entry.traddr, entry.trsvcid, **options) as controller:
            peers += [each["peer"] for each in controller.describe()]
    by_interface = await nvmeof.discover("fe80::1", port, hostnqn=HOSTNQN, host_iface="eth7")
    return {
        "entries": [[each.transport, each.traddr, each.family] for each in found],
        "peers": peers,
        "by_interface": [each.traddr for each in by_interface],
    }


def serve(transport: str, *listen: str) -> tuple[subprocess.Popen[str], str]:
    """Start a target process; return it and its lines up to the last."""
    command = [
        *ENDS_WITH_PARENT,
        sys.executable,
        "-m",
        "nvmeof.target",
        "-t",
        transport,
        "--ramdisk",
        "1M",
        "-n",
        SUBNQN,
    ]
    for each in listen:
        command += ["-l", each]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines = ""
    for line in process.stdout:
        lines += line
        if line.startswith("stop with"):
            break
    return process, lines


def steps(transport: str) -> dict[str, Any]:
    """Do all steps over one transport."""
    result: dict[str, Any] = {}
    process, result["target"] = serve(transport, "[fe80::1%veth0]:4518", "[2001:db8::1]:4518")
    try:
        there = ["-t", transport, "-a", "fe80::1%eth7", "-s", "4518"]
        result["discover"] = nvmeof_host("discover", *there, "-o", "json")
        result["list"] = nvmeof_host("list", *there, "-o", "json")
        result["id-ctrl"] = nvmeof_host("id-ctrl", *there)
        result["from"] = nvmeof_host("list", *there, "-w", "fe80::2%eth7", "-o", "json")
        result["by interface"] = nvmeof_host("list", "-a", "fe80::1", "-f", "eth7", "-s", "4518", "-o", "json")
        result["global"] = nvmeof_host("discover", "-a", "2001:db8::1", "-s", "4518", "-o", "json")
        result["missing"] = nvmeof_host("list", "-a", "fe80::1", "-s", "4518")
        result["unknown"] = nvmeof_host("list", "-a", "fe80::1%veth0", "-s", "4518")
        result["wrong"] = nvmeof_host("list", "-a", "fe80::1%eth7", "-f", "lo", "-s", "4518")
        result["library"] = in_host(sys.executable, __file__, "library", "4518")
    finally:
        process.terminate()
        process.communicate(timeout=20)
    process, result["wildcard"] = serve(transport, "[::]:4518")
    try:
        result["wildcard list"] = nvmeof_host("list", *there, "-o", "json")
    finally:
        process.terminate()
        process.communicate(timeout=20)
    refused = subprocess.run([sys.executable, "-m", "nvmeof.target", "-l", "fe80::1"], capture_output=True, text=True)
    result["target without"] = [refused.returncode, refused.stderr]
    return result


def main() -> None:
    role, argument = sys.argv[1:]
    if role == "library":
        print(json.dumps(asyncio.run(library(int(argument)))))
        return
    for line in SETUP.strip().splitlines():
        done = subprocess.run(line.split(), capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"SETUP {line}: {done.stderr.strip()}")
    print(json.dumps(steps(argument)))


main()
