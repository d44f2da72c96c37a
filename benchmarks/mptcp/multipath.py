"""Experiment 8: the series' selftest with four NVMe paths: every I/O policy over TCP and over MPTCP, with and without
loss."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from benchmarks.mptcp import kernel_host, runs
from benchmarks.mptcp.lab import Link, Network, describe
from benchmarks.mptcp.runs import BLOCK_BYTES, Settings
from nvmeof.host.multipath.iopolicy import IOPOLICIES

NAME = "multipath"
TITLE = "The series' selftest with four NVMe paths, one over each link"
EXPECTED = (
    "The series, four NVMe paths in round-robin over four links of 1000 Mbit/s, MiB/s read/write: without loss TCP "
    "455/455 and MPTCP 445/445, so 0.98 of TCP; with 5 ms and 0.5 % loss on each link TCP 144/100 and MPTCP 428/431, "
    "so 3.0 and 4.3 times TCP. With numa one path carries everything: over TCP it has one link, over MPTCP all."
)
PUBLISHED = {False: (445 / 455, 445 / 455), True: (428 / 144, 431 / 100)}
"""Ratios of MPTCP to TCP in round-robin, reads and writes, without and with loss."""
POLICIES = tuple(IOPOLICIES)
TRANSPORTS = ("tcp", "mptcp")
WORDS = ("read", "write")
LINKS = 4
DEPTH = 64
KERNEL_JOBS = 4
WORKER = "benchmarks.mptcp.multipath_worker"
LEAST_WITH_LOSS = 2.0
EQUAL = (0.95, 1.05)
KERNEL = "kernel, tcp"
COLOURS = {"tcp": "C3", "mptcp": "C0", KERNEL: "0.55"}


def run(
    settings: Settings, *, rate_mbit: float = 100.0, delay_ms: float = 0.0, loss: float = 0.0, kernel: bool = False
) -> dict[str, Any]:
    """Run each policy over TCP and MPTCP in turn, with ``loss`` once more with packet loss; ``kernel``: the kernel's
    host beside ours.
    """
    rows: list[dict[str, Any]] = []
    links: list[Link] = []
    for share in (0.0, loss) if loss else (0.0,):
        links = [Link(rate_mbit, delay_ms, share, segmented=bool(delay_ms))] * LINKS
        with Network(links, host_here=kernel) as network, contextlib.ExitStack() as stack:
            network.set_paths(LINKS, signal=False, first=1)
            stack.enter_context(runs.target(network, "mptcp", settings.congestion, "--ramdisk", "128M"))
            for policy in POLICIES:
                rows += [_row(network, transport, policy, share, settings) for transport in TRANSPORTS]
            if kernel:
                rows += _kernel_rows(network, share, settings)
    return {"links": describe(links), "rate_mbit": rate_mbit, "delay_ms": delay_ms, "loss": loss, "depth": DEPTH,
            "block_bytes": BLOCK_BYTES, "rows": rows}  # fmt: skip


def addresses(network: Network) -> list[str]:
    """Return the target's address on each link: one NVMe path each."""
    return [network.target_address(number) for number in range(1, LINKS + 1)]


def _times(settings: Settings, delay_ms: float) -> tuple[float, float]:
    """Return the seconds of warm-up and of the window; congestion windows grow by round trips."""
    warmup: float
    seconds: float
    if delay_ms:
        warmup, seconds = settings.pick((3.0, 6.0), (5.0, 15.0))
    else:
        warmup, seconds = settings.pick((1.0, 2.5), (3.0, 10.0))
    return warmup, seconds


