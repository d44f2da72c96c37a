"""Where the control socket is, unless a path was given: one rule for the target and for those that control it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from nvmeof.errors import ConfigurationError

AUTO: Final = "auto"
"""The word for `default_path`."""
VARIABLE: Final = "NVMEOF_CONTROL"
"""The environment variable that names the socket for command lines."""
_NAME: Final = "nvmeof-target.sock"


def default_path() -> Path:
    """Return the path of a user's only target: in XDG_RUNTIME_DIR, or in /run for root.

    Raises `ConfigurationError` for a user who has no such directory.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if Path(runtime).is_absolute():
        return Path(runtime, _NAME)
    if os.geteuid() == 0:
        return Path("/run", _NAME)
    raise ConfigurationError("there is no XDG_RUNTIME_DIR here: give the path of the control socket")


def control_path(text: str | None) -> Path:
    """Return the path that an option names; None or ``auto``: the default. Raises `ConfigurationError`."""
    return default_path() if text in (None, "", AUTO) else Path(str(text))
