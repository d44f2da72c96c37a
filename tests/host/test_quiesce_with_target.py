"""The target's Command Quiesce Time, as it is reported to hosts."""

from __future__ import annotations

import pytest

from nvmeof import Ramdisk, Target, connect
from nvmeof.target.server import _TICK_SECONDS
from nvmeof.target.subsystem import config
from nvmeof.target.subsystem.config import NamespaceConfig, PortConfig, SubsystemConfig, TargetConfig

from .conftest import HOSTNQN

NQN = "nqn.2026-01.org.example:quiesce"


def test_a_loss_is_noticed_within_the_time_that_cqt_counts_for_it() -> None:
    assert _TICK_SECONDS <= config.NOTICE_SECONDS


@pytest.mark.parametrize("seconds", [config.COMMAND_QUIESCE_SECONDS, 0.0, 12.345])
async def test_the_command_quiesce_time_is_reported_to_hosts(seconds: float) -> None:
    namespaces = (NamespaceConfig(backend=Ramdisk("1M")),)
    subsystem = SubsystemConfig(nqn=NQN, namespaces=namespaces, command_quiesce_seconds=seconds)
    port = PortConfig(transport="memory", host="quiesce", port=0)
    async with (
        Target(TargetConfig(subsystems=(subsystem,), ports=(port,))) as target,
        await connect(
            target.address.host, target.address.port, subnqn=NQN, transport="memory", hostnqn=HOSTNQN
        ) as controller,
    ):
        assert controller.info.cqt == round(seconds * 1000)
