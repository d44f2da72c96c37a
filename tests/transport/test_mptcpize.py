"""mptcpize: foreign programs' TCP sockets as MPTCP ones, and one sentence for those it cannot reach."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from nvmeof import Ramdisk, Target
from nvmeof.errors import ConfigurationError, TransportError
from nvmeof.host.__main__ import main
from nvmeof.transport import mptcpize
from nvmeof.transport.mptcpize import Means, built_library, launch, out_of_reach

from .test_mptcp import needs_mptcp

needs_compiler = pytest.mark.skipif(mptcpize.compiler() is None, reason="needs a C compiler (cc, gcc or clang)")
needs_means = pytest.mark.skipif(
    mptcpize.compiler() is None and shutil.which("mptcpize") is None, reason="needs a C compiler or mptcpize"
)

SOCKETS = """
import json, socket
kinds = [
    (socket.AF_INET, socket.SOCK_STREAM, 0), (socket.AF_INET, socket.SOCK_STREAM, 6),
    (socket.AF_INET6, socket.SOCK_STREAM, 6), (socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK, 0),
    (socket.AF_INET, socket.SOCK_DGRAM, 0), (socket.AF_UNIX, socket.SOCK_STREAM, 0),
    (socket.AF_INET, socket.SOCK_STREAM, 262),
]
print(json.dumps([socket.socket(*kind).getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL) for kind in kinds]))
"""


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "cache" / "nvmeof"


def mptcpized(*command: str, means: str = "own", prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run a command by the command line."""
    return subprocess.run(
        [*prefix, sys.executable, "-m", "nvmeof.host", "mptcpize", "--means", means, "--", *command],
        capture_output=True,
        text=True,
        timeout=50,
    )


@needs_compiler
@needs_mptcp
def test_which_sockets_become_mptcp() -> None:
    done = mptcpized(sys.executable, "-c", SOCKETS)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == [262, 262, 262, 262, 17, 0, 262]


