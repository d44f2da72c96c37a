"""One sentence and one exit code for each kind of error, whatever the program."""

from __future__ import annotations

import errno

import click
import pytest

from nvmeof.cli.exit_codes import EXIT_FAILED, EXIT_USAGE, report
from nvmeof.errors import ConfigurationError, ConnectionLost, ConnectTimeout, LocalProtocolError, NvmeStatusError


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (ConfigurationError("--size requires --file"), EXIT_USAGE, "--size requires --file"),
        (LocalProtocolError("3 bytes are no block"), EXIT_USAGE, "3 bytes are no block"),
        (NvmeStatusError(0x80, "LBA out of range"), EXIT_FAILED, "LBA out of range"),
        (ConnectionLost("closed by the peer"), EXIT_FAILED, "closed by the peer"),
        (ConnectTimeout("nothing answers"), EXIT_FAILED, "nothing answers"),
        (
            OSError(errno.ENOSPC, "No space left on device", "disk.img"),
            EXIT_FAILED,
            "disk.img: No space left on device",
        ),
        (TimeoutError(), EXIT_FAILED, "TimeoutError"),
        (ExceptionGroup("two", [ConnectionLost("first"), ValueError()]), EXIT_FAILED, "first"),
        (click.UsageError("No such\noption."), EXIT_USAGE, "No such option"),
        (click.ClickException("went wrong"), EXIT_FAILED, "went wrong"),
    ],
)
def test_each_error_is_a_sentence(
    error: BaseException, code: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report("program", error) == code
    assert capsys.readouterr() == ("", f"program: {text}\n")


@pytest.mark.parametrize(
    ("error", "code"),
    [(SystemExit(3), 3), (SystemExit("text"), 1), (click.exceptions.Exit(0), 0), (BrokenPipeError(), EXIT_FAILED)],
)
def test_an_end_that_needs_no_words(error: BaseException, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert report("program", error) == code
    assert capsys.readouterr() == ("", "")


def test_the_hint_names_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    context = click.Context(click.Command("bench"), info_name="nvmeof-host bench")
    assert report("nvmeof-host", click.UsageError("Missing option '--traddr'.", ctx=context)) == EXIT_USAGE
    assert capsys.readouterr().err == "nvmeof-host: Missing option '--traddr' (see nvmeof-host bench --help)\n"


def test_a_fault_of_the_program_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        report("program", ZeroDivisionError())
