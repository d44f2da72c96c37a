"""A target in a process of its own that is restarted, for tests: which process serves is asked through its control
socket. As a program, it is that target, and the process that takes over ends itself at the point that a file names."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from nvmeof.errors import NvmeofError
from nvmeof.target.control.client import ControlClient

NQN = "nqn.2026-01.io.nvmeof:target"
POINTS = ("checking", "ready", "taken", "opened", "going")
"""Where the next process can end: before and after it says that it is ready, with all that was handed over, with
everything open, and when it is told to begin."""


class Restarting:
    """The target: `folder` has its files, `arguments` are those of its command line."""

    def __init__(self, folder: Path, *arguments: str, environment: dict[str, str] | None = None) -> None:
        self.folder = folder
        self.socket = folder / "control"
        self.log_path = folder / "log"
        self.pids: set[int] = set()
        self._log = self.log_path.open("ab")
        words = [sys.executable, "-m", "tests.target.cli.restarting", str(folder / "point"), *arguments]
        self.process = subprocess.Popen(
            [*words, "--control", str(self.socket)], stdout=subprocess.PIPE, stderr=self._log, text=True,
            env={**os.environ, **(environment or {})},
        )  # fmt: skip

    def end_at(self, point: str) -> None:
        """Let the next process end itself there; empty: nowhere."""
        (self.folder / "point").write_text(point)

    @property
    def log(self) -> str:
        """What was logged so far, by all processes."""
        return self.log_path.read_text()

    async def call(self, verb: str, **params: Any) -> Any:
        """Call a verb. Raises as `ControlClient`."""
        async with ControlClient(self.socket) as client:
            return await client.call(verb, params)

    async def pid(self, *, other_than: int = 0, seconds: float = 60) -> int:
        """Return the process that serves, once it is another one."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                found = int((await self.call("hello"))["pid"])
                self.pids.add(found)
                if found != other_than:
                    return found
            except (NvmeofError, OSError):
                pass
            if time.monotonic() > deadline:
                raise TimeoutError(f"no process but {other_than} serves after {seconds} s:\n{self.log}")
            await asyncio.sleep(0.05)

    async def port(self) -> int:
        """Return the number of the first port."""
        await self.pid()
        return int((await self.call("port.list"))[0]["port"])

    async def logged(self, text: str, seconds: float = 60) -> None:
        """Wait for a line of the log."""
        await until(lambda: text in self.log, seconds, lambda: f"{text!r} is not in:\n{self.log}")

    async def end(self) -> None:
        """Stop the process that serves, and kill what is left."""
        try:
            os.kill(await self.pid(seconds=5), signal.SIGTERM)
        except (TimeoutError, ProcessLookupError):
            pass
        for pid in self.pids - {self.process.pid}:
            await until(lambda pid=pid: not alive(pid), 20, lambda pid=pid: f"process {pid} has not ended")  # type: ignore[misc]
        try:
            await asyncio.to_thread(self.process.wait, 10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._log.close()


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


async def until(true: Callable[[], bool], seconds: float, what: Callable[[], str]) -> None:
    """Wait until something is true."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(what())
        await asyncio.sleep(0.02)


@asynccontextmanager
async def restarting(folder: Path, *arguments: str, **options: Any) -> AsyncIterator[Restarting]:
    """A target that serves from here on."""
    target = Restarting(folder, *arguments, **options)
    try:
        await target.pid()
        yield target
    finally:
        await target.end()


def configuration(folder: Path, transport: str = "tcp", **top: Any) -> Path:
    """A configuration file with a kept ramdisk, another ramdisk and a file."""
    storages = ["ramdisk:8M,keep", "ramdisk:8M", f"file:{folder / 'disk'},size=8M"]
    namespaces = [{"nsid": nsid, "storage": each} for nsid, each in enumerate(storages, 1)]
    document = {
        "version": 1,
        "subsystems": [{"nqn": NQN, "namespaces": namespaces}],
        "ports": [{"portid": 1, "transport": transport, "host": "127.0.0.1", "port": 0}],
        **top,
    }
    path = folder / "target.json"
    path.write_text(json.dumps(document))
    return path


def main() -> int:
    """Be the target."""
    from nvmeof.target.__main__ import main as target_main
    from nvmeof.target.cli import restart

    point = Path(sys.argv[1])
    wanted = point.read_text() if restart.VARIABLE in os.environ and point.exists() else ""
    predecessor = restart.Predecessor

    def ends(method: Callable[..., Awaitable[Any]], *, before: bool) -> Callable[..., Awaitable[Any]]:
        async def ended(self: Any, *arguments: Any) -> Any:
            if not before:
                await method(self, *arguments)
            os.kill(os.getpid(), signal.SIGKILL)

        return ended

    if wanted in ("checking", "ready"):
        predecessor.prepare = ends(predecessor.prepare, before=wanted == "checking")  # type: ignore[method-assign]
    elif wanted in ("taken", "opened"):
        name = {"taken": "take", "opened": "opened"}[wanted]
        setattr(predecessor, name, ends(getattr(predecessor, name), before=wanted == "opened"))
    elif wanted == "going":
        send = restart.Channel.send

        def killed(self: Any, kind: str, *arguments: Any, **facts: Any) -> None:
            if kind == "accepting":
                os.kill(os.getpid(), signal.SIGKILL)
            send(self, kind, *arguments, **facts)

        restart.Channel.send = killed  # type: ignore[method-assign]
    elif wanted == "slow":
        time.sleep(3)
    return target_main(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
