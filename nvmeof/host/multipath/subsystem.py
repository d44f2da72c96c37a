"""A subsystem as its host sees it over several controllers: paths, namespaces and events.

Paths (:mod:`nvmeof.host.path`) are added and removed while I/O goes on. Before a path is live its controller is checked
against the others, its ANA log is read and its namespaces are joined to their heads; events of each controller keep
that true. This is what Linux does in nvme_init_subsystem, nvme_mpath_init_identify, nvme_scan_work and nvme_ana_work.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Final, TypeVar

from nvmeof.errors import (
    CommandNotExecuted,
    ConfigurationError,
    ConnectionLost,
    LocalProtocolError,
    NvmeofError,
    NvmeStatusError,
    TransportError,
)
from nvmeof.host.async_events import AsyncEvent
from nvmeof.host.controller import NSID_MAX, Controller
from nvmeof.host.multipath.ana import AnaFollower, not_in_log, uses_ana
from nvmeof.host.multipath.facts import SubsystemFacts
from nvmeof.host.multipath.head import NamespaceHead, NoPathError
from nvmeof.host.multipath.identity import (
    NamespaceView,
    PathMismatchError,
    SubsystemIdentity,
    check_controller,
    check_new_namespace,
    check_same_namespace,
    nsid_is_unique,
    view_namespace,
)
from nvmeof.host.multipath.iopolicy import DEFAULT_IOPOLICY, IOPOLICIES, check_iopolicy
from nvmeof.host.multipath.member import Member, NamespacePath
from nvmeof.host.namespace import Namespace
from nvmeof.host.path import Path, PathState
from nvmeof.host.results import AnaLog
from nvmeof.runtime import Future, Runtime, sleep
from nvmeof.spec.enums import LogPageId
from nvmeof.spec.status import Status

log = logging.getLogger("nvmeof.host")

T = TypeVar("T")
ANA_RETRY_SECONDS: Final = 10.0
"""Seconds after which an invalid log is read again, unless an event causes that earlier."""
DRAIN_POLL_SECONDS: Final = 0.01
MOST_TRIES: Final = 8
"""How often a call over any path is tried when each path is lost during it."""


class Subsystem:
    """The controllers and namespaces of ``subnqn``. ``multipath`` False: native multipath is off, and each path
    separate.

    ::

        subsystem = Subsystem(subnqn, runtime, iopolicy="round-robin")
        await subsystem.add(Path(make_controller, runtime))
        await subsystem.namespace(1).write(0, bytes(4096))
        await subsystem.close()
    """

    def __init__(
        self, subnqn: str, runtime: Runtime, *, iopolicy: str = DEFAULT_IOPOLICY, multipath: bool = True
    ) -> None:
        self.subnqn = subnqn
        self.runtime = runtime
        self.multipath = multipath
        self.identity: SubsystemIdentity | None = None
        self.members: list[Member] = []
        """In the order in which they were added."""
        self.on_event: list[Callable[[Member, AsyncEvent], object]] = []
        """Called with each asynchronous event of a controller."""
        self.on_lost: list[Callable[[Member, NvmeofError], object]] = []
        """Called once for a path that is removed because it cannot be recovered."""
        self._iopolicy = check_iopolicy(iopolicy)
        self._heads: dict[tuple[int, Member | None], NamespaceHead] = {}
        self._namespaces: dict[tuple[int, Member | None], Namespace] = {}
        self._numbers = 0
        self._rescanning = False
        self._rescan_again = False
        self._waiters: list[Future[None]] = []
        self._closed = False
        self._last_loss = ""

    def __repr__(self) -> str:
        return f"<Subsystem {self.subnqn}: {len(self.members)} paths, {self._iopolicy}>"

    # -- the I/O policy

    @property
    def iopolicy(self) -> str:
        """Name of the I/O policy; setting it takes effect with the next command."""
        return self._iopolicy

    @iopolicy.setter
    def iopolicy(self, name: str) -> None:
        self._iopolicy = check_iopolicy(name)
        for member in self.members:
            member.timed = IOPOLICIES[name].timed
        for head in self._heads.values():
            head.set_policy()

    def describe(self) -> SubsystemFacts:
        """Return the subsystem's state, and the traffic of each of its paths."""
        identity = self.identity or SubsystemIdentity(self.subnqn, "", "")
        return {
            "subnqn": self.subnqn,
            "serial": identity.serial,
            "model": identity.model,
            "iopolicy": self.iopolicy,
            "paths": [member.describe() for member in self.members],
            "namespaces": [head.describe() for head in self.heads],
        }

    # -- paths

    async def add(self, path: Path[Controller]) -> Member:
        """Connect one more path, and use it.

        Raises what :meth:`Path.connect` does, and :class:`PathMismatchError` for a controller that does not match the
        others; nothing of the path remains then.
        """
        if self._closed:
            raise LocalProtocolError(f"the subsystem {self.subnqn} is closed: no path can be added")
        twin = next((each for each in self.members if each.path.options.same_path(path.options)), None)
        if twin is not None:
            raise ConfigurationError(f"{twin.name} is already a path to {self.subnqn}")
        member = Member(path, self._numbers, self.runtime)
        self._numbers += 1
        member.timed = IOPOLICIES[self._iopolicy].timed
        path.prepare.append(partial(self._prepare, member, True))
        path.on_change.append(partial(self._changed, member))
        path.on_lost.append(partial(self._lost, member))
        self.members.append(member)
        try:
            await path.connect()
        except BaseException:
            self._forget(member)
            raise
        path.prepare[-1] = partial(self._prepare, member, False)
        return member

    async def remove(self, member: Member) -> None:
        """Remove a path: wait until its commands have ended, and shut its controller down in order.

        A command that has not ended within ``io_timeout`` is treated as one of a lost path.
        """
        if member not in self.members:
            raise ConfigurationError(f"{member.name} is not a path to {self.subnqn}")
        self._forget(member)
        deadline = self.runtime.now() + member.path.options.io_timeout
        while member.depth and member.usable and self.runtime.now() < deadline:
            await sleep(self.runtime, DRAIN_POLL_SECONDS)
        await member.path.delete()

    def _forget(self, member: Member) -> None:
        """Take a controller out of the subsystem and of all heads."""
        if member in self.members:
            self.members.remove(member)
        self._stop_ana(member)
        for path in list(member.namespaces.values()):
            self._drop(member, path)
        self._wake()

    async def close(self) -> None:
        """Shut all controllers down in order; commands that wait fail. Safe to call again."""
        self._closed = True
        for head in self._heads.values():
            head.close(ConnectionLost(f"the host disconnected from {self.subnqn}"))
        self._wake()
        members, self.members = list(self.members), []
        for member in members:
            self._stop_ana(member)
        for member in members:
            await member.path.delete()

    def _changed(self, member: Member) -> None:
        """Update the namespaces of a path whose state has changed, and send waiting requests."""
        if member.path.state not in (PathState.LIVE, PathState.CONNECTING):
            self._stop_ana(member)
        member.update()
        for path in member.namespaces.values():
            path.head.kick()
        self._wake()
        if member.path.state is PathState.LIVE:
            self.runtime.spawn(self._refresh_all())  # namespaces may have changed while no event could report it

    def _lost(self, member: Member, error: NvmeofError) -> None:
        """Remove a path that recovery has given up: Linux removes the controller and its namespaces, too."""
        self._last_loss = f", the last one after it was lost ({member.name}: {error})"
        self._forget(member)
        for listener in list(self.on_lost):
            listener(member, error)

    def _stop_ana(self, member: Member) -> None:
        if member.ana is not None:
            member.ana.stop()
            member.ana = None

    # -- before a path is live

    async def _prepare(self, member: Member, first: bool, controller: Controller) -> None:
        """Check a new association and join its namespaces. Raises NvmeofError where it cannot be used.

        At the first connect a namespace that does not match is an error; later it is left out, as in Linux.
        """
        info = controller.info
        identity = SubsystemIdentity.of(controller.subnqn, info)
        # a target that has restarted assigns the identifiers of ended associations again
        associations = [each.path.association for each in self.members if each is not member]
        others = [each.identified.cntlid for each in associations if each is not None and each.identified is not None]
        check_controller(identity, self.identity, info, others if self.multipath else ())
        self.identity = self.identity or identity
        member.info = info
        member.max_transfer_bytes = controller.max_transfer_bytes
        for path in member.namespaces.values():
            path.head.update_limits()
        self._stop_ana(member)
        if self.multipath and uses_ana(info):
            member.ana = AnaFollower(
                controller.commands,
                info,
                self.runtime,
                changed=partial(self._ana_read, member),
                overdue=partial(self._ana_overdue, member),
                failed=partial(self._ana_failed, member),
            )
            await member.ana.start()
        member.controller = controller
        await self._scan(member, controller, strict=first)
        without_state = self._without_state(member)
        if without_state is not None:
            raise without_state
        controller.on_event.append(partial(self._event, member, controller))

    # -- namespaces

    async def _scan(self, member: Member, controller: Controller, *, strict: bool) -> None:
        """Look at all namespaces of a controller, and join, change or drop them: nvme_scan_work."""
        found: set[int] = set()
        for nsid in await controller.commands.active_namespaces():
            view = await view_namespace(controller.commands, nsid)
            if view is None:
                continue
            try:
                self._join(member, view)
            except PathMismatchError as error:
                if strict:
                    raise
                if str(member.refused.get(nsid)) != str(error):
                    log.error("%s: namespace %d is left out: %s", member.name, nsid, error)
                member.refused[nsid] = error
                continue
            member.refused.pop(nsid, None)
            found.add(nsid)
        for nsid, path in list(member.namespaces.items()):
            if nsid not in found:
                self._drop(member, path)

    def _join(self, member: Member, view: NamespaceView) -> None:
        """Join a namespace of a controller to its head, a new one where there is none: nvme_init_ns_head."""
        info = member.info
        assert info is not None
        unique = self.multipath and nsid_is_unique(view.shared, info)
        key = (view.nsid, None if unique else member)
        head, path = self._heads.get(key), member.namespaces.get(view.nsid)
        if path is not None and (path.head is not head or path.view.ids != view.ids):
            # the NSID has become shared or private, or is another namespace: treated as removed and added
            self._drop(member, path)
            path = None
        if head is not None and not head.paths and head.view.ids != view.ids:
            # all paths to the old namespace are gone, and this is another one: users of the old one get errors
            self._retire(key, head)
            head = None
        if head is None:
            others = [each.view for other, each in self._heads.items() if other != key and each.paths]
            check_new_namespace(view, others if self.multipath else (), member.name)
            head = self._heads[key] = NamespaceHead(self, view, single=not unique)
        elif path is None and head.paths:
            check_same_namespace(head.view, view, member.name)
        if path is None:
            path = member.namespaces[view.nsid] = NamespacePath(member, head, view, anagrpid=view.anagrpid)
            if member.ana is not None and member.ana.log is not None:
                path.take_ana(member.ana.log)
            head.add(path)
        path.view = view
        head.revalidate(view)

    def _drop(self, member: Member, path: NamespacePath) -> None:
        """Take a namespace of a controller out; after its last path, scan for those that were left out because of
        it.
        """
        member.drop(path)
        path.head.remove(path)
        if not path.head.paths and any(path.nsid in each.refused for each in self.members):
            self.rescan()

    def _retire(self, key: tuple[int, Member | None], head: NamespaceHead) -> None:
        head.close(
            PathMismatchError(
                f"namespace {head.nsid} of {self.subnqn} is another one now than the one in use: open it again"
            )
        )
        self._heads.pop(key, None)
        self._namespaces.pop(key, None)

    def rescan(self) -> None:
        """Look at the namespaces of all live controllers again, in the background."""
        self._rescan_again = True
        if not self._rescanning and not self._closed:
            self._rescanning = True
            self.runtime.spawn(self._rescan())

    async def _rescan(self) -> None:
        try:
            while self._rescan_again and not self._closed:
                self._rescan_again = False
                for member in list(self.members):
                    if member.usable and member.controller is not None:
                        await self._scan_again(member, member.controller)
                await self._refresh_all()
        finally:
            self._rescanning = False

    async def _scan_again(self, member: Member, controller: Controller) -> None:
        try:
            await self._scan(member, controller, strict=False)
        except NvmeofError as error:
            # a lost association is scanned when it is back; other errors leave the last known state
            log.info("%s: the namespaces could not be read: %s", member.name, error)
        if member.ana is not None and self._without_state(member) is not None:
            member.ana.refresh()  # the log may be older than the namespace

    async def _refresh_all(self) -> None:
        """Identify the namespaces in use again: their size, and what a command may transfer."""
        for namespace in list(self._namespaces.values()):
            await self._refresh(namespace)

    async def _refresh(self, namespace: Namespace) -> None:
        head = namespace.port
        if isinstance(head, NamespaceHead) and any(path.member.usable for path in head.paths):
            try:
                await namespace.refresh()
            except NvmeofError as error:
                log.info("namespace %d has changed, but cannot be identified: %s", namespace.nsid, error)

    @property
    def heads(self) -> list[NamespaceHead]:
        """The namespaces that have or had a path, by NSID."""
        return [self._heads[key] for key in sorted(self._heads, key=lambda key: key[0])]

    def namespace(self, nsid: int, member: Member | None = None) -> Namespace:
        """Return the namespace ``nsid``, over all of its paths. Its own methods identify it when that is first needed.

        ``member``: the path of a private namespace, where several controllers have one of that NSID, and with native
        multipath off. Raises LocalProtocolError for an invalid NSID, :class:`ConfigurationError` where ``member`` is
        missing, :class:`NvmeStatusError` for a namespace that does not exist.
        """
        if not 1 <= nsid <= NSID_MAX:
            raise LocalProtocolError(f"a namespace has an NSID from 1 to {NSID_MAX}, not {nsid}")
        keys = [key for key in self._heads if key[0] == nsid and (member is None or key[1] in (None, member))]
        if not keys:
            raise NvmeStatusError(Status.INVALID_NAMESPACE, f"{self.subnqn} has no active namespace {nsid}", dnr=True)
        if len(keys) > 1:
            owners = ", ".join(key[1].name for key in keys if key[1] is not None)
            raise ConfigurationError(f"several paths have a separate namespace {nsid} ({owners}): name the path")
        return self._namespace(keys[0])

    def all_namespaces(self) -> list[Namespace]:
        """Return the namespaces that have a path now, by NSID; private ones of one NSID in the order of their
        controllers."""
        keys = sorted(self._heads, key=lambda key: (key[0], key[1].number if key[1] is not None else -1))
        return [self._namespace(key) for key in keys if self._heads[key].paths]

    def _namespace(self, key: tuple[int, Member | None]) -> Namespace:
        if key not in self._namespaces:
            head = self._heads[key]
            namespace = self._namespaces[key] = Namespace(head, key[0])
            head.on_limits.append(namespace.limits_changed)
        return self._namespaces[key]

    # -- events

    def _event(self, member: Member, controller: Controller, event: AsyncEvent) -> None:
        if controller is not member.controller:
            return
        if event.log_page == LogPageId.ANA and member.ana is not None:
            member.ana.refresh()
        elif event.log_page == LogPageId.CHANGED_NAMESPACES:
            self.rescan()
        for listener in list(self.on_event):
            listener(member, event)

    def _ana_read(self, member: Member, ana: AnaLog) -> None:
        for path in member.namespaces.values():
            path.take_ana(ana)
        without_state = self._without_state(member)
        if without_state is not None:
            self._ana_failed(member, without_state)
        else:
            member.ana_error = None
        for path in member.namespaces.values():
            path.head.kick()  # also where the state became worse: no command may wait for a path that will not come

    def _without_state(self, member: Member) -> NvmeofError | None:
        """Return the error of the last ANA log where it has a namespace in none of its groups."""
        info = member.info
        missing = next((path for path in member.namespaces.values() if path.pending), None)
        return None if missing is None or info is None else not_in_log(info, missing.nsid, missing.view.anagrpid)

    def _ana_failed(self, member: Member, error: NvmeofError) -> None:
        if member.path.state is not PathState.LIVE or isinstance(error, TransportError):
            return  # the log is read when the path is back
        if str(member.ana_error) != str(error):
            log.error("%s: %s", member.name, error)
        member.ana_error = error
        ana = member.ana
        if ana is not None:
            self.runtime.call_later(ANA_RETRY_SECONDS, ana.refresh)
        for path in member.namespaces.values():
            path.head.kick()

    def _ana_overdue(self, member: Member) -> None:
        log.warning("%s: an ANA group is in the Change state for more than twice ANATT: resetting", member.name)
        self.runtime.spawn(self._reset(member))

    async def _reset(self, member: Member) -> None:
        try:
            await member.path.reset()
        except NvmeofError as error:
            log.info("%s: the reset has failed, recovery goes on: %s", member.name, error)

    # -- calls over any path

    async def on_any_path(
        self, head: NamespaceHead | None, call: Callable[[Member], Awaitable[T]], *, repeatable: bool = True
    ) -> T:
        """Call ``call`` with any live path of ``head`` (None: of the subsystem), and wait while no path is live. When a
        connection is lost during the call, repeat the call with another path; if not ``repeatable``, only when it was
        not executed. Raises :class:`NoPathError` when no path may come back, and any error of ``call``.
        """
        tries: dict[Member, int] = {}
        while True:
            for member in list(self._usable(head)):
                try:
                    return await call(member)
                except TransportError as error:
                    if not repeatable and not isinstance(error, CommandNotExecuted):
                        raise
                    tries[member] = tries.get(member, 0) + 1
                    if tries[member] >= MOST_TRIES:
                        raise
                    log.debug("%s: %s", member.name, error)
            members = self.members if head is None else [path.member for path in head.paths]
            if next(self._usable(head), None) is not None:
                continue
            if self._closed or not any(member.may_come_back for member in members):
                reasons = "; ".join(f"{member.name} is {member.why}" for member in members) or self.none_left
                raise NoPathError(f"no path to {self.subnqn} is left: {reasons}")
            waiter: Future[None] = self.runtime.create_future()
            self._waiters.append(waiter)
            await waiter

    @property
    def none_left(self) -> str:
        """The reason why no path is left, for a message."""
        return f"all were removed{self._last_loss}"

    def _usable(self, head: NamespaceHead | None) -> Iterator[Member]:
        members = self.members if head is None else [path.member for path in head.paths]
        return (member for member in members if member.usable)

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
