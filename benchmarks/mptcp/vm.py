"""Experiments in the virtual machine: delays and losses by netem, and a stock kernel as the initiator."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from benchmarks import procstat
from benchmarks.mptcp.lab import ROOT, LabError
from benchmarks.mptcp.runs import Settings

GUEST = ROOT / "tools" / "lab" / "guest"
GUEST_SECONDS = 1500
KERNEL = "6.12"
PACKAGES = ("construct", "click", "pyroute2")
"""Packages that our programs need in the guest: pure Python, copied from where they are installed."""
ORDERS: dict[str, tuple[str, dict[str, Any]]] = {
    "loss-vm": ("loss", {"rate_mbit": 20.0, "delay_ms": 5.0}),
    "unequal-vm": ("unequal", {"delays_ms": [2.0, 10.0, 20.0], "scale": 0.4}),
    "foreign": ("foreign", {}),
    "multipath-vm": ("multipath", {"rate_mbit": 20.0, "delay_ms": 20.0, "loss": 0.005, "kernel": True}),
    "multipath-failover-vm": ("multipath_failover", {"rate_mbit": 20.0, "kernel": True}),
}
_SCRIPT = """
set -e
modprobe -a veth sch_tbf sch_netem sch_ingress cls_bpf act_gact 2>/dev/null || true
modprobe -a nvme-tcp 2>/dev/null || true
cp -r /host/python /tmp/python
cd /tmp/python
sysctl -qw net.mptcp.enabled=1
exec python3 -m benchmarks.mptcp.inside {name} "$(cat /host/order.json)"
"""


def run(name: str, settings: Settings) -> dict[str, Any]:
    """Run one experiment in a guest. Raises LabError where the lab is missing, or the experiment fails."""
    if shutil.which("qemu-system-x86_64") is None:
        raise LabError("qemu-system-x86_64 is not installed")
    module, arguments = ORDERS[name]
    share = settings.scratch / f"share-{name}"
    _fill(share, {"quick": settings.quick, "congestion": settings.congestion, "arguments": arguments})
    argv = [str(GUEST), "-k", os.environ.get("LAB_KERNEL", KERNEL), "-s", str(share), "-m", "2048", "-t",
            str(GUEST_SECONDS), "-c", _SCRIPT.format(name=module)]  # fmt: skip
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, check=False, timeout=GUEST_SECONDS + 60, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        raise LabError("the guest did not end in time") from None
    found: dict[str, Any] = {}
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            found = json.loads(line)
    if not found or "error" in found:
        words = (found.get("error") or (done.stderr + done.stdout).strip() or "it printed nothing").splitlines()
        raise LabError(f"the guest failed: {' / '.join(words[-4:])}")
    environment = procstat.environment() | {"kernel": found.pop("guest_kernel"), "python": found.pop("guest_python")}
    return found | {"environment": environment, "emulated": True}


def _fill(share: Path, order: dict[str, Any]) -> None:
    """Put our packages, and what they need, where the guest's own Python finds them."""
    python = share / "python"
    python.mkdir(parents=True, exist_ok=True)
    ignore = shutil.ignore_patterns("__pycache__", "results")
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            shutil.copytree(Path(spec.origin).parent, python / name, ignore=ignore, dirs_exist_ok=True)
    for name in ("nvmeof", "benchmarks", "examples"):
        shutil.copytree(ROOT / name, python / name, ignore=ignore, dirs_exist_ok=True)
    (share / "order.json").write_text(json.dumps(order))
