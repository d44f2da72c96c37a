"""Both programs with standard streams that are missing, full, blocked or have lost their reader, and Ctrl-C."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

NQN = "nqn.2026-01.org.example:streams"
HOST = [sys.executable, "-m", "nvmeof.host"]
TARGET = [sys.executable, "-m", "nvmeof.target"]
DEMONSTRATION = [sys.executable, "-m", "nvmeof"]
SIZE_MIB = 4
DEADLINE_SECONDS = 50.0  # a machine under load is slow; alone none of these takes so long
IDLE_SECONDS = 4.0

pytestmark = pytest.mark.timeout(240)

CLOSING = """
import os, sys
for descriptor in map(int, sys.argv[1].split(",")):
    os.close(descriptor)
os.execv(sys.argv[2], sys.argv[2:])
"""
FULL = Path("/dev/full")


def without(descriptors: str, command: Sequence[str]) -> list[str]:
    """Return the command, started without these descriptors."""
    return [sys.executable, "-c", CLOSING, descriptors, *command]


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Serve, and return the port."""
    process = subprocess.Popen(
        [*TARGET, "-t", "tcp", "-l", "127.0.0.1:0", "--ramdisk", f"{SIZE_MIB}M", "-n", NQN, "-q", "-o", "json"],
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    yield json.loads(process.stdout.readline())["listeners"][0]["port"]
    process.send_signal(signal.SIGINT)
    assert process.wait(DEADLINE_SECONDS) == 0
    process.stdout.close()


@pytest.fixture
def reserved_port() -> Iterator[int]:
    """Return a port that stays bound, so that no other program gets it, and on which a target can still listen."""
    with socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        yield reserved.getsockname()[1]


@pytest.fixture
def command(port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))

    def build(name: str, *options: object) -> list[str]:
        return [*HOST, name, "-t", "tcp", "-a", "127.0.0.1", "-s", str(port), "-n", NQN, *map(str, options)]

    return build


def run(arguments: Sequence[str], **streams) -> subprocess.CompletedProcess[str]:
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
    return subprocess.run(arguments, text=True, timeout=DEADLINE_SECONDS, **streams)


def blocked(process: subprocess.Popen[bytes], call: str) -> None:
    """Wait until one of the threads of a process sleeps in this system call (a part of /proc's wchan or stack name)."""
    end = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < end:
        assert process.poll() is None, f"it ended with {process.returncode}"
        for task in Path(f"/proc/{process.pid}/task").iterdir():
            with contextlib.suppress(OSError):
                if call in (task / "wchan").read_text():
                    return
        time.sleep(0.02)
    pytest.fail(f"the process never was in {call}")


# -- descriptors that are missing


@pytest.mark.parametrize("descriptors", ["0", "1", "2", "0,1", "0,2", "1,2", "0,1,2"])
def test_a_host_without_some_streams_runs_commands_that_need_none(command, tmp_path: Path, descriptors: str) -> None:
    data = os.urandom(8192)
    (tmp_path / "in").write_bytes(data)
    assert run(without(descriptors, command("write", "-d", tmp_path / "in"))).returncode == 0
    result = run(without(descriptors, command("read", "--blocks", 16, "-d", tmp_path / "out")))
    assert (result.returncode, result.stdout) == (0, "")
    assert (tmp_path / "out").read_bytes() == data
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("descriptors", "name", "words"),
    [
        ("1", "id-ctrl", "standard output is closed: redirect it"),
        ("1", "read", "standard output is closed: give a file with --data"),
        ("0", "write", "standard input is closed: give a file with --data"),
        ("0,1", "smart-log", "standard output is closed"),
    ],
)
def test_a_host_that_needs_a_missing_stream_reports_it(command, descriptors: str, name: str, words: str) -> None:
    result = run(without(descriptors, command(name)))
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert words in line


