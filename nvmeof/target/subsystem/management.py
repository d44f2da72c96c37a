"""Namespace management: making, deleting, attaching and detaching the namespaces of a subsystem that has a pool.

One operation runs at a time. It is checked first, stored second, and visible last: an outcome that is visible survives
the death of the process.
"""

from __future__ import annotations

import errno
import logging
import uuid as uuid_module
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol

from nvmeof.errors import CommandError, ConfigurationError
from nvmeof.runtime import Runtime, settled
from nvmeof.spec.enums import AnaState, Csi
from nvmeof.spec.sqe import SQE
from nvmeof.spec.status import Status
from nvmeof.target.core.fifo_lock import FifoLock
from nvmeof.target.namespaces.endurance_group import Pool, occupied_bytes, rounded
from nvmeof.target.namespaces.namespace import Namespace, NamespaceIdentifiers
from nvmeof.target.storage.base import Backend
from nvmeof.target.subsystem.ana import ANA_GROUP, AnaGroups
from nvmeof.target.subsystem.attachments import Attachments
from nvmeof.target.subsystem.namespace_kinds import STANDARD_KINDS, NamespaceKind
from nvmeof.target.subsystem.persistent_events import watch

logger = logging.getLogger("nvmeof.target")
SECTION: Final = "namespaces"
"""A pool's section: `namespaces` made, names that are `unused` (half made or half deleted), and `hosts`."""
_NSID = SQE.error_location("nsid")
_DATA = SQE.error_location("sgl_address")
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOMEM})


class Member(Protocol):
    """A controller, as far as namespaces are attached to it."""

    cntlid: int
    host_nqn: str
    attached: dict[int, Namespace]

    @property
    def ana(self) -> AnaGroups: ...

    def attach(self, *namespaces: Namespace) -> None: ...

    def detach(self, nsid: int) -> bool: ...

    def enabled(self, csi: int) -> bool: ...

    def namespace_changed(self, nsid: int) -> None: ...

    def allocation_changed(self, nsid: int) -> None: ...


@dataclass(frozen=True, slots=True)
class NewNamespace:
    """The description of a namespace to create. `options`: the values that its command set stores."""

    size_bytes: int
    block_bytes: int
    shared: bool = True
    csi: int = Csi.NVM
    options: dict[str, Any] = field(default_factory=dict)
    anagrpid: int = ANA_GROUP


@dataclass(frozen=True, slots=True)
class Record:
    """The stored record of a namespace that was created. Its UUID is its name, and is never used twice."""

    nsid: int
    name: str
    shared: bool
    csi: int
    options: dict[str, Any]
    anagrpid: int = ANA_GROUP

    @property
    def identifiers(self) -> NamespaceIdentifiers:
        """UUID and NGUID, the same after every restart."""
        named = uuid_module.UUID(self.name)
        return NamespaceIdentifiers(nguid=uuid_module.uuid5(named, "nguid").bytes, uuid=named)

    def to_json(self) -> dict[str, Any]:
        """Return the value to store in a metadata store."""
        value = {
            "nsid": self.nsid,
            "uuid": self.name,
            "shared": self.shared,
            "csi": self.csi,
            "options": self.options,
        }
        return value if self.anagrpid == ANA_GROUP else {**value, "anagrpid": self.anagrpid}

    @classmethod
    def from_json(cls, value: Any) -> Record:
        """Parse a value that `to_json` made. Raises `ValueError` or a subclass for any other."""
        name = str(uuid_module.UUID(value["uuid"]))
        options, group = dict(value["options"]), int(value.get("anagrpid", ANA_GROUP))
        return cls(int(value["nsid"]), name, bool(value["shared"]), int(value["csi"]), options, group)


class Owner(Protocol):
    """The Protocol of a manager's subsystem."""

    namespaces: dict[int, Namespace]
    attachments: Attachments

    @property
    def members(self) -> Mapping[int, Member]: ...

    @property
    def limits(self) -> tuple[int, int]:
        """The most namespaces, and the most that one controller is attached to (0: no such limit)."""
        ...

    def insert(self, namespace: Namespace, *, attached: bool) -> None: ...

    def withdraw(self, nsid: int, *, by: int | None = None) -> Namespace: ...

    def attached_controllers(self, nsid: int) -> list[int]: ...

    def nsid_free(self, nsid: int) -> bool: ...


