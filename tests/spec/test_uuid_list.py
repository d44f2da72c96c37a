from uuid import UUID

import construct
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeof.spec.uuid_list import UUID_ENTRIES_MAX, UUID_LIST, UuidAssociation, build_uuid_list, parse_uuid_list


def test_sizes_and_places():
    assert UUID_LIST.sizeof() == 4096
    first, second = UUID(int=1 << 127), UUID(int=7)
    data = build_uuid_list([first, second])
    assert len(data) == 4096 and not any(data[:32])
    assert data[32:64] == bytes(16) + first.bytes
    assert data[64:96] == bytes(16) + second.bytes
    assert not any(data[96:])


@given(st.lists(st.uuids(), max_size=UUID_ENTRIES_MAX))
def test_a_built_list_is_read(uuids):
    assert parse_uuid_list(build_uuid_list(uuids)) == [(UuidAssociation.NONE, uuid) for uuid in uuids]


def test_associations_of_other_uuids():
    entries = b"".join(bytes([header]) + bytes(15) + bytes([header + 1]) * 16 for header in range(4))
    found = parse_uuid_list((bytes(32) + entries).ljust(4096, b"\0"))
    assert [association for association, _ in found] == [0, UuidAssociation.PCI_VENDOR, 2, 3]


def test_a_list_that_is_cut_off():
    with pytest.raises(construct.StreamError):
        parse_uuid_list(bytes(4095))
