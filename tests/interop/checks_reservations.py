"""Reservations between two guests: nvme-cli's commands, the kernel's own ioctls, and a target that is killed."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .bench import Bench, check
from .checks import TCP_FILE, TCP_RAM, expect
from .guest import CommandFailed, Guest
from .peers import Peer

HERE = Path(__file__).parent
HOSTS = {
    "A": "aaaaaaaa-1111-4111-8111-111111111111",
    "B": "bbbbbbbb-2222-4222-8222-222222222222",
}
KEY = {"A": 0xA1, "B": 0xB2}
WE, EA, WERO = 1, 2, 3
CONFLICT = (r"[Rr]eservation [Cc]onflict|sct 0x0 / sc 0x83", r"critical nexus error, dev nvme")
DOWN = (r"nvme.*", r"I/O error, dev nvme\dc\dn\d", r"block nvme\dn\d: no usable path")


class Machine:
    """One of the two guests, connected as a separate host."""

    def __init__(self, name: str, guest: Guest, log: Path, peer: Peer) -> None:
        self.name = name
        self.guest = guest
        self.log = log
        self.environment = peer.environment()
        shutil.copy(HERE / "pr_ioctl.py", guest.share)
        uuid = HOSTS[name]
        self._bash(f"connect --hostid={uuid} --hostnqn=nqn.2014-08.org.nvmexpress:uuid:{uuid} -k 5")

    def _bash(self, script: str, timeout_seconds: float = 60) -> str:
        return self.guest.run(f". /host/guest.sh\n{script}", self.log, self.environment, timeout_seconds)

    def run(self, script: str) -> str:
        """Run Bash with DEV and CTRL. Raises CommandFailed."""
        return self._bash(f"attached\n{script}")

    def works(self, script: str) -> bool:
        """Return whether a command succeeds."""
        try:
            self.run(script)
        except CommandFailed:
            return False
        return True

    def refused(self, script: str) -> str:
        """Return the output of a command that has to fail."""
        try:
            output = self.run(script)
        except CommandFailed as error:
            return error.output
        expect(False, f"{self.name}: {script!r} was not refused: {output}")
        raise AssertionError

    def writes(self) -> bool:
        """Return whether a write to the namespace succeeds."""
        return self.works("dd if=/dev/zero of=$DEV bs=4096 count=1 oflag=direct status=none")

    def reads(self) -> bool:
        """Return whether a read succeeds."""
        return self.works("dd if=$DEV of=/dev/null bs=4096 count=1 iflag=direct status=none")

    def pr(self, action: str, *numbers: int) -> str:
        """Call one of the kernel's ioctls; return "0", or its error."""
        words = " ".join(str(number) for number in numbers)
        return self.run(f"python3 /host/pr_ioctl.py $DEV {action} {words}").strip()

    def report(self) -> dict[str, Any]:
        """Return `nvme resv-report`, with its registrants by key."""
        text = self.run("nvme resv-report $DEV --namespace-id=1 --eds -o json --numd=255 2>/dev/null")
        found = json.loads(text[text.index("{") :])
        listed = next(found[name] for name in ("regctlext", "regctl_eds", "regctls_eds") if name in found)
        return {**found, "registrants": {int(str(item["rkey"]), 0): item for item in listed}}

    def log_page(self) -> dict[str, Any]:
        """Return `nvme resv-notif-log`."""
        text = self.run("nvme resv-notif-log /dev/$CTRL -o json 2>/dev/null")
        return {name.lower(): value for name, value in json.loads(text[text.index("{") :]).items()}


@contextmanager
def two_guests(bench: Bench, peer: Peer) -> Iterator[tuple[Machine, Machine]]:
    """Yield the bench's guest and one more of the same kernel."""
    share = bench.directory / "second"
    shutil.rmtree(share, ignore_errors=True)
    share.mkdir()
    shutil.copy(HERE / "guest.sh", share)
    log = bench.log.with_suffix(".second.log")
    second = Guest(bench.kernel, share, log, options=("-m", "1024"))
    try:
        yield Machine("A", bench.guest, bench.log, peer), Machine("B", second, log, peer)
    finally:
        second.close()


