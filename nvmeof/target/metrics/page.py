"""The page that Prometheus reads, as text in its exposition format, written by the official library."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

from nvmeof.errors import ConfigurationError
from nvmeof.target.meters import Meters
from nvmeof.target.metrics.families import Turn, families
from nvmeof.target.server import Target

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric


def check_available() -> None:
    """Raise `ConfigurationError` where the library is not installed."""
    try:
        import prometheus_client  # noqa: F401
    except ImportError:
        raise ConfigurationError(
            "metrics need the package prometheus_client: install it with `pip install 'nvmeof-mptcp[metrics]'`"
        ) from None


class _One:
    """A registry of one family, as the library's writer wants it."""

    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> Iterator[Metric]:
        yield self._family


class Page:
    """The page of one target: `chunks` gives it, `CONTENT_TYPE` of the library says what it is.

    Raises `ConfigurationError` where the library is not installed.
    """

    def __init__(self, target: Target, meters: Meters) -> None:
        check_available()
        from prometheus_client import CollectorRegistry, ProcessCollector

        self._target = target
        self._meters = meters
        self._process: CollectorRegistry = CollectorRegistry()
        ProcessCollector(registry=self._process)

    @property
    def content_type(self) -> str:
        """The value of Content-Type: the text format, version 0.0.4."""
        return "text/plain; version=0.0.4; charset=utf-8"

    async def chunks(self, turn: Turn) -> AsyncIterator[bytes]:
        """Write the page piece by piece; `turn` is awaited before each."""
        from prometheus_client import generate_latest

        written = ""
        async for family in families(self._target, self._meters, turn):
            registry: Any = _One(family)
            text = generate_latest(registry)
            if family.name == written:  # a further piece: what it is was said above the first
                text = text.split(b"\n", 2)[2]
            written = family.name
            yield text
        await turn()
        yield generate_latest(self._process)
