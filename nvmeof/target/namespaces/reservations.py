"""The reservation of one namespace and its registrants: a value, and what the commands make of it.

Nothing here is changed in place: an action gives back the state that follows, with whom it concerns. Rules are those of
NVMe Base, Reservations; what a reservation keeps whom from is the table `BARRED`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from types import MappingProxyType
from typing import Any, Final

from nvmeof.errors import CommandError
from nvmeof.spec.reservations import (
    ALL_REGISTRANTS,
    CDW10_TYPE,
    HOST_ID_BYTES,
    KEY_MAX,
    NotificationType,
    RegisterAction,
    ReservationType,
)
from nvmeof.spec.sqe import SQE
from nvmeof.spec.status import Status

REGISTRANTS_MAX: Final = 0xFFFF
"""What a report can count; there are fewer controllers than that."""
_GENERATION_MASK: Final = 0xFFFFFFFF
_OPCODE = SQE.error_location("opcode")
_DATA = SQE.error_location("sgl_address")
_RTYPE = SQE.error_location("cdw10", CDW10_TYPE)


class Group(Enum):
    """The group of a command in the rules of reservations."""

    READ = "read command group"
    WRITE = "write command group"
    OTHER = "all other commands"


class Standing(Enum):
    """The relation of a host to a reservation."""

    HOLDER = "reservation holder"
    REGISTRANT = "registrant"
    NON_REGISTRANT = "non-registrant"


_NOBODY: frozenset[Standing] = frozenset()
_STRANGERS = frozenset({Standing.NON_REGISTRANT})
_OTHERS = frozenset({Standing.NON_REGISTRANT, Standing.REGISTRANT})

BARRED: Mapping[ReservationType, Mapping[Group, frozenset[Standing]]] = {
    ReservationType.WRITE_EXCLUSIVE: {Group.READ: _NOBODY, Group.WRITE: _OTHERS},
    ReservationType.EXCLUSIVE_ACCESS: {Group.READ: _OTHERS, Group.WRITE: _OTHERS},
    ReservationType.WRITE_EXCLUSIVE_REGISTRANTS_ONLY: {Group.READ: _NOBODY, Group.WRITE: _STRANGERS},
    ReservationType.EXCLUSIVE_ACCESS_REGISTRANTS_ONLY: {Group.READ: _STRANGERS, Group.WRITE: _STRANGERS},
    ReservationType.WRITE_EXCLUSIVE_ALL_REGISTRANTS: {Group.READ: _NOBODY, Group.WRITE: _STRANGERS},
    ReservationType.EXCLUSIVE_ACCESS_ALL_REGISTRANTS: {Group.READ: _STRANGERS, Group.WRITE: _STRANGERS},
}
"""Who gets a Reservation Conflict (NVMe Base, Command Behavior in the Presence of a Reservation).

Reservation commands are in no group: what they are refused for depends on their keys.
"""


@dataclass(frozen=True, slots=True)
class Notice:
    """A notification for the controllers of these hosts."""

    kind: NotificationType
    hosts: frozenset[bytes]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of an action. `preempted`: hosts whose commands Preempt and Abort aborts."""

    state: Reservations
    notices: tuple[Notice, ...] = ()
    preempted: frozenset[bytes] = frozenset()


def _conflict(message: str, location: int = _OPCODE) -> CommandError:
    return CommandError(Status.RESERVATION_CONFLICT, location, message=message)


def _notices(*candidates: Notice) -> tuple[Notice, ...]:
    return tuple(notice for notice in candidates if notice.hosts)


