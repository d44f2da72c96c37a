"""The verbs of subsystems, and of the hosts that may use them."""

from __future__ import annotations

from typing import Annotated

from nvmeof.errors import ConfigurationError
from nvmeof.spec.enums import CNTLID_MAX
from nvmeof.target.control.in_use import associations, commands_in_progress
from nvmeof.target.control.schema import Range
from nvmeof.target.control.verbs import (
    DRAIN_SECONDS,
    DrainSeconds,
    Facts,
    Force,
    HostNqn,
    PortId,
    Subnqn,
    Table,
    Texts,
    VerbGroup,
    entry,
    removed,
    settings_of,
    verb,
)
from nvmeof.target.subsystem.live_changes import LIMITS
from nvmeof.target.subsystem.subsystem import Subsystem

_Queues = Annotated[int | None, Range(1, 65534), "I/O queues per controller"]
_Entries = Annotated[int | None, Range(2, 65536), "entries per I/O queue"]
_CntlidLimit = Annotated[int | None, Range(1, CNTLID_MAX), "limit of the controller identifiers"]


class Subsystems(VerbGroup):
    """NVM subsystems, and the ports that offer them."""

    prefix = "subsystem"

    @verb("list")
    async def list(self) -> Table:
        """List the subsystems: what they are, their limits, who may use them, and the ports that offer them."""
        return [self._described(each) for each in self._target.subsystems.values()]

    def _described(self, subsystem: Subsystem) -> Facts:
        config, names = subsystem.config, subsystem.hosts.names
        return {
            "nqn": subsystem.nqn,
            "serial": config.serial_number,
            "model": config.model,
            "namespaces": len(subsystem.namespaces),
            "disabled": len(subsystem.disabled),
            "controllers": len(subsystem.controllers),
            "hosts": None if names is None else sorted(names),
            "ports": [each.portid for each in self._target.ports.values() if each.info.offers(subsystem.nqn)],
            **{name: getattr(config, name) for name in LIMITS},
        }

    @verb("add", changes=True, secret=("settings",))
    async def add(
        self,
        nqn: Annotated[str, "NQN of the new subsystem"],
        namespaces: Annotated[Texts | None, "storage of its namespaces, as namespace.add has it"] = None,
        hosts: Annotated[Texts | None, "NQNs of the hosts that may use it; any host unless given"] = None,
        serial: Annotated[str | None, "serial number; derived from the NQN unless given"] = None,
        model: Annotated[str | None, "model number"] = None,
        settings: Annotated[Facts | None, "further entries of a subsystem in a configuration file"] = None,
    ) -> Facts:
        """Open a new subsystem and offer it on every port that lists it, or that offers all subsystems."""
        given = entry({"nqn": nqn, "hosts": hosts, "serial": serial, "model": model}, settings)
        if namespaces is not None:
            given = entry({"namespaces": [{"storage": each} for each in namespaces]}, given)
        await self._administration.add_subsystem(settings_of([given]).config.subsystems[0])
        return self._described(self._subsystem(nqn))

    @verb("remove", changes=True)
    async def remove(
        self,
        nqn: Annotated[str, "NQN of the subsystem"],
        force: Force = False,
        seconds: DrainSeconds = DRAIN_SECONDS,
    ) -> Facts:
        """Remove a subsystem: let the commands in progress end, end its associations, flush and close its namespaces.

        Returns the associations that it `ended`, what was `cut` of commands, and what is `left`, which ends in the
        background. With `force` nothing is waited for, and `cut` names all that was in progress.
        """
        subsystem = self._subsystem(nqn)
        ended = associations(self._target, subsystem)
        if force:
            cut = commands_in_progress(self._target, subsystem, None)
        else:
            cut = await self._administration.drain(nqn, seconds=seconds)
        return removed(ended, cut, await self._administration.remove_subsystem(nqn))

    @verb("limits", changes=True)
    async def limits(
        self,
        subnqn: Subnqn = None,
        max_io_queues: _Queues = None,
        max_queue_entries: _Entries = None,
        cntlid_min: _CntlidLimit = None,
        cntlid_max: _CntlidLimit = None,
    ) -> Facts:
        """Change or show the limits of a subsystem's controllers. Hosts follow at their next connect."""
        given = {
            "max_io_queues": max_io_queues,
            "max_queue_entries": max_queue_entries,
            "cntlid_min": cntlid_min,
            "cntlid_max": cntlid_max,
        }
        subsystem = self._subsystem(subnqn)
        wanted = {name: value for name, value in given.items() if value is not None}
        if wanted:
            self._administration.set_limits(subnqn=subsystem.nqn, **wanted)
        return {"nqn": subsystem.nqn, **{name: getattr(subsystem.config, name) for name in LIMITS}}

    @verb("link", changes=True)
    async def link(self, nqn: Annotated[str, "NQN of the subsystem"], portid: PortId) -> None:
        """Offer a subsystem on a port that lists subsystems and does not list this one."""
        self._administration.link_subsystem(nqn, portid)

    @verb("link-all", changes=True)
    async def link_all(self, portid: PortId) -> None:
        """Offer all subsystems on a port, those that are added later too."""
        self._administration.link_all_subsystems(portid)

    @verb("unlink", changes=True)
    async def unlink(
        self,
        nqn: Annotated[str, "NQN of the subsystem"],
        portid: PortId,
        force: Force = False,
        seconds: DrainSeconds = DRAIN_SECONDS,
    ) -> Facts:
        """Stop offering a subsystem on a port; its associations there end, as `subsystem.remove` ends them."""
        subsystem, port = self._subsystem(nqn), self._target.port(portid)
        if not port.info.offers(nqn):
            raise ConfigurationError(f"port {portid} does not offer {nqn}")
        ended = associations(self._target, subsystem, portid)
        if force:
            cut = commands_in_progress(self._target, subsystem, portid)
        else:
            cut = await self._administration.drain(nqn, portid=portid, seconds=seconds)
        return removed(ended, cut, await self._administration.unlink_subsystem(nqn, portid))


