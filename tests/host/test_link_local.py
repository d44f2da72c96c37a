"""Link-local addresses between two network namespaces: each side has its own interface behind the same address."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("link_local.py")
THERE = "[fe80::1%eth7]:4518"
MISSING = "fe80::1 is link-local and needs its interface: write fe80::1%INTERFACE"


@functools.cache
def outcome(transport: str) -> dict[str, Any]:
    """Return the results of the script's steps, run once per transport; skip without network namespaces."""
    for tool, package in (("unshare", "util-linux"), ("setpriv", "util-linux"), ("ip", "iproute2")):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool} (package {package})")
    done = subprocess.run(
        ["unshare", "-rnm", "setpriv", "--pdeathsig", "KILL", sys.executable, str(SCRIPT), "steps", transport],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "PYTHONPATH": str(SCRIPT.parents[2])},
    )
    if done.stderr.startswith(("SETUP", "unshare:")):
        pytest.skip(
            "needs network namespaces, veth and IPv6 (root, or kernel.unprivileged_userns_clone=1):"
            f" {done.stderr.strip()}"
        )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


pytestmark = [pytest.mark.parametrize("transport", ["tcp", "mptcp"]), pytest.mark.xdist_group("link_local")]


def good(step: dict[str, Any]) -> Any:
    assert step["status"] == 0, step["error"]
    return json.loads(step["out"])


def test_the_target_prints_lines_with_the_interface(transport: str) -> None:
    text = outcome(transport)["target"]
    assert "listening  [fe80::1%veth0]:4518 over" in text
    assert "nvme connect -t tcp -a fe80::1%veth0 -s 4518" in text
    assert "that machine's interface instead of veth0" in text


def test_entries_have_the_interface_of_the_host(transport: str) -> None:
    records = good(outcome(transport)["discover"])["records"]
    found = [(each["traddr"], each["adrfam"], each["trsvcid"]) for each in records]
    forms = 2 if transport == "mptcp" else 1
    assert found == [("fe80::1%eth7", "ipv6", "4518")] * 2 * forms + [("2001:db8::1", "ipv6", "4518")] * forms


def test_another_link_is_not_announced(transport: str) -> None:
    records = good(outcome(transport)["global"])["records"]
    assert {each["traddr"] for each in records} == {"2001:db8::1"}


@pytest.mark.parametrize("step", ["list", "from", "by interface", "wildcard list"])
def test_connecting_after_discovery(transport: str, step: str) -> None:
    (device,) = good(outcome(transport)[step])["Devices"]
    assert device["Address"] == THERE


def test_connecting_by_discovery_alone(transport: str) -> None:
    assert outcome(transport)["id-ctrl"]["status"] == 0, outcome(transport)["id-ctrl"]["error"]


@pytest.mark.parametrize(
    ("step", "says"),
    [
        (
            "missing",
            "fe80::1 is link-local and needs its interface: write fe80::1%INTERFACE (this machine has eth7, lo)",
        ),
        ("unknown", "there is no network interface 'veth0' (fe80::1%veth0): this machine has eth7, lo"),
        ("wrong", "fe80::1%eth7 is on another interface than lo, which was asked for"),
    ],
)
def test_errors_name_the_interface(transport: str, step: str, says: str) -> None:
    found = outcome(transport)[step]
    assert (found["status"], found["error"]) == (2, f"nvmeof-host: {says}\n")


def test_a_target_needs_the_interface_too(transport: str) -> None:
    status, error = outcome(transport)["target without"]
    assert status == 2
    assert (
        "fe80::1 is link-local and needs its interface: write fe80::1%INTERFACE (this machine has lo, veth0)" in error
    )


def test_the_library(transport: str) -> None:
    found = good(outcome(transport)["library"])
    forms = ["mptcp", "tcp"] if transport == "mptcp" else ["tcp"]
    assert found["entries"] == [
        *([each, "fe80::1%eth7", "ipv6"] for each in forms),
        *([each, "2001:db8::1", "ipv6"] for each in forms),
    ]
    assert set(found["peers"]) == {THERE, "[2001:db8::1]:4518"}
    assert "fe80::1%eth7" in found["by_interface"]
