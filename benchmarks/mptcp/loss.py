"""Experiment 4: packet loss on every link, with one NVMe path and with four."""

from __future__ import annotations

import contextlib
from typing import Any

from benchmarks.mptcp import runs
from benchmarks.mptcp.lab import Link, Network, describe
from benchmarks.mptcp.runs import BLOCK_BYTES, Settings

NAME = "loss"
TITLE = "0.5 % loss on each of four links"
EXPECTED = (
    "The series, four links of 1000 Mbit/s with 5 ms and 0.5 % loss each, four NVMe paths in round-robin, MiB/s "
    "read/write: without loss TCP 455/455 and MPTCP 445/445; with it TCP 144/100 and MPTCP 428/431: TCP keeps 32 % "
    "and 22 %, MPTCP 96 % and 97 %."
)
PUBLISHED = {("tcp", 0.0): (455, 455), ("mptcp", 0.0): (445, 445), ("tcp", 0.005): (144, 100),
             ("mptcp", 0.005): (428, 431)}  # fmt: skip
LOSS = 0.005
LINKS = 4
DEPTH = 64


def run(settings: Settings, *, rate_mbit: float = 100.0, delay_ms: float = 0.0, loss: float = LOSS) -> dict[str, Any]:
    """Run without and with loss, with one and four NVMe paths, over TCP and MPTCP. With a delay, netem makes the loss
    too.
    """
    rows, words = [], []
    for share in (0.0, loss):
        links = [Link(rate_mbit, delay_ms, share, segmented=True)] * LINKS
        words.append(describe(links))
        with Network(links) as network, contextlib.ExitStack() as stack:
            network.set_paths(LINKS, first=1)
            stack.enter_context(runs.target(network, "mptcp", settings.congestion, "--ramdisk", "128M"))
            stack.enter_context(runs.bare_server(network, "mptcp", settings.congestion))
            for paths in (1, LINKS):
                for transport in ("tcp", "mptcp"):
                    rows.append(_row(network, transport, paths, share, settings))
    return {"links": words[-1], "rate_mbit": rate_mbit, "delay_ms": delay_ms, "loss": loss, "depth": DEPTH,
            "block_bytes": BLOCK_BYTES, "means": "netem" if delay_ms else "classic BPF", "rows": rows}  # fmt: skip


def _row(network: Network, transport: str, paths: int, loss: float, settings: Settings) -> dict[str, Any]:
    seconds, warmup = settings.pick(2.0, 6.0), settings.pick(1.0, 3.0)
    found: dict[str, Any] = {"transport": transport, "nvme_paths": paths, "loss": loss}
    if paths == 1:
        for word in ("read", "write"):
            found[f"bare_{word}"] = runs.bare(network, transport, word, settings.congestion, seconds, warmup)
    dropped = network.dropped()
    for pattern, word in (("randread", "read"), ("randwrite", "write")):
        answer = runs.work(
            network, 240, task="phases", transport=transport, congestion=settings.congestion, subflows=LINKS,
            addresses=[network.target_address(number) for number in range(1, paths + 1)], depth=DEPTH // paths,
            block_bytes=BLOCK_BYTES, phases=[pattern], seconds=seconds, warmup_seconds=warmup,
        )  # fmt: skip
        found[word] = answer["phases"][0]["mb_per_s"]
        found[f"{word}_p99_ms"] = answer["phases"][0]["p99_ms"]
        found |= answer["connections"]
    return found | {"dropped_by_kernel": network.dropped() - dropped}


def _row_of(result: dict[str, Any], transport: str, paths: int, loss: float) -> dict[str, Any]:
    key = (transport, paths, loss)
    return next(row for row in result["rows"] if (row["transport"], row["nvme_paths"], row["loss"]) == key)


