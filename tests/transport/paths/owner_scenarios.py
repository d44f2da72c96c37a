"""Scenarios of owners of settings: crashes, two targets, other programs, and missing privileges. See scenario.py."""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from nvmeof.transport.paths import KernelPaths, sysctl
from nvmeof.transport.paths.model import Limits, PathRole, parse_path
from tests.transport.paths.spaces import endpoints, sh


def records() -> list[str]:
    return [each.name for each in Path("/run/nvmeof").glob("*.json")]


def _child(body: str) -> subprocess.Popen[bytes]:
    """Start another process of ours, which is ready when this returns."""
    start = "from nvmeof.transport.paths import *\nfrom nvmeof.transport.paths.model import *\nimport time\n"
    child = subprocess.Popen(
        [sys.executable, "-c", start + body + "\nprint('.', flush=True)\ntime.sleep(60)"], stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    assert child.stdout.read(1) == b"."
    return child


async def crash(links: int) -> dict[str, Any]:
    """Kill a process; the next one removes what it left, and nothing else."""
    sh("ip mptcp endpoint add 10.1.3.1 dev t3 signal")  # added by an administrator
    body = (
        "p = KernelPaths('target'); p.ensure_limits(Limits(5, 6)); p.set_path_manager('userspace');"
        "[p.add(parse_path(a).endpoint(PathRole.SIGNAL)) for a in ('10.1.1.1%t1', '10.1.2.1%t2', '10.1.3.1%t3')]"
    )
    first, second = _child(body), _child(body.replace(", '10.1.2.1%t2'", ""))
    result: dict[str, Any] = {"both": endpoints(), "limits": sh("ip mptcp limits show").split()}
    first.send_signal(signal.SIGKILL)
    first.wait()
    result["left"] = endpoints()
    with KernelPaths("next") as paths:
        result["recovered"] = [each.address for each in paths.recover()]
        result["one_dead"] = endpoints()
        result["managers"] = [sysctl.path_manager()]
        holders = {each.endpoint.address: each.holders for each in paths.list()}
        result["holders"] = {address: len(names) for address, names in holders.items()}
    second.send_signal(signal.SIGKILL)
    second.wait()
    with KernelPaths("next") as paths:
        paths.add(parse_path("10.1.2.1%t2").endpoint(PathRole.SIGNAL))
        result["both_dead"] = endpoints()
        result["managers"].append(sysctl.path_manager())
        result["limits_then"] = sh("ip mptcp limits show").split()
    result["at_last"] = endpoints()
    result["records"] = records()
    return result


async def two_targets(links: int) -> dict[str, Any]:
    """Let two targets announce the same address: it stays until both have ended."""

    def start(port: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "nvmeof.target", "--ramdisk", "8M", "-l", f"0.0.0.0:{port}", "-o", "json"]
        target = subprocess.Popen([*command, "--mptcp-signal", "10.1.2.1"], stdout=subprocess.PIPE, text=True)
        assert target.stdout is not None
        target.stdout.readline()
        return target

    one, two = start(4420), start(4421)
    result: dict[str, Any] = {"both": endpoints()}
    one.terminate()
    one.wait(10)
    result["one"] = endpoints()
    result["limits"] = sh("ip mptcp limits show").split()
    two.terminate()
    two.wait(10)
    result["none"] = endpoints()
    result["limits_then"] = sh("ip mptcp limits show").split()
    return result


async def changed_by_others(links: int) -> dict[str, Any]:
    """Change settings as another program does: these are left alone."""
    with KernelPaths("target") as paths:
        paths.ensure_limits(Limits(8, 8))
        endpoint = paths.add(parse_path("10.1.1.1%t1").endpoint(PathRole.SIGNAL))
        sh(f"ip mptcp endpoint delete id {endpoint.id}")
        sh("ip mptcp endpoint add 10.1.1.1 dev t1 subflow")
        sh("ip mptcp limits set subflows 3 add_addr_accepted 3")
    return {"endpoints": sh("ip mptcp endpoint show"), "limits": sh("ip mptcp limits show").split()}


def _drop_net_admin() -> None:
    """Drop the privilege in the child: exec then gives root all privileges but this one."""
    PR_CAPBSET_DROP, CAP_NET_ADMIN = 24, 12
    ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_NET_ADMIN, 0, 0, 0)


def _unprivileged(namespace: list[str], *arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [*namespace, sys.executable, "-m", "nvmeof.host", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        preexec_fn=_drop_net_admin,
    )
    return {"code": done.returncode, "out": done.stdout, "err": done.stderr.splitlines()}


async def unprivileged(links: int) -> dict[str, Any]:
    """Run commands in the target's namespace without the privilege, then with the setting that the administrator is
    told to make.
    """
    result: dict[str, Any] = {
        "add": _unprivileged([], "paths", "add", "10.1.2.1", "--signal"),
        "limits": _unprivileged([], "paths", "limits", "8,8"),
        "list": _unprivileged([], "paths", "list", "-o", "json"),
    }
    code = (
        "import asyncio\nfrom nvmeof.transport import Address\nfrom nvmeof.transport.paths import *\n"
        "async def main():\n"
        " s = PathSession(PathRole.SIGNAL, PathOptions(paths=('auto',)), tuple, what='target')\n"
        " found = await s.start([Address('0.0.0.0', 4420)])\n"
        " print(len(found)); print('\\n'.join(getattr(s.problem, 'commands', ())))\n"
        " s.stop()\n"
        "asyncio.run(main())"
    )

    def session() -> list[str]:
        command = [sys.executable, "-c", code]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=20, preexec_fn=_drop_net_admin
        ).stdout.splitlines()

    result["session"] = session()
    for line in result["session"][1:]:
        sh(line)
    result["then"] = session()
    result["endpoints"] = endpoints()
    return result