class NamespaceManager:
    """The namespace manager of one subsystem. Its methods raise `CommandError` and have no effect then."""

    def __init__(self, owner: Owner, pool: Pool, kinds: Mapping[int, NamespaceKind] = STANDARD_KINDS) -> None:
        self.pool = pool
        self.kinds = kinds  # by CSI
        self._owner = owner
        self._turns = FifoLock()
        self._records: dict[int, Record] = {}
        self._unused: list[str] = []
        self._making: int | None = None  # the NSID of a namespace that is being made
        self._reserved_bytes = 0  # and its size
        stored = pool.metadata_store.get(SECTION)
        if stored is not None:
            self._load(stored)

    def _load(self, stored: Any) -> None:
        try:
            records = [Record.from_json(value) for value in stored["namespaces"]]
            self._unused = [str(uuid_module.UUID(name)) for name in stored["unused"]]
            self._owner.attachments.load(stored["hosts"])
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigurationError(f"what {self.pool.description} keeps of its namespaces is damaged") from error
        for record in records:
            if record.csi not in self.kinds:
                raise ConfigurationError(
                    f"namespace {record.nsid} of {self.pool.description} has I/O command set {record.csi}, "
                    "which does not exist here"
                )
        self._records = {record.nsid: record for record in records}

    # What there is

    @property
    def nsids(self) -> frozenset[int]:
        """The namespaces that were made here; also those that `open` has yet to find again, and one being made."""
        return frozenset(self._records if self._making is None else (*self._records, self._making))

    @property
    def unallocated_bytes(self) -> int:
        """Capacity that no namespace has."""
        namespaces = self._owner.namespaces
        used = sum(occupied_bytes(namespaces[nsid]) for nsid in self._records if nsid in namespaces)
        return max(self.pool.capacity_bytes - used - self._reserved_bytes, 0)

    async def open(self) -> None:
        """Find the namespaces of an earlier life again. Raises `OSError` or `ConfigurationError`."""
        for name in list(self._unused):
            await self._clear_away(name, None)
        for _, record in sorted(self._records.items()):
            backend = await settled(self.pool.open(record.name, zoned=record.csi == Csi.ZONED))
            try:
                self._owner.insert(self._made(record, backend), attached=False)
            except BaseException:
                await backend.close()
                raise
        self._owner.attachments.prune(self._owner.namespaces)

    def _made(self, record: Record, backend: Backend) -> Namespace:
        make = self.kinds[record.csi].make
        common: dict[str, Any] = {"csi": record.csi, "shared": record.shared, "anagrpid": record.anagrpid}
        return make(record.nsid, backend, record.identifiers, record.options, **common)

    def _save(self, attachments: Attachments | None = None) -> Awaitable[None] | None:
        return self.pool.metadata_store.put(
            SECTION,
            {
                "namespaces": [record.to_json() for record in self._records.values()],
                "unused": list(self._unused),
                "hosts": (attachments or self._owner.attachments).to_json(),
            },
        )

    def attachments_changed(self) -> None:
        """Store the attachments after a configured namespace was removed: a new namespace with its NSID must not
        inherit them."""
        try:
            watch(self._save(), "namespace attachments")
        except OSError as error:
            logger.error("%s cannot store namespace attachments: %s", self.pool.description, error.strerror or error)

    def moved(self, namespace: Namespace) -> None:
        """Store the ANA group of a namespace that moved, if a host created it."""
        record = self._records.get(namespace.nsid)
        if record is None:
            return
        self._records[namespace.nsid] = replace(record, anagrpid=namespace.anagrpid)
        try:
            watch(self._save(), "the ANA groups of namespaces")
        except OSError as error:
            logger.error("%s cannot keep the ANA group: %s", self.pool.description, error.strerror or error)

    async def _keep(self, undo: Callable[[], None], attachments: Attachments | None = None) -> None:
        """Store a change that was made before; on failure call `undo`, so that no later save includes it."""
        try:
            await settled(self._save(attachments))
        except OSError as error:
            undo()
            try:
                await settled(self._save())
            except OSError:
                pass  # the file is as it was, and the next that is stored does not have the change either
            raise CommandError(
                Status.INTERNAL_ERROR,
                dnr=False,
                message=f"{self.pool.description} cannot keep what it has: {error.strerror}",
            ) from error

    # Create and delete

    async def create(self, runtime: Runtime, new: NewNamespace) -> int:
        """Make a namespace, attached to no controller; returns its NSID."""
        async with self._turns.turn(runtime):
            nsid = self._free_nsid()
            needed = rounded(new.size_bytes)
            if needed > self.unallocated_bytes:
                raise CommandError(
                    Status.NAMESPACE_INSUFFICIENT_CAPACITY,
                    _DATA,
                    message=f"a namespace of {new.size_bytes} bytes does not fit in {self.unallocated_bytes}",
                    command_specific=needed,
                )
            record = Record(nsid, str(uuid_module.uuid4()), new.shared, new.csi, new.options, new.anagrpid)
            self._making, self._reserved_bytes = nsid, needed
            try:
                namespace = await self._make_storage(record, new)
            finally:
                self._making, self._reserved_bytes = None, 0
            self._owner.insert(namespace, attached=False)
            logger.info("namespace %d was created: %d bytes", nsid, new.size_bytes)
            return nsid

    async def _make_storage(self, record: Record, new: NewNamespace) -> Namespace:
        name = record.name
        # Until it is a namespace its storage is known as unused: should the end come in between, it is cleared away.
        self._unused.append(name)
        await self._keep(lambda: self._unused.remove(name))
        backend: Backend | None = None
        try:
            backend = await settled(self.pool.create(name, new.size_bytes, new.block_bytes))
            namespace = self._made(record, backend)
            await self._keep_record(record)
        except (OSError, ConfigurationError) as error:
            await self._clear_away(name, backend)
            no_room = isinstance(error, ConfigurationError) or error.errno in _NO_ROOM
            raise CommandError(
                Status.NAMESPACE_INSUFFICIENT_CAPACITY if no_room else Status.INTERNAL_ERROR,
                dnr=False,
                message=f"{self.pool.description} has no storage for a namespace: {error}",
                command_specific=rounded(new.size_bytes) if no_room else 0,
            ) from error
        except CommandError:
            await self._clear_away(name, backend)
            raise
        return namespace

    async def _keep_record(self, record: Record) -> None:
        """Store the record: from here on the namespace exists."""

        def undo() -> None:
            del self._records[record.nsid]
            self._unused.append(record.name)

        self._unused.remove(record.name)
        self._records[record.nsid] = record
        await self._keep(undo)

    def _free_nsid(self) -> int:
        limit, _ = self._owner.limits
        if len(self._owner.namespaces) < limit:
            for nsid in range(1, limit + 1):
                if self._owner.nsid_free(nsid):
                    return nsid
        raise CommandError(Status.NAMESPACE_ID_UNAVAILABLE, message=f"no NSID of {limit} is free")

    async def delete(self, runtime: Runtime, nsid: int | None, *, by: int | None = None) -> None:
        """Delete a namespace (None: all) with its data, wherever it is attached. `by`: CNTLID of whom it is done for.

        Raises Operation Denied for configured ones, which are not made of the pool.
        """
        async with self._turns.turn(runtime):
            namespaces = self._owner.namespaces
            if nsid is not None and nsid not in namespaces:
                raise CommandError(Status.INVALID_FIELD, _NSID, message=f"namespace {nsid:#x} is not allocated")
            victims = list(namespaces) if nsid is None else [nsid]
            for each in victims:
                if each not in self._records:
                    raise CommandError(
                        Status.OPERATION_DENIED,
                        _NSID,
                        message=f"namespace {each} was configured, not created by a host",
                    )
                namespaces[each].check_writable()
            await self._delete(victims, by)

    async def _delete(self, victims: Sequence[int], by: int | None) -> None:
        records = dict(self._records)
        names = [records[nsid].name for nsid in victims]
        unused = list(self._unused)

        def undo() -> None:
            self._records, self._unused = records, unused

        self._records = {nsid: record for nsid, record in records.items() if nsid not in victims}
        self._unused = unused + names
        attachments = self._owner.attachments.copy()
        for nsid in victims:
            attachments.forget(nsid)
        await self._keep(undo, attachments)
        gone = [self._owner.withdraw(nsid, by=by) for nsid in victims]
        for name, namespace in zip(names, gone, strict=True):
            await self._clear_away(name, namespace.backend)
            logger.info("namespace %d was deleted", namespace.nsid)

    async def _clear_away(self, name: str, backend: Backend | None) -> None:
        """Give storage back. What cannot be is tried again at the next start."""
        try:
            await settled(self.pool.delete(name, backend))
        except OSError as error:
            logger.error("%s: %s could not be removed: %s", self.pool.description, name, error.strerror or error)
        else:
            if name in self._unused:
                self._unused.remove(name)  # stored with the next change: removing it once more does no harm

    # Attach and detach

    async def attach(self, runtime: Runtime, nsid: int, cntlids: Sequence[int]) -> None:
        """Attach a namespace to all of those controllers, or to none."""
        async with self._turns.turn(runtime):
            namespace, members = self._find(nsid, cntlids)
            for member in members:
                self._check_attach(namespace, member)
            if not namespace.shared and len(members) + len(self._owner.attached_controllers(nsid)) > 1:
                raise CommandError(
                    Status.NAMESPACE_IS_PRIVATE, _NSID, message=f"namespace {nsid} is for one controller only"
                )

            def remember(attachments: Attachments) -> None:
                self._remember(attachments, members, nsid, True)
                if not namespace.shared:
                    attachments.only(members[0].host_nqn, nsid)

            for member in await self._keep_attachments(namespace, members, remember):
                member.attach(namespace)
                member.namespace_changed(nsid)
            self._tell_all(nsid)

    async def detach(self, runtime: Runtime, nsid: int, cntlids: Sequence[int]) -> None:
        """Detach a namespace from all of those controllers, or from none. Commands that have begun go on."""
        async with self._turns.turn(runtime):
            namespace, members = self._find(nsid, cntlids)
            for member in members:
                if nsid not in member.attached:
                    raise CommandError(
                        Status.NAMESPACE_NOT_ATTACHED,
                        _NSID,
                        message=f"namespace {nsid} is not attached to controller {member.cntlid}",
                    )

            def remember(attachments: Attachments) -> None:
                self._remember(attachments, members, nsid, False)

            for member in await self._keep_attachments(namespace, members, remember):
                member.detach(nsid)
                member.namespace_changed(nsid)
            self._tell_all(nsid)

    async def _keep_attachments(
        self, namespace: Namespace, members: Sequence[Member], remember: Callable[[Attachments], None]
    ) -> list[Member]:
        """Store the attachments by host; return the controllers that still exist."""
        copy = self._owner.attachments.copy()
        remember(copy)
        await self._keep(lambda: None, copy)
        if self._owner.namespaces.get(namespace.nsid) is not namespace:
            raise CommandError(
                Status.INVALID_FIELD, _NSID, message=f"namespace {namespace.nsid} was deleted by another command"
            )
        remember(self._owner.attachments)
        return [member for member in members if self._owner.members.get(member.cntlid) is member]

    def _tell_all(self, nsid: int) -> None:
        for member in list(self._owner.members.values()):
            member.allocation_changed(nsid)

    def _find(self, nsid: int, cntlids: Sequence[int]) -> tuple[Namespace, list[Member]]:
        namespace = self._owner.namespaces.get(nsid)
        if namespace is None:
            raise CommandError(Status.INVALID_FIELD, _NSID, message=f"namespace {nsid:#x} is not allocated")
        members = []
        for cntlid in cntlids:
            member = self._owner.members.get(cntlid)
            if member is None:
                raise CommandError(
                    Status.CONTROLLER_LIST_INVALID, _DATA, message=f"there is no controller {cntlid:#06x}"
                )
            members.append(member)
        return namespace, members

    def _check_attach(self, namespace: Namespace, member: Member) -> None:
        nsid = namespace.nsid
        if nsid in member.attached:
            raise CommandError(
                Status.NAMESPACE_ALREADY_ATTACHED,
                _NSID,
                message=f"namespace {nsid} is attached to controller {member.cntlid} already",
            )
        if not member.enabled(namespace.csi):
            raise CommandError(
                Status.IO_COMMAND_SET_NOT_ENABLED,
                _NSID,
                message=f"controller {member.cntlid} was enabled without I/O command set {namespace.csi}",
            )
        if member.ana.state(namespace.anagrpid) is AnaState.PERSISTENT_LOSS:
            raise CommandError(
                Status.ANA_ATTACH_FAILED,
                _NSID,
                message=f"ANA group {namespace.anagrpid} of namespace {nsid} is in the state persistent-loss on port"
                f" {member.ana.portid} of controller {member.cntlid}",
            )
        _, limit = self._owner.limits
        if limit and len(member.attached) >= limit:
            raise CommandError(
                Status.NAMESPACE_ATTACHMENT_LIMIT_EXCEEDED,
                _NSID,
                message=f"controller {member.cntlid} has {limit} namespaces attached already",
            )

    def _remember(self, attachments: Attachments, members: Sequence[Member], nsid: int, attached: bool) -> None:
        connected = {member.host_nqn for member in self._owner.members.values()}
        for member in members:
            attachments.remember(member.host_nqn, nsid, attached, connected=connected)
