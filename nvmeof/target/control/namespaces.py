"""The verbs of namespaces."""

from __future__ import annotations

import asyncio
import uuid as uuid_module
from typing import Annotated, Final

from nvmeof.errors import ConfigurationError
from nvmeof.size_text import parse_size
from nvmeof.target.control.schema import Range
from nvmeof.target.control.verbs import (
    DRAIN_SECONDS,
    DrainSeconds,
    Facts,
    Force,
    Group,
    Nsid,
    Subnqn,
    Table,
    Texts,
    VerbGroup,
    entry,
    removed,
    settings_of,
    verb,
)
from nvmeof.target.description import describe_namespace
from nvmeof.target.namespaces.namespace import Namespace
from nvmeof.target.storage.kinds import make_backend
from nvmeof.target.storage.namespace_text import parse_namespace_text
from nvmeof.target.subsystem.subsystem import Subsystem

_POLL_SECONDS: Final = 0.01
_PIECE: Final = 64
"""So many namespaces are described before others get a turn of the event loop."""
_Storage = Annotated[str, "the storage: file:/srv/disk.img, ramdisk:1G, with filters as --namespace has them"]
_Uuid = Annotated[str | None, "UUID; derived from NQN and NSID unless given"]
_Nguid = Annotated[str | None, "NGUID, 32 hexadecimal digits"]
_Eui64 = Annotated[str | None, "EUI-64, 16 hexadecimal digits"]


