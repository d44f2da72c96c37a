"""The options of the command line that hosts authenticate themselves by."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from nvmeof.errors import ConfigurationError
from nvmeof.security.dhchap_controller import HostKeys
from nvmeof.security.secret import PREFIX, load_secret
from nvmeof.security.tls.key import PREFIX as TLS_PREFIX
from nvmeof.security.tls.key import TlsKey, load_tls_key
from nvmeof.security.words import parse_group, parse_hash
from nvmeof.spec.nqn import check_nqn
from nvmeof.target.subsystem.config import TLS_ALLOWED, TLS_OFF

T = TypeVar("T")


def host_keys(
    keys: Iterable[str], controller_keys: Iterable[str], hash_name: str | None, group: str | None
) -> tuple[tuple[str, HostKeys], ...]:
    """Return what hosts authenticate themselves with, from ``HOSTNQN=SOURCE`` options. Raises ConfigurationError."""
    own = _by_host(keys, "--dhchap-key", load_secret)
    controllers = _by_host(controller_keys, "--dhchap-ctrl-key", load_secret)
    for nqn in controllers:
        if nqn not in own:
            raise ConfigurationError(f"--dhchap-ctrl-key for {nqn}, which has no key: give --dhchap-key for it too")
    hash_id = None if hash_name is None else parse_hash(hash_name)
    group_id = None if group is None else parse_group(group)
    return tuple((nqn, HostKeys(key, controllers.get(nqn), hash_id, group_id)) for nqn, key in own.items())


def tls_keys(keys: Iterable[str], policy: str, *, generated: bool) -> tuple[tuple[str, TlsKey], ...]:
    """Return the TLS keys of hosts, from ``HOSTNQN=SOURCE`` options; ``generated``: authentication can make some, on
    connections in clear. Raises ConfigurationError."""
    found = _by_host(keys, "--tls-key", load_tls_key)
    if found and policy == TLS_OFF:
        raise ConfigurationError(
            "--tls-key is without effect where TLS is off: give --tls required or --tls allowed too"
        )
    if not found and policy != TLS_OFF and not (generated and policy == TLS_ALLOWED):
        raise ConfigurationError(f"--tls {policy} needs the keys of hosts: give --tls-key HOSTNQN=file:PATH")
    return tuple(found.items())


def _by_host(texts: Iterable[str], option: str, load: Callable[[str], T]) -> dict[str, T]:
    found: dict[str, T] = {}
    for text in texts:
        nqn, separator, source = text.partition("=")
        if not separator:
            raise ConfigurationError(f"{option} is HOSTNQN=file:PATH or HOSTNQN=env:NAME")
        check_nqn(nqn, f"the host NQN of {option}")
        if source.startswith((PREFIX, TLS_PREFIX)):
            raise ConfigurationError(
                f"{option}: a secret on the command line can be read by every user: give file:PATH or env:NAME"
            )
        if nqn in found:
            raise ConfigurationError(f"{option} was given twice for {nqn}")
        found[nqn] = load(source)
    return found
