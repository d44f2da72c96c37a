"""A subsystem of a running target, with everything that was opened for it: backends, pool and metadata store."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from nvmeof.errors import ConfigurationError
from nvmeof.runtime import Runtime, settled
from nvmeof.target.ports import Port
from nvmeof.target.storage.base import Backend
from nvmeof.target.storage.json_file_store import JsonFileStore
from nvmeof.target.subsystem.config import NamespaceConfig, SubsystemConfig
from nvmeof.target.subsystem.live_changes import disabled, replace_backend
from nvmeof.target.subsystem.namespace_kinds import NamespaceKind
from nvmeof.target.subsystem.subsystem import Subsystem

logger = logging.getLogger("nvmeof.target")


class ServedSubsystem:
    """Opens what a subsystem consists of, and closes it again: exactly what was opened.

    `backends` are those of configured namespaces that are open; the subsystem itself knows those of namespaces that
    hosts have created. `unflushed` collects descriptions of backends that could not be flushed at their end: what was
    written last to them may be lost. It is the target's own list.
    """

    def __init__(self, config: SubsystemConfig, runtime: Runtime, unflushed: list[str]) -> None:
        self.config = config
        self.backends: list[Backend] = []
        self.unflushed = unflushed
        self._runtime = runtime
        self.opened: Subsystem | None = None
        self._pool_acquired = False
        self._store: JsonFileStore | None = None

    @property
    def subsystem(self) -> Subsystem:
        """The subsystem that was opened."""
        assert self.opened is not None, "the subsystem has not been opened"
        return self.opened

    async def open(self, kinds: Mapping[int, NamespaceKind], ports: Iterable[Port]) -> Subsystem:
        """Open everything and make the subsystem, known to `ports`.

        Raises `ConfigurationError` and `OSError`; call `close` then too, which closes what was opened.
        """
        config = self.config
        for namespace in config.namespaces:
            await namespace.backend.open()
            self.backends.append(namespace.backend)
        if isinstance(config.metadata_store, JsonFileStore):
            config.metadata_store.hold()
            self._store = config.metadata_store
        if config.pool is not None:
            await config.pool.acquire()
            self._pool_acquired = True
        subsystem = self.opened = Subsystem(config, kinds=kinds)
        if subsystem.manager is not None:
            await subsystem.manager.open()
        for port in ports:
            port.offer(subsystem)
        await self._power_on(subsystem)
        return subsystem

    async def close(self) -> None:
        """Flush and close the backends, record a clean end, and let pool and metadata store go. Idempotent."""
        backends, self.backends = self.backends, []
        if self.opened is not None:
            backends += self.opened.created_backends
        for backend in backends:
            await self._close_backend(backend)
        if self.opened is not None:
            await self._power_off(self.opened)
            self.opened = None
        if self._pool_acquired and self.config.pool is not None:
            self._pool_acquired = False
            await self.config.pool.release()
        store, self._store = self._store, None
        if store is not None:
            await store.release()

    async def add_namespace(self, config: NamespaceConfig) -> int:
        """Open a backend and offer it; returns its NSID. Raises `ConfigurationError` and `OSError`."""
        await config.backend.open()
        try:
            added = self.subsystem.add_namespace(config)
        except ConfigurationError:
            await config.backend.close()
            raise
        self.backends.append(config.backend)
        self.subsystem.resume(self._runtime)
        return added.nsid

    async def remove_namespace(self, nsid: int) -> None:
        """Withdraw a namespace and close its backend; one that a host has created is deleted with its data.

        Raises `ConfigurationError` for one that does not exist.
        """
        manager = self.subsystem.manager
        if manager is not None and nsid in manager.nsids:
            await manager.delete(self._runtime, nsid)
            return
        namespace = self.subsystem.remove_namespace(nsid)
        self.backends.remove(namespace.backend)
        await namespace.backend.close()

    async def replace_backend(self, nsid: int, backend: Backend) -> None:
        """Put other storage behind a disabled namespace, flush what it had before and close it.

        Raises `ConfigurationError` and `OSError`; the namespace is as before then.
        """
        disabled(self.subsystem, nsid)
        await backend.open()
        try:
            before = replace_backend(self.subsystem, nsid, backend)
        except ConfigurationError:
            await backend.close()
            raise
        self.backends.append(backend)
        self.backends.remove(before)
        await self._close_backend(before)

    async def _close_backend(self, backend: Backend) -> None:
        try:
            if backend.capabilities.can_write:
                await settled(backend.flush())
        except OSError as error:
            logger.error("%s: flush failed: %s", backend.description, error.strerror or error)
            self.unflushed.append(backend.description)
        await backend.close()

    async def _power_on(self, subsystem: Subsystem) -> None:
        try:
            await settled(subsystem.power_on(self._runtime.now()))
        except OSError as error:
            # A full disk is no reason to withhold what is on it: it may be how there is room again.
            logger.error("%s: its state cannot be stored: %s", subsystem.nqn, error.strerror or error)

    async def _power_off(self, subsystem: Subsystem) -> None:
        """Keep what a subsystem counted, and that this was a clean end."""
        try:
            await settled(subsystem.power_off(self._runtime.now()))
        except OSError as error:
            logger.error("%s: its state could not be stored: %s", subsystem.nqn, error.strerror or error)
