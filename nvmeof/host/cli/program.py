"""The name of the host's program."""

from __future__ import annotations

from typing import Final

PROGRAM: Final = "nvmeof-host"
