"""The commands that a queue takes before its Connect, until its host has authenticated itself, and when it is ready."""

from __future__ import annotations

import pytest

from nvmeof.errors import LocalProtocolError
from nvmeof.spec.enums import FABRICS_OPCODE, FabricsType, NvmOpcode
from nvmeof.spec.sqe import Sqe
from nvmeof.spec.status import Status
from nvmeof.target.commands.dispatch.base import CommandRow, Completion
from nvmeof.target.commands.dispatch.command_tables import CommandTables
from nvmeof.target.commands.rows.rows import Rows
from nvmeof.target.commands.standard import standard_tables
from nvmeof.target.core.states import AUTHENTICATION_STATES, LIVE_STATES, ControllerState, QueueState
from tests.conformance.rawhost import make_sqe
from tests.target.harness import ADMIN, FABRICS_ADMIN, FABRICS_IO, NVM, ZNS, Target
from tests.target.queue.queue_wire import Wire, statuses

UNCONNECTED, CONNECTED, AUTHENTICATING, READY = QueueState
UNAUTHENTICATED = (CONNECTED, AUTHENTICATING)
COMMAND = 0xC0
"""A vendor specific Fabrics command."""
AUTHENTICATION = CommandRow(
    opcode=COMMAND,
    name="A command that is legal as those of authentication are",
    handler=lambda ctx, sqe, data: Completion(dw0=42),
    states=LIVE_STATES,
    queue_states=AUTHENTICATION_STATES,
)
TABLES = standard_tables(Rows(fabrics_admin=(AUTHENTICATION,), fabrics_io=(AUTHENTICATION,)))


def fabrics(fctype: int) -> Sqe:
    return Sqe(opcode=FABRICS_OPCODE, flags=0x40, nsid=fctype)


@pytest.mark.parametrize("state", UNAUTHENTICATED)
def test_until_its_host_is_authenticated_a_queue_takes_authentication_only(state):
    target = Target(tables=TABLES)
    admin = target.admin()
    io = target.io(admin)
    commands = TABLES[CommandTables]
    for queue, table, fabrics_table in ((admin, ADMIN, FABRICS_ADMIN), (io, NVM, FABRICS_IO)):
        queue.ctx.queue_state = state
        before = queue.controller.error_log.count
        others = [
            fctype
            for fctype in fabrics_table
            if state not in fabrics_table[fctype].queue_states and fctype != FabricsType.CONNECT
        ]
        for refused in (
            *(
                queue.command(opcode, nsid=1)
                for opcode in table
                if opcode in table and table[opcode].offered(target.subsystem)
            ),
            *(queue.run(fabrics(fctype)) for fctype in others),
        ):
            assert (refused.status, refused.dnr) == (Status.AUTHENTICATION_REQUIRED, True)
        assert queue.controller.error_log.count > before, "such a refusal is in the log as any other"
        assert queue.run(fabrics(FabricsType.CONNECT)).status == Status.INVALID_OPCODE
        authenticated = queue.run(fabrics(COMMAND))
        assert (authenticated.status, authenticated.dw0) == (0, 42)
        queue.ctx.queue_state = READY
        assert queue.run(fabrics(COMMAND)).status == 0, "it may be authenticated again"
    assert admin.command(0x18).status == 0 and io.command(NvmOpcode.FLUSH, nsid=1).status == 0
    assert commands.fabrics_io[COMMAND] is AUTHENTICATION


@pytest.mark.parametrize("fctype", [FabricsType.PROPERTY_GET, FabricsType.PROPERTY_SET, FabricsType.DISCONNECT,
                                    COMMAND])  # fmt: skip
def test_before_connect_a_queue_takes_connect_only(fctype):
    queue = Target(tables=TABLES).queue()
    assert queue.ctx.queue_state is UNCONNECTED
    assert queue.run(fabrics(fctype)).status == Status.COMMAND_SEQUENCE_ERROR
    assert queue.command(0x06, length=4096, cdw10=1).status == Status.COMMAND_SEQUENCE_ERROR
    queue.connect()
    assert queue.ctx.queue_state is READY


def test_every_row_names_its_legal_states():
    rows = [*ADMIN.values(), *NVM.values(), *ZNS.values(), *FABRICS_ADMIN.values(), *FABRICS_IO.values()]
    assert {row.name for row in rows if UNCONNECTED in row.queue_states} == {"Connect"}
    assert all(READY in row.queue_states for row in rows if row.name != "Connect")
    before = {row.name for row in rows if set(UNAUTHENTICATED) & row.queue_states}
    assert before == {"Authentication Send", "Authentication Receive"}


def test_the_state_of_the_controller_comes_second():
    """The state of the queue is checked first, also while the controller is not enabled."""
    admin = Target(tables=TABLES).queue()
    admin.connect()
    assert admin.ctx.state is ControllerState.DISABLED
    assert admin.command(0x06, length=4096, cdw10=1).status == Status.COMMAND_SEQUENCE_ERROR
    admin.ctx.queue_state = AUTHENTICATING
    assert admin.command(0x06, length=4096, cdw10=1).status == Status.AUTHENTICATION_REQUIRED
    assert admin.run(fabrics(COMMAND)).status == 0


def test_the_fast_path_checks_the_state():
    target = Target()
    target.admin()
    wire = Wire(target)

    def read(cid: int) -> bytes:
        return wire.capsule(make_sqe(cid, 2, nsid=1, length=512))

    assert not [status for _, status in statuses(wire.feed(read(1) + read(2))) if status]
    wire.queue.set_state(AUTHENTICATING)
    out = wire.feed(read(3) + read(4))
    assert statuses(out) == [(3, Status.AUTHENTICATION_REQUIRED), (4, Status.AUTHENTICATION_REQUIRED)]
    wire.queue.set_state(READY)
    assert not [status for _, status in statuses(wire.feed(read(5) + read(6))) if status]


def test_no_state_is_set_before_connect():
    target = Target()
    target.admin()
    wire = Wire(target)
    wire.queue.ctx = target.queue().ctx
    with pytest.raises(LocalProtocolError, match="before its Connect"):
        wire.queue.set_state(READY)
