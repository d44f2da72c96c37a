"""The registry of a target: its subsystems and ports, and the generation of the Discovery log."""

from __future__ import annotations

from dataclasses import dataclass, replace

from nvmeof.address import ip_of, is_wildcard
from nvmeof.errors import ConfigurationError
from nvmeof.security.tls.suites import SUITES, Suite
from nvmeof.spec.enums import DISCOVERY_NQN, Adrfam, SecType, Treq
from nvmeof.target.core.happenings import Happenings
from nvmeof.target.core.log_rate import PeerLog
from nvmeof.target.core.tables import Tables
from nvmeof.target.projection.authentication import AuthenticationLimits
from nvmeof.target.subsystem.config import ADVERTISE_DEFAULT, TLS_OFF, TLS_REQUIRED, Referral, SubsystemConfig
from nvmeof.target.subsystem.generated_psks import GeneratedPsks
from nvmeof.target.subsystem.subsystem import Association, Subsystem


def address_family(address: str) -> Adrfam:
    """Return ADRFAM of a textual IP address; a label of the memory transport counts as IPv4."""
    parsed = ip_of(address)
    return Adrfam.IPV6 if parsed is not None and parsed.version == 6 else Adrfam.IPV4


@dataclass(frozen=True, slots=True, kw_only=True)
class PortInfo:
    """A port as one host sees it: `traddr` and `trsvcid` are those that the host connected to.

    In `TargetRegistry.ports`, `traddr` is what was asked for, possibly a wildcard or a name, and `bound` are the
    addresses that are listened on. `advertised`: the addresses that Discovery reports instead. `plain_tcp`: hosts that
    know nothing but NVMe/TCP can connect. `tls`: whether TLS is used (`PortConfig.tls`), with which `suites`.
    `subsystems`: the NQNs of those that are offered there (None: all). `referrals`: other discovery services.
    """

    portid: int
    transport: str
    trtype: int
    traddr: str
    trsvcid: str
    bound: tuple[str, ...] = ()
    advertised: tuple[str, ...] = ()
    advertise_port: int | None = None
    discovery_only: bool = False
    tls: str = TLS_OFF
    suites: tuple[Suite, ...] = SUITES
    advertise_as: tuple[str, ...] = ADVERTISE_DEFAULT
    plain_tcp: bool = True
    subsystems: frozenset[str] | None = None
    referrals: tuple[Referral, ...] = ()

    @property
    def sectype(self) -> SecType:
        """What TSAS says of TLS."""
        return SecType.NONE if self.tls == TLS_OFF else SecType.TLS_1_3

    @property
    def treq(self) -> Treq:
        """What TREQ says of a secure channel."""
        if self.tls == TLS_OFF:
            return Treq.NOT_SPECIFIED
        return Treq.SECURE_CHANNEL_REQUIRED if self.tls == TLS_REQUIRED else Treq.SECURE_CHANNEL_NOT_REQUIRED

    @property
    def adrfam(self) -> Adrfam:
        return address_family(self.traddr)

    @property
    def addresses(self) -> tuple[str, ...]:
        """What is listened on, wildcards as such."""
        return self.bound or (self.traddr,)

    def listens_on(self, address: str) -> bool:
        """Return whether a wildcard of this port accepts connections to an address."""
        family = address_family(address)
        return any(is_wildcard(each) and address_family(each) == family for each in self.addresses)

    def offers(self, subnqn: str) -> bool:
        """Return whether an NVM subsystem of that NQN is offered on this port."""
        return not self.discovery_only and (self.subsystems is None or subnqn in self.subsystems)

    def seen_at(self, traddr: str, trsvcid: int | str) -> PortInfo:
        """Return this port as seen by a host that connected to this address."""
        return replace(self, traddr=traddr, trsvcid=str(trsvcid))


