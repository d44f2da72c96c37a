"""Discovery services by multicast DNS, on the loopback interface and from the command line."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nvmeof.aio import mdns
from nvmeof.errors import ConfigurationError
from nvmeof.spec.enums import DISCOVERY_NQN

pytest.importorskip("zeroconf", reason="needs zeroconf: pip install 'nvmeof-mptcp[mdns]'")
LOOPBACK = ["127.0.0.1"]
SERVE = [sys.executable, "-m", "nvmeof.target", "--trtype", "tcp", "--ramdisk", "1M", "-o", "json"]


async def found(name: str) -> list[mdns.MdnsService]:
    return [each for each in await mdns.find_services(1.5, LOOPBACK) if each.name.startswith(name)]


async def test_an_announced_service_is_found_and_withdrawn() -> None:
    mine = mdns.MdnsService("nvmeof test one", ("127.0.0.1", "::1"), 4420)
    other = mdns.MdnsService("nvmeof test two", ("127.0.0.1",), 8009, nqn="nqn.2026-01.org.example:discovery")
    async with mdns.announced([mine, other], LOOPBACK):
        assert await found("nvmeof test") == [mine, other]
    assert await found("nvmeof test") == []


async def test_a_name_that_is_taken_gets_a_number() -> None:
    service = mdns.MdnsService("nvmeof twin", ("127.0.0.1",), 4420)
    async with mdns.announced([service], LOOPBACK), mdns.announced([service], LOOPBACK):
        names = [each.name for each in await found("nvmeof twin")]
        assert names == ["nvmeof twin", "nvmeof twin-2"]


async def test_unusable_instances_and_keys_in_capitals() -> None:
    from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

    responder = AsyncZeroconf(interfaces=LOOPBACK)
    try:
        for name, text in (
            ("nvmeof odd a", {"p": "rdma"}),
            ("nvmeof odd b", {"P": "TCP", "NQN": "nqn.2026-01.org.example:x"}),
            ("nvmeof odd c", {}),
        ):
            info = AsyncServiceInfo(
                mdns.SERVICE_TYPE, f"{name}.{mdns.SERVICE_TYPE}", port=4420, properties=text, addresses=[b"\x7f\0\0\1"]
            )
            await (await responder.async_register_service(info))
        seen = {each.name: (each.transport, each.nqn) for each in await found("nvmeof odd")}
        assert seen == {
            "nvmeof odd b": ("tcp", "nqn.2026-01.org.example:x"),
            "nvmeof odd c": ("tcp", DISCOVERY_NQN),
        }
    finally:
        await responder.async_close()


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zeroconf", None)
    with pytest.raises(
        ConfigurationError, match=r"mDNS needs the package zeroconf: pip install 'nvmeof-mptcp\[mdns\]'"
    ):
        mdns.check_available()
    with pytest.raises(ConfigurationError):
        asyncio.run(mdns.find_services(0.1, LOOPBACK))


def test_addresses_of_listeners() -> None:
    assert mdns.addresses_of("192.0.2.7") == ("192.0.2.7",)
    everywhere = mdns.addresses_of("0.0.0.0")
    assert everywhere and all(":" not in each for each in everywhere)


IN_NAMESPACE = f"""
set -e
ip link set lo up
ip link add mdns0 type veth peer name mdns1
ip link set mdns1 up
ip addr add 192.0.2.1/24 dev mdns0
ip link set mdns0 up multicast on
{" ".join(SERVE)} --listen 0.0.0.0:4420 --discovery 0.0.0.0:8009 --mdns > target.json &
target=$!
trap 'kill $target' EXIT
for i in $(seq 100); do [ -s target.json ] && break; sleep 0.1; done
{sys.executable} -m nvmeof.host discover --mdns -o json -t tcp > found.json 2> said.txt
"""


@pytest.mark.timeout(120)
def test_from_the_command_line_in_a_network_namespace(tmp_path: Path) -> None:
    """The target announces both ports, and the host asks the services that it finds."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rn", "true"], check=False).returncode:
        pytest.skip("needs network namespaces without root: unshare -rn")
    if subprocess.run(
        ["unshare", "-rn", "ip", "link", "add", "x", "type", "veth", "peer", "name", "y"],
        capture_output=True,
        check=False,
    ).returncode:
        pytest.skip("needs the veth network devices of the kernel")
    began = time.monotonic()
    done = subprocess.run(
        ["unshare", "-rn", "sh", "-c", IN_NAMESPACE], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    said = (tmp_path / "said.txt").read_text() if (tmp_path / "said.txt").exists() else ""
    assert done.returncode == 0, (done.stderr, said)
    assert "at 192.0.2.1:4420" in said and "at 192.0.2.1:8009" in said
    text, entries = (tmp_path / "found.json").read_text(), []
    while text.strip():
        log, end = json.JSONDecoder().raw_decode(text.lstrip())
        entries += log["records"]
        text = text.lstrip()[end:]
    assert {entry["trsvcid"] for entry in entries} >= {"4420"}
    assert time.monotonic() - began < 100


def test_an_address_and_mdns() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "nvmeof.host", "discover", "--mdns", "-a", "127.0.0.1"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode and "give one of the two" in done.stderr and "Traceback" not in done.stderr
