"""Helpers for tests of Namespace Management and Namespace Attachment."""

from __future__ import annotations

import struct

from nvmeof.spec.identify import IDENTIFY_CONTROLLER, parse_controller_list, parse_namespace_list
from nvmeof.spec.namespace_management import NAMESPACE_CREATE
from nvmeof.wire import build
from tests.target.harness import TestQueue

MANAGE, ATTACH = 0x0D, 0x15
ALL = 0xFFFFFFFF
OTHER_HOST = "nqn.2014-08.org.nvmexpress:uuid:22222222-2222-3333-4444-555555555555"
BLOCKS = 2048


class FailingStore:
    """A metadata store that fails to store, at once or later."""

    durable = True

    def __init__(self, fails: bool = True) -> None:
        self.fails = fails
        self.values = {}

    def get(self, section):
        return self.values.get(section)

    def put(self, section, value):
        self.values[section] = value
        return self._put() if section == "namespaces" else None

    async def _put(self):
        if self.fails:
            raise OSError(28, "No space left on device")


def create_data(**fields) -> bytes:
    return build(NAMESPACE_CREATE, **{"nsze": BLOCKS, "ncap": fields.get("nsze", BLOCKS), "nmic": 1, **fields})


def create(queue: TestQueue, *, cdw11: int = 0, nsid: int = 0, cdw10: int = 0, **fields):
    return queue.command(MANAGE, create_data(**fields), nsid=nsid, cdw10=cdw10, cdw11=cdw11)


def delete(queue: TestQueue, nsid: int):
    return queue.command(MANAGE, nsid=nsid, cdw10=1)


def controller_list(*cntlids: int, count: int | None = None) -> bytes:
    return struct.pack(f"<{len(cntlids) + 1}H", len(cntlids) if count is None else count, *cntlids).ljust(4096, b"\0")


def attach(queue: TestQueue, nsid: int, *cntlids: int, sel: int = 0, count: int | None = None):
    cntlids = cntlids or (queue.controller.cntlid,)
    return queue.command(ATTACH, controller_list(*cntlids, count=count), nsid=nsid, cdw10=sel)


def detach(queue: TestQueue, nsid: int, *cntlids: int):
    return attach(queue, nsid, *cntlids, sel=1)


def active(queue: TestQueue) -> list[int]:
    return parse_namespace_list(queue.read_bytes(queue.identify(2)))


def allocated(queue: TestQueue) -> list[int]:
    return parse_namespace_list(queue.read_bytes(queue.identify(0x10)))


def attached(queue: TestQueue, nsid: int) -> list[int]:
    return parse_controller_list(queue.read_bytes(queue.identify(0x12, nsid)))


def capacity(queue: TestQueue) -> tuple[int, int]:
    data = IDENTIFY_CONTROLLER.parse(queue.read_bytes(queue.identify(1)))
    return data.tnvmcap, data.unvmcap


def error(queue: TestQueue):
    return queue.controller.error_log.newest()[0]


def bit(byte: int, shift: int = 0) -> int:
    return byte + shift // 8 | (shift % 8) << 8


def read(io: TestQueue, nsid: int, slba: int = 0):
    return io.command(0x02, length=512, nsid=nsid, cdw10=slba)


def write(io: TestQueue, nsid: int, data: bytes, slba: int = 0):
    return io.command(0x01, data, nsid=nsid, cdw10=slba)
