"""Two network namespaces with shaped links between them, made without root (`unshare -rnm`).

The target has 10.1.<i>.1 and the host 10.1.<i>.2 on link i = 1, 2, ... The rate of both ends of a link is limited (tbf,
or netem where a delay is wanted), so each direction has the link's rate. The namespaces live as long as a `cat` that
reads from a pipe of ours: when this process ends, in whichever way, the namespaces and all processes in them end.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.session import IPPROTO_MPTCP

ROOT = Path(__file__).resolve().parents[2]
_INSIDE = "NVMEOF_EXPERIMENT_NAMESPACE"
_PR_SET_PDEATHSIG = 1
COMMAND_SECONDS = 20.0
QUEUE_SECONDS = 0.02
"""How long a packet may wait at a link before the link drops (tbf's latency)."""
BURST_BYTES = 64 * 1024
SUBFLOW_LIMIT = 8


class LabError(Exception):
    """The network could not be made, or a command in it failed; one sentence."""


@dataclass(frozen=True, slots=True)
class Link:
    """One link, the same in both directions."""

    rate_mbit: float
    delay_ms: float = 0.0
    """One way, by netem."""
    loss: float = 0.0
    """Share of the packets that are lost in each direction, 0..1: by netem where there is a delay, else by BPF."""
    segmented: bool = False
    """No segmentation offload: a loss takes one packet of the wire and not up to 64 KiB."""


class Space:
    """One network namespace, held by a process of its own."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._holder = subprocess.Popen(
            ["unshare", "-n", "cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, preexec_fn=_end_with_parent
        )
        self.pid = self._holder.pid
        self._wait_until_apart()

    def _wait_until_apart(self) -> None:
        own = Path("/proc/self/ns/net").readlink()
        deadline = time.monotonic() + 5.0
        while time.monotonic() < deadline:
            if self._holder.poll() is not None:
                break
            with contextlib.suppress(OSError):
                if Path(f"/proc/{self.pid}/ns/net").readlink() != own:
                    return
            time.sleep(0.005)
        raise LabError("a network namespace could not be made (unshare -n)")

    def command(self, argv: Sequence[str]) -> list[str]:
        """Return the arguments that run `argv` in this namespace."""
        return ["nsenter", "-t", str(self.pid), "-n", "--", *argv]

    def run(self, *argv: str, check: bool = True, stdin: str | None = None) -> str:
        """Run a command here and return what it printed. Raises LabError with the command's message."""
        done = subprocess.run(
            self.command(argv), capture_output=True, text=True, input=stdin, timeout=COMMAND_SECONDS, check=False
        )
        if check and done.returncode:
            words = (done.stderr or done.stdout).strip().splitlines()
            raise LabError(f"{' '.join(argv)}: {words[-1] if words else f'exit status {done.returncode}'}")
        return done.stdout

    def start(self, argv: Sequence[str], **kwargs: Any) -> subprocess.Popen[str]:
        """Start a process in this namespace that ends with the current process."""
        search = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(search)}
        return subprocess.Popen(self.command(argv), text=True, env=environment, preexec_fn=_end_with_parent, **kwargs)

    def counters(self) -> dict[str, tuple[int, int]]:
        """Return the bytes received and sent by each interface."""
        found: dict[str, tuple[int, int]] = {}
        for line in Path(f"/proc/{self.pid}/net/dev").read_text().splitlines()[2:]:
            name, _, figures = line.partition(":")
            fields = figures.split()
            found[name.strip()] = int(fields[0]), int(fields[8])
        return found

    def statistic(self, name: str) -> int:
        """Return one of the kernel's MPTCP counters (MPTcpExt...); 0 where the kernel does not have it."""
        lines = Path(f"/proc/{self.pid}/net/netstat").read_text().splitlines()
        for names, values in zip(lines[::2], lines[1::2], strict=True):
            if names.startswith("MPTcpExt:"):
                return int(dict(zip(names.split(), values.split(), strict=True)).get(name, 0))
        return 0

    def close(self) -> None:
        """End the namespace. Idempotent."""
        if self._holder.stdin:
            self._holder.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._holder.wait(5)
        if self._holder.poll() is None:
            self._holder.kill()
            self._holder.wait()


