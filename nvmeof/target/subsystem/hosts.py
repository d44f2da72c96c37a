"""Hosts: who may use a subsystem, and what they prove themselves with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from nvmeof.errors import ConfigurationError
from nvmeof.security.dhchap_controller import HostKeys
from nvmeof.security.tls.key import TlsKey
from nvmeof.spec.nqn import check_nqn


@dataclass(frozen=True, slots=True)
class Host:
    """A host that may use a subsystem, by its NQN."""

    nqn: str

    def __post_init__(self) -> None:
        check_nqn(self.nqn, "the NQN of an allowed host")


class Hosts:
    """The hosts that may use one subsystem: any, or those that were added.

    `keys`: what hosts authenticate themselves with, by their NQN, whether any host is allowed or not.
    `authentication_required`: a host without keys is refused. `tls_keys`: what hosts use TLS with, by their NQN;
    `tls_required`: connections without TLS are refused. `managing`: those of them that may use commands which change
    what others see (Format NVM, Sanitize, ...); None: all.
    """

    def __init__(
        self,
        allowed: Iterable[str] | None,
        *,
        any_host: bool = False,
        keys: Mapping[str, HostKeys] | None = None,
        authentication_required: bool = False,
        tls_keys: Mapping[str, TlsKey] | None = None,
        tls_required: bool = False,
        managing: Iterable[str] | None = None,
    ) -> None:
        self.set_managing(managing)
        self.keys = dict(keys or {})
        self.tls_keys = dict(tls_keys or {})
        self.tls_required = tls_required
        self.authentication_required = authentication_required
        self.replace(allowed, any_host=any_host)

    def replace(self, allowed: Iterable[str] | None, *, any_host: bool = False) -> None:
        """Allow these hosts and no others; None: any host."""
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
        if self.authentication_required and nqn not in self.keys:
            return False
        return self.any_host or nqn in self._hosts

    def set_managing(self, nqns: Iterable[str] | None) -> None:
        """Let these hosts manage the subsystem and no others; None: every host that may use it."""
        self.managing = None if nqns is None else frozenset(nqns)
        for nqn in self.managing or ():
            check_nqn(nqn, "the NQN of a managing host")

    def may_manage(self, nqn: str) -> bool:
        """Return whether a host of that NQN may use commands that change what other hosts see."""
        return self.managing is None or nqn in self.managing

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

    def set_keys(self, nqn: str, keys: HostKeys | None) -> None:
        """Let the host of that NQN authenticate itself with these keys from its next Connect on; None: not at all."""
        check_nqn(nqn, "the NQN of a host with keys")
        if keys is None:
            self.keys.pop(nqn, None)
        else:
            self.keys[nqn] = keys

    def set_tls_key(self, nqn: str, key: TlsKey | None) -> None:
        """Let the host of that NQN use TLS with this key from its next connection on; None: not at all."""
        check_nqn(nqn, "the NQN of a host with a TLS key")
        if key is None:
            self.tls_keys.pop(nqn, None)
        else:
            self.tls_keys[nqn] = key
