"""Which pre-shared keys an identity can mean at a port, and what a connection that used one may connect to."""

from __future__ import annotations

from collections.abc import Callable

from nvmeof.security.tls.key import IDENTITY_BYTES_MOST, IdentityFields, Psk, parse_identity
from nvmeof.spec.enums import DISCOVERY_NQN
from nvmeof.target.subsystem.registry import PortInfo, TargetRegistry
from nvmeof.target.subsystem.subsystem import Subsystem


def psks_of(registry: TargetRegistry, port: PortInfo, now: Callable[[], float], identity: str) -> list[Psk]:
    """Return the PSKs that a host can mean by an identity, for a subsystem that the port offers, or for discovery.

    A host's key of any subsystem is good for the discovery subsystem as well. A generated key is found by its identity,
    while it is good; `now` returns the time.
    """
    if len(identity.encode()) > IDENTITY_BYTES_MOST:
        return []
    fields = parse_identity(identity)
    if fields is None:
        return []
    if fields.kind == "G":
        return registry.generated.find(identity, now())
    subsystems = _subsystems(registry, port, fields.subnqn)
    keys = dict.fromkeys(each.hosts.tls_keys.get(fields.hostnqn) for each in subsystems)
    return [psk for key in keys if key is not None for psk in key.candidates(identity, fields.hostnqn, fields.subnqn)]


def _subsystems(registry: TargetRegistry, port: PortInfo, subnqn: str) -> list[Subsystem]:
    if subnqn == DISCOVERY_NQN:
        return list(registry.subsystems.values())
    found = registry.find(subnqn, port)
    return [] if found is None else [found]


def why_channel_is_wrong(
    secured: IdentityFields | None, subsystem: Subsystem, subnqn: str, hostnqn: str, *, may_begin: bool
) -> str | None:
    """Return why a Connect may not come by its connection: not by TLS where that is required, or by a key of another
    host or subsystem (NVMe/TCP Transport, PSK identity); None: it may. ``may_begin``: an admin queue in clear, where
    hosts can make a key for TLS.
    """
    if secured is None:
        if subsystem.hosts.tls_required and not (may_begin and hostnqn in subsystem.hosts.keys):
            return f"{subsystem.nqn} requires TLS, which host {hostnqn!r} does not use"
        return None
    if secured.hostnqn != hostnqn:
        return f"the TLS key of the connection is of host {secured.hostnqn!r}, not of {hostnqn!r}"
    if secured.subnqn != subnqn:
        return f"the TLS key of the connection is for {secured.subnqn!r}, not for {subnqn!r}"
    return None
