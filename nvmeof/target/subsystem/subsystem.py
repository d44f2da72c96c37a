"""An NVM subsystem: namespaces, the hosts that may use it, and the controllers that are alive."""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Protocol, TypeAlias

from nvmeof.errors import CommandError, ConfigurationError
from nvmeof.runtime import Runtime
from nvmeof.spec.enums import AnaState
from nvmeof.spec.persistent_events import EventType, HardwareErrorCode
from nvmeof.spec.properties import Shst
from nvmeof.spec.reservations import NotificationType
from nvmeof.spec.status import Status
from nvmeof.target.core.metadata import MemoryStore, MetadataStore
from nvmeof.target.core.queue_control import QueueControl
from nvmeof.target.core.rate_limits import Limiter
from nvmeof.target.core.states import ControllerState
from nvmeof.target.namespaces.endurance_group import occupied_bytes
from nvmeof.target.namespaces.feature_values import Values, check_saved
from nvmeof.target.namespaces.format_job import interrupted, resume
from nvmeof.target.namespaces.namespace import Namespace, NamespaceIdentifiers
from nvmeof.target.namespaces.zoned import ZonedNamespace, make_namespace
from nvmeof.target.projection.association import AssociationView, Limits
from nvmeof.target.projection.effects import Effects
from nvmeof.target.storage.base import Backend
from nvmeof.target.subsystem.ana import ANA_GROUP, AnaGroups, AnaPorts, check_ana_group
from nvmeof.target.subsystem.attachments import Attachments
from nvmeof.target.subsystem.config import NamespaceConfig, SubsystemConfig
from nvmeof.target.subsystem.host_limits import HostLimits
from nvmeof.target.subsystem.hosts import Hosts
from nvmeof.target.subsystem.lifetime_counters import Lifetime
from nvmeof.target.subsystem.management import NamespaceManager
from nvmeof.target.subsystem.namespace_kinds import STANDARD_KINDS, NamespaceKind
from nvmeof.target.subsystem.persistent_events import (
    History,
    hardware_error,
    power_on_or_reset,
    sanitize_completion,
    watch,
)
from nvmeof.target.subsystem.sanitize import Sanitizer
from nvmeof.target.subsystem.self_test import SelfTest

REVALIDATE_SECONDS = 0.9
"""How often sizes of files are looked at."""
REVALIDATE_AT_ONCE = 64

Figures: TypeAlias = Callable[[], dict[str, object]]
"""Returns the figures of a queue, or of its connection, for telemetry."""

logger = logging.getLogger("nvmeof.target")


def _untold(kind: str, **facts: object) -> None:
    """Tell nobody: the subsystem is not offered yet."""


class Association(Protocol):
    """The Protocol of a subsystem's controllers."""

    cntlid: int
    host_nqn: str
    hostid: bytes
    secured: bool
    attached: dict[int, Namespace]
    hostid_differs: bool

    @property
    def ana(self) -> AnaGroups: ...

    @property
    def namespaces(self) -> Mapping[int, Namespace]: ...

    @property
    def view(self) -> AssociationView: ...

    @property
    def state(self) -> ControllerState: ...

    def effects(self, qid: int, queue: QueueControl, trtype: int) -> Effects: ...

    def attach_queue(
        self, qid: int, queue: QueueControl, figures: Figures, connection: Figures | None = None
    ) -> None: ...

    def check_entry_sizes(self, error_location: int) -> None: ...

    def check_qid_free(self, qid: int, error_location: int) -> None: ...

    def connect_refused(self, qid: int, cid: int, error: CommandError, *, trtype: int, opcode: int) -> None: ...

    def tick(self, now: float) -> float | None: ...

    def project(self) -> None: ...

    def withdraw_events(self, lid: int) -> None: ...

    def attach(self, *namespaces: Namespace) -> None: ...

    def detach(self, nsid: int) -> bool: ...

    def busy_with(self, nsid: int) -> bool: ...

    def enabled(self, csi: int) -> bool: ...

    def namespace_changed(self, nsid: int) -> None: ...

    def allocation_changed(self, nsid: int) -> None: ...

    def zone_changed(self, nsid: int, zslba: int) -> None: ...

    def unreadable_found(self) -> None: ...

    def writes_lost(self, nsid: int) -> None: ...

    def reservation_changed(self, nsid: int, kind: NotificationType) -> None: ...

    def abort_namespace(self, nsid: int) -> None: ...

    def telemetry_changed(self) -> None: ...

    def ana_changed(self, *groups: int) -> None: ...

    def discovery_changed(self) -> None: ...

    def subsystem_shutdown(self) -> None: ...

    def subsystem_reset(self) -> None: ...

    def destroy(self, reason: str) -> None: ...


