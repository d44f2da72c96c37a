"""Hosts: who may use a subsystem."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from nvmeof.errors import ConfigurationError
from nvmeof.spec.nqn import check_nqn


@dataclass(frozen=True, slots=True)
class Host:
    """A host that may use a subsystem, by its NQN. What it proves itself with belongs here as well."""

    nqn: str

    def __post_init__(self) -> None:
        check_nqn(self.nqn, "the NQN of an allowed host")


class Hosts:
    """The hosts that may use one subsystem: any, or those that were added."""

    def __init__(self, allowed: Iterable[str] | None, *, any_host: bool = False) -> None:
        self.any_host = any_host or allowed is None
        self._hosts = {nqn: Host(nqn) for nqn in allowed or ()}

    @property
    def by_nqn(self) -> Mapping[str, Host]:
        """The hosts that were added."""
        return self._hosts

    @property
    def names(self) -> frozenset[str] | None:
        """Return the NQNs of those that may use it; None: any host."""
        return None if self.any_host else frozenset(self._hosts)

    def allows(self, nqn: str) -> bool:
        """Return whether a host of that NQN may use the subsystem."""
        return self.any_host or nqn in self._hosts

    def add(self, host: Host) -> None:
        """Allow one more host. Raises `ConfigurationError` when any host is allowed, or this one is already."""
        if self.any_host:
            raise ConfigurationError("any host may use the subsystem; forbid that before you add a host")
        if host.nqn in self._hosts:
            raise ConfigurationError(f"the host {host.nqn} was added already")
        self._hosts[host.nqn] = host

    def remove(self, nqn: str) -> Host:
        """Remove a host from the allowed ones. Raises `ConfigurationError` for one that was not added."""
        try:
            return self._hosts.pop(nqn)
        except KeyError:
            raise ConfigurationError(f"the host {nqn} was not added") from None
