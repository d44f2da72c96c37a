"""Reads the metrics of a target as Prometheus does: over HTTP, with the official parser."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping

from nvmeof.address import Address
from nvmeof.target.metrics.server import MetricsServer


async def ask(
    address: Address, request: bytes = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
) -> tuple[int, bytes, bytes]:
    """Send a request; return the status code, the header and the content of the answer."""
    reader, writer = await asyncio.open_connection(address.host, address.port)
    try:
        writer.write(request)
        answer = await asyncio.wait_for(reader.read(-1), 10)
    finally:
        writer.close()
    head, _, content = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), head, content


class Scrape:
    """One reading: samples by name and labels."""

    def __init__(self, text: str) -> None:
        from prometheus_client.parser import text_string_to_metric_families

        self.families = list(text_string_to_metric_families(text))

    def samples(self, name: str, **labels: str) -> Iterator[tuple[Mapping[str, str], float]]:
        """Return the samples of a name that have these labels."""
        for family in self.families:
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    yield sample.labels, sample.value

    def sum(self, name: str, **labels: str) -> float:
        """Add up the samples of a name that have these labels."""
        return sum(value for _, value in self.samples(name, **labels))

    def quantile(self, share: float, name: str, **labels: str) -> float:
        """Return what histogram_quantile of Prometheus does: seconds, interpolated within a bucket."""
        counts: dict[float, float] = {}
        for found, value in self.samples(f"{name}_bucket", **labels):
            bound = float(found["le"])
            counts[bound] = counts.get(bound, 0.0) + value
        bounds = sorted(counts)
        rank, below, before = share * counts[bounds[-1]], 0.0, 0.0
        for bound in bounds:
            if counts[bound] >= rank:
                return below + (bound - below) * (rank - before) / (counts[bound] - before)
            below, before = bound, counts[bound]
        raise AssertionError("no bucket has so many")


async def scrape(server: MetricsServer) -> Scrape:
    """Read the metrics of a server."""
    code, _, content = await ask(server.address)
    assert code == 200, content
    return Scrape(content.decode())
