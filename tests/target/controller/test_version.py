"""What the version that is advertised makes mandatory (NVMe Base 2.1 and NVM Command Set), as data."""

from __future__ import annotations

import asyncio

import pytest

from nvmeof.spec.enums import Cmic, Ctratt, FabricsType, Lpa, Oacs, Oncs
from nvmeof.spec.identify import IDENTIFY_CONTROLLER, parse_namespace_descriptors
from nvmeof.spec.properties import CAP_OFFSET, CC_OFFSET, CRTO_OFFSET, CSTS_OFFSET, NSSR_OFFSET, VS_OFFSET, Cap, Vs
from nvmeof.spec.status import Status
from nvmeof.target.commands.table import lookup
from nvmeof.target.storage.file import FileBackend
from nvmeof.target.storage.ramdisk import Ramdisk
from tests.target.harness import ADMIN, DISCOVERY, FABRICS_ADMIN, FABRICS_IO, NVM, Target, TestQueue

# Admin commands, Fabrics commands, I/O commands, log pages, features and Identify structures that have to be there.
IO_CONTROLLER = {
    "admin": {0x02, 0x06, 0x08, 0x09, 0x0A, 0x0C, 0x18},
    "io": {0x00, 0x01, 0x02},
    "logs": {0x00, 0x01, 0x02, 0x03, 0x05, 0x12},
    "features": {0x01, 0x02, 0x04, 0x05, 0x07, 0x0A, 0x0B, 0x0F},
    "identify": {0x00, 0x01, 0x02, 0x03, 0x05, 0x06, 0x07, 0x08, 0x1C},  # 1Ch: CAP.CSS has selectable sets
}
# With explicit persistent connections (a host may set KATO), and Set Features.
DISCOVERY_CONTROLLER = {
    "admin": {0x02, 0x06, 0x09, 0x0A, 0x0C, 0x18},
    "io": set(),
    "logs": {0x00, 0x05, 0x12, 0x70},
    "features": {0x0B, 0x0F},
    "identify": {0x01},
}
# Prohibited on a discovery controller, of what an I/O controller has.
DISCOVERY_PROHIBITED = {
    "admin": {0x0D, 0x10, 0x11, 0x14, 0x15, 0x19, 0x1A, 0x80, 0x81, 0x82, 0x84},
    "logs": {0x02, 0x03, 0x04, 0x06, 0x07, 0x08, 0x09, 0x0C, 0x0D, 0x0E, 0x0F, 0x80, 0x81},
    "features": set(range(256)) - {0x0B, 0x0F, 0x78, 0x79, 0x7D, 0x7E, 0x7F},
}
FABRICS = {FabricsType.PROPERTY_SET, FabricsType.CONNECT, FabricsType.PROPERTY_GET}
PROPERTIES = {CAP_OFFSET: 1, VS_OFFSET: 0, CC_OFFSET: 0, CSTS_OFFSET: 0, CRTO_OFFSET: 0}

# Bits of Identify Controller, and the commands, log pages, features and structures that each bit announces.
ONCS = {
    Oncs.COMPARE: ("io", {0x05}),
    Oncs.WRITE_UNCORRECTABLE: ("io", {0x04}),
    Oncs.DATASET_MANAGEMENT: ("io", {0x09}),
    Oncs.WRITE_ZEROES: ("io", {0x08}),
    Oncs.VERIFY: ("io", {0x0C}),
    Oncs.COPY: ("io", {0x19}),
    Oncs.RESERVATIONS: ("io", {0x0D, 0x0E, 0x11, 0x15}),
    Oncs.TIMESTAMP: ("features", {0x0E}),
}
OACS = {
    Oacs.SECURITY: ("admin", {0x81, 0x82}),
    Oacs.FORMAT_NVM: ("admin", {0x80}),
    Oacs.NAMESPACE_MANAGEMENT: ("admin", {0x0D, 0x15}),
    Oacs.DEVICE_SELF_TEST: ("admin", {0x14}),
    Oacs.GET_LBA_STATUS: ("admin", {0x86}),
}
IMPLIED = {  # a command, and what it requires
    0x0D: {"identify": {0x10, 0x11, 0x12, 0x13, 0x1A, 0x1B}, "logs": {0x04}},
    0x14: {"logs": {0x06}},
    0x84: {"logs": {0x81}},
}
LPA = {
    Lpa.COMMANDS_SUPPORTED_AND_EFFECTS: {0x05},
    Lpa.TELEMETRY: {0x07, 0x08},
    Lpa.PERSISTENT_EVENTS: {0x0D},
    Lpa.SUPPORTED_LOG_PAGES: {0x00, 0x05, 0x12, 0x13},
}
RESERVATIONS = {"features": {0x81, 0x82, 0x83}, "logs": {0x80}}
ENDURANCE_GROUPS = {"logs": {0x09}, "identify": {0x19}}


def offered(queue: TestQueue) -> dict[str, set[int]]:
    """Return what a controller announces."""
    controller = queue.controller
    assert controller is not None
    supported = queue.read_bytes(queue.log_page(0x00, 1024))
    effects = queue.read_bytes(queue.log_page(0x05, 4096))
    features = queue.read_bytes(queue.log_page(0x12, 1024))

    def marked(data: bytes) -> set[int]:
        return {number for number in range(256) if data[4 * number] & 1}

    def there(cns: int) -> bool:
        completion = queue.identify(cns, 1)
        location = controller.error_log.newest()[0].error_location if completion.status else 0
        return completion.status == 0 or location != 40

    return {
        "admin": marked(effects[:1024]),
        "io": marked(effects[1024:2048]),
        "logs": marked(supported),
        "features": marked(features),
        "identify": {cns for cns in range(256) if there(cns)},
    }


