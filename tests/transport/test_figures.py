"""Kernel structures: offsets against this kernel's own type information, and kernels that know less or more."""

from __future__ import annotations

import socket
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeof.transport import Address, mptcp_info, tcp_info
from nvmeof.transport.mptcp_info import MPTCP_INFO_FIELDS, parse_full_info, parse_subflow_data
from nvmeof.transport.tcp_info import TCP_INFO_FIELDS, subflow_info

BTF = Path("/sys/kernel/btf/vmlinux")
INT, ARRAY, STRUCT, UNION, ENUM, FUNC_PROTO, VAR, DATASEC, DECL_TAG, ENUM64 = 1, 3, 4, 5, 6, 13, 14, 15, 17, 19

HERE, THERE = Address("10.0.0.1", 1), Address("10.0.0.2", 2)


def btf_structs(wanted: set[str]) -> dict[str, tuple[int, dict[str, int]]]:
    """Return size and member offsets in bytes of the named structs, from the running kernel
    (Documentation/bpf/btf.rst).
    """
    data = BTF.read_bytes()
    _, _, _, header, types, types_bytes, strings, _ = struct.unpack_from("=HBBIIIII", data)

    def name(offset: int) -> str:
        start = header + strings + offset
        return data[start : data.index(b"\0", start)].decode()

    found: dict[str, tuple[int, dict[str, int]]] = {}
    at, end = header + types, header + types + types_bytes
    extra = {INT: (4, 0), ARRAY: (12, 0), STRUCT: (0, 12), UNION: (0, 12), ENUM: (0, 8), FUNC_PROTO: (0, 8)}
    extra |= {VAR: (4, 0), DATASEC: (0, 12), DECL_TAG: (4, 0), ENUM64: (0, 12)}
    while at < end:
        name_offset, info, size = struct.unpack_from("=III", data, at)
        kind, members, bitfields = info >> 24 & 0x1F, info & 0xFFFF, info >> 31
        at += 12
        if kind == STRUCT and name_offset and name(name_offset) in wanted:
            rows = struct.iter_unpack("=III", data[at : at + 12 * members])
            mask = 0xFFFFFF if bitfields else 0xFFFFFFFF
            found[name(name_offset)] = size, {name(row[0]): (row[2] & mask) // 8 for row in rows}
        fixed, each = extra.get(kind, (0, 0))
        at += fixed + each * members
    return found


@pytest.mark.skipif(not BTF.exists(), reason="needs /sys/kernel/btf/vmlinux (CONFIG_DEBUG_INFO_BTF)")
def test_offsets_are_those_of_this_kernel() -> None:
    wanted = {"tcp_info", "mptcp_info", "mptcp_full_info", "mptcp_subflow_data", "mptcp_subflow_info"}
    structs = btf_structs(wanted)
    if not wanted <= structs.keys():
        pytest.skip("this kernel's type information has no MPTCP (CONFIG_MPTCP)")
    for struct_name, fields, room in (
        ("tcp_info", TCP_INFO_FIELDS, tcp_info.TCP_INFO_BYTES),
        ("mptcp_info", MPTCP_INFO_FIELDS, mptcp_info.MPTCP_INFO_BYTES),
    ):
        size, members = structs[struct_name]
        assert size <= room
        for field, (offset, code) in fields.items():
            if field in members:  # an older kernel's structure ends earlier
                assert members[field] == offset, field
            else:
                assert offset + struct.calcsize("=" + code) > size, field
    full = structs["mptcp_full_info"][1]
    assert (full["num_subflows"], full["subflow_info"], full["mptcp_info"]) == (16, 24, mptcp_info._FULL_INFO.size)
    assert structs["mptcp_subflow_data"][0] == mptcp_info._SUBFLOW_DATA.size
    assert structs["mptcp_subflow_info"] == (mptcp_info._SUBFLOW_INFO_BYTES, {"id": 0, "addrs": 8})


def test_field_values_come_from_their_places() -> None:
    data = bytearray(248)
    struct.pack_into("=B", data, 0, 8)
    struct.pack_into("=I", data, 68, 1234)
    struct.pack_into("=I", data, 100, 5)
    struct.pack_into("=I", data, 148, 0xFFFFFFFF)
    struct.pack_into("=Q", data, 200, 1 << 40)
    flow = subflow_info(data, HERE, THERE, 7)
    assert (flow.id, flow.state, flow.rtt_us, flow.retransmits) == (7, "CLOSE_WAIT", 1234, 5)
    assert (flow.min_rtt_us, flow.bytes_sent) == (None, 1 << 40)


@given(st.integers(0, 600))
def test_any_length_of_tcp_info_is_read(length: int) -> None:
    flow = subflow_info(b"\x01" * length, HERE, THERE)
    assert (flow.state == "ESTABLISHED") == (length > 0)
    assert (flow.rtt_us is None) == (length < 72)
    assert (flow.bytes_sent is None) == (length < 208)


def test_unknown_state_is_numbered() -> None:
    assert subflow_info(b"\x63", HERE, THERE).state == "STATE_99"


def sockaddr(ip: str, port: int, scope: int = 0) -> bytes:
    if ":" in ip:
        packed = struct.pack("=H", socket.AF_INET6) + struct.pack(">HI", port, 0)
        packed += socket.inet_pton(socket.AF_INET6, ip) + struct.pack("=I", scope)
    else:
        packed = struct.pack("=H", socket.AF_INET) + struct.pack(">H", port) + socket.inet_pton(socket.AF_INET, ip)
    return packed.ljust(128, b"\0")


def full_info(count: int, tcp: tuple[int, int], info: tuple[int, int]) -> bytes:
    return struct.pack("=IIIIIIQQ", *tcp, *info, count, 16, 0, 0)


@pytest.mark.parametrize("tcp_bytes", [(104, 104), (248, 248), (512, 512), (600, 512)])
def test_full_info_of_other_kernels(tcp_bytes: tuple[int, int]) -> None:
    flows, figures = b"", b""
    for i in range(3):
        flows += struct.pack("=II", 10 + i, 0) + sockaddr(f"10.0.0.{i}", 100 + i) + sockaddr("2001:db8::1", 4420)
        figures += struct.pack("=B", 1).ljust(68, b"\0").__add__(struct.pack("=I", i + 1)).ljust(tcp_bytes[1], b"\0")
    found = parse_full_info(full_info(3, tcp_bytes, (264, 264)), flows, figures)
    assert [flow.id for flow in found] == [10, 11, 12]
    assert [flow.local for flow in found] == [Address(f"10.0.0.{i}", 100 + i) for i in range(3)]
    assert {flow.peer for flow in found} == {Address("2001:db8::1", 4420)}
    assert [flow.rtt_us for flow in found] == [1, 2, 3]
    assert (found[0].bytes_sent is None) == (min(tcp_bytes) < 208)


def test_a_longer_subflow_info_of_a_newer_kernel() -> None:
    flows = b"".join(struct.pack("=II", i, 0) + sockaddr("1.1.1.1", 1) + sockaddr("2.2.2.2", 2) for i in range(2))
    found = parse_full_info(full_info(2, (8, 8), (300, 264)), flows, bytes(16))
    assert [(flow.id, flow.peer.host) for flow in found] == [(0, "2.2.2.2"), (1, "2.2.2.2")]


def test_subflow_data_elements_lie_at_the_smaller_size() -> None:
    body = b"aaaabbbbcccc"
    assert parse_subflow_data(struct.pack("=IIII", 16, 3, 4, 9) + body) == [b"aaaa", b"bbbb", b"cccc"]
    assert parse_subflow_data(struct.pack("=IIII", 20, 1, 9, 4) + b"newr" + body) == [b"aaaa"]
    assert parse_subflow_data(struct.pack("=IIII", 16, 0, 4, 4)) == []


@pytest.mark.parametrize(
    ("storage", "address"),
    [
        (sockaddr("10.1.2.3", 80), Address("10.1.2.3", 80)),
        (sockaddr("2001:db8::5", 65535), Address("2001:db8::5", 65535)),
        (sockaddr("::ffff:10.1.2.3", 80), Address("10.1.2.3", 80)),
        (sockaddr("fe80::1", 80, socket.if_nametoindex("lo")), Address("fe80::1%lo", 80)),
        (sockaddr("fe80::1", 80, 999_999), Address("fe80::1%999999", 80)),
        (bytes(128), Address("", 0)),
        (b"", Address("", 0)),
    ],
)
def test_socket_addresses(storage: bytes, address: Address) -> None:
    assert mptcp_info._address(storage) == address
