"""Checks, and the environment that each gets."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from . import tshark
from .guest import Command, CommandFailed, Guest, GuestError
from .peers import KernelTarget, Layout, OurTarget, Peer, PeerError

PeerKind = Literal["ours", "nvmet"]

_SUSPICIOUS = re.compile(
    r"nvme|BUG|WARNING:|Call Trace|I/O error|EXT4-fs|XFS|blk_update_request|hung|soft lockup|Oops", re.IGNORECASE
)
_HARMLESS = (
    r"using unregistered|EXT4-fs .*(mounted|unmounting) filesystem|XFS .*(Mounting|Ending|Unmounting)",
    r"Removing ctrl|creating \d+ I/O queues|mapped \d+/\d+/\d+|new ctrl|Please enable CONFIG_NVME_MULTIPATH",
    r"adding nsid|creating (nvm|discovery) controller",
    r"XFS .*(V4|deprecated|EXPERIMENTAL)",
    # A keep-alive that falls due while the host disconnects is never sent, and its reported round trip is meaningless.
    r"long keepalive RTT \(42949\d+ ms\)|failed nvme_keep_alive_end_io error=4",
)

_KEEP_ALIVE_TIME = re.compile(r"\[ *(\d+\.\d+)\].* long keepalive RTT \((\d+) ms\)")
_JIFFIES_BEGIN_SECONDS = -300.0  # INITIAL_JIFFIES


def never_sent(line: str) -> bool:
    """Return whether a kernel's line has the round trip of a keep-alive that was never sent.

    Linux 6.12 counts it from jiffies 0, with the request's timeout (whole seconds) added: for those that fall due
    while the host disconnects, and until the first one.
    """
    found = _KEEP_ALIVE_TIME.search(line)
    if not found:
        return False
    timeout = (float(found[2]) / 1000 - float(found[1]) - _JIFFIES_BEGIN_SECONDS) % (2**32 / 1000)
    return round(timeout) in range(1, 130) and abs(timeout - round(timeout)) < 0.1


class CheckFailed(Exception):
    """A check that has failed."""


class Skipped(Exception):
    """A check that cannot run here, with the reason."""


@dataclass(slots=True)
class Bench:
    """The environment of one check: a booted guest, a directory for logs, and targets to start."""

    guest: Guest
    peer_kind: PeerKind
    layout: Layout
    directory: Path
    log: Path
    allow: Sequence[str] = ()
    peer: Peer | None = None
    note: str = ""
    """A few words for the table."""
    _commands: list[Command] = field(default_factory=list)

    @property
    def kernel(self) -> str:
        """The guest's kernel, "6.12" for instance."""
        return self.guest.kernel

    @property
    def kernel_version(self) -> tuple[int, ...]:
        """The kernel's version as numbers."""
        return tuple(int(part) for part in self.kernel.split("."))

    def say(self, text: str) -> None:
        """Write a line to the check's log."""
        with self.log.open("a") as log:
            log.write(f"# {text}\n")

    @contextmanager
    def target(self) -> Iterator[Peer]:
        """Run a target with the check's layout; its orderly end is part of the check."""
        if self.peer_kind == "ours":
            with self._serving(OurTarget(self.layout, self.directory, self.log.with_suffix(".target.log"))) as peer:
                yield peer
        else:
            with self._serving(KernelTarget(self.layout, self.guest, self.log)) as peer:
                yield peer

    @contextmanager
    def nvmet(self) -> Iterator[Peer]:
        """Run the guest kernel's target for our host on this machine: 127.0.0.1, port `guest.nvmet_port`."""
        with self._serving(KernelTarget(self.layout, self.guest, self.log, everywhere=True)) as peer:
            yield peer

    @contextmanager
    def _serving(self, peer: Peer) -> Iterator[Peer]:
        self.peer = peer
        try:
            peer.start()
            yield peer
        except BaseException:
            self.clean_up()
            peer.abandon()
            raise
        peer.stop()
        self.peer = None

    @contextmanager
    def capture(self, device: str) -> Iterator[tshark.Reading]:
        """Run tcpdump in the guest on the target's port; at the end tshark reads the capture into the given reading.

        Raises CheckFailed for any complaint of tshark.
        """
        if not tshark.available():
            raise Skipped("tshark is not installed")
        assert self.peer is not None
        dump = self.start(
            f"""
            tcpdump -Z root -i {device} -s 0 -B 131072 -w /tmp/wire.pcap tcp port $GUEST_PORT \
              2>/tmp/tcpdump.log & tcpdump=$!
            trap 'kill $tcpdump 2>/dev/null || true' EXIT
            for _ in $(seq 200); do grep -q listening /tmp/tcpdump.log && break; sleep 0.05; done
            echo listening; rm -f /tmp/stop
            until [ -e /tmp/stop ]; do sleep 0.1; done
            sleep 1; kill $tcpdump; wait $tcpdump || true
            cat /tmp/tcpdump.log
            grep -q '^0 packets dropped' /tmp/tcpdump.log || die "the capture is not complete"
            cp /tmp/wire.pcap /host/wire.pcap"""
        )
        deadline = time.monotonic() + 20
        while "listening" not in dump.output and dump.running and time.monotonic() < deadline:
            time.sleep(0.05)
        reading = tshark.Reading()
        yield reading
        self.run("touch /tmp/stop")
        try:
            dump.wait(60)
        except CommandFailed as error:
            raise CheckFailed(str(error)) from None
        kept = self.log.with_suffix(".pcap")
        (self.guest.share / "wire.pcap").replace(kept)
        tshark.read(kept, self.peer.guest_port, reading)
        self.note = reading.summary()
        self.say(self.note)
        complaints = reading.complaints()
        if complaints:
            raise CheckFailed("tshark: " + "; ".join(complaints[:12]))

    def run(self, script: str, timeout_seconds: float = 90) -> str:
        """Run Bash in the guest with the functions of guest.sh. Raises CheckFailed when the exit status is not 0."""
        command = self.start(script)
        try:
            return command.wait(timeout_seconds)
        except CommandFailed as error:
            raise CheckFailed(str(error)) from None

    def start(self, script: str) -> Command:
        """Start Bash in the guest as :meth:`run` does, without waiting."""
        environment = self.peer.environment() if self.peer else {}
        command = self.guest.start(f". /host/guest.sh\n{script}", self.log, environment)
        self._commands.append(command)
        return command

    def clean_up(self) -> None:
        """Leave the guest as it was: nothing mounted, nothing connected. Raises GuestError when that fails."""
        for command in self._commands:
            command.kill()
        script = "cd /; umount -f /mnt 2>/dev/null; nvme disconnect-all; ! ls /sys/class/nvme/nvme* >/dev/null 2>&1"
        try:
            self.guest.run(script, self.log, timeout_seconds=30)
        except CommandFailed as error:
            raise GuestError(f"the guest cannot be cleaned up: {error}") from None

    def kernel_messages(self) -> list[str]:
        """Return warnings and errors of the guest's kernel since the last call, without harmless and allowed ones."""
        levels = "emerg,alert,crit,err,warn"
        lines = self.guest.run(f"dmesg --level={levels}; dmesg -C", self.log.with_suffix(".dmesg.log")).splitlines()
        known = [re.compile(pattern) for pattern in (*_HARMLESS, *self.allow)]
        suspicious = [line for line in lines if _SUSPICIOUS.search(line) and not never_sent(line)]
        return [line for line in suspicious if not any(each.search(line) for each in known)]


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the table."""

    name: str
    run: Callable[[Bench], None]
    layout: Layout
    quick: bool = False
    allow: tuple[str, ...] = ()
    """Kernel messages that the check may cause, as regular expressions."""
    only_ours: bool = False
    """The check does not apply to the kernel's own target."""


CHECKS: list[Check] = []


def check(
    *layouts: Layout, quick: bool | int = False, allow: Sequence[str] = (), only_ours: bool = False
) -> Callable[[Callable[[Bench], None]], Callable[[Bench], None]]:
    """Make a function a check, or one per layout. `quick`: part of the short form; an int: only its first layouts."""

    def register(function: Callable[[Bench], None]) -> Callable[[Bench], None]:
        name = function.__name__.strip("_").replace("_", "-")
        chosen = layouts or (Layout(),)
        short = len(chosen) if quick is True else int(quick)
        for index, layout in enumerate(chosen):
            full_name = name if len(chosen) == 1 else f"{name}/{layout}"
            CHECKS.append(Check(full_name, function, layout, index < short, tuple(allow), only_ours))
        return function

    return register


__all__ = ["CHECKS", "Bench", "Check", "CheckFailed", "PeerError", "Skipped", "check"]
