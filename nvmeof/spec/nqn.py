"""NVMe Qualified Names (NVMe Base, NVMe Qualified Names) and host identifiers.

Names that come from outside (a command line, a file, a peer) need only be 1 to 223 bytes without control characters:
users of the Linux kernel name subsystems and hosts as they like. The strict form is for names that are made here.
"""

from __future__ import annotations

import re
import unicodedata
import uuid

from nvmeof.errors import ConfigurationError
from nvmeof.spec.enums import DISCOVERY_NQN
from nvmeof.wire import Buffer

NQN_MAX_BYTES = 223
"""Longest name, without the terminating NUL."""

UUID_NQN_PREFIX = "nqn.2014-08.org.nvmexpress:uuid:"

_CONTROL = frozenset({"Cc", "Cs", "Zl", "Zp"})
"""Unicode categories that no name may contain."""
_DATED = re.compile(r"nqn\.(\d{4})-(\d{2})\.([^:]+)(?::(.+))?", re.DOTALL)
_DOMAIN = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?")


def _shortened(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def has_control_characters(text: str) -> bool:
    """Return whether a name could break a line or drive a terminal: control characters, line separators, surrogates."""
    if text.isascii() and text.isprintable():  # as good as all are
        return False
    return any(unicodedata.category(character) in _CONTROL for character in text)


def check_nqn(text: str, what: str = "NQN") -> str:
    """Return ``text`` if it can be sent as an NQN: 1 to 223 bytes without control characters.

    For every name that comes from outside. Raises :class:`~nvmeof.errors.ConfigurationError`, one sentence that starts
    with ``what``. Source: drivers/nvme/host/fabrics.c and drivers/nvme/target/configfs.c look at the length only.
    """
    if not text:
        raise ConfigurationError(f"{what} is empty")
    if len(text.encode("utf-8", "surrogatepass")) > NQN_MAX_BYTES:
        raise ConfigurationError(f"{what} {_shortened(text)!r} is longer than {NQN_MAX_BYTES} bytes")
    if has_control_characters(text):
        raise ConfigurationError(f"{what} {_shortened(text)!r} contains control characters")
    return text


def validate_nqn(text: str, what: str = "NQN") -> str:
    """Return ``text`` if it is a well-formed NQN: dated with a reversed domain, UUID-based, or the discovery NQN.

    For names that are made here; names from outside need only pass :func:`check_nqn`. Raises
    :class:`~nvmeof.errors.ConfigurationError` with one sentence that starts with ``what``.
    """
    check_nqn(text, what)
    shown = _shortened(text)
    if text.startswith(UUID_NQN_PREFIX):
        _validate_uuid(text, what)
        return text
    match = _DATED.fullmatch(text)
    if match is None:
        raise ConfigurationError(
            f"{what} {shown!r} is not of the form nqn.YYYY-MM.REVERSED.DOMAIN:NAME (as nqn.2026-01.org.example:disk)"
        )
    if not 1 <= int(match[2]) <= 12:
        raise ConfigurationError(f"{what} {shown!r} has a date with month {match[2]}, which does not exist")
    if _DOMAIN.fullmatch(match[3]) is None or ".." in match[3]:
        raise ConfigurationError(f"{what} {shown!r} has no valid reversed domain after its date: {match[3]!r}")
    if match[4] is None and text != DISCOVERY_NQN:
        raise ConfigurationError(f"{what} {shown!r} lacks a colon and a name after the domain")
    return text


def _validate_uuid(text: str, what: str) -> None:
    tail = text[len(UUID_NQN_PREFIX) :]
    try:
        well_formed = str(uuid.UUID(tail)) == tail.lower()
    except ValueError:
        well_formed = False
    if not well_formed:
        raise ConfigurationError(f"{what} {text!r} does not end with a UUID")


def uuid_nqn(value: uuid.UUID | None = None) -> str:
    """Return the UUID-based NQN of ``value``, or of a new random UUID."""
    return UUID_NQN_PREFIX + str(value or uuid.uuid4())


def nqn_uuid(text: str) -> uuid.UUID | None:
    """Return the UUID of a UUID-based NQN; None for any other."""
    if not text.startswith(UUID_NQN_PREFIX):
        return None
    try:
        return uuid.UUID(text[len(UUID_NQN_PREFIX) :])
    except ValueError:
        return None


def unnamed_host(hostid: bytes) -> str:
    """Make a name for a host whose Connect has an empty HOSTNQN: its HOSTID distinguishes it."""
    return f"(no HOSTNQN, HOSTID {uuid.UUID(bytes=bytes(hostid))})"


def terminated_nqn(field: Buffer) -> bool:
    """Return whether the 256-byte field that a peer sent holds a name of 1 to 223 bytes and its NUL."""
    return 1 <= bytes(field).find(b"\0") <= NQN_MAX_BYTES
