"""The target of the isolation benchmark, on the public classes of whatever build PYTHONPATH names.

Run by path, not as a module of this checkout: ``python -P target.py JSON`` with PYTHONPATH set to the build. It is
kept to what both builds of a comparison have.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import resource
import signal
import sys
from importlib import import_module
from types import ModuleType
from typing import Any

from nvmeof import FileBackend, Ramdisk, Target


def _module(*homes: str) -> ModuleType:
    """The first of these modules that is there: an older build has its classes elsewhere."""
    for home in homes:
        with contextlib.suppress(ModuleNotFoundError):
            return import_module(home)
    raise ModuleNotFoundError(f"none of {', '.join(homes)} is there")


def config(given: dict[str, Any]) -> Any:
    """Namespace 1 is memory, namespace 2 a file; the other subsystem has one in memory, to be sanitized."""

    names = _module("nvmeof.target.subsystem.config", "nvmeof.target.config")

    def subsystem(nqn: str, *backends: Any) -> Any:
        return names.SubsystemConfig(
            nqn=nqn, namespaces=tuple(names.NamespaceConfig(backend=each) for each in backends)
        )

    size, other = given["size_bytes"], given["other_subnqn"]
    return names.TargetConfig(
        subsystems=(
            subsystem(given["subnqn"], Ramdisk(size), FileBackend(given["file"], size=size)),
            subsystem(other, Ramdisk(given["other_size_bytes"])),
            *(subsystem(f"{other}:{number}") for number in range(given["further_subsystems"])),
        ),
        ports=(names.PortConfig(transport="tcp", host="127.0.0.1", port=given["port"]),),
    )


def _freeze_heap() -> None:
    """Do with the heap as the command line of the build that is measured does, wherever that has it."""
    for name in ("nvmeof.target.cli.serve", "nvmeof.target.__main__"):
        with contextlib.suppress(ImportError):
            freeze = getattr(import_module(name), "freeze_heap", None)
            if freeze is not None:
                freeze()
                return


async def serve(given: dict[str, Any]) -> None:
    """Serve until SIGTERM."""
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    async with Target(config(given)):
        _freeze_heap()
        await stopping.wait()


if __name__ == "__main__":
    # As the target's own command line has it.
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65536), hard))
    _module("nvmeof.aio.runloop", "nvmeof.transport.runloop").run(serve(json.loads(sys.argv[1])))
