"""Native multipath over two ports of our target: ANA states change in both directions under a load that verifies."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from .bench import Bench, CheckFailed, check
from .checks import TCP_RAM, expect
from .guest import HOST_ADDRESS, REPOSITORY, CommandFailed, free_port
from .peers import NQN, STOP_SECONDS, Peer, PeerError

_SEEN_AS = {"optimized": 1, "non-optimized": 2, "inaccessible": 3, "persistent-loss": 4, "change": 15}
_FUNCTIONS = r"""
state_of() {  # state_of CTRL [NSID]
  for each in /sys/block/nvme*c"${1#nvme}"n*; do
    if [ "$(cat "$each/nsid" 2>/dev/null)" = "${2:-1}" ]; then cat "$each/ana_state"; fi
  done
}
states() {  # states FIRST SECOND [NSID]: wait until the kernel sees them
  for _ in $(seq 200); do
    [ "$(state_of $ONE "${3:-1}") $(state_of $TWO "${3:-1}")" = "$1 $2" ] && return 0
    sleep 0.05
  done
  die "namespace ${3:-1}: $(state_of $ONE "${3:-1}") and $(state_of $TWO "${3:-1}") in place of $1 and $2"
}
by_port() { grep -l "trsvcid=$1" /sys/class/nvme/nvme*/address | sed 's,/address,,; s,.*/,,'; }
ONE=$(by_port $PORT) TWO=$(by_port $SECOND_PORT) DEV=$(nvme_dev "$NQN" 1) OTHER=$(nvme_dev "$NQN" 2)
"""


class AnaTarget(Peer):
    """`tests.interop.ana_target`, which changes states on request."""

    address = HOST_ADDRESS

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench.layout)
        self.port, self.second_port = free_port(), free_port()
        self.log: Path = bench.log.with_suffix(".target.log")
        self._process: subprocess.Popen[str] | None = None

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "SECOND_PORT": str(self.second_port)}

    def start(self) -> None:
        words = [sys.executable, "-m", "tests.interop.ana_target", str(self.port), str(self.second_port), NQN]
        with self.log.open("a") as log:
            self._process = subprocess.Popen(
                words, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )
        self._answer("ready")

    def _answer(self, word: str) -> None:
        assert self._process is not None and self._process.stdout is not None
        said = self._process.stdout.readline().strip()
        if said != word:
            raise PeerError(f"the target printed {said!r} in place of {word!r}:\n{self.log.read_text()}")

    def tell(self, line: str) -> None:
        """Change a state, or move a namespace, by one line."""
        assert self._process is not None and self._process.stdin is not None
        with self.log.open("a") as log:
            log.write(f"> {line}\n")
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        self._answer("done")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> None:
        if self._process is None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            status = self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise PeerError("the target does not stop") from None
        if status or "Traceback" in self.log.read_text():
            raise PeerError(f"the target's exit status is {status}:\n{self.log.read_text()}")


def _json(text: str) -> Any:
    return json.loads(text[min(at for at in (text.find("{"), text.find("[")) if at >= 0) :])


def _ana_log(bench: Bench, controller: str) -> dict[int, dict[str, Any]]:
    """Return the groups of `nvme ana-log`."""
    found = _json(bench.run(f"{_FUNCTIONS}\nnvme ana-log /dev/${controller} -o json 2>/dev/null"))
    return {group["grpid"]: group for group in found["ANA DESC LIST "]}


@check(TCP_RAM, only_ours=True, allow=(r"block nvme\dn\d: no (usable|available) path.*",))
def ana(bench: Bench) -> None:
    """Two ports, states that change in both directions under fio verify, and a namespace that moves between groups."""
    target = AnaTarget(bench)
    with bench._serving(target):
        bench.run("""
            connect
            nvme connect -t tcp -a $ADDR -s $SECOND_PORT -n $NQN -c 1""" + _FUNCTIONS + """
            states optimized optimized; states optimized optimized 2
            nvme list-subsys; nvme ana-log /dev/$ONE""")  # fmt: skip
        subsystems = _json(bench.run("nvme list-subsys -o json 2>/dev/null"))
        ours = [each for host in subsystems for each in host["Subsystems"] if each["NQN"] == NQN]
        expect([len(each["Paths"]) for each in ours] == [2], f"list-subsys has no two paths: {subsystems}")
        # Again and again, however long a loaded machine takes for the changes.
        load = bench.start(
            f"{_FUNCTIONS}\nrm -f /tmp/changed; until [ -e /tmp/changed ]; do\n"
            "verify $DEV 32 --rate=3m --time_based=0 || exit 1; done"
        )
        moves = [
            (1, "non-optimized"), (2, "inaccessible"), (1, "inaccessible"), (1, "change"), (2, "optimized"),
            (1, "optimized"), (2, "non-optimized"), (1, "change"), (1, "inaccessible"), (2, "inaccessible"),
            (1, "optimized"), (2, "change"), (2, "optimized"),
        ]  # fmt: skip
        now = {1: "optimized", 2: "optimized"}
        for port, state in moves:
            target.tell(f"state {port} 1 {state}")
            now[port] = state
            bench.run(f"{_FUNCTIONS}\nstates {now[1]} {now[2]}; sleep 0.3")
        expect(load.running, f"the load ended before the states were changed: {load.output}")
        bench.run("touch /tmp/changed")
        try:
            bench.note = load.wait(180).strip().splitlines()[-1]
        except CommandFailed as error:
            raise CheckFailed(str(error)) from None
        groups = _ana_log(bench, "TWO")
        expect(groups[1]["state"] in ("optimized", _SEEN_AS["optimized"]), f"ana-log: {groups}")
        expect(groups[1]["chgcnt"] == 1 + sum(port == 2 for port, _ in moves), f"change count: {groups}")
        # a namespace moves into a group that is inaccessible on one port
        target.tell("state 1 5 inaccessible")
        target.tell("move 2 5")
        bench.run(f"""{_FUNCTIONS}
            states inaccessible optimized 2; states optimized optimized
            dd if=$DEV of=/dev/null bs=4k count=16 iflag=direct status=none
            dd if=$OTHER of=/dev/null bs=4k count=16 iflag=direct status=none""")
        groups = _ana_log(bench, "ONE")
        expect([each["nsid"] for each in groups[5]["NSIDS"]] == [2], f"group 5: {groups}")
        target.tell("state 2 5 persistent-loss")
        target.tell("move 2 1")
        bench.run(f"""{_FUNCTIONS}
            states optimized optimized 2
            dd if=$OTHER of=/dev/null bs=4k count=16 iflag=direct status=none
            nvme disconnect -n $NQN""")
        with contextlib.suppress(CheckFailed):
            bench.run("sleep 1; ! ls /sys/class/nvme/nvme* 2>/dev/null")
