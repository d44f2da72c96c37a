import struct

import pytest

from nvmeof.spec.enums import Cns, Csi
from nvmeof.spec.identify import parse_controller_list, parse_namespace_descriptors, parse_namespace_list
from nvmeof.spec.identify_namespace import IDENTIFY_NAMESPACE, IDENTIFY_NAMESPACE_INDEPENDENT
from nvmeof.spec.namespace_management import NAMESPACE_GRANULARITY_LIST
from nvmeof.spec.status import Status
from nvmeof.target.namespaces.lba_formats import LBA_FORMATS
from nvmeof.target.namespaces.namespace import Namespace, NamespaceIdentifiers
from nvmeof.target.storage.pools import RamdiskPool
from nvmeof.target.storage.ramdisk import Ramdisk
from tests.target.harness import COMMAND_SETS, IDENTIFY, NQN, Target, TestQueue

ALL = 0xFFFFFFFF
ABSENT = 0x77
OTHER = Csi.KEY_VALUE


def bit(byte: int, shift: int = 0) -> int:
    return byte + shift // 8 | (shift % 8) << 8


def insert(target: Target, nsid: int, *, attached: bool, csi: int = Csi.NVM, block_bytes: int = 512) -> Namespace:
    backend = Ramdisk("1M", block_bytes=block_bytes)
    namespace = Namespace(nsid, backend, NamespaceIdentifiers.derive(NQN, nsid), csi=csi)
    target.subsystem.insert(namespace, attached=attached)
    return namespace


@pytest.fixture
def target():
    """Return a target: namespace 1 active, 3 allocated; 5 and 7 the same in another I/O command set."""
    target = Target(pool=RamdiskPool("4M"))
    insert(target, 3, attached=False, block_bytes=4096)
    insert(target, 5, attached=True, csi=OTHER)
    insert(target, 7, attached=False, csi=OTHER)
    return target


@pytest.fixture
def queue(target):
    return target.admin()


@pytest.fixture
def other_set(monkeypatch):
    """Another I/O command set with separate structures."""

    class Structures:
        csi = OTHER

        @staticmethod
        def namespace(namespace):
            return bytes([0 if namespace is None else namespace.nsid, 0xAA]).ljust(4096, b"\0")

        @staticmethod
        def controller(controller):
            return b"\xbb".ljust(4096, b"\0")

    monkeypatch.setitem(COMMAND_SETS, OTHER, Structures)


def identify(queue: TestQueue, cns: int, nsid: int = 0, **fields) -> bytes:
    data = queue.read_bytes(queue.identify(cns, nsid, **fields))
    assert len(data) == 4096
    return data


def refused(queue: TestQueue, cns: int, nsid: int = 0, **fields) -> tuple[int, int]:
    completion = queue.identify(cns, nsid, **fields)
    assert completion.data is None
    return completion.status, queue.controller.error_log.newest()[0].error_location


LISTS = {0x02: [1, 5], 0x10: [1, 3, 5, 7]}
SET_LISTS = {0x07: {Csi.NVM: [1], OTHER: [5]}, 0x1A: {Csi.NVM: [1, 3], OTHER: [5, 7]}}


@pytest.mark.parametrize("cns", LISTS)
def test_lists(queue, cns):
    for after in range(9):
        assert parse_namespace_list(identify(queue, cns, after)) == [nsid for nsid in LISTS[cns] if nsid > after]
    assert parse_namespace_list(identify(queue, cns, ALL - 2)) == []
    for after in (ALL - 1, ALL):
        assert refused(queue, cns, after) == (Status.INVALID_NAMESPACE, 4)


@pytest.mark.parametrize("cns", SET_LISTS)
def test_lists_of_a_command_set(queue, other_set, cns):
    for csi, expected in SET_LISTS[cns].items():
        for after in range(9):
            found = parse_namespace_list(identify(queue, cns, after, csi=csi))
            assert found == [nsid for nsid in expected if nsid > after]
        for after in (ALL - 1, ALL):
            assert refused(queue, cns, after, csi=csi) == (Status.INVALID_NAMESPACE, 4)


