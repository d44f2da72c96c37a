"""Following the referrals of discovery services, each service once.

NVM Express Base specification, Discovery Log Page Entry: subtype 01h refers to another discovery service, 03h describes
the one that was asked. As in libnvme (``nvmf_connect_disc_entry``) only the first is followed, in the log's order, and
not where DUPRETINFO says that the same entries would come. This module must not know sockets or how logs are read.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from nvmeof.address import Address, check_host, ip_of
from nvmeof.errors import NvmeofError
from nvmeof.host.discovery import DiscoveryEntry, DiscoveryLog
from nvmeof.spec.discovery import Eflags
from nvmeof.spec.enums import DISCOVERY_NQN, SubType

MAX_SERVICES = 64
"""Discovery services that are asked in one go. More of them are taken for referrals without end."""


@dataclass(frozen=True, slots=True)
class DiscoveryService:
    """Where a discovery service is. ``trsvcid`` None: port 8009, or 4420 where nothing listens there."""

    traddr: str
    trsvcid: int | None = None
    subnqn: str = DISCOVERY_NQN
    transport: str | None = None

    def __str__(self) -> str:
        return self.traddr if self.trsvcid is None else str(Address(self.traddr, self.trsvcid))


@dataclass(slots=True)
class ServiceLog:
    """The log of one service. ``addresses``: all that it is known to be behind, the one that was asked among them."""

    log: DiscoveryLog
    addresses: tuple[Address, ...] = ()


@dataclass(slots=True)
class Discovered:
    """What discovery services know, those among them that were referred to included."""

    entries: list[DiscoveryEntry] = field(default_factory=list)
    """The entries in the order in which they were found, each once; those of a referral in its place."""
    services: list[DiscoveryService] = field(default_factory=list)
    """The services that were asked, in that order."""
    left_out: list[str] = field(default_factory=list)
    """One sentence for each referral that was not followed."""


ReadService = Callable[[DiscoveryService], Awaitable[ServiceLog]]


async def follow_referrals(
    first: DiscoveryService, read: ReadService, *, max_services: int = MAX_SERVICES, secured: bool = False
) -> Discovered:
    """Read the log of a service, and of all that it refers to. ``secured``: TLS is used, so that services which require
    it can be asked.

    Raises what ``read`` raises for the first service. What goes wrong at another one (it cannot be reached, it refers
    to itself or back, there is no end of them) is a sentence in ``left_out``.
    """
    walk = _Walk(read, max_services, secured)
    await walk.take(first, await read(first))
    return walk.found


class _Walk:
    def __init__(self, read: ReadService, max_services: int, secured: bool) -> None:
        self._read = read
        self._secured = secured
        self._max_services = max_services
        self._asked: set[tuple[str, int]] = set()
        self._told: set[tuple[str, int]] = set()
        self._reads = 1
        self.found = Discovered()

    async def take(self, service: DiscoveryService, answer: ServiceLog) -> None:
        """Take the entries of a log, and those of its referrals."""
        self.found.services.append(service)
        here = {_key(address) for address in answer.addresses}
        if service.trsvcid is not None:
            here.add(_key(Address(service.traddr, service.trsvcid)))
        self._asked |= here
        for entry in answer.log:
            if entry.subtype == SubType.REFERRAL:
                await self._follow(service, here, entry)
            elif entry not in self.found.entries:
                self.found.entries.append(entry)

    async def _follow(self, service: DiscoveryService, here: set[tuple[str, int]], entry: DiscoveryEntry) -> None:
        if entry.eflags & Eflags.DUPLICATE_RETURNED_INFORMATION:
            return
        try:
            there = DiscoveryService(entry.address, entry.port, entry.subnqn, entry.transport)
            key = _key(Address(entry.address, entry.port))
        except NvmeofError as error:
            self._leave_out(("", 0), f"left out a referral of {service}: {error}")
            return
        if key in self._told:
            return
        if entry.requires_tls and not self._secured:
            self._leave_out(key, f"left out the referral of {service} to {there}: it requires TLS")
        elif key in here:
            self._leave_out(key, f"left out a referral of {service}: it leads to the same service")
        elif key in self._asked:
            self._leave_out(key, f"left out the referral of {service} to {there}: that service was asked already")
        elif self._reads >= self._max_services:
            self._leave_out(
                key, f"left out the referral of {service} to {there}: {self._max_services} services were asked already"
            )
        else:
            self._asked.add(key)
            self._reads += 1
            try:
                answer = await self._read(there)
            except NvmeofError as error:
                self._leave_out(key, f"left out the referral of {service} to {there}: {error}")
                return
            await self.take(there, answer)

    def _leave_out(self, key: tuple[str, int], sentence: str) -> None:
        self._told.add(key)
        if sentence not in self.found.left_out:
            self.found.left_out.append(sentence)


def _key(address: Address) -> tuple[str, int]:
    """One spelling per address."""
    host = check_host(address.host)
    return (host.lower().removesuffix(".") if ip_of(host) is None else host), address.port
