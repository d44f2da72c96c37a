"""Experiment 6: paths of unequal rate, and small reads beside streams of large ones."""

from __future__ import annotations

import contextlib
from typing import Any

from benchmarks.mptcp import runs
from benchmarks.mptcp.lab import Link, Network, describe
from benchmarks.mptcp.runs import BLOCK_BYTES, Settings

NAME = "unequal"
TITLE = "Unequal paths, and small reads beside streams"
EXPECTED = (
    "Aggregation of unequal paths should give their sum (25 + 50 + 100 Mbit/s: 21.9 MB/s raw) as long as the send "
    "buffer covers the slowest path's share, with bytes in the ratio 1:2:4; no figure is published. A small read on "
    "a queue that streams waits behind what is in the socket (head-of-line blocking of one byte stream); on a queue "
    "of its own it waits only for the links, which is why NVMe has several queues."
)
RATES = (25, 50, 100)
STREAM_DEPTH = 32
LATENCY_LINKS = 4
LATENCY_RATE = 100
LATENCY_CASES = (("tcp", 1), ("tcp", 4), ("mptcp", 1), ("mptcp", 4))


def run(settings: Settings, delays_ms: tuple[float, ...] = (0.0, 0.0, 0.0), scale: float = 1.0) -> dict[str, Any]:
    """Run both parts. `delays_ms`: of each link, one way, where netem exists; `scale`: factor of the links' rates."""
    links = [Link(rate * scale, delay) for rate, delay in zip(RATES, delays_ms, strict=True)]
    with _stage(links, settings) as network:
        shares = [_shares(network, transport, settings) for transport in ("tcp", "mptcp")]
    result = {"links": describe(links), "rates_mbit": [link.rate_mbit for link in links], "delays_ms": list(delays_ms),
              "shares": shares, "depth": STREAM_DEPTH, "latency": []}  # fmt: skip
    if not any(delays_ms):  # latencies are measured over equal links without delay
        with _stage([Link(LATENCY_RATE)] * LATENCY_LINKS, settings) as network:
            result["latency"] = [_latency(network, *case, settings) for case in LATENCY_CASES]
    return result


@contextlib.contextmanager
def _stage(links: list[Link], settings: Settings) -> Any:
    with Network(links) as network, contextlib.ExitStack() as stack:
        network.set_paths(len(links), signal=False)
        stack.enter_context(runs.target(network, "mptcp", settings.congestion, "--ramdisk", "128M"))
        stack.enter_context(runs.bare_server(network, "mptcp", settings.congestion))
        yield network


def _shares(network: Network, transport: str, settings: Settings) -> dict[str, Any]:
    seconds, warmup = settings.pick(1.2, 5.0), settings.pick(0.7, 2.0)
    bare = {d: runs.bare(network, transport, d, settings.congestion, seconds, warmup) for d in ("read", "write")}
    found: dict[str, Any] = {"transport": transport, "bare_read": bare["read"], "bare_write": bare["write"]}
    for pattern, word in (("randread", "read"), ("randwrite", "write")):
        before = network.counters()
        answer = runs.work(
            network, task="phases", transport=transport, congestion=settings.congestion, subflows=len(network.links),
            depth=STREAM_DEPTH, block_bytes=BLOCK_BYTES, phases=[pattern], seconds=seconds, warmup_seconds=warmup,
        )  # fmt: skip
        found[word] = answer["phases"][0]["mb_per_s"]
        found[f"{word}_p99_ms"] = answer["phases"][0]["p99_ms"]
        found[f"{word}_link_mb"] = runs.link_megabytes(before, network.counters())
        found |= answer["connections"]
    return found


def _latency(network: Network, transport: str, queues: int, settings: Settings) -> dict[str, Any]:
    found = runs.work(
        network, task="latency", transport=transport, congestion=settings.congestion, subflows=len(network.links),
        queues=queues, depth=STREAM_DEPTH, block_bytes=BLOCK_BYTES, stream="randread",
        seconds=settings.pick(1.2, 6.0), warmup_seconds=settings.pick(0.6, 1.5),
    )  # fmt: skip
    return {"transport": transport, "queues": queues, **found}


def _total(result: dict[str, Any]) -> float:
    return float(sum(result["rates_mbit"])) / 8


