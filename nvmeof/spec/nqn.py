"""NVMe Qualified Names (NVMe Base, NVMe Qualified Names) and host identifiers.

Names that a person configures are held to the format. Of names that a peer sends only length and termination matter,
as for the Linux kernel; an unknown name is refused because nothing has it, not because of its form.
"""

from __future__ import annotations

import re
import uuid

from nvmeof.errors import ConfigurationError
from nvmeof.spec.enums import DISCOVERY_NQN
from nvmeof.wire import Buffer

NQN_MAX_BYTES = 223
"""Longest name, without the terminating NUL."""

UUID_NQN_PREFIX = "nqn.2014-08.org.nvmexpress:uuid:"

_DATED = re.compile(r"nqn\.(\d{4})-(\d{2})\.([^:]+)(?::(.+))?", re.DOTALL)
_DOMAIN = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?")


def _shortened(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def check_nqn(text: str, what: str = "NQN") -> str:
    """``text`` if it can be sent as an NQN at all: 1 to 223 bytes, printable. For names of subsystems elsewhere.

    Linux lets its users name a subsystem anything, so a host that connects asks for no more than this.
    """
    if not text:
        raise ConfigurationError(f"{what} is empty")
    if len(text.encode("utf-8", "surrogatepass")) > NQN_MAX_BYTES:
        raise ConfigurationError(f"{what} {_shortened(text)!r} is longer than {NQN_MAX_BYTES} bytes")
    if not text.isprintable():
        raise ConfigurationError(f"{what} {_shortened(text)!r} contains characters that cannot be printed")
    return text


def validate_nqn(text: str, what: str = "NQN") -> str:
    """``text`` if it is a well-formed NQN: dated with a reversed domain, UUID-based, or the discovery NQN.

    Raises :class:`~nvmeof.errors.ConfigurationError` with one sentence that starts with ``what``.
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
    """The UUID-based NQN of ``value``, or of a new random UUID."""
    return UUID_NQN_PREFIX + str(value or uuid.uuid4())


def nqn_uuid(text: str) -> uuid.UUID | None:
    """The UUID of a UUID-based NQN; None for any other."""
    if not text.startswith(UUID_NQN_PREFIX):
        return None
    try:
        return uuid.UUID(text[len(UUID_NQN_PREFIX) :])
    except ValueError:
        return None


def terminated_nqn(field: Buffer) -> bool:
    """Whether the 256-byte field that a peer sent holds a name of 1 to 223 bytes and its NUL."""
    return 1 <= bytes(field).find(b"\0") <= NQN_MAX_BYTES
