"""What a target is made of, before it runs: frozen dataclasses, checked when they are made.

Sizes are bytes and times are seconds unless the name says otherwise.
"""

from __future__ import annotations

import hashlib
import uuid as uuid_module
from dataclasses import dataclass, field
from itertools import product
from typing import Final

from nvmeof.address import Address, check_host, ip_of, is_wildcard
from nvmeof.errors import ConfigurationError
from nvmeof.security.dhchap_controller import HostKeys
from nvmeof.security.tls.key import TlsKey
from nvmeof.security.tls.suites import parse_suites
from nvmeof.spec.enums import CNTLID_MAX, DISCOVERY_PORT, AnaState
from nvmeof.spec.nqn import check_nqn
from nvmeof.target.core.connection_limits import CONNECTIONS_MOST
from nvmeof.target.core.metadata import MetadataStore
from nvmeof.target.core.rate_limits import RateLimit
from nvmeof.target.namespaces.endurance_group import Pool
from nvmeof.target.namespaces.zone_geometry import ZoneGeometry
from nvmeof.target.storage.base import Backend
from nvmeof.target.subsystem.ana import ANA_GROUP, check_ana_group
from nvmeof.version import __version__

POLL_MOST_SECONDS: Final = 0.01

MAX_QUEUE_ENTRIES = 1024
MAX_IO_QUEUES = 128
UNLIMITED_TRANSFER_BYTES = 64 << 20
"""Upper bound of one command's data for a target without a limit (MDTS 0): the staging memory that one command may
take."""
ADVERTISE_OWN = "own"
ADVERTISE_TCP = "tcp"
ADVERTISE_TSAS = "tsas"
ADVERTISE_FORMS = (ADVERTISE_OWN, ADVERTISE_TCP, ADVERTISE_TSAS)
ADVERTISE_DEFAULT = (ADVERTISE_OWN, ADVERTISE_TCP)
REFERRAL_TRANSPORTS = ("tcp", "mptcp", "rdma")
TLS_OFF = "off"
TLS_ALLOWED = "allowed"
TLS_REQUIRED = "required"
TLS_POLICIES = (TLS_OFF, TLS_ALLOWED, TLS_REQUIRED)
"""What a port does: no TLS, TLS and plain connections side by side, TLS alone."""


def derive_serial(subnqn: str) -> str:
    """Return a serial number (20 hexadecimal digits) that is equal for equal subsystem NQNs."""
    return hashlib.sha256(f"nvmeof serial {subnqn}".encode()).hexdigest()[:20]


def firmware_revision() -> str:
    """Return this package's version, as the eight characters of FR."""
    return __version__[:8]


def _printable(text: str, limit: int, what: str) -> None:
    if len(text) > limit or not all(" " <= character <= "~" for character in text):
        raise ConfigurationError(f"{what} must be at most {limit} printable ASCII characters, not {text!r}")


