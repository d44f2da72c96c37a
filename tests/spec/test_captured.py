"""Structures as a Linux kernel's target sent them: our declarations must read them and build the same bytes."""

from __future__ import annotations

from functools import cache

import pytest

from nvmeof.spec.connect import CONNECT, CONNECT_DATA, PROPERTY_SET
from nvmeof.spec.discovery import DISCOVERY_LOG_HEADER, parse_discovery_entries
from nvmeof.spec.enums import FABRICS_OPCODE, AdminOpcode, AnaState, Cns, FabricsType, LogPageId, SubType, Trtype
from nvmeof.spec.identify import (
    IDENTIFY_CONTROLLER,
    IdentifyCommand,
    parse_namespace_descriptors,
    parse_namespace_list,
)
from nvmeof.spec.identify_namespace import IDENTIFY_NAMESPACE, format_index
from nvmeof.spec.log_pages import COMMANDS_SUPPORTED_AND_EFFECTS, SMART_HEALTH, GetLogPage, parse_ana_log
from nvmeof.spec.properties import Cc
from nvmeof.spec.sqe import SQE, Sqe
from nvmeof.spec.status import Status, split_status
from tests import traces

CAPSULE_CMD, CAPSULE_RESP, C2H_DATA = 0x04, 0x05, 0x07


@cache
def admin_commands(name: str) -> list[tuple[Sqe, bytes, bytes, int]]:
    """Return (command, in-capsule data, data received, status word) of the admin queues of a capture."""
    trace = traces.load(name)
    found: list[tuple[Sqe, bytes, bytes, int]] = []
    admin: set[int] = set()
    open_commands: dict[tuple[int, int], tuple[Sqe, bytes]] = {}
    received: dict[tuple[int, int], bytes] = {}
    for pdu in trace.pdus:
        kind, pdo = pdu.data[0], pdu.data[3]
        if kind == CAPSULE_CMD:
            sqe = SQE.unpack_from(pdu.data, 8)
            is_connect = sqe.opcode == FABRICS_OPCODE and sqe.fctype == FabricsType.CONNECT
            if is_connect and CONNECT.unpack_from(pdu.data, 8).qid == 0:
                admin.add(pdu.connection)
            open_commands[pdu.connection, sqe.cid] = sqe, pdu.data[pdo:] if pdo else b""
        elif kind == C2H_DATA:
            key = pdu.connection, int.from_bytes(pdu.data[8:10], "little")
            length = int.from_bytes(pdu.data[16:20], "little")
            received[key] = received.get(key, b"") + pdu.data[pdo : pdo + length]
        elif kind == CAPSULE_RESP:
            key = pdu.connection, int.from_bytes(pdu.data[20:22], "little")
            if pdu.connection in admin and key in open_commands:
                sqe, out = open_commands.pop(key)
                found.append((sqe, out, received.pop(key, b""), int.from_bytes(pdu.data[22:24], "little")))
    return found


def identify_data(name: str, cns: int) -> list[tuple[Sqe, bytes]]:
    return [
        (sqe, data)
        for sqe, _, data, _ in admin_commands(name)
        if sqe.opcode == AdminOpcode.IDENTIFY and IdentifyCommand.decode(sqe.cdw10, sqe.cdw11).cns == cns and data
    ]


def log_data(name: str, lid: int) -> list[tuple[GetLogPage, bytes]]:
    found = []
    for sqe, _, data, _ in admin_commands(name):
        if sqe.opcode == AdminOpcode.GET_LOG_PAGE and data:
            command = GetLogPage.decode(sqe.cdw10, sqe.cdw11, sqe.cdw12, sqe.cdw13, sqe.cdw14)
            if command.lid == lid:
                assert command.length_bytes == len(data)
                found.append((command, data))
    return found


pytestmark = pytest.mark.parametrize("name", traces.names())


