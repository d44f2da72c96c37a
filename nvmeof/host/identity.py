"""Who this host is: host NQN and host identifier, from where nvme-cli keeps them, or made once and stored."""

from __future__ import annotations

import logging
import os
import uuid
from pathlib import Path

from nvmeof.errors import ConfigurationError
from nvmeof.spec.nqn import check_nqn, nqn_uuid, uuid_nqn

log = logging.getLogger("nvmeof.identity")

SYSTEM_DIRECTORY = Path("/etc/nvme")


def config_directory() -> Path:
    """Return ``$XDG_CONFIG_HOME/nvmeof``, by default ``~/.config/nvmeof``."""
    base = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(base).expanduser() / "nvmeof"


def host_identity(hostnqn: str | None = None, hostid: str | uuid.UUID | None = None) -> tuple[str, uuid.UUID]:
    """Return the host NQN and identifier to use: the arguments, else those in /etc/nvme, else this user's, made on
    first use.

    The two go together: of a given NQN the identifier is derived (its UUID, where it has one), never mixed with a
    file's. Raises :class:`ConfigurationError` for what is malformed.
    """
    given_id = _parse_hostid(hostid, "the host identifier") if hostid else None
    if hostnqn:
        check_nqn(hostnqn, "the host NQN")
        return hostnqn, given_id or nqn_uuid(hostnqn) or uuid.uuid5(uuid.NAMESPACE_URL, hostnqn)
    for directory in (SYSTEM_DIRECTORY, config_directory()):
        nqn = _read(directory / "hostnqn")
        if nqn:
            check_nqn(nqn, f"the host NQN in {directory / 'hostnqn'}")
            kept = _read(directory / "hostid")
            kept_id = _parse_hostid(kept, f"the host identifier in {directory / 'hostid'}") if kept else None
            return nqn, given_id or kept_id or nqn_uuid(nqn) or uuid.uuid5(uuid.NAMESPACE_URL, nqn)
    made = uuid.uuid4()
    if not _keep(config_directory(), uuid_nqn(made), str(made)):
        return host_identity(None, hostid)  # another process was faster
    return uuid_nqn(made), given_id or made


def _parse_hostid(value: str | uuid.UUID, what: str) -> uuid.UUID:
    if isinstance(value, uuid.UUID):
        return value
    try:
        return uuid.UUID(value)
    except ValueError:
        raise ConfigurationError(f"{what} is no UUID: {value!r}") from None


def _read(path: Path) -> str:
    """Return the first line of a file, which is all that libnvme takes of it; empty where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8").strip().partition("\n")[0].strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _keep(directory: Path, nqn: str, hostid: str) -> bool:
    """Write both files, of which the NQN's appears whole; False: another process was first, and its NQN is there."""
    draft = directory / f".hostnqn.{hostid}"
    path = directory / "hostnqn"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        draft.write_text(nqn + "\n", encoding="utf-8")
        try:
            path.hardlink_to(draft)
        except OSError:
            if _read(path):
                return False
            draft.replace(path)  # it names no host, or the file system has no hard links
        finally:
            draft.unlink(missing_ok=True)
        (directory / "hostid").write_text(hostid + "\n", encoding="utf-8")
    except OSError as error:
        log.warning("the host NQN %s is for this time only: %s cannot be written (%s)", nqn, directory, error.strerror)
    return True
