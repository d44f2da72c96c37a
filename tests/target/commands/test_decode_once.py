"""A command is decoded once, whatever looks at it: check, length rule, restrictions, handler."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nvmeof.spec.enums import AdminOpcode, NvmOpcode
from tests.target.harness import ADMIN, DISCOVERY, FABRICS_ADMIN, FABRICS_IO, NVM, ZNS, Target

CASES = {
    "Identify": (ADMIN, AdminOpcode.IDENTIFY, {"cdw10": 1, "length": 4096}),
    "Get Log Page": (ADMIN, AdminOpcode.GET_LOG_PAGE, {"cdw10": 2 | 127 << 16, "length": 512}),
    "Get Features": (ADMIN, AdminOpcode.GET_FEATURES, {"cdw10": 4}),
    "Set Features": (ADMIN, AdminOpcode.SET_FEATURES, {"cdw10": 1}),
    "Format NVM": (ADMIN, AdminOpcode.FORMAT_NVM, {"nsid": 7}),
    "Sanitize": (ADMIN, AdminOpcode.SANITIZE, {"cdw10": 2}),
    "Register": (NVM, NvmOpcode.RESERVATION_REGISTER, {"data": bytes(16), "nsid": 1}),
    "Acquire": (NVM, NvmOpcode.RESERVATION_ACQUIRE, {"data": bytes(16), "nsid": 1, "cdw10": 1 << 8}),
    "Report": (NVM, NvmOpcode.RESERVATION_REPORT, {"nsid": 1, "cdw10": 15, "cdw11": 1, "length": 64}),
    "Copy": (NVM, NvmOpcode.COPY, {"data": bytes(32), "nsid": 1, "cdw10": 8}),
    "Dataset Management": (NVM, NvmOpcode.DATASET_MANAGEMENT, {"data": bytes(16), "nsid": 1}),
    "Cancel": (NVM, NvmOpcode.CANCEL, {"nsid": 0xFFFFFFFF, "cdw10": 1 | 0xFFFF << 16, "cdw11": 1}),
    "Device Self-test": (ADMIN, AdminOpcode.DEVICE_SELF_TEST, {"nsid": 1, "cdw10": 1}),
    "Get LBA Status": (ADMIN, AdminOpcode.GET_LBA_STATUS, {"nsid": 1, "cdw12": 15, "cdw13": 0x11 << 24, "length": 64}),
    "Abort": (ADMIN, AdminOpcode.ABORT, {"cdw10": 5 << 16}),
    "Release": (NVM, NvmOpcode.RESERVATION_RELEASE, {"data": bytes(8), "nsid": 1, "cdw10": 1 << 8}),
}


@pytest.mark.parametrize("name", CASES)
def test_a_command_is_decoded_once(name, monkeypatch):
    table, opcode, fields = CASES[name]
    made = []

    def decode(ctx, sqe):
        made.append(table[opcode].name)
        return row.decode(ctx, sqe)

    row = table[opcode]
    monkeypatch.setitem(table, opcode, replace(row, decode=decode))
    target = Target()
    admin = target.admin()
    queue = admin if table is ADMIN else target.io(admin)
    queue.run(queue.sqe(opcode, **fields), fields.get("data"))
    assert made == [row.name]


SQE_IS_ENOUGH = {
    "Read", "Write", "Compare", "Verify", "Write Zeroes", "Write Uncorrectable", "Zone Append", "Flush",
    "Asynchronous Event Request", "Keep Alive",
}  # fmt: skip
"""Commands on a range of blocks, whose SQE has properties for what they need (decision 0023), or without fields."""


def test_every_other_row_decodes() -> None:
    tables = (ADMIN, NVM, DISCOVERY, ZNS, FABRICS_ADMIN, FABRICS_IO)
    by_hand = {row.name for table in tables for row in table.values() if row.decode is None}
    assert by_hand == SQE_IS_ENOUGH
