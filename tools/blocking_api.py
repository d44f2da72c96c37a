"""Write the blocking classes of the host, nvmeof/host/blocking/api.py, from the asyncio ones.

Every public method of these has one of the same name, signature and documentation, which waits. ``--check`` only says
whether the file is what the code says.
"""

from __future__ import annotations

import argparse
import ast
import builtins
import re
import subprocess
import sys
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
OUTPUT = ROOT / "nvmeof/host/blocking/api.py"
HEAD = '''"""The blocking classes of the host: the methods of the asyncio API, by the same names, which wait.

Written by tools/blocking_api.py: change the asyncio classes, then run ``make blocking``.
"""

from __future__ import annotations

'''


EVENTS = '''@property
def events(self) -> Generator[AsyncEvent, None, None]:
    """The events of the controller from now on, one after the other; ends when it is disconnected."""
    return PORTAL.iterate(PORTAL.run_function(aiter, self.wrapped.events))

def describe(self) -> list[QueueFacts]:
    """Return one mapping per queue, the admin queue first: ``qid``, entries, load, and what the device says now."""
    return PORTAL.run_function(self.wrapped.describe)
'''
CONTEXT = """def __enter__(self) -> Self:
    return self

def __exit__(
    self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
) -> None:
    self.disconnect()
"""


@dataclass(frozen=True)
class Face:
    """A class to write: its name, where its methods come from, and attributes that are faces or plain."""

    name: str
    sources: tuple[tuple[str, str], ...]
    attributes: dict[str, str] = field(default_factory=dict)
    leave_out: frozenset[str] = frozenset()
    context: bool = False
    more: str = ""


FACES = (
    Face("Reservations", (("nvmeof.host.reservations", "Reservations"),)),
    Face("Zones", (("nvmeof.host.zones", "Zones"),)),
    Face(
        "Namespace",
        (("nvmeof.host.namespace", "Namespace"),),
        {"nsid": "int", "reservations": "Reservations", "zones": "Zones"},
    ),
    Face(
        "HostController",
        (
            ("nvmeof.host.client", "HostController"),
            ("nvmeof.host.admin_commands", "AdminCommands"),
            ("nvmeof.host.controller", "Controller"),
        ),
        {"options": "ConnectOptions", "subnqn": "str", "version": "Vs", "max_transfer_bytes": "int"},
        frozenset(
            {"endpoints", "start_paths", "stop_paths", "connect", "shutdown", "io", "io_transfer", "io_batch"}
            | {"execute_admin"}
        ),
        context=True,
        more=EVENTS,
    ),
    Face(
        "HostSubsystem",
        (("nvmeof.host.host_subsystem", "HostSubsystem"), ("nvmeof.host.admin_commands", "AdminCommands")),
        context=True,
    ),
)
WRAPPED = {face.name for face in FACES}


