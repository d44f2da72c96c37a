"""A command is decoded once, whatever looks at it: check, length rule, restrictions, handler."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nvmeof.spec.enums import AdminOpcode, NvmOpcode
from tests.target.harness import ADMIN, NVM, Target

CASES = {
    "Identify": (ADMIN, AdminOpcode.IDENTIFY, {"cdw10": 1, "length": 4096}),
    "Get Log Page": (ADMIN, AdminOpcode.GET_LOG_PAGE, {"cdw10": 2 | 127 << 16, "length": 512}),
    "Get Features": (ADMIN, AdminOpcode.GET_FEATURES, {"cdw10": 4}),
    "Set Features": (ADMIN, AdminOpcode.SET_FEATURES, {"cdw10": 1}),
    "Format NVM": (ADMIN, AdminOpcode.FORMAT_NVM, {"nsid": 7}),
    "Sanitize": (ADMIN, AdminOpcode.SANITIZE, {"cdw10": 2}),
    "Register": (NVM, NvmOpcode.RESERVATION_REGISTER, {"data": bytes(16), "nsid": 1}),
    "Acquire": (NVM, NvmOpcode.RESERVATION_ACQUIRE, {"data": bytes(16), "nsid": 1, "cdw10": 1 << 8}),
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
