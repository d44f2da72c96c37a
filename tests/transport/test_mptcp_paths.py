"""Two links between two network namespaces: both subflows carry bytes, and describe() shows each."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .test_mptcp import needs_mptcp

SCRIPT = Path(__file__).with_name("two_links.py")
COUNT = 8_000_000


@needs_mptcp
@pytest.mark.parametrize(("loop", "tls"), [("asyncio", False), ("uvloop", False), ("asyncio", True), ("uvloop", True)])
def test_two_subflows_each_with_bytes(loop: str, tls: bool) -> None:
    if loop == "uvloop":
        pytest.importorskip("uvloop", reason="pip install uvloop")
    for tool, package in (("unshare", "util-linux"), ("ip", "iproute2"), ("tc", "iproute2")):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool} (package {package})")
    done = subprocess.run(
        ["unshare", "-rnm", sys.executable, str(SCRIPT), "target", loop, str(COUNT)],
        capture_output=True,
        text=True,
        timeout=50,
        env={**os.environ, "PYTHONPATH": str(SCRIPT.parents[2]), **({"TLS": "1"} if tls else {})},
    )
    if done.stderr.startswith(("SETUP", "unshare:")):
        pytest.skip(
            "needs network namespaces, veth, tbf and `ip mptcp` (root, or kernel.unprivileged_userns_clone=1):"
            f" {done.stderr.strip()}"
        )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    host, target = result["host"], result["target"]
    for info in (host, target):
        assert (info["transport"], info["protocol"], info["fallback"]) == ("mptcp", "mptcp", False)
        assert info["congestion"] == "cubic"
        assert info["nodelay"] is True
        assert len(info["subflows"]) == 2
        assert {flow["state"] for flow in info["subflows"]} == {"ESTABLISHED"}
        assert len({flow["id"] for flow in info["subflows"]}) == 2
    if tls:
        assert host["tls"] == target["tls"] == "TLS_AES_128_GCM_SHA256"
        assert COUNT < target["bytes_received"] <= host["bytes_sent"] < COUNT * 1.002 + 2000
    else:
        assert host["bytes_sent"] in (COUNT, COUNT + 1)
        assert target["bytes_received"] == COUNT
    ends = {flow["peer"].split(":")[0]: flow for flow in host["subflows"]}
    assert ends.keys() == {"10.1.1.1", "10.1.2.1"}
    assert {flow["local"].split(":")[0] for flow in host["subflows"]} == {"10.1.1.2", "10.1.2.2"}
    assert all(flow["bytes_sent"] > COUNT / 10 for flow in host["subflows"])
    assert all(flow["bytes_received"] > COUNT / 10 for flow in target["subflows"])
    assert {flow["local"] for flow in host["subflows"]} == {flow["peer"] for flow in target["subflows"]}
    assert host["left"] == ["10.1.2.2"], "the kernel goes on telling of the first subflow after it has closed"
