"""A keeper in a file of its own: one JSON object, replaced as a whole and synchronously with every change."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import stat
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, Final

from nvmeof.errors import ConfigurationError
from nvmeof.target.backend import syscalls

_FORMAT: Final = 1


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no JSON")


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


class FileKeeper:
    """Implements :class:`nvmeof.target.keeper.Keeper`. The file exists while there is something to keep.

    Raises `ConfigurationError` for a file that is not what one of these has written.
    """

    durable = True

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).resolve()
        self.origin = str(path)
        self._values: dict[str, Any] = {}
        self._waiters: list[asyncio.Future[None]] = []
        self._saving: asyncio.Task[None] | None = None
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return
        except UnicodeDecodeError as error:
            raise self._unknown() from error
        except OSError as error:
            raise ConfigurationError(f"cannot read {self.path}: {error.strerror}") from error
        try:
            document = json.loads(text, parse_constant=_no_number)
            kept = document["kept"]
            if document["nvmeof"] != _FORMAT or not isinstance(kept, dict):
                raise self._unknown()
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise self._unknown() from error
        self._values = kept

    def _unknown(self) -> ConfigurationError:
        return ConfigurationError(f"{self.path} is not what this version keeps: move it away to start anew")

    @property
    def values(self) -> dict[str, Any]:
        """All sections, as they are now."""
        return dict(self._values)

    def get(self, section: str) -> Any:
        """What was put last; None for nothing."""
        return self._values.get(section)

    def put(self, section: str, value: Any) -> Awaitable[None]:
        """Keep a value (None: nothing); done when it is on non-volatile media, or ended with `OSError`.

        Values that come while one is written go with the next write, all together.
        """
        if value is None:
            self._values.pop(section, None)
        else:
            self._values[section] = value
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._waiters.append(future)
        if self._saving is None:
            self._saving = loop.create_task(self._save())
        return future

    async def close(self) -> None:
        """Wait for what is being written."""
        if self._saving is not None:
            await self._saving

    async def _save(self) -> None:
        while self._waiters:
            waiters, self._waiters = self._waiters, []
            text = json.dumps({"nvmeof": _FORMAT, "kept": self._values}, indent=1) if self._values else None
            error: OSError | None = None
            try:
                await asyncio.to_thread(self._replace, text)
            except OSError as caught:
                error = caught
            for waiter in waiters:
                if waiter.done():
                    continue
                if error is None:
                    waiter.set_result(None)
                else:
                    waiter.set_exception(error)
        self._saving = None

    def _replace(self, text: str | None) -> None:
        """In a thread. A crash at any point leaves the old file or the new one."""
        if text is None:
            self.path.unlink(missing_ok=True)
        else:
            new = self.path.with_name(self.path.name + ".new")
            try:
                # Hosts' names, addresses and keys are in it; whom else its owner lets read it, may.
                with open(new, "w", encoding="utf-8", opener=_private) as file:
                    with contextlib.suppress(FileNotFoundError):
                        os.fchmod(file.fileno(), stat.S_IMODE(self.path.stat().st_mode))
                    file.write(text)
                    file.flush()
                    os.fsync(file.fileno())
                new.replace(self.path)
            except OSError:
                with contextlib.suppress(OSError):
                    new.unlink(missing_ok=True)
                raise
        syscalls.sync_directory(self.path.parent)
