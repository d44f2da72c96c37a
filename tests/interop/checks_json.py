"""The check of our host's JSON: compared key by key and value by value with nvme-cli's of the same target."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from nvmeof.host.cli.nvme_json import error_entry
from nvmeof.spec.log_pages import ERROR_INFORMATION_ENTRY
from nvmeof.wire import plain

from .bench import Bench, CheckFailed, check
from .checks import expect
from .checks_logs import _json
from .guest import REPOSITORY
from .peers import NQN, Layout

SMART_MOVES = frozenset(
    ("data_units_read", "data_units_written", "host_read_commands", "host_write_commands", "controller_busy_time",
     "num_err_log_entries", "power_on_hours")
)  # fmt: skip
"""Counters that move between the two commands: only their keys and types are compared."""
OWN = {
    "id-ctrl": frozenset(("cntlid",)),
    "smart-log": SMART_MOVES,
    "ana-log": frozenset(("Asymmetric Namespace Access Log for NVMe device",)),
    "list": frozenset(("DevicePath", "GenericPath", "UsedBytes")),
    "id-ns": frozenset(("nuse",)),
    "discover": frozenset(("traddr",)),  # for a wildcard it is the address that was asked, which differs
}
"""Values that depend on the controller or device node."""

OF_A_NAMESPACE = ("ns-descs", "resv-report -e", "nvm-id-ns", "cmdset-ind-id-ns")
STRUCTURES: dict[str, frozenset[str]] = {
    **dict.fromkeys(OF_A_NAMESPACE, frozenset()),
    **dict.fromkeys(
        ("list-ns", "fw-log", "effects-log", "changed-ns-list-log", "supported-log-pages", "fid-support-effects-log",
         "mi-cmd-support-effects-log", "lba-status-log", "resv-notif-log", "sanitize-log", "self-test-log",
         "nvm-id-ctrl", "id-uuid", "list-endgrp", "id-ns-granularity"),
        frozenset(),
    ),
    "list-ctrl": frozenset(("ctrl_id", "ctrl_list", "num_ctrl")),  # our host has a controller of its own meanwhile
    "endurance-log": frozenset(("data_units_read", "host_read_cmds", "host_write_cmds", "data_units_written")),
    "show-regs": frozenset(("nssd", "crto")),  # nvme-cli does not read these over fabrics
}  # fmt: skip
"""Subcommands that show a structure, and the keys whose values belong to one controller or move."""


def differences(theirs: Any, ours: Any, own: frozenset[str], where: str = "") -> Iterator[str]:
    """Yield in words each key of nvme-cli that is missing or different in our JSON. Additional keys are allowed."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key, value in theirs.items():
            if key not in ours:
                yield f"{where}{key} is missing"
            elif key in own:
                if type(value) is not type(ours[key]):
                    yield f"{where}{key} is {value!r}, ours {ours[key]!r}"
                elif isinstance(value, list):
                    for index, (one, other) in enumerate(zip(value, ours[key], strict=False)):
                        yield from differences(one, other, own, f"{where}{key}.{index}.")
            else:
                yield from differences(value, ours[key], own, f"{where}{key}.")
    elif isinstance(theirs, list) and isinstance(ours, list):
        if len(theirs) != len(ours):
            yield f"{where} has {len(theirs)} items, ours {len(ours)}"
        for index, (value, other) in enumerate(zip(theirs, ours, strict=False)):
            yield from differences(value, other, own, f"{where}{index}.")
    elif where.endswith("trtype.") and (theirs, ours) == ("unrecognized", "mptcp"):
        return  # nvme-cli does not know TRTYPE 4
    elif theirs != ours or type(theirs) is not type(ours):
        yield f"{where.rstrip('.')} is {theirs!r}, ours {ours!r}"


def _ours(command: str, port: int) -> Any:
    code, output, error = _run_ours(command, port)
    if code:
        raise CheckFailed(f"{command}: {error}")
    return json.loads(output)


