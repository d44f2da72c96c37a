"""Experiment 7: a stock kernel's nvme-tcp through the relay, over four links. Runs in the guest."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from benchmarks.mptcp import kernel_host, runs
from benchmarks.mptcp.lab import ROOT, LabError, Link, Network, describe
from benchmarks.mptcp.runs import NVME_PORT, Settings

NAME = "foreign"
TITLE = "An unmodified kernel initiator over four links, through a relay"
EXPECTED = (
    "The kernel's nvme-tcp opens TCP sockets inside the kernel, where neither mptcpize nor a BPF program on "
    "update_socket_protocol reaches it; without the series' patches it stays on one link. A relay on its own machine "
    "should give it the links' sum, less what copying costs."
)
LINKS = 4
RATE_MBIT = 20.0
DEPTH = 32
JOBS = 2
RELAY_PORT = 4421


def run(settings: Settings, *, rate_mbit: float = RATE_MBIT) -> dict[str, Any]:
    """Run fio on /dev/nvme: straight to the target over TCP, and through the relay over MPTCP; verify the data."""
    links = [Link(rate_mbit)] * LINKS
    rows = []
    with Network(links) as network, contextlib.ExitStack() as stack:
        network.set_paths(LINKS, signal=False)
        stack.enter_context(runs.target(network, "mptcp", settings.congestion, "--ramdisk", "128M"))
        stack.enter_context(runs.bare_server(network, "mptcp", settings.congestion))
        bare = {
            transport: {
                word: runs.bare(network, transport, word, settings.congestion, settings.pick(2.0, 5.0), 2.0)
                for word in ("read", "write")
            }
            for transport in ("tcp", "mptcp")
        }
        rows.append(_row(network, "tcp", network.target_address(1), NVME_PORT, settings) | _named(bare["tcp"]))
        with _relay(network, settings.congestion):
            rows.append(_row(network, "mptcp", "127.0.0.1", RELAY_PORT, settings) | _named(bare["mptcp"]))
    return {"links": describe(links), "rate_mbit": rate_mbit, "depth": DEPTH, "jobs": JOBS, "rows": rows}


def _named(bare: dict[str, float]) -> dict[str, float]:
    return {f"bare_{word}": value for word, value in bare.items()}


@contextlib.contextmanager
def _relay(network: Network, congestion: str) -> Iterator[None]:
    argv = [sys.executable, str(ROOT / "examples" / "mptcp_relay.py"), "--congestion", congestion]
    argv += ["--listen", f"tcp:127.0.0.1:{RELAY_PORT}", "--connect", f"mptcp:{network.target_address(1)}:{NVME_PORT}"]
    process = network.host.start(argv, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        if not process.stdout.readline():
            raise LabError("the relay did not start")
        yield
    finally:
        process.terminate()
        process.wait(10)
        if process.stdout:
            process.stdout.close()


def _row(network: Network, transport: str, address: str, port: int, settings: Settings) -> dict[str, Any]:
    with kernel_host.connected(network, [address], "-i", str(JOBS), port=port) as device:
        found: dict[str, Any] = {"transport": transport, "through": "relay" if port == RELAY_PORT else "directly"}
        for pattern, word in (("randread", "read"), ("randwrite", "write")):
            before = network.counters()
            found[word] = kernel_host.fio(network, device, pattern, settings.pick(4.0, 10.0), depth=DEPTH, jobs=JOBS)
            found[f"{word}_link_mb"] = runs.link_megabytes(before, network.counters())
        found["verified"] = _verify(network, device)
        return found


def _verify(network: Network, device: str) -> bool:
    process = network.host.start(
        ["fio", "--name=v", f"--filename={device}", "--rw=randwrite", "--bsrange=4k-256k", "--size=32M", "--iodepth=16",
         "--ioengine=libaio", "--direct=1", "--verify=crc32c", "--verify_fatal=1"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return process.wait(120) == 0


def goals(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Check that four links are used, and that the contents are right."""
    tcp, mptcp = result["rows"]
    found = [
        {"goal": f"kernel initiator through the relay, {word}s: over TCP more than 2.5",
         "value": mptcp[word] / tcp[word], "reached": mptcp[word] > 2.5 * tcp[word]}
        for word in ("read", "write")
    ]  # fmt: skip
    good = tcp["verified"] and mptcp["verified"]
    return [*found, {"goal": "fio's crc32c verify passes", "value": float(good), "reached": good}]


def table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return the columns and the rows."""
    lines = [
        [f"{row['transport']}, {row['through']}", f"{row['read']:.2f}", f"{row['bare_read']:.2f}",
         f"{row['write']:.2f}", f"{row['bare_write']:.2f}", " / ".join(f"{value:.0f}" for value in row["read_link_mb"]),
         "yes" if row["verified"] else "NO"]
        for row in result["rows"]
    ]  # fmt: skip
    return ["the kernel's nvme-tcp", "read MB/s", "bare", "write MB/s", "bare", "MB per link (read)", "verified"], lines


def seen(result: dict[str, Any]) -> str:
    """Explain the results, and why they deviate from the expected ones."""
    tcp, mptcp = result["rows"]
    return (
        f"A stock kernel (nvme connect -t tcp, fio, {result['jobs']} jobs of depth {result['depth']}, 128 KiB) reads "
        f"{tcp['read']:.1f} MB/s and writes {tcp['write']:.1f} MB/s straight over TCP, and {mptcp['read']:.1f} and "
        f"{mptcp['write']:.1f} through the relay on its own machine: {mptcp['read'] / tcp['read']:.1f} and "
        f"{mptcp['write'] / tcp['write']:.1f} times as much over {LINKS} links of {result['rate_mbit']:g} Mbit/s, all "
        "of which carried bytes. Kernel, relay and target share two emulated processors, so the links are slow: what "
        "is shown is that all of them are used, and not how fast a relay can be."
    )


def plot(result: dict[str, Any], figure: Any) -> None:
    """Plot the bytes of each link as bars."""
    ax = figure.subplots()
    tcp, mptcp = result["rows"]
    for index, word in enumerate(("read", "write")):
        for shift, row in ((-0.2, tcp), (0.2, mptcp)):
            megabytes, bottom = row[f"{word}_link_mb"], 0.0
            for number, carried in enumerate(megabytes):
                part = row[word] * carried / (sum(megabytes) or 1)
                ax.bar(index + shift, part, width=0.36, bottom=bottom, color=f"C{number}",
                       label=f"over link {number + 1}" if not index and shift > 0 else None)  # fmt: skip
                bottom += part
            ax.plot([index + shift], [row[f"bare_{word}"]], "x", color="black", markersize=9,
                    label="bare sender" if not index and shift > 0 else None)  # fmt: skip
            words = "TCP\ndirectly" if row is tcp else "MPTCP\nthrough the relay"
            ax.annotate(words, (index + shift, max(bottom, row[f"bare_{word}"])), xytext=(0, 9), ha="center",
                        textcoords="offset points")  # fmt: skip
    ax.set_xticks([0, 1], ["random reads", "random writes"])
    ax.set_ylabel("Payload, MB/s")
    ax.set_ylim(0, max(mptcp["read"], mptcp["write"], mptcp["bare_read"]) * 1.5)
    ax.set_title(f"fio on /dev/nvme0n1, 128 KiB, {result['jobs']} jobs, depth {result['depth']}")
    ax.legend(loc="upper left", fontsize="small", ncols=2)