CQT_MAX_MS = 0xFFFF
NOTICE_SECONDS = 1.0
"""How long after the end of a keep alive interval the association is ended, at most: the target looks once a second."""
LONGEST_STEP_SECONDS = 4.0
"""How long what a backend has begun may go on when its association has ended.

What has not begun is given up, and what works in pieces stops after the one in progress. The longest piece is the Write
Zeroes of 64 Ki blocks of 4 KiB, 256 MiB, in a file whose file system has to write them: a medium that takes 64 MiB/s.
"""
COMMAND_QUIESCE_SECONDS = NOTICE_SECONDS + LONGEST_STEP_SECONDS
"""Command Quiesce Time: the time from which the loss of a host can be noticed until no command of its association has a
further effect. With slower media give more: ``SubsystemConfig(command_quiesce_seconds=...)``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespaceConfig:
    """A namespace and its storage: ``NamespaceConfig(backend=Ramdisk("1G"), nsid=7)``.

    `nguid` (16 bytes), `uuid` and `eui64` (8 bytes) identify the namespace to hosts; those that are not given are
    derived from the subsystem's NQN and the NSID. Raises `ConfigurationError` for values that cannot be used.
    """

    backend: Backend
    nsid: int | None = None  # None: the lowest free one
    nguid: bytes | None = None
    uuid: uuid_module.UUID | None = None
    eui64: bytes | None = None
    read_only: bool = False
    zoned: ZoneGeometry | None = None  # None: of the NVM Command Set
    anagrpid: int = ANA_GROUP  # the ANA group
    rate_limit: RateLimit | None = None  # of all its users together
    enabled: bool = True  # False: its storage is open, and no host sees it

    def __post_init__(self) -> None:
        if not isinstance(self.backend, Backend):
            raise ConfigurationError(
                f"{self.backend!r} is no storage: write Ramdisk({str(self.backend)!r}) for memory or "
                f"FileBackend({str(self.backend)!r}) for a file or device"
            )
        if self.nsid is not None and not 1 <= self.nsid <= 0xFFFFFFFE:
            raise ConfigurationError(f"an NSID is 1 to 4294967294, not {self.nsid}")
        if self.anagrpid < 1:
            raise ConfigurationError(f"an ANA group is 1 or more, not {self.anagrpid}")
        if self.nguid is not None and len(self.nguid) != 16:
            raise ConfigurationError(f"an NGUID has 16 bytes, not {len(self.nguid)}")
        if self.eui64 is not None and len(self.eui64) != 8:
            raise ConfigurationError(f"an EUI-64 has 8 bytes, not {len(self.eui64)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SubsystemConfig:
    """An NVM subsystem, its namespaces, and the limits of its controllers::

        SubsystemConfig(
            nqn="nqn.2026-01.org.example:disk", namespaces=(NamespaceConfig(backend=Ramdisk("1G")),), max_io_queues=4
        )

    Names end in their unit (bytes, seconds); other limits are counts. Raises `ConfigurationError`.
    """

    nqn: str
    serial: str = ""  # derived from the NQN when empty
    model: str = "nvmeof"
    firmware: str = field(default_factory=firmware_revision)
    allowed_hosts: frozenset[str] | None = None  # host NQNs; None: any host
    any_host: bool = False  # any host may use it, `allowed_hosts` notwithstanding: they hold once this does not
    host_keys: tuple[tuple[str, HostKeys], ...] = ()  # what hosts authenticate themselves with, by their NQN
    authentication_required: bool = False  # hosts without keys are refused
    tls_keys: tuple[tuple[str, TlsKey], ...] = ()  # what hosts use TLS with, by their NQN
    tls_required: bool = False  # connections without TLS are refused, whatever their port allows
    managing_hosts: frozenset[str] | None = None  # that may format, sanitize, manage namespaces, ...; None: all of them
    reauthentication_seconds: float = 0.0  # how long an authentication is good; 0: as long as its queue
    namespaces: tuple[NamespaceConfig, ...] = ()
    max_queue_entries: int = MAX_QUEUE_ENTRIES  # of an I/O queue (CAP.MQES + 1)
    max_io_queues: int = MAX_IO_QUEUES
    max_transfer_bytes: int = 1 << 20  # MDTS: a power of two; 0: no limit, UNLIMITED_TRANSFER_BYTES accepted
    incapsule_bytes: int = 8192  # data in an I/O command capsule (IOCCSZ)
    cntlid_min: int = 1  # the range of the controllers' identifiers, as nvmet's attr_cntlid_min and _max: give targets
    cntlid_max: int = CNTLID_MAX  # that serve one subsystem NQN ranges that do not overlap
    max_async_events: int = 4  # Asynchronous Event Requests held per controller (AERL + 1)
    max_namespaces: int = 1024  # NN and MNAN
    max_ana_groups: int = 32  # ANAGRPMAX and NANAGRPID: hosts make room for the ANA log of as many
    pool: Pool | None = None  # what hosts may create namespaces from; None: they cannot manage namespaces
    max_attached: int = 0  # namespaces attached to one controller (MAXCNA); 0: as many as there are
    ready_timeout_seconds: float = 7.5  # CAP.TO
    command_quiesce_seconds: float = COMMAND_QUIESCE_SECONDS  # CQT of Identify Controller; 0: not reported
    any_keep_alive_seconds: float = 0.0  # of an I/O controller whose host asks for no keep alive; 0: none
    keep_alive_min_seconds: float = 0.0  # hosts that ask for a shorter KATO are refused
    keep_alive_max_seconds: float = 0.0  # hosts that ask for a longer KATO are refused; 0: none is
    max_controllers: int = 0  # controllers at a time; 0: as many as have identifiers
    max_controllers_per_host: int = 0  # of one host NQN at a time; 0: any number
    host_limit: RateLimit | None = None  # of each host that has none in `host_limits`
    host_limits: tuple[tuple[str, RateLimit], ...] = ()  # by host NQN
    admin_label: str = ""  # a name for people, up to 256 bytes of UTF-8; reported by Discovery on request
    metadata_store: MetadataStore | None = (
        None  # what outlives the process: history, saved features; None: nothing does
    )

    def __post_init__(self) -> None:
        check_nqn(self.nqn, "the subsystem NQN")
        for host in self.allowed_hosts or ():
            check_nqn(host, "the NQN of an allowed host")
        for host in self.managing_hosts or ():
            check_nqn(host, "the NQN of a managing host")
        self._check_keys()
        _printable(self.serial, 20, "a serial number")
        _printable(self.model, 40, "a model number")
        _printable(self.firmware, 8, "a firmware revision")
        if len(self.admin_label.encode()) > 256 or not self.admin_label.isprintable():
            raise ConfigurationError("a label must be printable, and at most 256 bytes")
        if not 2 <= self.max_queue_entries <= 65536:
            raise ConfigurationError(f"a queue has 2 to 65536 entries, not {self.max_queue_entries}")
        if not 1 <= self.max_io_queues <= 65534:
            raise ConfigurationError(f"a controller has 1 to 65534 I/O queues, not {self.max_io_queues}")
        size = self.max_transfer_bytes
        if size and (size < 8192 or size & (size - 1) or size > 1 << 30):
            raise ConfigurationError(
                f"the largest transfer is a power of two from 8192 bytes to 1 GiB, or 0 for no limit, not {size}"
            )
        if self.incapsule_bytes % 16 or not 0 <= self.incapsule_bytes <= 1 << 20:
            raise ConfigurationError(f"in-capsule data is a multiple of 16 up to 1 MiB, not {self.incapsule_bytes}")
        if not 1 <= self.cntlid_min <= self.cntlid_max <= CNTLID_MAX:
            raise ConfigurationError(
                f"controller identifiers are a range within 1 to {CNTLID_MAX}, "
                f"not {self.cntlid_min} to {self.cntlid_max} (see --cntlid-min and --cntlid-max)"
            )
        if not 1 <= self.max_async_events <= 256:
            raise ConfigurationError(f"1 to 256 Asynchronous Event Requests can be held, not {self.max_async_events}")
        if not 1 <= self.max_namespaces <= 0xFFFFFFFE:
            raise ConfigurationError(f"a subsystem has 1 to 4294967294 namespaces, not {self.max_namespaces}")
        if not 1 <= self.max_ana_groups <= 0xFFFF:
            raise ConfigurationError(f"a subsystem has 1 to 65535 ANA groups, not {self.max_ana_groups}")
        for namespace in self.namespaces:
            check_ana_group(namespace.anagrpid, self.max_ana_groups)
        if not 0 <= self.max_attached <= self.max_namespaces:
            raise ConfigurationError(
                f"a controller has 0 to {self.max_namespaces} attached namespaces, not {self.max_attached}"
            )
        if not 0 <= self.command_quiesce_seconds <= CQT_MAX_MS / 1000:
            raise ConfigurationError(
                f"the command quiesce time is 0 to {CQT_MAX_MS / 1000} seconds, not {self.command_quiesce_seconds}"
            )
        self._check_limits()
        if self.any_keep_alive_seconds < 0:
            raise ConfigurationError(f"a keep alive timeout is not negative: {self.any_keep_alive_seconds}")
        if not 0.5 <= self.ready_timeout_seconds <= 127.5:
            raise ConfigurationError(f"the ready timeout is 0.5 to 127.5 s, not {self.ready_timeout_seconds}")

    def _check_limits(self) -> None:
        for name in ("max_controllers", "max_controllers_per_host"):
            if not 0 <= getattr(self, name) <= CNTLID_MAX:
                raise ConfigurationError(
                    f"{name} is a number up to {CNTLID_MAX}, or 0 for no limit, not {getattr(self, name)}"
                )
        least, most = self.keep_alive_min_seconds, self.keep_alive_max_seconds
        if least < 0 or most < 0 or (most and most < least):
            raise ConfigurationError(
                f"keep alive timeouts from {least:g} to {most:g} s are no range; give two numbers, or 0 for no limit"
            )
        named = [nqn for nqn, _ in self.host_limits]
        for nqn in named:
            check_nqn(nqn, "the NQN of a host with a limit")
            if named.count(nqn) > 1:
                raise ConfigurationError(f"the host {nqn} has a rate limit twice")

    @property
    def has_rate_limits(self) -> bool:
        """Whether a namespace or a host has a rate limit."""
        of_namespaces = any(namespace.rate_limit is not None for namespace in self.namespaces)
        return of_namespaces or self.host_limit is not None or bool(self.host_limits)

    def _check_keys(self) -> None:
        for named, what in (
            ([nqn for nqn, _ in self.host_keys], "keys"),
            ([nqn for nqn, _ in self.tls_keys], "a TLS key"),
        ):
            for nqn in named:
                check_nqn(nqn, f"the NQN of a host with {what}")
                if named.count(nqn) > 1:
                    raise ConfigurationError(f"the host {nqn} has {what} twice")
        if self.reauthentication_seconds < 0:
            raise ConfigurationError(
                f"an authentication is good for 0 seconds or more, not {self.reauthentication_seconds}"
            )

    @property
    def transfer_limit_bytes(self) -> int:
        """Return the most bytes of a command's data: MDTS, or UNLIMITED_TRANSFER_BYTES where MDTS is 0."""
        return self.max_transfer_bytes or UNLIMITED_TRANSFER_BYTES

    @property
    def serial_number(self) -> str:
        """Return the serial number of Identify Controller: as given, or derived from the NQN."""
        return self.serial or derive_serial(self.nqn)