@pytest.fixture(scope="module", params=["io", "discovery"])
def controller(request) -> tuple[str, TestQueue, dict[str, set[int]]]:
    target = Target()
    queue = target.admin() if request.param == "io" else target.discovery()
    return request.param, queue, offered(queue)


def test_version():
    target = Target()
    for queue in (target.admin(), target.discovery()):
        told = Vs.decode(queue.get_property(VS_OFFSET).dw0)
        assert told == Vs(2, 1) == Vs.decode(IDENTIFY_CONTROLLER.parse(queue.identify(1).data).ver)


def test_mandatory_parts_exist(controller):
    kind, _, have = controller
    for what, needed in (IO_CONTROLLER if kind == "io" else DISCOVERY_CONTROLLER).items():
        assert needed <= have[what], f"{kind}: {what} {sorted(map(hex, needed - have[what]))}"


def test_prohibited_parts_do_not_exist(controller):
    kind, _, have = controller
    if kind == "discovery":
        assert not have["io"]
        for what, prohibited in DISCOVERY_PROHIBITED.items():
            assert not prohibited & have[what], f"{what} {sorted(map(hex, prohibited & have[what]))}"


def test_announced_commands_are_executed(controller):
    """The effects log and the tables agree, and no listed command is an Invalid Command Opcode."""
    kind, queue, have = controller
    assert have["admin"] <= set(ADMIN if kind == "io" else DISCOVERY) and have["io"] <= set(NVM)
    for opcode in have["admin"]:
        assert lookup(queue.ctx, queue.sqe(opcode)).opcode == opcode
    for opcode in range(256):
        if opcode not in have["admin"] and opcode != 0x7F:
            assert queue.command(opcode).status == Status.INVALID_OPCODE


def test_fabrics_commands_and_properties(controller):
    _, queue, _ = controller
    assert set(FABRICS_ADMIN) >= FABRICS and FabricsType.CONNECT in FABRICS_IO
    for offset, attrib in PROPERTIES.items():
        assert queue.get_property(offset, attrib).status == 0


def test_capabilities(controller):
    kind, queue, have = controller
    completion = queue.get_property(CAP_OFFSET, 1)
    cap = Cap.decode(completion.dw0 | completion.dw1 << 32)
    assert cap.crms & 1 and cap.cqr and cap.ams == 0 and cap.mqes_entries >= 2 and cap.timeout_seconds
    assert cap.nssrs == (queue.get_property(NSSR_OFFSET).status == 0)
    assert bool(cap.css & 1 << 6) == (0x1C in have["identify"]) or kind == "discovery"


def test_identify_announces_what_exists(controller):
    kind, queue, have = controller
    data = IDENTIFY_CONTROLLER.parse(queue.read_bytes(queue.identify(1)))
    assert data.cntrltype == (1 if kind == "io" else 2) and data.kas and data.maxcmd
    assert data.ioccsz >= 4 and data.iorcsz >= 1 and data.msdbd >= 1 and data.subnqn and data.ctratt & 1
    if kind == "discovery":
        return
    assert data.sqes == 0x66 and data.cqes == 0x44
    for table, field in ((ONCS, data.oncs), (OACS, data.oacs)):
        for bit, (what, promised) in table.items():
            assert (promised <= have[what]) == bool(field & bit), f"{bit!r}"
    for bit, pages in LPA.items():
        assert (pages <= have["logs"]) == bool(data.lpa & bit), f"{bit!r}"
    implied = [things for opcode, things in IMPLIED.items() if opcode in have["admin"]]
    implied += [RESERVATIONS] if data.oncs & Oncs.RESERVATIONS else []
    implied += [ENDURANCE_GROUPS] if data.ctratt & Ctratt.ENDURANCE_GROUPS else []
    implied += [{"logs": {0x0C}}] if data.cmic & Cmic.ANA_REPORTING else []
    for things in implied:
        for what, needed in things.items():
            assert needed <= have[what], f"{what} {sorted(map(hex, needed - have[what]))}"
    assert bool(data.sanicap) == (0x84 in have["admin"])
    assert bool(data.nwpc) == (0x84 in have["features"])
    assert data.npss == 0 and data.wctemp and data.cctemp > data.wctemp


def test_namespaces_have_identifiers():
    queue = Target().admin()
    kinds = [each.nidt for each in parse_namespace_descriptors(queue.read_bytes(queue.identify(3, 1)))]
    assert 4 in kinds and {1, 2, 3} & set(kinds)


def test_write_cache_and_its_feature(tmp_path):
    path = tmp_path / "disk"
    path.write_bytes(bytes(1 << 20))

    async def run() -> None:
        backend = FileBackend(path)
        await backend.open()
        queue = Target(backend).admin()
        assert IDENTIFY_CONTROLLER.parse(queue.identify(1).data).vwc & 1 and 0x06 in offered(queue)["features"]
        await backend.close()

    asyncio.run(run())
    queue = Target(Ramdisk("1M")).admin()
    assert not IDENTIFY_CONTROLLER.parse(queue.identify(1).data).vwc & 1 and 0x06 not in offered(queue)["features"]
