"""Run inside `unshare -rnm` by test_namespaces: a target here, a host in a second namespace, several links between.

`scenario.py NAME LINKS` prints one JSON object: the results of the scenario of that name.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any

from nvmeof import Ramdisk, Target, connect
from nvmeof.aio.runloop import run
from nvmeof.host.client import HostController
from nvmeof.transport import Address, SocketOptions
from nvmeof.transport.paths import PathOptions, diag
from nvmeof.transport.paths.driver import flows_of
from tests.transport.paths import owner_scenarios
from tests.transport.paths.spaces import endpoints, setup, sh

NQN = "nqn.2026-01.io.nvmeof:target"
PORT = 4420
CHUNK = 64 * 1024
CHUNKS = 128


# -- the host's side


class Load:
    """Writes and reads back chunks that differ in every round, and counts what is wrong."""

    def __init__(self, controller: HostController, depth: int = 8) -> None:
        self.namespace = controller.namespace(1)
        self.rounds = self.wrong = 0
        self.errors: list[str] = []
        self.longest = 0.0
        self._stop = False
        self._tasks = [asyncio.create_task(self._worker(i, depth)) for i in range(depth)]

    async def _worker(self, first: int, step: int) -> None:
        blocks = CHUNK // 512
        try:
            while not self._stop:
                for chunk in range(first, CHUNKS, step):
                    data = os.urandom(512) * blocks
                    started = time.monotonic()
                    await self.namespace.write(chunk * blocks, data)
                    self.wrong += await self.namespace.read(chunk * blocks, blocks) != data
                    self.longest = max(self.longest, time.monotonic() - started)
                    self.rounds += 1
                    if self._stop:
                        return
        except Exception as error:
            self.errors.append(str(error))

    async def stop(self) -> dict[str, Any]:
        self._stop = True
        await asyncio.wait_for(asyncio.gather(*self._tasks), 20)
        return {"rounds": self.rounds, "wrong": self.wrong, "errors": self.errors, "longest": self.longest}


def flows(controller: HostController) -> list[dict[str, Any]]:
    """Return the live subflows of the I/O queue, with the facts of the diagnosis."""
    endpoint = controller.io_queues[0].private.endpoint
    info = diag.with_diag(endpoint.describe()).as_dict()
    return [flow for flow in info["subflows"] if flow["state"] == "ESTABLISHED"]


def socket_of(flow: dict[str, Any]) -> diag.SocketDiag | None:
    """Return the facts of the diagnosis for a subflow."""
    return diag.look_up(Address.parse(flow["local"]), Address.parse(flow["peer"]))


def over(controller: HostController, host: str) -> list[dict[str, Any]]:
    """Return the subflows from a local address."""
    return [flow for flow in flows(controller) if flow["local"].startswith(host + ":")]


async def until(condition: Callable[[], object], seconds: float = 15.0) -> float:
    """Return how long it took until the condition held; -1 if it did not."""
    started = time.monotonic()
    while time.monotonic() < started + seconds:
        if condition():
            return round(time.monotonic() - started, 3)
        await asyncio.sleep(0.02)
    return -1


def sent(controller: HostController, host: str) -> int:
    return sum(flow["bytes_sent"] for flow in over(controller, host))


async def open_host(*paths: str, path_manager: str | None = None) -> HostController:
    options = PathOptions(paths=paths, path_manager=path_manager)
    return await connect("10.1.1.1", PORT, subnqn=NQN, transport="mptcp", paths=options, congestion="cubic")


async def host_four(links: int) -> dict[str, Any]:
    options = PathOptions(paths=("auto",))
    settings: Any = {"paths": options, "congestion": "cubic", "mark": 0x80000005}
    async with await connect("10.1.1.1", PORT, subnqn=NQN, transport="mptcp", **settings) as controller:
        count = await until(lambda: len(flows(controller)) >= links)
        load = Load(controller)
        await asyncio.sleep(3)
        result = await load.stop()
        token = controller.io_queues[0].private.endpoint.describe().token
        (seen,) = diag.connections(tokens=[token])
        return {
            **result,
            "seconds": count,
            "flows": flows(controller),
            "diag_bytes": seen.bytes_sent,
            "diag_flows": len(seen.subflows),
            "marks": [told.mark if (told := socket_of(flow)) else None for flow in flows(controller)],
            "by_token": diag.by_token(token) is not None,
            "paths": controller.paths.list() if controller.paths else [],
        }


async def host_backup(links: int, path_manager: str | None = None) -> dict[str, Any]:
    async with await open_host("10.1.1.2%h1", "10.1.2.2%h2,backup", path_manager=path_manager) as controller:
        assert controller.paths is not None
        await until(lambda: len(flows(controller)) >= 2)
        load = Load(controller)
        await asyncio.sleep(1)
        before = over(controller, "10.1.2.2")
        controller.paths.set_backup("10.1.2.2", False)
        used = await until(lambda: sent(controller, "10.1.2.2") > 1_000_000)
        changed = over(controller, "10.1.2.2")
        controller.paths.remove_path("10.1.2.2")
        removed = await until(lambda: not over(controller, "10.1.2.2"))
        controller.paths.add_path("10.1.2.2")
        added = await until(lambda: sent(controller, "10.1.2.2") > 1_000_000)
        result = await load.stop()
        return {**result, "before": before, "changed": changed, "used": used, "removed": removed, "added": added}


async def host_rules(links: int) -> dict[str, Any]:
    """Set mark and congestion control per path (BPF on a cgroup, which `ip netns exec` has hidden)."""
    with contextlib.suppress(RuntimeError):  # refused in a user namespace, like the program
        sh("mount -t cgroup2 none /sys/fs/cgroup")
    paths = ("10.1.1.2%h1", "10.1.2.2%h2,mark=7,congestion=reno")
    async with await open_host(*paths) as controller:
        await until(lambda: len(flows(controller)) >= 2)
        seen = {}
        for flow in flows(controller):
            told = socket_of(flow)
            seen[Address.parse(flow["local"]).host] = [told.congestion, told.mark] if told else None
        problem = str(controller.paths.problem) if controller.paths and controller.paths.problem else ""
        return {"seen": seen, "problem": problem}


async def host_backup_userspace(links: int) -> dict[str, Any]:
    return await host_backup(links, "userspace")


async def _cut_and_restore(path_manager: str | None, cut: list[str], restore: list[str]) -> dict[str, Any]:
    """Cut the second path under load, wait for its subflow to close, restore, wait until it carries bytes."""
    async with await open_host("auto", path_manager=path_manager) as controller:
        established = await until(lambda: over(controller, "10.1.2.2") and over(controller, "10.1.3.2"))
        load = Load(controller)
        carried = await until(lambda: sent(controller, "10.1.2.2") > 1_000_000)
        for line in cut:
            sh(line)
        closed = await until(lambda: not over(controller, "10.1.2.2"))
        during = load.rounds
        await asyncio.sleep(1)
        progress = load.rounds - during
        for line in restore:
            sh(line)
        back = await until(lambda: sent(controller, "10.1.2.2") > 1_000_000, 25)
        result = await load.stop()
        return {
            **result,
            "established": established,
            "carried": carried,
            "closed": closed,
            "progress": progress,
            "back": back,
            "driver": controller.paths.driver.name if controller.paths and controller.paths.driver else None,
        }


async def host_cut(links: int) -> dict[str, Any]:
    return await _cut_and_restore(None, ["ip link set h2 down"], ["ip link set h2 up"])


async def host_cut_userspace(links: int) -> dict[str, Any]:
    return await _cut_and_restore("userspace", ["ip link set h2 down"], ["ip link set h2 up"])


async def host_cut_first(links: int) -> dict[str, Any]:
    """Cut the link of the connection's first subflow, and restore it."""
    async with await open_host("auto") as controller:
        await until(lambda: len(flows(controller)) >= links)
        load = Load(controller)
        await until(lambda: sent(controller, "10.1.1.2") > 1_000_000)
        sh("ip link set h1 down")
        closed = await until(lambda: not over(controller, "10.1.1.2"))
        await asyncio.sleep(1)
        sh("ip link set h1 up")
        back = await until(lambda: sent(controller, "10.1.1.2") > 1_000_000, 25)
        return {**await load.stop(), "closed": closed, "back": back}