@dataclass(frozen=True, slots=True)
class Reservations:
    """Registrants are host identifiers with their keys, in the order of registration.

    `rtype` None: no reservation. `holder`: its one holder; all registrants hold the types for All Registrants, and it
    is empty then. `persistent`: PTPL, all of this outlives a power loss. `generation`: GEN.
    """

    registrants: Mapping[bytes, int] = field(default_factory=lambda: MappingProxyType({}))
    rtype: ReservationType | None = None
    holder: bytes = b""
    generation: int = 0
    persistent: bool = False

    # Questions

    def holds(self, host: bytes) -> bool:
        """Return whether a host holds the reservation."""
        if self.rtype is None:
            return False
        return host in self.registrants if self.rtype in ALL_REGISTRANTS else host == self.holder

    def standing(self, host: bytes) -> Standing:
        """Return the relation of a host to the reservation."""
        if self.holds(host):
            return Standing.HOLDER
        return Standing.REGISTRANT if host in self.registrants else Standing.NON_REGISTRANT

    def bars(self, host: bytes, group: Group) -> bool:
        """Return whether a command of that group from that host conflicts with the reservation."""
        if self.rtype is None or group is Group.OTHER:
            return False
        return self.standing(host) in BARRED[self.rtype][group]

    def _others(self, host: bytes) -> frozenset[bytes]:
        return frozenset(self.registrants) - {host}

    def _check_key(self, host: bytes, key: int) -> None:
        if host not in self.registrants:
            raise _conflict("the host is not registered")
        if self.registrants[host] != key:
            raise _conflict("CRKEY is not the key that the host has registered", _DATA)

    # Steps

    def _with(self, registrants: Mapping[bytes, int]) -> Reservations:
        return replace(self, registrants=MappingProxyType(dict(registrants)))

    def _counted(self) -> Reservations:
        return replace(self, generation=(self.generation + 1) & _GENERATION_MASK)

    def _released(self) -> Reservations:
        return replace(self, rtype=None, holder=b"")

    def _reserved(self, host: bytes, rtype: ReservationType) -> Reservations:
        return replace(self, rtype=rtype, holder=b"" if rtype in ALL_REGISTRANTS else host)

    def _without(self, hosts: frozenset[bytes]) -> Reservations:
        """Return the state without these registrants, and without the reservation when its last holder is removed."""
        state = self._with({host: key for host, key in self.registrants.items() if host not in hosts})
        gone = not state.registrants if self.rtype in ALL_REGISTRANTS else self.holder in hosts
        return state._released() if self.rtype is not None and gone else state

    # Actions

    def persist(self, persistent: bool) -> Reservations:
        """Change PTPL."""
        return replace(self, persistent=persistent)

    def register(
        self, host: bytes, action: RegisterAction, crkey: int, nrkey: int, *, ignore_key: bool = False
    ) -> Outcome:
        """Execute Reservation Register (NVMe Base). `ignore_key`: IEKEY, CRKEY is not compared."""
        if action is RegisterAction.REGISTER:
            if self.registrants.get(host, nrkey) != nrkey:
                raise _conflict("the host is registered with another key", _DATA)
            return self._registered(host, nrkey)
        if not ignore_key:
            self._check_key(host, crkey)
        if action is RegisterAction.REPLACE:
            return self._registered(host, nrkey)
        return self._unregistered(host)

    def _registered(self, host: bytes, key: int) -> Outcome:
        if host not in self.registrants and len(self.registrants) >= REGISTRANTS_MAX:
            raise CommandError(
                Status.INTERNAL_ERROR, dnr=False, message=f"no more than {REGISTRANTS_MAX} hosts can be registered"
            )
        return Outcome(self._with({**self.registrants, host: key})._counted())

    def _unregistered(self, host: bytes) -> Outcome:
        state = self._without(frozenset({host}))._counted()
        shared = self.rtype in (
            ReservationType.WRITE_EXCLUSIVE_REGISTRANTS_ONLY,
            ReservationType.EXCLUSIVE_ACCESS_REGISTRANTS_ONLY,
        )
        told = frozenset(state.registrants) if shared and state.rtype is None else frozenset[bytes]()
        return Outcome(state, _notices(Notice(NotificationType.RESERVATION_RELEASED, told)))

    def acquire(self, host: bytes, crkey: int, rtype: ReservationType) -> Outcome:
        """Execute the Acquire action of Reservation Acquire (NVMe Base, Reservation Acquire command)."""
        self._check_key(host, crkey)
        if self.rtype is None:
            return Outcome(self._reserved(host, rtype))
        if self.holds(host) and self.rtype is rtype:
            return Outcome(self)
        raise _conflict("there is a reservation already")

    def preempt(self, host: bytes, crkey: int, prkey: int, rtype: ReservationType) -> Outcome:
        """Execute Preempt, and Preempt and Abort (NVMe Base, Reservation Acquire command)."""
        self._check_key(host, crkey)
        if self.rtype in ALL_REGISTRANTS and prkey == 0:
            return self._taken_over(host, self._others(host), rtype)
        if self.rtype is not None and self.rtype not in ALL_REGISTRANTS:
            if prkey == self.registrants[self.holder]:
                same = frozenset(other for other, key in self.registrants.items() if key == prkey)
                return self._taken_over(host, same - {host}, rtype)
            if prkey == 0:
                raise CommandError(
                    Status.INVALID_FIELD, _DATA, message="PRKEY is 0, and that is not the reservation holder's key"
                )
        return self._preempted(host, prkey)

    def _taken_over(self, host: bytes, removed: frozenset[bytes], rtype: ReservationType) -> Outcome:
        """Return the state in which `host` holds a reservation of type `rtype`, without the `removed` registrants."""
        remaining = {other: key for other, key in self.registrants.items() if other not in removed}
        state = self._with(remaining)._reserved(host, rtype)._counted()
        told = frozenset(remaining) - {host} if rtype is not self.rtype else frozenset[bytes]()
        return Outcome(
            state,
            _notices(
                Notice(NotificationType.REGISTRATION_PREEMPTED, removed),
                Notice(NotificationType.RESERVATION_RELEASED, told),
            ),
            removed,
        )

    def _preempted(self, host: bytes, prkey: int) -> Outcome:
        """Return the state without the registrants of a key, the caller's included; the reservation stays."""
        removed = frozenset(other for other, key in self.registrants.items() if key == prkey)
        if not removed and self.rtype in ALL_REGISTRANTS:
            raise _conflict("PRKEY is the key of no registrant", _DATA)
        notice = Notice(NotificationType.REGISTRATION_PREEMPTED, removed - {host})
        return Outcome(self._without(removed)._counted(), _notices(notice), removed - {host})

    def release(self, host: bytes, crkey: int, rtype: int) -> Outcome:
        """Execute the Release action of Reservation Release (NVMe Base). No effect for a registrant that
        does not hold the reservation."""
        self._check_key(host, crkey)
        if not self.holds(host):
            return Outcome(self)
        if rtype != self.rtype:
            raise CommandError(Status.INVALID_FIELD, _RTYPE, message=f"the reservation is not of type {rtype}")
        exclusive = self.rtype in (ReservationType.WRITE_EXCLUSIVE, ReservationType.EXCLUSIVE_ACCESS)
        told = frozenset[bytes]() if exclusive else self._others(host)
        return Outcome(self._released(), _notices(Notice(NotificationType.RESERVATION_RELEASED, told)))

    def clear(self, host: bytes, crkey: int) -> Outcome:
        """Execute the Clear action of Reservation Release (NVMe Base, Reservation Release command)."""
        self._check_key(host, crkey)
        notice = Notice(NotificationType.RESERVATION_PREEMPTED, self._others(host))
        return Outcome(self._without(frozenset(self.registrants))._counted(), _notices(notice))

    # The stored form

    def document(self) -> dict[str, Any]:
        """Return the state as a JSON value."""
        return {
            "generation": self.generation,
            "type": 0 if self.rtype is None else int(self.rtype),
            "holder": self.holder.hex(),
            "registrants": {host.hex(): key for host, key in self.registrants.items()},
        }

    @classmethod
    def from_document(cls, document: Any) -> Reservations:
        """Parse the state that `document` made. Raises `ValueError` for any other value."""
        try:
            registrants = {bytes.fromhex(host): int(key) for host, key in document["registrants"].items()}
            rtype = ReservationType(document["type"]) if document["type"] else None
            holder = bytes.fromhex(document["holder"])
            generation = int(document["generation"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a document of reservations: {error}") from error
        if any(len(host) != HOST_ID_BYTES or not 0 <= key <= KEY_MAX for host, key in registrants.items()):
            raise ValueError("a registrant without a host identifier of 128 bits and a key of 64")
        state = cls(MappingProxyType(registrants), rtype, holder, generation & _GENERATION_MASK, True)
        alone = rtype is not None and rtype not in ALL_REGISTRANTS
        if (holder in registrants) is not alone or (holder and not alone) or (rtype is not None and not registrants):
            raise ValueError("the reservation's holder is not a registrant")
        return state


__all__ = ["BARRED", "REGISTRANTS_MAX", "Group", "Notice", "Outcome", "Reservations", "Standing"]
