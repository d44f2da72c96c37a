"""Watching a Discovery log without asyncio."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from nvmeof.host.blocking.portal import PORTAL, Blocking
from nvmeof.host.discovery_service import DiscoveryChange
from nvmeof.host.discovery_service import DiscoveryWatch as _DiscoveryWatch
from nvmeof.host.options import RecoveryOptions
from nvmeof.host.referrals import DiscoveryService


class DiscoveryWatch(Blocking[_DiscoveryWatch]):
    """A persistent connection to a discovery service: an iterator of :class:`DiscoveryChange`, for one thread.

    What :func:`watch_discovery` gives; ends with its ``with`` block. The first change is the log as it is, the others
    come when there are some. Ctrl-C ends the wait for one; a later wait misses nothing.
    """

    __slots__ = ()

    @property
    def service(self) -> DiscoveryService:
        """Where the discovery service is."""
        return self.wrapped.service

    @property
    def recovery(self) -> RecoveryOptions:
        """How a lost connection is made again."""
        return self.wrapped.recovery

    def __enter__(self) -> Self:
        PORTAL.run(self.wrapped.__aenter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Shut the discovery controller down in order. Safe to call twice."""
        PORTAL.run(self.wrapped.close())

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> DiscoveryChange:
        return PORTAL.run(self.wrapped.__anext__())
