"""A keeper in a file of its own: one JSON object, replaced as a whole and synchronously with every change."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

from nvmeof.errors import ConfigurationError
from nvmeof.target.backend import syscalls
from nvmeof.target.backend.file_calls import NOT_SUPPORTED
from nvmeof.target.backend.saver import Saver

_FORMAT: Final = 1
_BYTES_MAX: Final = 256 << 20


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no JSON")


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _text(values: dict[str, Any]) -> str:
    return json.dumps({"nvmeof": _FORMAT, "kept": values}, indent=1)


def _lock(fd: int) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise


class FileKeeper:
    """Implements :class:`nvmeof.target.keeper.Keeper`. The file exists while there is something to keep.

    Raises `ConfigurationError` for a file that is not what one of these has written.
    """

    durable = True

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).resolve()
        self.origin = str(path)
        self._saver = Saver(self._begin)
        self._lock = -1
        self._values = self._read()

    def _read(self) -> dict[str, Any]:
        try:
            # Whatever else is there may be endless, or never come to a beginning.
            status = self.path.stat()
            if not stat.S_ISREG(status.st_mode):
                raise ConfigurationError(f"nothing can be kept in {self.path}: it is no regular file")
            if status.st_size > _BYTES_MAX:
                raise self._unknown()
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return {}
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
        return kept

    # One process at a time, for a file with no lock on something beside it

    def hold(self) -> None:
        """Nobody else may hold it until `release`; what is kept is read again, and the file is there meanwhile.

        Raises `ConfigurationError` when somebody does, or when nothing can be kept there.
        """
        if self._lock >= 0:
            return
        try:
            while True:
                with contextlib.suppress(FileNotFoundError):
                    fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
                    try:
                        _lock(fd)
                        # Whoever had it before may have replaced the file just then.
                        if os.fstat(fd).st_ino == self.path.stat().st_ino:
                            break
                    except BaseException:
                        os.close(fd)
                        raise
                    os.close(fd)
                    continue
                self._replace(_text({}), new=True)
        except BlockingIOError as error:
            raise ConfigurationError(f"{self.path} is in use by another process") from error
        except OSError as error:
            raise ConfigurationError(f"nothing can be kept in {self.path}: {error.strerror}") from error
        self._lock = fd
        try:
            self._values = self._read()
        except BaseException:
            self._let_go()
            raise

    async def release(self) -> None:
        """The end: what is being written is waited for."""
        await self.close()
        self._let_go()

    def _let_go(self) -> None:
        fd, self._lock = self._lock, -1
        if fd >= 0:
            os.close(fd)

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
        return self._saver.save()

    async def close(self) -> None:
        """Wait for what is being written."""
        await self._saver.finish()

    def _begin(self) -> Callable[[], None]:
        return partial(self._replace, _text(self._values) if self._values or self._lock >= 0 else None)

    def _replace(self, text: str | None, *, new: bool = False) -> None:
        """In a thread. A crash at any point leaves the old file or the new one. `new`: unless there is an old one."""
        if text is None:
            self.path.unlink(missing_ok=True)
        else:
            other = self.path.with_name(self.path.name + ".new")
            try:
                # Hosts' names, addresses and keys are in it; whom else its owner lets read it, may.
                with open(other, "w", encoding="utf-8", opener=_private) as file:
                    with contextlib.suppress(FileNotFoundError):
                        os.fchmod(file.fileno(), stat.S_IMODE(self.path.stat().st_mode))
                    if self._lock >= 0:
                        _lock(file.fileno())
                    file.write(text)
                    file.flush()
                    os.fsync(file.fileno())
                    if new:
                        with contextlib.suppress(FileExistsError):
                            os.link(other, self.path)
                        other.unlink()
                    else:
                        other.replace(self.path)
                    if self._lock >= 0:
                        os.dup2(file.fileno(), self._lock, inheritable=False)
            except OSError:
                with contextlib.suppress(OSError):
                    other.unlink(missing_ok=True)
                raise
        syscalls.sync_directory(self.path.parent)
