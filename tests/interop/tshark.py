"""tshark as an independent reader of our bytes.

`read(capture, port)` runs tshark over a capture and returns what it saw; `Reading.complaints()` names everything that
is wrong with it: malformed packets, expert warnings and errors outside TCP's own bookkeeping, bad digests, commands
without completion, completions without command.
"""

from __future__ import annotations

import shutil
import subprocess
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

PDU_NAMES = {
    0: "ICReq", 1: "ICResp", 2: "H2CTermReq", 3: "C2HTermReq", 4: "CapsuleCmd", 5: "CapsuleResp",
    6: "H2CData", 7: "C2HData", 9: "R2T",
}  # fmt: skip
ASYNC_EVENT_REQUEST = 0x0C

_FIELDS = {
    "frame": "frame.number",
    "stream": "tcp.stream",
    "lost": "tcp.analysis.lost_segment",
    "malformed": "_ws.malformed",
    "expert": "_ws.expert.message",
    "severity": "_ws.expert.severity",
    "group": "_ws.expert.group",
    "pdu": "nvme-tcp.type",
    "qid": "nvme-tcp.cmd.qid",
    "success": "nvme-tcp.flags.pdu.data_success",
    "header_digest": "nvme-tcp.hdgst.status",
    "data_digest": "nvme-tcp.ddgst.status",
    "fabrics_cid": "nvme.fabrics.cmd.cid",
    "cid": "nvme.cmd.cid",
    "opcode": "nvme.cmd.opc",
    "cqe_cid": "nvme.cqe.cid",
    "data_cid": "nvme-tcp.cmd.cid",
}
_WARNING = 6291456
_GROUP_SEQUENCE = 0x02000000  # retransmissions, windows, resets: TCP's own, not about NVMe
_DIGEST_BAD, _DIGEST_GOOD = ("0", "Bad"), ("1", "Good")  # tshark's checksum status
_SEPARATOR, _AGGREGATOR = "\x1e", "\x1f"


class TsharkMissing(Exception):
    """tshark is not installed, or cannot read NVMe/TCP."""


@dataclass(slots=True)
class Reading:
    """tshark's result for one capture. CIDs and counts are per TCP stream."""

    pdus: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    commands: dict[int, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    completions: dict[int, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    may_stay_open: dict[int, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    good_digests: int = 0

    @property
    def command_count(self) -> int:
        """The number of commands of all streams."""
        return sum(sum(cids.values()) for cids in self.commands.values())

    @property
    def streams(self) -> int:
        """TCP connections that carried at least one command."""
        return len(self.commands)

    def complaints(self) -> list[str]:
        """Return everything wrong with the capture, one sentence each; empty when all is well."""
        found = list(self.problems)
        for stream in sorted(self.commands.keys() | self.completions.keys()):
            asked, answered = self.commands[stream], self.completions[stream]
            missing = asked - answered - self.may_stay_open[stream]
            extra = answered - asked
            found += [f"stream {stream}: CID {cid} sent {n} times more than completed" for cid, n in missing.items()]
            found += [f"stream {stream}: CID {cid} completed {n} times more than sent" for cid, n in extra.items()]
        return found

    def summary(self) -> str:
        """Return the counts in one line."""
        kinds = ", ".join(f"{name} {self.pdus[name]}" for name in PDU_NAMES.values() if self.pdus[name])
        return (
            f"{self.streams} connections, {self.command_count} commands; {kinds}; {self.good_digests} digests checked"
        )


def available() -> bool:
    """Return whether tshark can be run."""
    return shutil.which("tshark") is not None


def _rows(capture: Path, port: int) -> Iterator[dict[str, list[str]]]:
    if not available():
        raise TsharkMissing("tshark is not installed")
    command = ["tshark", "-n", "-r", str(capture), "-d", f"tcp.port=={port},nvme-tcp", "-Y", f"tcp.port=={port}"]
    command += ["-o", "nvme-tcp.check_hdgst:TRUE", "-o", "nvme-tcp.check_ddgst:TRUE", "-T", "fields"]
    command += ["-E", f"separator={_SEPARATOR}", "-E", f"aggregator={_AGGREGATOR}"]
    for name in _FIELDS.values():
        command += ["-e", name]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        raise TsharkMissing(f"tshark failed: {done.stderr.strip().splitlines()[-1:]}")
    for line in done.stdout.rstrip("\n").split("\n") if done.stdout else ():
        values = line.split(_SEPARATOR)
        yield {key: value.split(_AGGREGATOR) if value else [] for key, value in zip(_FIELDS, values, strict=True)}


def _look_for_problems(reading: Reading, row: dict[str, list[str]]) -> None:
    frame = row["frame"][0]
    if row["malformed"]:
        reading.problems.append(f"frame {frame}: malformed")
    if row["lost"]:
        reading.problems.append(f"frame {frame}: the capture lacks a segment before it")
    for message, severity, group in zip(row["expert"], row["severity"], row["group"], strict=False):
        if int(severity) >= _WARNING and int(group) != _GROUP_SEQUENCE:
            reading.problems.append(f"frame {frame}: {message}")
    for kind in ("header_digest", "data_digest"):
        reading.good_digests += sum(status in _DIGEST_GOOD for status in row[kind])
        if any(status in _DIGEST_BAD for status in row[kind]):
            reading.problems.append(f"frame {frame}: bad {kind.replace('_', ' ')}")


def read(capture: Path, port: int = 4420, reading: Reading | None = None) -> Reading:
    """Read the capture by tshark (into `reading`, when given). Raises TsharkMissing when it cannot be run."""
    reading = reading or Reading()
    for row in _rows(capture, port):
        _look_for_problems(reading, row)
        for code in row["pdu"]:
            number = int(code, 0)
            if number not in PDU_NAMES:
                reading.problems.append(f"frame {row['frame'][0]}: PDU type {number}")
            reading.pdus[PDU_NAMES.get(number, str(number))] += 1
        if (unpaired := sum(int(code, 0) == 5 for code in row["pdu"]) - len(row["cqe_cid"])) > 0:
            reading.problems.append(f"frame {row['frame'][0]}: {unpaired} completions without a command")
        stream = int(row["stream"][0])
        cids = [int(cid, 0) for cid in row["cid"]]
        for cid, opcode in zip(cids, row["opcode"], strict=False):
            if int(opcode, 0) == ASYNC_EVENT_REQUEST:  # ended by the disconnect; as an I/O opcode it is Verify
                reading.may_stay_open[stream][cid] += 1
        reading.commands[stream].update(cids + [int(cid, 0) for cid in row["fabrics_cid"]])
        reading.completions[stream].update(int(cid, 0) for cid in row["cqe_cid"])
        if any(flag in ("1", "True") for flag in row["success"]):
            reading.completions[stream].update(_success_cids(row))
    return reading


def _success_cids(row: dict[str, list[str]]) -> list[int]:
    """Return the CIDs of the C2HData PDUs of a frame that carry SUCCESS, and therefore have no CapsuleResp.

    tshark shows the flag and the CID of data PDUs in their own lists, each in the order of the PDUs.
    """
    flags = [flag in ("1", "True") for flag in row["success"]]
    return [int(cid, 0) for cid, flag in zip(row["data_cid"], flags, strict=False) if flag]
