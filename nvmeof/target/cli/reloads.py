"""The configuration file of a target that runs, read again when it is asked to."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

from nvmeof.errors import NvmeofError
from nvmeof.target.cli.options import Options, load
from nvmeof.target.cli.service import Service
from nvmeof.target.configuration.difference import apply, difference
from nvmeof.target.configuration.files import Loaded
from nvmeof.target.configuration.merge import plain_document
from nvmeof.target.core.audit import AuditEvent
from nvmeof.target.server import Target

logger = logging.getLogger("nvmeof.target")


_AUDITED_CHARACTERS: Final = 2000
"""Of what a reload has changed; the log has all of it."""


class Reloads:
    """Reads the configuration file again at each SIGHUP, and when it is asked to, one after the other; what cannot be
    done changes nothing."""

    def __init__(
        self, target: Target, options: Options, loaded: Loaded, service: Service, status: Callable[[Target], str]
    ) -> None:
        self._service = service
        self._status = status
        self._target = target
        self._options = options
        self._take(loaded)
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._one = asyncio.Lock()

    @property
    def path(self) -> Path:
        """The absolute path of the file."""
        return self._loaded.path.absolute()

    @property
    def loaded(self) -> Loaded:
        """What was read last."""
        return self._loaded

    def _take(self, loaded: Loaded) -> None:
        self._loaded = loaded
        # At once: a target that runs changes the storage that the settings name.
        self.document = plain_document(loaded.settings)

    def wanted(self) -> None:
        """Read the file again when the target has started, and the reload before has ended."""
        self._wanted.set()

    def started(self) -> None:
        """Begin to look for signals."""
        self._task = asyncio.create_task(self._run())

    async def end(self) -> None:
        """Read no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            self._service.reloading()
            try:
                said = await self.reload()
            except NvmeofError as error:
                logger.error("SIGHUP: %s", error)
                self._audit(False, str(error))
            else:
                self._audit(True, "; ".join(said))
            self._service.started(self._status(self._target))

    def _audit(self, granted: bool, text: str) -> None:
        """Tell the audit log of a reload that a signal has asked for; one by the control is told there."""
        audit = self._target.audit
        if audit is not None:
            reason = text[:_AUDITED_CHARACTERS]
            audit(AuditEvent.ADMINISTRATION, granted=granted, peer="SIGHUP", verb="reload", reason=reason)

    async def reload(self) -> list[str]:
        """Read the file again and apply the difference to what it said before; return a sentence for each change.

        Raises ConfigurationError, with nothing changed.
        """
        async with self._one:
            loaded = await asyncio.to_thread(load, self._options)
            plan = difference(self._target.administration, self._loaded.settings, loaded.settings)
            said = await apply(plan)
            for line in said:
                logger.info("reload: %s", line)
            self._take(loaded)
            logger.info("reload: %s was read again: %d changes", loaded.path, len(plan.steps))
            return said

    async def saved(self) -> None:
        """Take the file, which was written with the target's present state, as what was read last."""
        async with self._one:
            self._take(await asyncio.to_thread(load, self._options))