class Names:
    """The imports that the written module needs, found where the asyncio modules have them."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}

    def take(self, node: ast.AST | None, module: str, tree: ast.Module) -> None:
        """Note the names that ``node`` uses."""
        for each in ast.walk(node) if node is not None else ():
            if isinstance(each, ast.Name) and each.id not in WRAPPED and not hasattr(builtins, each.id):
                self.found[each.id] = _home(each.id, module, tree)


def _home(name: str, module: str, tree: ast.Module) -> str:
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and any((item.asname or item.name) == name for item in node.names):
            assert node.module is not None
            return node.module
    return module


def _tree(module: str) -> ast.Module:
    return ast.parse((ROOT / (module.replace(".", "/") + ".py")).read_text())


def _documentation(node: ast.AST) -> str:
    text = ast.get_docstring(node) or ""  # type: ignore[arg-type]
    text = re.sub(r"async (with|for)\b", r"\1", text)
    text = re.sub(r"\bawait ", "", text).replace("contextlib.aclosing", "contextlib.closing")
    return text.replace("asyncio programs", "blocking programs")


def _quoted(text: str) -> str:
    return f'"""{text}\n"""' if "\n" in text else f'"""{text}"""'


def _arguments(arguments: ast.arguments) -> str:
    parts = [each.arg for each in (*arguments.posonlyargs, *arguments.args)[1:]]
    if arguments.vararg:
        parts.append(f"*{arguments.vararg.arg}")
    parts += [f"{each.arg}={each.arg}" for each in arguments.kwonlyargs]
    if arguments.kwarg:
        parts.append(f"**{arguments.kwarg.arg}")
    return ", ".join(parts)


def _method(node: ast.FunctionDef | ast.AsyncFunctionDef, overloaded: bool) -> str:
    """One method of a face."""
    returns = ast.unparse(node.returns) if node.returns is not None else "None"
    iterator = re.fullmatch(r"Async(?:Iterator|Generator)\[(.*?)(?:, None)?\]", returns)
    returns = f"Generator[{iterator[1]}, None, None]" if iterator else returns
    head = f"def {node.name}({ast.unparse(node.args)}) -> {returns}:"
    decorators = {ast.unparse(each) for each in node.decorator_list}
    if "overload" in decorators:
        return f"@overload\n{head} ..."
    text = "" if overloaded and not ast.get_docstring(node) else _quoted(_documentation(node)) + "\n"
    called = f"self.wrapped.{node.name}({_arguments(node.args)})"
    if "property" in decorators:
        return f"@property\n{head}\n" + textwrap.indent(f"{text}return self.wrapped.{node.name}", "    ")
    if iterator:
        body = f"return PORTAL.iterate({called})"
    else:
        if isinstance(node, ast.AsyncFunctionDef):
            value = f"PORTAL.run({called})"
        else:
            passed = _arguments(node.args)
            value = f"PORTAL.run_function(self.wrapped.{node.name}{', ' + passed if passed else ''})"
            if returns.startswith("Iterator"):
                value = f"iter({value})"
        if returns in WRAPPED:
            body = f"return {returns}({value})"
        elif (listed := re.fullmatch(r"list\[(\w+)\]", returns)) and listed[1] in WRAPPED:
            body = f"return [{listed[1]}(each) for each in {value}]"
        else:
            body = value if returns == "None" else f"return {value}"
    return f"{head}\n" + textwrap.indent(text + body, "    ")


def _setter(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    value = node.args.args[1].arg
    head = f"@{node.name}.setter\ndef {node.name}({ast.unparse(node.args)}) -> None:"
    return f"{head}\n    PORTAL.run_function(setattr, self.wrapped, {node.name!r}, {value})"


def _face(face: Face, names: Names) -> str:
    source, original = face.sources[0]
    inner = f"_{face.name}"
    names.found[f"{original} as {inner}"] = source
    parts = [f"class {face.name}(Blocking[{inner}]):"]
    parts.append(textwrap.indent(_quoted(_documentation(_class(source, original))) + "\n\n__slots__ = ()", "    "))
    for name, kind in face.attributes.items():
        value = f"{kind}(self.wrapped.{name})" if kind in WRAPPED else f"self.wrapped.{name}"
        text = f'@property\ndef {name}(self) -> {kind}:\n    """As :attr:`{source}.{original}.{name}`."""\n'
        parts.append(textwrap.indent(f"{text}    return {value}", "    "))
        for module, _ in face.sources:
            if kind not in WRAPPED and (home := _home(kind, module, _tree(module))) != module:
                names.found[kind] = home
    done: set[str] = set(face.leave_out)
    for module, name in face.sources:
        tree = _tree(module)
        found = [each for each in _class(module, name).body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)]
        taken = set()
        for node in found:
            if node.name.startswith("_") or node.name in done:
                continue
            taken.add(node.name)
            if any(ast.unparse(each).endswith(".setter") for each in node.decorator_list):
                parts.append(textwrap.indent(_setter(node), "    "))
                continue
            names.take(node.args, module, tree)
            names.take(node.returns, module, tree)
            for each in node.decorator_list:
                if ast.unparse(each) == "overload":
                    names.found["overload"] = "typing"
            overloaded = [each.name for each in found].count(node.name) > 1
            parts.append(textwrap.indent(_method(node, overloaded), "    "))
        done |= taken
    if face.more:
        parts.append(textwrap.indent(face.more, "    "))
    if face.context:
        parts.append(textwrap.indent(CONTEXT, "    "))
    return "\n\n".join(parts)


def _class(module: str, name: str) -> ast.ClassDef:
    return next(each for each in _tree(module).body if isinstance(each, ast.ClassDef) and each.name == name)


def make() -> str:
    """Return the module's text, formatted."""
    names = Names()
    bodies = [_face(face, names) for face in FACES]
    for unwanted in ("AsyncIterator", "AsyncGenerator", "NoReturn"):
        names.found.pop(unwanted, None)
    names.found |= {
        "Generator": "collections.abc",
        "AsyncEvent": "nvmeof.host.async_events",
        "QueueFacts": "nvmeof.host.facts",
        "Self": "typing",
        "TracebackType": "types",
        "Blocking": "nvmeof.host.blocking.portal",
        "PORTAL": "nvmeof.host.blocking.portal",
    }
    imports = "".join(f"from {module} import {name}\n" for name, module in names.found.items())
    text = HEAD + imports + "\n\n" + "\n\n\n".join(bodies) + "\n"
    for command in (["check", "--fix", "--select", "I,F401", "-q", "-"], ["format", "-q", "-"]):
        ruff = [str(Path(sys.executable).with_name("ruff")), *command, "--stdin-filename", str(OUTPUT)]
        text = subprocess.run(ruff, input=text, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    return text


def main() -> int:
    """Write the module, or with --check tell in the exit code whether it is up to date."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args()
    text = make()
    if options.check:
        if OUTPUT.read_text() != text:
            print(f"{OUTPUT.name}: not what the code says; run `make blocking`", file=sys.stderr)
            return 1
        return 0
    OUTPUT.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
