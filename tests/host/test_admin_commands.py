"""Admin commands over a function that carries one command: no queue, no controller."""

from __future__ import annotations

import pytest

from nvmeof.errors import NvmeofError
from nvmeof.host.admin_commands import ANA_ATTEMPTS, LOG_CHUNK_BYTES, AdminCommands
from nvmeof.host.requests import DEFAULT_OPTIONS, RequestOptions
from nvmeof.spec.enums import AdminOpcode
from nvmeof.spec.identify import IDENTIFY_CONTROLLER
from nvmeof.spec.log_pages import AnaGroup, GetLogPage, build_ana_log
from nvmeof.spec.sqe import SQE
from nvmeof.wire import Buffer, build

GROUPS = [AnaGroup(1, 1, 5, tuple(range(1, 1500))), AnaGroup(2, 3, 6, (2000,))]


class Controller:
    """A controller that answers Identify and the ANA log; ``changes``: how often the log changes after its first piece
    was read.
    """

    def __init__(self, groups: list[AnaGroup], changes: int = 0, nanagrpid: int = 2) -> None:
        self.groups = groups
        self.changes = changes
        self.nanagrpid = nanagrpid
        self.count = 7
        self.reads: list[int] = []
        self.page = b""

    async def execute(
        self,
        sqe: bytes,
        /,
        *,
        data_out: Buffer | None = None,
        data_in: memoryview | None = None,
        options: RequestOptions = DEFAULT_OPTIONS,
    ) -> int:
        command = SQE.unpack_from(sqe)
        assert data_in is not None
        if command.opcode == AdminOpcode.IDENTIFY:
            data_in[:] = build(IDENTIFY_CONTROLLER, nanagrpid=self.nanagrpid, nn=4096)
            return 0
        page = GetLogPage.decode(command.cdw10, command.cdw11, command.cdw12, command.cdw13)
        self.reads.append(page.offset_bytes)
        if page.offset_bytes and self.changes:
            self.changes -= 1
            self.count += 1
        log = build_ana_log(self.count, self.groups)
        data_in[:] = log[page.offset_bytes : page.offset_bytes + len(data_in)].ljust(len(data_in), b"\0")
        return 0


async def test_an_ana_log_of_several_pieces() -> None:
    controller = Controller(GROUPS)
    log = await AdminCommands(controller.execute).ana_log()
    assert (log.change_count, log.groups) == (7, GROUPS)
    assert controller.reads == [0, LOG_CHUNK_BYTES, 0]


async def test_a_short_ana_log_takes_one_read() -> None:
    controller = Controller(GROUPS[1:])
    assert (await AdminCommands(controller.execute).ana_log()).groups == GROUPS[1:]
    assert controller.reads == [0]


async def test_an_ana_log_that_changes_while_it_is_read_is_read_again() -> None:
    controller = Controller(GROUPS, changes=1)
    assert (await AdminCommands(controller.execute).ana_log()).change_count == 8
    assert controller.reads == [0, LOG_CHUNK_BYTES, 0] * 2


async def test_an_ana_log_that_changes_without_end() -> None:
    with pytest.raises(NvmeofError, match=f"changed {ANA_ATTEMPTS} times"):
        await AdminCommands(Controller(GROUPS, changes=10**6).execute).ana_log()


async def test_an_ana_log_that_does_not_end() -> None:
    endless = [AnaGroup(1, 1, 0, tuple(range(1, 9000)))]  # more namespaces than the controller says it can have
    with pytest.raises(NvmeofError, match="does not end within"):
        await AdminCommands(Controller(endless).execute).ana_log()


async def test_a_controller_without_ana() -> None:
    with pytest.raises(NvmeofError, match="does not report Asymmetric Namespace Access"):
        await AdminCommands(Controller([], nanagrpid=0).execute).ana_log()