class TargetRegistry:
    """`tables` has the commands, log pages and features of the target, the same for all of its queues.

    `generation` is the Discovery log's GENCTR: it changes with every change of subsystems and ports.
    """

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self.subsystems: dict[str, Subsystem] = {}
        self.ports: dict[int, PortInfo] = {}
        self.peer_log = PeerLog()
        self.happenings = Happenings()
        self.authentication = AuthenticationLimits()
        self.generated = GeneratedPsks()
        self.generation = 1
        self.log_pages: dict[tuple[PortInfo, str, bool, bool], bytes] = {}
        """Discovery logs of this generation, by the port as seen, host NQN and form."""
        self.started_at: float | None = None  # when the target started, for power-on hours; set by who runs it
        self.discovery = Subsystem(
            SubsystemConfig(nqn=DISCOVERY_NQN, model="nvmeof discovery", max_async_events=4), discovery=True
        )

    def add_subsystem(self, subsystem: Subsystem) -> None:
        """Offer a subsystem on every port that lists it and is not discovery-only."""
        if subsystem.nqn in self.subsystems or subsystem.nqn == DISCOVERY_NQN:
            raise ConfigurationError(f"the subsystem {subsystem.nqn} exists already")
        self.subsystems[subsystem.nqn] = subsystem
        subsystem.happened = self.happenings.tell
        self.happenings.tell("subsystem-added", subnqn=subsystem.nqn)
        self.changed()

    def remove_subsystem(self, nqn: str) -> Subsystem:
        """Stop offering a subsystem and end its associations."""
        try:
            subsystem = self.subsystems.pop(nqn)
        except KeyError:
            raise ConfigurationError(f"there is no subsystem {nqn}") from None
        for controller in list(subsystem.controllers.values()):
            controller.destroy("the subsystem was removed")
        self.happenings.tell("subsystem-removed", subnqn=nqn)
        self.changed()
        return subsystem

    def set_allowed_hosts(self, nqn: str, hosts: frozenset[str] | None) -> None:
        """Change the hosts that may use a subsystem, and so each host's Discovery log."""
        self.subsystems[nqn].set_allowed_hosts(hosts)
        self.hosts_changed(nqn)

    def hosts_changed(self, nqn: str) -> None:
        """Note that other hosts than before may use a subsystem."""
        self.happenings.tell("hosts-changed", subnqn=nqn)
        self.changed()

    def add_port(self, port: PortInfo) -> None:
        """Add a port whose listener is up."""
        if port.portid in self.ports:
            raise ConfigurationError(f"port {port.portid} exists already")
        self.ports[port.portid] = port
        self.happenings.tell("port-added", portid=port.portid, address=f"{port.traddr}:{port.trsvcid}")
        self.changed()

    def change_port(self, port: PortInfo) -> None:
        """Note that a port offers other subsystems than before, or names other discovery services."""
        self.ports[port.portid] = port
        self.happenings.tell("port-changed", portid=port.portid)
        self.changed()

    def remove_port(self, portid: int) -> None:
        """Remove a port whose listener was closed; its connections are not touched."""
        if self.ports.pop(portid, None) is not None:
            self.happenings.tell("port-removed", portid=portid)
            self.changed()

    def find(self, subnqn: str, port: PortInfo) -> Subsystem | None:
        """Return the subsystem of that NQN, if it is offered on that port."""
        if subnqn == DISCOVERY_NQN:
            return self.discovery
        now = self.ports.get(port.portid, port)  # it may offer others than when the connection was made
        return None if port.discovery_only or not now.offers(subnqn) else self.subsystems.get(subnqn)

    def association(self, subnqn: str, cntlid: int) -> Association | None:
        """Return the controller of a subsystem that has that CNTLID; None when it has gone."""
        subsystem = self.discovery if subnqn == DISCOVERY_NQN else self.subsystems.get(subnqn)
        return None if subsystem is None else subsystem.controllers.get(cntlid)

    def changed(self) -> None:
        """Count a change of the Discovery log and notify the discovery controllers."""
        self.generation += 1
        self.log_pages.clear()
        for controller in list(self.discovery.controllers.values()):
            controller.discovery_changed()

    def end_all(self, reason: str) -> None:
        """End every association (the target stops)."""
        for subsystem in (*self.subsystems.values(), self.discovery):
            for controller in list(subsystem.controllers.values()):
                controller.destroy(reason)
