"""``ctl watch``: what happens in a target, as JSON lines."""

from __future__ import annotations

import json
from typing import Any

import click

from nvmeof.cli.interrupts import regular_end
from nvmeof.cli.types import Number
from nvmeof.target.cli.ctl.calls import client, run
from nvmeof.target.control import ControlClient
from nvmeof.target.control.process import EVENT_KINDS


@click.command("watch")
@click.option("--kinds", multiple=True, type=click.Choice(EVENT_KINDS), help="Only events of this kind; repeatable.")
@click.option("--count", type=Number(1), metavar="N", help="Stop after so many.  [default: at Ctrl-C]")
def watch_command(kinds: tuple[str, ...], count: int | None) -> None:
    """Print what happens in the target, one JSON object per line: connections, refusals, changes, who made them."""
    run(_watch(client(), kinds, count))


async def _watch(target: ControlClient, kinds: tuple[str, ...], count: int | None) -> None:
    with regular_end():
        async with target:
            params: dict[str, Any] = {"kinds": list(kinds)} if kinds else {}
            await target.call("watch", params)
            left = count
            async for event in target.events():
                print(json.dumps(event), flush=True)
                left = None if left is None else left - 1
                if left == 0:
                    return
