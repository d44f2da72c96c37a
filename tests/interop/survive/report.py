"""The document of the results."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..guest import REPOSITORY
from .events import EVENTS, Event

DOCUMENT = "docs/failure-timeline.md"
HOSTS = ("ours", "kernel")
HEAD = """# What failures cost, beside the kernel's own host

A kernel's target (nvmet) and two hosts, each with two paths to one namespace: ours by `connect_multipath`, and the
nvme-tcp of the target's own guest (of a second guest of the same kernel where the first is reset). Both have their
default timers (`reconnect_delay` 10 s, `ctrl_loss_tmo` 600 s, KATO 5 s) and the policy `numa`, so that commands go over
path 1. Target and hosts are two veth links apart, so that one event meets both hosts at the same time. Each host writes
and reads its own 2 MiB: a block holds its address and its generation, each read is compared with what was acknowledged
last, and at the end everything is read again.

    tools/lab/prepare                                      # once, as root
    python -m tests.interop.survive --kernel 6.12          # --event NAME for one of them; --list
    python -m tests.interop.survive --write                # makes this page of the results

Seconds in pairs: **our host / the kernel's**. *Noticed*: from the command that causes the event (which takes its time
in an emulated guest) until the state of a path, or the size of the namespace, changes. *Failed over*: until a command
was completed by the path that was not in use. *Longest wait*: of one command. *Back*: from the end of the event until
all is as it was before. States are read every 20 ms, by clocks that are compared to some 10 ms.
"""


def write_document(directory: Path) -> str:
    """Write the page from the results of all kernels; return which."""
    found = [(path.stem, json.loads(path.read_text())) for path in directory.glob("*.json")]
    found.sort(key=lambda each: [int(part) for part in each[0].split(".")])
    lines = [HEAD]
    for _, results in found:
        lines += [f"## nvmet of {results['release']}", "", *_table(results["events"]), ""]
    (REPOSITORY / DOCUMENT).write_text("\n".join(lines).rstrip() + "\n")
    return f"{DOCUMENT}: {', '.join(kernel for kernel, _ in found) or 'no results'}"


def _table(results: dict[str, Any]) -> Iterator[str]:
    yield "| event | noticed | failed over | longest wait | back | commands | errors | wrong |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    there = [event for event in EVENTS if event.name in results]
    for event in there:
        hosts = [results[event.name][host] for host in HOSTS]
        times = [_pair(hosts, name) for name in ("noticed", "failed_over", "longest_wait", "back")]
        counts = [_counts(hosts, name) for name in ("commands", "errors", "wrong")]
        yield f"| {' | '.join([event.what, *times, *counts])} |"
    ended = [event for event in there if not event.survives]
    if ended:
        yield ""
        yield "Where the namespace in use is gone, commands fail, and none has the data of another one:"
        yield ""
        yield "| event | first error of our host | of the kernel's |"
        yield "| --- | --- | --- |"
        for event in ended:
            yield f"| {event.what} | {' | '.join(_error(results[event.name][host]) for host in HOSTS)} |"
    yield from _remarks(there, results)


def _pair(hosts: list[dict[str, Any]], name: str) -> str:
    return " / ".join("-" if host[name] is None else f"{host[name]:.1f}" for host in hosts)


def _counts(hosts: list[dict[str, Any]], name: str) -> str:
    return " / ".join(str(host[name]) for host in hosts)


def _error(host: dict[str, Any]) -> str:
    if not host["first_error"]:
        return "none"
    return f"after {host['error_after']:.1f} s: {host['first_error'].split(': ', 1)[1]}"


def _remarks(events: list[Event], results: dict[str, Any]) -> Iterator[str]:
    whose = {"ours": "our host", "kernel": "the kernel's host"}
    faults = [
        f"- {event.what}, {whose[host]}: {fault}"
        for event in events
        for host in HOSTS
        for fault in results[event.name][host]["faults"]
    ]
    if faults:
        yield ""
        yield "What should not be:"
        yield ""
        yield from faults
