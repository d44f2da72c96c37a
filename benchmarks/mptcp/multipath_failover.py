"""Experiment 9: one of four links cut and restored below four NVMe paths, for every I/O policy over TCP and MPTCP."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any

from benchmarks.mptcp import failover, kernel_host, runs
from benchmarks.mptcp.lab import Link, Network, describe
from benchmarks.mptcp.multipath import COLOURS, KERNEL, LINKS, POLICIES, TRANSPORTS, WORKER, addresses, row_of
from benchmarks.mptcp.runs import BLOCK_BYTES, Settings

NAME = "multipath-failover"
TITLE = "A link cut and restored below four NVMe paths"
EXPECTED = (
    "NVMe multipath notices a dead path by its keep alive: nothing comes back for the keep-alive timeout, then the "
    "commands of that path go over another one. With numa that is all of them, with round-robin soon the whole depth; "
    "policies that look at what is outstanding should go on over the other paths. Over MPTCP the bytes go over "
    "another link after a few retransmission timeouts, and NVMe loses no path. No figure is published."
)
WORKERS = 16
RECONNECT_SECONDS = 2.0
MPTCP_SHARE = 0.5
"""Over MPTCP the pause is at most this share of the pause with the same policy over TCP."""
_NO_TRAFFIC = 0.05


def run(settings: Settings, *, rate_mbit: float = 50.0, kernel: bool = False) -> dict[str, Any]:
    """Run each policy over TCP and MPTCP in turn, in a fresh network; ``kernel``: the kernel's host beside ours."""
    links = [Link(rate_mbit)] * LINKS
    rows = []
    policies = settings.pick(("numa", "round-robin"), POLICIES)
    for policy in policies:
        for transport in TRANSPORTS:
            with _served(links, settings, kernel) as network:
                rows.append(_row(network, transport, policy, settings))
    if kernel:
        for policy in policies:
            with _served(links, settings, kernel) as network:
                rows += _kernel_row(network, policy, settings)
    return {"links": describe(links), "rate_mbit": rate_mbit, "block_bytes": BLOCK_BYTES, "workers": WORKERS,
            "keep_alive_seconds": _keep_alive(settings), "reconnect_delay": RECONNECT_SECONDS, "policies": policies,
            "rows": rows}  # fmt: skip


@contextlib.contextmanager
def _served(links: list[Link], settings: Settings, kernel: bool) -> Any:
    with Network(links, host_here=kernel) as network, contextlib.ExitStack() as stack:
        network.set_paths(LINKS, signal=False, first=1)
        stack.enter_context(runs.target(network, "mptcp", settings.congestion, "--ramdisk", "128M"))
        yield network


def _keep_alive(settings: Settings) -> float:
    return float(settings.pick(2.0, 5.0))


def _seconds(settings: Settings) -> tuple[float, float, float]:
    """Return the seconds before the cut, while the link is down, and after its restoration."""
    before, down, after = settings.pick((1.5, 6.0, 5.0), (3.0, 12.0, 9.0))
    return before, down, after


def _row(network: Network, transport: str, policy: str, settings: Settings) -> dict[str, Any]:
    process = runs.start_worker(
        network, WORKER, task="verify", addresses=addresses(network), transport=transport, iopolicy=policy,
        congestion=settings.congestion, subflows=LINKS, depth=WORKERS, block_bytes=BLOCK_BYTES,
        keep_alive_seconds=_keep_alive(settings), reconnect_delay=RECONNECT_SECONDS,
        seconds=sum(_seconds(settings)) + 0.5,
    )  # fmt: skip
    found = _cut_under(network, process, settings)
    return {"host": transport, "policy": policy, "loss": 0.0, **found}


