from dataclasses import replace

import pytest

from nvmeof.spec.enums import DISCOVERY_NQN, FABRICS_OPCODE
from nvmeof.spec.properties import CAP_OFFSET, CC_OFFSET, CRTO_OFFSET, CSTS_OFFSET, VS_OFFSET, Cap
from nvmeof.spec.status import Status
from nvmeof.target.storage.ramdisk import Ramdisk
from tests.target.harness import CC_DISABLED, HOST, NQN, Target

IATTR_DATA = 1 << 16
OTHER_HOST = "nqn.2014-08.org.nvmexpress:uuid:99999999-2222-3333-4444-555555555555"


def test_connect_gives_a_controller_id_and_fills_the_context():
    target = Target()
    queue = target.queue()
    cntlid = queue.connect(sqsize=31, cattr=4, kato=5000)
    ctx = queue.ctx
    assert cntlid == 1 == ctx.controller.cntlid
    assert (ctx.qid, ctx.entries, ctx.flow_control) == (0, 32, False)
    assert ctx.host_nqn == HOST and ctx.hostid == bytes(range(16))
    assert ctx.subsystem is target.subsystem and ctx.namespaces is ctx.controller.namespaces


def test_io_queue_joins_its_controller():
    target = Target()
    admin = target.admin()
    queue = target.io(admin, 3, sqsize=127)
    assert queue.controller is admin.controller
    assert queue.ctx.flow_control is True and queue.ctx.entries == 128
    assert set(admin.controller.queues) == {0, 3}


@pytest.mark.parametrize(
    ("fields", "status", "dw0"),
    [
        ({"recfmt": 1}, Status.CONNECT_INCOMPATIBLE_FORMAT, 0),
        ({"sqsize": 0}, Status.CONNECT_INVALID_PARAMETERS, 44),
        ({"sqsize": 4096}, Status.CONNECT_INVALID_PARAMETERS, 44),
        ({"subnqn": "nqn.2026-01.org.example:other"}, Status.CONNECT_INVALID_PARAMETERS, IATTR_DATA | 256),
        ({"subnqn": b""}, Status.CONNECT_INVALID_PARAMETERS, IATTR_DATA | 256),
        ({"subnqn": b"x" * 256}, Status.CONNECT_INVALID_PARAMETERS, IATTR_DATA | 256),
        ({"hostnqn": "nqn.2026-01.org.example:a\nb"}, Status.CONNECT_INVALID_PARAMETERS, IATTR_DATA | 512),
        ({"hostnqn": b"x" * 224}, Status.CONNECT_INVALID_PARAMETERS, IATTR_DATA | 512),
        ({"cntlid": 1}, Status.CONNECT_INVALID_PARAMETERS, IATTR_DATA | 16),
        ({"cntlid": 0xFFFE}, Status.CONNECT_INVALID_PARAMETERS, IATTR_DATA | 16),
    ],
)
def test_admin_connect_refused(fields, status, dw0):
    target = Target()
    queue = target.queue()
    completion = queue.try_connect(**fields)
    assert (completion.status, completion.dw0, completion.dnr) == (status, dw0, True)
    assert queue.controller is None and not target.subsystem.controllers
    assert queue.connect() == 1, "the queue may try again"


@pytest.mark.parametrize(
    ("fields", "status", "dw0"),
    [
        ({"qid": 129}, Status.CONNECT_INVALID_PARAMETERS, 42),
        ({"cntlid": 77}, Status.CONNECT_INVALID_PARAMETERS, IATTR_DATA | 16),
        ({"hostnqn": OTHER_HOST}, Status.CONNECT_INVALID_PARAMETERS, IATTR_DATA | 512),
        ({"hostnqn": ""}, Status.CONNECT_INVALID_PARAMETERS, IATTR_DATA | 512),
        ({"subnqn": DISCOVERY_NQN}, Status.CONNECT_INVALID_PARAMETERS, 42),
        ({"sqsize": 1024}, Status.CONNECT_INVALID_PARAMETERS, 44),
        ({"qid": 5}, Status.COMMAND_SEQUENCE_ERROR, 0),
    ],
)
def test_io_connect_refused(fields, status, dw0):
    target = Target()
    admin = target.admin()
    target.io(admin, 5)
    completion = target.queue().try_connect(**{"qid": 1, "cntlid": admin.controller.cntlid, **fields})
    assert (completion.status, completion.dw0) == (status, dw0)
    assert set(admin.controller.queues) == {0, 5}


