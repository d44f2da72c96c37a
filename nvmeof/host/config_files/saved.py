"""Saved connections: short names for the URLs of targets, in ``connections.json`` of the user's config directory.

The file is an object: ``{"lab": "nvme+mptcp://192.0.2.1:4420/NQN?nr_io_queues=2"}``.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Final

from nvmeof.errors import ConfigurationError
from nvmeof.host.config_files.files import read_text, write_text
from nvmeof.host.identity import config_directory
from nvmeof.host.url import EXAMPLE, TargetUrl, is_url

CONNECTIONS_JSON: Final = "connections.json"
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,63}")


def connections_file() -> Path:
    """Return where saved connections are."""
    return config_directory() / CONNECTIONS_JSON


def read_saved() -> dict[str, str]:
    """Return the URL of each saved connection. Raises :class:`ConfigurationError` for a file of another form."""
    path = connections_file()
    if not path.exists():
        return {}
    text = read_text(path)
    try:
        found = json.loads(text) if text.strip() else {}
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path} is not JSON ({error}): mend it, or remove it") from None
    if not isinstance(found, dict) or not all(isinstance(each, str) for each in found.values()):
        raise ConfigurationError(f"{path} is no object of names and URLs: mend it, or remove it")
    return found


def check_name(name: str) -> str:
    """Return the name, if a connection can be saved under it. Raises :class:`ConfigurationError`."""
    if not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"{name!r} is no name for a connection: begin with a letter, go on with letters, digits, '.', '_' and '-'"
        )
    return name


def save(name: str, url: TargetUrl) -> Path:
    """Save a connection, in place of one of this name; the file that it is in. Raises :class:`ConfigurationError`."""
    saved = {**read_saved(), check_name(name): str(url)}
    _write(saved)
    return connections_file()


def remove(name: str) -> None:
    """Forget a saved connection. Raises :class:`ConfigurationError` where there is none of this name."""
    saved = read_saved()
    if name not in saved:
        raise ConfigurationError(f"no connection is saved as {name!r}{_names(saved)}")
    del saved[name]
    _write(saved)


def _write(saved: dict[str, str]) -> None:
    write_text(connections_file(), json.dumps(saved, indent=2, sort_keys=True) + "\n")


def _names(saved: dict[str, str]) -> str:
    return f"; there are {', '.join(sorted(saved))}" if saved else ""


def find_target(text: str) -> TargetUrl:
    """Return the target that a URL or the name of a saved connection stands for. Raises :class:`ConfigurationError`."""
    if is_url(text):
        return TargetUrl.parse(text)
    saved = read_saved()
    if text not in saved:
        raise ConfigurationError(
            f"{text!r} is neither a URL, such as {EXAMPLE}, nor the name of a saved connection{_names(saved)}"
        )
    try:
        return TargetUrl.parse(saved[text])
    except ConfigurationError as error:
        raise ConfigurationError(f"{connections_file()}, {text!r}: {error}") from None
