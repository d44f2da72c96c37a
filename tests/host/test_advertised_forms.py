"""The host's command line against a target that announces its MPTCP port in each possible form."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nvmeof.host.__main__ import main
from nvmeof.transport import get, mptcp, set_trtype_code

from ..transport.test_mptcp import needs_mptcp

NQN = "nqn.2026-01.org.example:forms"
Start = Callable[..., list[str]]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Start]:
    """Return ``start(*options)``, which starts a target process and returns the options that lead a host there. The log
    is tmp_path/log.
    """
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    processes: list[subprocess.Popen[str]] = []

    def run(*options: str) -> list[str]:
        command = [sys.executable, "-m", "nvmeof.target", "--listen", "127.0.0.1:0", "--ramdisk", "1M", "-o", "json"]
        with (tmp_path / "log").open("w") as log:
            process = subprocess.Popen(
                [*command, "--subnqn", NQN, *options], stdout=subprocess.PIPE, stderr=log, text=True
            )
        processes.append(process)
        assert process.stdout is not None
        (listener,) = json.loads(process.stdout.readline())["listeners"]
        return ["-a", "127.0.0.1", "-s", str(listener["port"])]

    yield run
    for process in processes:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=50)
        assert process.returncode == 0, (tmp_path / "log").read_text()


def forms(*names: str) -> list[str]:
    return [word for name in names for word in ("--advertise-as", name)]


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ([], [("mptcp", 0), ("tcp", 0)]),
        (["own"], [("mptcp", 0)]),
        (["tcp"], [("tcp", 0)]),
        (["tsas"], [("mptcp", 1)]),
        (["own", "tcp", "tsas"], [("mptcp", 0), ("tcp", 0), ("mptcp", 1)]),
    ],
)
@needs_mptcp
def test_each_form_is_shown_and_connected_to_once_with_mptcp(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str], names: list[str], told: list[tuple[str, int]]
) -> None:
    where = start(*forms(*names))
    assert main(["discover", *where, "-o", "json"]) == 0
    records = json.loads(capsys.readouterr().out)["records"]
    assert [(each["trtype"], each["prottype"]) for each in records if each["subnqn"] == NQN] == told
    assert main(["discover", *where]) == 0
    rows = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.endswith(NQN)]
    assert rows == [name for name, _ in told]
    assert main(["list", *where, "-o", "json"]) == 0
    (device,) = json.loads(capsys.readouterr().out)["Devices"]
    assert (device["SubsystemNQN"], device["Transport"], device["Protocol"]) == (NQN, "mptcp", "mptcp")
    connects = [line for line in (tmp_path / "log").read_text().splitlines() if f"subsystem {NQN}" in line]
    assert len([line for line in connects if "queue 0" in line]) == 1
    assert all("(mptcp)" in line for line in connects)


@pytest.mark.parametrize("names", [[], ["own"], ["tcp"], ["tsas"], ["own", "tcp", "tsas"]])
def test_a_host_that_asks_for_tcp_gets_it_from_every_form(
    start: Start, capsys: pytest.CaptureFixture[str], names: list[str]
) -> None:
    where = start(*forms(*names))
    assert main(["list", "-t", "tcp", *where, "-o", "json"]) == 0
    (device,) = json.loads(capsys.readouterr().out)["Devices"]
    assert (device["Transport"], device["Protocol"]) == ("tcp", "tcp")


@pytest.mark.parametrize("names", [["own"], ["tcp"], ["tsas"]])
@pytest.mark.parametrize("reason", [errno.EPROTONOSUPPORT, errno.ENOPROTOOPT])
def test_a_host_without_mptcp_in_its_kernel_falls_back(
    start: Start, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, names: list[str], reason: int
) -> None:
    def refuse(family: socket.AddressFamily) -> socket.socket:
        raise OSError(reason, os.strerror(reason))

    where = start(*forms(*names))
    monkeypatch.setattr(mptcp, "new_socket", refuse)
    assert main(["list", *where, "-o", "json"]) == 0
    (device,) = json.loads(capsys.readouterr().out)["Devices"]
    assert (device["Transport"], device["Protocol"]) == ("mptcp", "tcp")
    assert main(["id-ctrl", *where]) == 0  # without a name, by discovery


def test_another_number_for_mptcp(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    where = start("--trtype-code", "77", "--advertise-as", "own")
    before = get("mptcp").trtype
    assert main(["list", *where]) == 0
    assert NQN not in capsys.readouterr().out, "77 means nothing to a host that does not know it"
    assert main(["discover", *where]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[0] == "77"
    try:
        assert main(["discover", "--trtype-code", "77", *where]) == 0
        assert capsys.readouterr().out.splitlines()[1].split()[0] == "mptcp"
        assert main(["list", "--trtype-code", "77", *where]) == 0
        assert NQN in capsys.readouterr().out
    finally:
        set_trtype_code("mptcp", before)
    assert main(["list", "--trtype-code", "3", *where]) == 2
    assert "taken by 'tcp'" in capsys.readouterr().err