def test_largest_queue_is_accepted():
    target = Target()
    assert target.io(target.admin(), 128, sqsize=1023).ctx.entries == 1024


def test_io_connect_before_enable():
    target = Target()
    admin = target.queue()
    cntlid = admin.connect()
    completion = target.queue().try_connect(qid=1, cntlid=cntlid)
    assert completion.status == Status.COMMAND_SEQUENCE_ERROR


def test_host_not_allowed():
    target = Target(allowed_hosts=frozenset({OTHER_HOST}))
    completion = target.queue().try_connect()
    unknown = target.queue().try_connect(subnqn="nqn.2026-01.org.example:other")
    assert completion == unknown, "the host cannot tell whether the subsystem is there"
    assert target.queue().try_connect(hostnqn=OTHER_HOST).status == 0


def test_host_that_is_no_longer_allowed_loses_its_association():
    target = Target()
    admin = target.admin()
    target.registry.set_allowed_hosts(NQN, frozenset({OTHER_HOST}))
    assert admin.closed == ["the host is no longer allowed"]


def test_discovery_only_port_offers_no_subsystem():
    target = Target()
    target.registry.ports[target.port.portid] = port = replace(target.port, discovery_only=True)
    queue = target.queue(port.seen_at("192.0.2.1", 8009))
    assert queue.try_connect().status == Status.CONNECT_INVALID_PARAMETERS
    assert queue.try_connect(subnqn=DISCOVERY_NQN).status == 0


def test_controller_ids_run_out():
    target = Target()
    target.subsystem.controllers.update(dict.fromkeys(range(1, 0xFFF0), object()))
    completion = target.queue().try_connect()
    assert completion.status == Status.CONNECT_CONTROLLER_BUSY and not completion.dnr
    target.subsystem.controllers.clear()


def test_connect_twice_on_a_queue():
    queue = Target().admin()
    completion = queue.try_connect()
    assert (completion.status, completion.dnr) == (Status.INVALID_OPCODE, True)


@pytest.mark.parametrize("opcode", [0x00, 0x02, 0x06, 0x18, 0xC0])
def test_nothing_but_connect_before_connect(opcode):
    assert Target().queue().command(opcode).status == Status.COMMAND_SEQUENCE_ERROR


@pytest.mark.parametrize("fctype", [0x00, 0x04, 0x08])
def test_other_fabrics_commands_before_connect(fctype):
    assert Target().queue().command(FABRICS_OPCODE, nsid=fctype).status == Status.COMMAND_SEQUENCE_ERROR


@pytest.mark.parametrize("fctype", [0x02, 0x03, 0x07, 0x09, 0xC0])
def test_unknown_fabrics_commands(fctype):
    target = Target()
    admin = target.admin()
    assert admin.command(FABRICS_OPCODE, nsid=fctype).status == Status.INVALID_OPCODE
    assert admin.controller.error_log.newest()[0].error_location == 4
    assert target.io(admin).command(FABRICS_OPCODE, nsid=fctype).status == Status.INVALID_OPCODE


def test_properties_are_for_the_admin_queue():
    target = Target()
    queue = target.io(target.admin())
    assert queue.get_property(CSTS_OFFSET).status == Status.INVALID_OPCODE
    assert queue.set_property(CC_OFFSET, 0).status == Status.INVALID_OPCODE


def test_property_values():
    queue = Target().admin()
    completion = queue.get_property(CAP_OFFSET, 1)
    cap = Cap.decode(completion.dw0 | completion.dw1 << 32)
    assert cap.mqes_entries == 1024 and cap.cqr and cap.timeout_seconds == 7.5
    assert cap.css == 0x41 and cap.crms == 1 and cap.mpsmin_bytes == cap.mpsmax_bytes == 4096
    assert queue.get_property(VS_OFFSET).dw0 == 0x00020100
    assert queue.get_property(CC_OFFSET).dw0 == 0x460061
    assert queue.get_property(CSTS_OFFSET).dw0 == 1
    assert queue.get_property(CRTO_OFFSET).dw0 == 15


