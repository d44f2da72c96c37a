"""Files with secrets: what others have put where they are written, and what was left there with a wider mode."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from nvmeof.errors import ConfigurationError
from nvmeof.security.tls import keylog
from nvmeof.target.configuration.files import write_configuration
from nvmeof.target.storage.json_file_store import JsonFileStore

DOCUMENT = {"version": 1, "subsystems": [], "ports": []}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(autouse=True)
def _no_keylog() -> Iterator[None]:
    yield
    keylog.close_keylog()


@pytest.mark.parametrize("wide", [0o644, 0o640, 0o604, 0o660])
def test_a_key_log_that_others_may_read_is_refused(tmp_path: Path, wide: int) -> None:
    path = tmp_path / "keys"
    path.touch()
    path.chmod(wide)
    with pytest.raises(ConfigurationError, match=f"others may read the key log .*chmod 600 {path}"):
        keylog.open_keylog(str(path))
    assert not keylog.keylog_open()


def test_a_key_log_through_a_link_is_one_of_the_file(tmp_path: Path) -> None:
    path, link = tmp_path / "theirs", tmp_path / "keys"
    path.touch()
    path.chmod(0o644)
    link.symlink_to(path)
    with pytest.raises(ConfigurationError, match="others may read"):
        keylog.open_keylog(str(link))
    path.chmod(0o600)
    keylog.open_keylog(str(link))
    keylog.write_line(b"CLIENT_RANDOM 00 11")
    assert path.read_text() == "CLIENT_RANDOM 00 11\n"


def test_a_new_key_log_and_a_pipe(tmp_path: Path) -> None:
    keylog.open_keylog(str(tmp_path / "keys"))
    assert mode(tmp_path / "keys") == 0o600
    keylog.close_keylog()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigurationError, match="cannot be written"):
        keylog.open_keylog(str(tmp_path / "pipe"))  # nobody reads it, and nothing waits for somebody who does


@pytest.mark.parametrize("left", ["link", "file"])
def test_a_configuration_is_not_written_where_somebody_else_can_read_it(tmp_path: Path, left: str) -> None:
    path, theirs = tmp_path / "target.json", tmp_path / "theirs"
    theirs.write_text("")
    theirs.chmod(0o644)
    draft = path.with_name(".target.json.new")
    if left == "link":
        draft.symlink_to(theirs)
    else:
        os.link(theirs, draft)
    write_configuration(path, DOCUMENT)
    assert theirs.read_text() == "" and not path.is_symlink() and mode(path) == 0o600
    assert not draft.exists() and '"version"' in path.read_text()


@pytest.mark.parametrize("left", ["link", "file"])
async def test_state_is_not_written_where_somebody_else_can_read_it(tmp_path: Path, left: str) -> None:
    path, theirs = tmp_path / "state", tmp_path / "theirs"
    draft = path.with_name("state.new")
    if left == "link":
        theirs.write_text("")
        draft.symlink_to(theirs)
    else:
        draft.write_text("left by a crash")
        draft.chmod(0o666)
    store = JsonFileStore(path, sections="a")
    if left == "link":
        with pytest.raises(OSError, match="symbolic"):
            await store.put("a", 1)
        assert theirs.read_text() == ""
    else:
        await store.put("a", 1)
        assert mode(path) == 0o600
    await store.close()
