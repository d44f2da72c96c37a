"""Options of recovery on the command line, against a fake target that cuts connections."""

# ruff: noqa: F811

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest

from nvmeof.host.__main__ import cli
from nvmeof.host.queue import Request
from nvmeof.spec.enums import AdminOpcode, NvmOpcode
from nvmeof.spec.sqe import Sqe

from .fake_device import SUBNQN, FakeDevice
from .fake_target import FakeTarget
from .test_main import Run, run, target  # noqa: F401

FAST = ("--reconnect-delay", "0.05", "--ctrl-loss-tmo", "20")


class Cut:
    """A fault: all connections are cut at the first ``times`` commands of an opcode, before their execution."""

    def __init__(self, target: FakeTarget, opcode: int, times: int) -> None:
        self.target = target
        self.opcode = opcode
        self.left = times
        target.device.intercept = self

    def __call__(self, request: Request, sqe: Sqe) -> tuple[int, int] | str | None:
        admin = isinstance(self.opcode, AdminOpcode)
        if bool(request.queue.qid) is not admin and sqe.opcode == self.opcode and self.left:
            self.left -= 1
            for link in self.target.accepted:
                link.endpoint.abort()
            return None
        return "default"


def test_a_read_survives_lost_connections(
    run: Run,
    target: FakeTarget,
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    target.device.memory[:5] = b"hello"
    cut = Cut(target, NvmOpcode.READ, 2)
    assert run("read", *FAST, "--data-size", 512) == 0
    assert cut.left == 0
    assert capfdbinary.readouterr().out == b"hello".ljust(512, b"\0")


def test_a_write_survives_lost_connections(
    run: Run,
    target: FakeTarget,
    tmp_path: Path,
) -> None:
    cut = Cut(target, NvmOpcode.WRITE, 1)
    source = tmp_path / "source"
    source.write_bytes(b"kept".ljust(1024))
    assert run("write", *FAST, "-d", source) == 0
    assert cut.left == 0 and target.device.memory[:1024] == b"kept".ljust(1024)


def test_without_the_options_a_loss_is_an_error_with_the_known_outcome(
    run: Run,
    target: FakeTarget,
    capfd: pytest.CaptureFixture[str],
) -> None:
    Cut(target, NvmOpcode.READ, 1)
    assert run("read", "--data-size", 512) != 0
    error = capfd.readouterr().err
    assert "whether the command was executed is not known" in error and "Traceback" not in error


def test_a_target_that_stays_away_is_one_sentence(
    run: Run,
    target: FakeTarget,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def refuse(request: Request, sqe: Sqe) -> tuple[int, int] | str | None:
        if request.queue.qid and sqe.opcode == NvmOpcode.READ:
            for listener in target.listeners:
                listener.close()
            for link in target.accepted:
                link.endpoint.abort()
            return None
        return "default"

    target.device.intercept = refuse
    assert run("read", "--reconnect-delay", "0.05", "-l", "0.1", "--data-size", 512) != 0
    error = capfd.readouterr().err
    assert "Traceback" not in error and "no path" in error


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--reconnect-delay", "0"), "reconnect_delay must be a number of seconds, more than 0"),
        (("-l", "-0.5"), "ctrl_loss_tmo must be a number of seconds, 0 or more, or -1 for ever"),
        (("-F", "-1"), "negative"),
        (("-l", "-2"), "not a number of seconds in the range"),
    ],
)
def test_invalid_times(
    run: Run,
    arguments: tuple[str, str],
    sentence: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert run("read", *arguments, "--data-size", 512) == 2
    assert sentence in " ".join(capfd.readouterr().err.split())


@pytest.mark.parametrize("name", ["bench", "read", "write", "flush", "write-zeroes", "dsm"])
def test_names_are_those_of_nvme_cli(name: str) -> None:
    options = {opt for each in cli.commands[name].params if isinstance(each, click.Option) for opt in each.opts}
    assert {
        "--reconnect-delay",
        "-l",
        "--ctrl-loss-tmo",
        "-F",
        "--fast_io_fail_tmo",
        "-k",
        "--keep-alive-tmo",
    } <= options
    assert "-c" in options  # the delay's, or the command's own


def test_connect_reports_changes_of_a_path(target: FakeTarget, tmp_path: Path) -> None:
    where = ["-t", "tcp", "-a", "127.0.0.1", "-s", str(target.port), "-n", SUBNQN]
    process = subprocess.Popen(
        [sys.executable, "-m", "nvmeof.host", "connect", *where, *FAST, "-k", "0.5"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "XDG_CONFIG_HOME": str(tmp_path)},
    )
    assert process.stdout is not None and process.stderr is not None
    while "Ctrl-C" not in (line := process.stdout.readline()):
        assert line, process.communicate()[1]
    Cut(target, AdminOpcode.KEEP_ALIVE, 1)
    told = [process.stderr.readline() for _ in range(3)]
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=50)
    assert (process.returncode, out) == (0, "disconnected\n")
    states = [line.split(": ", 2)[2].split(" (")[0].strip() for line in told]
    assert states == ["resetting", "connecting", "live"]
    assert "(" in told[0]  # and its reason


def test_the_device_of_this_test_reports_no_cqt() -> None:
    assert "cqt" not in FakeDevice().identify
