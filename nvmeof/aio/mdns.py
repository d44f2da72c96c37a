"""Discovery services by multicast DNS: a target announces its own, a host looks for those on its links.

The service type is ``_nvme-disc._tcp``; the TXT keys are ``p`` (the transport) and ``nqn`` (that of the discovery
subsystem). Sources: NVMe TP-8009 (Automated Discovery of NVMe-oF Discovery Controllers for IP Networks), RFC 6762, RFC
6763; nvme-stas reads the same keys.

The protocol itself is python-zeroconf's, which is an extra: ``pip install 'nvmeof-mptcp[mdns]'``.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final

from nvmeof.address import is_wildcard
from nvmeof.errors import ConfigurationError, TransportError
from nvmeof.spec.enums import DISCOVERY_NQN

if TYPE_CHECKING:
    from zeroconf.asyncio import AsyncZeroconf

SERVICE_TYPE: Final = "_nvme-disc._tcp.local."
BROWSE_SECONDS: Final = 3.0
"""How long :func:`find_services` listens; a responder answers within 20 to 120 ms (RFC 6762, 6), and may be asked again
after a second."""
RESOLVE_SECONDS: Final = 2.0
_MISSING = "mDNS needs the package zeroconf: pip install 'nvmeof-mptcp[mdns]'"


@dataclass(frozen=True, slots=True)
class MdnsService:
    """A discovery service as it is announced. ``name``: of the instance. ``addresses``: numeric, at least one."""

    name: str
    addresses: tuple[str, ...]
    port: int
    transport: str = "tcp"
    nqn: str = DISCOVERY_NQN


def check_available() -> None:
    """Raise :class:`ConfigurationError`, which says what to install, where python-zeroconf is missing."""
    try:
        import zeroconf  # noqa: F401
    except ImportError:
        raise ConfigurationError(_MISSING) from None


@asynccontextmanager
async def _responder(interfaces: Sequence[str] | None) -> AsyncIterator[AsyncZeroconf]:
    """A socket on each interface. ``interfaces``: their addresses; None: all of them. Raises TransportError."""
    check_available()
    from zeroconf import InterfaceChoice
    from zeroconf.asyncio import AsyncZeroconf

    try:
        responder = AsyncZeroconf(interfaces=list(interfaces) if interfaces else InterfaceChoice.All)
    except OSError as error:
        raise TransportError(f"mDNS cannot be used here (UDP port 5353): {error.strerror or error}") from error
    try:
        yield responder
    finally:
        await responder.async_close()


def addresses_of(host: str) -> tuple[str, ...]:
    """Return the numeric addresses that a listener on ``host`` has: itself, or of a wildcard those of all interfaces
    but the loopback ones."""
    if not is_wildcard(host):
        return (host,)
    check_available()
    import ifaddr

    found = [ip.ip if ip.is_IPv4 else ip.ip[0] for adapter in ifaddr.get_adapters() for ip in adapter.ips]
    wanted = [str(address) for address in found if host not in ("0.0.0.0",) or ":" not in str(address)]
    outside = [address for address in wanted if not address.startswith("127.") and address != "::1"]
    return tuple(outside or wanted)


@asynccontextmanager
async def announced(services: Iterable[MdnsService], interfaces: Sequence[str] | None = None) -> AsyncIterator[None]:
    """Announce discovery services while the block runs, and take them back at its end (goodbye packets).

    A name that another responder of the link has gets a number. Raises :class:`ConfigurationError` without
    python-zeroconf, :class:`TransportError` where multicast cannot be used.
    """
    async with _responder(interfaces) as responder:
        from zeroconf import NonUniqueNameException
        from zeroconf.asyncio import AsyncServiceInfo

        for service in services:
            packed = [ip_address(each.partition("%")[0]).packed for each in service.addresses]
            info = AsyncServiceInfo(
                SERVICE_TYPE,
                f"{service.name}.{SERVICE_TYPE}",
                port=service.port,
                addresses=packed,
                properties={"p": service.transport, "nqn": service.nqn},
            )
            try:
                await (await responder.async_register_service(info, allow_name_change=True))
            except NonUniqueNameException:
                raise TransportError(f"the mDNS name {service.name} is taken on this link") from None
            except OSError as error:
                raise TransportError(f"{service.name} could not be announced: {error.strerror or error}") from error
        yield


async def find_services(seconds: float = BROWSE_SECONDS, interfaces: Sequence[str] | None = None) -> list[MdnsService]:
    """Look for discovery services for so long; those that answer, in the order of their names.

    ``interfaces``: addresses of the interfaces to ask on; None: all. An instance without an address, or whose TXT names
    another protocol than TCP, is left out. Raises as :func:`announced` does.
    """
    async with _responder(interfaces) as responder:
        from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo

        names: dict[str, None] = {}

        def changed(zeroconf: Any, service_type: str, name: str, state_change: Any) -> None:
            if state_change.name == "Removed":
                names.pop(name, None)
            else:
                names[name] = None

        browser = AsyncServiceBrowser(responder.zeroconf, SERVICE_TYPE, handlers=[changed])
        try:
            await asyncio.sleep(seconds)
        finally:
            await browser.async_cancel()
        found = []
        for name in names:
            info = AsyncServiceInfo(SERVICE_TYPE, name)
            if await info.async_request(responder.zeroconf, RESOLVE_SECONDS * 1000):
                service = _service(info)
                if service is not None:
                    found.append(service)
        return sorted(found, key=lambda service: service.name)


def _service(info: Any) -> MdnsService | None:
    """Return what an instance says; None where that is nothing that NVMe/TCP can connect to."""
    from zeroconf import IPVersion

    # keys are case-insensitive (RFC 6763, 6.4); SPDK writes NQN
    text = {
        key.decode("utf-8", "replace").lower(): (value or b"").decode("utf-8", "replace").strip()
        for key, value in info.properties.items()
    }
    transport = text.get("p", "tcp").lower()
    addresses = []
    with contextlib.suppress(ValueError):
        addresses = info.parsed_scoped_addresses(IPVersion.All)
    if transport != "tcp" or not addresses or not info.port:
        return None
    name = info.name.removesuffix(f".{SERVICE_TYPE}")
    return MdnsService(name, tuple(addresses), info.port, transport, text.get("nqn") or DISCOVERY_NQN)