class OwnSpace(Space):
    """The network namespace of this process: in the guest it is the one from which the kernel's own host reconnects."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.pid = os.getpid()

    def close(self) -> None:
        """Leave the namespace as it is."""


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class Network:
    """`with Network([Link(100)] * 4) as network:` two namespaces, `network.target` and `network.host`.

    ``host_here``: the host's namespace is that of this process.
    """

    def __init__(self, links: Sequence[Link], *, host_here: bool = False) -> None:
        self.links = tuple(links)
        self._host_space = OwnSpace if host_here else Space
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        try:
            self.target = Space("target")
            self._stack.callback(self.target.close)
            self.host = self._host_space("host")
            self._stack.callback(self.host.close)
            for space in (self.target, self.host):
                space.run("ip", "link", "set", "lo", "up")
            for number, link in enumerate(self.links, 1):
                self._connect(number, link)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def _connect(self, number: int, link: Link) -> None:
        device, host_pid = f"link{number}", str(self.host.pid)
        self.target.run("ip", "link", "add", device, "type", "veth", "peer", "name", device, "netns", host_pid)
        for space, address in ((self.target, self.target_address(number)), (self.host, self.host_address(number))):
            if link.segmented:
                space.run("ip", "link", "set", device, "gso_max_segs", "1")
            space.run("ip", "addr", "add", f"{address}/24", "dev", device)
            space.run("ip", "link", "set", device, "up")
            _shape(space, device, link)

    @staticmethod
    def target_address(number: int) -> str:
        """Return the target's address on a link; links are numbered from 1."""
        return f"10.1.{number}.1"

    @staticmethod
    def host_address(number: int) -> str:
        """Return the host's address on a link; links are numbered from 1."""
        return f"10.1.{number}.2"

    def set_paths(self, count: int, backup: Sequence[int] = (), *, signal: bool = True, first: int = 2) -> None:
        """Set endpoints for links first..count: used for subflows by the host, signalled by the target; limits 8 and 8.

        Both kinds of endpoints together, as in the series' selftest, give links 2 and on one subflow each and some a
        second one; without `signal` there is exactly one per link.
        """
        for space in (self.target, self.host):
            space.run("ip", "mptcp", "endpoint", "flush")
            space.run("ip", "mptcp", "limits", "set", "subflow", str(SUBFLOW_LIMIT), "add_addr_accepted",
                      str(SUBFLOW_LIMIT))  # fmt: skip
            for number in range(first, count + 1):
                ours = space is self.target
                address = self.target_address(number) if ours else self.host_address(number)
                flags = ["signal"] if ours else ["subflow", *["backup"] * (number in backup)]
                if not ours or (signal and number not in backup):
                    space.run("ip", "mptcp", "endpoint", "add", address, "dev", f"link{number}", *flags)

    def cut(self, number: int) -> None:
        """Take a link down, as an unplugged cable does: both ends lose their carrier."""
        self.host.run("ip", "link", "set", f"link{number}", "down")

    def restore(self, number: int) -> None:
        """Bring a link up again."""
        self.host.run("ip", "link", "set", f"link{number}", "up")

    def blackhole(self, number: int, on: bool) -> None:
        """Drop all packets of a link that reach the host and the target, carrier up; with ``on`` False deliver them
        again.
        """
        for space in (self.host, self.target):
            if on:
                _drop(space, f"link{number}", 1.0)
            else:
                space.run("tc", "qdisc", "del", "dev", f"link{number}", "clsact")

    def dropped(self) -> int:
        """Return how many packets both kernels dropped because they lay beyond the MPTCP receive window
        (NoDSSInWindow).
        """
        return self.target.statistic("NoDSSInWindow") + self.host.statistic("NoDSSInWindow")

    def counters(self) -> list[tuple[int, int]]:
        """Return for each link the bytes that the host received and sent."""
        found = self.host.counters()
        return [found.get(f"link{number}", (0, 0)) for number in range(1, len(self.links) + 1)]


