"""The metrics of a target, read over HTTP and parsed by Prometheus' own library."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from nvmeof import NamespaceConfig, Target, connect
from nvmeof.address import Address
from nvmeof.errors import ConfigurationError, NvmeofError, TransportError
from nvmeof.spec.enums import NvmOpcode
from nvmeof.target.core.rate_limits import RateLimit
from nvmeof.target.meters import OTHER_HOSTS, Meters
from nvmeof.target.metrics import server as server_module
from nvmeof.target.metrics.families import SUBFLOW_LABELS
from nvmeof.target.metrics.server import MetricsServer
from nvmeof.target.storage.filter import Kind
from nvmeof.target.storage.filters.delay import DelayFilter
from nvmeof.target.storage.ramdisk import Ramdisk
from nvmeof.trace import Counts, join
from tests.target.metrics.scraping import ask, scrape

pytest.importorskip("prometheus_client", reason="pip install 'nvmeof-mptcp[metrics]'")
HOST = "nqn.2026-01.org.example:host-%d"


@asynccontextmanager
async def serving(target: Target) -> AsyncIterator[MetricsServer]:
    server = MetricsServer(target, Address("127.0.0.1", 0))
    async with target:
        await server.start()
        try:
            yield server
        finally:
            await server.stop()


def make(*, latency: bool = True, trtype: str = "tcp", delay: float = 0.0, hosts: int = 64, **more) -> Target:
    backend = DelayFilter(Ramdisk("16M"), {Kind.READ: delay}) if delay else Ramdisk("16M")
    meters = Meters(time.perf_counter if latency else None, hosts)
    return Target(namespaces=[NamespaceConfig(backend=backend)], trtype=trtype, meters=meters, **more)


def to(target: Target, number: int = 1, **more):
    address = target.address
    transport = target.config.ports[0].transport
    return connect(address.host, address.port, subnqn=target.subnqn, transport=transport, hostnqn=HOST % number, **more)


@pytest.mark.parametrize("latency", [True, False])
@pytest.mark.parametrize("trace", [True, False])
async def test_commands_are_counted_by_all_labels(latency: bool, trace: bool) -> None:
    counts = Counts()
    target = make(latency=latency, trace=join(counts) if trace else None)
    async with serving(target) as server:
        async with await to(target) as controller:
            namespace = controller.namespace(1)
            await asyncio.gather(*(namespace.read(8 * index, 8) for index in range(40)))
            await asyncio.gather(*(namespace.write(8 * index, bytes(4096)) for index in range(10)))
            await namespace.write(0, bytes(64 << 10))  # with an R2T
            with pytest.raises(NvmeofError):
                await namespace.read(1 << 40, 8)
            while_open = await scrape(server)
        after = await scrape(server)
    for found in (while_open, after):
        labels = {"subsystem": target.subnqn, "nsid": "1", "host": HOST % 1, "port": "1"}
        assert found.sum("nvmeof_commands_total", command="read", **labels) == 41
        assert found.sum("nvmeof_commands_total", command="write", **labels) == 11
        assert found.sum("nvmeof_command_data_bytes_total", command="read", **labels) == 40 * 4096
        assert found.sum("nvmeof_command_data_bytes_total", command="write", **labels) == 10 * 4096 + (64 << 10)
        assert found.sum("nvmeof_command_errors_total", status="lba_out_of_range", command="read", **labels) == 1
        assert found.sum("nvmeof_commands_total", command="connect", nsid="0") >= 2
        if latency:
            name = "nvmeof_command_duration_seconds"
            assert found.sum(f"{name}_count", command="read", nsid="1") == 41
            assert found.sum(f"{name}_bucket", command="write", nsid="1", le="+Inf") == 11
            assert 0 < found.sum(f"{name}_sum", command="read", nsid="1") < 10
            assert found.sum("nvmeof_host_command_duration_seconds_count", command="read", host=HOST % 1) == 41
        else:
            assert not [*found.samples("nvmeof_command_duration_seconds_bucket")]
    if trace:
        assert counts.completed[NvmOpcode.READ] >= 41


async def test_connections_and_paths() -> None:
    target = make()
    async with serving(target) as server:
        async with await to(target, nr_io_queues=2) as controller:
            await controller.namespace(1).read(0, 8)
            found = await scrape(server)
            assert found.sum("nvmeof_connections", kind="io", protocol="tcp", port="1") == 2
            assert found.sum("nvmeof_connections", kind="admin") == 1
            assert found.sum("nvmeof_controllers", subsystem=target.subnqn) == 1
            assert found.sum("nvmeof_path_subflows", local="127.0.0.1", peer="127.0.0.1") == 3
            (labels, _), *_ = found.samples("nvmeof_subflow_rtt_seconds", queue="1")
            assert set(labels) == set(SUBFLOW_LABELS)
            sent = found.sum("nvmeof_path_sent_bytes_total")
            assert sent > 4096
        while target.drivers:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        after = await scrape(server)
        assert after.sum("nvmeof_connections") == 0
        assert after.sum("nvmeof_path_subflows") == 0
        assert after.sum("nvmeof_path_sent_bytes_total") >= sent
        assert after.sum("nvmeof_connections_accepted_total") == 3
        assert after.sum("nvmeof_connections_ended_total") == 3


async def test_keep_alive_timeouts_and_refusals() -> None:
    target = make(allowed_hosts=[HOST % 1])
    async with serving(target) as server:
        with pytest.raises(NvmeofError):
            await to(target, 2)
        async with await to(target):
            for each in [*target.subsystems[target.subnqn].controllers.values()]:
                each._expired()
            found = await scrape(server)
    assert found.sum("nvmeof_keep_alive_timeouts_total", subsystem=target.subnqn) == 1
    assert found.sum("nvmeof_command_errors_total", command="connect", status="connect_invalid_parameters") == 1


async def test_the_names_of_hosts_are_bounded() -> None:
    target = make(hosts=2)
    async with serving(target) as server:
        for number in range(5):
            async with await to(target, number) as controller:
                await controller.namespace(1).read(0, 8)
        found = await scrape(server)
    hosts = {labels["host"] for labels, _ in found.samples("nvmeof_commands_total", command="read")}
    assert hosts == {HOST % 0, HOST % 1, OTHER_HOSTS}
    assert found.sum("nvmeof_commands_total", command="read", host=OTHER_HOSTS) == 3


async def test_nsids_that_are_none_have_one_series() -> None:
    target = make()
    async with serving(target) as server, await to(target) as controller:
        for nsid in range(100, 130):
            with pytest.raises(NvmeofError):
                await controller.io_passthru(NvmOpcode.READ, nsid=nsid, data_bytes=512)
        found = await scrape(server)
    series = [labels for labels, _ in found.samples("nvmeof_commands_total", command="read")]
    assert [each["nsid"] for each in series] == ["0"]
    assert found.sum("nvmeof_command_errors_total", command="read", nsid="0") == 30


async def test_commands_that_wait_for_a_limit_are_shown() -> None:
    target = make()
    async with serving(target) as server:
        assert (await scrape(server)).sum("nvmeof_commands_waiting_for_limits") == 0
        target.administration.set_namespace_limit(1, RateLimit(operations_per_second=1, burst_seconds=1))
        async with await to(target) as controller:
            reads = [asyncio.ensure_future(controller.namespace(1).read(0, 8)) for _ in range(5)]
            await reads[0]
            assert (await scrape(server)).sum("nvmeof_commands_waiting_for_limits") >= 3
            target.administration.set_namespace_limit(1, None)
            for read in reads:
                read.cancel()
            await asyncio.gather(*reads, return_exceptions=True)


@pytest.mark.timing
async def test_quantiles_are_those_that_the_host_sees() -> None:
    target = make(delay=0.06)
    times: list[float] = []
    async with serving(target) as server:
        async with await to(target) as controller:
            namespace = controller.namespace(1)

            async def one(index: int) -> None:
                for _ in range(6):
                    began = time.perf_counter()
                    await namespace.read(8 * index, 8)
                    times.append(time.perf_counter() - began)

            await asyncio.gather(*map(one, range(8)))
        found = await scrape(server)
    times.sort()
    for share in (0.5, 0.8):  # of 48: the last ones are those that a busy machine has disturbed
        ours = found.quantile(share, "nvmeof_command_duration_seconds", command="read", nsid="1")
        theirs = times[int(share * (len(times) - 1))]
        assert 0.75 * theirs - 0.002 < ours < 1.25 * theirs + 0.002  # a fifth, and what a busy machine adds


async def test_page_in_many_pieces_has_each_header_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nvmeof.target.metrics.families.PIECE_SERIES", 1)
    target = make()
    async with serving(target) as server:
        async with await to(target) as controller:
            await controller.namespace(1).read(0, 8)
        _, _, content = await ask(server.address)
    lines = content.decode().splitlines()
    types = [line for line in lines if line.startswith("# TYPE")]
    assert len(types) == len(set(types))
    assert sum(line.startswith("nvmeof_commands_total{") for line in lines) > 3


@pytest.mark.parametrize(
    ("request_bytes", "code"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 404),
        (b"POST /metrics HTTP/1.1\r\n\r\n", 405),
        (b"\x00\x01\x02 garbage\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nX: " + b"y" * 10000 + b"\r\n\r\n", 400),
        (b"HEAD /metrics HTTP/1.1\r\n\r\n", 200),
        (b"GET /metrics?x=y HTTP/1.0\r\n\r\n", 200),
    ],
)
async def test_requests(request_bytes: bytes, code: int) -> None:
    async with serving(make()) as server:
        got, head, content = await ask(server.address, request_bytes)
    assert got == code
    assert (b"text/plain; version=0.0.4" in head) == (code == 200)
    assert (content == b"") == request_bytes.startswith(b"HEAD")


async def test_clients_that_say_nothing_do_not_keep_others_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "CLIENTS_MOST", 3)
    monkeypatch.setattr(server_module, "REQUEST_SECONDS", 0.2)
    async with serving(make()) as server:
        address = server.address
        silent = [await asyncio.open_connection(address.host, address.port) for _ in range(2)]
        await asyncio.sleep(0.05)
        assert (await ask(address))[0] == 503
        for reader, _ in silent:
            assert await asyncio.wait_for(reader.read(), 5) == b""
        assert (await ask(address))[0] == 200
        for _, writer in silent:
            writer.close()


async def test_one_address_does_not_keep_another_out() -> None:
    async with serving(make()) as server:
        address = server.address
        silent = [await asyncio.open_connection(address.host, address.port) for _ in range(server_module.CLIENTS_MOST)]
        await asyncio.sleep(0.1)
        assert (await ask(address))[0] == 503
        other = await asyncio.open_connection(address.host, address.port, local_addr=("127.0.0.2", 0))
        other[1].write(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert (await other[0].read()).startswith(b"HTTP/1.1 200 OK")
        for _, writer in (*silent, other):
            writer.close()


async def test_a_client_that_does_not_read_its_page_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the kernel takes of the page, no part of it stays in this process for as long as the client likes."""
    monkeypatch.setattr(server_module, "ANSWER_SECONDS", 0.2)
    writers: list[asyncio.StreamWriter] = []
    async with serving(make()) as server:
        answer = server._answer

        async def watched(writer: asyncio.StreamWriter, *args, **more) -> None:
            writers.append(writer)
            await answer(writer, *args, **more)

        monkeypatch.setattr(server, "_answer", watched)
        clients = []
        for size in range(2 << 20, 4 << 20, 64 << 10):

            async def chunks(turn, size: int = size):
                yield bytes(size)

            monkeypatch.setattr(server._page, "chunks", chunks)
            client = socket.socket()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect((server.address.host, server.address.port))
            client.send(b"GET /metrics HTTP/1.1\r\n\r\n")
            clients.append(client)
            await asyncio.sleep(0.01)
        await asyncio.sleep(1.0)
        assert len(writers) == len(clients) and sum(each.transport.get_write_buffer_size() for each in writers) == 0
        assert server._shares.taken == 0
        for client in clients:
            client.close()


async def test_what_cannot_be_served() -> None:
    with pytest.raises(ConfigurationError, match="counts nothing"):
        MetricsServer(Target(namespaces=[Ramdisk("1M")]), Address("127.0.0.1", 0))
    async with serving(make()) as server:
        other = MetricsServer(server._target, server.address)
        with pytest.raises(TransportError, match="cannot listen on"):
            await other.start()


async def test_a_missing_library_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'nvmeof-mptcp\[metrics\]'"):
        MetricsServer(make(), Address("127.0.0.1", 0))