def _kernel_row(network: Network, policy: str, settings: Settings) -> list[dict[str, Any]]:
    """Measure the kernel's host over TCP; return nothing where it does not have the policy."""
    keep_alive = f"{_keep_alive(settings):g}"
    options = ("-i", "1", "-k", keep_alive, "-c", f"{RECONNECT_SECONDS:g}", "-l", "600")
    with kernel_host.connected(network, addresses(network), *options) as device:
        if policy not in kernel_host.policies():
            return []
        kernel_host.set_policy(policy)
        process = runs.start_worker(
            network, WORKER, task="verify_device", device=device, depth=WORKERS, block_bytes=BLOCK_BYTES,
            seconds=sum(_seconds(settings)) + 0.5,
        )  # fmt: skip
        return [{"host": KERNEL, "policy": policy, "loss": 0.0, **_cut_under(network, process, settings)}]


def _cut_under(network: Network, process: Any, settings: Settings) -> dict[str, Any]:
    """Cut link 1, which numa uses, and restore it under a verifying load; return what the load measured."""
    runs.first_line(process)
    before, down, after = _seconds(settings)
    stage = failover.Stage(network, time.monotonic())
    samples: list[tuple[float, list[int]]] = []
    stop = threading.Event()
    sampler = threading.Thread(target=failover.sample, args=(stage, samples, stop))
    sampler.start()
    try:
        stage.sleep(before)
        stage.cut(1)
        stage.sleep(down)
        stage.restore(1)
        stage.sleep(after)
    finally:
        stop.set()
        sampler.join()
    found = runs.answer(process, down + after + 120)
    times = [moment - stage.began for moment in found["times"]]
    cut, restored = (moment for moment, _, _ in stage.events)
    pause, at = failover.longest_pause([moment for moment in times if moment > cut - _NO_TRAFFIC], samples[-1][0], cut)
    return {
        "megabytes": len(times) * BLOCK_BYTES / 1e6,
        "pause_seconds": pause,
        "pause_at": at,
        "longest_command_seconds": found["longest_seconds"],
        "down_share": _rate(times, cut + pause, restored) / max(_rate(times, 0.5, cut), 1e-9),
        "again_seconds": failover.again(stage.events, samples, (), network.links[0].rate_mbit)[0],
        "lost_bytes": found["lost_bytes"],
        "errors": found["errors"],
        "failovers": sum(path["failovers"] for path in found.get("paths", ())),
        "dropped_by_kernel": network.dropped(),
        "events": stage.events,
        "samples": failover.rates(samples),
    }


def _rate(times: list[float], early: float, late: float) -> float:
    """Return the completions per second between two moments; 0 where no time lies between them."""
    return sum(early < moment <= late for moment in times) / (late - early) if late > early else 0.0


