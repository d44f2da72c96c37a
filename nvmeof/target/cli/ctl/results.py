"""What a verb returned, for people: tables where there are columns for it, else lines."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from nvmeof.cli.tables import print_fields, print_table, size
from nvmeof.size_text import format_size

Row = Mapping[str, Any]
Columns = tuple[tuple[str, Callable[[Row], object]], ...]

_RIGHT: Final = (
    "NSID", "Size", "Block", "Port", "Queue", "Entries", "In flight", "Commands", "Refused", "Namespaces", "Queues",
    "Controllers", "Connections", "Reads", "Writes", "Read", "Written", "Group", "Controller", "RTT", "Errors",
)  # fmt: skip
"""The columns with numbers."""


def _joined(values: Any, everything: str = "all") -> str:
    if values is None:
        return everything
    return ", ".join(map(str, values)) or "-"


def _or_dash(value: object) -> object:
    return "-" if value in (None, "") else value


def _yes(value: object) -> str:
    return "yes" if value else "no"


def _since(row: Row) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row["since"]))


def _transport(row: Row) -> str:
    asked, actual = row["transport"], row["protocol"]
    if asked != actual:
        return f"{actual} (asked for {asked})"
    return f"{asked} ({row['subflow_count']} subflows)" if asked == "mptcp" else str(asked)


def _address(row: Row) -> str:
    return ", ".join(f"{each['address']}:{each['port']}" for each in row["listeners"])


_SUBSYSTEMS: Final[Columns] = (
    ("Subsystem", lambda row: row["nqn"]),
    ("Serial", lambda row: row["serial"]),
    ("Namespaces", lambda row: f"{row['namespaces']}" + (f" + {row['disabled']} off" if row["disabled"] else "")),
    ("Controllers", lambda row: row["controllers"]),
    ("Ports", lambda row: _joined(row["ports"])),
    ("Queues", lambda row: row["max_io_queues"]),
    ("Entries", lambda row: row["max_queue_entries"]),
    ("CNTLID", lambda row: f"{row['cntlid_min']} to {row['cntlid_max']}"),
    ("Hosts", lambda row: "any" if row["hosts"] is None else f"{len(row['hosts'])} allowed"),
)
_NAMESPACES: Final[Columns] = (
    ("NSID", lambda row: row["nsid"]),
    ("Storage", lambda row: row["backend"]),
    ("Size", lambda row: format_size(row["size_bytes"])),
    ("Block", lambda row: row["block_bytes"]),
    ("State", lambda row: ("enabled" if row["enabled"] else "disabled") + (", read-only" if row["read_only"] else "")),
    ("Group", lambda row: row["anagrpid"]),
    ("Attached to", lambda row: _joined(row["attached"])),
    ("In flight", lambda row: row["in_flight"]),
    ("UUID", lambda row: row["uuid"]),
    ("Subsystem", lambda row: row["subnqn"]),
)
_PORTS: Final[Columns] = (
    ("Port", lambda row: row["portid"]),
    ("Address", _address),
    ("Transport", lambda row: row["transport"]),
    ("Kind", lambda row: "discovery" if row["discovery_only"] else "subsystems"),
    ("Subsystems", lambda row: _joined(row["subsystems"])),
    ("Announced", lambda row: _joined([each["address"] for each in row["paths"]])),
    ("Referrals", lambda row: _joined(row["referrals"])),
    ("Connections", lambda row: row.get("connections", 0)),
)
_CONNECTIONS: Final[Columns] = (
    ("Controller", lambda row: _or_dash(row["cntlid"])),
    ("Queue", lambda row: _or_dash(row["qid"])),
    ("Port", lambda row: row["portid"]),
    ("Peer", lambda row: row["peer"]),
    ("Since", _since),
    ("Transport", _transport),
    ("Digests", lambda row: _joined(row["digests"])),
    ("Security", lambda row: _joined([each for each in (row.get("tls"), row.get("authentication")) if each])),
    ("Entries", lambda row: _or_dash(row.get("entries"))),
    ("In flight", lambda row: row.get("in_flight", 0)),
    ("Commands", lambda row: row.get("commands", 0)),
    ("RTT", lambda row: "-" if row["rtt_us"] is None else f"{row['rtt_us'] / 1000:.2f} ms"),
    ("Host", lambda row: _or_dash(row["host"])),
)
_NAMESPACE_COUNTERS: Final[Columns] = (
    ("NSID", lambda row: row["nsid"]),
    ("Reads", lambda row: row["reads"]),
    ("Read", lambda row: size(row["bytes_read"])),
    ("Writes", lambda row: row["writes"]),
    ("Written", lambda row: size(row["bytes_written"])),
    ("Errors", lambda row: row["media_errors"]),
    ("In flight", lambda row: row["in_flight"]),
    ("Subsystem", lambda row: row["subnqn"]),
)
_QUEUE_COUNTERS: Final[Columns] = (
    ("Controller", lambda row: row.get("cntlid", "-")),
    ("Queue", lambda row: row.get("qid", "-")),
    ("Queues", lambda row: row.get("queues", 1)),
    ("Commands", lambda row: row["commands"]),
    ("Refused", lambda row: row["refused"]),
    ("In flight", lambda row: row["in_flight"]),
    ("Host", lambda row: row["host"]),
    ("Subsystem", lambda row: row["subnqn"]),
)
_TABLES: Final[Mapping[str, tuple[Columns, str | None]]] = {
    "subsystem": (_SUBSYSTEMS, "Subsystem"),
    "namespace": (_NAMESPACES, "Subsystem"),
    "port": (_PORTS, "Subsystems"),
    "connection": (_CONNECTIONS, "Host"),
}
"""By group: the columns, and the one that gets a line of its own in a narrow terminal."""


def print_result(verb: str, result: Any) -> None:
    """Print the result of a verb."""
    group, _, name = verb.rpartition(".")
    if result is None:
        print("done")
    elif verb == "config":
        print(json.dumps(result, indent=2))
    elif verb == "counters":
        _print_counters(result)
    elif isinstance(result, dict) and set(result) == {"ended", "cut", "left"}:
        _print_removal(result)
    elif group in _TABLES and name != "limits" and isinstance(result, list | dict):
        columns, key = _TABLES[group]
        _print_columns(columns, result if isinstance(result, list) else [result], key)
    elif isinstance(result, list):
        _print_list(result)
    elif isinstance(result, dict):
        print_fields((name, _text(value)) for name, value in result.items())
    else:
        print(result)


def _print_counters(rows: list[Row]) -> None:
    queues = bool(rows) and "commands" in rows[0]
    _print_columns(_QUEUE_COUNTERS if queues else _NAMESPACE_COUNTERS, rows, "Subsystem")


def _print_columns(columns: Columns, rows: list[Row], key: str | None) -> None:
    headings = [heading for heading, _ in columns]
    print_table(headings, [[cell(row) for _, cell in columns] for row in rows], right=_RIGHT, key=key)


def _print_removal(result: Row) -> None:
    words = {"ended": "ended", "cut": "cut", "left": "goes on"}
    lines = [(words[name], each) for name in words for each in result[name]]
    if lines:
        print_fields(lines)
    else:
        print("done: nothing was in use")


def _print_list(rows: list[Any]) -> None:
    """Print a list of objects as a table of their fields, and one of texts as lines."""
    if not rows:
        print("none")
    elif all(isinstance(row, dict) and "params" in row for row in rows):
        print_table(("Verb", "What it does"), [(row["name"], row["summary"]) for row in rows])
    elif all(isinstance(row, dict) for row in rows):
        names = list(rows[0])
        print_table(names, [[_text(row.get(name)) for name in names] for row in rows])
    else:
        for row in rows:
            print(_text(row))


def _text(value: object) -> str:
    if isinstance(value, bool):
        return _yes(value)
    if isinstance(value, list):
        return _joined(value)
    return str(_or_dash(value)) if not isinstance(value, dict) else json.dumps(value)
