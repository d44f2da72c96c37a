"""``mptcpize``: run another program with MPTCP in place of TCP."""

from __future__ import annotations

import os
import sys

import click

from nvmeof.host.cli import output as out
from nvmeof.transport.mptcp import why_no_mptcp
from nvmeof.transport.mptcpize import Means, launch


@click.command("mptcpize", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option(
    "--means",
    type=click.Choice([each.value for each in Means]),
    default=Means.AUTO.value,
    show_default=True,
    help="system: Debian's mptcpize; own: a library built with this machine's C compiler; auto: the first there is.",
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="PROGRAM [ARGS]...")
def mptcpize_command(means: str, command: tuple[str, ...]) -> None:
    """Run PROGRAM with MPTCP in place of TCP.

    Its TCP sockets become MPTCP ones, and fall back to TCP where this kernel or the peer has no MPTCP. Not for
    programs that are statically linked or set-uid, or that call the kernel by themselves (Go), and never for the
    kernel's own NVMe host.
    """
    chosen = launch(command, means=Means(means))
    reason = why_no_mptcp()
    if reason is not None:
        out.remark(f"{command[0]} is going to use TCP: {reason}")
    sys.stdout.flush()
    os.execve(chosen.path, chosen.arguments, dict(chosen.environment))


COMMANDS = (mptcpize_command,)