@dataclass(frozen=True, slots=True, kw_only=True)
class Referral:
    """Another discovery service that hosts are told of: ``Referral(traddr="192.0.2.9")``. `name`: for people."""

    traddr: str
    trsvcid: int = DISCOVERY_PORT
    transport: str = "tcp"
    name: str = ""

    def __post_init__(self) -> None:
        check_host(self.traddr)
        if not self.traddr or is_wildcard(self.traddr):
            raise ConfigurationError(f"a referral needs an address that hosts can connect to, not {self.traddr!r}")
        if not 1 <= self.trsvcid <= 65535:
            raise ConfigurationError(f"the port of a referral is 1 to 65535, not {self.trsvcid}")
        if self.transport not in REFERRAL_TRANSPORTS:
            raise ConfigurationError(
                f"the transport of a referral is {', '.join(REFERRAL_TRANSPORTS)}, not {self.transport!r}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class PortConfig:
    """An address to listen on: ``PortConfig(host="192.0.2.1", port=4420)``.

    `advertise_host` and `advertise_port` replace the address and the port in Discovery log entries.

    `advertise_as`: the forms of its Discovery log entries, one entry each: `own` is the transport's own TRTYPE; `tcp`
    is plain NVMe/TCP, for hosts that know no MPTCP; `tsas` is TRTYPE 3 with MPTCP named in TSAS, an older proposal. By
    default `own` comes first, for hosts that take the first form that they know, then `tcp`.

    A port lists the subsystems that it offers, and a subsystem lists the hosts that may use it, as in Linux's nvmet.
    `subsystems`: their NQNs, which need not exist yet; None offers all of them. `paths`: the addresses that MPTCP
    announces in the port's connections, each as ``ADDR[%dev][,backup]``, or ``auto`` for one of every interface.

    `tls`: ``off``, ``allowed`` (hosts without TLS are served too) or ``required``. `tls_suites`: the cipher suites that
    are allowed, in order of preference; empty: all that NVMe/TCP uses.
    """

    transport: str = "tcp"  # the registered transport's name
    host: str = "0.0.0.0"
    port: int = 4420
    advertise_host: str | None = None
    advertise_port: int | None = None
    discovery_only: bool = False
    advertise_as: tuple[str, ...] = ADVERTISE_DEFAULT
    ana: tuple[tuple[int, AnaState], ...] = ()  # the states of ANA groups at the start; the others are optimized
    portid: int | None = None  # None: the lowest free one
    subsystems: frozenset[str] | None = None
    paths: tuple[str, ...] = ()
    referrals: tuple[Referral, ...] = ()  # other discovery services that its Discovery log names
    tls: str = TLS_OFF
    tls_suites: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.tls not in TLS_POLICIES:
            raise ConfigurationError(f"TLS of a port is {', '.join(TLS_POLICIES)}, not {self.tls!r}")
        parse_suites(self.tls_suites)
        if self.portid is not None and not 1 <= self.portid <= 0xFFFF:
            raise ConfigurationError(f"a Port ID is 1 to 65535, not {self.portid}")
        for nqn in self.subsystems or ():
            check_nqn(nqn, "the NQN of a subsystem that a port offers")
        for form in self.advertise_as:
            if form not in ADVERTISE_FORMS:
                raise ConfigurationError(f"a port is advertised as {', '.join(ADVERTISE_FORMS)}, not as {form!r}")
        groups = [group for group, _ in self.ana]
        for group in groups:
            if groups.count(group) > 1:
                raise ConfigurationError(
                    f"the port {Address(self.host, self.port)} has two states of ANA group {group}"
                )
        if not self.advertise_as:
            raise ConfigurationError("a port has to be advertised in some form")
        for port in (self.port, self.advertise_port or 0):
            if not 0 <= port <= 65535:
                raise ConfigurationError(f"a port is 0 to 65535, not {port}")
        for host in (self.host, self.advertise_host or ""):
            if len(host) > 255:
                raise ConfigurationError("an address has at most 255 characters")
        if self.advertise_host is not None and is_wildcard(self.advertise_host):
            raise ConfigurationError(
                f"{self.advertise_host!r} cannot be advertised: give an address that hosts can connect to"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetConfig:
    """The whole configuration of a target: ``Target(config=TargetConfig(subsystems=(...,), ports=(PortConfig(),)))``.

    A port offers all subsystems unless its `subsystems` names some. Raises `ConfigurationError` for a subsystem
    or a port that is configured twice.
    """

    subsystems: tuple[SubsystemConfig, ...]
    ports: tuple[PortConfig, ...] = (PortConfig(),)
    staging_bytes: int = 256 << 20  # memory for data on its way, of all queues together
    max_connections: int = CONNECTIONS_MOST  # open at a time; one address gets half of them
    poll_seconds: float = 0.0  # how long I/O queues in use are polled for data before the loop waits; 0: never

    def __post_init__(self) -> None:
        nqns = [subsystem.nqn for subsystem in self.subsystems]
        for nqn in nqns:
            if nqns.count(nqn) > 1:
                raise ConfigurationError(f"the subsystem {nqn} is configured twice")
        metadata_stores = [
            id(subsystem.metadata_store) for subsystem in self.subsystems if subsystem.metadata_store is not None
        ]
        if len(set(metadata_stores)) < len(metadata_stores):
            raise ConfigurationError("two subsystems cannot share a metadata store: give each a separate one")
        self._check_ports()
        for subsystem, port in product(self.subsystems, self.ports):
            for group, _ in port.ana:
                check_ana_group(group, subsystem.max_ana_groups)
        if self.staging_bytes < 4 << 20:
            raise ConfigurationError(f"staging memory must be 4 MiB or more, not {self.staging_bytes} bytes")
        if not 1 <= self.max_connections <= 1 << 20:
            raise ConfigurationError(f"a target has 1 to {1 << 20} connections, not {self.max_connections}")
        if not 0 <= self.poll_seconds <= POLL_MOST_SECONDS:
            raise ConfigurationError(
                f"poll_seconds is between 0 and {POLL_MOST_SECONDS:g}, not {self.poll_seconds:g}: "
                "a processor is busy for it"
            )

    def _check_ports(self) -> None:
        """Refuse an address that is given twice, or that a wildcard covers, before the kernel says "in use"."""
        portids = [port.portid for port in self.ports if port.portid is not None]
        for portid in portids:
            if portids.count(portid) > 1:
                raise ConfigurationError(f"the Port ID {portid} is given twice")
        fixed = [port for port in self.ports if port.port]
        for index, port in enumerate(fixed):
            for other in fixed[:index]:
                if (port.transport, port.port) != (other.transport, other.port) or port.transport == "memory":
                    continue
                if port.host == other.host:
                    raise ConfigurationError(f"the address {Address(port.host, port.port)} is given twice")
                for one, covered in ((port, other), (other, port)):
                    if _stands_for(one.host, covered.host):
                        raise ConfigurationError(
                            f"{Address(one.host, one.port)} stands for all addresses, {covered.host} among them: "
                            "give one of both"
                        )


def _stands_for(host: str, other: str) -> bool:
    """Return whether listening on `host` includes `other`: a wildcard of both families, or of that family."""
    if not is_wildcard(host):
        return False
    wildcard, address = ip_of(host), ip_of(other)
    return wildcard is None or type(wildcard) is type(address)