def goals(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Check MPTCP against the bare sender."""
    mptcp = result["shares"][-1]
    return [
        {"goal": f"unequal paths, {word}s: share of the bare sender at least 0.95",
         "value": mptcp[word] / mptcp[f"bare_{word}"], "reached": mptcp[word] >= 0.95 * mptcp[f"bare_{word}"]}
        for word in ("read", "write")
    ]  # fmt: skip


def table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return the columns and the rows: first the rates, then the latencies."""
    lines = []
    for row in result["shares"]:
        shares = [value / (sum(row["read_link_mb"]) or 1) for value in row["read_link_mb"]]
        lines.append([
            f"{row['transport']} over {':'.join(f'{rate:g}' for rate in result['rates_mbit'])} Mbit/s",
            f"{row['read']:.2f}", f"{row['bare_read']:.2f}", f"{row['write']:.2f}", f"{row['bare_write']:.2f}",
            " / ".join(f"{100 * share:.0f} %" for share in shares), "", "",
        ])  # fmt: skip
    for row in result["latency"]:
        streams = "their own queue" if row["queues"] > 1 else "the streams' queue"
        lines.append([
            f"{row['transport']}, 4 KiB reads on {streams}", f"{row['stream']['mb_per_s']:.1f}", "", "", "", "",
            f"{row['alone']['p50_ms']:.2f} / {row['alone']['p99_ms']:.2f}",
            f"{row['beside']['p50_ms']:.1f} / {row['beside']['p99_ms']:.1f}",
        ])  # fmt: skip
    columns = ["what", "read MB/s", "bare", "write MB/s", "bare", "share per link (read)", "4 KiB alone p50/p99 ms",
               "beside streams p50/p99 ms"]  # fmt: skip
    return columns, lines


def seen(result: dict[str, Any]) -> str:
    """Explain the results, and why they deviate from the expected ones."""
    tcp, mptcp = result["shares"]
    shares = [value / sum(mptcp["read_link_mb"]) for value in mptcp["read_link_mb"]]
    text = (
        f"Three links of {' + '.join(f'{rate:g}' for rate in result['rates_mbit'])} Mbit/s ({_total(result):.1f} MB/s "
        f"raw) gave {mptcp['read']:.1f} MB/s of reads and {mptcp['write']:.1f} of writes (bare sender "
        f"{mptcp['bare_read']:.1f} and {mptcp['bare_write']:.1f}); TCP stays on the first link with "
        f"{tcp['read']:.1f}. The links carried {', '.join(f'{100 * share:.0f} %' for share in shares)} of the bytes; "
        "1:2:4 would be 14, 29 and 57 %: the kernel's scheduler gives the next bytes to the subflow that is expected "
        "to send them first."
    )
    if not result["latency"]:
        return text
    by = {(row["transport"], row["queues"]): row for row in result["latency"]}
    words = [
        f"{transport.upper()} {by[transport, queues]['beside']['p50_ms']:.0f} ms on "
        f"{'a queue of their own' if queues > 1 else 'the streams’ queue'}"
        for transport, queues in LATENCY_CASES
    ]
    return text + (
        f" Median latency of 4 KiB reads beside streams of 128 KiB over {LATENCY_LINKS} links: {', '.join(words)}. "
        "Alone they take "
        f"{by['mptcp', 1]['alone']['p50_ms']:.2f} ms. On the shared queue a small read waits for all that was asked "
        f"before it ({STREAM_DEPTH} x 128 KiB = 4.2 MB: the queue's depth divided by its bandwidth, so four links make "
        "it four times shorter). On its own queue it waits for the packets that stand at the links."
    )


def plot(result: dict[str, Any], figure: Any) -> None:
    """Plot bytes per link on the left, latencies on the right."""
    axes = figure.subplots(1, 2 if result["latency"] else 1, squeeze=False, gridspec_kw={"wspace": 0.3})[0]
    ax = axes[0]
    for index, word in enumerate(("read", "write")):
        for shift, row in ((-0.2, result["shares"][0]), (0.2, result["shares"][1])):
            megabytes = row[f"{word}_link_mb"]
            bottom = 0.0
            for number, carried in enumerate(megabytes):
                part = row[word] * carried / (sum(megabytes) or 1)
                label = f"link {number + 1}, {result['rates_mbit'][number]:g} Mbit/s"
                label += f", {result['delays_ms'][number]:g} ms" * bool(result["delays_ms"][number])
                ax.bar(index + shift, part, width=0.36, bottom=bottom, color=f"C{(0, 2, 1)[number]}",
                       label=label if not index and shift > 0 else None)  # fmt: skip
                bottom += part
            ax.plot([index + shift], [row[f"bare_{word}"]], "x", color="black", markersize=9,
                    label="bare sender" if not index and shift > 0 else None)  # fmt: skip
    ax.axhline(_total(result), linestyle="--", color="0.5", linewidth=1, label="sum of the links, raw")
    ax.set_xticks([-0.2, 0.2, 0.8, 1.2], ["TCP\nreads", "MPTCP\nreads", "TCP\nwrites", "MPTCP\nwrites"])
    ax.set_ylabel("Payload, MB/s")
    ax.set_ylim(0, _total(result) * 1.6)
    ax.set_title("Links of unequal rate")
    ax.legend(loc="upper left", fontsize="small", ncols=2)
    if result["latency"]:
        _plot_latency(result, axes[1])


def _plot_latency(result: dict[str, Any], ax: Any) -> None:
    names = []
    for index, row in enumerate(result["latency"]):
        names.append(f"{row['transport'].upper()},\n{'own' if row['queues'] > 1 else 'same'} queue")
        colour = "C3" if row["transport"] == "tcp" else "C0"
        beside, alone = row["beside"], row["alone"]
        ax.plot([index, index], [beside["p50_ms"], beside["p99_ms"]], color=colour, linewidth=2)
        ax.plot([index], [beside["p50_ms"]], "o", color=colour, label="median, beside streams" if not index else None)
        ax.plot([index], [beside["p99_ms"]], "^", color=colour, label="99th percentile" if not index else None)
        ax.plot([index], [alone["p50_ms"]], "s", color="0.5", label="median, alone" if not index else None)
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    ax.set_ylim(low, high * 6)
    ax.set_xticks(range(len(names)), names)
    ax.set_xlim(-0.5, len(names) - 0.5)
    ax.set_ylabel("Latency of 4 KiB reads, ms")
    ax.set_title(f"4 KiB reads beside streams, {LATENCY_LINKS} × {LATENCY_RATE} Mbit/s")
    ax.legend(loc="upper right", fontsize="small")
