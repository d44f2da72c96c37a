"""What the target tells its service manager, and the sockets that it gets from there (docs/howto/service.md)."""

from __future__ import annotations

import asyncio
import logging
import os
from types import TracebackType
from typing import Final

from nvmeof.target.subsystem.config import PortConfig
from nvmeof.transport.service_manager import InheritedSocket, ServiceManager, close_inherited, receive_sockets

DISCOVERY_NAME: Final = "discovery"
METRICS_NAME: Final = "metrics"
"""Names of sockets (FileDescriptorName=) that mean something; others are of ports that offer subsystems."""

logger = logging.getLogger("nvmeof.target")


class Service:
    """The target as a service, within ``with``: from its sockets to its last word. Needs a running event loop.

    `sockets` are those of the service manager. Raises `TransportError` for one that is no listening socket.
    """

    def __init__(self) -> None:
        self._manager = ServiceManager.from_environment()
        self._beat: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self.sockets: list[InheritedSocket] = []

    def __enter__(self) -> Service:
        self.sockets = receive_sockets()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._beat is not None:
            self._beat.cancel()
        close_inherited()
        self._manager.close()

    def ports(self) -> list[PortConfig]:
        """Return a port for each socket: what is served where no address is given."""
        return [
            PortConfig(
                transport=each.transport,
                host=each.address.host,
                port=each.address.port,
                discovery_only=each.name.startswith(DISCOVERY_NAME),
            )
            for each in self.sockets
            if each.name != METRICS_NAME
        ]

    def metrics_address(self) -> str | None:
        """Return the address of the socket of the metrics, if there is one."""
        return next((str(each.address) for each in self.sockets if each.name == METRICS_NAME), None)

    def started(self, status: str) -> None:
        """Say that everything is served, and from now on that the event loop goes on."""
        for each in close_inherited():
            logger.warning("the inherited socket at %s is used by no port: closed", each.address)
        self._manager.ready(status)
        if self._manager.watchdog_seconds and self._beat is None:
            self._alive()

    def _alive(self) -> None:
        """Say so twice per interval: an event loop that is stuck does not."""
        self._manager.alive()
        self._beat = self._loop.call_later(self._manager.watchdog_seconds / 2, self._alive)

    def environment(self) -> dict[str, str]:
        """Return what the service manager had set in the environment, for a process that takes over."""
        return self._manager.environment()

    def main_process(self, pid: int) -> None:
        """Say that another process is the service from now on; 0: this one."""
        self._manager.main_process(pid or os.getpid())

    def reloading(self) -> None:
        """Say that the configuration is read again; `started` says that it was."""
        self._manager.reloading()

    def stopping(self) -> None:
        """Say that the target stops."""
        self._manager.stopping()