async def host_ipv6(links: int) -> dict[str, Any]:
    options = PathOptions(paths=("auto",))
    settings: Any = {"paths": options, "congestion": "cubic"}
    async with await connect("fd00:1::1", PORT, subnqn=NQN, transport="mptcp", **settings) as controller:
        established = await until(lambda: len(flows(controller)) >= links)
        load = Load(controller)
        await asyncio.sleep(1)
        return {**await load.stop(), "established": established, "flows": flows(controller)}


async def host_silent(links: int) -> dict[str, Any]:
    """Drop all packets of a link that stays up at both ends."""
    drop = "tc filter add dev h2 ingress bpf da bytecode"
    cut = ["tc qdisc add dev h2 clsact", f"{drop} '1,6 0 0 2'"]
    return await _cut_and_restore(None, cut, ["tc qdisc del dev h2 clsact"])


# -- the target's side


async def with_host(
    name: str, links: int, *, path_manager: str | None = None, listen: str = f"0.0.0.0:{PORT}"
) -> dict[str, Any]:
    """Serve, and run the host's part in its namespace."""
    target = Target(
        namespaces=[Ramdisk("64M")],
        listen=listen,
        subnqn=NQN,
        options=SocketOptions(congestion="cubic"),
        paths=PathOptions(paths=("auto",), path_manager=path_manager),
    )
    async with target:
        command = ["ip", "netns", "exec", "host", sys.executable, __file__, "host", name, str(links)]
        host = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
        output, _ = await host.communicate()
        if host.returncode:
            sys.exit(f"the host's part failed with {host.returncode}")
        result: dict[str, Any] = json.loads(output)
    result["left"] = [sh("ip mptcp endpoint show"), sh("ip -n host mptcp endpoint show")]
    result["limits"] = [sh("ip mptcp limits show").split(), sh("ip -n host mptcp limits show").split()]
    return result


