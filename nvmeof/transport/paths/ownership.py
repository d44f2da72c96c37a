"""Records which process added what to this network namespace, so that only that is removed again.

The kernel does not remember who added an endpoint or changed a limit. One file per network namespace records it, with
the processes that hold each entry: an endpoint goes with the last of them. A process that died without taking its
entries back is found by its id and start time, by the next process that opens the record.

The file is `paths-<namespace>.json` in /run/nvmeof (root), $XDG_RUNTIME_DIR/nvmeof or a private directory below the
temporary one; $NVMEOF_STATE_DIR overrides that. It is replaced in one step, under an exclusive lock on a file beside
it.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import secrets
import socket
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from nvmeof.errors import TransportError
from nvmeof.transport.base import log
from nvmeof.transport.paths.model import PathEndpoint, PathFlag

SO_NETNS_COOKIE: Final = 71
PERMANENT: Final = "administrator"
"""The holder of what a command added for good: never dead, until a command takes it back."""
_VERSION: Final = 1
_counter = itertools.count(1)


@dataclass(slots=True)
class OwnedEndpoint:
    """An endpoint that one of us added."""

    address: str
    device: str | None
    port: int | None
    flags: int
    holders: list[str]

    @property
    def key(self) -> tuple[str, int | None]:
        return self.address, self.port

    def endpoint(self) -> PathEndpoint:
        """Return the endpoint as it was added."""
        return PathEndpoint(address=self.address, device=self.device, port=self.port, flags=PathFlag(self.flags))

    def is_still(self, kernel: PathEndpoint) -> bool:
        """Return whether the kernel's endpoint is the one that this record added, not a successor with another purpose.

        What the kernel made in its place by itself, for a subflow to an announced address, counts as ours.
        """
        if self.key == kernel.key and kernel.flags & PathFlag.IMPLICIT:
            return True
        roles = PathFlag.SIGNAL | PathFlag.SUBFLOW
        same_role = PathFlag(self.flags) & roles == kernel.flags & roles
        return self.key == kernel.key and self.device == kernel.device and same_role


@dataclass(slots=True)
class OwnedSetting:
    """A value that one of us changed, and what it was before the first change."""

    before: list[int] | str
    set: list[int] | str
    holders: list[str]


@dataclass(slots=True)
class Record:
    """The content of the file."""

    holders: dict[str, dict[str, Any]] = field(default_factory=dict)
    endpoints: list[OwnedEndpoint] = field(default_factory=list)
    settings: dict[str, OwnedSetting] = field(default_factory=dict)

    def find(self, key: tuple[str, int | None]) -> OwnedEndpoint | None:
        """Return the entry for an address and port."""
        return next((each for each in self.endpoints if each.key == key), None)

    def dead(self) -> list[str]:
        """Return the holders whose process is gone."""
        return [name for name, facts in self.holders.items() if name != PERMANENT and not _alive(facts)]

    @classmethod
    def from_json(cls, text: str) -> Record:
        """Read the file's content. Raises ValueError, KeyError, TypeError for anything that is no record."""
        data = json.loads(text)
        if data["version"] != _VERSION:
            raise ValueError(data["version"])
        return cls(
            holders=dict(data["holders"]),
            endpoints=[OwnedEndpoint(**each) for each in data["endpoints"]],
            settings={name: OwnedSetting(**each) for name, each in data["settings"].items()},
        )

    def to_json(self) -> str:
        """Return the file's content."""
        return json.dumps({"version": _VERSION, **asdict(self)}, indent=1)


class Ledger:
    """Access to the record of the network namespace that this process is in, in the name of one holder."""

    def __init__(self, what: str, *, permanent: bool = False, directory: Path | None = None) -> None:
        self.holder = PERMANENT if permanent else f"{os.getpid()}-{next(_counter)}-{secrets.token_hex(4)}"
        self._facts = {"what": what, **_this_process()}
        self._path = (directory or state_directory()) / f"paths-{namespace_key()}.json"

    @property
    def path(self) -> Path:
        """The record's file."""
        return self._path

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Record]:
        """Yield the locked record; its changes are written when the block ends, also by an exception."""
        with self._locked():
            record = self._read()
            record.holders.setdefault(self.holder, self._facts)
            try:
                yield record
            finally:
                self._write(record)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock; its file goes with the record."""
        path = self._path.with_suffix(".lock")
        while True:
            with path.open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                try:
                    current = path.stat().st_ino == os.fstat(lock.fileno()).st_ino
                except FileNotFoundError:
                    current = False
                if not current:
                    continue  # the previous holder removed the file since
                try:
                    yield
                finally:
                    if not self._path.exists():
                        path.unlink(missing_ok=True)
                return

    def _read(self) -> Record:
        try:
            return Record.from_json(self._path.read_text())
        except FileNotFoundError:
            return Record()
        except (ValueError, KeyError, TypeError) as error:
            aside = self._path.with_suffix(".damaged")
            log.warning(
                "%s is damaged (%s): moved to %s; a new one is begun", self._path, type(error).__name__, aside.name
            )
            self._path.replace(aside)
            return Record()

    def _write(self, record: Record) -> None:
        used = {name for each in record.endpoints for name in each.holders}
        used |= {name for setting in record.settings.values() for name in setting.holders}
        record.holders = {name: facts for name, facts in record.holders.items() if name in used}
        if not record.holders:
            self._path.unlink(missing_ok=True)
            return
        new = self._path.with_suffix(".new")
        new.write_text(record.to_json())
        new.replace(self._path)


def namespace_key() -> str:
    """Return the key of this network namespace, unique on this machine and since its last start."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8]
    except OSError:
        boot = "boot"
    # an inode number may be given again once its namespace is gone, a cookie (Linux 5.14) is not
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        cookie = probe.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8)
        return f"{boot}-{int.from_bytes(cookie, sys.byteorder)}"
    return f"{boot}-i{Path('/proc/self/ns/net').stat().st_ino}"


def state_directory() -> Path:
    """Return a directory that only this user writes to, and that a restart of the machine empties. Raises
    TransportError."""
    given = os.environ.get("NVMEOF_STATE_DIR")
    if given:
        candidates = [Path(given)]
    else:
        runtime = os.environ.get("XDG_RUNTIME_DIR")
        candidates = [Path("/run/nvmeof")] if os.geteuid() == 0 else []
        candidates += [Path(runtime) / "nvmeof"] if runtime else []
        candidates += [Path(tempfile.gettempdir()) / f"nvmeof-{os.geteuid()}"]
    for directory in candidates:
        try:
            directory.mkdir(mode=0o700, exist_ok=True)
            status = directory.stat(follow_symlinks=False)
        except OSError:
            continue
        if status.st_uid == os.geteuid() and directory.is_dir() and os.access(directory, os.W_OK):
            return directory
    raise TransportError(f"no directory to keep a record of the paths in: {candidates[-1]} is not ours or not writable")


def _this_process() -> dict[str, Any]:
    return {"pid": os.getpid(), "started": _started(os.getpid()), "pid_namespace": _pid_namespace()}


def _alive(facts: dict[str, Any]) -> bool:
    if facts.get("pid_namespace") != _pid_namespace():
        return True  # a process that cannot be seen from here may well live
    return bool(facts.get("started")) and _started(int(facts["pid"])) == facts["started"]


def _started(pid: int) -> int | None:
    """Return when a process was started, in clock ticks since the machine's start; None for an unknown id."""
    try:
        # the name in parentheses may hold anything
        rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return None if rest[0] in ("Z", "X") else int(rest[19])


def _pid_namespace() -> int | None:
    try:
        return Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return None
