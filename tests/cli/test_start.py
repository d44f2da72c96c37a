"""The imports of the programs at their start: nothing that only some of their uses need."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from importlib import import_module

import click
import pytest

from nvmeof.host import cli as host_cli
from nvmeof.host.__main__ import cli


def loaded(code: str) -> set[str]:
    """Return the modules that ``code`` has loaded in a fresh interpreter."""
    end = "print('\\n' + ' '.join(sys.modules), flush=True)"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{end}"], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_help_of_the_host_imports_no_command() -> None:
    modules = loaded("import sys; from nvmeof.host.__main__ import main; main(['--help'])")
    forbidden = {"asyncio", "ssl", "socket", "rich", "construct", "nvmeof.host.client", "nvmeof.transport"}
    assert not modules & forbidden
    ours = {name for name in modules if name.startswith("nvmeof.") and not name.startswith("nvmeof.cli")}
    assert ours == {
        "nvmeof.errors",
        "nvmeof.host",
        "nvmeof.host.__main__",
        "nvmeof.host.cli",
        "nvmeof.host.cli.command_table",
        "nvmeof.host.cli.program",
        "nvmeof.version",
    }


def test_the_list_of_commands_is_that_of_the_commands() -> None:
    """If it fails: run python tools/command_table.py."""
    ctx = click.Context(cli)
    made = {
        command.name
        for module in pkgutil.iter_modules(host_cli.__path__)
        if module.name != "command_table"
        for command in getattr(import_module(f"{host_cli.__name__}.{module.name}"), "COMMANDS", ())
    }
    assert made == set(cli.commands) == set(cli.list_commands(ctx))
    for name, command in cli.commands.items():
        assert cli.summary(name) == command.get_short_help_str(1000)  # type: ignore[attr-defined]
        assert not command.hidden


def test_an_unknown_command_is_one_error_message(capsys: pytest.CaptureFixture[str]) -> None:
    from nvmeof.host.__main__ import main

    assert main(["frobnicate"]) == 2
    assert "No such command 'frobnicate'" in capsys.readouterr().err
