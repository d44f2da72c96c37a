"""Namespace Management: every field's offset against the specification."""

from __future__ import annotations

import pytest

from nvmeof.spec.namespace_management import (
    NAMESPACE_CREATE,
    NAMESPACE_GRANULARITY_LIST,
    AttachmentSelect,
    ManagementSelect,
    build_granularity_list,
)
from nvmeof.wire import layout

CREATE_OFFSETS = {
    "nsze": 0, "ncap": 8, "flbas": 26, "dps": 29, "nmic": 30, "anagrpid": 92, "nvmsetid": 100, "endgid": 102,
    "lbstm": 384, "nphndls": 392, "znsco": 499, "rar": 500, "ror": 504, "rnumzrwa": 508, "phndl": 512,
}  # fmt: skip


def test_the_data_of_a_create_operation():
    assert NAMESPACE_CREATE.sizeof() == 4096
    assert {name: offset for name, (offset, _) in layout(NAMESPACE_CREATE).items()} == CREATE_OFFSETS


@pytest.mark.parametrize("per_format", [False, True])
def test_granularity(per_format):
    assert NAMESPACE_GRANULARITY_LIST.sizeof() == 4096
    data = build_granularity_list([(4096, 8192), (1, 2)], per_format=per_format)
    assert data[:5] == bytes([per_format, 0, 0, 0, 1]) and not any(data[5:32])
    assert data[32:64] == b"".join(value.to_bytes(8, "little") for value in (4096, 8192, 1, 2))
    assert len(data) == 4096 and not any(data[64:])


def test_operations():
    assert list(ManagementSelect) == [0, 1] == list(AttachmentSelect)