def _shape(space: Space, device: str, link: Link) -> None:
    if link.delay_ms:
        in_flight = link.rate_mbit * 1e6 / 8 * (QUEUE_SECONDS + 2 * link.delay_ms / 1000)
        space.run("tc", "qdisc", "add", "dev", device, "root", "netem", "delay", f"{link.delay_ms:g}ms", "loss",
                  f"{link.loss * 100:g}%", "rate", f"{link.rate_mbit:g}mbit", "limit",
                  str(max(64, int(in_flight / 1500))))  # fmt: skip
        return
    burst = max(BURST_BYTES, int(link.rate_mbit * 1e6 / 8 / 1000 * 2))
    space.run("tc", "qdisc", "add", "dev", device, "root", "tbf", "rate", f"{link.rate_mbit:g}mbit", "burst",
              str(burst), "latency", f"{QUEUE_SECONDS * 1000:g}ms")  # fmt: skip
    if link.loss:
        _drop(space, device, link.loss)


def _drop(space: Space, device: str, share: float) -> None:
    """Drop a share of the packets that arrive: a classic BPF program compares a random word with a threshold."""
    threshold = min(0xFFFFFFFF, round(share * 0x100000000))
    program = f"4,32 0 0 4294963256,53 1 0 {threshold},6 0 0 2,6 0 0 0"
    space.run("tc", "qdisc", "add", "dev", device, "clsact")
    space.run("tc", "filter", "add", "dev", device, "ingress", "bpf", "da", "bytecode", program)


# -- entering the namespaces ----------------------------------------------------------------------------------------


def missing() -> str | None:
    """Return why these experiments cannot run here, in one sentence; None where they can."""
    for tool in ("unshare", "nsenter", "ip", "tc"):
        if shutil.which(tool) is None:
            return f"the program {tool} is not installed"
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP).close()
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, str(error.errno))
        return f"this kernel opens no MPTCP sockets ({name})"
    probe = (
        "unshare -n true && ip link add probe0 type veth peer name probe1 && "
        "tc qdisc add dev probe0 root tbf rate 1mbit burst 64k latency 50ms && ip mptcp limits show >/dev/null"
    )
    done = subprocess.run(
        ["unshare", "-rnm", "sh", "-c", probe], capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False
    )
    if done.returncode:
        words = done.stderr.strip().splitlines()
        return f"network namespaces of our own do not work here: {words[-1] if words else 'unshare -rnm failed'}"
    return None


def inside() -> bool:
    """Return whether this process is in network namespaces of its own already."""
    return bool(os.environ.get(_INSIDE))


def enter(module: str, arguments: Sequence[str]) -> None:
    """Run this module again, as the root of a new user, network and mount namespace. Returns only in a process that is
    in these namespaces already.

    Raises LabError where namespaces cannot be made.
    """
    if inside():
        return
    reason = missing()
    if reason:
        raise LabError(reason)
    os.environ[_INSIDE] = "1"
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    os.execvp("unshare", ["unshare", "-rnm", sys.executable, "-m", module, *arguments])


def congestion_controls() -> list[str]:
    """Return the congestion controls that this kernel offers, with and without privilege."""
    return Path("/proc/sys/net/ipv4/tcp_available_congestion_control").read_text().split()


def choose_congestion(wanted: str | None) -> str:
    """Return the congestion control for both sides: the wanted one, else cubic, else the first that is available.

    Raises LabError for a wanted one that is not available.
    """
    offered = congestion_controls()
    if wanted is not None and wanted not in offered:
        raise LabError(f"the congestion control {wanted} is not available; {', '.join(offered)} are")
    return wanted or next((name for name in ("cubic", "reno") if name in offered), offered[0])


def describe(links: Sequence[Link]) -> str:
    """Describe the links in words."""
    parts = []
    for link in dict.fromkeys(links):
        words = [f"{links.count(link)} x {link.rate_mbit:g} Mbit/s"]
        words += [f"{link.delay_ms:g} ms each way"] * bool(link.delay_ms)
        words += [f"{link.loss * 100:g} % loss"] * bool(link.loss)
        parts.append(", ".join(words))
    return "; ".join(parts)


def settings() -> Mapping[str, Any]:
    """Return the kernel's settings that affect the figures."""
    found: dict[str, Any] = {}
    for name in ("ipv4/tcp_rmem", "ipv4/tcp_wmem", "core/rmem_max", "core/wmem_max", "mptcp/scheduler"):
        with contextlib.suppress(OSError):
            found[name.replace("/", ".")] = " ".join((Path("/proc/sys/net") / name).read_text().split())
    return found
