"""The log of slow commands: the content of a line, commands without lines, and the number of lines."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest

from nvmeof import NamespaceConfig, Target, connect
from nvmeof.errors import ConfigurationError
from nvmeof.spec.status import Status, describe_status
from nvmeof.target.cli.options import Options, make_target
from nvmeof.target.slow_commands import BURST, SlowCommandLog
from nvmeof.target.storage.filter import Kind
from nvmeof.target.storage.filters.delay import DelayFilter
from nvmeof.target.storage.ramdisk import Ramdisk
from nvmeof.trace import CommandAdmitted, CommandCompleted, Side, TracedQueue, join

PEER = "192.0.2.1:5000"
WHERE = "took 1.250 s on queue 3 of controller 7, CID 0x12"
IO = TracedQueue(Side.TARGET, PEER, 3, 7, "nqn.2026-01.org.example:disk", "nqn.2026-01.org.example:host")
ADMIN = replace(IO, qid=0)
SLOW = CommandCompleted(IO, 10.0, 1, None, 5, [0x12], 131072, 0, 1.25)


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (SLOW, f"{PEER}: slow command: Write of namespace 5 (128K) {WHERE}"),
        (
            replace(SLOW, opcode=0, data_bytes=0, status=int(Status.WRITE_FAULT)),
            f"{PEER}: slow command: Flush of namespace 5 {WHERE}, failed: {describe_status(Status.WRITE_FAULT)}",
        ),
        (
            replace(SLOW, queue=ADMIN, opcode=0x7F, fctype=1, nsid=0, data_bytes=1024),
            "192.0.2.1:5000: slow command: Connect (1K) took 1.250 s on queue 0 of controller 7, CID 0x12",
        ),
        (replace(SLOW, seconds=0.999), None),
        (replace(SLOW, queue=ADMIN, opcode=0x0C, nsid=0), None),  # Asynchronous Event Request
        (replace(SLOW, opcode=0x0C, data_bytes=0), "192.0.2.1:5000: slow command: Verify of namespace 5 took 1.250 s"),
        (CommandAdmitted(IO, 10.0, 1, None, 5, [1], 0), None),
    ],
)
def test_lines(said, event, line) -> None:
    SlowCommandLog(1.0, logging.getLogger("x"))(event)
    lines = said()
    assert (lines == []) if line is None else (len(lines) == 1 and lines[0].startswith(line))


def test_lines_are_limited_by_host(said) -> None:
    listener = SlowCommandLog(1.0, logging.getLogger("x"))
    other = replace(SLOW, queue=replace(IO, peer="192.0.2.2:1"))
    for _ in range(BURST + 5):
        listener(SLOW)
    assert len(said()) == BURST
    listener(other)
    assert len(said()) == BURST + 1
    listener(replace(SLOW, at=12.0))
    assert said()[-1].endswith("CID 0x12 (5 lines about this peer were left out)")


@pytest.mark.parametrize("seconds", [0, -1.0, float("nan")])
def test_an_invalid_time(seconds: float) -> None:
    with pytest.raises(ConfigurationError, match="more than 0 seconds"):
        SlowCommandLog(seconds, logging.getLogger("x"))


async def test_a_slow_disk(said) -> None:
    backend = DelayFilter(Ramdisk("1M"), {Kind.WRITE: 0.05})
    log = SlowCommandLog(0.04, logging.getLogger("nvmeof.target"))
    async with (
        Target(namespaces=[NamespaceConfig(backend=backend)], trtype="memory", listen="slow:0", trace=join(log)) as it,
        await connect(it.address.host, it.address.port, subnqn=it.subnqn, transport="memory") as controller,
    ):
        await controller.namespace(1).read(0, 1)
        await controller.namespace(1).write(0, bytes(4096))
    [line] = [text for text in said() if "slow command: Write" in text]
    assert " slow command: Write of namespace 1 (4K) took " in line


def test_the_command_line() -> None:
    target = make_target(Options(ramdisk=("1M",), slow_command=0.5, listen=("127.0.0.1:0",)))
    assert target.trace is not None
    assert make_target(Options(ramdisk=("1M",), listen=("127.0.0.1:0",))).trace is None