def goals(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Check that nothing is lost, that failover ends within the keep-alive timeout, sooner over MPTCP, and that the
    link is used again.
    """
    found = []
    most = 2.5 * result["keep_alive_seconds"]
    for row in result["rows"]:
        what, bad = f"{row['policy']}, {row['host']}", row["lost_bytes"] + len(row["errors"])
        if row["host"] == KERNEL:
            continue
        found.append({"goal": f"{what}: no byte lost and no error", "value": float(bad), "reached": not bad})
        found.append({"goal": f"{what}: longest pause at most {most:g} s", "value": row["pause_seconds"],
                      "reached": row["pause_seconds"] <= most})  # fmt: skip
    for policy in result["policies"]:
        tcp, mptcp = (row_of(result, transport, policy, 0.0) for transport in TRANSPORTS)
        assert tcp is not None and mptcp is not None
        share = mptcp["longest_command_seconds"] / tcp["longest_command_seconds"]
        found.append({"goal": f"{policy}: longest command over MPTCP at most {MPTCP_SHARE:g} of TCP's", "value": share,
                      "reached": share <= MPTCP_SHARE})  # fmt: skip
    return found


def table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return the columns and the rows."""
    columns = ["I/O policy", "host, transport", "MB verified", "longest pause, s", "longest command, s",
               "rate while cut / before", "link used again after, s", "failovers", "bytes lost", "errors"]  # fmt: skip
    lines = []
    for policy in result["policies"]:
        for host in COLOURS:
            row = row_of(result, host, policy, 0.0)
            if row is None:
                continue
            again = "-" if row["again_seconds"] is None else f"{row['again_seconds']:.2f}"
            failovers = "-" if host == KERNEL else str(row["failovers"])
            lines.append([policy, host if host == KERNEL else f"this host, {host}", f"{row['megabytes']:.0f}",
                          f"{row['pause_seconds']:.2f}", f"{row['longest_command_seconds']:.2f}",
                          f"{row['down_share']:.2f}", again, failovers, str(row["lost_bytes"]),
                          str(len(row["errors"]))])  # fmt: skip
    return columns, lines


def seen(result: dict[str, Any]) -> str:
    """Explain the results, and why they deviate from the expected ones."""
    words = []
    for policy in result["policies"]:
        tcp, mptcp = (row_of(result, transport, policy, 0.0) for transport in TRANSPORTS)
        assert tcp is not None and mptcp is not None
        words.append(
            f"{policy}: {tcp['pause_seconds']:.1f} s over TCP and {mptcp['pause_seconds']:.2f} s over MPTCP, the "
            f"longest command {tcp['longest_command_seconds']:.1f} s and {mptcp['longest_command_seconds']:.2f} s"
        )
    ours = [row for row in result["rows"] if row["host"] != KERNEL]
    lost, errors = sum(row["lost_bytes"] for row in ours), sum(len(row["errors"]) for row in ours)
    text = (
        f"{lost} bytes were lost and {errors} commands failed. Longest time without any completion after the cut, with "
        f"a keep alive of {result['keep_alive_seconds']:g} s and a reconnect delay of {result['reconnect_delay']:g} s: "
        f"{'; '.join(words)}. Over TCP the commands on the dead path wait until the keep alive is given up, whatever "
        "the policy. With numa these are all; with round-robin every worker comes to that path in its turn, so that "
        "soon all wait as well. queue-depth and service-time see that nothing completes there and send the rest over "
        "the other paths: only the commands that were on the path wait. Over MPTCP the kernels send the bytes over "
        "other links, no path is lost, and no command is sent again (0 failovers)."
    )
    kernels = [row for row in result["rows"] if row["host"] == KERNEL]
    if kernels:
        text += (
            " The kernel's own host over TCP: "
            + ", ".join(f"{row['pause_seconds']:.1f} s with {row['policy']}" for row in kernels)
            + ", with the same timers."
        )
    return text


def plot(result: dict[str, Any], figure: Any) -> None:
    """Plot what each link carried: a row per policy, a column per host and transport."""
    hosts = [host for host in COLOURS if any(row["host"] == host for row in result["rows"])]
    axes = figure.subplots(len(result["policies"]), len(hosts), sharex=True, sharey=True, squeeze=False,
                           gridspec_kw={"hspace": 0.45, "wspace": 0.06})  # fmt: skip
    top = LINKS * result["rate_mbit"] / 8 * 2
    for index, policy in enumerate(result["policies"]):
        for ax, host in zip(axes[index], hosts, strict=True):
            row = row_of(result, host, policy, 0.0)
            if row is None:
                ax.set_title(f"{policy}: not in this kernel", fontsize=9)
                continue
            times = [when for when, _ in row["samples"]]
            series = [[values[number] for _, values in row["samples"]] for number in range(LINKS)]
            ax.stackplot(times, series, labels=[f"link {number + 1}" for number in range(LINKS)],
                         colors=[f"C{number}" for number in range(LINKS)], linewidth=0, alpha=0.85)  # fmt: skip
            (cut, *_), (restored, *_) = row["events"]
            ax.plot([cut, restored], [top * 0.97] * 2, color="C0", linewidth=3, solid_capstyle="butt")
            ax.set_ylim(0, top)
            ax.set_xlim(0, times[-1])
            who = "kernel, TCP" if host == KERNEL else host.upper()
            ax.set_title(f"{policy}, {who}: pause {row['pause_seconds']:.2f} s", fontsize=9)
        axes[index][0].set_ylabel("MB/s, both ways", fontsize=9)
    for ax in axes[-1]:
        ax.set_xlabel("Seconds")
    axes[0][0].plot([], [], color="C0", linewidth=3, label="bar: link 1 is down")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncols=LINKS + 1, bbox_to_anchor=(0.5, 0.95), frameon=False)
