"""docs/nvme-cli.md, subcommand by subcommand: its claims about this command line and nvme-cli 2.13 are true."""

from __future__ import annotations

import re
from pathlib import Path

import click

from nvmeof.host.__main__ import cli

HERE = Path(__file__).parent
TABLE = HERE.parents[1] / "docs" / "nvme-cli.md"
THEIRS = (HERE / "nvme_cli_commands.txt").read_text().splitlines()
"""The subcommands that `nvme help` and `nvme zns help` of nvme-cli 2.13 list."""


def rows() -> dict[str, tuple[str, str]]:
    found = re.findall(r"^\| ([a-z0-9 -]+) \| (same|different|absent) \| (.*) \|$", TABLE.read_text(), re.MULTILINE)
    return {name: (verdict, why) for name, verdict, why in found}


def ours() -> set[str]:
    found = set()
    for name, command in cli.commands.items():
        found |= {f"{name} {each}" for each in command.commands} if isinstance(command, click.Group) else {name}
    return found


def test_each_subcommand_of_nvme_cli_has_a_row() -> None:
    assert list(rows()) == THEIRS


def test_present_subcommands_exist_and_absent_ones_have_a_reason() -> None:
    for name, (verdict, why) in rows().items():
        assert (name in ours()) == (verdict != "absent"), name
        assert bool(why.strip()) == (verdict != "same"), name


def test_subcommands_without_a_counterpart_are_named() -> None:
    (line,) = (line for line in TABLE.read_text().splitlines() if line.startswith("Only here:"))
    named = set(re.findall(r"`([a-z]+)`", line))
    assert {name.split()[0] for name in ours() - set(THEIRS)} == named
