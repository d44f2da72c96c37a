"""A metadata store in a file: one JSON object, replaced as a whole with every change."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import stat
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from typing import Any, Final

from nvmeof.errors import ConfigurationError
from nvmeof.target.core.metadata import DATA_SECTIONS, POOL_SECTIONS, NotKeptError
from nvmeof.target.storage import kept_document, syscalls
from nvmeof.target.storage.fault_log import FaultLog
from nvmeof.target.storage.file_calls import NOT_SUPPORTED
from nvmeof.target.storage.write_coalescer import settle

_BYTES_MAX: Final = 256 << 20
_ALL_SECTIONS: Final = DATA_SECTIONS | POOL_SECTIONS

logger = logging.getLogger(__name__)


def _private(path: str, flags: int) -> int:
    """Open a draft for its owner alone, also where one of another mode was left; a link in its place is refused."""
    descriptor = os.open(path, flags | os.O_NOFOLLOW, 0o600)
    try:
        os.fchmod(descriptor, 0o600)  # of a file of somebody else it fails
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _lock(fd: int) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise


class JsonFileStore:
    """Implements :class:`nvmeof.target.core.metadata.MetadataStore`. The file exists while there is something to keep.

    `sections`: the names that may be in it. Raises `ConfigurationError` for a file that is not what one of these has
    written.
    """

    durable = True

    def __init__(self, path: str | os.PathLike[str], *, sections: Collection[str] = _ALL_SECTIONS) -> None:
        kept_document.check_link(Path(path))
        self.path = Path(path).resolve()
        self.origin = str(path)
        self._sections = sections
        self._lock = -1
        self._checked = True  # whether the file has a checksum, or is not there
        self._values = self._read()
        self._durable = dict(self._values)  # what is in the file
        self._waiting: list[tuple[str, asyncio.Future[None]]] = []
        self._saving: asyncio.Task[None] | None = None
        self._exposed = False  # the file has been replaced, and that is not on the media yet
        self._watchers: dict[str, Callable[[], None]] = {}
        self._faults = FaultLog(logger)

    def _read(self) -> dict[str, Any]:
        self._checked = True
        try:
            # Other file types (pipes, devices) may block when opened, or never end.
            status = self.path.stat()
            if not stat.S_ISREG(status.st_mode):
                raise ConfigurationError(f"cannot use {self.path} as a state file: not a regular file")
            if status.st_size > _BYTES_MAX:
                raise ConfigurationError(
                    f"{self.path} is too large to be a state file of this version; "
                    "move it away to start with empty state"
                )
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return {}
        except UnicodeDecodeError as error:
            raise ConfigurationError(
                f"{self.path} is not a state file of this version, or is damaged (no UTF-8): restore it from a copy, "
                "or move it away to start with empty state"
            ) from error
        except OSError as error:
            raise ConfigurationError(f"cannot read {self.path}: {error.strerror}") from error
        try:
            stored, self._checked = kept_document.parse(text, self._sections)
        except ValueError as error:
            raise ConfigurationError(f"{self.path} {error}") from error
        return stored

    def add_checksum(self) -> None:
        """Write a file that has no checksum once more, with one. It must be locked. A failure is a line of the log."""
        if self._checked:
            return
        logger.warning("%s has no checksum: it is taken as it is, and written with one", self.path)
        try:
            self._replace(kept_document.build(self._values))
            self._checked = True
        except OSError as error:
            logger.warning("%s cannot be written with a checksum: %s", self.path, error.strerror or error)

    # One process at a time, for a file with no lock on something beside it

    def hold(self) -> None:
        """Lock the file until `release`, create it if needed, and read its sections again. Raises `ConfigurationError`
        when another process holds the lock, or when the path cannot be a state file.
        """
        if self._lock >= 0:
            return
        try:
            while True:
                with contextlib.suppress(FileNotFoundError):
                    fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
                    try:
                        _lock(fd)
                        # The previous holder may have replaced the file just then.
                        if os.fstat(fd).st_ino == self.path.stat().st_ino:
                            break
                    except BaseException:
                        os.close(fd)
                        raise
                    os.close(fd)
                    continue
                self._replace(kept_document.build({}), new=True)
        except BlockingIOError as error:
            raise ConfigurationError(f"{self.path} is in use by another process") from error
        except OSError as error:
            raise ConfigurationError(f"cannot use {self.path} as a state file: {error.strerror}") from error
        self._lock = fd
        try:
            self._values = self._read()
            self._durable = dict(self._values)
        except BaseException:
            self._let_go()
            raise
        self.add_checksum()

    async def release(self) -> None:
        """Wait for the write in progress, then release the lock."""
        await self.close()
        self._let_go()

    def _let_go(self) -> None:
        fd, self._lock = self._lock, -1
        if fd >= 0:
            os.close(fd)

    @property
    def values(self) -> dict[str, Any]:
        """All sections, as they are now."""
        return dict(self._values)

    def get(self, section: str) -> Any:
        """Return the value that was put last in a section; None for an empty section."""
        return self._values.get(section)

    def watch(self, section: str, withdrawn: Callable[[], None]) -> None:
        """Call `withdrawn` in the step in which a value of the section is found not to have been stored."""
        self._watchers[section] = withdrawn

    def put(self, section: str, value: Any) -> Awaitable[None]:
        """Keep a value (None: nothing); done when it is on non-volatile media, or ended with `NotKeptError`.

        Values that come while one is written go with the next write, all together. A value that cannot be stored is
        withdrawn, and so are those of the same section that came after it: they were made of it.
        """
        if section not in self._sections:
            raise ValueError(f"{section!r} is no section of {self.path}")
        _set(self._values, section, value)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._waiting.append((section, future))
        if self._saving is None:
            self._saving = loop.create_task(self._save())
        return future

    async def close(self) -> None:
        """Wait for what is being written."""
        if self._saving is not None:
            await self._saving

    async def _save(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            values = dict(self._values)
            text = kept_document.build(values) if values or self._lock >= 0 else None
            try:
                await asyncio.to_thread(self._replace, text)
            except OSError as error:
                self._withdraw(batch, error)
                if self._exposed:
                    await self._put_back()
            else:
                self._durable, self._checked = values, True
                settle([future for _, future in batch], None)
        self._saving = None

    def _withdraw(self, batch: list[tuple[str, asyncio.Future[None]]], error: OSError) -> None:
        self._faults.error(error.errno, f"cannot write {self.path}: {error.strerror or error}; nothing was changed")
        sections = dict.fromkeys(section for section, _ in batch)
        batch = batch + [each for each in self._waiting if each[0] in sections]
        self._waiting = [each for each in self._waiting if each[0] not in sections]
        for section in sections:
            _set(self._values, section, self._durable.get(section))
            watcher = self._watchers.get(section)
            if watcher is not None:
                watcher()
        settle([future for _, future in batch], NotKeptError(error.errno, error.strerror or str(error)))

    async def _put_back(self) -> None:
        """Write the previous content once more, after a new file that could not be made durable has taken the name."""
        text = kept_document.build(self._durable) if self._durable or self._lock >= 0 else None
        with contextlib.suppress(OSError):
            await asyncio.to_thread(self._replace, text)

    def _replace(self, text: str | None, *, new: bool = False) -> None:
        """Replace the file, in a thread. A crash at any point leaves the old file or the new one. `new`: fail if the
        file exists."""
        if text is None:
            self.path.unlink(missing_ok=True)
            self._exposed = True
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
                        self._exposed = True
                    if self._lock >= 0:
                        os.dup2(file.fileno(), self._lock, inheritable=False)
            except OSError:
                with contextlib.suppress(OSError):
                    other.unlink(missing_ok=True)
                raise
        syscalls.sync_directory(self.path.parent)
        self._exposed = False


def _set(values: dict[str, Any], section: str, value: Any) -> None:
    if value is None:
        values.pop(section, None)
    else:
        values[section] = value
