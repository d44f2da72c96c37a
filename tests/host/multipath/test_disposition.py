"""The next step of a command that was completed with an error: the table of docs/multipath.md."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeof.host.multipath.disposition import BLOCK_LAYER, MAX_RETRIES, Disposition, decide, is_ana_error, retry_delay
from nvmeof.spec.enums import NvmOpcode
from nvmeof.spec.status import Status, status_field

READ, WRITE, COMPARE = NvmOpcode.READ, NvmOpcode.WRITE, NvmOpcode.COMPARE


@pytest.mark.parametrize(
    ("status", "plain", "compare"),
    [
        (Status.ANA_TRANSITION, Disposition.FAILOVER, Disposition.FAILOVER),
        (Status.ANA_INACCESSIBLE, Disposition.FAILOVER, Disposition.FAILOVER),
        (Status.ANA_PERSISTENT_LOSS, Disposition.FAILOVER, Disposition.FAILOVER),
        (Status.INTERNAL_PATH_ERROR, Disposition.FAILOVER, Disposition.COMPLETE),
        (Status.CONTROLLER_PATHING_ERROR, Disposition.FAILOVER, Disposition.COMPLETE),
        (Status.HOST_PATHING_ERROR, Disposition.FAILOVER, Disposition.COMPLETE),
        (Status.ABORTED_BY_HOST, Disposition.FAILOVER, Disposition.COMPLETE),
        (Status.INTERNAL_ERROR, Disposition.RETRY, Disposition.COMPLETE),
        (Status.NAMESPACE_NOT_READY, Disposition.RETRY, Disposition.COMPLETE),
        (Status.UNRECOVERED_READ_ERROR, Disposition.RETRY, Disposition.COMPLETE),
        (Status.AUTHENTICATION_REQUIRED, Disposition.COMPLETE, Disposition.COMPLETE),
    ],
)
def test_the_table(status: Status, plain: Disposition, compare: Disposition) -> None:
    for opcode in BLOCK_LAYER:
        assert decide(status_field(status), opcode) is plain
    for opcode in (COMPARE, NvmOpcode.RESERVATION_ACQUIRE, NvmOpcode.ZONE_APPEND, 0xC1):
        assert decide(status_field(status), opcode) is compare
    assert decide(status_field(status, dnr=True), READ) is Disposition.COMPLETE
    assert is_ana_error(status_field(status)) is (status.name.startswith("ANA_"))


def test_success_is_success_whatever_the_phase() -> None:
    assert decide(0, WRITE) is decide(1, WRITE) is Disposition.COMPLETE


def test_retries_end_but_failing_over_does_not() -> None:
    again = status_field(Status.INTERNAL_ERROR)
    assert [decide(again, READ, retries=n) for n in range(MAX_RETRIES + 1)] == [
        *[Disposition.RETRY] * MAX_RETRIES,
        Disposition.COMPLETE,
    ]
    assert decide(status_field(Status.ANA_INACCESSIBLE), READ, retries=100) is Disposition.FAILOVER


@given(field=st.integers(2, 0xFFFF), opcode=st.integers(0, 0xFF), retries=st.integers(0, 9))
def test_a_command_with_dnr_is_never_sent_again(field: int, opcode: int, retries: int) -> None:
    what = decide(field, opcode, retries=retries)
    if field & 0x8000:
        assert what is Disposition.COMPLETE
    if what is Disposition.FAILOVER:
        assert field >> 9 & 7 == 3  # the status code type is Path Related Status
    if opcode not in BLOCK_LAYER and what is not Disposition.COMPLETE:
        assert is_ana_error(field)


def test_the_delay_of_a_retry() -> None:
    field = status_field(Status.INTERNAL_ERROR)
    assert retry_delay(field, (1, 20, 300)) == 0.0
    assert [retry_delay(field | crd << 12, (1, 20, 300)) for crd in (1, 2, 3)] == pytest.approx([0.1, 2.0, 30.0])
