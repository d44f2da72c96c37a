"""A stock Linux kernel in QEMU that runs commands for us (tools/lab/guest with its agent)."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
LAB = REPOSITORY / "tools" / "lab"
AGENT_PORT = 5599
BOOT_SECONDS = 90.0
HOST_ADDRESS = "10.0.2.2"
"""This machine's 127.0.0.1, as the guest sees it."""


class GuestError(Exception):
    """The guest does not boot, or has ended."""


class CommandFailed(Exception):
    """A command in the guest ended with another status than 0, or not in time."""

    def __init__(self, status: int | None, output: str) -> None:
        self.status = status
        self.output = output
        tail = "\n".join(output.splitlines()[-30:])
        super().__init__(f"{'timed out' if status is None else f'exit status {status}'}\n{tail}")


NEWEST = "newest"
"""In place of a version: the newest kernel that was built."""


def _kernel_directory() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(os.environ.get("LAB_DIR") or f"{cache}/nvmeof-lab") / "kernel"


def release(kernel: str) -> str:
    """Return what `uname -r` says in that kernel, for a result that names what was tried."""
    return (_kernel_directory() / kernel / "release").read_text(encoding="utf-8").strip()


def kernels() -> list[str]:
    """Return the kernels that tools/lab/prepare has built, oldest first."""
    directory = _kernel_directory()
    found = [entry.name for entry in directory.iterdir()] if directory.is_dir() else []
    return sorted(found, key=lambda name: [int(part) for part in name.split(".")])


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 on which nothing listens at the moment."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


class Command:
    """A command running in the guest; its output goes to `log`."""

    def __init__(self, port: int, script: str, log: Path) -> None:
        self.status: int | None = None
        self._parts: list[str] = []
        self._log = log
        self._socket = socket.create_connection(("127.0.0.1", port), 10)
        self._socket.settimeout(None)
        raw = script.encode()
        self._socket.sendall(struct.pack("<I", len(raw)) + raw)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _messages(self) -> Iterator[tuple[bytes, bytes]]:
        stream = self._socket.makefile("rb")
        while len(head := stream.read(5)) == 5:
            yield head[:1], stream.read(struct.unpack_from("<I", head, 1)[0])

    def _read(self) -> None:
        with contextlib.suppress(OSError), self._log.open("a") as log:
            for kind, payload in self._messages():
                if kind == b"x":
                    self.status = int(payload)
                    break
                text = payload.decode(errors="replace")
                self._parts.append(text)
                log.write(text)
                log.flush()
        self._socket.close()

    @property
    def running(self) -> bool:
        """Whether the guest has not yet reported its exit status."""
        return self._thread.is_alive()

    @property
    def output(self) -> str:
        """The output so far, both streams."""
        return "".join(self._parts)

    def wait(self, timeout_seconds: float) -> str:
        """Wait for the end; return the output. Raises CommandFailed for another status than 0 and when the time is over
        (the command is killed then).
        """
        self._thread.join(timeout_seconds)
        if self._thread.is_alive():
            self.kill()
            raise CommandFailed(None, self.output)
        if self.status is None:
            raise GuestError(f"the guest went away during a command\n{self.output[-2000:]}")
        if self.status:
            raise CommandFailed(self.status, self.output)
        return self.output

    def kill(self) -> None:
        """Kill the command."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)


class Guest:
    """A booted guest. `share` is /host in it; its console and the lab's messages are in `log`."""

    def __init__(
        self, kernel: str, share: Path, log: Path, *, options: Sequence[str] = (), lifetime: int = 3600
    ) -> None:
        self.kernel = kernel
        self.share = share
        self.port = free_port()
        self.nvmet_port = free_port()
        """Port of this machine's 127.0.0.1 that leads to the guest's port 4420."""
        self.started = time.monotonic()
        command = [str(LAB / "guest"), "-k", kernel, "-s", str(share), "-t", str(lifetime)]
        command += ["-f", f"{self.port}:{AGENT_PORT}", "-f", f"{self.nvmet_port}:4420", *options]
        command += ["-c", f"exec python3 -u /job/agent.py {AGENT_PORT}"]
        with log.open("a") as out:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )
        self._log = log
        try:
            self.wait_for_agent()
        except BaseException:
            self.close()
            raise
        self.boot_seconds = time.monotonic() - self.started

    def wait_for_agent(self) -> None:
        """Wait until the guest runs commands, after a boot that began at ``started``. Raises GuestError."""
        probe_log = self._log.with_suffix(".probe")
        while time.monotonic() - self.started < BOOT_SECONDS:
            if self._process.poll() is not None:
                raise GuestError(f"the guest ended at once: {self._log.read_text()[-2000:]}")
            with contextlib.suppress(OSError, GuestError, CommandFailed):
                if Command(self.port, "echo up", probe_log).wait(20) == "up\n":
                    probe_log.unlink(missing_ok=True)
                    return
            time.sleep(0.1)
        raise GuestError(f"the guest did not come up within {BOOT_SECONDS:.0f} s (see {self._log})")

    @property
    def alive(self) -> bool:
        """Whether the virtual machine still runs."""
        return self._process.poll() is None

    def start(self, script: str, log: Path, environment: Mapping[str, str] | None = None) -> Command:
        """Run bash in the guest without waiting for it."""
        settings = "".join(f"export {key}={shlex.quote(value)}\n" for key, value in (environment or {}).items())
        with log.open("a") as out:
            out.write("".join(f"+ {line}\n" for line in script.strip().splitlines()))
        try:
            return Command(self.port, f"{settings}cd /host\n{script}", log)
        except OSError as error:
            raise GuestError(f"the guest's agent cannot be reached: {error}") from None

    def run(
        self, script: str, log: Path, environment: Mapping[str, str] | None = None, timeout_seconds: float = 60
    ) -> str:
        """Run bash in the guest and return its output. Raises CommandFailed."""
        return self.start(script, log, environment).wait(timeout_seconds)

    def close(self) -> None:
        """End the virtual machine."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGTERM)
            try:
                self._process.wait(15)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
