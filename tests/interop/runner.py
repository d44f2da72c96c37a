"""Runs checks on kernels, one booted guest per kernel, and stores the results."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from .bench import Bench, Check, CheckFailed, PeerKind, Skipped
from .guest import CommandFailed, Guest, GuestError
from .peers import PeerError
from .tshark import TsharkMissing

HERE = Path(__file__).parent
Verdict = Literal["ok", "FAIL", "skipped"]


@dataclass(frozen=True, slots=True)
class Result:
    """One cell of the table."""

    kernel: str
    check: str
    verdict: Verdict
    seconds: float
    detail: str = ""
    """The reason of a failure or skip, or the findings."""
    log: str = ""


def _booted(kernel: str, share: Path, log: Path) -> Guest:
    """Yield a booted guest. Raises GuestError.

    Under emulation with several CPUs a kernel may crash while it patches its own text (6.12: "Oops: int3" in
    sched_clock_cpu, 1.5 s after the start, once in many boots). No check has run by then, so the guest is started
    again.
    """
    try:
        return Guest(kernel, share, log)
    except GuestError as error:
        with log.open("a") as out:
            out.write(f"\nno guest, and started again: {str(error).splitlines()[0]}\n")
        return Guest(kernel, share, log)


class Runner:
    """Runs checks; `told` is called with each result as it comes."""

    def __init__(self, directory: Path, peer_kind: PeerKind, told: Callable[[Result], None]) -> None:
        self.directory = directory
        self.peer_kind: PeerKind = peer_kind
        self.results: list[Result] = []
        self._told = told

    def run_kernel(self, kernel: str, checks: Sequence[Check]) -> None:
        """Run all checks on one kernel; boot the guest again when a check has left it unusable."""
        directory = self.directory / kernel
        shutil.rmtree(directory, ignore_errors=True)
        share = directory / "share"
        share.mkdir(parents=True)
        shutil.copy(HERE / "guest.sh", share)
        guest: Guest | None = None
        try:
            for check in checks:
                if guest is None or not guest.alive:
                    try:
                        guest = _booted(kernel, share, directory / "guest.log")
                        guest.run("dmesg -C", directory / "guest.log")
                    except (GuestError, CommandFailed) as error:
                        self._add(Result(kernel, check.name, "FAIL", 0.0, f"no guest: {error}"))
                        guest = None
                        continue
                if not self._run_check(guest, check, directory):
                    guest.close()
                    guest = None
        finally:
            if guest is not None:
                guest.close()

    def _run_check(self, guest: Guest, check: Check, directory: Path) -> bool:
        """Run one check; return whether the guest can still be used."""
        log = directory / f"{check.name.replace('/', '-')}.log"
        bench = Bench(guest, self.peer_kind, check.layout, directory, log, check.allow)
        started = time.monotonic()
        verdict, detail = self._verdict(bench, check)
        usable = True
        try:
            bench.clean_up()
            messages = bench.kernel_messages()
            if messages and verdict == "ok":
                verdict, detail = "FAIL", "kernel messages:\n" + "\n".join(messages[:20])
        except (GuestError, CommandFailed, OSError) as error:
            usable = False
            if verdict == "ok":
                verdict, detail = "FAIL", str(error)
        bench.say(f"{verdict} {detail}")
        self._add(Result(guest.kernel, check.name, verdict, round(time.monotonic() - started, 1), detail, str(log)))
        return usable

    def _verdict(self, bench: Bench, check: Check) -> tuple[Verdict, str]:
        if check.only_ours and self.peer_kind != "ours":
            return "skipped", "not for the kernel's own target"
        try:
            check.run(bench)
        except Skipped as reason:
            return "skipped", str(reason)
        except TsharkMissing as reason:
            return "skipped", str(reason)
        except (CheckFailed, CommandFailed, PeerError, GuestError) as error:
            return "FAIL", str(error)
        return "ok", bench.note

    def _add(self, result: Result) -> None:
        self.results.append(result)
        self._told(result)

    def save(self) -> Path:
        """Write results.json."""
        path = self.directory / "results.json"
        content = {"peer": self.peer_kind, "results": [asdict(result) for result in self.results]}
        path.write_text(json.dumps(content, indent=1) + "\n")
        return path
