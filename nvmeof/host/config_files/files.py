"""Finding the files, reading them whole, and replacing them in one step. This module must not know what is in them."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from nvmeof.errors import ConfigurationError
from nvmeof.host.identity import SYSTEM_DIRECTORY, config_directory

DISCOVERY_CONF = "discovery.conf"
CONFIG_JSON = "config.json"
MAX_FILE_BYTES = 16 << 20
NEW_FILE_MODE = 0o600
"""Of a file that is made: it may get secrets."""


def find(name: str) -> Path | None:
    """Return the file that holds: /etc/nvme's, else this user's (see :func:`config_directory`); None without one."""
    return next((path for path in _places(name) if path.exists()), None)


def own_file(name: str) -> Path:
    """Return the file to write when none was named: the one that :func:`find` gives, else this user's."""
    return find(name) or config_directory() / name


def _places(name: str) -> tuple[Path, Path]:
    return SYSTEM_DIRECTORY / name, config_directory() / name


def read_text(path: Path) -> str:
    """Return a file's text. Raises :class:`ConfigurationError`, one sentence, where it cannot be had."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from None
    if len(raw) > MAX_FILE_BYTES:
        raise ConfigurationError(f"{path} is longer than {MAX_FILE_BYTES >> 20} MiB: this is no configuration file")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigurationError(f"{path}, line {line}: byte {raw[error.start]:#04x} is not UTF-8 text") from None


def write_text(path: Path, text: str) -> None:
    """Replace a file's text in one step: a reader sees the old text or the new one. Its mode stays; links are followed.

    Raises :class:`ConfigurationError` where it cannot be written; the old text is there then.
    """
    path = path.resolve()
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        mode = path.stat().st_mode & 0o7777 if path.exists() else NEW_FILE_MODE
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        temporary = Path(name)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink()
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from None
