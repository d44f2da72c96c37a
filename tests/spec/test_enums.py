"""Numbers of the specifications: a sample of each enumeration, and invariants of all."""

from __future__ import annotations

import inspect
from enum import IntEnum

import pytest

from nvmeof.spec import enums
from nvmeof.spec.enums import (
    CNTLID_MAX,
    DISCOVERY_NQN,
    DISCOVERY_PORT,
    FABRICS_OPCODE,
    NSID_ALL,
    NVME_PORT,
    AdminOpcode,
    Adrfam,
    AnaState,
    AsyncEventType,
    AsyncNoticeInfo,
    Cns,
    DataTransfer,
    FabricsType,
    FeatureId,
    LogPageId,
    NvmOpcode,
    SubType,
    Trtype,
)
from nvmeof.spec.flags import CommandEffects, Ctratt, Lpa, Oacs, Oaes, Oncs, Sgls


@pytest.mark.parametrize(
    ("member", "value"),
    [
        (AdminOpcode.GET_LOG_PAGE, 0x02), (AdminOpcode.IDENTIFY, 0x06), (AdminOpcode.ABORT, 0x08),
        (AdminOpcode.SET_FEATURES, 0x09), (AdminOpcode.GET_FEATURES, 0x0A), (AdminOpcode.ASYNC_EVENT_REQUEST, 0x0C),
        (AdminOpcode.KEEP_ALIVE, 0x18), (AdminOpcode.FORMAT_NVM, 0x80), (AdminOpcode.SANITIZE, 0x84),
        (NvmOpcode.FLUSH, 0x00), (NvmOpcode.WRITE, 0x01), (NvmOpcode.READ, 0x02), (NvmOpcode.COMPARE, 0x05),
        (NvmOpcode.WRITE_ZEROES, 0x08), (NvmOpcode.DATASET_MANAGEMENT, 0x09), (NvmOpcode.VERIFY, 0x0C),
        (NvmOpcode.RESERVATION_REGISTER, 0x0D), (NvmOpcode.COPY, 0x19), (NvmOpcode.CANCEL, 0x18),
        (FabricsType.PROPERTY_SET, 0), (FabricsType.CONNECT, 1), (FabricsType.PROPERTY_GET, 4),
        (FabricsType.AUTH_SEND, 5), (FabricsType.AUTH_RECEIVE, 6), (FabricsType.DISCONNECT, 8),
        (Cns.NAMESPACE_DESCRIPTORS, 3), (Cns.CSI_NAMESPACE, 5), (Cns.CSI_CONTROLLER, 6),
        (Cns.INDEPENDENT_NAMESPACE, 8), (Cns.IO_COMMAND_SETS, 0x1C), (LogPageId.ANA, 0x0C),
        (LogPageId.COMMANDS_SUPPORTED_AND_EFFECTS, 0x05), (LogPageId.DISCOVERY, 0x70),
        (FeatureId.NUMBER_OF_QUEUES, 0x07), (FeatureId.ASYNC_EVENT_CONFIGURATION, 0x0B),
        (FeatureId.KEEP_ALIVE_TIMER, 0x0F), (FeatureId.HOST_BEHAVIOR_SUPPORT, 0x16), (FeatureId.HOST_IDENTIFIER, 0x81),
        (FeatureId.NAMESPACE_WRITE_PROTECTION_CONFIG, 0x84), (Trtype.RDMA, 1), (Trtype.FC, 2), (Trtype.TCP, 3),
        (Trtype.MPTCP, 4), (Trtype.LOOP, 254), (Adrfam.IPV4, 1), (Adrfam.IPV6, 2), (SubType.REFERRAL, 1),
        (SubType.NVM, 2), (SubType.CURRENT_DISCOVERY, 3), (AnaState.OPTIMIZED, 1), (AnaState.CHANGE, 0xF),
        (AsyncEventType.NOTICE, 2), (AsyncNoticeInfo.ANA_CHANGE, 3), (AsyncNoticeInfo.DISCOVERY_LOG_CHANGE, 0xF0),
        (Oncs.DATASET_MANAGEMENT, 4), (Oncs.WRITE_ZEROES, 8), (Oacs.NAMESPACE_MANAGEMENT, 8), (Oaes.ANA_CHANGE, 0x800),
        (Oaes.DISCOVERY_LOG, 0x80000000), (Ctratt.TRAFFIC_BASED_KEEP_ALIVE, 0x40), (Lpa.EXTENDED_DATA, 4),
        (Sgls.TRANSPORT_DATA_BLOCK, 0x200000), (Sgls.ADDRESS_AS_OFFSET, 0x100000), (CommandEffects.SUPPORTED, 1),
        (CommandEffects.COMMAND_SUBMISSION_NO_OTHER_ON_NAMESPACE, 0x10000),
    ],
    ids=str,
)  # fmt: skip
def test_value(member: int, value: int) -> None:
    assert member == value


def test_constants() -> None:
    assert (NSID_ALL, FABRICS_OPCODE, NVME_PORT, DISCOVERY_PORT, CNTLID_MAX) == (0xFFFFFFFF, 0x7F, 4420, 8009, 0xFFEF)
    assert DISCOVERY_NQN == "nqn.2014-08.org.nvmexpress.discovery"


def test_the_opcode_tells_the_direction() -> None:
    assert AdminOpcode.IDENTIFY & 3 == NvmOpcode.READ & 3 == DataTransfer.CONTROLLER_TO_HOST
    assert AdminOpcode.SET_FEATURES & 3 == NvmOpcode.WRITE & 3 == DataTransfer.HOST_TO_CONTROLLER
    assert FabricsType.CONNECT & 3 == DataTransfer.HOST_TO_CONTROLLER
    assert FabricsType.DISCONNECT & 3 == NvmOpcode.FLUSH & 3 == DataTransfer.NONE


def test_no_enumeration_has_a_value_twice() -> None:
    found = [cls for _, cls in inspect.getmembers(enums, inspect.isclass) if issubclass(cls, IntEnum)]
    assert len(found) > 15
    for cls in found:
        assert len(cls.__members__) == len(list(cls)), cls
