"""MPTCP end to end: our host in the guest's user space, our target on this machine, two links between them."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import nvmeof

from .bench import Bench, CheckFailed, Skipped, check
from .checks import expect
from .guest import HOST_ADDRESS, LAB, REPOSITORY
from .peers import NQN, Layout

MEBIBYTES = 32
RATE = "100mbit"
LINK_SHARE = 0.2
"""Each of two equal links must carry at least this part of the bytes."""

_TARGET = """
ip mptcp limits set subflow 4 add_addr_accepted 4
ip mptcp endpoint add 10.77.2.1 dev tap2 signal
for d in tap1 tap2; do tc qdisc add dev $d root tbf rate {rate} burst 64k latency 50ms; done
cd {repository} && exec {python} -m nvmeof.target --trtype mptcp --listen 0.0.0.0:4420 --subnqn {nqn} --ramdisk 64M
"""
_GUEST = """
set -e
ip mptcp limits set subflow 4 add_addr_accepted 4
ip mptcp endpoint add 10.77.2.2 dev eth2 subflow
modprobe sch_tbf
for d in eth1 eth2; do tc qdisc add dev $d root tbf rate {rate} burst 64k latency 50ms; done
cp -r /host/python /tmp/python
for _ in $(seq 100); do nc -z 10.77.1.1 4420 && break; sleep 0.2; done
PYTHONPATH=/tmp/python python3 /host/taps_host.py 10.77.1.1 4420 {nqn} {mebibytes}
nstat -az MPTcpExtMPJoinSynAckRx MPTcpExtMPFastcloseRx 2>/dev/null || true
"""


def _python_share(directory: Path) -> None:
    """Put our package and its dependencies where the guest's own Python finds them."""
    python = directory / "python"
    python.mkdir(parents=True)
    construct = importlib.util.find_spec("construct")
    assert construct is not None and construct.origin is not None
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(construct.origin).parent, python / "construct", ignore=ignore)
    shutil.copytree(REPOSITORY / "nvmeof", python / "nvmeof", ignore=ignore)
    shutil.copy(Path(__file__).with_name("taps_host.py"), directory)


@check(Layout("mptcp", "ramdisk", 512), only_ours=True)
def mptcp_two_links(bench: Bench) -> None:
    """Two subflows on two links: interface counters, the kernel's own count of joins, and describe() agree."""
    if os.geteuid():
        raise Skipped("tap interfaces need root")
    share = bench.directory / "taps"
    shutil.rmtree(share, ignore_errors=True)
    _python_share(share)
    settings = {
        "rate": RATE, "repository": shlex.quote(str(REPOSITORY)), "python": shlex.quote(sys.executable), "nqn": NQN,
        "mebibytes": MEBIBYTES,
    }  # fmt: skip
    command = [str(LAB / "guest"), "-k", bench.kernel, "-s", str(share), "-n", "2", "-m", "1024", "-t", "150"]
    command += ["-w", _TARGET.format(**settings), "-c", _GUEST.format(**settings)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=180)
    bench.say(f"target and lab:\n{done.stderr}\nguest:\n{done.stdout}")
    expect(not done.returncode, f"exit status {done.returncode}\n{(done.stdout + done.stderr)[-3000:]}")
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    expect(found["equal"], "what was read is not what was written")
    for what in ("written", "read"):
        shares = found[what]
        expect(len(shares) == 2, f"links: {shares}")
        expect(min(shares.values()) >= LINK_SHARE * (MEBIBYTES << 20), f"one link did little: {what} {shares}")
    queue = next((q for q in found["queues"] if q["qid"] == 1), None)
    if queue is None:
        raise CheckFailed(f"no I/O queue in {found['queues']}")
    expect(queue["protocol"] == "mptcp" and not queue["fallback"], f"describe(): {queue}")
    carried: Counter[str] = Counter()
    for flow in queue["subflows"]:
        carried[flow["local"].split(":")[0]] += flow["bytes_sent"] + flow["bytes_received"]
    expect(carried.keys() == {"10.77.1.2", "10.77.2.2"}, f"subflows: {queue['subflows']}")
    expect(min(carried.values()) >= 2 * LINK_SHARE * (MEBIBYTES << 20), f"bytes by describe(): {dict(carried)}")
    joins = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("MPTcpExtMPJoinSynAckRx")]
    expect(joins and int(joins[0]) >= 1, f"the guest's kernel counted no join: {joins}")
    bench.note = ", ".join(f"{what} {sorted(found[what].values())}" for what in ("written", "read"))


ALL_FORMS = ("--advertise", HOST_ADDRESS, "--advertise-as", "own", "--advertise-as", "tcp", "--advertise-as", "tsas")


