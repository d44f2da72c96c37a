"""The Discovery log page: what a host may connect to, in the addresses that it can use."""

from __future__ import annotations

from functools import lru_cache

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
from nvmeof.target.config import ADVERTISE_OWN, ADVERTISE_TCP, ADVERTISE_TSAS
from nvmeof.target.inventory import Inventory, PortInfo, address_family
from nvmeof.wire import layout

ADMIN_QUEUE_ENTRIES = 128
"""ASQSZ of the entries."""
LOGS_KEPT = 8
"""How many log pages are kept built: hosts read a long one in many pieces."""
_SUBNQN_OFFSET, _SUBNQN_BYTES = layout(DISCOVERY_LOG_ENTRY)["subnqn"]
_SUBNQN_END = _SUBNQN_OFFSET + _SUBNQN_BYTES


def address_for(port: PortInfo, seen: PortInfo) -> tuple[str, str] | None:
    """TRADDR and TRSVCID of a port for a host that came to `seen`; None when it cannot be told.

    A wildcard listener is reached at the address that the host used, if that is of its family. What the
    administrator advertises comes before anything else.
    """
    if port.portid == seen.portid:
        traddr, trsvcid = seen.traddr, seen.trsvcid
    else:
        traddr, trsvcid = port.traddr, port.trsvcid
        if port.wildcard:
            if port.adrfam != seen.adrfam:
                return None
            traddr = seen.traddr
    if port.advertise_host is not None:
        traddr = port.advertise_host
    if port.advertise_port is not None:
        trsvcid = str(port.advertise_port)
    return traddr, trsvcid


def _forms(port: PortInfo) -> list[tuple[int, TcpProtocol]]:
    """TRTYPE and TSAS' protocol of a port's entries; the same form is told once."""
    forms = {
        ADVERTISE_OWN: (port.trtype, TcpProtocol.TCP),
        ADVERTISE_TCP: (int(Trtype.TCP), TcpProtocol.TCP),
        ADVERTISE_TSAS: (int(Trtype.TCP), TcpProtocol.MPTCP),
    }
    return list(dict.fromkeys(forms[form] for form in port.advertise_as))


def _entries(port: PortInfo, address: tuple[str, str], subnqn: str, subtype: SubType) -> list[bytes]:
    return [_entry(port, form, address, subnqn, subtype) for form in _forms(port)]


def _entry(
    port: PortInfo, form: tuple[int, TcpProtocol], address: tuple[str, str], subnqn: str, subtype: SubType
) -> bytes:
    traddr, trsvcid = address
    # Explicit persistent connections: a discovery controller stays as long as its KATO is kept.
    eflags = Eflags.EXPLICIT_PERSISTENT_CONNECTION if subtype is SubType.CURRENT_DISCOVERY else Eflags(0)
    return build_discovery_entry(
        trtype=form[0],
        prottype=form[1],
        adrfam=address_family(traddr),
        subtype=subtype,
        treq=Treq.NOT_SPECIFIED | Treq.DISABLE_SQ_FLOW_CONTROL,
        portid=port.portid,
        cntlid=CNTLID_DYNAMIC,
        asqsz=ADMIN_QUEUE_ENTRIES,
        eflags=eflags,
        trsvcid=trsvcid,
        subnqn=subnqn,
        traddr=traddr,
        sectype=port.sectype,
    )


def _of_subsystem(entry: bytes, subnqn: str) -> bytes:
    """The entry with another SUBNQN: of a port's entries nothing else differs."""
    return entry[:_SUBNQN_OFFSET] + subnqn.encode().ljust(_SUBNQN_BYTES, b"\0") + entry[_SUBNQN_END:]


@lru_cache(maxsize=4096)
def _extension(label: str) -> bytes:
    """What an extended entry has behind the plain one: the name that the subsystem's administrator gave it, if any."""
    attributes: list[tuple[int, bytes]] = []
    if label:
        kind = ExtendedAttributeType.ADMIN_LABEL_ASCII if label.isascii() else ExtendedAttributeType.ADMIN_LABEL_UTF8
        attributes.append((kind, label.encode()))
    return extend_discovery_entry(b"", attributes)


def discovery_log(
    inventory: Inventory, seen: PortInfo, host_nqn: str, *, extended: bool = False, port_local: bool = False
) -> bytes:
    """The whole log page for a host that came to the port `seen`: this discovery service, then each subsystem that the
    host may use on each port.

    `extended`: entries with their extended attributes. `port_local`: only what is behind the port `seen`.
    """
    entries: list[bytes] = []
    plain = _extension("") if extended else b""
    own = address_for(inventory.ports.get(seen.portid, seen), seen)
    if own is not None:
        entries += [entry + plain for entry in _entries(seen, own, DISCOVERY_NQN, SubType.CURRENT_DISCOVERY)]
    for port in inventory.ports.values():
        address = address_for(port, seen)
        if port.discovery_only or address is None or (port_local and port.portid != seen.portid):
            continue
        templates = _entries(port, address, "", SubType.NVM)
        for subsystem in inventory.subsystems.values():
            if subsystem.host_allowed(host_nqn):
                extension = _extension(subsystem.config.admin_label) if extended else b""
                entries += [_of_subsystem(entry, subsystem.nqn) + extension for entry in templates]
    flags = DiscoveryFlags(0)
    if port_local:
        flags |= DiscoveryFlags.PORT_LOCAL
    if extended:
        flags |= DiscoveryFlags.EXTENDED
    return build_discovery_log(inventory.generation, entries, flags)


def read_discovery_log(
    inventory: Inventory, seen: PortInfo, host_nqn: str, *, extended: bool = False, port_local: bool = False
) -> bytes:
    """The page of `discovery_log`, built once per generation, host, port as seen and form.

    Only the `LOGS_KEPT` pages that were read last are kept.
    """
    pages = inventory.log_pages
    key = (seen, host_nqn, extended, port_local)
    page = pages.pop(key, None)
    if page is None:
        page = discovery_log(inventory, seen, host_nqn, extended=extended, port_local=port_local)
        if len(pages) >= LOGS_KEPT:
            del pages[next(iter(pages))]
    pages[key] = page  # behind those that were read before
    return page