async def four(links: int) -> dict[str, Any]:
    return await with_host("four", links)


async def backup(links: int) -> dict[str, Any]:
    return await with_host("backup", links)


async def backup_userspace(links: int) -> dict[str, Any]:
    return await with_host("backup_userspace", links, path_manager="userspace")


async def rules(links: int) -> dict[str, Any]:
    return await with_host("rules", links)


async def cut(links: int) -> dict[str, Any]:
    return await with_host("cut", links)


async def cut_first(links: int) -> dict[str, Any]:
    return await with_host("cut_first", links)


async def cut_userspace(links: int) -> dict[str, Any]:
    result = await with_host("cut_userspace", links, path_manager="userspace")
    result["path_manager"] = sh("cat /proc/sys/net/mptcp/pm_type").strip()
    return result


async def silent(links: int) -> dict[str, Any]:
    return await with_host("silent", links)


async def ipv6(links: int) -> dict[str, Any]:
    """Use IPv6 addresses on the same links; bound to one of them, all are announced."""
    for n in range(1, links + 1):
        sh(f"ip addr add fd00:{n}::1/64 dev t{n} nodad")
        sh(f"ip -n host addr add fd00:{n}::2/64 dev h{n} nodad")
    return await with_host("ipv6", links, listen=f"[fd00:1::1]:{PORT}")


async def announce_one(links: int) -> dict[str, Any]:
    """Bind to one address and announce another: a second listener takes the joins."""
    async with Target(
        namespaces=[Ramdisk("64M")],
        listen=f"10.1.1.1:{PORT}",
        subnqn=NQN,
        paths=PathOptions(paths=("10.1.2.1%t2",)),
    ) as target:
        listening = [str(address) for address in target.addresses]
        command = ["ip", "netns", "exec", "host", sys.executable, __file__, "host", "joined", str(links)]
        host = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
        output, _ = await host.communicate()
        return {"listening": listening, **json.loads(output)}