def test_lists_end_at_1024():
    target = Target(max_namespaces=2000)
    backend = Ramdisk("4K")
    for nsid in range(2, 1101):
        space = Namespace(nsid, backend, NamespaceIdentifiers.derive(NQN, nsid))
        target.subsystem.namespaces[nsid] = space
    queue = target.admin()
    assert parse_namespace_list(identify(queue, 0x10)) == list(range(1, 1025))
    assert parse_namespace_list(identify(queue, 0x10, 1024)) == list(range(1025, 1101))


# Structures of one namespace: of an active one, of an allocated one, of one that does not exist, and of invalid NSIDs

ACTIVE, ALLOCATED = (0x00, 0x05, 0x08), (0x11, 0x1B, 0x1F)


@pytest.mark.parametrize("cns", ACTIVE + ALLOCATED)
def test_which_namespaces_have_structures(queue, other_set, cns):
    for nsid in range(1, 1025, 7 if cns else 1):
        there = nsid in LISTS[0x02 if cns in ACTIVE else 0x10]
        data = identify(queue, cns, nsid)
        assert any(data) == (there and cns not in (0x05, 0x1B)), nsid
    common = cns in (0x00, 0x05)
    for nsid in (0, 1025, ALL - 1, *(() if common else (ALL,))):
        assert refused(queue, cns, nsid) == (Status.INVALID_NAMESPACE, 4)


@pytest.mark.parametrize("cns", [0x05, 0x1B])
def test_structures_of_a_command_set(queue, other_set, cns):
    assert identify(queue, cns, 5, csi=OTHER)[:2] == b"\5\xaa"
    assert refused(queue, cns, 1, csi=OTHER) == (Status.INVALID_FIELD, bit(44, 24))
    assert not any(identify(queue, cns, 2, csi=OTHER))
    if cns == 0x1B:
        assert identify(queue, cns, 7, csi=OTHER)[:2] == b"\7\xaa"
        assert refused(queue, cns, ALL, csi=OTHER) == (Status.INVALID_NAMESPACE, 4)
    else:
        assert not any(identify(queue, cns, 7, csi=OTHER))
        assert identify(queue, cns, ALL, csi=OTHER)[:2] == b"\0\xaa"
    assert identify(queue, 0x06, csi=OTHER)[0] == 0xBB


def test_without_management_there_is_no_common_namespace():
    queue = Target().admin()
    for cns in (0x00, 0x05):
        assert refused(queue, cns, ALL) == (Status.INVALID_NAMESPACE, 4)


def test_the_common_namespace(queue):
    data = IDENTIFY_NAMESPACE.parse(identify(queue, 0x00, ALL))
    assert data.nlbaf == len(LBA_FORMATS) - 1
    assert [1 << item.lbads for item in data.lbaf[: len(LBA_FORMATS)]] == list(LBA_FORMATS)
    assert data.nsze == data.ncap == data.nuse == data.nsfeat == data.flbas == data.nmic == data.endgid == 0
    assert not any(data.nguid)


def test_allocated_and_active_are_the_same_structures(target, queue):
    for active, allocated in zip(ACTIVE, ALLOCATED, strict=True):
        assert identify(queue, active, 1) == identify(queue, allocated, 1)
    data = IDENTIFY_NAMESPACE.parse(identify(queue, 0x11, 3))
    assert (data.nsze, data.nvmcap, 1 << data.lbaf[data.flbas].lbads) == (256, 1 << 20, 4096)
    assert data.nguid == target.subsystem.namespaces[3].nguid and data.endgid == 1
    independent = IDENTIFY_NAMESPACE_INDEPENDENT.parse(identify(queue, 0x1F, 3))
    assert (independent.nmic, independent.anagrpid, independent.endgid, independent.nstat & 1) == (1, 1, 1, 1)


def test_descriptors_are_of_active_namespaces(queue):
    assert [item.nid for item in parse_namespace_descriptors(identify(queue, 3, 1)) if item.nidt == 4] == [b"\0"]
    assert [item.nid for item in parse_namespace_descriptors(identify(queue, 3, 5)) if item.nidt == 4] == [
        bytes([OTHER])
    ]
    for nsid in (2, 3, 7, 1024):
        assert refused(queue, 3, nsid) == (Status.INVALID_FIELD, 4)
    for nsid in (0, 1025, ALL - 1, ALL):
        assert refused(queue, 3, nsid) == (Status.INVALID_NAMESPACE, 4)