def goals(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Check with loss and one NVMe path: more than 2.5 times TCP, and 0.95 of the bare sender."""
    tcp, mptcp = (_row_of(result, transport, 1, result["loss"]) for transport in ("tcp", "mptcp"))
    found = []
    for word in ("read", "write"):
        found.append({"goal": f"loss, one path, {word}s: MPTCP over TCP more than 2.5",
                      "value": mptcp[word] / tcp[word], "reached": mptcp[word] > 2.5 * tcp[word]})  # fmt: skip
        share = mptcp[word] / mptcp[f"bare_{word}"]
        found.append({"goal": f"loss, one path, {word}s: share of the bare sender at least 0.95", "value": share,
                      "reached": share >= 0.95})  # fmt: skip
    return found


def table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return the columns and the rows."""
    lines = []
    for row in result["rows"]:
        published = PUBLISHED.get((row["transport"], row["loss"])) if row["nvme_paths"] == LINKS else None
        lines.append([
            f"{row['loss'] * 100:g} %", str(row["nvme_paths"]), row["transport"], f"{row['read']:.2f}",
            f"{row['bare_read']:.2f}" if "bare_read" in row else "", f"{row['write']:.2f}",
            f"{row['bare_write']:.2f}" if "bare_write" in row else "", f"{row['read_p99_ms']:.0f}",
            "{}/{} MiB/s".format(*published) if published else "",
        ])  # fmt: skip
    columns = ["loss", "NVMe paths", "transport", "read MB/s", "bare", "write MB/s", "bare", "p99 ms, read",
               "published (at 1000 Mbit/s)"]  # fmt: skip
    return columns, lines


def seen(result: dict[str, Any]) -> str:
    """Explain the results, and why they deviate from the expected ones."""
    kept = {}
    for transport in ("tcp", "mptcp"):
        for paths in (1, LINKS):
            clean, lossy = (_row_of(result, transport, paths, loss) for loss in (0.0, result["loss"]))
            kept[transport, paths] = " and ".join(f"{100 * lossy[w] / clean[w]:.0f} %" for w in ("read", "write"))
    tcp, mptcp = (_row_of(result, transport, 1, result["loss"]) for transport in ("tcp", "mptcp"))
    text = (
        f"With {result['loss'] * 100:g} % loss by {result['means']} on links of {result['rate_mbit']:g} Mbit/s, one "
        f"NVMe path keeps {kept['tcp', 1]} of its reads and writes over TCP and {kept['mptcp', 1]} over MPTCP; four "
        f"paths in round-robin keep {kept['tcp', LINKS]} and {kept['mptcp', LINKS]}. MPTCP on one NVMe path is at "
        f"{mptcp['read'] / tcp['read']:.1f} times TCP for reads and {mptcp['write'] / tcp['write']:.1f} for writes. "
    )
    if result["delay_ms"]:
        return text + (
            "The links are slower than the series' because emulation carries no more; a congestion window that loss "
            "keeps small fills a slower link more easily (the rate under loss goes with 1/RTT and not with the link), "
            "so TCP loses a smaller part here than on 1000 Mbit/s."
        )
    return text + (
        "Without the series' 5 ms of delay the round trip is that of the link's own queue, a few milliseconds at the "
        "most, and a window that loss keeps small is still enough for 100 Mbit/s: so the loss costs little here, "
        "and the case with delay is the one to compare with the publication."
    )


def plot(result: dict[str, Any], figure: Any) -> None:
    """Plot reads on the left, writes on the right: bars by NVMe paths and transport, published shares as marks."""
    axes = figure.subplots(1, 2, sharey=True)
    top = 0.0
    for ax, (position, word) in zip(axes, enumerate(("read", "write")), strict=True):
        names = []
        cases = [(transport, paths) for paths in (1, LINKS) for transport in ("tcp", "mptcp")]
        for index, (transport, paths) in enumerate(cases):
            names.append(f"{transport.upper()}\n{paths} path{'s' * (paths > 1)}")
            clean, lossy = (_row_of(result, transport, paths, loss) for loss in (0.0, result["loss"]))
            for shift, row, alpha, label in ((-0.2, clean, 0.45, "no loss"), (0.2, lossy, 1.0, "with loss")):
                ax.bar(index + shift, row[word], width=0.38, color="C3" if transport == "tcp" else "C0", alpha=alpha,
                       label=f"{transport.upper()}, {label}" if index < 2 else None)  # fmt: skip
                ax.annotate(f"{row[word]:.1f}", (index + shift, row[word]), ha="center", va="bottom", fontsize="small")
                if f"bare_{word}" in row:
                    ax.plot([index + shift], [row[f"bare_{word}"]], "x", color="black",
                            label="bare sender" if not index and shift < 0 else None)  # fmt: skip
                top = max(top, row[word])
            if paths == LINKS:
                share = PUBLISHED[transport, LOSS][position] / PUBLISHED[transport, 0.0][position]
                ax.plot([index + 0.2], [clean[word] * share], "D", color="black", fillstyle="none",
                        label="published share of no loss" if index == 2 else None)  # fmt: skip
        ax.set_xticks(range(len(names)), names)
        ax.set_title(f"Random {word}s, 128 KiB, {result['depth']} commands")
    axes[0].set_ylabel("Payload, MB/s")
    axes[0].set_ylim(0, top * 1.45)
    axes[1].legend(loc="upper left", fontsize="small", ncols=2)