def test_connect(name: str) -> None:
    connects = [
        (sqe, data)
        for sqe, data, _, _ in admin_commands(name)
        if sqe.opcode == FABRICS_OPCODE and sqe.fctype == FabricsType.CONNECT
    ]
    assert connects
    for sqe, data in connects:
        command = CONNECT.unpack_from(SQE.pack(sqe))
        assert (command.qid, command.recfmt, command.entries) == (0, 0, 32)
        parsed = CONNECT_DATA.parse(data)
        assert parsed.cntlid == 0xFFFF
        assert parsed.subnqn.startswith("nqn.")
        assert parsed.hostnqn.startswith("nqn.")
        assert CONNECT_DATA.build(parsed) == data[:1024]


def test_identify_controller(name: str) -> None:
    found = identify_data(name, Cns.CONTROLLER)
    assert found
    for _, data in found:
        parsed = IDENTIFY_CONTROLLER.parse(data)
        assert parsed.mn == "Linux"
        assert parsed.sn
        assert parsed.subnqn.startswith("nqn.")
        assert parsed.cntrltype in (1, 2)
        assert (parsed.sqes, parsed.cqes) == (0x66, 0x44) or parsed.cntrltype == 2
        assert IDENTIFY_CONTROLLER.build(parsed) == data


def test_identify_namespace(name: str) -> None:
    found = identify_data(name, Cns.NAMESPACE)
    assert found
    for _, data in found:
        parsed = IDENTIFY_NAMESPACE.parse(data)
        assert parsed.nsze > 0
        assert parsed.lbaf[format_index(parsed.flbas)].lbads in (9, 12)
        assert IDENTIFY_NAMESPACE.build(parsed) == data


def test_namespace_lists_and_descriptors(name: str) -> None:
    for _, data in identify_data(name, Cns.ACTIVE_NAMESPACES):
        assert parse_namespace_list(data) == [1]
    found = identify_data(name, Cns.NAMESPACE_DESCRIPTORS)
    assert found
    for _, data in found:
        kinds = [item.nidt for item in parse_namespace_descriptors(data)]
        assert 3 in kinds
        assert len(set(kinds)) == len(kinds)


def test_log_pages(name: str) -> None:
    for command, data in log_data(name, LogPageId.ANA):
        if command.offset_bytes == 0:
            _, groups = parse_ana_log(data)
            assert groups
            assert all(AnaState(group.state) for group in groups)
    for _, data in log_data(name, LogPageId.COMMANDS_SUPPORTED_AND_EFFECTS):
        parsed = COMMANDS_SUPPORTED_AND_EFFECTS.parse(data)
        assert parsed.acs[AdminOpcode.IDENTIFY] & 1
        assert parsed.iocs[2] & 1
        assert COMMANDS_SUPPORTED_AND_EFFECTS.build(parsed) == data
    for _, data in log_data(name, LogPageId.SMART_HEALTH):
        assert SMART_HEALTH.build(SMART_HEALTH.parse(data)) == data


def test_discovery_log(name: str) -> None:
    pages = log_data(name, LogPageId.DISCOVERY)
    for command, data in pages:
        if command.offset_bytes == 0:
            assert int.from_bytes(data[8:16], "little") >= 1
            assert DISCOVERY_LOG_HEADER.parse(data.ljust(1024, b"\0")).recfmt == 0
        elif command.offset_bytes == 1024:
            for entry in parse_discovery_entries(data):
                assert entry.trtype == Trtype.TCP
                assert entry.subtype in (SubType.NVM, SubType.CURRENT_DISCOVERY)
                assert entry.traddr
                assert entry.trsvcid.isdigit()


def test_controller_configuration(name: str) -> None:
    values = [
        PROPERTY_SET.unpack_from(SQE.pack(sqe))
        for sqe, _, _, _ in admin_commands(name)
        if sqe.opcode == FABRICS_OPCODE and sqe.fctype == FabricsType.PROPERTY_SET
    ]
    assert values
    for item in values:
        assert item.ofst == 0x14
        assert Cc.decode(item.value).encode() == item.value
    assert any(Cc.decode(item.value).en for item in values)


def test_every_status_is_a_known_one(name: str) -> None:
    seen = {split_status(word)[0] for _, _, _, word in admin_commands(name)}
    assert Status.SUCCESS in seen
    assert all(Status(status) for status in seen - {0})
