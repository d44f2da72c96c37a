"""Input and output of the host's command line: help, narrow terminals, numbers, JSON keys, files and bench."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pty
import re
import signal
import stat
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeof.cli import help as cli_help
from nvmeof.cli.types import Bytes, Number, Seconds, parse_integer
from nvmeof.errors import ConfigurationError
from nvmeof.host.__main__ import cli, main
from nvmeof.host.cli import nvme_json
from nvmeof.protocol.connection import ConnectionConfig
from nvmeof.spec.enums import NvmOpcode
from nvmeof.spec.status import Status

from .fake_device import SUBNQN, FakeDevice
from .fake_target import FakeTarget
from .test_main import log

UUID_NQN = "nqn.2014-08.org.nvmexpress:uuid:6c616200-0000-4000-8000-000000000001"


@pytest.fixture
def target(device: FakeDevice, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeTarget]:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    loop = asyncio.new_event_loop()
    fake = FakeTarget(device, "tcp", ConnectionConfig(incapsule_bytes=8192, header_digest=True, data_digest=True))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    asyncio.run_coroutine_threadsafe(fake.start(), loop).result(5)
    device.discovery_log = log(fake.port, SUBNQN)
    yield fake
    asyncio.run_coroutine_threadsafe(fake.stop(), loop).result(5)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(5)
    loop.close()


def words(target: FakeTarget, command: str, *arguments: object, nqn: str | None = SUBNQN) -> list[str]:
    where = ["-t", "tcp", "-a", "127.0.0.1", "-s", str(target.port)]
    return [command, *where, *(["-n", nqn] if nqn else []), *map(str, arguments)]


# -- help


def commands() -> list[tuple[str, click.Command]]:
    found = []
    for name, command in cli.commands.items():
        if isinstance(command, click.Group):
            found += [(f"{name} {each}", sub) for each, sub in command.commands.items()]
        found.append((name, command))
    return found


@pytest.mark.parametrize("arguments", [[], ["paths"]])
def test_no_arguments_show_the_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(f"Usage: {' '.join(['nvmeof-host', *arguments])} ")
    assert "Commands:\n" in captured.out
    assert captured.err == ""


@pytest.mark.parametrize("name", [name for name, _ in commands()])
def test_help_is_short_and_begins_with_the_commands_own_options(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main([*name.split(), "--help"]) == 0
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) < (64 if name == "connect" else 48)
    assert "\\x" not in text
    if "Connection:" not in lines:
        return
    own, shared = text.split("\nConnection:\n")
    assert "--output-format" in own or name in ("read", "write", "flush", "write-zeroes", "dsm", "config")
    assert "--traddr" in shared and ("--mptcp-subflow" in shared or name in ("discover", "config"))
    # names are whole, so that they can be copied
    assert not re.search(r"--[a-z-]*-$", text, re.MULTILINE)


def test_every_option_is_explained_by_connect(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["connect", "--help"]) == 0
    shown = capsys.readouterr().out
    for _, command in commands():
        for parameter in command.params:
            if isinstance(parameter, cli_help.GroupedOption):
                assert max(parameter.opts, key=len) in shown


# -- numbers


@pytest.mark.parametrize(("name", "command"), commands(), ids=[name for name, _ in commands()])
def test_every_number_may_be_hexadecimal(name: str, command: click.Command) -> None:
    for parameter in command.params:
        assert not isinstance(
            parameter.type, type(click.INT) | type(click.FLOAT) | click.IntRange | click.FloatRange
        ), f"{name} {parameter.name}"
        if isinstance(parameter.type, Number | Seconds | Bytes):
            assert parameter.type.convert("0x2", None, None) == 2 == parameter.type.convert("2", None, None)


@given(st.integers(0, (1 << 64) - 1))
def test_numbers_are_read_as_they_are_written(value: int) -> None:
    for text in (str(value), hex(value), f" {value:#X} ", f"{value:025d}"):
        assert parse_integer(text) == value
    assert Number(0, (1 << 64) - 1).convert(hex(value), None, None) == value
    assert Bytes().convert(hex(value), None, None) == value


@given(st.text(max_size=12))
def test_invalid_numbers_are_refused_in_one_way(text: str) -> None:
    for kind in (Number(0, 255), Bytes(1 << 40), Seconds(0.01)):
        try:
            value = kind.convert(text, None, None)
        except click.BadParameter as error:
            assert str(error.format_message())
        else:
            assert 0 <= value <= 1 << 40


@pytest.mark.parametrize(
    "arguments",
    [
        ["read", "--start-block", "0x" + "f" * 40],
        ["read", "--blocks", str(1 << 64)],
        ["read", "-z", "99999999P"],
        ["read", "-z", "9" * 5000],
        ["write-zeroes", "--start-block", str((1 << 64) - 1), "-c", str((1 << 64) - 1)],
        ["dsm", "--ad", "--slbs", str(1 << 70), "--blocks", "1"],
        ["dsm", "--ad", "--slbs", "0", "--blocks", str(1 << 33)],
        ["get-log", "--log-id", "256", "-l", "4"],
        ["get-log", "--log-id", "2", "-l", "1T"],
        ["get-log", "--log-id", "2", "-l", "4", "--offset", str(1 << 64)],
        ["get-feature", "--feature-id", "0x100"],
        ["id-ns", "-N", str(1 << 32)],
        ["id-ctrl", "-i", "65536"],
        ["id-ctrl", "-Q", "70000"],
        ["id-ctrl", "--tos", "256"],
        ["id-ctrl", "--timeout", "nan"],
        ["id-ctrl", "--timeout", "inf"],
        ["id-ctrl", "--keep-alive-tmo", "1e300"],
        ["id-ctrl", "-s", "65536"],
        ["bench", "--runtime", "0"],
        ["bench", "-d", "4096"],
        ["bench", "-b", "16E"],
    ],
)
def test_huge_values_are_one_sentence(
    target: FakeTarget, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert main(words(target, *arguments)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("nvmeof-host: ")


# -- a terminal of 80 columns


class Terminal:
    """A command on a pseudo terminal."""

    def __init__(self, arguments: list[str], columns: int = 80, **environment: str) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
        settings = {**os.environ, "TERM": "xterm", **environment}
        settings.pop("COLUMNS", None)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "nvmeof.host", *arguments],
            stdin=slave, stdout=slave, stderr=slave, env=settings, start_new_session=True,
        )  # fmt: skip
        os.close(slave)
        self.text = ""

    def read_until(self, pattern: str) -> None:
        while not re.search(pattern, self.text) and self._more():
            pass
        assert re.search(pattern, self.text), self.text

    def _more(self) -> bool:
        try:
            piece = os.read(self._master, 65536)
        except OSError:  # the other end is closed
            return False
        self.text += piece.decode().replace("\r\n", "\n")
        return bool(piece)

    def finish(self) -> int:
        while self._more():
            pass
        os.close(self._master)
        return self.process.wait(20)


@pytest.mark.parametrize("columns", [60, 80, 100, 200])
@pytest.mark.parametrize("command", ["discover", "list"])
def test_names_stay_on_one_line(target: FakeTarget, device: FakeDevice, columns: int, command: str) -> None:
    device.discovery_log = log(target.port, UUID_NQN, UUID_NQN[:-1] + "2")
    terminal = Terminal(words(target, command, nqn=None), columns)
    assert terminal.finish() == 0, terminal.text
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in terminal.text.splitlines()]
    for name in (UUID_NQN, UUID_NQN[:-1] + "2"):
        (line,) = [line for line in lines if name in line]
        # the name is not folded: it begins in a column from which it fits, or is alone in its line
        assert line.index(name) + len(name) <= columns or line == name
    assert all(len(line) <= max(columns, len(UUID_NQN)) for line in lines)


def test_no_colour_where_not_wanted(target: FakeTarget) -> None:
    plain = Terminal(words(target, "list", nqn=None), 200, TERM="dumb", NO_COLOR="1")
    assert plain.finish() == 0
    assert "\x1b" not in plain.text


def test_bench_shows_its_progress_and_prints_its_results_when_interrupted(target: FakeTarget) -> None:
    terminal = Terminal(words(target, "bench", "--runtime", 60, "-d", 2))
    terminal.read_until(r"bench: 1\.0 of 60 s, [\d,]+ IOPS, [\d,.]+ MB/s")
    assert terminal.text.count("\n") == 0, "one line, in place"
    terminal.process.send_signal(signal.SIGINT)
    began = time.monotonic()
    assert terminal.finish() == 130
    assert time.monotonic() - began < 5
    assert re.search(r"measured +: 1\.\d\d s, ended early", terminal.text)
    assert int(re.search(r"IOPS +: ([\d,]+)", terminal.text)[1].replace(",", "")) > 10  # type: ignore[index]
    assert terminal.text.splitlines()[-1] == "nvmeof-host: interrupted"


def test_bench_in_json_when_it_is_interrupted(target: FakeTarget, device: FakeDevice) -> None:
    command = [sys.executable, "-m", "nvmeof.host", *words(target, "bench", "--runtime", 60, "-o", "json")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        while not device.sent(NvmOpcode.READ):
            assert process.poll() is None
            time.sleep(0.02)
        time.sleep(2)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=50)
    result = json.loads(out)
    assert (process.returncode, err, result["complete"]) == (130, b"nvmeof-host: interrupted\n", False)
    assert result["ios"] > 10 and result["seconds"] < 10


def test_bench_prints_its_results_when_a_command_fails(
    target: FakeTarget, device: FakeDevice, capsys: pytest.CaptureFixture[str]
) -> None:
    began = time.monotonic()

    def fail(request: object, sqe: object) -> object:
        late = getattr(sqe, "opcode", 0) == NvmOpcode.READ and time.monotonic() > began + 1.5
        return (0, int(Status.UNRECOVERED_READ_ERROR)) if late else "default"

    device.intercept = fail  # type: ignore[assignment]
    assert main(words(target, "bench", "--runtime", 60)) == 1
    captured = capsys.readouterr()
    assert "ended early" in captured.out
    assert len(captured.err.splitlines()) == 1 and "Read failed" in captured.err


# -- files


def test_a_file_is_not_touched_before_all_of_the_data_is_there(
    target: FakeTarget, device: FakeDevice, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from nvmeof.host.cli import data

    monkeypatch.setattr(data, "CHUNK_BYTES", 64 * 512)
    precious = tmp_path / "precious"
    precious.write_bytes(b"precious")
    precious.chmod(0o640)
    # a block too many
    assert main(words(target, "read", "--blocks", 4097, "-d", "precious")) == 2
    assert precious.read_bytes() == b"precious" and sorted(tmp_path.glob("precious*")) == [precious]
    assert "blocks 0 to 4096 reach beyond the end of namespace 1: it has 4096 blocks" in capsys.readouterr().err

    def fail(request: object, sqe: object) -> object:
        late = getattr(sqe, "opcode", 0) == NvmOpcode.READ and getattr(sqe, "cdw10", 0) >= 1024
        return (0, int(Status.UNRECOVERED_READ_ERROR)) if late else "default"

    device.intercept = fail  # type: ignore[assignment]
    assert main(words(target, "read", "--blocks", 2048, "-d", "precious")) == 1
    assert precious.read_bytes() == b"precious"
    partial = tmp_path / "precious.1.partial"
    told, reason = capsys.readouterr().err.splitlines()
    assert told == (
        f"nvmeof-host: stopped after {partial.stat().st_size} of 1048576 bytes, which are in {partial}; "
        "precious is as it was"
    )
    assert "Read failed" in reason
    assert partial.read_bytes() == device.memory[: partial.stat().st_size] and partial.stat().st_size >= 512 * 896
    # the file is replaced at the end, with its mode, also behind a link; the file before is not overwritten
    device.intercept = None
    (tmp_path / "link").symlink_to("precious")
    assert main(words(target, "read", "--blocks", 2048, "-d", "link")) == 0
    assert precious.read_bytes() == device.memory[: 2048 * 512]
    assert (tmp_path / "link").is_symlink() and stat.S_IMODE(precious.stat().st_mode) == 0o640
    assert partial.exists() and len(list(tmp_path.glob("*.partial"))) == 1


@pytest.mark.parametrize("cancelled", [False, True])
def test_the_remark_of_a_stopped_read_matches_the_file(
    cancelled: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command waits for a thread that still writes when the read fails, before it closes the file."""
    from nvmeof.host.cli import files

    inside, write = threading.Event(), os.write

    def slow(fd: int, data: bytes) -> int:
        inside.set()
        time.sleep(0.2)
        return write(fd, data)

    monkeypatch.setattr(files.os, "write", slow)

    async def body() -> None:
        sink = files.Sink(str(tmp_path / "data"))
        with sink.filling(3 << 20):
            writing = asyncio.ensure_future(sink.write(memoryview(bytes(3 << 20))))
            await asyncio.sleep(0.02)
            assert inside.wait(5)
            if cancelled:
                writing.cancel()
            raise ConfigurationError("an error beside the write")

    with pytest.raises(ConfigurationError, match="beside the write"):
        asyncio.run(body())
    partial = tmp_path / "data.1.partial"
    assert f"stopped after {1 << 20} of {3 << 20} bytes" in capsys.readouterr().err
    assert partial.stat().st_size == 1 << 20