def _run_ours(command: str, port: int) -> tuple[int, str, str]:
    where = ["-t", "tcp", "-a", "127.0.0.1", "-s", str(port), "-o", "json"]
    name = [] if command == "discover" else ["-n", NQN]
    result = subprocess.run(
        [sys.executable, "-m", "nvmeof.host", *command.split(), *where, *name],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    return result.returncode, result.stdout, result.stderr


def _compare_structures(bench: Bench, port: int) -> int:
    """Compare the subcommands that show a structure: the same JSON, or refused by both; return the number of keys."""
    script = "attached\n" + "".join(
        f"echo '=== {command}'; nvme {command.replace('endurance-log', 'endurance-log -g 1')} "
        f"{'$DEV' if command in OF_A_NAMESPACE else '/dev/$CTRL'} -o json 2>/dev/null || echo FAILED\n"
        for command in STRUCTURES
    )
    outputs = dict(part.split("\n", 1) for part in bench.run(script).split("=== ")[1:])
    compared = 0
    for command, own in STRUCTURES.items():
        theirs, (code, ours, error) = outputs[command], _run_ours(command, port)
        if "FAILED" in theirs:
            expect(code == 1, f"{command}: nvme-cli fails, ours does not")
            continue
        expect(not code, f"{command}: {error}")
        wanted = json.loads(theirs)
        found = list(differences(wanted, json.loads(ours), own))
        bench.say(f"{command}: nvme-cli {json.dumps(wanted)}, ours {ours}")
        expect(not found, f"{command}: {'; '.join(found)}")
        compared += len(wanted)
    return compared


def _compare(bench: Bench, port: int) -> int:
    """Compare all commands with the target that is attached in the guest and is at `port` here; return the number of
    keys.
    """
    compared = 0
    for command in ("id-ctrl", "smart-log", "ana-log", "id-ns", "list", "discover"):
        device = {"id-ns": "$DEV", "list": "", "discover": '-t tcp -a "$ADDR" -s "$PORT"'}.get(command, "/dev/$CTRL")
        theirs = _json(bench.run(f"attached; nvme {command} {device} -o json 2>/dev/null"))
        ours = _ours(command, port)
        bench.say(f"{command}: nvme-cli {json.dumps(theirs)}, ours {json.dumps(ours)}")
        found = list(differences(theirs, ours, OWN[command]))
        expect(not found, f"{command}: {'; '.join(found)}")
        compared += len(theirs)
    raw = bench.run("""
        attached
        nvme read $DEV -s 99999999 -c 0 -z $BLOCK -d /tmp/x >/dev/null 2>&1 || true
        nvme get-log /dev/$CTRL --log-id=1 --log-len=64 -b | od -An -v -tx1 | tr -d ' \\n'
        echo; nvme error-log /dev/$CTRL -e 1 -o json""")
    entry = bytes.fromhex(max(raw.split("{", 1)[0].split(), key=len))
    (theirs,) = _json(raw)["errors"]
    found = list(differences(theirs, error_entry(plain(ERROR_INFORMATION_ENTRY.parse(entry))), frozenset()))
    expect(not found and theirs["error_count"], f"error-log: {'; '.join(found)} {theirs}")
    return compared + len(theirs)


@check(
    Layout("mptcp", "ramdisk", 512, options=("--capacity", "1T")), only_ours=True, allow=(r"nvmet_tcp: failed cmd .*",)
)
def json_keys(bench: Bench) -> None:
    """`-o json` of our host has nvme-cli's keys and values, of our target and of the kernel's."""
    with bench.target() as peer:
        bench.run("connect")
        compared = _compare(bench, peer.port) + _compare_structures(bench, peer.port)
        bench.run("attached; disconnect")
    with bench.nvmet():
        bench.run("connect")
        compared += _compare(bench, bench.guest.nvmet_port) + _compare_structures(bench, bench.guest.nvmet_port)
        bench.run("attached; disconnect")
    bench.note = f"{compared} keys compared"
