"""A target with a zoned namespace, for tests of its commands."""

from nvmeof.spec.zns import ZoneSendAction, ZoneState
from nvmeof.target.namespaces.zone_geometry import ZoneGeometry
from nvmeof.target.storage.ramdisk import Ramdisk
from nvmeof.target.subsystem.config import NamespaceConfig
from tests.target.harness import Target
from tests.target.zone_tools import BLOCK, ZONE, send, write

CAPACITY = 48
ZONES = 32


def make(**geometry):
    given = {"zone_bytes": ZONE * BLOCK, "capacity_bytes": CAPACITY * BLOCK, "extension_bytes": 128, **geometry}
    target = Target()
    target.subsystem.add_namespace(NamespaceConfig(backend=Ramdisk("1M"), zoned=ZoneGeometry(**given)))
    return target


def io(target=None, **geometry):
    target = target or make(**geometry)
    return target.io(target.admin())


def zones_of(queue):
    return queue.ctx.namespaces[2].zones


def refused(queue, completion, status, location=40):
    assert completion.status == status
    assert queue.controller.error_log.newest()[0].error_location == location


def states(queue):
    """Return zones in all states from zone 0 on, in the order of the reporting options."""
    zones = zones_of(queue)
    write(queue, ZONE, bytes(BLOCK))
    send(queue, ZoneSendAction.OPEN, 2 * ZONE)
    write(queue, 3 * ZONE, bytes(BLOCK))
    send(queue, ZoneSendAction.CLOSE, 3 * ZONE)
    send(queue, ZoneSendAction.FINISH, 4 * ZONE)
    zones.degrade(zones.zones[5])
    zones.degrade(zones.zones[6], readable=False)
    return [ZoneState.EMPTY, *(zone.state for zone in zones.zones[1:7])]