def _row(network: Network, transport: str, policy: str, loss: float, settings: Settings) -> dict[str, Any]:
    warmup, seconds = _times(settings, network.links[0].delay_ms)
    dropped, before = network.dropped(), network.counters()
    answer = runs.work(
        network, 240, WORKER, task="load", addresses=addresses(network), transport=transport, iopolicy=policy,
        congestion=settings.congestion, subflows=LINKS, depth=DEPTH, block_bytes=BLOCK_BYTES,
        phases=["randread", "randwrite"], warmup_seconds=warmup, seconds=seconds,
    )  # fmt: skip
    found: dict[str, Any] = {"host": transport, "transport": transport, "policy": policy, "loss": loss}
    for word, phase in zip(WORDS, answer["phases"], strict=True):
        found[word] = phase["mb_per_s"]
        found[f"{word}_p99_ms"] = phase["p99_ms"]
    return found | {
        "path_ios": [path["ios"] for path in answer["paths"]],
        "link_mb": runs.link_megabytes(before, network.counters()),
        "dropped_by_kernel": network.dropped() - dropped,
        **answer["connections"],
    }


def _kernel_rows(network: Network, loss: float, settings: Settings) -> list[dict[str, Any]]:
    """Measure the kernel's host over TCP with each policy that it has, by fio with as many commands."""
    warmup, seconds = _times(settings, network.links[0].delay_ms)
    rows = []
    with kernel_host.connected(network, addresses(network), "-i", "1") as device:
        for policy in kernel_host.policies():
            kernel_host.set_policy(policy)
            before = network.counters()
            found: dict[str, Any] = {"host": KERNEL, "transport": "tcp", "policy": policy, "loss": loss}
            for word in WORDS:
                found[word] = kernel_host.fio(
                    network, device, f"rand{word}", seconds, depth=DEPTH // KERNEL_JOBS, jobs=KERNEL_JOBS,
                    ramp_seconds=warmup,
                )  # fmt: skip
            rows.append(found | {"link_mb": runs.link_megabytes(before, network.counters())})
    return rows


def losses(result: dict[str, Any]) -> list[float]:
    """Return the shares of lost packets that were run, in their order."""
    return list(dict.fromkeys(row["loss"] for row in result["rows"]))


def row_of(result: dict[str, Any], host: str, policy: str, loss: float) -> dict[str, Any] | None:
    """Return one row; None where its case was not run."""
    key = (host, policy, loss)
    return next((row for row in result["rows"] if (row["host"], row["policy"], row["loss"]) == key), None)


def _ratio(result: dict[str, Any], policy: str, loss: float, word: str) -> float:
    """Return the ratio of MPTCP to TCP."""
    tcp, mptcp = (row_of(result, transport, policy, loss) for transport in TRANSPORTS)
    assert tcp is not None and mptcp is not None
    return float(mptcp[word] / tcp[word])