class Subsystem:
    """`namespaces` is the live table NSID -> Namespace of those that exist (are allocated), whichever controllers they
    are attached to.

    `kinds`: the namespaces that hosts can create, where there is a pool. `metadata_store`: state that
    outlives the process; `kept`: what it begins with where that is memory. `history`: the events of the Persistent
    Event log.
    """

    def __init__(
        self,
        config: SubsystemConfig,
        *,
        discovery: bool = False,
        kinds: Mapping[int, NamespaceKind] = STANDARD_KINDS,
        kept: Mapping[str, object] | None = None,
    ) -> None:
        self.config = config
        self.nqn = config.nqn
        self.discovery = discovery
        self.command_limits = Limits(
            transfer_bytes=config.transfer_limit_bytes,
            incapsule_bytes=config.incapsule_bytes,
            max_namespaces=config.max_namespaces,
        )
        self.metadata_store: MetadataStore = config.metadata_store or (
            config.pool.metadata_store if config.pool is not None else MemoryStore(kept)
        )
        check_saved(self.metadata_store)
        self.history = History(self.metadata_store)
        self.lifetime = Lifetime(self.metadata_store)
        self.telemetry: object | None = None  # what log page 08h shows
        self.namespaces: dict[int, Namespace] = {}
        self.disabled: dict[int, Namespace] = {}  # by NSID: no host sees them, and their storage stays open
        self.happened: Callable[..., None] = _untold
        self.attachments = Attachments()
        self.controllers: dict[int, Association] = {}
        self.host_limits = HostLimits(config.host_limit, dict(config.host_limits))
        self.keep_alive_timeouts = 0
        """Associations that ended since their host was silent for too long."""
        self.ana = AnaPorts()
        self.was_reset = False  # CSTS.NSSRO of new controllers
        self.shutdown_status = Shst.NORMAL  # of an NVM Subsystem Shutdown
        self._shutdowns = 0
        self._revalidated_at = 0.0
        self._revalidated_nsid = 0
        self.features: Values = {}  # those with the scope of the subsystem, as set since the start
        self.sanitizer = Sanitizer(self.namespaces, self.metadata_store)
        self.self_test = SelfTest(
            self.namespaces,
            self.metadata_store,
            lambda runtime: int(self.lifetime.power_on_seconds(runtime.now()) // 3600),
        )
        self.hosts = Hosts(
            config.allowed_hosts,
            any_host=config.any_host,
            keys=dict(config.host_keys),
            authentication_required=config.authentication_required,
            tls_keys=dict(config.tls_keys),
            tls_required=config.tls_required,
            managing=config.managing_hosts,
        )
        self._last_cntlid = config.cntlid_min - 1
        self._retired: frozenset[int] = frozenset()  # CNTLIDs whose hosts may not know yet that they have ended
        self.manager = NamespaceManager(self, config.pool, kinds) if config.pool is not None else None
        for namespace in config.namespaces:
            self.add_namespace(namespace)

    # Hosts

    def host_allowed(self, host_nqn: str) -> bool:
        """Return whether that host may connect and sees the subsystem in Discovery."""
        return self.discovery or self.hosts.allows(host_nqn)

    def set_allowed_hosts(self, hosts: frozenset[str] | None) -> None:
        """Change the hosts that may connect (None: any). Associations of hosts that are no longer allowed are ended."""
        self.hosts.replace(hosts)
        self.end_forbidden()

    def end_forbidden(self) -> None:
        """End the associations of hosts that may no longer use the subsystem."""
        for controller in list(self.controllers.values()):
            if not self.host_allowed(controller.host_nqn):
                controller.destroy("the host is no longer allowed")

    # Namespaces

    def add_namespace(self, config: NamespaceConfig) -> Namespace:
        """Make a namespace, attached to every controller. Raises `ConfigurationError` for an NSID that is taken."""
        nsid = config.nsid if config.nsid is not None else self._free_nsid()
        if self._taken(nsid):
            raise ConfigurationError(f"namespace {nsid} of {self.nqn} exists already")
        if nsid > self.config.max_namespaces:
            raise ConfigurationError(f"namespace {nsid} is beyond the limit of {self.config.max_namespaces}")
        check_ana_group(config.anagrpid, self.config.max_ana_groups)
        derived = NamespaceIdentifiers.derive(self.nqn, nsid)
        identifiers = NamespaceIdentifiers(
            nguid=config.nguid or derived.nguid, uuid=config.uuid or derived.uuid, eui64=config.eui64 or derived.eui64
        )
        namespace = make_namespace(
            nsid, config.backend, identifiers, config.zoned, read_only=config.read_only, anagrpid=config.anagrpid
        )
        if config.rate_limit is not None:
            namespace.limiter = Limiter(config.rate_limit)
        if config.enabled:
            self.insert(namespace, attached=True)
        else:
            self.disabled[nsid] = namespace
        return namespace

    def _taken(self, nsid: int) -> bool:
        created = self.manager.nsids if self.manager is not None else frozenset()
        return nsid in self.namespaces or nsid in self.disabled or nsid in created

    def configured(self, nsid: int) -> Namespace:
        """Return a namespace, also a disabled one. Raises `ConfigurationError` where there is none."""
        namespace = self.namespaces.get(nsid) or self.disabled.get(nsid)
        if namespace is None:
            raise ConfigurationError(f"{self.nqn} has no namespace {nsid}")
        return namespace

    def insert(self, namespace: Namespace, *, attached: bool) -> None:
        """Allocate a namespace. `attached`: to all current and later controllers that have room for one more."""
        self.sanitizer.check(namespace)
        self.ana.groups.add(namespace.anagrpid)
        self.lifetime.adopt(namespace)
        self.namespaces[namespace.nsid] = namespace
        # Kept in the order of NSIDs: lists of namespaces are made from it.
        ordered = sorted(self.namespaces.items())
        self.namespaces.clear()
        self.namespaces.update(ordered)
        if isinstance(namespace, ZonedNamespace):
            namespace.zone_changed = partial(self._zone_changed, namespace.nsid)
        namespace.unreadable_blocks.found = partial(self._unreadable_found, namespace.nsid)
        namespace.size_changed = partial(self.revalidate, namespace)
        namespace.degraded = partial(self._writes_lost, namespace.nsid)
        self.attachments.set_default(namespace.nsid, attached)
        if attached:
            limit = self.config.max_attached or self.config.max_namespaces
            for controller in list(self.controllers.values()):
                if len(controller.attached) < limit:
                    controller.attach(namespace)
        self.happened("namespace-added", subnqn=self.nqn, nsid=namespace.nsid)
        self._tell_hosts(namespace.nsid)

    def remove_namespace(self, nsid: int) -> Namespace:
        """Make a namespace inactive; commands in progress finish on its backend, which the caller closes."""
        disabled = self.disabled.pop(nsid, None)
        if disabled is not None:
            return disabled
        if nsid not in self.namespaces:
            raise ConfigurationError(f"{self.nqn} has no namespace {nsid}")
        namespace = self.withdraw(nsid)
        if self.manager is not None:
            self.manager.attachments_changed()
        return namespace

    def withdraw(self, nsid: int, *, by: int | None = None) -> Namespace:
        """Deallocate a namespace. `by`: CNTLID of the controller that executed its deletion, and so needs no event."""
        namespace = self.namespaces.pop(nsid)
        namespace.admission_tokens.withdraw()
        self.happened("namespace-removed", subnqn=self.nqn, nsid=nsid)
        self.lifetime.release(namespace)
        self.attachments.forget(nsid)
        for controller in list(self.controllers.values()):
            was_attached = controller.detach(nsid)
            if controller.cntlid == by:
                continue
            if was_attached:
                controller.namespace_changed(nsid)
            controller.allocation_changed(nsid)
        return namespace

    def resize_namespace(self, nsid: int, size_bytes: int) -> None:
        """Change a namespace's size. Raises `OSError` when the backend can't."""
        namespace = self.configured(nsid)
        namespace.check_size(size_bytes)
        namespace.backend.resize(size_bytes)
        namespace.refresh()
        self._namespace_changed(nsid)

    def revalidate(self, namespace: Namespace) -> None:
        """Update the size of a namespace from its file or device; hosts get an event when it has changed."""
        if namespace.blocked_status is not None or self.namespaces.get(namespace.nsid) is not namespace:
            return
        try:
            what = namespace.backend.revalidate()
            if not what:
                return
            logger.warning("namespace %d of %s: %s; hosts are told", namespace.nsid, self.nqn, what)
            namespace.refresh()
        except (OSError, ConfigurationError) as error:
            logger.error("namespace %d of %s cannot be used until the next start: %s", namespace.nsid, self.nqn, error)
            namespace.blocked_status = Status.NAMESPACE_NOT_READY
            namespace.admission_tokens.withdraw()
        self._namespace_changed(namespace.nsid)

    def _revalidate_some(self, now: float) -> None:
        """Look at a few namespaces a second, each in its turn."""
        if now - self._revalidated_at < REVALIDATE_SECONDS:
            return
        self._revalidated_at = now
        nsids = list(self.namespaces)
        start = bisect_right(nsids, self._revalidated_nsid)
        for nsid in nsids[start : start + REVALIDATE_AT_ONCE]:
            self.revalidate(self.namespaces[nsid])
            self._revalidated_nsid = nsid
        if start + REVALIDATE_AT_ONCE >= len(nsids):
            self._revalidated_nsid = 0

    def attributes_changed(self, namespace: Namespace) -> None:
        """Send hosts an event for a change of a namespace's Identify data."""
        namespace.refresh()
        self._namespace_changed(namespace.nsid)

    def resume(self, runtime: Runtime) -> None:
        """Go on with what was interrupted: a sanitize operation, formats, a self-test. Call it when namespaces came."""
        for namespace in self.namespaces.values():
            secure = interrupted(namespace)
            if secure is not None and namespace.blocked_status is None:
                namespace.block_access(Status.FORMAT_IN_PROGRESS)
                runtime.spawn(
                    resume(runtime, namespace, secure=secure, ready=partial(self.attributes_changed, namespace))
                )
        self.sanitizer.resume(runtime, partial(self.sanitized, runtime))
        self.self_test.resume(runtime)

    def sanitized(self, runtime: Runtime, sanitizer: Sanitizer) -> None:
        """Record the end of a sanitize operation as a persistent event."""
        data = sanitize_completion(sanitizer.sprog, sanitizer.sstat)
        self.history.add(EventType.SANITIZE_COMPLETION, data, now=runtime.now())

    def _free_nsid(self) -> int:
        nsid = 1
        while not self.nsid_free(nsid):
            nsid += 1
        return nsid

    def nsid_free(self, nsid: int) -> bool:
        """Return whether a new namespace can have that NSID.

        Not while commands for an old one with the same are in progress: their data must not go to the new one.
        """
        if self._taken(nsid):
            return False
        return not any(controller.busy_with(nsid) for controller in self.controllers.values())

    def _namespace_changed(self, nsid: int) -> None:
        if nsid in self.namespaces:
            self.happened("namespace-changed", subnqn=self.nqn, nsid=nsid)
            self._tell_hosts(nsid)

    def _tell_hosts(self, nsid: int) -> None:
        for controller in list(self.controllers.values()):
            if nsid in controller.attached:
                controller.namespace_changed(nsid)
            controller.allocation_changed(nsid)

    def _unreadable_found(self, nsid: int) -> None:
        for controller in list(self.controllers.values()):
            if nsid in controller.namespaces:
                controller.unreadable_found()

    def _writes_lost(self, nsid: int) -> None:
        for controller in list(self.controllers.values()):
            if nsid in controller.attached:
                controller.writes_lost(nsid)

    def _zone_changed(self, nsid: int, zslba: int) -> None:
        for controller in list(self.controllers.values()):
            if nsid in controller.namespaces:
                controller.zone_changed(nsid, zslba)

    # Attachment

    def start_attached(self, controller: Association) -> None:
        """Attach a new controller to what its host's controllers start with."""
        limit = self.config.max_attached or len(self.namespaces)
        chosen = [
            namespace
            for nsid, namespace in self.namespaces.items()
            if self.attachments.attached(controller.host_nqn, nsid)
            and (namespace.shared or not self.attached_controllers(nsid))
        ]
        controller.attach(*chosen[:limit])

    def attached_controllers(self, nsid: int) -> list[int]:
        """Return the CNTLIDs of the controllers that a namespace is attached to."""
        return [controller.cntlid for controller in self.controllers.values() if nsid in controller.attached]

    @property
    def members(self) -> Mapping[int, Association]:
        """The controllers by CNTLID."""
        return self.controllers

    @property
    def limits(self) -> tuple[int, int]:
        """The most namespaces, and the most that one controller is attached to (0: no such limit)."""
        return self.config.max_namespaces, self.config.max_attached

    # Capacity

    @property
    def total_bytes(self) -> int:
        """TNVMCAP: the pool's capacity and that of the configured namespaces."""
        made = self.manager.nsids if self.manager is not None else frozenset()
        configured = sum(occupied_bytes(each) for nsid, each in self.namespaces.items() if nsid not in made)
        return configured + (self.manager.pool.capacity_bytes if self.manager is not None else 0)

    @property
    def unallocated_bytes(self) -> int:
        """UNVMCAP: what is left of the pool."""
        return self.manager.unallocated_bytes if self.manager is not None else 0

    @property
    def created_backends(self) -> list[Backend]:
        """Those of namespaces that were created from the pool."""
        made = self.manager.nsids if self.manager is not None else frozenset()
        return [namespace.backend for nsid, namespace in self.namespaces.items() if nsid in made]

    @property
    def backends(self) -> list[Backend]:
        return [namespace.backend for namespace in self.namespaces.values()]

    @property
    def volatile_cache(self) -> bool:
        """Whether any namespace may lose completed writes at a power failure before a Flush, also one yet to be made.

        Hosts ask when they connect, and rely on the answer for namespaces attached later.
        """
        if self.config.pool is not None and self.config.pool.volatile_cache:
            return True
        return any(backend.capabilities.volatile_cache for backend in self.backends)

    # Its life

    def power_on(self, now: float) -> Awaitable[None] | None:
        """Start the power-on clock and record the event. Done when both are stored; raises or ends with `OSError`."""
        lifetime = self.lifetime
        if lifetime.unsafe:
            self.history.add(EventType.HARDWARE_ERROR, hardware_error(HardwareErrorCode.UNSAFE_SHUTDOWN), now=now)
        self.history.add(EventType.POWER_ON_OR_RESET, power_on_or_reset(self.config.firmware, []), now=now)
        return lifetime.start(now)

    def begin_shutdown(self) -> int | None:
        """Begin an NVM Subsystem Shutdown, which only an NVM Subsystem Reset ends. Returns the token for
        `shutdown_complete`, to be called after a flush; None when it is shut down already.
        """
        if self.shutdown_status is not Shst.NORMAL:
            return None
        self._shutdowns += 1
        self.shutdown_status = Shst.OCCURRING
        for controller in list(self.controllers.values()):
            controller.subsystem_shutdown()
        return self._shutdowns

    def shutdown_complete(self, token: int) -> None:
        """Complete the shutdown after its flush; ignored after a reset."""
        if token == self._shutdowns and self.shutdown_status is Shst.OCCURRING:
            self.shutdown_status = Shst.COMPLETE

    def reset(self) -> None:
        """Execute an NVM Subsystem Reset: reset all controllers, end a shutdown, drop values that were set and not
        saved."""
        self.was_reset = True
        self.shutdown_status = Shst.NORMAL
        for controller in list(self.controllers.values()):
            controller.subsystem_reset()
        self.features.clear()
        for namespace in self.namespaces.values():
            namespace.features.clear()

    def power_off(self, now: float) -> Awaitable[None] | None:
        """Stop the power-on clock, after everything was flushed. Done when that is stored; raises or ends with
        `OSError`."""
        return self.lifetime.save(now, clean=True)

    def tick(self, now: float) -> None:
        """Call every second or so: counters are stored from time to time, sizes of files are looked at."""
        self._revalidate_some(now)
        self.ana.tick(now, self.nqn)
        if self.lifetime.save_due(now):
            watch(self.lifetime.save(now), self.nqn)

    # Asymmetric namespace access

    def check_ana_state(self, state: AnaState, group: int, portid: int) -> None:
        """Raise `ConfigurationError` where `set_ana_state` would for that port (NVMe Base, ANA)."""
        check_ana_group(group, self.config.max_ana_groups)
        self.ana.on(portid).check_transition(group, state)

    def set_ana_state(self, state: AnaState, group: int = ANA_GROUP, *, portid: int | None = None) -> None:
        """Set the state of an ANA group on one port, or (None) on all; controllers there send an event.

        Commands that have begun end as they would have. Raises `ConfigurationError` for a group that cannot exist, and
        for a change from Persistent Loss.
        """
        check_ana_group(group, self.config.max_ana_groups)
        changed = self.ana.set(group, state, portid)
        if changed:
            word = state.name.lower().replace("_", "-")
            self.happened("ana-changed", subnqn=self.nqn, group=group, state=word, ports=changed)
        for controller in list(self.controllers.values()):
            if controller.ana.portid in changed:
                controller.ana_changed(group)

    def move_namespace(self, nsid: int, group: int) -> None:
        """Move a namespace to another ANA group: from then on it is in that group's state, on every port.

        Hosts get the event of an ANA change, not that of a namespace's attributes. Raises `ConfigurationError` for a
        namespace or a group that does not exist.
        """
        check_ana_group(group, self.config.max_ana_groups)
        namespace = self.configured(nsid)
        before, namespace.anagrpid = namespace.anagrpid, group
        if before == group:
            return
        self.happened("namespace-moved", subnqn=self.nqn, nsid=nsid, group=group)
        self.ana.groups.add(group)
        if self.manager is not None:
            self.manager.moved(namespace)
        for controller in list(self.controllers.values()):
            if nsid in controller.attached:
                controller.ana_changed(before, group)

    def to_config(self, namespaces: tuple[NamespaceConfig, ...]) -> SubsystemConfig:
        """Return the configuration of the subsystem as it is now, with these namespaces."""
        hosts = self.hosts
        allowed = None if hosts.any_host and not hosts.by_nqn else frozenset(hosts.by_nqn)
        any_host = hosts.any_host and allowed is not None
        return replace(
            self.config,
            namespaces=namespaces,
            allowed_hosts=allowed,
            any_host=any_host,
            host_keys=tuple(hosts.keys.items()),
            tls_keys=tuple(hosts.tls_keys.items()),
            authentication_required=hosts.authentication_required,
            host_limit=self.host_limits.each,
            host_limits=tuple(self.host_limits.own.items()),
            managing_hosts=hosts.managing,
        )

    # Controllers

    def check_room(self, host_nqn: str) -> None:
        """Raise Connect's Controller Busy when the operator's limits let a host have no further controller."""
        config, found = self.config, self.controllers.values()
        if config.max_controllers and len(found) >= config.max_controllers:
            message = f"{self.nqn} has its most controllers ({config.max_controllers})"
        elif config.max_controllers_per_host and (
            sum(each.view.host_nqn == host_nqn for each in found) >= config.max_controllers_per_host
        ):
            message = f"host {host_nqn!r} has its most controllers ({config.max_controllers_per_host})"
        else:
            return
        raise CommandError(Status.CONNECT_CONTROLLER_BUSY, dnr=False, message=message)

    @property
    def cntlids(self) -> tuple[int, frozenset[int]]:
        """The controller ID that was allocated last, and those that hosts may believe to have."""
        return self._last_cntlid, self._retired.union(self.controllers)

    def is_retired(self, cntlid: int) -> bool:
        """Return whether a host may believe to have that controller, of before a restart."""
        return cntlid in self._retired

    def continue_cntlids(self, last: int, used: frozenset[int]) -> None:
        """Go on behind `last`; allocate those in `used`, whose hosts may not know yet that they have ended, only where
        no other is left."""
        self._last_cntlid, self._retired = last, used

    def allocate_cntlid(self) -> int:
        """Allocate the controller ID that was free for longest. Raises Connect's Controller Busy when none is left."""
        first = self.config.cntlid_min
        size = self.config.cntlid_max - first + 1
        for avoided in (self._retired, frozenset[int]()):
            for step in range(1, size + 1):
                cntlid = first + (self._last_cntlid - first + step) % size
                if cntlid not in self.controllers and cntlid not in avoided:
                    self._last_cntlid = cntlid
                    return cntlid
        raise CommandError(Status.CONNECT_CONTROLLER_BUSY, dnr=False, message="all controller IDs are in use")