class Hosts(VerbGroup):
    """The hosts that may use a subsystem."""

    prefix = "host"

    @verb("list")
    async def list(self, subnqn: Subnqn = None) -> Facts:
        """List the hosts that may use a subsystem (null: any), those with keys, and those that are connected."""
        subsystem = self._subsystem(subnqn)
        names = subsystem.hosts.names
        return {
            "nqn": subsystem.nqn,
            "hosts": None if names is None else sorted(names),
            "hosts_with_keys": sorted(subsystem.hosts.keys),
            "authentication_required": subsystem.hosts.authentication_required,
            "connected": sorted({each.host_nqn for each in subsystem.controllers.values()}),
        }

    @verb("allow", changes=True)
    async def allow(self, host: HostNqn, subnqn: Subnqn = None) -> None:
        """Allow one more host to use a subsystem that is limited to some hosts."""
        self._administration.add_host(host, subnqn=self._nqn(subnqn))

    @verb("disallow", changes=True)
    async def disallow(self, host: HostNqn, subnqn: Subnqn = None) -> Facts:
        """Remove a host from those that may use a subsystem; its associations end."""
        subsystem = self._subsystem(subnqn)
        before = associations(self._target, subsystem)
        self._administration.remove_host(host, subnqn=subsystem.nqn)
        return self._ended(subsystem, before)

    @verb("any", changes=True)
    async def any(
        self,
        allowed: Annotated[bool, "whether any host may; otherwise those that were allowed, and no others"] = True,
        subnqn: Subnqn = None,
    ) -> Facts:
        """Let any host use a subsystem, or only those that were allowed: the associations of others end."""
        subsystem = self._subsystem(subnqn)
        before = associations(self._target, subsystem)
        self._administration.allow_any_host(allowed, subnqn=subsystem.nqn)
        return self._ended(subsystem, before)

    def _ended(self, subsystem: Subsystem, before: Texts) -> Facts:
        now = set(associations(self._target, subsystem))
        return removed([each for each in before if each not in now])

    @verb("keys", changes=True, secret=("dhchap_key", "dhchap_ctrl_key"))
    async def keys(
        self,
        host: HostNqn,
        dhchap_key: Annotated[str | None, "its secret: file:PATH, env:NAME or DHHC-1:…; none unless given"] = None,
        dhchap_ctrl_key: Annotated[str | None, "the secret that the controller proves itself with"] = None,
        dhchap_hash: Annotated[str | None, "hash function, such as sha256"] = None,
        dhchap_dhgroup: Annotated[str | None, "Diffie-Hellman group, such as ffdhe2048"] = None,
        subnqn: Subnqn = None,
    ) -> None:
        """Set what a host authenticates itself with from its next connect on; without a key it need not."""
        nqn = self._nqn(subnqn)
        if dhchap_key is None:
            self._administration.set_host_keys(host, None, subnqn=nqn)
            return
        given = entry(
            {
                "dhchap_key": dhchap_key,
                "dhchap_ctrl_key": dhchap_ctrl_key,
                "dhchap_hash": dhchap_hash,
                "dhchap_dhgroup": dhchap_dhgroup,
            },
            None,
        )
        config = settings_of([{"nqn": nqn, "host_keys": {host: given}}]).config.subsystems[0]
        self._administration.set_host_keys(host, dict(config.host_keys)[host], subnqn=nqn)