def goals(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Check the published ratios in round-robin: as good as TCP without loss, at least twice as good with loss."""
    found = []
    for loss in losses(result):
        for word in WORDS:
            value = _ratio(result, "round-robin", loss, word)
            asked = f"at least {LEAST_WITH_LOSS:g}" if loss else "{:g} to {:g}".format(*EQUAL)
            reached = value >= LEAST_WITH_LOSS if loss else EQUAL[0] <= value <= EQUAL[1]
            what = "with loss" if loss else "no loss"
            found.append({"goal": f"round-robin, {what}, {word}s: MPTCP over TCP {asked}", "value": value,
                          "reached": reached})  # fmt: skip
    return found


def _pair(row: dict[str, Any] | None) -> str:
    return "-" if row is None else f"{row['read']:.2f} / {row['write']:.2f}"


def table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return the columns and the rows."""
    lines = []
    for loss in losses(result):
        for policy in POLICIES:
            ratios = " / ".join(f"{_ratio(result, policy, loss, word):.2f}" for word in WORDS)
            published = "{:.2f} / {:.2f}".format(*PUBLISHED[bool(loss)]) if policy == "round-robin" else ""
            rows = [row_of(result, host, policy, loss) for host in (*TRANSPORTS, KERNEL)]
            lines.append([f"{loss * 100:g} %", policy, *map(_pair, rows[:2]), ratios, published, _pair(rows[2])])
    columns = ["loss", "I/O policy", "TCP, read / write MB/s", "MPTCP", "MPTCP / TCP", "published",
               "the kernel's host, TCP"]  # fmt: skip
    return columns, lines


def seen(result: dict[str, Any]) -> str:
    """Explain the results, and why they deviate from the expected ones."""
    text = ""
    for loss in losses(result):
        ratios = [f"{_ratio(result, 'round-robin', loss, word):.2f}" for word in WORDS]
        text += (
            f"{'With loss' if loss else 'Without loss'} MPTCP is at {ratios[0]} (reads) and {ratios[1]} (writes) of "
            "TCP in round-robin. "
        )
    clean = losses(result)[0]
    numa = [f"{_ratio(result, 'numa', clean, word):.1f}" for word in WORDS]
    text += (
        f"With numa, where one path carries everything, MPTCP is at {numa[0]} and {numa[1]} times TCP, which has one "
        "of the four links. "
    )
    if result["loss"]:
        kept = [
            f"{transport.upper()} {' and '.join(_kept(result, transport, policy, word) for word in WORDS)} in {policy}"
            for policy in ("round-robin", "queue-depth", "service-time")
            for transport in TRANSPORTS
        ]
        text += (
            f"Of its reads and writes without loss {', '.join(kept)} keeps with it. The rate of a TCP flow under loss "
            "goes with 1/RTT and not with the link, so links slower than the series' need a longer delay to be in the "
            "same case: here the product of rate and delay lets a flow have about a quarter of its link. "
        )
    else:
        text += "Loss with a delay needs netem: that half is run in the virtual machine. "
    dropped = sum(row.get("dropped_by_kernel", 0) for row in result["rows"])
    return text + f"Packets dropped beyond the MPTCP receive window (see the note on windows): {dropped}."


def _kept(result: dict[str, Any], transport: str, policy: str, word: str) -> str:
    clean, lossy = (row_of(result, transport, policy, loss) for loss in (0.0, result["loss"]))
    assert clean is not None and lossy is not None
    return f"{100 * lossy[word] / clean[word]:.0f} %"


def plot(result: dict[str, Any], figure: Any) -> None:
    """Plot a panel per loss and direction: a group of bars per policy, the sum of the four links as a line."""
    shares = losses(result)
    axes = figure.subplots(len(shares), 2, sharey="row", squeeze=False, gridspec_kw={"hspace": 0.5, "wspace": 0.06})
    hosts = [host for host in COLOURS if any(row["host"] == host for row in result["rows"])]
    names = {"tcp": "this host, TCP", "mptcp": "this host, MPTCP", KERNEL: "the kernel's host, TCP"}
    for index, loss in enumerate(shares):
        for ax, word in zip(axes[index], WORDS, strict=True):
            _bars(ax, result, hosts, loss, word, names)
            ax.axhline(LINKS * result["rate_mbit"] / 8, color="0.3", linestyle=":", linewidth=1,
                       label="the four links' sum")  # fmt: skip
            ax.set_xticks(range(len(POLICIES)), POLICIES)
            words = f"{loss * 100:g} % loss" if loss else "no loss"
            ax.set_title(f"Random {word}s, {words}")
            ax.set_ylim(0, LINKS * result["rate_mbit"] / 8 * 1.3)
        axes[index][0].set_ylabel("Payload, MB/s")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncols=len(labels), frameon=False, bbox_to_anchor=(0.5, 0.955))


def _bars(ax: Any, result: dict[str, Any], hosts: Sequence[str], loss: float, word: str, names: dict[str, str]) -> None:
    width = 0.8 / len(hosts)
    for number, host in enumerate(hosts):
        for at, policy in enumerate(POLICIES):
            row = row_of(result, host, policy, loss)
            if row is None:
                continue
            x = at + (number - (len(hosts) - 1) / 2) * width
            ax.bar(x, row[word], width=width * 0.92, color=COLOURS[host], label=names[host] if not at else None)
            ax.annotate(f"{row[word]:.1f}", (x, row[word]), ha="center", va="bottom", fontsize="x-small")
