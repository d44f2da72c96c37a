"""Whose work is being done: what the backends' threads and locks are shared out by."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Final

OWNER: Final[ContextVar[object | None]] = ContextVar("owner", default=None)
"""The association whose command runs, also in the tasks that it starts; None for the target's own work."""
