"""The target's command line, as a user meets it: a process, its texts, its signals and its exit codes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from nvmeof.errors import ConfigurationError
from nvmeof.target.__main__ import main
from nvmeof.target.cli.options import Options, make_target
from nvmeof.target.cli.report import facts, say
from nvmeof.target.server import Target
from nvmeof.target.storage.file import FileBackend
from nvmeof.transport import Address
from tests.conformance.rawhost import HOSTNQN, IN_CAPSULE, WRITE, RawHost, association, io_sqe, make_sqe, until
from tests.target.management_tools import controller_list, create_data

SECONDS = 20
NQN = "nqn.2026-01.org.example:cli"


@pytest.fixture(autouse=True)
def calm():
    """Restore logging, which `main` sets up, and close hosts of failed tests."""
    handlers, level = list(logging.root.handlers), logging.root.level
    yield
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)
    RawHost.close_all()


@dataclass
class Served:
    """A target in another process, with the attributes of a Target that a raw host needs."""

    process: asyncio.subprocess.Process
    told: dict
    subnqn: str
    address: Address

    @property
    def config(self):
        return type("Config", (), {"ports": [type("Port", (), {"transport": "tcp"})]})

    async def ended(self, number: int | None = signal.SIGTERM) -> tuple[int, str]:
        """Return exit code and stderr after a signal."""
        if number is not None:
            self.process.send_signal(number)
        _, err = await asyncio.wait_for(self.process.communicate(), SECONDS)
        assert self.process.returncode is not None
        return self.process.returncode, err.decode()


@contextlib.asynccontextmanager
async def served(*arguments: str) -> AsyncIterator[Served]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "nvmeof.target", "-t", "tcp", "-l", "127.0.0.1:0", "-o", "json", "-n", NQN, *arguments,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), SECONDS)
        assert line or process.stderr is None, (await process.stderr.read()).decode()
        told = json.loads(line)
        first = told["listeners"][0]
        yield Served(process, told, told["subnqn"], Address(first["address"], first["port"]))
    finally:
        RawHost.close_all()
        if process.returncode is None:
            process.kill()
        await process.wait()
        process._transport.close()  # type: ignore[attr-defined]


# -- running


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("loop", ["--uvloop", "--no-uvloop"])
async def test_a_signal_under_load_stops_it_cleanly(tmp_path, number, loop):
    """Exit code 0, at once; completed writes are in the file, and no block is half written."""
    path = tmp_path / "disk"
    async with served("--file", str(path), "--size", "8M", loop) as target:
        answered: dict[int, int] = {}

        async def load(host: RawHost, lane: int) -> None:
            value = 0
            try:
                while True:
                    value = value % 250 + 1
                    if (await host.write(lane * 64, bytes([value]) * 32768, in_capsule=False)).status == 0:
                        answered[lane] = value
            except (EOFError, OSError):
                pass

        hosts = await association(target, queues=4)
        tasks = [asyncio.ensure_future(load(host, lane)) for lane, host in enumerate(hosts[1:])]
        await until(lambda: len(answered) == 4 and sum(answered.values()) > 40)
        code, err = await target.ended(number)
        for host in hosts:
            host.close()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert code == 0, err
    assert "Traceback" not in err and f"{number.name}: stopping" in err
    content = path.read_bytes()
    assert len(content) == 8 << 20
    for lane, value in answered.items():
        part = content[lane * 32768 : (lane + 1) * 32768]
        assert part in (bytes([value]) * 32768, bytes([value % 250 + 1]) * 32768)


async def test_a_second_signal_stops_it_at_once(tmp_path):
    """A host that owes data would delay the first stop."""
    async with served("--ramdisk", "8M") as target:
        hosts = await association(target)
        await hosts[1].send(hosts[1].capsule(io_sqe(1, WRITE, 0, 64)))
        await hosts[1].r2t(1)
        target.process.send_signal(signal.SIGTERM)
        assert target.process.stderr is not None
        await asyncio.wait_for(target.process.stderr.readuntil(b"SIGTERM: stopping"), SECONDS)
        await asyncio.sleep(0.3)
        assert target.process.returncode is None, "it waits for the data"
        code, err = await target.ended(signal.SIGTERM)
        assert code == 0 and "SIGTERM again: stopping at once" in err and "Traceback" not in err


async def test_its_output_as_json(tmp_path):
    path = tmp_path / "disk"
    path.write_bytes(bytes(1 << 20))
    async with served(
        "--ramdisk", "4M", "--file", str(path), "--block-size", "4096", "--read-only", "--allow-host", HOSTNQN
    ) as target:
        told = target.told
        assert told["subnqn"] == NQN and told["transport"] == "tcp" and told["trtype"] == 3
        assert told["allowed_hosts"] == [HOSTNQN] and len(told["serial"]) == 20
        assert [(n["nsid"], n["size_bytes"], n["block_bytes"], n["read_only"]) for n in told["namespaces"]] == [
            (1, 4 << 20, 4096, True), (2, 1 << 20, 4096, True)
        ]  # fmt: skip
        assert told["listeners"][0]["protocol"] == "tcp"
        code, err = await target.ended()
    assert code == 0 and "any host" not in err


async def test_namespaces_that_hosts_created_outlive_a_kill(tmp_path):
    arguments = ("--pool", str(tmp_path / "pool"), "--capacity", "64M")
    data = create_data(nsze=8192)
    async with served(*arguments) as target:
        assert target.told["namespaces"] == [] and target.told["pool"]["unallocated_bytes"] == 64 << 20
        host, io = await association(target)
        for nsid in (1, 2, 3):
            completion = await host.call(make_sqe(nsid, 0x0D, length=4096, sgl=IN_CAPSULE), data)
            assert (completion.status, completion.dw0) == (0, nsid)
        attach = controller_list(host.cntlid)
        assert (await host.call(make_sqe(4, 0x15, nsid=2, length=4096, sgl=IN_CAPSULE), attach)).status == 0
        assert (await io.call(io_sqe(5, WRITE, 0, 1, nsid=2, sgl=IN_CAPSULE, cdw12=1 << 30), b"kept" * 128)).status == 0
        assert (await host.call(make_sqe(6, 0x0D, nsid=1, cdw10=1))).status == 0
        told = target.told
        code, err = await target.ended(signal.SIGKILL)
        assert code == -signal.SIGKILL and "Traceback" not in err
    async with served(*arguments) as target:
        assert [space["nsid"] for space in target.told["namespaces"]] == [2, 3]
        assert target.told["pool"] == {**told["pool"], "unallocated_bytes": 56 << 20}
        _, io = await association(target)
        completion = await io.read(0, 1, nsid=2)
        assert (completion.status, completion.data) == (0, b"kept" * 128)
        assert (await io.read(0, 1, nsid=3)).status, "not attached"
        code, err = await target.ended()
    assert code == 0 and "Traceback" not in err


async def test_connections_are_one_line_each():
    async with served() as target:
        hosts = await association(target)
        hosts[1].close()
        hosts[0].close()
        await asyncio.sleep(0.2)
        code, err = await target.ended()
    assert code == 0
    assert len(re.findall(r"queue [01] of controller 1 connected \(tcp\)", err)) == 2
    assert len(re.findall(r"queue [01] ended: ", err)) == 2
    assert all(re.match(r"\d\d:\d\d:\d\d |nvmeof-target: ", line) for line in err.splitlines()), err


def run_module(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)


def test_a_port_in_use_is_one_sentence():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = run_module("nvmeof.target", "-t", "tcp", "-l", f"127.0.0.1:{port}")
    assert result.returncode == 1 and result.stdout == ""
    [line] = result.stderr.splitlines()
    assert line.startswith("nvmeof-target: ") and "in use" in line and str(port) in line


def test_text_for_a_person(tmp_path):
    """Output for a terminal: the lines to connect with work unchanged."""
    process = subprocess.Popen(
        [sys.executable, "-m", "nvmeof.target", "-l", "127.0.0.1:0", "-n", NQN],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line.rstrip("\n"))
            if "-t mptcp" in line:
                break
        text = "\n".join(lines)
        assert re.search(r"nvme connect -t tcp -a 127\.0\.0\.1 -s \d+ -n " + re.escape(NQN), text)
        words = shlex.split(lines[-1])
        words[words.index("connect")] = "id-ctrl"  # connect stays connected; the same options serve for a look
        shown = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS, check=False)
        assert shown.returncode == 0, shown.stderr
        assert "1 GiB" in text or "1G" in text
    finally:
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 0 and "Traceback" not in err


def test_names_with_blanks_are_quoted_in_lines_to_copy(capsys):
    listener = {"address": "127.0.0.1", "port": 4420, "protocol": "tcp", "fallback": None, "discovery_only": False}
    say(
        {
            "subnqn": "a name", "serial": "1", "namespaces": [], "pool": None, "listeners": [listener], "paths": [],
            "transport": "tcp", "trtype": 3, "loop": "asyncio",
        }
    )  # fmt: skip
    lines = [line for line in capsys.readouterr().out.splitlines() if " -n " in line]
    assert len(lines) == 2 and all(shlex.split(line)[-2:] == ["-n", "a name"] for line in lines)


def test_nohup_is_respected():
    """A target that was started with SIGHUP ignored goes on when its terminal is closed."""
    process = subprocess.Popen(
        ["sh", "-c", 'trap "" HUP; exec "$0" -m nvmeof.target -t tcp -l 127.0.0.1:0 --ramdisk 1M', sys.executable],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert any("stop with Ctrl-C" in line for line in process.stdout)
        process.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
    finally:
        process.terminate()
        process.communicate(timeout=SECONDS)
    assert process.returncode == 0


# -- options


USAGE = {
    "size": (["--ramdisk", "huge"], "huge"),
    "block size": (["--block-size", "777"], "777"),
    "port": (["-l", "127.0.0.1:70000"], "not a port"),
    "nqn": (["-n", "disk\t"], "control characters"),
    "allowed host": (["--allow-host", "m" * 224], "223 bytes"),
    "transport": (["-t", "rdma"], "known are"),
    "mdts": (["--mdts", "3M"], "power of two"),
    "in-capsule": (["--in-capsule", "100"], "multiple of 16"),
    "cntlid": (["--cntlid-min", "9", "--cntlid-max", "8"], "--cntlid-min"),
    "queue size": (["--queue-size", "1"], "2 to 65536"),
    "option": (["--nonsense"], "nonsense"),
    "argument": (["extra"], "extra"),
    "trtype code": (["--trtype-code", "3"], "taken"),
    "tos": (["--tos", "300"], "300"),
    "keep alive": (["--keep-alive", "-1"], "negative"),
    "serial": (["--serial", "x" * 21], "20"),
    "pool without capacity": (["--pool", "/nonexistent/pool"], "--capacity"),
    "capacity": (["--capacity", "lots"], "not a size"),
    "odd ramdisk": (["--ramdisk", "1000"], "whole number"),
    "size without file": (["--size", "1G"], "--file"),
    "size of several files": (["--file", "/nonexistent/a", "--ramdisk", "1M", "--discovery", "[::1"], "[ADDRESS]:PORT"),
}


@pytest.mark.parametrize("case", USAGE)
def test_a_bad_option_is_one_sentence_and_exit_code_2(capsys, monkeypatch, case):
    # an accepted option would start a target that runs without end
    monkeypatch.setattr(Target, "_tick", lambda target: pytest.fail("it was accepted"))
    arguments, text = USAGE[case]
    assert main(arguments) == 2
    captured = capsys.readouterr()
    [line] = captured.err.splitlines()
    assert line.startswith("nvmeof-target: ") and text in line and captured.out == ""


FAILED = {
    "no such file": (["-t", "tcp", "-l", "127.0.0.1:0", "--file", "/nonexistent/disk"], "/nonexistent/disk"),
    "a directory": (["-t", "tcp", "-l", "127.0.0.1:0", "--file", "/tmp"], "/tmp"),
    "not our address": (["-t", "tcp", "-l", "192.0.2.1:0"], "192.0.2.1"),
    "no such name": (["-t", "tcp", "-l", "no-such-host.invalid:0"], "no-such-host.invalid"),
    "no such congestion control": (["-t", "tcp", "-l", "127.0.0.1:0", "--congestion", "nonesuch"], "nonesuch"),
}


@pytest.mark.parametrize("case", FAILED)
def test_an_impossible_start_is_one_sentence(capsys, case):
    arguments, text = FAILED[case]
    assert main(arguments) in (1, 2)
    captured = capsys.readouterr()
    [line] = captured.err.splitlines()
    assert line.startswith("nvmeof-target: ") and text in line and captured.out == ""


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["--version"]])
def test_help(capsys, arguments):
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "nvmeof-target" in out
    assert all(len(line) <= 110 for line in out.splitlines())


async def test_names_and_limits_as_other_targets_take_them():
    options = Options(
        trtype="memory", listen=("memory:0",), ramdisk=("1M",), subnqn="subsystem-1", allow_host=("testhost",),
        mdts="0", in_capsule="0", cntlid_min=100, cntlid_max=199,
    )  # fmt: skip
    async with make_target(options) as target:
        config = target.subsystems["subsystem-1"].config
        assert config.allowed_hosts == {"testhost"}
        assert (config.max_transfer_bytes, config.transfer_limit_bytes, config.incapsule_bytes) == (0, 64 << 20, 0)
        assert (config.cntlid_min, config.cntlid_max) == (100, 199)


async def test_options_reach_the_target(tmp_path):
    options = Options(
        trtype="tcp", listen=("127.0.0.1:0", "[::1]:0"), discovery=("127.0.0.1:0",), advertise="192.0.2.9:4444",
        ramdisk=("1M", "2M"), subnqn=NQN, serial="S1", model="M1", allow_host=(HOSTNQN,), max_queues=3, queue_size=64,
        mdts="128K", in_capsule="4K", digests=False, tos=8,
    )  # fmt: skip
    async with make_target(options) as target:
        subsystem = target.subsystems[NQN].config
        assert (subsystem.serial_number, subsystem.model, subsystem.max_io_queues) == ("S1", "M1", 3)
        assert (subsystem.max_queue_entries, subsystem.max_transfer_bytes) == (64, 128 << 10)
        assert subsystem.incapsule_bytes == 4096 and subsystem.allowed_hosts == {HOSTNQN}
        ports = target.config.ports
        assert [port.discovery_only for port in ports] == [False, False, True]
        assert [(port.advertise_host, port.advertise_port) for port in ports] == [
            ("192.0.2.9", 4444), ("192.0.2.9", 4444), ("192.0.2.9", None)
        ]  # fmt: skip
        told = facts(target.administration.describe())
        json.dumps(told)
        assert len(told["listeners"]) == 3 and len(told["namespaces"]) == 2


async def test_pools(tmp_path):
    options = Options(trtype="tcp", listen=("127.0.0.1:0",), capacity="10G", pool=str(tmp_path / "pool"))
    async with make_target(options) as target:
        told = facts(target.administration.describe())
        assert (
            told["namespaces"] == [] and told["pool"]["capacity_bytes"] == told["pool"]["unallocated_bytes"] == 10 << 30
        )
        assert str(tmp_path / "pool") in told["pool"]["description"]
    options = Options(trtype="tcp", listen=("127.0.0.1:0",), capacity="10G", ramdisk=("1M",))
    async with make_target(options) as target:
        told = facts(target.administration.describe())
        assert len(told["namespaces"]) == 1 and told["pool"]["description"] == "memory 10G"
    async with make_target(Options(trtype="tcp", listen=("127.0.0.1:0",))) as target:
        assert facts(target.administration.describe())["pool"] is None


def test_a_closed_stdout_is_no_traceback():
    """`python -m nvmeof.target | head -1`: it must not end with a traceback."""
    read, write = os.pipe()
    os.close(read)
    process = subprocess.Popen(
        [sys.executable, "-m", "nvmeof.target", "-t", "tcp", "-l", "127.0.0.1:0"], stdout=write, stderr=subprocess.PIPE
    )
    os.close(write)
    try:
        _, err = process.communicate(timeout=3)
    except subprocess.TimeoutExpired:
        process.terminate()
        _, err = process.communicate(timeout=SECONDS)
    assert b"Traceback" not in err and b"Exception ignored" not in err, err


def test_a_state_file_that_is_a_dangling_link_is_not_created(tmp_path, capsys):
    """The state is where the link led: a start without it would lose it silently."""
    (tmp_path / "state").symlink_to(tmp_path / "away")
    assert main(["--ramdisk", "1M", "--state", str(tmp_path / "state"), "-t", "tcp", "-l", "127.0.0.1:0"]) == 2
    assert "is a link to" in capsys.readouterr().err and not (tmp_path / "away").exists()


@pytest.mark.parametrize("name", ["disk", "disk.nvmeof", "disk.zones"])
def test_the_state_file_is_not_the_metadata_file_of_a_disk(tmp_path, capsys, name):
    assert main(["--file", str(tmp_path / "disk"), "--size", "1M", "--state", str(tmp_path / name)]) == 2
    assert "is already used for the metadata of --file" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


async def test_one_target_at_a_time_has_a_state_file(tmp_path):
    state = tmp_path / "state"
    async with served("--state", str(state)) as target:
        other = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "nvmeof.target", "-t", "tcp", "-l", "127.0.0.1:0", "--state", str(state),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        _, err = await asyncio.wait_for(other.communicate(), SECONDS)
        assert (other.returncode, err.decode()) == (2, f"nvmeof-target: {state} is in use by another process\n")
        assert (await target.ended(signal.SIGKILL))[0] == -signal.SIGKILL
    async with served("--state", str(state)) as target:
        assert (await target.ended())[0] == 0
    lifetime = json.loads(state.read_text())["kept"]["lifetime"]
    assert (lifetime["power_cycles"], lifetime["unsafe_shutdowns"], lifetime["clean"]) == (2, 1, True)


def test_a_stop_that_loses_data_has_a_failing_exit_code(tmp_path, monkeypatch, capsys):
    def fails(self):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(FileBackend, "flush", fails)
    monkeypatch.setattr(asyncio.Event, "wait", lambda self: asyncio.sleep(0))
    arguments = ["-t", "tcp", "-l", "127.0.0.1:0", "--file", str(tmp_path / "disk"), "--size", "1M"]
    assert main(arguments) == 1
    err = capsys.readouterr().err
    assert f"file {tmp_path / 'disk'} could not be flushed: what was written last may be lost" in err


@pytest.mark.parametrize(
    "given,first,second",
    [
        (("2=inaccessible",), {2: 3}, {2: 3}),
        (("2=inaccessible@4421",), {}, {2: 3}),
        (("0x2=change@127.0.0.1:4420", "1=non-optimized@127.0.0.1:4421"), {2: 15}, {1: 2}),
        (("1=persistent-loss@127.0.0.1",), {1: 4}, {}),
    ],
)
def test_ana_states(given, first, second):
    listen = ("127.0.0.1:4420", "127.0.0.1:4421")
    target = make_target(Options(listen=listen, discovery=("127.0.0.1",), ana=given))
    assert [dict(port.ana) for port in target.config.ports[:2]] == [first, second]


@pytest.mark.parametrize(
    "given,message",
    [
        ("2", "GROUP=STATE"),
        ("x=change", "GROUP=STATE"),
        ("0=change", "GROUP=STATE"),
        ("1=change@", "GROUP=STATE"),
        ("1=lost", "non-optimized"),
        ("1=change@4421", "no --listen 4421"),
        ("1=change@127.0.0.1:8009", "no --listen 127.0.0.1:8009"),
        ("33=change", "1 to 32"),
    ],
)
def test_invalid_ana_states(given, message):
    with pytest.raises(ConfigurationError, match=message):
        make_target(Options(listen=("127.0.0.1:4420",), discovery=("127.0.0.1:8009",), ana=(given,)))


def test_two_ana_states_of_one_group():
    with pytest.raises(ConfigurationError, match="two states of ANA group 1"):
        make_target(Options(listen=("127.0.0.1:4420",), ana=("1=change", "1=optimized@4420")))


def test_ana_groups_of_namespaces():
    target = make_target(Options(namespace=("ramdisk:1M,anagrpid=4", "ramdisk:1M")))
    assert [each.anagrpid for each in target.config.subsystems[0].namespaces] == [4, 1]
    for text in ("0", "", "33", "x"):
        with pytest.raises(ConfigurationError, match=r"anagrpid|ANA group"):
            make_target(Options(namespace=(f"ramdisk:1M,anagrpid={text}",)))
