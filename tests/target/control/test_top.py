"""`ctl top`: rates from two samples, and the picture that is made of them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from nvmeof import connect
from nvmeof.target.__main__ import main
from nvmeof.target.cli.ctl.rates import Sample, rates
from nvmeof.target.cli.ctl.top import sample, view
from nvmeof.target.control import ControlClient, where
from tests.target.control.tools import HOST, NQN, controlled, served

MIB = 1 << 20


def status(at: float) -> dict[str, Any]:
    return {
        "version": "1.2.3", "pid": 42, "uptime_seconds": 93784.5 + at, "time": at, "controllers": 1, "connections": 2,
        "memory_used_bytes": 3 * MIB,
    }  # fmt: skip


def namespace(nsid: int, reads: int, writes: int, in_flight: int = 0) -> dict[str, Any]:
    return {
        "subnqn": NQN, "nsid": nsid, "reads": reads, "writes": writes, "bytes_read": reads * 4096,
        "bytes_written": writes * 4096, "in_flight": in_flight,
    }  # fmt: skip


def flow(local: str, peer: str, sent: int, received: int) -> dict[str, Any]:
    return {"local": local, "peer": peer, "bytes_sent": sent, "bytes_received": received, "rtt_us": 250}


def connection(qid: int, commands: int, *flows: dict[str, Any], in_flight: int = 0) -> dict[str, Any]:
    return {
        "subnqn": NQN, "host": HOST, "cntlid": 1, "qid": qid, "peer": f"10.0.0.2:{5000 + qid}", "protocol": "mptcp",
        "commands": commands, "refused": 0, "in_flight": in_flight, "subflows": list(flows),
    }  # fmt: skip


def samples() -> tuple[Sample, Sample]:
    """Two seconds of a host with two paths, three quarters of whose data goes over the first one."""
    before = Sample(
        status(10.0),
        [namespace(1, 100, 0), namespace(2, 0, 0)],
        [connection(1, 100, flow("10.0.0.1:4420", "10.0.0.2:5001", 0, 0), flow("10.1.0.1:4420", "10.1.0.2:6", 0, 0))],
    )
    now = Sample(
        status(12.0),
        [namespace(1, 2100, 0, 7), namespace(2, 0, 500), namespace(3, 9, 9)],
        [
            connection(
                1, 2600, flow("10.0.0.1:4420", "10.0.0.2:5001", 6 * MIB, 0),
                flow("10.1.0.1:4420", "10.1.0.2:6", 2 * MIB, 0), in_flight=7,
            ),
            {**connection(0, 0), "cntlid": None},
        ],
    )  # fmt: skip
    return before, now


def test_rates_are_differences_over_time() -> None:
    seen = rates(*samples())
    first, second, third = seen.namespaces
    assert (first.reads, first.read_bytes, first.in_flight) == (1000, 1000 * 4096, 7)
    assert (second.writes, second.written_bytes) == (250, 250 * 4096)
    assert (third.reads, third.writes) == (0, 0), "it was not there before"
    (host,) = seen.hosts
    assert (host.commands, host.queues, host.in_flight) == (1250, 1, 7)
    assert {path.local: path.share for path in host.paths.values()} == {"10.0.0.1": 0.75, "10.1.0.1": 0.25}


def test_counters_that_began_again_have_no_rate() -> None:
    before, now = samples()
    assert all(each.reads >= 0 and each.writes >= 0 for each in rates(now, before).namespaces)
    assert rates(now, now).seconds == 0


SNAPSHOT = """\
nvmeof-target 1.2.3, process 42, up 1 d 02:03:16   1 controllers, 2 connections, 3.15 MB of data in memory

NSID  reads/s   read/s  writes/s  written/s  in flight  share                 subsystem
   1     1000  4.10 MB         0        0 B          7  ████████████████      nqn.2026-01.io.nvmeof:target
   2        0      0 B       250    1.02 MB          0  ████                  nqn.2026-01.io.nvmeof:target
   3        0      0 B         0        0 B          0                        nqn.2026-01.io.nvmeof:target

controller 1, 1 queues, mptcp: nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555
path                                                commands/s  in flight      out/s       in/s        RTT  share
all paths                                                 1250          7    4.19 MB        0 B
  10.0.0.1 - 10.0.0.2                                                        3.15 MB        0 B    0.25 ms  ███████████████        75%
  10.1.0.1 - 10.1.0.2                                                        1.05 MB        0 B    0.25 ms  █████                  25%
"""  # noqa: E501


def picture(columns: int) -> str:
    out = io.StringIO()
    Console(file=out, width=columns, highlight=False, markup=False).print(view(rates(*samples()), columns))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def test_the_picture_of_a_wide_terminal() -> None:
    assert picture(200) == SNAPSHOT


def test_a_narrow_terminal_gets_no_broken_line() -> None:
    narrow = picture(80)
    assert len(narrow.splitlines()) <= len(SNAPSHOT.splitlines()) + 1, "only the heading may be folded"
    assert all(figure in narrow for figure in ("4.10 MB", "1.02 MB", "3.15 MB", "4.19 MB", "1250", "75%"))


async def test_a_sample_of_a_target_that_serves_a_host(tmp_path: Path) -> None:
    async with controlled(tmp_path / "s") as server, ControlClient(tmp_path / "s") as client:
        where_ = server.control.target.address
        host = await connect(where_.host, where_.port, subnqn=NQN, transport="tcp", hostnqn=HOST, nr_io_queues=1)
        before = await sample(client)
        for _ in range(50):
            await host.namespace(1).read(0, 8)
        seen = rates(before, await sample(client))
        assert seen.namespaces[0].reads > 0
        assert seen.hosts[0].commands > 0 and seen.hosts[0].host == HOST
        (path,) = seen.hosts[0].paths.values()
        assert path.share == 1.0 and path.out_bytes > path.in_bytes
        await host.disconnect()


def test_once_shows_and_ends(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(where.VARIABLE, str(tmp_path / "s"))
    with served(tmp_path / "s"):
        assert main(["ctl", "top", "--once", "--interval", "0.1"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("nvmeof-target ") and "no host is connected" in out
