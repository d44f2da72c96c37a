"""Limits that an operator sets: on the command line, in documents, while it runs; and what hosts are told beyond."""

from __future__ import annotations

import asyncio
import resource
import time
from dataclasses import replace

import pytest

from nvmeof import NamespaceConfig, Target, connect
from nvmeof.errors import ConfigurationError, NvmeofError, NvmeStatusError
from nvmeof.spec.status import Status
from nvmeof.target.cli import limits as cli_limits
from nvmeof.target.cli.limits import parse_keep_alive_range, raise_file_limit
from nvmeof.target.cli.options import Options, make_target
from nvmeof.target.configuration.difference import apply, difference
from nvmeof.target.core.connection_limits import FILES_KEPT
from nvmeof.target.core.rate_limits import RateLimit
from nvmeof.target.document import from_document, to_document
from nvmeof.target.storage.ramdisk import Ramdisk
from nvmeof.target.subsystem.config import PortConfig, SubsystemConfig, TargetConfig

NQN = "nqn.2026-01.org.example:limited"
HOST = "nqn.2026-01.org.example:host-%d"
SLOW = RateLimit(operations_per_second=20, burst_seconds=0.1)


def config(**options) -> TargetConfig:
    limit = options.pop("rate_limit", None)
    namespace = NamespaceConfig(backend=Ramdisk("1M"), nsid=1, rate_limit=limit)
    subsystem = SubsystemConfig(nqn=NQN, namespaces=(namespace,), **options)
    return TargetConfig(subsystems=(subsystem,), ports=(PortConfig(transport="tcp", host="127.0.0.1", port=0),))


def to(target: Target, number: int = 1, **options):
    address = target.address
    options = {"transport": "tcp", "hostnqn": HOST % number, **options}
    return connect(address.host, address.port, subnqn=NQN, **options)


async def seconds_of(controller, count: int) -> float:
    began = time.monotonic()
    await asyncio.gather(*(controller.namespace(1).read(0, 1) for _ in range(count)))
    return time.monotonic() - began


async def test_a_namespace_limit_makes_commands_wait_and_none_fail() -> None:
    async with Target(config(rate_limit=SLOW)) as target, await to(target) as controller:
        assert await seconds_of(controller, 24) > 1.0
        assert target.connections.throttle is not None
        assert target.connections.throttle.waiting == 0


async def test_limits_are_changed_while_it_runs_and_saved() -> None:
    async with Target(config(host_limit=SLOW)) as target, await to(target) as controller:
        administration = target.administration
        assert await seconds_of(controller, 12) > 0.35
        assert administration.set_host_limit(HOST % 1, RateLimit(operations_per_second=10**6)) == []
        assert await seconds_of(controller, 12) < 0.35
        assert administration.set_namespace_limit(1, SLOW) == []
        (described,) = administration.describe()["subsystems"]
        assert described["namespaces"][0]["rate_limit"]["operations_per_second"] == 20
        assert described["host_limit"]["operations_per_second"] == 20
        assert described["host_limits"][HOST % 1]["operations_per_second"] == 10**6
        assert await seconds_of(controller, 12) > 0.35
        saved = from_document(administration.save()).config
        assert saved.subsystems[0].namespaces[0].rate_limit == SLOW
        assert saved.subsystems[0].host_limit == SLOW
        assert saved.subsystems[0].host_limits == ((HOST % 1, RateLimit(operations_per_second=10**6)),)
        assert administration.set_namespace_limit(1, None) == []
        assert await seconds_of(controller, 12) < 0.35
        with pytest.raises(ConfigurationError, match="no namespace 7"):
            administration.set_namespace_limit(7, SLOW)


async def test_the_first_limit_of_a_target_holds_for_queues_that_connect_then() -> None:
    async with Target(config()) as target:
        async with await to(target) as controller:
            (said,) = target.administration.set_namespace_limit(1, SLOW)
            assert said.endswith("its queue is limited when it has connected again")
            assert await seconds_of(controller, 12) < 0.35
        async with await to(target) as controller:
            assert await seconds_of(controller, 12) > 0.35


async def test_a_reload_changes_limits_and_nothing_else() -> None:
    old = config(rate_limit=SLOW)
    async with Target(old) as target, await to(target) as controller:
        (subsystem,) = old.subsystems
        namespace = replace(subsystem.namespaces[0], rate_limit=None)
        new = replace(old, subsystems=(replace(subsystem, namespaces=(namespace,), host_limits=((HOST % 9, SLOW),)),))
        settings = target.settings
        plan = difference(target.administration, settings, replace(settings, config=new))
        assert await apply(plan) == [
            f"{NQN}: rate limit of {HOST % 9} changed",
            f"{NQN}: rate limit of namespace 1 changed",
        ]
        assert await seconds_of(controller, 12) < 0.35


async def test_controllers_are_limited_in_all_and_per_host() -> None:
    async with Target(config(max_controllers=3, max_controllers_per_host=2)) as target:
        async with await to(target), await to(target), await to(target, 2):
            for number in (1, 3):
                with pytest.raises(NvmeStatusError) as refused:
                    await to(target, number)
                assert refused.value.status == Status.CONNECT_CONTROLLER_BUSY
                assert not refused.value.dnr
        async with await to(target, 3):
            pass