@check(Layout("mptcp", "ramdisk", 512, options=ALL_FORMS), quick=True, only_ours=True)
def advertised_forms(bench: Bench) -> None:
    """nvme-cli prints a log with trtype 4, 3 and TSAS entries, and connect-all takes the tcp one, once."""
    with bench.target() as peer:
        bench.run("modprobe nvme-tcp; nvme discover -t tcp -a $ADDR -s $PORT")
        text = bench.run("nvme discover -t tcp -a $ADDR -s $PORT -o json 2>/dev/null")
        records = [r for r in json.loads(text[text.index("{") :])["records"] if r["subnqn"] == peer.nqn]
        types = [record["trtype"] for record in records]
        bench.say(f"trtype as nvme-cli prints it: {types}")
        expect(len(types) == 3 and types[1:] == ["tcp", "tcp"] and types[0] != "tcp", f"entries: {types}")
        expect({record["traddr"].strip() for record in records} == {HOST_ADDRESS}, f"addresses: {records}")
        said = bench.run("""
            nvme connect-all -t tcp -a $ADDR -s $PORT
            attached
            roundtrip $DEV 4096 1
            [ "$(cat /sys/class/nvme/nvme*/subsysnqn | grep -xc "$NQN")" = 1 ] || die "more than one controller"
            [ "$(cat /sys/class/nvme/$CTRL/transport)" = tcp ] || die "transport $(cat /sys/class/nvme/$CTRL/transport)"
            nvme disconnect-all""")
        bench.say(said)
        bench.note = f"entries {', '.join(types)}; one controller over tcp"


# Linux 6.12 counts from 0 until the first keep-alive: within five minutes of the boot jiffies are below 0
@check(
    Layout("mptcp", "ramdisk", 512, options=("--advertise", HOST_ADDRESS)),
    quick=True,
    only_ours=True,
    allow=(r"long keepalive RTT \(42949\d+ ms\)",),
)
def connect_all(bench: Bench) -> None:
    """`nvme connect-all` to a target as it is by default: over TCP, once; our own host takes MPTCP."""
    with bench.target() as peer:
        said = bench.run("""
            modprobe nvme-tcp
            nvme connect-all -t tcp -a $ADDR -s $PORT
            attached
            roundtrip $DEV 4096 1
            [ "$(cat /sys/class/nvme/nvme*/subsysnqn | grep -xc "$NQN")" = 1 ] || die "more than one controller"
            [ "$(cat /sys/class/nvme/$CTRL/transport)" = tcp ] || die "transport $(cat /sys/class/nvme/$CTRL/transport)"
            nvme disconnect-all""")
        bench.say(said)
        own = asyncio.run(_first_of_the_log(peer.port, peer.nqn))
        expect(own == ["mptcp", "mptcp"], f"our own host's queues: {own}")
        bench.note = f"the kernel: one controller over tcp; our host's queues: {', '.join(own)}"


async def _first_of_the_log(port: int, subnqn: str) -> list[str]:
    """Connect with the first entry of the subsystem, here on the target's machine; return the protocol of each
    queue.
    """
    entries = [each for each in await nvmeof.discover("127.0.0.1", port) if each.subnqn == subnqn]
    expect([each.transport for each in entries] == ["mptcp", "tcp"], f"entries: {entries}")
    async with await nvmeof.connect(replace(entries[0], traddr="127.0.0.1")) as controller:
        return [str(each["protocol"]) for each in controller.describe()]


@check(Layout("mptcp", "ramdisk", 512), only_ours=True)
def mptcpify(bench: Bench) -> None:
    """A BPF program on the kernel's hook makes programs' TCP sockets MPTCP, and not the kernel host's."""
    if bench.kernel_version < (6, 6):
        raise Skipped("update_socket_protocol came with Linux 6.6")
    shutil.copy(Path(__file__).with_name("mptcpify.py"), bench.guest.share)
    with bench.target():
        said = bench.run(
            """
            counted() { nstat -asz MPTcpExt$1 | awk -v before=$2 '/MPTcp/ { print $2 - before }'; }
            before_opened=$(counted MPCapableSYNTX 0) before_accepted=$(counted MPCapableACKRX 0)
            opened() { counted MPCapableSYNTX $before_opened; }
            accepted() { counted MPCapableACKRX $before_accepted; }
            export before_opened before_accepted
            export -f counted opened accepted die connect attached controller disconnect roundtrip nvme_dev
            python3 /host/mptcpify.py bash -euc '
              nc -l -N 127.0.0.1 7000 </dev/null >/tmp/got & sleep 1
              head -c 1000000 /dev/zero | nc -N 127.0.0.1 7000
              wait
              [ $(stat -c %s /tmp/got) = 1000000 ] || die "bytes were lost"
              [ "$(opened) $(accepted)" = "1 1" ] || die "opened $(opened), accepted $(accepted) as MPTCP"
              connect -i 2; roundtrip $DEV 1000000; disconnect
              echo "MPTCP: a program opened $(opened) connection; nvme connect added $(($(opened) - 1))"
              [ "$(opened)" = 1 ] || die "sockets of the kernel became MPTCP ones"'
            nc -l -N 127.0.0.1 7001 </dev/null >/tmp/got & sleep 1
            nc -N 127.0.0.1 7001 </dev/null; wait
            [ "$(opened)" = 1 ] || die "the program is still in force"
            """,
            120,
        )
        bench.note = next(line for line in said.splitlines() if line.startswith("MPTCP:"))