class Namespaces(VerbGroup):
    """Namespaces of a subsystem."""

    prefix = "namespace"

    @verb("list")
    async def list(self, subnqn: Annotated[str | None, "NQN of the subsystem; all unless given"] = None) -> Table:
        """List the namespaces, disabled ones too: storage, size, identifiers, ANA group, who is attached."""
        chosen = [self._subsystem(subnqn)] if subnqn is not None else list(self._target.subsystems.values())
        found: Table = []
        for subsystem in chosen:
            for _, namespace in sorted({**subsystem.namespaces, **subsystem.disabled}.items()):
                found.append(_described(subsystem, namespace))
                if len(found) % _PIECE == 0:
                    await asyncio.sleep(0)
        return found

    @verb("add", changes=True)
    async def add(
        self,
        storage: _Storage,
        subnqn: Subnqn = None,
        nsid: Annotated[int | None, Range(1, 0xFFFFFFFE), "namespace identifier; the lowest free one"] = None,
        anagrpid: Annotated[int | None, Range(1, 0xFFFF), "ANA group; 1 unless given"] = None,
        read_only: Annotated[bool, "refuse writes"] = False,
        uuid: _Uuid = None,
        nguid: _Nguid = None,
        eui64: _Eui64 = None,
        enabled: Annotated[bool, "whether hosts see it at once"] = True,
        settings: Annotated[Facts | None, "further entries of a namespace in a configuration file"] = None,
    ) -> Facts:
        """Open storage and offer it as a namespace; hosts that are connected get an event."""
        subsystem = self._subsystem(subnqn)
        given = {"storage": storage, "nsid": nsid, "anagrpid": anagrpid, "uuid": uuid, "nguid": nguid, "eui64": eui64}
        given.update({"read_only": read_only or None, "enabled": None if enabled else False})
        document = {"nqn": subsystem.nqn, "namespaces": [entry(given, settings)]}
        config = settings_of([document]).config.subsystems[0].namespaces[0]
        added = await self._administration.add_namespace(config, subnqn=subsystem.nqn)
        return _described(subsystem, subsystem.configured(added))

    @verb("remove", changes=True)
    async def remove(
        self, nsid: Nsid, subnqn: Subnqn = None, force: Force = False, seconds: DrainSeconds = DRAIN_SECONDS
    ) -> Facts:
        """Remove a namespace: withdraw it from hosts, let the commands in progress end, close its storage.

        One that a host has created is deleted with its data. Returns what was `cut`.
        """
        subsystem = self._subsystem(subnqn)
        namespace = subsystem.configured(nsid)
        created = subsystem.manager is not None and nsid in subsystem.manager.nsids
        if not created and nsid not in subsystem.disabled:
            self._administration.disable_namespace(nsid, subnqn=subsystem.nqn)
        cut = await self._drained(namespace, 0.0 if force else seconds)
        await self._administration.remove_namespace(nsid, subnqn=subsystem.nqn)
        return removed(cut=cut)

    async def _drained(self, namespace: Namespace, seconds: float) -> Texts:
        """Wait until no command is in progress; return a sentence where some are still."""
        deadline = self._target.loop.time() + seconds
        while namespace.in_progress and self._target.loop.time() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(_POLL_SECONDS)
        count = len(namespace.in_progress)
        return [f"{count} commands of namespace {namespace.nsid} were cut"] if count else []

    @verb("disable", changes=True)
    async def disable(self, nsid: Nsid, subnqn: Subnqn = None) -> Facts:
        """Withdraw a namespace from hosts; its storage stays open, and `namespace.enable` shows it again."""
        subsystem = self._subsystem(subnqn)
        self._administration.disable_namespace(nsid, subnqn=subsystem.nqn)
        return _described(subsystem, subsystem.configured(nsid))

    @verb("enable", changes=True)
    async def enable(self, nsid: Nsid, subnqn: Subnqn = None) -> Facts:
        """Show a disabled namespace to hosts."""
        subsystem = self._subsystem(subnqn)
        self._administration.enable_namespace(nsid, subnqn=subsystem.nqn)
        return _described(subsystem, subsystem.configured(nsid))

    @verb("resize", changes=True)
    async def resize(
        self, nsid: Nsid, size: Annotated[int | str, "the new size: bytes, or such as 2G"], subnqn: Subnqn = None
    ) -> Facts:
        """Change the size of a namespace and of its storage; hosts get an event."""
        subsystem = self._subsystem(subnqn)
        if subsystem.manager is not None and nsid in subsystem.manager.nsids:
            raise ConfigurationError(f"namespace {nsid} was created by a host: its size is that of its creation")
        size_bytes = parse_size(str(size))
        self._administration.resize_namespace(nsid, size_bytes, subnqn=subsystem.nqn)
        return _described(subsystem, subsystem.configured(nsid))

    @verb("move", changes=True)
    async def move(self, nsid: Nsid, group: Group, subnqn: Subnqn = None) -> Facts:
        """Move a namespace to another ANA group, whose state is its own from then on."""
        subsystem = self._subsystem(subnqn)
        self._administration.move_namespace(nsid, group, subnqn=subsystem.nqn)
        return _described(subsystem, subsystem.configured(nsid))

    @verb("protect", changes=True)
    async def protect(
        self,
        nsid: Nsid,
        protected: Annotated[bool, "whether writes are refused; false allows them"] = True,
        subnqn: Subnqn = None,
    ) -> Facts:
        """Refuse writes of all hosts to a namespace, or allow them again."""
        subsystem = self._subsystem(subnqn)
        self._administration.set_read_only(nsid, protected, subnqn=subsystem.nqn)
        return _described(subsystem, subsystem.configured(nsid))

    @verb("identify", changes=True)
    async def identify(
        self, nsid: Nsid, uuid: _Uuid = None, nguid: _Nguid = None, eui64: _Eui64 = None, subnqn: Subnqn = None
    ) -> Facts:
        """Give a disabled namespace other identifiers; those that are not given stay."""
        subsystem = self._subsystem(subnqn)
        try:
            number = None if uuid is None else uuid_module.UUID(uuid)
        except ValueError:
            raise ConfigurationError(f"a UUID is 32 hexadecimal digits, not {uuid!r}") from None
        self._administration.set_identifiers(
            nsid,
            uuid=number,
            nguid=_hexadecimal("NGUID", nguid),
            eui64=_hexadecimal("EUI-64", eui64),
            subnqn=subsystem.nqn,
        )
        return _described(subsystem, subsystem.configured(nsid))

    @verb("replace", changes=True)
    async def replace(self, nsid: Nsid, storage: _Storage, subnqn: Subnqn = None) -> Facts:
        """Put other storage behind a disabled namespace; what it had before is flushed and closed."""
        subsystem = self._subsystem(subnqn)
        backend = make_backend(parse_namespace_text(storage))
        await self._administration.replace_backend(nsid, backend, subnqn=subsystem.nqn)
        return _described(subsystem, subsystem.configured(nsid))


def _hexadecimal(name: str, text: str | None) -> bytes | None:
    try:
        return None if text is None else bytes.fromhex(text)
    except ValueError:
        raise ConfigurationError(f"an {name} is written as hexadecimal digits, not {text!r}") from None


def _described(subsystem: Subsystem, namespace: Namespace) -> Facts:
    nsid = namespace.nsid
    return {
        "subnqn": subsystem.nqn,
        **describe_namespace(namespace),
        "nguid": namespace.nguid.hex(),
        "eui64": namespace.eui64.hex() if any(namespace.eui64) else None,
        "enabled": nsid not in subsystem.disabled,
        "attached": subsystem.attached_controllers(nsid),
        "in_flight": len(namespace.in_progress),
    }