@pytest.mark.parametrize(("seconds", "good"), [(4, False), (5, True), (30, True), (31, False), (0, True)])
async def test_keep_alive_timeouts_have_a_range(seconds: int, good: bool) -> None:
    async with Target(config(keep_alive_min_seconds=5, keep_alive_max_seconds=30)) as target:
        if good:
            async with await to(target, keep_alive_tmo=seconds):
                pass
        else:
            with pytest.raises(NvmeStatusError) as refused:
                await to(target, keep_alive_tmo=seconds)
            assert refused.value.status == Status.KEEP_ALIVE_INVALID


async def test_connections_are_limited() -> None:
    async with Target(replace(config(), max_connections=6)) as target:
        async with await to(target, nr_io_queues=2):
            with pytest.raises(NvmeofError):
                await to(target, 2, nr_io_queues=2)
        assert target.connections.refused >= 1


def test_all_limits_of_the_command_line() -> None:
    target = make_target(
        Options(
            ramdisk=("1M", "2M"),
            max_controllers=9,
            max_controllers_per_host=2,
            max_connections=100,
            max_h2c_data="64K",
            memory="32M",
            keep_alive_range="5-120",
            rate_limit=("namespace:2,bytes=1M", f"host:{HOST % 1},operations=5,burst=1", "host:*,bytes=2M"),
        )
    )
    (subsystem,) = target.config.subsystems
    assert (subsystem.max_controllers, subsystem.max_controllers_per_host) == (9, 2)
    assert (subsystem.keep_alive_min_seconds, subsystem.keep_alive_max_seconds) == (5, 120)
    assert [each.rate_limit for each in subsystem.namespaces] == [None, RateLimit(bytes_per_second=1 << 20)]
    assert subsystem.host_limit == RateLimit(bytes_per_second=2 << 20)
    assert dict(subsystem.host_limits) == {HOST % 1: RateLimit(operations_per_second=5, burst_seconds=1)}
    assert (target.config.max_connections, target.config.staging_bytes) == (100, 32 << 20)
    assert target.settings.connection.maxh2cdata_bytes == 64 << 10
    assert from_document(to_document(target.settings)).config.subsystems[0].host_limits == subsystem.host_limits


@pytest.mark.parametrize(
    "text", ["namespace:1", "namespace:3,bytes=1M", "port:1,bytes=1M", "namespace:x,bytes=1M", "host:,bytes=1M"]
)
def test_rate_limits_that_cannot_be(text: str) -> None:
    with pytest.raises(ConfigurationError):
        make_target(Options(ramdisk=("1M",), rate_limit=(text,)))


@pytest.mark.parametrize("text", ["5", "a-b", "10-5"])
def test_ranges_that_are_none(text: str) -> None:
    with pytest.raises(ConfigurationError):
        least, most = parse_keep_alive_range(text)
        SubsystemConfig(nqn=NQN, keep_alive_min_seconds=least, keep_alive_max_seconds=most)


@pytest.mark.parametrize(
    "options",
    [{"max_controllers": -1}, {"max_controllers_per_host": 1 << 20}, {"host_limits": ((HOST % 1, SLOW),) * 2}],
)
def test_limits_that_cannot_be(options) -> None:
    with pytest.raises(ConfigurationError):
        config(**options)


class FakeResource:
    RLIMIT_NOFILE, RLIM_INFINITY = resource.RLIMIT_NOFILE, resource.RLIM_INFINITY

    def __init__(self, soft: int, hard: int, *, privileged: bool) -> None:
        self.limits, self.privileged = (soft, hard), privileged

    def getrlimit(self, which: int) -> tuple[int, int]:
        return self.limits

    def setrlimit(self, which: int, limits: tuple[int, int]) -> None:
        if limits[1] > self.limits[1] and not self.privileged:
            raise ValueError("not allowed to raise maximum limit")
        self.limits = limits


@pytest.mark.parametrize(
    ("soft", "hard", "privileged", "found"),
    [
        (1024, 4096, False, (4096, 4096)),
        (1024, 1 << 20, False, (65536, 1 << 20)),
        (1024, resource.RLIM_INFINITY, False, (65536, resource.RLIM_INFINITY)),
        (1024, 1024, True, (1000 + FILES_KEPT, 1000 + FILES_KEPT)),
        (512, 1024, False, (1024, 1024)),
        (5000, 5000, False, (5000, 5000)),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, False, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)),
    ],
)
def test_open_files(monkeypatch, caplog, soft: int, hard: int, privileged: bool, found: tuple[int, int]) -> None:
    fake = FakeResource(soft, hard, privileged=privileged)
    monkeypatch.setattr(cli_limits, "resource", fake)
    with caplog.at_level("INFO"), caplog.at_level("INFO", logger="nvmeof.target"):
        raise_file_limit(1000)
    assert fake.limits == found
    assert ("--max-connections" in caplog.text) == (found == (1024, 1024))