def test_devices_and_pipes_are_written_in_place(target: FakeTarget, tmp_path: Path) -> None:
    assert main(words(target, "read", "-d", "/dev/null")) == 0
    os.mkfifo(tmp_path / "fifo")
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append((tmp_path / "fifo").read_bytes()))
    reader.start()
    assert main(words(target, "read", "--blocks", 3, "-d", "fifo")) == 0
    reader.join(10)
    assert list(map(len, found)) == [1536]
    assert not list(tmp_path.glob("*.partial"))


def test_a_write_that_does_not_fit_writes_nothing(
    target: FakeTarget, device: FakeDevice, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "long").write_bytes(b"\xff" * (4096 * 512 + 1))
    (tmp_path / "short").write_bytes(b"\xff" * 512)
    before = bytes(device.memory)
    assert main(words(target, "write", "-d", "long")) == 2
    assert main(words(target, "write", "-d", "short", "--blocks", 2)) == 2
    assert main(words(target, "write", "-d", "short", "--start-block", 4096)) == 2
    assert bytes(device.memory) == before
    assert len(capsys.readouterr().err.splitlines()) == 3


def test_a_write_that_fails_reports_how_far_it_came(
    target: FakeTarget, device: FakeDevice, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from nvmeof.host.cli import data

    monkeypatch.setattr(data, "CHUNK_BYTES", 64 * 512)
    (tmp_path / "in").write_bytes(bytes(512 * 512))

    def fail(request: object, sqe: object) -> object:
        late = getattr(sqe, "opcode", 0) == NvmOpcode.WRITE and getattr(sqe, "cdw10", 0) >= 256
        return (0, int(Status.WRITE_FAULT)) if late else "default"

    device.intercept = fail  # type: ignore[assignment]
    assert main(words(target, "write", "-d", "in")) == 1
    told, reason = capsys.readouterr().err.splitlines()
    assert told == "nvmeof-host: stopped after 131072 bytes, in 256 blocks from block 0"
    assert "Write failed" in reason


# -- JSON


@pytest.mark.parametrize(
    ("treq", "text"),
    [
        (0, "not specified"),
        (1, "required"),
        (2, "not required"),
        (4, "not specified, sq flow control disable supported"),
        (5, "required, sq flow control disable supported"),
        (6, "not required, sq flow control disable supported"),
        (3, "unrecognized"),
        (8, "unrecognized"),
    ],
)
def test_treq_in_words(treq: int, text: str) -> None:
    assert nvme_json.treq_text(treq) == text


@pytest.mark.parametrize(
    ("eflags", "text"),
    [
        (0, "none"),
        (1, "duplicate discovery information"),
        (2, "explicit discovery connections"),
        (3, "explicit discovery connections, duplicate discovery information"),
        (6, "explicit discovery connections, no cdc connectivity"),
        (8, "unrecognized"),
    ],
)
def test_eflags_in_words(eflags: int, text: str) -> None:
    assert nvme_json.eflags_text(eflags) == text


def test_json_has_the_keys_of_nvme_cli(target: FakeTarget, capsys: pytest.CaptureFixture[str]) -> None:
    def shown(command: str, *arguments: object, nqn: str | None = SUBNQN) -> dict[str, object]:
        assert main(words(target, command, *arguments, "-o", "json", nqn=nqn)) == 0
        found: dict[str, object] = json.loads(capsys.readouterr().out)
        return found

    found = shown("discover", nqn=None)
    assert found["genctr"] == 1
    (record,) = found["records"]  # type: ignore[misc]
    assert {name: record[name] for name in ("treq", "eflags", "sectype", "adrfam")} == {
        "treq": "not specified", "eflags": "none", "sectype": "none", "adrfam": "ipv4",
    }  # fmt: skip
    controller = shown("id-ctrl")
    assert controller["mn"] == "Fake controller".ljust(40) and controller["ieee"] == 0
    assert len(controller["psds"]) == 1 and "ocfs" in controller  # type: ignore[arg-type]
    assert controller["fguid"] == "00000000-0000-0000-0000-000000000000"
    namespace = shown("id-ns")
    assert namespace["lbafs"] == [{"ms": 0, "ds": 9, "rp": 0}]
    smart = shown("smart-log")
    assert smart["temperature"] == 300 and "num_err_log_entries" in smart and "avail_spare" in smart
    assert not any(name.startswith("composite") for name in smart)


def test_gen_hostnqn_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gen-hostnqn", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["hostnqn"].startswith("nqn.2014-08.org.nvmexpress:uuid:")


def test_features_of_a_controller_are_marked(target: FakeTarget, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(target, "error-log")) == 0
    captured = capsys.readouterr()
    assert captured.out == "" and "controller was made for this command" in captured.err
    assert main(words(target, "get-feature", "--feature-id", "0xf")) == 0
    captured = capsys.readouterr()
    assert "(Keep alive timer)" in captured.out and "timeout seconds" in captured.out
    assert "made for this command" in captured.err
    assert main(words(target, "get-feature", "--feature-id", "0xf", "--sel", "3", "-o", "json")) == 0
    captured = capsys.readouterr()
    assert set(json.loads(captured.out)["meaning"]) == {"saveable", "namespace specific", "changeable"}
    assert captured.err == ""


def test_a_list_without_a_namespace_is_reported(
    target: FakeTarget, device: FakeDevice, capsys: pytest.CaptureFixture[str]
) -> None:
    device.active.clear()
    assert main(words(target, "list")) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("Node") and len(captured.out.splitlines()) == 1
    assert "no namespaces: none is attached to this host" in captured.err
