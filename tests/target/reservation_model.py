"""Reservations as the specification defines them, step by step: the model of the target's.

Written from its sections on registering, unregistering, acquiring, releasing, preempting and clearing, independently of
the target's code. Everything is changed in place; an action returns a status, and records the notified hosts.
"""

from __future__ import annotations

SUCCESS, INVALID_FIELD, CONFLICT = 0x000, 0x002, 0x083
REGISTRATION_PREEMPTED, RELEASED, PREEMPTED = 1, 2, 3
WE, EA, WERO, EARO, WEAR, EAAR = range(1, 7)

A, C = "A", "C"
# Write Exclusive, Exclusive Access, Write Exclusive Registrants Only or All Registrants, Exclusive Access of these;
# of each the non-registrant and the registrant that is not a holder.
COLUMNS = {WE: 0, EA: 2, WERO: 4, WEAR: 4, EARO: 6, EAAR: 6}
BEHAVIOR = {
    "read": "AACCAACA",
    "write": "CCCCCACA",
    "acquire": "CCCCCCCC",
    "preempt": "CACACACA",
    "preempt and abort": "CACACACA",
    "release": "CACACACA",
    "other": "AAAAAAAA",
}


class Model:
    def __init__(self) -> None:
        self.keys: dict[int, int] = {}  # by host
        self.type = 0
        self.holder: int | None = None  # of the types with one holder
        self.generation = 0
        self.notified: list[tuple[int, int]] = []  # kind, host
        self.aborted: set[int] = set()

    @property
    def holders(self) -> set[int]:
        if not self.type:
            return set()
        return set(self.keys) if self.type in (WEAR, EAAR) else {self.holder}  # type: ignore[arg-type]

    def behavior(self, host: int, group: str) -> str:
        if not self.type or host in self.holders:
            return A
        return BEHAVIOR[group][COLUMNS[self.type] + (host in self.keys)]

    def _notify(self, kind: int, hosts, but: int) -> None:
        self.notified += [(kind, host) for host in hosts if host != but]

    def _drop_reservation(self) -> None:
        self.type, self.holder = 0, None

    def _remove(self, host: int) -> None:
        del self.keys[host]
        if self.type in (WEAR, EAAR):
            if not self.keys:
                self._drop_reservation()
        elif self.type and host == self.holder:
            self._drop_reservation()

    def _take(self, host: int, rtype: int) -> None:
        self.type = rtype
        self.holder = None if rtype in (WEAR, EAAR) else host

    def _count(self) -> int:
        self.generation = (self.generation + 1) % (1 << 32)
        return SUCCESS

    def register(self, host: int, key: int) -> int:
        if host in self.keys and self.keys[host] != key:
            return CONFLICT
        self.keys[host] = key
        return self._count()

    def replace(self, host: int, crkey: int, key: int, ignore: bool) -> int:
        if not ignore and self.keys.get(host) != crkey:
            return CONFLICT
        self.keys[host] = key
        return self._count()

    def unregister(self, host: int, crkey: int, ignore: bool) -> int:
        if not ignore and self.keys.get(host) != crkey:
            return CONFLICT
        if host in self.keys:
            was = self.type
            self._remove(host)
            if was in (WERO, EARO) and not self.type:
                self._notify(RELEASED, self.keys, host)
        return self._count()

    def acquire(self, host: int, crkey: int, rtype: int) -> int:
        if self.keys.get(host) != crkey:
            return CONFLICT
        if self.type:
            return SUCCESS if host in self.holders and rtype == self.type else CONFLICT
        self._take(host, rtype)
        return SUCCESS

    def preempt(self, host: int, crkey: int, prkey: int, rtype: int) -> int:
        if self.keys.get(host) != crkey:
            return CONFLICT
        everybody = self.type in (WEAR, EAAR)
        if everybody and prkey == 0:
            victims = [other for other in self.keys if other != host]
            replace = True
        elif self.type and not everybody and prkey == self.keys[self.holder]:  # type: ignore[index]
            victims = [other for other, key in self.keys.items() if key == prkey and other != host]
            replace = True
        elif self.type and not everybody and prkey == 0:
            return INVALID_FIELD
        else:
            victims = [other for other, key in self.keys.items() if key == prkey]
            replace = False
            if everybody and not victims:
                return CONFLICT
        was = self.type
        if replace:
            for victim in victims:
                del self.keys[victim]
            self._take(host, rtype)
        else:
            for victim in victims:
                self._remove(victim)
        self._notify(REGISTRATION_PREEMPTED, victims, host)
        self.aborted |= set(victims) - {host}
        if replace and was != rtype:
            self._notify(RELEASED, self.keys, host)
        return self._count()

    def release(self, host: int, crkey: int, rtype: int) -> int:
        if self.keys.get(host) != crkey:
            return CONFLICT
        if host not in self.holders:
            return SUCCESS
        if rtype != self.type:
            return INVALID_FIELD
        was = self.type
        self._drop_reservation()
        if was not in (WE, EA):
            self._notify(RELEASED, self.keys, host)
        return SUCCESS

    def clear(self, host: int, crkey: int) -> int:
        if self.keys.get(host) != crkey:
            return CONFLICT
        self._notify(PREEMPTED, self.keys, host)
        self.keys.clear()
        self._drop_reservation()
        return self._count()
