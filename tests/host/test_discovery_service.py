"""Discovery against our own target: referrals end, and changes of the log are reported at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

import nvmeof
from nvmeof import Ramdisk, Target, TransportError, discover_all, watch_discovery
from nvmeof.errors import ConfigurationError, NvmeofError
from nvmeof.host.device_registry import DeviceRegistry
from nvmeof.protocol.connection import ConnectionConfig
from nvmeof.spec.discovery import build_discovery_entry, build_discovery_log
from nvmeof.spec.enums import DISCOVERY_NQN
from nvmeof.target.subsystem.config import SubsystemConfig

from .conftest import HOSTNQN
from .fake_device import SUBNQN, FakeDevice
from .fake_target import FakeTarget

OTHER = "nqn.2026-01.org.example:other"
OPTIONS = {"transport": "tcp", "hostnqn": HOSTNQN}


@pytest.fixture
async def target() -> AsyncIterator[Target]:
    async with Target(namespaces=[Ramdisk("1M")], trtype="tcp", listen="127.0.0.1:0") as made:
        yield made


async def test_a_change_of_the_log_is_reported(target: Target) -> None:
    async with asyncio.timeout(60), watch_discovery("127.0.0.1", target.address.port, transport="tcp") as watch:
        first = await anext(watch)
        assert [entry.subnqn for entry in first.added] == [DISCOVERY_NQN, target.subnqn]
        await target.administration.add_subsystem(SubsystemConfig(nqn=OTHER))
        target.administration.link_all_subsystems(1)
        change = await anext(watch)
        while not change.added:
            change = await anext(watch)
        assert [entry.subnqn for entry in change.added] == [OTHER]
        assert change.removed == ()
        await target.administration.remove_subsystem(OTHER)
        change = await anext(watch)
        assert ([entry.subnqn for entry in change.removed], change.added) == ([OTHER], ())
        assert change.log.genctr > first.log.genctr


async def test_a_wait_that_was_cancelled_misses_nothing(target: Target) -> None:
    async with asyncio.timeout(60), watch_discovery("127.0.0.1", target.address.port, transport="tcp") as watch:
        await anext(watch)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await anext(watch)
        await target.administration.add_subsystem(SubsystemConfig(nqn=OTHER))
        target.administration.link_all_subsystems(1)
        assert [entry.subnqn for entry in (await anext(watch)).added] == [OTHER]


async def test_changes_during_a_lost_connection_are_one_change() -> None:
    async with asyncio.timeout(60):
        first = Target(namespaces=[Ramdisk("1M")], trtype="tcp", listen="127.0.0.1:0")
        await first.start()
        port = first.address.port
        async with watch_discovery("127.0.0.1", port, transport="tcp", reconnect_delay=0.05) as watch:
            assert len((await anext(watch)).added) == 2
            waiting = asyncio.ensure_future(anext(watch))
            await first.stop()
            async with Target(subnqn=OTHER, namespaces=[Ramdisk("1M")], trtype="tcp", listen=f"127.0.0.1:{port}"):
                change = await waiting
                assert [entry.subnqn for entry in change.added] == [OTHER]
                assert [entry.subnqn for entry in change.removed] == [first.subnqn]
                assert change.reconnected


async def test_a_reconnected_service_is_reported_though_nothing_changed(target: Target) -> None:
    port = target.address.port
    async with asyncio.timeout(60):
        async with watch_discovery("127.0.0.1", port, transport="tcp", reconnect_delay=0.05) as watch:
            assert not (await anext(watch)).reconnected
            waiting = asyncio.ensure_future(anext(watch))
            await target.stop()
            async with Target(namespaces=[Ramdisk("1M")], trtype="tcp", listen=f"127.0.0.1:{port}"):
                change = await waiting
        assert (change.added, change.removed, change.reconnected) == ((), (), True)


async def test_a_service_that_does_not_come_back_is_an_error(target: Target) -> None:
    options = {"reconnect_delay": 0.01, "ctrl_loss_tmo": 0.05}
    async with (
        asyncio.timeout(60),
        watch_discovery("127.0.0.1", target.address.port, transport="tcp", **options) as watch,
    ):
        await anext(watch)
        await target.stop()
        with pytest.raises(TransportError):
            await anext(watch)


async def test_a_service_that_cannot_be_watched_is_explained(device: FakeDevice) -> None:
    with pytest.raises(ConfigurationError, match="needs a keep_alive_tmo"):
        watch_discovery("127.0.0.1", keep_alive_tmo=0)
    with pytest.raises(ConfigurationError, match="reconnect_delay must be"):
        watch_discovery("127.0.0.1", reconnect_delay=-1)
    fake = FakeTarget(device, "tcp", ConnectionConfig())
    await fake.start()
    try:
        with pytest.raises(NvmeofError, match="does not report changes of its log"):
            async with watch_discovery("127.0.0.1", fake.port, transport="tcp", hostnqn=HOSTNQN):
                pass
    finally:
        await fake.stop()


async def test_referrals_over_real_connections(target: Target, device: FakeDevice) -> None:
    fake = FakeTarget(device, "tcp", ConnectionConfig())
    await fake.start()

    def refer(port: int) -> bytes:
        return build_discovery_entry(
            trtype=3, adrfam=1, subtype=1, trsvcid=str(port), subnqn=DISCOVERY_NQN, traddr="127.0.0.1"
        )

    own = build_discovery_entry(
        trtype=3, adrfam=1, subtype=2, trsvcid=str(fake.port), subnqn=SUBNQN, traddr="127.0.0.1"
    )
    device.discovery_log = build_discovery_log(1, [refer(target.address.port), own, refer(fake.port), refer(1)])
    try:
        async with asyncio.timeout(60):
            found = await discover_all("localhost", fake.port, **OPTIONS)
    finally:
        await fake.stop()
    assert [entry.subnqn for entry in found.entries] == [DISCOVERY_NQN, target.subnqn, SUBNQN]
    itself, nowhere = found.left_out
    assert itself == f"left out a referral of localhost:{fake.port}: it leads to the same service"
    assert nowhere.startswith(f"left out the referral of localhost:{fake.port} to 127.0.0.1:1: ")


async def test_the_first_service_must_be_there() -> None:
    with pytest.raises(TransportError):
        await nvmeof.discover_all("127.0.0.1", 1, **OPTIONS)
    with pytest.raises(ConfigurationError):
        await discover_all("127.0.0.1", 1, transport="none", registry=DeviceRegistry())
