"""The two targets that a kernel initiator is tried with: ours on this machine, and the kernel's own in the guest.

The kernel's own target is the reference: a check that fails there is a wrong check.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .guest import HOST_ADDRESS, REPOSITORY, Guest, free_port

NQN = "nqn.2026-01.io.nvmeof:interop"
SERIAL = "interop-1"
START_SECONDS = 20.0
STOP_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Layout:
    """The namespace of a target: transport, backend, bytes of a logical block, and size."""

    trtype: Literal["tcp", "mptcp"] = "tcp"
    backing: Literal["ramdisk", "file"] = "ramdisk"
    block_bytes: int = 512
    size_mib: int = 256
    options: tuple[str, ...] = ()
    """More words for our target's command line; `{directory}` stands for the check's directory."""
    zones: str = ""
    """The words that make the namespace zoned; they follow a size or a path on the command line."""

    def __str__(self) -> str:
        return f"{self.trtype}-{self.backing}-{self.block_bytes}"


class PeerError(Exception):
    """A target that does not start, stops badly or prints an unexpected line."""


class Peer(ABC):
    """A target that the guest's initiator can reach at `address`:`port`."""

    address: str
    port: int
    nqn = NQN

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    def environment(self) -> dict[str, str]:
        """Return what the scripts in the guest need to know."""
        return {
            "ADDR": self.address,
            "PORT": str(self.port),
            "GUEST_PORT": str(self.guest_port),
            "NQN": self.nqn,
            "BLOCK": str(self.layout.block_bytes),
            "SIZE_MIB": str(self.layout.size_mib),
        }

    @abstractmethod
    def start(self) -> None:
        """Serve; raises PeerError. A restarted file namespace has its old contents."""

    @abstractmethod
    def kill(self) -> None:
        """End abruptly, as in a crash."""

    @property
    def guest_port(self) -> int:
        """Return the target's port as a capture in the guest shows it."""
        return self.port

    def abandon(self) -> None:
        """End the target by any means, after a check has failed."""
        self.kill()

    @abstractmethod
    def stop(self) -> None:
        """Stop in order. Raises PeerError where the target does not."""

    def allocated_bytes(self) -> int | None:
        """Return the bytes that the namespace occupies, None where unknown."""
        return None


class OurTarget(Peer):
    """`python -m nvmeof.target` on this machine."""

    address = HOST_ADDRESS

    def __init__(self, layout: Layout, directory: Path, log: Path) -> None:
        super().__init__(layout)
        self.port = free_port()
        self.log = log
        self.file = directory / "namespace.img"
        self._process: subprocess.Popen[bytes] | None = None

    def command(self, listen: str) -> list[str]:
        """Return the command line, listening on `listen`."""
        size = f"{self.layout.size_mib}M"
        zones = self.layout.zones
        backing = ["--ramdisk", size + zones] if self.layout.backing == "ramdisk" else ["--file", f"{self.file}{zones}"]
        return [
            sys.executable, "-m", "nvmeof.target", "--trtype", self.layout.trtype, "--listen", f"{listen}:{self.port}",
            "--subnqn", self.nqn, "--block-size", str(self.layout.block_bytes), *backing,
            *(word.format(directory=self.file.parent) for word in self.layout.options),
        ]  # fmt: skip

    def prepare(self) -> None:
        """Make the file that a file namespace needs."""
        if self.layout.backing == "file" and not self.file.exists():
            with self.file.open("wb") as out:
                out.truncate(self.layout.size_mib << 20)

    def start(self) -> None:
        self.prepare()
        command = self.command("127.0.0.1")
        with self.log.open("a") as out:
            out.write("+ " + " ".join(command) + "\n")
            out.flush()
            self._process = subprocess.Popen(
                command, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise PeerError(f"the target ended at once with {self._process.returncode}:\n{self._tail()}")
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            time.sleep(0.05)
        raise PeerError(f"the target does not listen after {START_SECONDS:.0f} s:\n{self._tail()}")

    def _tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])

    def kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def stop(self) -> None:
        if self._process is None:
            return
        process, self._process = self._process, None
        if process.poll() is not None:
            raise PeerError(f"the target had ended with {process.returncode}:\n{self._tail()}")
        process.send_signal(signal.SIGINT)
        try:
            status = process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise PeerError(f"the target does not stop on SIGINT within {STOP_SECONDS:.0f} s") from None
        finally:
            for kept in self.file.parent.glob(self.file.name + "*"):
                kept.unlink()
        if status:
            raise PeerError(f"the target's exit status is {status}:\n{self._tail()}")
        if "Traceback" in self.log.read_text(errors="replace"):
            raise PeerError(f"the target printed a traceback:\n{self._tail()}")

    def allocated_bytes(self) -> int | None:
        return self.file.stat().st_blocks * 512 if self.layout.backing == "file" else None


class KernelTarget(Peer):
    """The guest kernel's nvmet, over the guest's loopback; the data is always in the guest's memory."""

    address = "127.0.0.1"
    port = 4420

    def __init__(self, layout: Layout, guest: Guest, log: Path, *, everywhere: bool = False) -> None:
        super().__init__(layout)
        self._guest = guest
        self._log = log
        self._up = False
        self._bind = "0.0.0.0" if everywhere else "127.0.0.1"  # any address: also through the forwarded port

    def _run(self, script: str) -> None:
        self._guest.run(f". /host/guest.sh\n{script}", self._log, self.environment())

    def start(self) -> None:
        if self._up:
            self._run('ln -s "$CF/subsystems/$NQN" "$CF/ports/$PORT/subsystems/$NQN"')
            return
        self._run(
            'rm -f /tmp/namespace; dev=$(nvmet_backing "$SIZE_MIB" "$BLOCK"); echo "$dev" >/tmp/backing\n'
            f'nvmet_up "$NQN" "$dev" {self._bind} "$PORT"'
        )
        self._up = True

    def kill(self) -> None:
        self._run('rm "$CF/ports/$PORT/subsystems/$NQN"')

    def abandon(self) -> None:
        self.stop()

    def stop(self) -> None:
        if self._up:
            self._run(
                'nvmet_down "$NQN" "$PORT"\n'
                "case $(</tmp/backing) in /dev/loop*) losetup -d $(</tmp/backing) ;; *) rmmod brd ;; esac\n"
                "rm -f /tmp/namespace"
            )
            self._up = False
