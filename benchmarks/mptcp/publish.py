"""The output of an experiment: a table on the terminal, a figure as PNG and SVG, JSON, and its text."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.console import Console
from rich.table import Table

SIZES = {
    "failover": (11.0, 8.0),
    "multipath": (11.0, 6.2),
    "multipath_failover": (12.0, 9.0),
    "filecopy": (9.0, 3.6),
    "selftest": (8.0, 5.0),
}
WIDE = (11.0, 5.2)


def caption(result: dict[str, Any]) -> str:
    """Return the conditions as a line under the figure."""
    environment = result["environment"]
    words = [result["links"], f"congestion control {result['congestion_control']} on both sides",
             f"Linux {environment['kernel']}{' in QEMU (TCG)' if result.get('emulated') else ''}",
             f"Python {environment['python'].split()[-1]}, {environment['cpus']} CPUs"]  # fmt: skip
    words += ["short form"] * bool(result.get("quick"))
    return "; ".join(words)


def show(console: Console, module: ModuleType, result: dict[str, Any]) -> None:
    """Print the table, the goals and the text."""
    columns, lines = module.table(result)
    table = Table(title=f"{result['title']} ({result['links']})", title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left")
    for line in lines:
        table.add_row(*line)
    console.print(table)
    for goal in result["goals"]:
        console.print(f"{'[green]pass[/]' if goal['reached'] else '[red]MISS[/]'}  {goal['goal']}: {goal['value']:.2f}",
                      highlight=False)  # fmt: skip
    console.print(f"Expected: {result['expected']}", highlight=False, markup=False)
    console.print(f"Seen: {result['seen']}\n", highlight=False, markup=False)


def draw(module: ModuleType, result: dict[str, Any], folder: Path, name: str) -> list[Path]:
    """Save the figure as PNG and SVG. Raises ImportError without matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    style: Any = {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "0.92",
             "axes.axisbelow": True, "font.size": 10, "svg.hashsalt": name, "legend.framealpha": 0.9,
             "svg.fonttype": "none"}  # fmt: skip
    with plt.rc_context(style):
        figure = plt.figure(figsize=SIZES.get(module.__name__.rpartition(".")[2], WIDE))
        module.plot(result, figure)
        figure.suptitle(result["title"], fontsize=13, weight="bold")
        figure.text(0.01, -0.045, caption(result), fontsize=7, color="0.35")
        paths = [folder / f"{name}.png", folder / f"{name}.svg"]
        figure.savefig(paths[0], dpi=130, bbox_inches="tight", pad_inches=0.15)
        figure.savefig(paths[1], bbox_inches="tight", pad_inches=0.15, metadata={"Date": None})
        plt.close(figure)
    return paths


def markdown(module: ModuleType, result: dict[str, Any], name: str) -> str:
    """Return a section for a document: figure, table, text."""
    columns, lines = module.table(result)
    rows = ["| " + " | ".join(columns) + " |", "| --- " * len(columns) + "|"]
    rows += ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([
        f"## {result['title']}", "", f"![{result['title']}]({name}.png)", "", *rows, "", f"*{caption(result)}.*", "",
        f"**Expected.** {result['expected']}", "", f"**Seen.** {result['seen']}", "",
    ])  # fmt: skip


def keep(module: ModuleType, result: dict[str, Any], folder: Path, name: str) -> None:
    """Save JSON and Markdown beside the figure."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    (folder / f"{name}.md").write_text(markdown(module, result, name))