def commands(one: Machine, two: Machine) -> None:
    """Use reservations by nvme-cli as an administrator does."""
    expect(int(json.loads(one.run("nvme id-ctrl /dev/$CTRL -o json"))["oncs"]) & 0x20, "ONCS has no reservations")
    for host in (one, two):
        host.run(f"nvme resv-register $DEV -n 1 --nrkey={KEY[host.name]} --rrega=0")
    report = two.report()
    expect((report["rtype"], report["gen"], set(report["registrants"])) == (0, 2, {0xA1, 0xB2}), f"{report}")
    said = two.refused(f"nvme resv-acquire $DEV -n 1 --crkey={0x99} --rtype={WE} --racqa=0")
    expect("onflict" in said, f"a wrong key: {said}")
    one.run(f"nvme resv-acquire $DEV -n 1 --crkey={KEY['A']} --rtype={WE} --racqa=0")
    expect(one.writes() and one.reads(), "the holder cannot write")
    expect(two.reads() and not two.writes(), "Write Exclusive: another registrant")
    report = two.report()
    holders = {key: item["rcsts"] & 1 for key, item in report["registrants"].items()}
    expect((report["rtype"], holders) == (WE, {0xA1: 1, 0xB2: 0}), f"{report}")
    identifiers = {key: str(item["hostid"]).replace("-", "").lower() for key, item in report["registrants"].items()}
    wanted = {KEY[name]: uuid.replace("-", "") for name, uuid in HOSTS.items()}
    expect(identifiers == wanted, f"host identifiers {identifiers}")
    one.run(f"nvme resv-release $DEV -n 1 --crkey={KEY['A']} --rtype={WE} --rrela=0")
    expect(two.writes(), "nothing is reserved")
    one.run(f"nvme resv-acquire $DEV -n 1 --crkey={KEY['A']} --rtype={EA} --racqa=0")
    expect(one.writes() and one.reads() and not two.reads() and not two.writes(), "Exclusive Access")
    two.run(f"nvme resv-acquire $DEV -n 1 --crkey={KEY['B']} --prkey={KEY['A']} --rtype={WE} --racqa=1")
    expect(two.writes() and not one.writes() and one.reads(), "preempted")
    expect(set(one.report()["registrants"]) == {0xB2}, "the preempted registrant is still there")
    page = one.log_page()
    expect((page["rn_log_type"], page["nsid"], page["num_logs"]) == (1, 1, 0), f"log page 80h: {page}")
    expect(one.log_page()["rn_log_type"] == 0, "log page 80h is not empty after it was read")
    two.run(f"nvme resv-release $DEV -n 1 --crkey={KEY['B']} --rrela=1")
    report = one.report()
    expect((report["rtype"], report["registrants"]) == (0, {}), f"cleared: {report}")
    expect(one.writes(), "no host is registered")


def features(one: Machine) -> None:
    """Check the notification mask, of one namespace and of all."""
    one.run(r"""
        mask() { nvme get-feature $DEV -n 1 -f 0x82 | grep -qi "value:0*\(x0*\)\?$1\$" || die "the mask is not $1"; }
        nvme set-feature $DEV -n 1 -f 0x82 --value=0x6 >/dev/null; mask 6
        nvme set-feature $DEV -n 0xffffffff -f 0x82 --value=8 >/dev/null; mask 8
        """)


@check(TCP_RAM, allow=CONFLICT, only_ours=True)
def reservations(bench: Bench) -> None:
    """Two guests, nvme resv-register, -acquire, -report, -release: who may read and write, and who is told."""
    with bench.target() as peer, two_guests(bench, peer) as (one, two):
        commands(one, two)
        features(one)
        for host in (one, two):
            host.run("disconnect")


@check(TCP_FILE, allow=(*CONFLICT, *DOWN), only_ours=True)
def persistent_reservations(bench: Bench) -> None:
    """Two guests, the kernel's PR ioctls on a file; a preempted writer, and reservations that outlive a kill."""
    with bench.target() as peer, two_guests(bench, peer) as (one, two):
        a, b = KEY["A"], KEY["B"]
        expect(one.pr("register", 0, a) == two.pr("register", 0, b) == "0", "register")
        expect(two.pr("register", 0, 0x77) != "0", "another key without the old one")
        expect(one.pr("reserve", a, EA) == "0", "reserve")
        expect(two.pr("reserve", b, EA) != "0", "reserved twice")
        expect(not two.reads() and one.reads(), "Exclusive Access")
        endless = "while dd if=/dev/zero of=$DEV bs=1M count=8 oflag=direct status=none; do :; done"
        writer = one.guest.start(f". /host/guest.sh; attached; {endless}", one.log, one.environment)
        time.sleep(1.5)
        expect(writer.running, f"the holder's writer ended: {writer.output}")
        expect(two.pr("preempt-abort", b, a, EA) == "0", "preempt and abort")
        writer.wait(30)
        expect(two.writes() and not one.reads(), "preempted")
        expect(one.pr("release", a, EA) != "0" and one.pr("clear", a) != "0", "a stranger releases")
        expect(two.pr("release", b, EA) == "0" and two.pr("clear", b) == "0", "release and clear")
        expect(one.writes() and two.writes(), "nothing is reserved")
        expect(one.pr("register", 0, a) == one.pr("reserve", a, WERO) == "0", "registrants only")
        expect(not two.writes() and two.reads(), "a stranger")
        before = one.report()
        expect(before["ptpls"] == 1, f"Linux asks for persistence: {before}")
        peer.kill()
        peer.start()
        for host in (one, two):
            host.run("controller >/dev/null")
        after = two.report()
        expect(all(before[name] == after[name] for name in ("gen", "rtype", "ptpls")), f"{before} -> {after}")
        expect(set(after["registrants"]) == {a}, f"{after}")
        expect(not two.writes() and one.writes(), "what a kill has left")
        expect(two.pr("register", 0, b) == "0" and two.writes(), "a registrant")
        expect(one.pr("preempt", a, b, WERO) == "0" and not two.writes(), "a registration preempted")
        expect(one.pr("clear", a) == "0", "clear")
        for host in (one, two):
            host.run("disconnect")
