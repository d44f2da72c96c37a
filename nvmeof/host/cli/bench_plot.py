"""The latencies of `bench` as a picture: which share of the commands completed within which time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from nvmeof.errors import ConfigurationError, NvmeofError
from nvmeof.host.cli.bench_result import Saved

SUFFIXES = (".png", ".svg", ".pdf")
_TICKS = ((0.0, "0"), (0.5, "50 %"), (0.9, "90 %"), (0.99, "99 %"), (0.999, "99.9 %"), (0.9999, "99.99 %"),
          (0.99999, "99.999 %"))  # fmt: skip


def check_plot(path: str) -> None:
    """Refuse a plot that cannot be drawn, before anything is measured. Raises :class:`ConfigurationError`."""
    if Path(path).suffix.lower() not in SUFFIXES:
        raise ConfigurationError(f"{path} is not a plot file: give a name that ends with .svg or .png")
    try:
        import matplotlib
    except ImportError:
        raise ConfigurationError("plots need matplotlib: pip install 'nvmeof-mptcp[plots]'") from None
    matplotlib.use("Agg")


def curves(result: Saved, label: str = "") -> list[tuple[str, list[tuple[float, float]]]]:
    """Return the curves of a result: a name, and microseconds by the share of commands that completed within them."""
    found = []
    for name, each in result.directions.items():
        points = each.get("lat_curve_ns") or [
            (float(percent) / 100, value) for percent, value in each["clat_ns"]["percentile"].items()
        ]
        # a share needs a command above it: few commands have no high percentiles
        count = each["total_ios"]
        kept = [(share, value / 1000) for share, value in points if (1 - share) * count >= 1]
        found.append((f"{label} {name}".strip(), kept))
    return found


def draw(path: str, lines: Iterable[tuple[str, Sequence[tuple[float, float]]]], title: str) -> None:
    """Draw curves into a file. Raises :class:`NvmeofError` where it cannot be written."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes: Any = figure.subplots()
    highest = 0.9
    for name, points in lines:
        if points:
            highest = max(highest, points[-1][0])
            axes.plot([1 / (1 - share) for share, _ in points], [value for _, value in points], label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    ticks = [(1 / (1 - share), text) for share, text in _TICKS if share <= highest]
    axes.set_xticks([place for place, _ in ticks], [text for _, text in ticks])
    axes.minorticks_off()
    axes.set_xlabel("share of the commands")
    axes.set_ylabel("done within, µs")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}")
    low, high = axes.get_ylim()
    steps = [base * 10**power for power in range(9) for base in (1, 2, 5)]
    axes.set_yticks([each for each in steps if low <= each <= high])
    axes.set_title(title, loc="left")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise NvmeofError(f"{path} cannot be written: {error.strerror}") from None
