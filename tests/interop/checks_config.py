"""config.json between our host and nvme-cli with libnvme: each reads, uses and changes what the other has written."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from nvmeof.host.config_files.config_json import read_config

from .bench import Bench, check
from .checks import TCP_RAM, expect
from .guest import HOST_ADDRESS, REPOSITORY
from .peers import NQN

OPTIONS = {"nr_io_queues": 2, "keep_alive_tmo": 7, "reconnect_delay": 3, "queue_size": 64}
SWITCHES = ["-i", "2", "-k", "7", "-c", "3", "-Q", "64"]
"""The same for both commands."""
HOSTNQN = "nqn.2014-08.org.nvmexpress:uuid:6c616200-0000-4000-8000-000000000001"
HOSTID = "6c616200-0000-4000-8000-000000000001"
"""The guest's own (tools/lab/prepare)."""


def _ours(bench: Bench, path: Path, *words: str) -> str:
    """Run `nvmeof-host config` with a file."""
    command = [sys.executable, "-m", "nvmeof.host", "config", "-J", str(path), *words]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False)
    bench.say(f"{' '.join(command[1:])}\n{done.stdout}{done.stderr}")
    expect(not done.returncode, f"nvmeof-host config: exit status {done.returncode}: {done.stderr}")
    return done.stdout


def _ports(document: Any, nqn: str = NQN) -> list[dict[str, Any]]:
    """Return the ports of a subsystem, as the file has them."""
    return [
        port for host in document for subsystem in host["subsystems"] if subsystem["nqn"] == nqn
        for port in subsystem["ports"]
    ]  # fmt: skip


def _theirs(bench: Bench, words: str) -> Any:
    """Run `nvme config --dump` in the guest."""
    text = bench.run(f"nvme config --dump {words} 2>/dev/null")
    return json.loads(text[text.index("[") :])


@check(replace(TCP_RAM, options=("--advertise", HOST_ADDRESS)), only_ours=True)
def config_json(bench: Bench) -> None:
    """`nvmeof-host config` and `nvme config` read, change and use each other's config.json."""
    mine, yours = (bench.guest.share / name for name in ("mine.json", "yours.json"))
    mine.unlink(missing_ok=True)
    yours.unlink(missing_ok=True)
    with bench.target() as peer:
        where = ["-n", NQN, "-t", "tcp", "-a", peer.address, "-s", str(peer.port)]
        _ours(bench, mine, "-M", "-U", *where, "-q", HOSTNQN, "-I", HOSTID, *SWITCHES)
        (port,) = _ports(_theirs(bench, "-J /host/mine.json"))
        expect({name: port.get(name) for name in OPTIONS} == OPTIONS, f"nvme-cli reads of ours {port}")
        expect((port["traddr"], port["trsvcid"]) == (peer.address, str(peer.port)), f"nvme-cli reads of ours {port}")
        bench.run("""
            modprobe nvme-tcp
            nvme connect-all -J /host/mine.json
            attached
            [ "$(cat /sys/class/nvme/$CTRL/kato)" = 7 ] || die "kato $(cat /sys/class/nvme/$CTRL/kato)"
            [ "$(cat /sys/class/nvme/$CTRL/reconnect_delay)" = 3 ] || die "$(cat /sys/class/nvme/$CTRL/reconnect_delay)"
            [ "$(cat /sys/class/nvme/$CTRL/queue_count)" = 3 ] || die "$(cat /sys/class/nvme/$CTRL/queue_count) queues"
            nvme config --scan --update -J /host/yours.json
            cat /host/yours.json""")
        scanned = json.loads(_ours(bench, yours, "-O"))
        (port,) = _ports(scanned)
        expect((port["traddr"], port["trsvcid"]) == (peer.address, str(peer.port)), f"we read of nvme-cli's {port}")
        bench.run("disconnect")
        there = " ".join([*where, *SWITCHES])
        bench.run(f"""
            rm -f /host/yours.json
            nvme config --modify --update -J /host/yours.json -q {HOSTNQN} -I {HOSTID} {there} -g
            cat /host/yours.json""")
        (entry,) = [p for h in read_config(yours).hosts for s in h.subsystems if s.nqn == NQN for p in s.ports]
        expect({**OPTIONS, "hdr_digest": True}.items() <= entry.options.items(), f"we read of nvme-cli's {entry}")
        before = json.loads(yours.read_text())
        expect(json.loads(_ours(bench, yours, "-O")) == before, "we do not write what we have read of nvme-cli's")
        _ours(bench, yours, "-M", "-U", *where, "-q", HOSTNQN, "-I", HOSTID, "-k", "9")
        (port,) = _ports(_theirs(bench, "-J /host/yours.json"))
        changed = {**OPTIONS, "keep_alive_tmo": 9, "hdr_digest": True}
        expect(changed.items() <= port.items(), f"nvme-cli reads of its own, changed by us, {port}")
        bench.note = f"{len(OPTIONS)} options each way"
