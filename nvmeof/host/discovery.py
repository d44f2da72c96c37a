"""Reading a Discovery log: header first, entries in pieces, from the start again when the generation has changed."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from nvmeof.address import is_wildcard, parse_port, strip_brackets, with_scope
from nvmeof.errors import ConfigurationError, NvmeofError
from nvmeof.spec.discovery import (
    DISCOVERY_LOG_HEADER,
    ENTRY_BYTES,
    HEADER_BYTES,
    parse_discovery_entries,
)
from nvmeof.spec.enums import TREQ_SECURE_CHANNEL, Adrfam, SecType, SubType, TcpProtocol, Treq, Trtype

MAX_ENTRIES = 65536
"""More than this is taken for nonsense: 64 MiB of log."""
ATTEMPTS = 10
ENTRIES_PER_READ = 4

ReadLog = Callable[[int, int], Coroutine[Any, Any, bytes]]
"""``(length_bytes, offset) -> bytes`` of the Discovery log page."""


@dataclass(frozen=True, slots=True)
class DiscoveryEntry:
    """One way to reach a subsystem. Numbers as in the log; ``transport``, ``family`` and ``kind`` are their names.

    ``traddr`` is as in the log too, but for one thing: a link-local address has the interface (``%eth0``) of the
    connection that the log came over, in place of one that means something at the target only.
    """

    trtype: int
    adrfam: int
    subtype: int
    treq: int
    portid: int
    cntlid: int
    asqsz: int
    trsvcid: str
    subnqn: str
    traddr: str
    eflags: int
    sectype: int
    prottype: int = TcpProtocol.TCP
    asked: str = field(default="", compare=False)
    """The address that the log was read from."""

    @property
    def address(self) -> str:
        """The address to connect to: ``traddr``, or where that is empty or a wildcard, the address of the discovery
        service."""
        return self.asked if is_wildcard(self.traddr) and self.asked else self.traddr

    @property
    def port(self) -> int:
        """``trsvcid`` as a number. Raises :class:`NvmeofError` where that is none."""
        try:
            return parse_port(self.trsvcid)
        except ConfigurationError:
            raise NvmeofError(f"the discovery entry of {self.subnqn} has no port number: {self.trsvcid!r}") from None

    @property
    def requires_tls(self) -> bool:
        """Whether only a secure channel (TLS) leads there."""
        return self.treq & TREQ_SECURE_CHANNEL == Treq.SECURE_CHANNEL_REQUIRED

    @property
    def security(self) -> str:
        """SECTYPE and TREQ for a person: ``none``, ``tls 1.3, required``."""
        kind = _name(SecType, self.sectype).replace("tls_1_", "tls 1.")
        wanted: dict[int, str] = {
            Treq.SECURE_CHANNEL_REQUIRED: ", required",
            Treq.SECURE_CHANNEL_NOT_REQUIRED: ", not required",
        }
        return kind + wanted.get(self.treq & TREQ_SECURE_CHANNEL, "")

    def read_from(self, address: str, interface: str) -> DiscoveryEntry:
        """Return the entry of a log that was read from `address`, over a connection of `interface` (empty: not
        known)."""
        return replace(self, traddr=with_scope(strip_brackets(self.traddr), interface), asked=address)

    @property
    def transport(self) -> str:
        """``tcp``, ``mptcp``, ``rdma``; the number where the type is unknown."""
        if self.trtype == Trtype.TCP and self.prottype == TcpProtocol.MPTCP:
            return Trtype.MPTCP.name.lower()
        return _name(Trtype, self.trtype)

    @property
    def family(self) -> str:
        """``ipv4``, ``ipv6``, ..."""
        return _name(Adrfam, self.adrfam)

    @property
    def kind(self) -> str:
        """``nvm``, ``referral``, ``current_discovery``."""
        return _name(SubType, self.subtype)

    @property
    def is_nvm(self) -> bool:
        """An NVM subsystem, not another discovery service."""
        return self.subtype == SubType.NVM

    def as_dict(self) -> dict[str, int | str]:
        """Return for JSON the fields, with the names beside the numbers."""
        fields = {name: value for name, value in asdict(self).items() if name != "asked"}
        return {**fields, "transport": self.transport, "family": self.family, "kind": self.kind}


def _name(names: type[Trtype] | type[Adrfam] | type[SubType] | type[SecType], value: int) -> str:
    try:
        return names(value).name.lower()
    except ValueError:
        return str(value)


class DiscoveryLog(list[DiscoveryEntry]):
    """The entries of one generation of the log; ``genctr`` is its generation counter, ``raw`` the page as read."""

    def __init__(self, entries: Iterable[DiscoveryEntry] = (), genctr: int = 0, raw: bytes = b"") -> None:
        super().__init__(entries)
        self.genctr = genctr
        self.raw = raw


async def read_discovery_log(read: ReadLog) -> DiscoveryLog:
    """Return all entries, of one generation. Raises :class:`NvmeofError` for an invalid log, or when its generation
    keeps changing."""
    for _ in range(ATTEMPTS):
        first_bytes = await read(HEADER_BYTES, 0)
        header = DISCOVERY_LOG_HEADER.parse(first_bytes)
        if header.recfmt != 0:
            raise NvmeofError(f"the discovery log has record format {header.recfmt}, which is unknown")
        if header.numrec > MAX_ENTRIES:
            raise NvmeofError(f"the discovery log claims {header.numrec} entries")
        raw = bytearray()
        for first in range(0, header.numrec, ENTRIES_PER_READ):
            count = min(ENTRIES_PER_READ, header.numrec - first)
            raw += await read(count * ENTRY_BYTES, HEADER_BYTES + first * ENTRY_BYTES)
        again = DISCOVERY_LOG_HEADER.parse(await read(HEADER_BYTES, 0))
        if (again.genctr, again.numrec) == (header.genctr, header.numrec):
            return DiscoveryLog(map(_entry, parse_discovery_entries(raw)), header.genctr, first_bytes + raw)
    raise NvmeofError(f"the discovery log changed {ATTEMPTS} times while it was read")


def _entry(parsed: Any) -> DiscoveryEntry:
    return DiscoveryEntry(
        trtype=parsed.trtype,
        adrfam=parsed.adrfam,
        subtype=parsed.subtype,
        treq=parsed.treq,
        portid=parsed.portid,
        cntlid=parsed.cntlid,
        asqsz=parsed.asqsz,
        trsvcid=parsed.trsvcid.strip(),
        subnqn=parsed.subnqn,
        traddr=parsed.traddr.strip(),
        eflags=parsed.eflags,
        sectype=parsed.tsas[0],
        prottype=parsed.tsas[1],
    )
