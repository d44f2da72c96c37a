"""The checks of log pages: what nvme-cli prints of each."""

from __future__ import annotations

import json
import time
from typing import Any

from .bench import Bench, check
from .checks import expect
from .peers import Layout

LOGS = Layout("tcp", "ramdisk", 512, options=("--state", "{directory}/logs.state", "--admin-label", "the lab's disk"))
_RECOVERY = r"resetting controller|starting error recovery|[Rr]econnect|failed to connect socket|keep_alive"
EXTENDED_HEADER_BYTES = 1024


def _json(text: str) -> Any:
    """Return the JSON value in a command's output, whatever precedes it."""
    starts = [at for at in (text.find("{"), text.find("[")) if at >= 0]
    value, _ = json.JSONDecoder().raw_decode(text[min(starts) :])
    return value


def _log(bench: Bench, command: str) -> Any:
    return _json(bench.run(f"attached; nvme {command} /dev/$CTRL -o json 2>/dev/null"))


def _plain(bench: Bench) -> None:
    text = json.dumps(_log(bench, "supported-log-pages"))
    for lid in (0x1, 0x2, 0x3, 0x4, 0x5, 0x7, 0x8, 0x9, 0xC, 0xD, 0x12):
        expect(f"lid_{lid:#x} " in text, f"supported-log-pages has no {lid:#x}: {text}")
    expect(_log(bench, "fw-log"), "fw-log")
    bench.run("attached; nvme changed-ns-list-log /dev/$CTRL")
    for command in ("error-log", "effects-log", "ana-log", "fid-support-effects-log"):
        expect(len(bench.run(f"attached; nvme {command} /dev/$CTRL")) > 20, command)
    endurance = _log(bench, "endurance-log -g 1")
    numbers = {key.lower(): value for key, value in endurance.items()}
    spare = next(value for key, value in numbers.items() if "spare" in key and "thre" not in key)
    expect(spare == 100, f"endurance-log: {endurance}")


def _smart(bench: Bench) -> None:
    before = _log(bench, "smart-log")
    bench.run(
        """
        attached
        dd if=/dev/zero of=$DEV bs=1M count=16 oflag=direct
        dd if=$DEV of=/dev/null bs=1M count=32 iflag=direct"""
    )
    after = _log(bench, "smart-log")
    moved = {name: int(after[name]) - int(before[name]) for name in ("data_units_read", "data_units_written")}
    expect(33 <= moved["data_units_written"] <= 40, f"16 MiB written: {moved}")
    expect(65 <= moved["data_units_read"] <= 80, f"32 MiB read: {moved}")
    expect(int(after["power_cycles"]) == 1 and int(after["unsafe_shutdowns"]) == 0, f"smart-log: {after}")


def _telemetry(bench: Bench, options: str) -> list[dict[str, Any]]:
    """Return the objects of a telemetry log, one for each area."""
    text = bench.run(f"""
        attached
        nvme telemetry-log /dev/$CTRL --output-file=/tmp/t.bin {options} >&2
        echo; echo ==; tail -c +513 /tmp/t.bin""")
    lines = text.split("==", 1)[1].splitlines()
    return [json.loads(line) for line in lines if line.strip()]


def _telemetries(bench: Bench) -> None:
    areas = _telemetry(bench, "--host-generate=1")
    expect([each["area"] for each in areas] == [1, 2, 3], f"areas {[each['area'] for each in areas]}")
    expect(areas[0]["controller"]["state"] == "ready" and len(areas[0]["queues"]) > 1, f"area 1: {areas[0]}")
    expect(areas[1]["namespaces"][0]["bytes_read"] > 0, f"area 2: {areas[1]}")
    expect(areas[2]["connections"][0].get("bytes_received"), f"area 3: {areas[2]}")
    bench.run("""
        attached
        nvme write-uncor $DEV -s 8 -c 0
        ! nvme read $DEV -s 8 -c 0 -z $BLOCK -d /tmp/x 2>/dev/null
        nvme write-zeroes $DEV -s 8 -c 0""")
    areas = _telemetry(bench, "--controller-init")
    expect("media error" in areas[0]["reason"], f"controller-initiated: {areas[0]}")
    expect(any(entry["opcode"] == 2 for entry in areas[2]["error_log"]), f"error log: {areas[2]['error_log']}")


def _events(bench: Bench) -> str:
    text = bench.run("""
        attached
        nvme persistent-event-log /dev/$CTRL -a 1
        nvme persistent-event-log /dev/$CTRL -a 0
        nvme persistent-event-log /dev/$CTRL -a 2
        ! nvme persistent-event-log /dev/$CTRL -a 0 -l 512 >/dev/null 2>&1""")
    for name in ("Power-on or Reset Event", "Timestamp Change Event", "NVM Subsystem Hardware Error Event"):
        expect(name in text, f"persistent-event-log: {name} is missing in\n{text[:3000]}")
    return text


def _discovery(bench: Bench) -> None:
    bench.run('nvme discover -t tcp -a "$ADDR" -s "$PORT" | grep -q "$NQN"')
    raw = bench.run("""
        nvme discover -t tcp -a "$ADDR" -s "$PORT" --persistent >/dev/null
        for c in /sys/class/nvme/nvme*; do
          case "$(cat "$c/subsysnqn")" in *discovery) D=${c##*/};; esac
        done
        nvme get-log "/dev/$D" --log-id=0x70 --log-len=4096 --lsp=1 -b | od -An -v -tx1 | tr -d ' \\n'
        echo
        nvme disconnect -d "$D" >/dev/null""")
    page = bytes.fromhex(max(raw.split(), key=len))
    length, count = int.from_bytes(page[20:24], "little"), int.from_bytes(page[8:16], "little")
    expect(page[18] == 1 and count == 2 and length < 4096, f"extended discovery log: {page[:32].hex()}")
    expect(b"the lab's disk" in page[EXTENDED_HEADER_BYTES:length], "the label is missing")


@check(LOGS, only_ours=True, allow=(_RECOVERY,))
def logs(bench: Bench) -> None:
    """Every log that nvme-cli knows: numbers that move, telemetry as JSON, events that outlive a kill, discovery."""
    with bench.target() as peer:
        bench.run("connect -k 5")
        _plain(bench)
        _smart(bench)
        _telemetries(bench)
        bench.run("attached; nvme reset /dev/$CTRL; attached")
        _events(bench)
        time.sleep(1.5)
        peer.kill()
        peer.start()
        bench.run("controller", 60)
        text = _events(bench)
        expect(text.lower().count("power-on or reset") >= 2, f"after a kill: {text[:3000]}")
        smart = _log(bench, "smart-log")
        expect(int(smart["power_cycles"]) == 2 and int(smart["unsafe_shutdowns"]) == 1, f"after a kill: {smart}")
        # It has been read before, so nvme-cli does not show it again; it still exists.
        raw = bench.run("attached; nvme get-log /dev/$CTRL --log-id=8 --log-len=2048 -b | tail -c +385 | head -c 128")
        expect("media error" in raw, f"telemetry is gone after a kill: {raw}")
        _discovery(bench)
        bench.run("attached; disconnect")
