"""The Discovery log page: what a host may connect to, in the addresses that it can use."""

from __future__ import annotations

from functools import lru_cache

from nvmeof.address import is_link_local, is_loopback, is_wildcard, split_scope
from nvmeof.spec.discovery import (
    DISCOVERY_LOG_ENTRY,
    DiscoveryFlags,
    Eflags,
    ExtendedAttributeType,
    build_discovery_entry,
    build_discovery_log,
    extend_discovery_entry,
)
from nvmeof.spec.enums import CNTLID_DYNAMIC, DISCOVERY_NQN, SubType, TcpProtocol, Treq, Trtype
from nvmeof.target.subsystem.config import ADVERTISE_OWN, ADVERTISE_TCP, ADVERTISE_TSAS, Referral
from nvmeof.target.subsystem.registry import PortInfo, TargetRegistry, address_family
from nvmeof.wire import layout

ADMIN_QUEUE_ENTRIES = 128
"""ASQSZ of the entries."""
LOGS_CACHED = 8
"""How many built log pages are cached: hosts read a long one in many pieces."""
_SUBNQN_OFFSET, _SUBNQN_BYTES = layout(DISCOVERY_LOG_ENTRY)["subnqn"]
_SUBNQN_END = _SUBNQN_OFFSET + _SUBNQN_BYTES


def addresses_for(port: PortInfo, seen: PortInfo) -> list[tuple[str, str]]:
    """Return TRADDR and TRSVCID of a port, without duplicates, for a host that connected to `seen`; empty when none is
    usable.

    The address that the host came to comes first. A wildcard listener is reached at that address too, if it is of its
    family. What the administrator advertises comes in place of all of them. A TRADDR has no scope: the reader has to
    know the interface of a link-local address.
    """
    trsvcid = seen.trsvcid if port.portid == seen.portid else port.trsvcid
    if port.advertise_port is not None:
        trsvcid = str(port.advertise_port)
    hosts = port.advertised or [host for host in _hosts(port, seen) if _usable(host, seen.traddr)]
    return list(dict.fromkeys((split_scope(host)[0], trsvcid) for host in hosts))


def _hosts(port: PortInfo, seen: PortInfo) -> list[str]:
    hosts = [seen.traddr] if port.portid == seen.portid or port.listens_on(seen.traddr) else []
    return hosts + [host for host in port.addresses if not is_wildcard(host)]


def _usable(host: str, came_to: str) -> bool:
    """Return whether a host that connected to `came_to` can reach an address: none of another link, or of loopback."""
    if is_link_local(host):
        return host == came_to or (is_link_local(came_to) and split_scope(host)[1] == split_scope(came_to)[1])
    if is_loopback(host):
        return is_loopback(came_to)
    return True


def _forms(port: PortInfo) -> list[tuple[int, TcpProtocol]]:
    """Return TRTYPE and the TCP protocol of TSAS for a port's entries, without duplicates."""
    forms = {ADVERTISE_OWN: (port.trtype, TcpProtocol.TCP)}
    if port.plain_tcp:
        forms[ADVERTISE_TCP] = (int(Trtype.TCP), TcpProtocol.TCP)
        forms[ADVERTISE_TSAS] = (int(Trtype.TCP), TcpProtocol.MPTCP)
    told = [forms[form] for form in port.advertise_as if form in forms]
    return list(dict.fromkeys(told)) or [forms[ADVERTISE_OWN]]


def _entries(port: PortInfo, addresses: list[tuple[str, str]], subnqn: str, subtype: SubType) -> list[bytes]:
    return [_entry(port, form, address, subnqn, subtype) for address in addresses for form in _forms(port)]


