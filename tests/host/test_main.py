"""The command line against a fake target in another thread: output, exit codes, sentences."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nvmeof.host.__main__ import main
from nvmeof.host.cli import output
from nvmeof.host.queue import Request
from nvmeof.protocol.connection import ConnectionConfig
from nvmeof.spec.discovery import build_discovery_entry, build_discovery_log
from nvmeof.spec.enums import DISCOVERY_NQN, FABRICS_OPCODE, FabricsType, NvmOpcode

from .fake_device import SUBNQN, FakeDevice
from .fake_target import FakeTarget

Run = Callable[..., int]


@pytest.fixture
def target(device: FakeDevice) -> Iterator[FakeTarget]:
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


def log(port: int, *names: str) -> bytes:
    return build_discovery_log(
        1,
        [
            build_discovery_entry(trtype=3, adrfam=1, subtype=2, trsvcid=str(port), subnqn=name, traddr="127.0.0.1")
            for name in names
        ],
    )


@pytest.fixture
def run(target: FakeTarget, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)

    def call(command: str, *arguments: object, nqn: str | None = SUBNQN) -> int:
        where = ["-t", "tcp", "-a", "127.0.0.1", "-s", str(target.port)]
        if nqn is not None and command != "discover":
            where += ["-n", nqn]
        return main([command, *where, *map(str, arguments)])

    return call


def test_discover(run: Run, target: FakeTarget, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("discover") == 0
    heading, row = capsys.readouterr().out.splitlines()
    assert heading.split()[0] == "Transport"
    assert row.split() == ["tcp", f"127.0.0.1:{target.port}", "ipv4", "nvm", "none", SUBNQN]
    assert run("discover", "-o", "json") == 0
    (record,) = json.loads(capsys.readouterr().out)["records"]
    assert (record["trtype"], record["subnqn"], record["subtype"]) == ("tcp", SUBNQN, "nvme subsystem")


def test_list(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list", nqn=None) == 0
    heading, row = capsys.readouterr().out.splitlines()
    assert row.split() == [
        "nvme0n1", SUBNQN, "FAKE", "Fake", "controller", "1", "0", "B", "/", "2.10", "MB", "512", "B", "tcp",
    ]  # fmt: skip
    # the columns stand under their headings
    for name, value in (("Serial", "FAKE"), ("Format", "512 B"), ("Transport", "tcp")):
        assert heading.index(name) == row.index(value, heading.index(name) - 1)
    assert run("list", "-o", "json") == 0
    (device,) = json.loads(capsys.readouterr().out)["Devices"]
    assert (device["SectorSize"], device["PhysicalSize"], device["Protocol"]) == (512, 4096 * 512, "tcp")


def test_list_names_unreachable_subsystems(
    run: Run, device: FakeDevice, target: FakeTarget, capsys: pytest.CaptureFixture[str]
) -> None:
    other = build_discovery_entry(trtype=3, adrfam=1, subtype=2, trsvcid="1", subnqn=SUBNQN + "2", traddr="127.0.0.1")
    device.discovery_log = build_discovery_log(1, [other, log(target.port, SUBNQN)[1024:]])
    assert run("list", nqn=None) == 0
    captured = capsys.readouterr()
    assert SUBNQN in captured.out
    assert f"{SUBNQN}2: connection refused" in captured.err


def test_list_connects_once_for_each_path_until_one_answers(
    run: Run, device: FakeDevice, target: FakeTarget, capsys: pytest.CaptureFixture[str]
) -> None:
    def entry(port: object, traddr: str = "127.0.0.1", **form: int) -> bytes:
        fields = {"trtype": 3, "adrfam": 1, "subtype": 2, "trsvcid": str(port), "subnqn": SUBNQN, "traddr": traddr}
        return build_discovery_entry(**{**fields, **form})  # type: ignore[arg-type]

    names: list[str] = []

    def note(request: Request, sqe: object) -> str:
        if (getattr(sqe, "opcode", 0), getattr(sqe, "fctype", 0)) == (FABRICS_OPCODE, FabricsType.CONNECT):
            names.append(bytes(request.data_out or b"")[256:512].split(b"\0")[0].decode())
        return "default"

    device.intercept = note  # type: ignore[assignment]
    twice = [entry(target.port, trtype=4), entry(target.port), entry(target.port, prottype=1)]
    again = entry(target.port, traddr="::ffff:127.0.0.1")
    device.discovery_log = build_discovery_log(1, [entry(1), *twice, entry("x"), again])
    assert run("list", nqn=None) == 0
    captured = capsys.readouterr()
    assert captured.out.count(SUBNQN) == 1
    assert captured.err == (
        f"nvmeof-host: left out an entry of {SUBNQN}: the discovery entry of {SUBNQN} has no port number: 'x'\n"
    )
    assert names == [DISCOVERY_NQN, SUBNQN, SUBNQN], "discovery, then one admin and one I/O queue"
    device.discovery_log = build_discovery_log(1, [entry(1), entry(1, trtype=4), entry(2)])
    assert run("list", nqn=None) == 1
    assert "connection refused by 127.0.0.1:2" in capsys.readouterr().err


def test_identify(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("id-ctrl") == 0
    text = capsys.readouterr().out
    assert "mdts      : 5 (128 KiB)" in text
    assert "mn        : Fake controller" in text
    assert run("id-ctrl", "-o", "json") == 0
    assert json.loads(capsys.readouterr().out)["ioccsz"] == 516
    assert run("id-ns") == 0
    assert "lbads 9 (512 B)  rp 0 (in use)" in capsys.readouterr().out
    assert run("id-ns", "-o", "json") == 0
    parsed = json.loads(capsys.readouterr().out)
    assert (parsed["nsze"], len(parsed["lbafs"])) == (4096, 1)


def test_escape_sequences_of_a_controller_stay_harmless(
    run: Run, device: FakeDevice, capsys: pytest.CaptureFixture[str]
) -> None:
    device.identify["mn"] = "\x1b]0;owned\x07[red]x[/red]"
    for command in ("id-ctrl", "list"):
        assert run(command) == 0
        text = capsys.readouterr().out
        assert "\x1b" not in text
        assert "[red]x[/red]" in text


def test_logs_and_features(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("smart-log") == 0
    assert "27 °C" in capsys.readouterr().out
    assert run("smart-log", "-o", "json") == 0
    assert json.loads(capsys.readouterr().out)["temperature"] == 300
    assert run("error-log", "-o", "json") == 0
    assert json.loads(capsys.readouterr().out) == {"errors": []}
    assert run("get-log", "--log-id", "2", "-l", "512") == 0
    assert capsys.readouterr().out.startswith("0000: 00 2c 01")
    assert run("get-log", "--log-id", "2", "-l", "8", "-o", "json") == 0
    assert json.loads(capsys.readouterr().out) == {"log": 2, "offset": 0, "data": "002c010000000000"}
    assert run("get-feature", "--feature-id", "0x7") == 0
    assert capsys.readouterr().out.splitlines() == [
        "get-feature:0x07 (Number of queues), value:0x00000000",
        "  submission queues : 1",
        "  completion queues : 1",
    ]


@pytest.mark.parametrize("digests", [[], ["-g", "-G"]])
def test_writing_and_reading_files(run: Run, device: FakeDevice, tmp_path: Path, digests: list[str]) -> None:
    data = os.urandom(1000 * 512 - 100)
    (tmp_path / "in").write_bytes(data)
    assert run("write", "--start-block", "10", "-d", "in", *digests) == 0
    assert device.memory[10 * 512 : 1010 * 512] == data + bytes(100)
    assert run("read", "--start-block", "10", "-z", len(data), "-d", "out", *digests) == 0
    assert (tmp_path / "out").read_bytes() == data
    # nvme-cli's block count is 0's-based
    assert run("read", "--start-block", "10", "-c", "1", "-d", "two") == 0
    assert (tmp_path / "two").read_bytes() == data[:1024]
    assert run("read", "--start-block", "10", "--blocks", "3", "-d", "three") == 0
    assert (tmp_path / "three").read_bytes() == data[:1536]


def test_transfers_longer_than_a_chunk(
    run: Run, device: FakeDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nvmeof.host.cli import data as module

    monkeypatch.setattr(module, "CHUNK_BYTES", 64 * 512)
    data = os.urandom(1000 * 512)
    (tmp_path / "in").write_bytes(data)
    assert run("write", "-d", "in", "--fua") == 0
    assert device.memory[: len(data)] == data
    assert run("read", "--blocks", "1000", "-d", "out") == 0
    assert (tmp_path / "out").read_bytes() == data


def test_reading_to_stdout(run: Run, device: FakeDevice, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    device.memory[:512] = b"\xa5" * 512
    assert run("read") == 0
    captured = capfdbinary.readouterr()
    assert captured.out == b"\xa5" * 512
    assert captured.err == b"nvmeof-host: read 512 bytes from block 0 of namespace 1\n"


def test_other_io_commands(run: Run, device: FakeDevice) -> None:
    device.memory[:] = b"\xff" * len(device.memory)
    assert run("write-zeroes", "--start-block", "8", "-c", "7", "--deac") == 0
    assert device.memory[8 * 512 : 16 * 512] == bytes(8 * 512)
    assert device.memory[16 * 512] == 0xFF
    assert run("dsm", "--ad", "--slbs", "100,200", "--blocks", "1,2") == 0
    assert device.memory[200 * 512 : 202 * 512] == bytes(1024)
    assert run("flush") == 0
    assert device.sent(NvmOpcode.FLUSH)


def test_bench(run: Run, capsys: pytest.CaptureFixture[str], device: FakeDevice) -> None:
    assert run("bench", "--runtime", "0.5", "-d", "8", "-i", "2", "-o", "json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["ios"] > 10
    assert result["latency_p50_us"] <= result["latency_p99_us"] <= result["latency_max_us"]
    assert [each["protocol"] for each in result["connections"]] == ["tcp", "tcp"]
    before = bytes(device.memory)
    assert run("bench", "--rw", "randwrite") == 2
    assert "--write-anyway" in capsys.readouterr().err
    assert bytes(device.memory) == before
    assert run("bench", "--rw", "write", "--write-anyway", "--runtime", "0.05", "-b", "512") == 0
    assert "queue 1 : tcp" in capsys.readouterr().out
    assert bytes(device.memory) != before


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["read", "-c", "1", "--blocks", "2"], 2, "not both"),
        (["read", "-z", "513", "-c", "0"], 2, "do not fit 1 blocks"),
        (["read", "-z", "many"], 2, "'many' is not a size"),
        (["read", "--start-block", "-1"], 2, "is negative"),
        (["read", "--start-block", "5000"], 2, "blocks 5000 to 5000 reach beyond the end of namespace 1"),
        (["read", "--start-block", "0xffffffffffffffff", "-c", "0xffffffff"], 2, "reach beyond the end"),
        (["read", "-N", "7"], 1, "no active namespace 7"),
        (["read", "-d", "/nonexistent/file"], 1, "/nonexistent/file: No such file or directory"),
        (["write", "-d", "missing"], 1, "missing: No such file or directory"),
        (["write", "-d", "short", "--blocks", "9"], 2, "short has 3 bytes; 4608 were to be written"),
        (["write", "-d", "short", "--start-block", "4096"], 2, "longer than the namespace"),
        (["bench", "-b", "100"], 2, "no multiple of the block size"),
        (["bench", "-b", "256k"], 2, "more than one command"),
        (["dsm", "--ad", "--slbs", "1,2", "--blocks", "1"], 2, "2 first blocks, but 1 lengths"),
        (["dsm", "--ad", "--slbs", "x", "--blocks", "1"], 2, "numbers separated by commas"),
        (["id-ctrl", "-i", "0"], 2, "number of I/O queues"),
        (["id-ctrl", "-q", "me\n"], 2, "host NQN"),
        (["id-ctrl", "-I", "me"], 2, "no UUID"),
        (["id-ctrl", "-t", "pigeon"], 2, "pigeon"),
        (["id-ctrl", "--no-such-option"], 2, "No such option"),
        (["get-log", "--log-id", "1", "-l", "5"], 2, "multiples of 4"),
        (["no-such-command"], 2, "No such command"),
    ],
)
def test_an_error_is_one_sentence(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, words: str
) -> None:
    (tmp_path / "short").write_bytes(b"abc")
    assert run(*arguments) == code
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("nvmeof-host: ")
    assert words in line
    assert not captured.out


def test_which_subsystem(run: Run, device: FakeDevice, target: FakeTarget, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("id-ns", nqn=None) == 0
    device.discovery_log = log(target.port, SUBNQN, SUBNQN + "2")
    assert run("id-ns", nqn=None) == 2
    assert f"--nqn: {SUBNQN}, {SUBNQN}2" in capsys.readouterr().err
    device.discovery_log = log(target.port)
    assert run("id-ns", nqn=None) == 1
    assert "names no NVM subsystem" in capsys.readouterr().err


def test_entries_of_other_transports_and_ports(
    run: Run, device: FakeDevice, target: FakeTarget, capsys: pytest.CaptureFixture[str]
) -> None:
    rdma = build_discovery_entry(trtype=1, adrfam=1, subtype=2, trsvcid="1", subnqn=SUBNQN + "r", traddr="127.0.0.1")
    away = build_discovery_entry(trtype=3, adrfam=1, subtype=2, trsvcid="1", subnqn=SUBNQN, traddr="127.0.0.1")
    here = log(target.port, SUBNQN)[1024:]
    device.discovery_log = build_discovery_log(1, [rdma, away, here])
    assert run("id-ns", nqn=None) == 0  # the port that was asked is in the log
    device.discovery_log = build_discovery_log(1, [rdma, away])
    assert run("id-ns", nqn=None) == 1
    assert "127.0.0.1:1" in capsys.readouterr().err
    nameless = build_discovery_entry(trtype=3, adrfam=1, subtype=2, trsvcid="x", subnqn=SUBNQN, traddr="127.0.0.1")
    device.discovery_log = build_discovery_log(1, [nameless])
    assert run("id-ns", nqn=None) == 1
    assert "no port number: 'x'" in capsys.readouterr().err


def test_which_namespace(run: Run, device: FakeDevice, capsys: pytest.CaptureFixture[str]) -> None:
    device.active = [1, 5]
    assert run("flush") == 2
    assert "-N: 1, 5" in capsys.readouterr().err
    assert run("flush", "-N", "5") == 0
    device.active = []
    assert run("flush") == 1


def test_a_lost_connection_is_a_failure(
    run: Run, target: FakeTarget, device: FakeDevice, capsys: pytest.CaptureFixture[str]
) -> None:
    def close(request: object, sqe: object) -> str | None:
        if getattr(sqe, "opcode", 0) == NvmOpcode.READ and 1 in target.links:
            target.links[1].endpoint.abort()
            return None
        return "default"

    device.intercept = close  # type: ignore[assignment]
    assert run("read", "-d", "out") == 1
    assert "queue 1" in capsys.readouterr().err


def test_connect_holds_until_interrupted(target: FakeTarget, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "nvmeof.host",
            "connect",
            "-t",
            "tcp",
            "-a",
            "127.0.0.1",
            "-s",
            str(target.port),
            "-n",
            SUBNQN,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "XDG_CONFIG_HOME": str(tmp_path)},
    )
    assert process.stdout is not None
    lines = []
    while not lines or "Ctrl-C" not in lines[-1]:
        lines.append(process.stdout.readline())
        assert lines[-1], process.communicate()[1]
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=50)
    assert (process.returncode, out, err) == (0, "disconnected\n", "")
    assert any(line.startswith("queue 1") and "tcp" in line for line in lines)


def test_a_reader_that_goes_away(target: FakeTarget, tmp_path: Path) -> None:
    command = f"{sys.executable} -m nvmeof.host read -t tcp -a 127.0.0.1 -s {target.port} -n {SUBNQN} --blocks 4096"
    result = subprocess.run(
        ["sh", "-c", f"{command} | head -c 10 | wc -c"],
        capture_output=True,
        text=True,
        env={**os.environ, "XDG_CONFIG_HOME": str(tmp_path)},
    )
    assert result.stdout.strip() == "10"
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (1 << 30, "1.07 GB"), (2.5e15, "2.50 PB")]
)
def test_sizes_for_people(value: float, text: str) -> None:
    assert output.size(value) == text


def test_transport_in_use() -> None:
    assert output.transport_in_use({"transport": "tcp", "protocol": "tcp"}) == "tcp"
    assert output.transport_in_use({"transport": "mptcp", "protocol": "tcp"}) == "tcp (asked for mptcp)"
    assert (
        output.transport_in_use({"transport": "mptcp", "protocol": "mptcp", "subflows": [1, 2]}) == "mptcp (2 subflows)"
    )


def test_discover_shows_the_required_security(
    run: Run, device: FakeDevice, target: FakeTarget, capsys: pytest.CaptureFixture[str]
) -> None:
    def entry(treq: int, sectype: int) -> bytes:
        return build_discovery_entry(
            trtype=3, adrfam=1, subtype=2, trsvcid=str(target.port), subnqn=SUBNQN, traddr="127.0.0.1", treq=treq,
            sectype=sectype,
        )  # fmt: skip

    device.discovery_log = build_discovery_log(1, [entry(4, 0), entry(5, 2), entry(2, 1), entry(1, 7)])
    assert run("discover") == 0
    rows = [line.split("nvm ")[1].split(SUBNQN)[0].strip() for line in capsys.readouterr().out.splitlines()[1:]]
    assert rows == ["none", "tls 1.3, required", "tls 1.2, not required", "7, required"]
    assert run("list", nqn=None) == 0
    captured = capsys.readouterr()
    assert captured.out.count(SUBNQN) == 1
    assert f"left out {SUBNQN} at 127.0.0.1: it requires TLS: give --tls-key" in captured.err
    device.discovery_log = build_discovery_log(1, [entry(5, 2)])
    assert run("id-ctrl", nqn=None) == 1
    assert "names no NVM subsystem that can be used" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-a", "127.0.0.1:4420"], "give the address 127.0.0.1 and the port 4420 apart"),
        (["-a", "[::1]:4420"], "give the address ::1 and the port 4420 apart"),
        (["-a", "127.1"], "write four decimal numbers"),
        (["-a", "fe80::1"], "needs its interface: write fe80::1%INTERFACE (this machine has "),
        (["-a", "fe80::1%nosuch"], "there is no network interface 'nosuch' (fe80::1%nosuch): this machine has "),
        (["-a", "fe80::1%"], "names no interface after the %"),
        (["-a", "::1%lo"], "leave %lo away"),
        (["-a", "127.0.0.1", "-w", "127.1"], "write four decimal numbers"),
        (["-a", "::1", "-w", "fe80::1"], "fe80::1 is link-local and needs its interface"),
        (["-a", "127.0.0.1", "-s", "http"], "'http' is not a port"),
        (["-a", "127.0.0.1", "-s", "65536"], "65536' is not a port"),
        (["-a", "127.0.0.1", "-s", "0"], "the port must be between 1 and 65535"),
    ],
)
@pytest.mark.parametrize("command", ["discover", "list", "id-ctrl"])
def test_addresses_that_cannot_be_used(
    capsys: pytest.CaptureFixture[str], command: str, arguments: list[str], says: str
) -> None:
    where = arguments if "-s" in arguments else [*arguments, "-s", "1"]
    assert main([command, "-t", "tcp", *where]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_a_port_may_be_hexadecimal(run: Run, target: FakeTarget) -> None:
    assert run("list", "-s", f"{target.port:#x}") == 0
