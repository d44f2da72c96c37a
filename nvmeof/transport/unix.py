"""Unix-domain sockets of one user: made so that nobody else can connect at any moment, with the peer's identity.

A socket is bound in a directory of its own that only its owner may enter, gets its mode there, and is then renamed to
its path. So there is no moment at which another user could connect, whatever the umask is, and it replaces the stale
socket of a process that has ended in one step. Whether a socket is stale is found by connecting (ECONNREFUSED), while
the directory is locked (flock), so that of two processes that start at once one finds the other's.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import socket
import stat
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from nvmeof.errors import ConfigurationError, TransportError

PATH_BYTES: Final = 107
"""The longest path of a socket (unix(7), sun_path)."""
UnixSocket: TypeAlias = socket.socket
"""A socket, for modules that hand one on and use none."""
_LOCK_SECONDS: Final = 1.0
_UCRED: Final = struct.Struct("=iII")


@dataclass(frozen=True, slots=True)
class PeerCredentials:
    """Who has connected, as the kernel noted it at that time (unix(7), SO_PEERCRED)."""

    pid: int
    uid: int
    gid: int


def peer_credentials(descriptor: int) -> PeerCredentials:
    """Return the identity of the process at the other end of a connected socket. Raises `OSError`."""
    with socket.socket(fileno=os.dup(descriptor)) as connection:
        return PeerCredentials(*_UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)))


def connected_socket(path: str | Path) -> UnixSocket:
    """Return a non-blocking socket that is connected to a path. Raises `OSError`; `BlockingIOError` when the listener's
    backlog is full: try again then (an event loop's own connect would take the socket for connected)."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        made.connect(os.fsencode(path))
    except BaseException:
        made.close()
        raise
    return made


class PrivateListener:
    """A listening Unix-domain socket at `path` with mode 0600; `socket` accepts the connections.

    Raises `ConfigurationError` for a path that cannot be one or where something else is, and `TransportError` where a
    live process has its socket there, or the directory does not let it be made.
    """

    def __init__(self, path: str | Path, backlog: int = 64) -> None:
        self.path = Path(path).absolute()
        if len(os.fsencode(self.path)) > PATH_BYTES or b"\0" in os.fsencode(self.path):
            raise ConfigurationError(f"the path of a socket has at most {PATH_BYTES} bytes: choose one above {path}")
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            with _locked(self.path.parent) as directory:
                self._check_free()
                self._bind(directory, backlog)
        except BaseException as error:
            self.socket.close()
            if isinstance(error, OSError) and not isinstance(error, TransportError):
                raise TransportError(f"the socket {self.path} cannot be made: {error.strerror or error}") from error
            raise
        made = self.path.lstat()
        self._identity = (made.st_dev, made.st_ino)

    def _check_free(self) -> None:
        """Raise unless there is nothing at the path, or the socket of a process that has ended."""
        try:
            found = self.path.lstat()
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(found.st_mode):
            raise ConfigurationError(f"{self.path} is there and is no socket: choose another path")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
            code = probe.connect_ex(str(self.path))
        if code == errno.ECONNREFUSED:
            return
        if code in (0, errno.EAGAIN):
            raise TransportError(f"another process listens at {self.path}: end it, or choose another path")
        raise TransportError(f"{self.path} cannot be looked at: {os.strerror(code)}")

    def _bind(self, directory: int, backlog: int) -> None:
        name = f".{secrets.token_hex(8)}"
        os.mkdir(name, 0o700, dir_fd=directory)
        inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
        try:
            self.socket.bind(f"/proc/self/fd/{inner}/s")  # short, however long the path is
            os.chmod("s", 0o600, dir_fd=inner)
            self.socket.listen(backlog)
            os.rename("s", self.path.name, src_dir_fd=inner, dst_dir_fd=directory)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink("s", dir_fd=inner)
            os.close(inner)
            os.rmdir(name, dir_fd=directory)

    def close(self) -> None:
        """Stop listening, and remove the socket unless another has taken its place. Idempotent."""
        self.socket.close()
        with contextlib.suppress(OSError):
            found = self.path.lstat()
            if (found.st_dev, found.st_ino) == self._identity:
                self.path.unlink()


@contextlib.contextmanager
def _locked(parent: Path) -> Iterator[int]:
    """Yield the descriptor of a directory, locked against others that make a socket there."""
    descriptor = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise TransportError(f"another process has locked {parent}: choose another directory") from None
                time.sleep(0.02)
        yield descriptor
    finally:
        os.close(descriptor)