# Formats, granularity, groups, controllers


@pytest.mark.parametrize("cns", [0x09, 0x0A])
def test_format_indexes(queue, cns):
    for index in range(len(LBA_FORMATS)):
        completion = queue.command(0x06, length=4096, cdw10=cns, cdw11=index)
        data = queue.read_bytes(completion)
        assert len(data) == 4096
        if cns == 0x09:
            seen = IDENTIFY_NAMESPACE.parse(data)
            assert seen.nlbaf == len(LBA_FORMATS) - 1 and seen.nsze == 0
    for index in (len(LBA_FORMATS), 63, 64, 0xFFFF):
        assert queue.command(0x06, length=4096, cdw10=cns, cdw11=index).status == Status.INVALID_FIELD
        assert queue.controller.error_log.newest()[0].error_location == 44
    assert refused(queue, cns, csi=ABSENT) == (Status.INVALID_FIELD, bit(44, 24))


def test_granularity(queue, other_set):
    for csi in (Csi.NVM, OTHER):
        data = NAMESPACE_GRANULARITY_LIST.parse(identify(queue, 0x16, csi=csi))
        assert (data.attributes, data.num_descriptors) == (0, 0)
        assert (data.descriptors[0].nszegran, data.descriptors[0].ncapgran) == (4096, 4096)
        assert data.descriptors[1].nszegran == 0
    assert refused(queue, 0x16, csi=ABSENT) == (Status.INVALID_IO_COMMAND_SET, bit(44, 24))


def test_endurance_groups(queue):
    for first, expected in ((0, [1]), (1, [1]), (2, []), (0xFFFF, [])):
        completion = queue.command(0x06, length=4096, cdw10=0x19, cdw11=first)
        assert parse_controller_list(queue.read_bytes(completion)) == expected


def test_controllers(target, queue):
    others = [target.admin() for _ in range(2)]
    assert parse_controller_list(identify(queue, 0x13)) == [1, 2, 3]
    assert parse_controller_list(identify(queue, 0x13, cntid=3)) == [3]
    assert parse_controller_list(identify(queue, 0x13, cntid=0xFFFF)) == []
    assert parse_controller_list(identify(queue, 0x12, 3)) == []
    others[1].controller.attach(target.subsystem.namespaces[3])
    assert parse_controller_list(identify(queue, 0x12, 3)) == [3]
    assert parse_controller_list(identify(queue, 0x12, 1, cntid=2)) == [2, 3]
    assert parse_controller_list(identify(queue, 0x12, 2)) == []
    assert refused(queue, 0x12, ALL) == (Status.INVALID_FIELD, 4)
    for nsid in (0, 1025, ALL - 1):
        assert refused(queue, 0x12, nsid) == (Status.INVALID_NAMESPACE, 4)


def test_command_sets_of_a_controller(target, queue, other_set):
    target.admin()
    for cntid in (1, 2, 0xFFFF):
        data = identify(queue, 0x1C, cntid=cntid)
        (first, second) = struct.unpack_from("<QQ", data)
        assert first & 0b11 == 0b11 and second == 0
    for cntid in (0, 3, 0xFFFE):
        assert refused(queue, 0x1C, cntid=cntid) == (Status.INVALID_FIELD, bit(40, 16))


@pytest.mark.parametrize("cns", [row.cns for row in IDENTIFY.values() if row.csi])
def test_command_sets_that_do_not_exist(queue, cns):
    assert refused(queue, cns, 1, csi=ABSENT) == (Status.INVALID_FIELD, bit(44, 24))
    assert refused(queue, cns, 1, csi=0xFF) == (Status.INVALID_FIELD, bit(44, 24))


def test_structures_that_do_not_exist(queue):
    for cns in set(range(256)) - set(IDENTIFY):
        assert refused(queue, cns, 1) == (Status.INVALID_FIELD, 40), cns


def test_a_discovery_controller():
    queue = Target(pool=RamdiskPool("1M")).discovery()
    assert [cns for cns in range(256) if queue.identify(cns, 1).status == 0] == [Cns.CONTROLLER]
