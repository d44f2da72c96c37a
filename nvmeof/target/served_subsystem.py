"""A subsystem of a running target, with everything that was opened for it: backends, pool and metadata store."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Mapping
from functools import partial

from nvmeof.errors import ConfigurationError
from nvmeof.runtime import Runtime, settled
from nvmeof.target.core.metadata import MemoryStore
from nvmeof.target.handover import SubsystemState
from nvmeof.target.ports import Port
from nvmeof.target.storage.base import Backend
from nvmeof.target.storage.handed_over import PoolState, hand_over, take_over
from nvmeof.target.storage.json_file_store import JsonFileStore
from nvmeof.target.storage.pools import RamdiskPool
from nvmeof.target.storage.ramdisk import Ramdisk
from nvmeof.target.subsystem.config import NamespaceConfig, SubsystemConfig
from nvmeof.target.subsystem.live_changes import disabled, replace_backend
from nvmeof.target.subsystem.namespace_kinds import NamespaceKind
from nvmeof.target.subsystem.subsystem import Subsystem

logger = logging.getLogger("nvmeof.target")


class ServedSubsystem:
    """Opens what a subsystem consists of, and closes it again: exactly what was opened.

    `backends` are those of configured namespaces that are open; the subsystem itself knows those of namespaces that
    hosts have created. `handed`: what another target has left of it. `unflushed` collects descriptions of backends that
    could not be flushed at their end: what was written last to them may be lost. It is the target's own list.
    """

    def __init__(
        self,
        config: SubsystemConfig,
        runtime: Runtime,
        unflushed: list[str],
        handed: SubsystemState | None = None,
    ) -> None:
        self.config = config
        self._handed = handed
        self.backends: list[Backend] = []
        self.unflushed = unflushed
        self._runtime = runtime
        self.opened: Subsystem | None = None
        self._pool_acquired = False
        self._powered_off = False
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
        config, handed = self.config, self._handed
        for namespace in config.namespaces:
            await namespace.backend.open()
            self.backends.append(namespace.backend)
            state = None if handed is None or namespace.nsid is None else handed.backends.get(namespace.nsid)
            if state is not None:
                await self._runtime.in_thread(partial(take_over, namespace.backend, state))
        if isinstance(config.metadata_store, JsonFileStore):
            config.metadata_store.hold()
            self._store = config.metadata_store
        if config.pool is not None:
            await config.pool.acquire()
            self._pool_acquired = True
            if handed is not None and handed.pool is not None and isinstance(config.pool, RamdiskPool):
                await self._runtime.in_thread(partial(_fill_pool, config.pool, handed.pool))
        subsystem = self.opened = Subsystem(config, kinds=kinds, kept=None if handed is None else handed.kept)
        if subsystem.manager is not None:
            await subsystem.manager.open()
        if handed is not None:
            _go_on(subsystem, handed)
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
            if not self._powered_off:
                await self._power_off(self.opened)
            self.opened = None
        if self._pool_acquired and self.config.pool is not None:
            self._pool_acquired = False
            await self.config.pool.release()
        store, self._store = self._store, None
        if store is not None:
            await store.release()

    async def flush(self) -> None:
        """Flush all backends while hosts use them, so that there is little to flush later. Failures show later too."""
        for backend in self.subsystem.backends:
            if backend.capabilities.can_write:
                with contextlib.suppress(OSError):
                    await settled(backend.flush())

    async def hand_over(self) -> SubsystemState:
        """Close everything as `close` does, and return what is in memory alone. Nothing may be in progress."""
        subsystem, config, state = self.subsystem, self.config, SubsystemState()
        known = {**subsystem.namespaces, **subsystem.disabled}
        created = subsystem.manager.nsids if subsystem.manager is not None else frozenset()
        for nsid, namespace in known.items():
            await self._flush(namespace.backend)
            reservations = namespace.reservations.document()
            if reservations is not None:
                state.reservations[nsid] = reservations
        await self._power_off(subsystem)
        state.cntlids = subsystem.cntlids
        if isinstance(subsystem.metadata_store, MemoryStore) and config.metadata_store is None and config.pool is None:
            state.kept = subsystem.metadata_store.values
        for nsid, namespace in known.items():
            if nsid not in created and not (had := hand_over(namespace.backend)).empty:
                state.backends[nsid] = had
        if isinstance(config.pool, RamdiskPool):
            ramdisks = config.pool.ramdisks
            state.pool = PoolState(
                config.pool.metadata_store.values, {name: hand_over(each) for name, each in ramdisks.items()}
            )
        self._powered_off = True
        await self.close()
        return state

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
        await self._flush(backend)
        await backend.close()

    async def _flush(self, backend: Backend) -> None:
        try:
            if backend.capabilities.can_write:
                await settled(backend.flush())
        except OSError as error:
            logger.error("%s: flush failed: %s", backend.description, error.strerror or error)
            if backend.description not in self.unflushed:
                self.unflushed.append(backend.description)

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


def _fill_pool(pool: RamdiskPool, state: PoolState) -> None:
    """Give a pool of memory what another one had."""
    ramdisks = {}
    for name, had in state.backends.items():
        if had.memory is not None:
            size_bytes, block_bytes = had.memory.made
            ramdisks[name] = ramdisk = Ramdisk(size_bytes, block_bytes=block_bytes)
            take_over(ramdisk, had)
    pool.take_over(state.kept, ramdisks)


def _go_on(subsystem: Subsystem, handed: SubsystemState) -> None:
    """Let reservations hold as before, and CNTLIDs go on. Raises `ConfigurationError` for reservations that cannot."""
    subsystem.continue_cntlids(*handed.cntlids)
    for nsid, document in handed.reservations.items():
        try:
            subsystem.configured(nsid).reservations.take_over(document)
        except (ValueError, OverflowError) as error:
            raise ConfigurationError(f"the reservations of namespace {nsid} were not handed over: {error}") from error
