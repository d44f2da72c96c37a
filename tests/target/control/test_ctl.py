"""`nvmeof-target ctl`: every verb is a command, with tables, JSON, exit codes and one-sentence errors."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.shell_completion import ShellComplete

from nvmeof.cli.exit_codes import EXIT_FAILED, EXIT_USAGE
from nvmeof.security.secret import Secret
from nvmeof.target.__main__ import cli, main
from nvmeof.target.cli.ctl.commands import ctl_group
from nvmeof.target.control import where
from nvmeof.target.control.control import all_verbs
from tests.target.control.tools import NQN, OTHER, served

Ctl = Callable[..., Any]


@pytest.fixture(scope="module")
def socket_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("ctl") / "s"
    with served(path):
        yield path


@pytest.fixture
def ctl(socket_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ctl:
    """Call `ctl` with the target's socket in the environment: the exit code, stdout and stderr."""
    monkeypatch.setenv(where.VARIABLE, str(socket_path))

    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["ctl", *arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def test_every_verb_is_a_command_with_all_of_its_parameters() -> None:
    ctx = click.Context(ctl_group)
    for verb in all_verbs():
        found: click.Command | None = ctl_group
        for name in verb.name.split("."):
            assert isinstance(found, click.Group), verb.name
            found = found.get_command(ctx, name)
        assert found is not None, verb.name
        assert {each.name for each in verb.parameters} <= {each.name for each in found.params}, verb.name
        assert found.help, verb.name


def test_tables_of_what_there_is(ctl: Ctl) -> None:
    code, out, err = ctl("subsystem", "list")
    assert (code, err) == (0, "")
    heading, row = out.splitlines()
    assert heading.split()[:2] == ["Subsystem", "Serial"] and row.split()[0] == NQN and row.endswith("any")
    _, out, _ = ctl("namespace", "list")
    assert out.splitlines()[1].split()[:5] == ["1", "ramdisk", "1M", "1M", "512"]
    for arguments in (["port", "list"], ["connection", "list"], ["counters"], ["counters", "--by", "queue"], ["verbs"]):
        code, out, err = ctl(*arguments)
        assert (code, err) == (0, "") and out.splitlines()[0].strip(), arguments
    for arguments in (["status"], ["hello"], ["host", "list"], ["config"], ["ana", "list"], ["log-level"]):
        assert ctl(*arguments)[0] == 0, arguments
    assert ctl("referral", "list")[1] == "none\n"


def test_json_is_what_the_verb_returned(ctl: Ctl) -> None:
    code, out, _ = ctl("status", "-o", "json")
    assert code == 0 and json.loads(out)["ports"] == 1
    code, out, _ = ctl("call", "host.list", json.dumps({"subnqn": NQN}))
    assert code == 0 and json.loads(out)["nqn"] == NQN


def test_a_namespace_from_its_beginning_to_its_end(ctl: Ctl) -> None:
    code, out, _ = ctl("namespace", "add", "ramdisk:1M", "--nsid", "0x10", "--no-enabled", "-n", NQN)
    assert code == 0 and "disabled" in out.splitlines()[1]
    assert ctl("namespace", "resize", "16", "2M")[0] == 0
    assert "enabled" in ctl("namespace", "enable", "16")[1]
    assert "read-only" in ctl("namespace", "protect", "16")[1]
    assert "read-only" not in ctl("namespace", "protect", "16", "--no-protected")[1]
    assert ctl("namespace", "remove", "16", "--force") == (0, "done: nothing was in use\n", "")


def test_lists_and_objects_are_options(ctl: Ctl) -> None:
    code, out, _ = ctl(
        "subsystem", "add", OTHER, "--hosts", "nqn.2026-01.org.example:a", "--hosts", "nqn.2026-01.org.example:b",
        "--settings", '{"max_io_queues": 9}', "-o", "json",
    )  # fmt: skip
    assert code == 0
    assert (len(json.loads(out)["hosts"]), json.loads(out)["max_io_queues"]) == (2, 9)
    assert ctl("subsystem", "remove", OTHER)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["namespace", "remove", "99"], EXIT_USAGE, f"{NQN} has no namespace 99"),
        (["namespace", "add"], EXIT_USAGE, "Missing argument 'STORAGE'"),
        (["namespace", "remove", "x"], EXIT_USAGE, "'x' is not a number: write 16 or 0x10"),
        (["ana", "set", "1", "fine"], EXIT_USAGE, "'fine' is not one of"),
        (["call", "nothing"], EXIT_USAGE, "there is no verb 'nothing'"),
        (["call", "hello", "[]"], EXIT_USAGE, "is no JSON object"),
        (["port", "add", "192.0.2.77:4420"], EXIT_FAILED, "192.0.2.77"),
        (["save", "/nowhere/x.json"], EXIT_USAGE, "Got unexpected extra argument"),
        (["save", "--path", "/nowhere/x.json"], EXIT_USAGE, "cannot be written"),
        (["-s", "/nowhere/s", "status"], EXIT_FAILED, "there is no control socket /nowhere/s"),
    ],
)
def test_an_error_is_one_sentence_and_an_exit_code(ctl: Ctl, arguments: list[str], code: int, says: str) -> None:
    found, out, err = ctl(*arguments)
    assert (found, out) == (code, "")
    assert says in err and err.startswith("nvmeof-target: ") and err.count("\n") == 1


