"""The options of the command line that hosts authenticate themselves by."""

from __future__ import annotations

from collections.abc import Iterable

from nvmeof.errors import ConfigurationError
from nvmeof.security.dhchap_controller import HostKeys
from nvmeof.security.secret import PREFIX, Secret, load_secret
from nvmeof.security.words import parse_group, parse_hash
from nvmeof.spec.nqn import check_nqn


def host_keys(
    keys: Iterable[str], controller_keys: Iterable[str], hash_name: str | None, group: str | None
) -> tuple[tuple[str, HostKeys], ...]:
    """Return what hosts authenticate themselves with, from ``HOSTNQN=SOURCE`` options. Raises ConfigurationError."""
    own = _by_host(keys, "--dhchap-key")
    controllers = _by_host(controller_keys, "--dhchap-ctrl-key")
    for nqn in controllers:
        if nqn not in own:
            raise ConfigurationError(f"--dhchap-ctrl-key for {nqn}, which has no key: give --dhchap-key for it too")
    hash_id = None if hash_name is None else parse_hash(hash_name)
    group_id = None if group is None else parse_group(group)
    return tuple((nqn, HostKeys(key, controllers.get(nqn), hash_id, group_id)) for nqn, key in own.items())


def _by_host(texts: Iterable[str], option: str) -> dict[str, Secret]:
    found: dict[str, Secret] = {}
    for text in texts:
        nqn, separator, source = text.partition("=")
        if not separator:
            raise ConfigurationError(f"{option} is HOSTNQN=file:PATH or HOSTNQN=env:NAME")
        check_nqn(nqn, f"the host NQN of {option}")
        if source.startswith(PREFIX):
            raise ConfigurationError(
                f"{option}: a secret on the command line can be read by every user: give file:PATH or env:NAME"
            )
        if nqn in found:
            raise ConfigurationError(f"{option} was given twice for {nqn}")
        found[nqn] = load_secret(source)
    return found