@pytest.mark.parametrize("descriptors", ["0", "1", "2", "0,1,2"])
def test_a_target_without_some_streams_serves(reserved_port: int, descriptors: str) -> None:
    arguments = [*TARGET, "-t", "tcp", "-l", f"127.0.0.1:{reserved_port}", "--ramdisk", "1M", "-n", NQN]
    process = subprocess.Popen(without(descriptors, arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        answer = None
        end = time.monotonic() + DEADLINE_SECONDS
        while (answer is None or answer.returncode) and time.monotonic() < end:
            assert process.poll() is None, process.communicate()
            answer = run(
                [*HOST, "id-ns", "-t", "tcp", "-a", "127.0.0.1", "-s", str(reserved_port), "-n", NQN, "-o", "json"]
            )
        assert answer is not None and answer.returncode == 0, answer
        # no connection got the number of a missing stream
        for descriptor in (0, 1, 2):
            assert "socket" not in str(Path(f"/proc/{process.pid}/fd/{descriptor}").readlink())
    finally:
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 0
    assert b"Traceback" not in err


def test_a_target_that_is_asked_for_json_needs_an_output() -> None:
    result = run(without("1", [*TARGET, "-t", "tcp", "-l", "127.0.0.1:0", "--ramdisk", "1M", "-o", "json"]))
    assert result.returncode == 2
    assert "standard output is closed" in result.stderr


# -- devices that are full, readers that are gone


@pytest.mark.parametrize(
    "arguments",
    [("id-ctrl",), ("id-ctrl", "-o", "json"), ("read",), ("get-log", "--log-id", 2, "-l", 512, "-b"), ("list",)],
)
def test_a_full_output_is_named(command, arguments: tuple[object, ...]) -> None:
    with FULL.open("wb") as full:
        result = run(command(*arguments), stdout=full)
    assert result.returncode == 1
    lines = [line for line in result.stderr.splitlines() if "stopped after" not in line]
    assert lines == ["nvmeof-host: standard output: No space left on device"]


def test_help_and_version_on_a_full_output() -> None:
    for program in (HOST, TARGET, DEMONSTRATION):
        for option in ("--help", "--version"):
            with FULL.open("wb") as full:
                result = run([*program, option], stdout=full)
            assert (result.returncode, len(result.stderr.splitlines())) == (1, 1), result.stderr
            assert "standard output: No space left on device" in result.stderr


def test_a_full_error_output_changes_no_exit_code(command, tmp_path: Path) -> None:
    with FULL.open("wb") as full:
        assert run(command("read", "-d", tmp_path / "out"), stderr=full).returncode == 0
        assert run(command("read", "--start-block", 1 << 40), stderr=full).returncode == 2
        assert run([*HOST, "-vv", *command("id-ns")[3:]], stderr=full).returncode == 0


def test_a_reader_that_goes_away_is_no_traceback(command) -> None:
    for arguments in (("id-ctrl",), ("get-log", "--log-id", 2, "-l", 512), ("read", "--blocks", 8192)):
        reading, writing = os.pipe()
        os.close(reading)
        result = run(command(*arguments), stdout=writing)
        os.close(writing)
        assert (result.returncode, result.stderr) == (1, "")


# -- Ctrl-C


def scheduled_seconds(process: subprocess.Popen[bytes]) -> float:
    """Return how long a process was running or ready to run: time that other processes took does not count."""
    running_ns, ready_ns, _ = Path(f"/proc/{process.pid}/schedstat").read_text().split()
    return (int(running_ns) + int(ready_ns)) / 1e9


def interrupted(process: subprocess.Popen[bytes]) -> tuple[bytes, bytes]:
    """Send SIGINT; check that the process ends at once, with exit code 130."""
    began, scheduled_before = time.monotonic(), scheduled_seconds(process)
    process.send_signal(signal.SIGINT)
    while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
        if time.monotonic() - began > DEADLINE_SECONDS:
            process.kill()
        time.sleep(0.01)
    idle = time.monotonic() - began - (scheduled_seconds(process) - scheduled_before)
    process.wait()
    out, err = b"", process.stderr.read() if process.stderr else b""
    assert process.returncode == 130, err
    assert idle < IDLE_SECONDS
    assert b"Traceback" not in err and b"Fatal" not in err
    return out, err


def test_ctrl_c_while_stdin_is_silent(command) -> None:
    for sent in (b"", bytes(512)):
        with subprocess.Popen(command("write"), stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdin is not None
            process.stdin.write(sent)
            process.stdin.flush()
            blocked(process, "pipe_read")
            _, err = interrupted(process)
            assert err == b"nvmeof-host: interrupted\n"


@pytest.mark.parametrize(
    "arguments",
    [("read", "--blocks", SIZE_MIB << 11), ("get-log", "--log-id", 2, "-l", 512), ("id-ctrl", "-o", "json")],
)
def test_ctrl_c_while_stdout_is_blocked(command, arguments: tuple[object, ...]) -> None:
    reading, writing = os.pipe()
    while select.select([], [writing], [], 0)[1]:
        os.write(writing, bytes(4096))
    try:
        with subprocess.Popen(command(*arguments), stdout=writing, stderr=subprocess.PIPE) as process:
            blocked(process, "pipe_write" if arguments[0] == "read" else "poll")
            time.sleep(0.3)
            _, err = interrupted(process)
            assert err.endswith(b"nvmeof-host: interrupted\n")
    finally:
        os.close(reading)
        os.close(writing)


def test_ctrl_c_while_both_outputs_are_blocked(command) -> None:
    reading, writing = os.pipe()
    while select.select([], [writing], [], 0)[1]:
        os.write(writing, bytes(4096))
    try:
        with subprocess.Popen(command("read", "--blocks", 64), stdout=writing, stderr=writing) as process:
            blocked(process, "pipe_write")
            interrupted(process)
    finally:
        os.close(reading)
        os.close(writing)


def test_ctrl_c_while_a_named_pipe_has_no_other_end(command, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for arguments in (("write", "-d", tmp_path / "fifo"), ("read", "-d", tmp_path / "fifo")):
        with subprocess.Popen(command(*arguments), stderr=subprocess.PIPE) as process:
            blocked(process, "wait_for_partner")
            _, err = interrupted(process)
            assert err == b"nvmeof-host: interrupted\n"


def test_ctrl_c_while_the_target_does_not_answer(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        where = ["-t", "tcp", "-a", "127.0.0.1", "-s", str(silent.getsockname()[1]), "-n", NQN]
        for name in ("id-ctrl", "read", "bench", "connect", "list", "discover"):
            options = where[:-2] if name == "discover" else where
            with subprocess.Popen([*HOST, name, *options], stderr=subprocess.PIPE) as process:
                silent.settimeout(DEADLINE_SECONDS)
                connection, _ = silent.accept()
                with connection:
                    _, err = interrupted(process)
                    assert err == b"nvmeof-host: interrupted\n"


@pytest.mark.parametrize("program", [HOST, TARGET, DEMONSTRATION])
@pytest.mark.parametrize("after_seconds", [0.12, 0.2, 0.3])
def test_ctrl_c_while_modules_are_imported(program: list[str], after_seconds: float) -> None:
    # the import of rich hangs, as if the disk were slow
    hook = "import sys, time, runpy\nclass Slow:\n  def find_spec(self, name, *a):\n    if name == 'click':\n"
    hook += "      print('importing', flush=True); time.sleep(30)\nsys.meta_path.insert(0, Slow())\n"
    hook += f"sys.argv = ['x', 'id-ctrl']\nrunpy.run_module({program[2]!r}, run_name='__main__')"
    with subprocess.Popen([sys.executable, "-c", hook], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"importing\n"
        time.sleep(after_seconds)
        _, err = interrupted(process)
        assert err == b""


def test_a_target_goes_on_when_its_output_is_not_read(reserved_port: int) -> None:
    reading, writing = os.pipe()
    while select.select([], [writing], [], 0)[1]:
        os.write(writing, bytes(4096))
    arguments = [*TARGET, "-t", "tcp", "-l", f"127.0.0.1:{reserved_port}", "--ramdisk", "1M", "-n", NQN, "-v"]
    process = subprocess.Popen(arguments, stdout=writing, stderr=writing)
    try:
        end = time.monotonic() + DEADLINE_SECONDS
        code = 1
        while code and time.monotonic() < end:
            assert process.poll() is None
            code = run([*HOST, "id-ns", "-t", "tcp", "-a", "127.0.0.1", "-s", str(reserved_port), "-n", NQN]).returncode
        assert code == 0
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE_SECONDS) == 0
    finally:
        process.kill()
        process.wait()
        os.close(reading)
        os.close(writing)
