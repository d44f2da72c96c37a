"""The verbs of ports, and of what belongs to them: ANA states, announced addresses, referrals."""

from __future__ import annotations

from typing import Annotated

from nvmeof.errors import ConfigurationError
from nvmeof.spec.enums import DISCOVERY_PORT, NVME_PORT
from nvmeof.target.control.in_use import associations, commands_in_progress
from nvmeof.target.control.schema import Range
from nvmeof.target.control.verbs import (
    DRAIN_SECONDS,
    AnaWord,
    AnyPort,
    DrainSeconds,
    Facts,
    Force,
    Group,
    PortId,
    Table,
    Texts,
    VerbGroup,
    entry,
    removed,
    settings_of,
    verb,
)
from nvmeof.target.description import describe_port
from nvmeof.target.subsystem.ana import ANA_TRANSITION_SECONDS, parse_ana_state, state_word
from nvmeof.target.subsystem.config import Referral
from nvmeof.transport.base import Address

_Referral = Annotated[str, "ADDR[:PORT] of the other discovery service; port 8009 unless given"]


class Ports(VerbGroup):
    """Addresses that the target listens on."""

    prefix = "port"

    @verb("list")
    async def list(self) -> Table:
        """List the ports: addresses, transport, subsystems (null: all), referrals, ANA states, announced addresses."""
        counts: dict[int, int] = {}
        for driver in self._target.drivers:
            counts[driver.port.portid] = counts.get(driver.port.portid, 0) + 1
        return [
            {**describe_port(each), "connections": counts.get(each.portid, 0)} for each in self._target.ports.values()
        ]

    @verb("add", changes=True)
    async def add(
        self,
        address: Annotated[str, "ADDR[:PORT] to listen on; port 4420 unless given, 0 for a free one"],
        transport: Annotated[str | None, "mptcp or tcp; tcp unless given"] = None,
        portid: Annotated[int | None, Range(1, 0xFFFF), "Port ID; the lowest free one unless given"] = None,
        subsystems: Annotated[Texts | None, "NQNs of the subsystems that it offers; all unless given"] = None,
        discovery_only: Annotated[bool, "offer the discovery service alone"] = False,
        settings: Annotated[Facts | None, "further entries of a port in a configuration file"] = None,
    ) -> Facts:
        """Listen on one more address. Returns the port, with the number that is really listened on."""
        where = Address.parse(address, default_port=DISCOVERY_PORT if discovery_only else NVME_PORT)
        given = {"host": where.host, "port": where.port, "transport": transport, "portid": portid}
        given.update({"subsystems": subsystems, "discovery_only": discovery_only or None})
        config = settings_of(ports=[entry(given, settings)]).config.ports[0]
        added = await self._administration.add_port(config)
        return describe_port(self._target.port(added))

    @verb("remove", changes=True)
    async def remove(self, portid: PortId, force: Force = False, seconds: DrainSeconds = DRAIN_SECONDS) -> Facts:
        """Stop listening on an address: let the commands in progress end, then end its associations and connections.

        Returns the associations that it `ended`, what was `cut` of commands, and what is `left`.
        """
        self._target.port(portid)
        ended = associations(self._target, None, portid)
        if force:
            cut = commands_in_progress(self._target, None, portid)
        else:
            cut = await self._administration.drain(portid=portid, seconds=seconds)
        return removed(ended, cut, await self._administration.remove_port(portid))


class Ana(VerbGroup):
    """States of ANA groups."""

    prefix = "ana"

    @verb("list")
    async def list(self) -> Table:
        """List the state of each ANA group on each port, with the number of its namespaces."""
        subsystems = self._target.subsystems.values()
        members: dict[int, int] = {}
        for subsystem in subsystems:
            for namespace in (*subsystem.namespaces.values(), *subsystem.disabled.values()):
                members[namespace.anagrpid] = members.get(namespace.anagrpid, 0) + 1
        return [
            {
                "portid": port.portid,
                "group": group,
                "state": state_word(states.get(group, parse_ana_state("optimized"))),
                "namespaces": members.get(group, 0),
            }
            for port in self._target.ports.values()
            if not port.config.discovery_only
            for states in [port.ana]
            for group in sorted({*members, *states})
        ]

    @verb("set", changes=True)
    async def set(
        self,
        group: Group,
        state: Annotated[AnaWord, "the new state"],
        portid: AnyPort = None,
        change_seconds: Annotated[
            float, Range(0, ANA_TRANSITION_SECONDS), "how long the group is in the Change state before"
        ] = 0,
    ) -> None:
        """Put an ANA group into a state on one port or on all, in every subsystem."""
        wanted = parse_ana_state(state)
        if change_seconds:
            await self._administration.change_ana_state(wanted, group, portid=portid, seconds=change_seconds)
        else:
            self._administration.set_ana_state(wanted, group, portid=portid)


class Paths(VerbGroup):
    """Addresses that MPTCP announces to hosts."""

    prefix = "path"

    @verb("list")
    async def list(self) -> Table:
        """List the addresses that are announced on each port, and whether each is up."""
        return [
            {"portid": port.portid, **path}
            for port in self._target.ports.values()
            if port.announcements is not None
            for path in port.announcements.list()
        ]

    @verb("add", changes=True)
    async def add(self, path: Annotated[str, "ADDR[%DEV][,backup]"], portid: AnyPort = None) -> Facts:
        """Announce one more address to MPTCP hosts, in open connections too."""
        added = await self._administration.add_path(path, portid=portid)
        return {"address": added.address, "device": added.device, "flags": added.flags.words}

    @verb("remove", changes=True)
    async def remove(self, address: Annotated[str, "the announced address"], portid: AnyPort = None) -> Facts:
        """Take an announced address back; its subflows close, connections go on over the others."""
        return removed(left=await self._administration.remove_path(address, portid=portid))


class Referrals(VerbGroup):
    """Other discovery services that a port's Discovery log names."""

    prefix = "referral"

    @verb("list")
    async def list(self) -> Table:
        """List the discovery services that the ports refer hosts to."""
        return [
            {"portid": port.portid, "transport": each.transport, "traddr": each.traddr, "trsvcid": each.trsvcid}
            for port in self._target.ports.values()
            for each in port.config.referrals
        ]

    @verb("add", changes=True)
    async def add(
        self,
        portid: PortId,
        address: _Referral,
        transport: Annotated[str, "transport of the other service: tcp, mptcp, rdma or fc"] = "tcp",
        name: Annotated[str, "a name for people"] = "",
    ) -> None:
        """Refer hosts to one more discovery service."""
        where = Address.parse(address, default_port=DISCOVERY_PORT)
        made = Referral(traddr=where.host, trsvcid=where.port, transport=transport, name=name)
        known = self._target.port(portid).config.referrals
        if any((each.traddr, each.trsvcid) == (made.traddr, made.trsvcid) for each in known):
            raise ConfigurationError(f"port {portid} names the discovery service {where} already")
        self._administration.set_referrals((*known, made), portid)

    @verb("remove", changes=True)
    async def remove(self, portid: PortId, address: _Referral) -> None:
        """Refer hosts to a discovery service no longer."""
        where = Address.parse(address, default_port=DISCOVERY_PORT)
        known = self._target.port(portid).config.referrals
        left = [each for each in known if (each.traddr, each.trsvcid) != (where.host, where.port)]
        if len(left) == len(known):
            raise ConfigurationError(f"port {portid} names no discovery service {where}")
        self._administration.set_referrals(left, portid)
