"""Two result files side by side."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.session import BenchmarkError


def _figures(report: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for part in ("codec", "connection"):
        for r in report.get(part, []):
            yield f"{part}: {r['name']}, ns", float(r.get("derived_ns", r.get("best_ns", 0.0)))
    for r in report.get("loopback", []):
        if "error" in r:
            continue
        doubt = " ~" if r["noisy"] else ""
        yield f"{r['name']}: IOPS{doubt}", r["target"]["iops"]
        yield f"{r['name']}: user us/IO{doubt}", r["target"]["user_us"]
        yield f"{r['name']}: CPU us/IO{doubt}", r["target"]["cpu_us"]
        yield f"{r['name']}: IOPS ratio to the floor{doubt}", r["iops_ratio"]


def _load(path: Path) -> dict[str, float]:
    try:
        report = json.loads(path.read_text())
        return {name.removesuffix(" ~"): value for name, value in _figures(report)}
    except OSError as error:
        raise BenchmarkError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BenchmarkError(f"{path} is no result of these benchmarks") from error


def compare(before: Path, after: Path, console: Console) -> int:
    """Print what both files have; returns how many figures that were."""
    old, new = _load(before), _load(after)
    table = Table(title=f"{before.name} and {after.name}", title_justify="left")
    table.add_column("figure")
    for column in ("before", "after", "after / before"):
        table.add_column(column, justify="right")
    both = [name for name in old if name in new]
    for name in both:
        quotient = f"{new[name] / old[name]:.2f}" if old[name] else "-"
        table.add_row(name, f"{old[name]:,.2f}", f"{new[name]:,.2f}", quotient)
    console.print(table)
    return len(both)