async def announce_later(links: int) -> dict[str, Any]:
    """Let a target that announces nothing announce an address while a host is connected."""
    target = Target(namespaces=[Ramdisk("64M")], listen=f"10.1.1.1:{PORT}", subnqn=NQN)
    async with target:
        command = ["ip", "netns", "exec", "host", sys.executable, __file__, "host", "joined", str(links)]
        host = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
        while len(target.drivers) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.5)
        await target.add_path("10.1.2.1")
        listening = [str(address) for address in target.addresses]
        output, _ = await host.communicate()
    return {"listening": listening, **json.loads(output), "left": endpoints()}


async def host_joined(links: int) -> dict[str, Any]:
    """Run a host that only accepts announced addresses."""
    sh("ip mptcp limits set subflows 8 add_addr_accepted 8")
    async with await connect("10.1.1.1", PORT, subnqn=NQN, transport="mptcp") as controller:
        seconds = await until(lambda: len(flows(controller)) >= 2, 5)
        return {"seconds": seconds, "flows": flows(controller)}


async def announce_and_remove(links: int) -> dict[str, Any]:
    """Announce an address by two ports, one after the other; it is in use until neither announces it."""
    target = Target(namespaces=[Ramdisk("64M")], listen=[f"10.1.1.1:{PORT}", f"10.1.1.1:{PORT + 1}"], subnqn=NQN)
    result: dict[str, Any] = {}

    def state() -> dict[str, Any]:
        joined = [flow.info.peer for flows in flows_of(target.ports[1].endpoints) for flow in flows if flow.live]
        return {
            "listening": [str(address) for address in target.addresses],
            "announced": [bool(port["paths"]) for port in target.administration.describe()["ports"]],
            "kernel": endpoints(),
            "flows": len(joined),
        }

    async with target:
        administration = target.administration
        command = ["ip", "netns", "exec", "host", sys.executable, __file__, "host", "left", str(links)]
        host = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
        await until(lambda: len(target.drivers) == 2)
        await administration.add_path("10.1.2.1%t2")
        await until(lambda: state()["flows"] >= 4)
        assert host.stdout is not None
        await host.stdout.readline()  # the host has seen both too
        result["both"] = state()
        result["still"] = await administration.remove_path("10.1.2.1", portid=2)
        result["one"] = state()
        result["ended"] = await administration.remove_path("10.1.2.1")
        result["none"] = state()
        result["saved"] = [port.get("paths") for port in administration.save()["ports"]]
        output, _ = await host.communicate()
    return {**result, **json.loads(output), "left": endpoints()}


async def host_left(links: int) -> dict[str, Any]:
    """Let the host read all the time while an address is announced and withdrawn."""
    sh("ip mptcp limits set subflows 8 add_addr_accepted 8")
    async with await connect("10.1.1.1", PORT, subnqn=NQN, transport="mptcp") as controller:
        namespace, reads = controller.namespace(1), 0
        seen = [0]

        async def count() -> None:
            seen.append(await until(lambda: len(flows(controller)) >= 2, 10))
            print("joined", flush=True)
            seen.append(await until(lambda: len(flows(controller)) == 1, 10))

        counting = asyncio.ensure_future(count())
        while not counting.done():
            await namespace.read(reads % 1000, 8)
            reads += 1
            await asyncio.sleep(0.005)
        await namespace.read(0, 8)
        return {"joined": seen[1], "parted": seen[2], "reads": reads}


# -- without CAP_NET_ADMIN
def main() -> None:
    name, *rest = sys.argv[1:]
    functions: dict[str, Callable[[int], Coroutine[Any, Any, dict[str, Any]]]] = {**vars(owner_scenarios), **globals()}
    if name == "host":
        print(json.dumps(run(functions["host_" + rest[0]](int(rest[1])))))
        return
    setup(int(rest[0]))
    print(json.dumps(run(functions[name](int(rest[0])))))


if __name__ == "__main__":
    main()
