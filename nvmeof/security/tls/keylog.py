"""The key log: secrets of handshakes in a file, for tshark to decrypt a capture with (SSLKEYLOGFILE).

Who reads the file reads the connections. So nothing is written unless somebody asks for it, and the file is made for
its owner alone. Format: NSS key log, which RFC 9850 describes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from typing import Final

from nvmeof.errors import ConfigurationError

VARIABLE: Final = "SSLKEYLOGFILE"
log = logging.getLogger("nvmeof.security")
_files: list[int] = []


def open_keylog(path: str | None) -> None:
    """Write the secrets of all handshakes from now on into a file, or, without one, into that of SSLKEYLOGFILE.

    A file that is there already must be of this user, and nobody else may read it. Raises `ConfigurationError` for
    another one, and for one that cannot be written.
    """
    path = path or os.environ.get(VARIABLE)
    if not path or _files:
        return
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
    except OSError as error:
        raise ConfigurationError(f"the key log {path} cannot be written: {error.strerror}") from None
    found = os.fstat(descriptor)
    if stat.S_ISREG(found.st_mode) and (found.st_uid != os.geteuid() or found.st_mode & (stat.S_IRWXG | stat.S_IRWXO)):
        os.close(descriptor)
        raise ConfigurationError(f"others may read the key log {path}: remove it, or chmod 600 {path}")
    _files.append(descriptor)
    log.warning("the secrets of all TLS connections are written into %s: who reads it can read them", path)


def keylog_open() -> bool:
    """Return whether secrets are written."""
    return bool(_files)


def close_keylog() -> None:
    """Write no further secrets. Idempotent."""
    while _files:
        os.close(_files.pop())


def write_line(line: bytes | None) -> None:
    """Append one line of a handshake, where there is a key log; a disk that is full costs the line alone."""
    if _files and line:
        with contextlib.suppress(OSError):
            os.write(_files[0], line + b"\n")