@pytest.mark.parametrize(
    ("offset", "attrib", "location"),
    [
        (CAP_OFFSET, 0, 40),
        (CSTS_OFFSET, 1, 40),
        (CSTS_OFFSET, 2, 40),
        (0x30, 0, 44),
        (0x24, 0, 44),
        (0xFFFFFFFF, 0, 44),
    ],
)
def test_property_get_refused(offset, attrib, location):
    queue = Target().admin()
    assert queue.get_property(offset, attrib).status == Status.INVALID_FIELD
    assert queue.controller.error_log.newest()[0].error_location == location


@pytest.mark.parametrize(
    ("offset", "attrib", "location"),
    [(CAP_OFFSET, 1, 44), (VS_OFFSET, 0, 44), (0x68, 0, 44), (CC_OFFSET, 1, 40), (0x18, 0, 44)],
)
def test_property_set_refused(offset, attrib, location):
    queue = Target().admin()
    assert queue.set_property(offset, 0, attrib).status == Status.INVALID_FIELD
    assert queue.controller.error_log.newest()[0].error_location == location


def test_disconnect_ends_an_io_queue_only():
    target = Target()
    admin = target.admin()
    queue = target.io(admin)
    assert queue.command(FABRICS_OPCODE, nsid=8, cdw10=1).status == Status.CONNECT_INCOMPATIBLE_FORMAT
    completion = queue.command(FABRICS_OPCODE, nsid=8)
    assert completion.status == 0 and completion.ends == "disconnected by the host"
    assert admin.command(FABRICS_OPCODE, nsid=8).status == Status.DISCONNECT_INVALID_QUEUE_TYPE


def test_connect_data_of_a_wrong_length():
    queue = Target().queue()
    completion = queue.command(FABRICS_OPCODE, bytes(512), nsid=1, cdw11=31)
    assert completion.status == Status.DATA_SGL_LENGTH_INVALID


def test_the_end_of_an_admin_queue_ends_its_io_queues():
    target = Target()
    admin = target.admin()
    first, second = target.io(admin, 1), target.io(admin, 2)
    first.ctx.detach("closed by the peer")
    assert not admin.closed and not second.closed and 1 not in admin.controller.queues
    admin.ctx.detach("connection lost")
    assert second.closed == ["connection lost"] and not admin.closed and not first.closed
    assert not target.subsystem.controllers
    second.ctx.detach("closed")
    second.ctx.detach("closed")


def test_controller_ids_are_not_reused_at_once():
    target = Target()
    first = target.admin()
    cntlid = first.controller.cntlid
    first.ctx.detach("gone")
    assert target.queue().connect() == cntlid + 1
    target.subsystem._last_cntlid = 0xFFEF
    assert target.queue().connect() == 1, "1 is free and comes after the last"
    assert target.queue().connect() == 3, "2 is in use"


def test_commands_of_a_dead_association_are_refused():
    target = Target(Ramdisk("1M"))
    admin = target.admin()
    queue = target.io(admin)
    controller = admin.controller
    controller.destroy("test")
    assert queue.command(0x02, length=512, nsid=1).status == Status.COMMAND_SEQUENCE_ERROR
    assert admin.set_property(CC_OFFSET, CC_DISABLED).status == Status.COMMAND_SEQUENCE_ERROR


def test_the_admin_queues_connect_alone_sets_the_keep_alive_timeout():
    target = Target()
    admin = target.admin(kato=5000)
    target.io(admin, kato=60000)
    assert admin.controller.kato_ms == 5000


@pytest.mark.parametrize("cattr", range(16))
def test_connect_attributes(cattr):
    """Priority classes have no effect with round robin; bit 2 disables flow control; bit 3 allows Disconnect."""
    target = Target()
    admin = target.queue()
    admin.connect(cattr=cattr)
    admin.set_property(CC_OFFSET, 0x460061)
    io = target.io(admin, cattr=cattr)
    assert admin.ctx.flow_control == io.ctx.flow_control == (not cattr & 4)
    assert io.command(FABRICS_OPCODE, nsid=8).ends


def test_a_queue_of_a_controller_before_a_restart_is_not_refused_for_good():
    target = Target()
    target.admin()
    target.subsystem.continue_cntlids(40, frozenset({7}))
    for cntlid, dnr in ((7, False), (8, True)):
        completion = target.queue().try_connect(qid=1, cntlid=cntlid)
        assert completion.status == Status.CONNECT_INVALID_PARAMETERS
        assert completion.dnr is dnr, "Linux gives its controller up when DNR is set"