@needs_compiler
def test_without_mptcp_the_program_gets_tcp_and_a_remark_is_printed() -> None:
    if subprocess.run(["unshare", "-rn", "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs network namespaces")
    # a child of the program switches MPTCP off in a separate network namespace
    off = ("unshare", "-rn", "sh", "-c", 'echo 0 >/proc/sys/net/mptcp/enabled && exec "$@"', "sh")
    done = mptcpized(
        sys.executable, "-c", SOCKETS.replace("(socket.AF_INET, socket.SOCK_STREAM, 262),", ""), prefix=off
    )
    if "Read-only" in done.stderr or "cannot create" in done.stderr:
        pytest.skip("net.mptcp.enabled cannot be changed here")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [6, 6, 6, 6, 17, 0]
    assert done.stderr.startswith(f"nvmeof-host: {sys.executable} is going to use TCP: MPTCP is switched off here")


@needs_compiler
def test_exit_status_and_arguments_are_the_programs_own() -> None:
    done = mptcpized("sh", "-c", 'echo "$0" "$1"; exit 7', "-t", "--help")
    assert (done.returncode, done.stdout) == (7, "-t --help\n")


@needs_compiler
def test_the_preload_of_others_stays(cache: Path) -> None:
    chosen = launch(["true"], means=Means.OWN, environment={**os.environ, "LD_PRELOAD": "/a.so /b.so"})
    library, *others = chosen.environment["LD_PRELOAD"].split(" ")
    assert Path(library).parent == cache
    assert others == ["/a.so", "/b.so"]


@needs_compiler
def test_the_library_is_built_once_and_again_for_another_source(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = built_library()
    before = first.stat().st_mtime_ns
    assert built_library() == first
    assert first.stat().st_mtime_ns == before
    changed = tmp_path / "mptcpize.c"
    changed.write_text(mptcpize.SOURCE.read_text() + "\n/* changed */\n")
    monkeypatch.setattr(mptcpize, "SOURCE", changed)
    assert built_library() != first
    assert sorted(each.suffix for each in cache.iterdir()) == [".so", ".so"], "nothing half-made is left"


@needs_compiler
def test_a_source_that_does_not_compile(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken.c"
    broken.write_text("int socket(")
    monkeypatch.setattr(mptcpize, "SOURCE", broken)
    with pytest.raises(TransportError, match=r"could not build broken\.c: .*error"):
        built_library()
    assert not list(cache.iterdir())


@needs_compiler
@pytest.mark.parametrize("what", ["directory", "library"])
def test_a_library_that_others_can_write_is_not_preloaded(cache: Path, what: str) -> None:
    library = built_library()
    (cache if what == "directory" else library).chmod(0o777)
    with pytest.raises(TransportError, match="can be changed by other users"):
        built_library()


@pytest.mark.parametrize("name", ["a b", "a:b"])
def test_a_cache_whose_path_the_linker_cannot_take(tmp_path: Path, name: str) -> None:
    with pytest.raises(TransportError, match="splits names at spaces and colons"):
        built_library(tmp_path / name)
    assert not (tmp_path / name).exists()


def test_neither_means(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(mptcpize.shutil, "which", lambda name, path=None: "/bin/sh" if name == "sh" else None)
    assert main(["mptcpize", "sh"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "Debian's package mptcpize, or with a C compiler: neither is installed" in line
    assert main(["mptcpize", "--means", "system", "sh"]) == 1
    assert "mptcpize is not installed here" in capsys.readouterr().err


def test_debians_mptcpize_is_used_where_installed(tmp_path: Path) -> None:
    fake = tmp_path / "bin" / "mptcpize"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\n")
    fake.chmod(0o755)
    environment = {**os.environ, "PATH": f"{fake.parent}:{os.environ['PATH']}"}
    chosen = launch(["sh", "-c", "x"], environment=environment)
    assert (chosen.path, chosen.arguments) == (str(fake), ("mptcpize", "run", "sh", "-c", "x"))
    assert chosen.environment == environment
    if mptcpize.compiler():
        assert launch(["sh"], means=Means.OWN, environment=environment).path == shutil.which("sh")


# -- programs that cannot be reached ---------------------------------------------------------------------------------


def test_missing_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mptcpize", "no-such-program-at-all"]) == 2
    assert "there is no program no-such-program-at-all" in capsys.readouterr().err
    text = tmp_path / "text"
    text.write_text("x")
    assert main(["mptcpize", str(text)]) == 2
    assert f"{text} is not executable" in capsys.readouterr().err
    assert main(["mptcpize"]) == 2


@needs_compiler
def test_a_static_program_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, program, script = tmp_path / "a.c", tmp_path / "a", tmp_path / "script"
    source.write_text("int main(void) { return 0; }")
    compiler = mptcpize.compiler()
    assert compiler is not None
    if subprocess.run([*compiler, "-static", "-o", program, source], capture_output=True, check=False).returncode:
        pytest.skip("this compiler links nothing statically (package libc6-dev)")
    script.write_text(f"#!{program} -x\n")
    script.chmod(0o755)
    for each in (program, script):
        with pytest.raises(ConfigurationError, match="statically linked"):
            launch([str(each)])
    assert main(["mptcpize", str(program)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"nvmeof-host: {program} cannot be given MPTCP: it is statically linked, so there is no C library to stand in"
        " front of"
    )


def test_a_set_uid_program_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "program"
    shutil.copy(sys.executable, program)
    program.chmod(0o755 | stat.S_ISUID)
    monkeypatch.setattr(mptcpize.os, "geteuid", lambda: program.stat().st_uid + 1)
    reason = out_of_reach(program)
    assert reason is not None
    assert "set-uid" in reason
    monkeypatch.setattr(mptcpize.os, "geteuid", lambda: program.stat().st_uid)
    assert out_of_reach(program) is None, "the same user: the linker has no reason to ignore anything"


@pytest.mark.parametrize("content", [b"", b"#!", b"#!\n", b"\x7fELF", b"\x7fELF\x02\x01" + bytes(58), b"#!/nowhere\n"])
def test_odd_files_are_left_to_the_kernel(tmp_path: Path, content: bytes) -> None:
    odd = tmp_path / "odd"
    odd.write_bytes(content)
    reason = out_of_reach(odd)
    assert reason is None or "statically" in reason


def test_a_script_that_names_itself(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text(f"#!{script}\n")
    assert out_of_reach(script) is None


# -- foreign programs and ours ---------------------------------------------------------------------------------------


@needs_means
@needs_mptcp
@pytest.mark.parametrize("means", ["own", "system"])
async def test_a_plain_nvme_tcp_host_arrives_as_mptcp(means: str) -> None:
    if means == "system" and shutil.which("mptcpize") is None:
        pytest.skip("needs Debian's package mptcpize")
    async with Target(namespaces=[Ramdisk("4M")], trtype="mptcp", listen="127.0.0.1:0") as target:
        where = ["-t", "tcp", "-a", "127.0.0.1", "-s", str(target.address.port), "-n", target.subnqn]
        command = [sys.executable, "-m", "nvmeof.host", "bench", *where, "--runtime", "1"]
        running = asyncio.create_task(asyncio.to_thread(mptcpized, *command, means=means))
        seen: set[str] = set()
        while not running.done():
            seen |= {each.describe().protocol for each in target.connections.endpoints(1)}
            await asyncio.sleep(0.02)
        done = await running
        assert done.returncode == 0, done.stderr
        assert seen == {"mptcp"}


@needs_means
@needs_mptcp
def test_iperf3_runs_over_mptcp() -> None:
    if shutil.which("iperf3") is None:
        pytest.skip("needs iperf3")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    command = [sys.executable, "-m", "nvmeof.host", "mptcpize", "--", "iperf3", "--forceflush"]
    server = subprocess.Popen([*command, "-s", "-1", "-p", port], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        for _ in range(4):  # a rule, "Server listening", a rule
            if "listening" in server.stdout.readline():
                break
        before = _counter("MPCapableACKRX")
        done = subprocess.run(
            [*command, "-c", "127.0.0.1", "-p", port, "-n", "1M", "-J"], capture_output=True, text=True, timeout=50
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert json.loads(done.stdout)["end"]["sum_sent"]["bytes"] >= 1 << 20
        assert _counter("MPCapableACKRX") - before >= 2, "the control and the data connection"
        assert server.wait(50) == 0
    finally:
        server.kill()
        server.communicate()


def _counter(name: str) -> int:
    """Return an MPTCP counter of this network namespace."""
    lines = re.findall(r"^MPTcpExt: (.*)$", Path("/proc/net/netstat").read_text(), re.MULTILINE)
    return int(dict(zip(lines[0].split(), lines[1].split(), strict=True))[name])
