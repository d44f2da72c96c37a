"""A target with zones as a process: its output, and the state of its zones after a kill."""

from __future__ import annotations

import asyncio
import signal

from nvmeof import connect
from nvmeof.spec.zns import ZoneState, parse_zone_report
from tests.target.test_main import SECONDS, served

ZONE = 2048  # blocks


def host(target):
    address = target.address
    return connect(address.host, address.port, transport="tcp", subnqn=target.subnqn, nr_io_queues=1)


async def test_a_killed_target(tmp_path):
    words = ("--file", f"{tmp_path / 'disk'},zoned,zone-size=1M,max-open=2", "--size", "8M")
    async with served(*words) as target:
        (namespace,) = target.told["namespaces"]
        assert namespace["zoned"] == {
            "zones": 8, "zone_bytes": 1 << 20, "capacity_bytes": 1 << 20, "max_open": 2, "max_active": 0,
            "extension_bytes": 0, "description": "zones of 1M, at most 2 open",
        }  # fmt: skip
        async with await host(target) as controller:
            places = [
                (await controller.io_passthru(0x7D, nsid=1, data=b"%4d" % number * 128, cdw10=ZONE)).result
                for number in range(40)
            ]
            assert places == list(range(ZONE, ZONE + 40))
            await controller.io_passthru(0x79, nsid=1, cdw10=3 * ZONE, cdw13=2)
            target.process.send_signal(signal.SIGKILL)
            await asyncio.wait_for(target.process.wait(), SECONDS)
    async with served(*words) as target, await host(target) as controller:
        zones = parse_zone_report((await controller.io_passthru(0x7A, nsid=1, data_bytes=1024, cdw12=255)).data)[1]
        states = {zone.zslba // ZONE: zone.state for zone in zones if zone.state is not ZoneState.EMPTY}
        assert states == {1: ZoneState.CLOSED, 3: ZoneState.FULL} and zones[1].wp == ZONE + 40
        data = (await controller.io_passthru(0x02, nsid=1, data_bytes=41 * 512, cdw10=ZONE, cdw12=40)).data
        assert data == b"".join(b"%4d" % number * 128 for number in range(40)) + bytes(512)
