"""Draw the map of the package from its real imports: docs/modules.svg, and docs/modules.md, one line for each module.

python tools/module_map.py            write both
python tools/module_map.py --check    exit with 1 and say so when they are not what the code says
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from dataclasses import dataclass
from html import escape
from pathlib import Path
from textwrap import wrap

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "nvmeof"
PAGE, PICTURE = ROOT / "docs" / "modules.md", ROOT / "docs" / "modules.svg"

TARGET = ("(top)", "queue", "commands", "controller", "subsystem", "namespaces", "storage", "core")
BOTH = ("protocol", "pdu", "spec")
TOP = "the event loop and the command line"
FALLBACK = {
    "target.(top)": f"{TOP}: server, driver, python -m nvmeof.target",
    "host": "controllers, namespaces, discovery, recovery; python -m nvmeof.host",
    "transport": "TCP, MPTCP and memory endpoints; MPTCP paths. The only place with sockets",
    "protocol": "the queue connection of both roles, without sockets or a clock",
    "pdu": "layouts of PDUs, digests, the rules of a PDU's header",
    "spec": "structures of the specifications, without TCP",
    "(base)": "errors, wire records, addresses, sizes: what everything stands on",
}


@dataclass(frozen=True)
class Module:
    """A file of the package: its dotted name below ``nvmeof``, the box that it is in, its lines and its purpose."""

    name: str
    path: Path
    box: str
    lines: int
    purpose: str
    imports: tuple[str, ...]


def box_of(name: str) -> str:
    """Return the box of a module by its dotted name below ``nvmeof``."""
    first, _, rest = name.partition(".")
    if first == "__main__":
        return "(program)"
    if first == "target":
        group = rest.partition(".")[0]
        return f"target.{group}" if group in TARGET else "target.(top)"
    return first if first in (*BOTH, "host", "transport") else "(base)"


def dotted(path: Path) -> str:
    parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(tree: ast.Module, name: str, is_package: bool) -> list[str]:
    """Return what a module imports of the package, those for type checking included."""
    found: list[str] = []
    here = name.split(".") if is_package else name.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            if node.level:
                base = here[: len(here) - node.level + 1]
                found.append(".".join([*base, *([node.module] if node.module else [])]))
            elif node.module == "nvmeof" or (node.module or "").startswith("nvmeof."):
                module = (node.module or "")[len("nvmeof.") :]
                found += [f"{module}.{alias.name}" if (PACKAGE / module.replace(".", "/")).is_dir() else module
                          for alias in node.names]  # fmt: skip
        elif isinstance(node, ast.Import):
            found += [alias.name[len("nvmeof.") :] for alias in node.names if alias.name.startswith("nvmeof.")]
    return found


def modules() -> list[Module]:
    """Read every module of the package."""
    result = []
    for path in sorted(PACKAGE.rglob("*.py")):
        name, text = dotted(path), path.read_text()
        if not name:
            continue
        tree = ast.parse(text)
        purpose = " ".join((ast.get_docstring(tree) or "").split("\n\n")[0].split())
        imports = tuple(imported(tree, name, path.name == "__init__.py"))
        result.append(Module(name, path, box_of(name), text.count("\n"), purpose, imports))
    return result


def edges(found: list[Module]) -> Counter[tuple[str, str]]:
    """Count the imports from box to box."""
    count: Counter[tuple[str, str]] = Counter()
    for module in found:
        for name in module.imports:
            if box_of(name) != module.box and module.box != "(program)":
                count[module.box, box_of(name)] += 1
    return count


def purpose(box: str, found: list[Module]) -> str:
    """Return the first sentence of a box's package."""
    if box in FALLBACK:
        return FALLBACK[box]
    return next((m.purpose for m in found if m.name == box), "").rstrip(".")


def folder(box: str) -> str:
    return "../nvmeof/" + box.replace("(base)", "").replace(".(top)", "").replace(".", "/")


def picture(found: list[Module]) -> str:
    """Draw the boxes, highest layer first; each names what it imports and how often, and is a link to its folder."""
    count = edges(found)
    out: list[str] = []

    def draw(box: str, x: int, y: int, width: int) -> None:
        inside = [m for m in found if m.box == box]
        uses = ", ".join(
            f"{b.removeprefix('target.')} {n}" for (a, b), n in sorted(count.items(), key=lambda e: -e[1]) if a == box
        )
        size = f'<tspan class="s" dx="8">{len(inside)} modules</tspan>'
        text = [f'<text x="{x + 10}" y="{y + 20}" class="n">{escape(box)}{size}</text>']
        said = wrap(purpose(box, found), width // 7)[:2]
        told = wrap(f"imports: {uses or 'nothing of the package'}", width // 6)
        for i, each in enumerate([*said, *told]):
            kind = "p" if i < len(said) else "u"
            text.append(f'<text x="{x + 10}" y="{y + 38 + 16 * i}" class="{kind}">{escape(each.strip())}</text>')
        frame = f'<rect x="{x}" y="{y}" width="{width}" height="82" rx="6"/>'
        out.append(f'<a href="{folder(box)}">{frame}{"".join(text)}</a>')

    y = 34
    for group in TARGET:
        draw(f"target.{group}", 10, y, 560)
        y += 90
    draw("host", 600, 34, 560)
    draw("transport", 600, 34 + 90 * 2, 560)
    for box in (*BOTH, "(base)"):
        draw(box, 10, y, 1150)
        y += 90
    style = (
        "text{font-family:sans-serif;fill:#222}.n{font-size:15px;font-weight:bold}.s{font-size:11px;font-weight:normal;"
        "fill:#666}.p{font-size:12px}.u{font-size:11px;fill:#446}rect{fill:#f4f7fb;stroke:#5b7fa6}"
        "a:hover rect{fill:#e3edf9}"
    )
    head = '<text x="10" y="22" class="s">Each box imports only boxes below it; the numbers count imports.</text>'
    size = f'width="1170" height="{y + 4}" viewBox="0 0 1170 {y + 4}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{style}</style>{head}{"".join(out)}</svg>\n'


def page(found: list[Module]) -> str:
    """List the modules box by box, with the first sentence of each and a link."""
    order = [*(f"target.{g}" for g in TARGET), "host", "transport", *BOTH, "(base)"]
    out = ["# Modules", "", "Made by `python tools/module_map.py` from the code; a test compares.", "",
           "![The packages and what they import](modules.svg)", ""]  # fmt: skip
    for box in order:
        out += [f"## {box}", "", f"{purpose(box, found)}.", "", "| module | what it is |", "| --- | --- |"]
        for module in (m for m in found if m.box == box and m.purpose):
            link = "../" + module.path.relative_to(ROOT).as_posix()
            text = module.purpose.replace("|", "\\|")
            out.append(f"| [{module.name}]({link}) | {text} |")
        out.append("")
    return "\n".join(out)


def main() -> int:
    found = modules()
    made = {PAGE: page(found), PICTURE: picture(found)}
    if "--check" in sys.argv[1:]:
        stale = [path.name for path, text in made.items() if not path.exists() or path.read_text() != text]
        if stale:
            print(f"{', '.join(stale)}: not what the code says; run `make map`", file=sys.stderr)
        return bool(stale)
    for path, text in made.items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
