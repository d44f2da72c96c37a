"""The commands of the distribution ``nvmeof-mptcp``, which look first whether the package ``nvmeof`` is theirs.

The name ``nvmeof`` on the package index belongs to another project, which installs a package of the same name. Where
that one was installed later, ``import nvmeof`` finds its files: the commands therefore begin here, outside of it.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Final

REMEDY: Final = (
    "`pip uninstall nvmeof nvmeof-mptcp`, then install nvmeof-mptcp again (in an environment without the other one)"
)
_OURS: Final = "nvmeof_mptcp"
_HEAD_BYTES: Final = 4096


def overwritten() -> str:
    """Say in a sentence that the package ``nvmeof`` that Python finds is another project's; empty when it is ours."""
    spec = find_spec("nvmeof")
    if spec is None or spec.origin is None:
        return f"nvmeof-mptcp is installed without its package nvmeof: {REMEDY}"
    with Path(spec.origin).open("rb") as file:
        if _OURS.encode() in file.read(_HEAD_BYTES):
            return ""
    return f"{spec.origin} belongs to the distribution nvmeof, another project: {REMEDY}"


def _check(command: str) -> None:
    problem = overwritten()
    if problem:
        print(f"{command}: {problem}", file=sys.stderr)
        raise SystemExit(1)


def target() -> int:
    """Run ``nvmeof-target``; the exit code."""
    _check("nvmeof-target")
    from nvmeof.cli import early

    early.exit_at_interrupt()
    from nvmeof.target.__main__ import main

    return main()


def host() -> int:
    """Run ``nvmeof-host``; the exit code."""
    _check("nvmeof-host")
    from nvmeof.cli import early

    early.exit_at_interrupt()
    from nvmeof.host.__main__ import main

    return main()