def test_files_are_those_of_the_caller_and_secrets_are_not_on_the_command_line(
    ctl: Ctl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "disk,1.img").write_bytes(bytes(8192))
    code, out, err = ctl("namespace", "add", "file:disk,,1.img,delay:read=1ms", "--nsid", "40", "-o", "json")
    assert (code, err) == (0, "") and str(tmp_path / "disk,1.img") in json.loads(out)["backend"]
    assert ctl("namespace", "remove", "40")[0] == 0
    code, out, err = ctl("subsystem", "add", OTHER, "--namespaces", "file:disk,,1.img", "-o", "json")
    assert (code, json.loads(out)["namespaces"]) == (0, 1), err
    assert ctl("subsystem", "remove", OTHER)[0] == 0
    secret = Secret(bytes(range(32))).to_text()
    host = "nqn.2026-01.org.example:host"
    code, _, err = ctl("host", "keys", host, "--dhchap-key", secret)
    assert code == EXIT_USAGE and "can be read by every user" in err and secret not in err
    (tmp_path / "key").write_text(secret)
    (tmp_path / "key").chmod(0o600)
    assert ctl("host", "keys", host, "--dhchap-key", "file:key") == (0, "done\n", "")
    assert host in ctl("host", "list")[1]
    assert ctl("host", "keys", host)[0] == 0


def test_options_of_serving_have_no_place_before_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--ramdisk", "1G", "ctl", "status"]) == EXIT_USAGE
    assert "--ramdisk is for serving" in capsys.readouterr().err


def test_events_are_json_lines(socket_path: Path, ctl: Ctl) -> None:
    command = [sys.executable, "-m", "nvmeof.target", "ctl", "-s", str(socket_path), "watch", "--kinds", "called",
               "--count", "1"]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        line = ""
        for _ in range(100):  # until it watches
            ctl("log-level", "--level", "warning")
            try:
                line, _ = watching.communicate(timeout=0.2)
                break
            except subprocess.TimeoutExpired:
                continue
    event = json.loads(line)
    assert (event["kind"], event["verb"], event["number"]) == ("called", "log-level", 1)
    assert watching.returncode == 0


def test_shells_complete_commands_and_what_the_target_has(socket_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(where.VARIABLE, str(socket_path))
    shell = ShellComplete(cli, {}, "nvmeof-target", "_NVMEOF_TARGET_COMPLETE")

    def completed(arguments: list[str], incomplete: str) -> list[str]:
        return [each.value for each in shell.get_completions(arguments, incomplete)]

    assert completed([], "ct") == ["ctl"]
    assert completed(["ctl", "namespace"], "re") == ["remove", "replace", "resize"]
    assert completed(["ctl", "namespace", "remove"], "") == ["1"]
    assert completed(["ctl", "subsystem", "remove"], "nqn.") == [NQN]
    assert completed(["ctl", "ana", "set", "1"], "ina") == ["inaccessible"]
    monkeypatch.setenv(where.VARIABLE, "/nowhere/s")
    assert completed(["ctl", "namespace", "remove"], "") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_completion_script_of_each_shell(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    assert "_NVMEOF_TARGET_COMPLETE" in capsys.readouterr().out


def test_the_socket_is_that_of_the_user_unless_it_is_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert where.control_path(None) == where.control_path("auto") == tmp_path / "nvmeof-target.sock"
    assert where.control_path("/x/y") == Path("/x/y")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setattr(where.os, "geteuid", lambda: 0)
    assert where.control_path(None) == Path("/run/nvmeof-target.sock")
    monkeypatch.setattr(where.os, "geteuid", lambda: 1000)
    with pytest.raises(Exception, match="give the path of the control socket"):
        where.control_path("auto")