def _entry(
    port: PortInfo, form: tuple[int, TcpProtocol], address: tuple[str, str], subnqn: str, subtype: SubType
) -> bytes:
    traddr, trsvcid = address
    # Explicit persistent connections: a discovery controller stays as long as commands come within KATO.
    eflags = Eflags.EXPLICIT_PERSISTENT_CONNECTION if subtype is SubType.CURRENT_DISCOVERY else Eflags(0)
    return build_discovery_entry(
        trtype=form[0],
        prottype=form[1],
        adrfam=address_family(traddr),
        subtype=subtype,
        treq=port.treq | Treq.DISABLE_SQ_FLOW_CONTROL,
        portid=port.portid,
        cntlid=CNTLID_DYNAMIC,
        asqsz=ADMIN_QUEUE_ENTRIES,
        eflags=eflags,
        trsvcid=trsvcid,
        subnqn=subnqn,
        traddr=traddr,
        sectype=port.sectype,
    )


def _referral(port: PortInfo, referral: Referral) -> bytes:
    return build_discovery_entry(
        trtype=Trtype[referral.transport.upper()],
        adrfam=address_family(referral.traddr),
        subtype=SubType.REFERRAL,
        treq=Treq.NOT_SPECIFIED | Treq.DISABLE_SQ_FLOW_CONTROL,
        portid=port.portid,
        cntlid=CNTLID_DYNAMIC,
        asqsz=ADMIN_QUEUE_ENTRIES,
        trsvcid=str(referral.trsvcid),
        subnqn=DISCOVERY_NQN,
        traddr=referral.traddr,
    )


def _of_subsystem(entry: bytes, subnqn: str) -> bytes:
    """Return the entry with another SUBNQN: a port's entries differ in nothing else."""
    return entry[:_SUBNQN_OFFSET] + subnqn.encode().ljust(_SUBNQN_BYTES, b"\0") + entry[_SUBNQN_END:]


@lru_cache(maxsize=4096)
def _extension(label: str) -> bytes:
    """Return the extension of an extended entry: the name that the administrator gave the subsystem, if any."""
    attributes: list[tuple[int, bytes]] = []
    if label:
        kind = ExtendedAttributeType.ADMIN_LABEL_ASCII if label.isascii() else ExtendedAttributeType.ADMIN_LABEL_UTF8
        attributes.append((kind, label.encode()))
    return extend_discovery_entry(b"", attributes)


def discovery_log(
    registry: TargetRegistry, seen: PortInfo, host_nqn: str, *, extended: bool = False, port_local: bool = False
) -> bytes:
    """Build the whole log page for a host that connected to the port `seen`: this discovery service, then each
    subsystem that the host may use on each port, and the referrals of each port.

    `extended`: entries with their extended attributes. `port_local`: only entries of the port `seen`.
    """
    plain = _extension("") if extended else b""
    own = addresses_for(registry.ports.get(seen.portid, seen), seen)[:1]
    entries = [entry + plain for entry in _entries(seen, own, DISCOVERY_NQN, SubType.CURRENT_DISCOVERY)]
    for port in registry.ports.values():
        if port_local and port.portid != seen.portid:
            continue
        entries += [_referral(port, each) + plain for each in port.referrals]
        if port.discovery_only:
            continue
        templates = _entries(port, addresses_for(port, seen), "", SubType.NVM)
        for subsystem in registry.subsystems.values():
            if port.offers(subsystem.nqn) and subsystem.host_allowed(host_nqn):
                extension = _extension(subsystem.config.admin_label) if extended else b""
                entries += [_of_subsystem(entry, subsystem.nqn) + extension for entry in templates]
    flags = DiscoveryFlags(0)
    if port_local:
        flags |= DiscoveryFlags.PORT_LOCAL
    if extended:
        flags |= DiscoveryFlags.EXTENDED
    return build_discovery_log(registry.generation, entries, flags)


def read_discovery_log(
    registry: TargetRegistry, seen: PortInfo, host_nqn: str, *, extended: bool = False, port_local: bool = False
) -> bytes:
    """Return the page of `discovery_log`, built once per generation, host, port as seen and form.

    Only the `LOGS_CACHED` pages that were read last are cached.
    """
    pages = registry.log_pages
    key = (seen, host_nqn, extended, port_local)
    page = pages.pop(key, None)
    if page is None:
        page = discovery_log(registry, seen, host_nqn, extended=extended, port_local=port_local)
        if len(pages) >= LOGS_CACHED:
            del pages[next(iter(pages))]
    pages[key] = page  # behind those that were read before
    return page
