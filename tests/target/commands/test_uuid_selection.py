import pytest

from nvmeof.spec.flags import Ctratt
from nvmeof.spec.identify import IDENTIFY_CONTROLLER
from nvmeof.spec.status import Status
from nvmeof.spec.uuid_list import UuidAssociation, parse_uuid_list
from nvmeof.target.commands.rows.uuid_selection import TELEMETRY_UUID
from tests.target.harness import Target


@pytest.fixture
def target():
    return Target()


@pytest.fixture
def queue(target):
    return target.admin()


def identify(queue, cns):
    return queue.read_bytes(queue.command(0x06, length=4096, cdw10=cns))


def test_the_uuid_list(queue):
    data = identify(queue, 0x17)
    assert parse_uuid_list(data) == [(UuidAssociation.NONE, TELEMETRY_UUID)]
    assert data[32] == 0 and data[48:64] == TELEMETRY_UUID.bytes
    assert not any(data[:32]) and not any(data[33:48]) and not any(data[64:])
    assert IDENTIFY_CONTROLLER.parse(identify(queue, 1)).ctratt & Ctratt.UUID_LIST


@pytest.mark.parametrize("lid", [0x02, 0x07, 0x08])
def test_the_uuid_index_of_get_log_page(queue, lid):
    for index in range(128):
        completion = queue.command(0x02, length=512, cdw10=lid | 127 << 16, cdw14=index)
        if index <= 1:
            assert completion.status == Status.SUCCESS
        else:
            assert completion.status == Status.INVALID_FIELD
            assert queue.controller.error_log.newest()[0].error_location == 56


def test_the_effects_log_reports_uuid_selection(target, queue):
    for asked, expected in ((queue, True), (target.discovery(), False)):
        page = asked.read_bytes(asked.command(0x02, length=4096, cdw10=5 | 1023 << 16))
        assert bool(int.from_bytes(page[8:12], "little") & 1 << 19) is expected


def test_a_discovery_controller_has_no_uuid_list(target):
    discovery = target.discovery()
    assert discovery.command(0x06, length=4096, cdw10=0x17).status == Status.INVALID_FIELD
    assert not IDENTIFY_CONTROLLER.parse(identify(discovery, 1)).ctratt & Ctratt.UUID_LIST
    completion = discovery.command(0x02, length=512, cdw10=1 | 127 << 16, cdw14=9)
    assert completion.status == Status.SUCCESS, "reserved there"
