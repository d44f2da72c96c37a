"""Asymmetric namespace access: the states of ANA groups through the ports of a target (NVMe Base, 8.1.1).

The state of a group is that of a relation: between the group's namespaces and the controllers of one port. So each
subsystem has an `AnaGroups` per port, and a namespace knows only the number of its group (ANAGRPID).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from nvmeof.address import Address
from nvmeof.errors import ConfigurationError
from nvmeof.spec.enums import NVME_PORT, AnaState
from nvmeof.target.projection.ana_access import AnaAccess

ANA_GROUP: Final = 1
"""The group of a namespace for which no other is given."""
ANA_TRANSITION_SECONDS: Final = 10
"""ANATT: for how long a group is in the Change state at most. Linux resets the controller after twice that."""
ACCESSIBLE: Final = frozenset({AnaState.OPTIMIZED, AnaState.NON_OPTIMIZED})
"""The states in which commands reach the namespaces of a group."""
STATE_WORDS: Final[Mapping[str, AnaState]] = MappingProxyType(
    {state.name.lower().replace("_", "-"): state for state in AnaState}
)
"""The states by the words of command lines, which are those of nvme-cli and nvmet."""

logger = logging.getLogger("nvmeof.target")


def state_word(state: AnaState) -> str:
    """Return a state as command lines, nvme-cli and nvmet write it, such as ``non-optimized``."""
    return state.name.lower().replace("_", "-")


def parse_ana_state(text: str) -> AnaState:
    """Return the state of a word. Raises `ConfigurationError` that names all five."""
    try:
        return STATE_WORDS[text]
    except KeyError:
        raise ConfigurationError(f"an ANA state is {', '.join(STATE_WORDS)}, not {text!r}") from None


@dataclass(frozen=True, slots=True)
class AnaSetting:
    """The state of a group, on all ports or on those of one address. `host` empty: of any with that number."""

    group: int
    state: AnaState
    host: str = ""
    port: int | None = None

    def applies(self, host: str, port: int) -> bool:
        """Return whether the state is that of a port that listens on this address."""
        return self.port is None or (self.port == port and self.host in ("", host))


def parse_ana_setting(text: str) -> AnaSetting:
    """Take ``GROUP=STATE`` apart, on all ports, or ``GROUP=STATE@ADDR:PORT``, or ``GROUP=STATE@PORT``.

    Raises `ConfigurationError` with what would be right.

    >>> parse_ana_setting("2=inaccessible@4421")
    AnaSetting(group=2, state=<AnaState.INACCESSIBLE: 3>, host='', port=4421)
    """
    setting, at, where = text.partition("@")
    number, equals, word = setting.partition("=")
    try:
        group = int(number, 0)
    except ValueError:
        group = 0
    if not equals or group < 1 or (at and not where):
        raise ConfigurationError(f"--ana is GROUP=STATE, or GROUP=STATE@ADDR:PORT for one port, not {text!r}")
    state = parse_ana_state(word)
    if not at:
        return AnaSetting(group, state)
    if where.isdecimal():
        return AnaSetting(group, state, "", int(where))
    address = Address.parse(where, default_port=NVME_PORT)
    return AnaSetting(group, state, address.host, address.port)


def check_ana_group(group: int, most: int) -> None:
    """Raise `ConfigurationError` unless `group` is an ANAGRPID of a subsystem with `most` groups (ANAGRPMAX; NVMe Base,
    ANA Groups)."""
    if not 1 <= group <= most:
        raise ConfigurationError(f"an ANA group is 1 to {most}, not {group}")


class AnaGroups:
    """The state of each ANA group of one subsystem through one port; optimized unless another was set.

    `access` has the groups whose state lets no command through: what every command looks at, and nearly always empty.
    `transitions` counts the changes of each group's state.
    """

    __slots__ = ("_change_since", "_states", "_told", "access", "portid", "transitions")

    def __init__(self, portid: int, states: Mapping[int, AnaState] = MappingProxyType({})) -> None:
        self.portid = portid
        self._states = dict(states)
        self._change_since: dict[int, float] = {}
        self._told: set[int] = set()
        self.transitions: dict[int, int] = {}
        self.access = self._access()

    def _access(self) -> AnaAccess:
        barred = {group: state for group, state in self._states.items() if state not in ACCESSIBLE}
        return AnaAccess(self.portid, barred)

    @property
    def barred(self) -> Mapping[int, AnaState]:
        """The groups whose state lets no command through, with their states."""
        return self.access.barred

    @property
    def states(self) -> Mapping[int, AnaState]:
        """The states that were set, by group."""
        return self._states

    def state(self, group: int) -> AnaState:
        """Return the state of a group."""
        return self._states.get(group, AnaState.OPTIMIZED)

    def check_transition(self, group: int, state: AnaState) -> None:
        """Raise `ConfigurationError` for a way out of Persistent Loss, which has none (NVMe Base, 8.1.1.7)."""
        if self.state(group) is AnaState.PERSISTENT_LOSS and state is not AnaState.PERSISTENT_LOSS:
            raise ConfigurationError(
                f"ANA group {group} is in the state persistent-loss on port {self.portid}, which never ends: remove the"
                " port and add it again; inaccessible is the state of what comes back"
            )

    def set(self, group: int, state: AnaState) -> bool:
        """Set the state of a group; return False when the state is unchanged. Raises `ConfigurationError` as
        `check_transition`.

        The subsystem's `set_ana_state` calls this and notifies the controllers.
        """
        if state is self.state(group):
            return False
        self.check_transition(group, state)
        self._states[group] = state
        self.transitions[group] = self.transitions.get(group, 0) + 1
        self._change_since.pop(group, None)
        self._told.discard(group)
        self.access = self._access()
        return True

    def tick(self, now: float, subnqn: str) -> None:
        """Log a warning once for a group that stays in the Change state for longer than ANATT."""
        for group, state in self.barred.items():
            if state is not AnaState.CHANGE or group in self._told:
                continue
            since = self._change_since.setdefault(group, now)
            if now - since >= ANA_TRANSITION_SECONDS:
                self._told.add(group)
                logger.warning(
                    "ANA group %d of %s has been in the state change on port %d for %d s, the longest that hosts are"
                    " told (ANATT): set another state, or they reset their controllers",
                    group, subnqn, self.portid, ANA_TRANSITION_SECONDS,
                )  # fmt: skip


class AnaPorts:
    """The `AnaGroups` of one subsystem by port identifier, and the groups that exist: those named so far."""

    def __init__(self) -> None:
        self._ports: dict[int, AnaGroups] = {}
        self._everywhere: dict[int, AnaState] = {}  # what was set for all ports holds for later ones too
        self.groups: set[int] = {ANA_GROUP}

    def __iter__(self) -> Iterator[AnaGroups]:
        return iter(self._ports.values())

    def on(self, portid: int) -> AnaGroups:
        """Return the groups through a port."""
        found = self._ports.get(portid)
        if found is None:
            found = self._ports[portid] = AnaGroups(portid, self._everywhere)
        return found

    def forget(self, portid: int) -> None:
        """Forget a port that was removed: one that gets its identifier begins with all groups optimized."""
        self._ports.pop(portid, None)

    def set(self, group: int, state: AnaState, portid: int | None = None) -> list[int]:
        """Put a group into a state on one port, or (None) on all, later ones too; return the ports where it changed.

        Raises `ConfigurationError` for a way out of Persistent Loss; nothing has changed then.
        """
        concerned = list(self._ports.values()) if portid is None else [self.on(portid)]
        for each in concerned:
            each.check_transition(group, state)
        if portid is None:
            self._everywhere[group] = state
        self.groups.add(group)
        return [each.portid for each in concerned if each.set(group, state)]

    def tick(self, now: float, subnqn: str) -> None:
        """Check the Change states on all ports, once a second or so: see `AnaGroups.tick`."""
        for each in self._ports.values():
            if each.barred:
                each.tick(now, subnqn)
