"""Messages, layouts and replies: against bytes, against this kernel's type information, and without pyroute2."""

from __future__ import annotations

import builtins
import socket
import struct
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeof.transport import Address
from nvmeof.transport.paths import diag, netlink, sysctl
from nvmeof.transport.paths.diag import SubflowFlag
from nvmeof.transport.paths.events import MptcpEvent, MptcpEventType, parse_event
from nvmeof.transport.paths.model import PathEndpoint, PathFlag, PathsUnavailable
from nvmeof.transport.paths.netlink import attribute, attributes
from nvmeof.transport.paths.pm import Command, PathManagerSocket, _address, _endpoint, _remote

from ..test_figures import BTF, btf_structs
from ..test_mptcp import needs_mptcp

needs_pyroute2 = pytest.mark.skipif(not netlink.available(), reason="pip install 'nvmeof-mptcp[mptcp]'")


@given(st.lists(st.tuples(st.integers(0, 0x3FFF), st.binary(max_size=30)), max_size=5))
def test_attributes_round_trip(given_: list[tuple[int, bytes]]) -> None:
    data = b"".join(attribute(kind, payload) for kind, payload in given_)
    assert len(data) % 4 == 0
    assert [(kind, bytes(payload)) for kind, payload in attributes(data)] == given_


@given(st.binary(max_size=80))
def test_any_bytes_end_as_attributes(data: bytes) -> None:
    assert len(list(attributes(data))) <= 20


@needs_pyroute2
def test_commands_on_the_wire() -> None:
    """Every attribute in the kernel's own numbers and widths (include/uapi/linux/mptcp_pm.h)."""
    message = netlink.messages().pm_msg()
    message["cmd"], message["version"] = int(Command.SUBFLOW_CREATE), 1
    local = PathEndpoint(address="10.1.2.1", device="lo", port=4420, flags=PathFlag.SUBFLOW, id=7)
    parts = (_address(local), ("TOKEN", 0x01020304), ("LOC_ID", 7), _remote(Address("2001:db8::1", 80)))
    message["attrs"] = [(f"MPTCP_PM_ATTR_{name}", *rest) for name, *rest in parts]
    data = netlink.encode(message)
    assert data[:4] == bytes((10, 1, 0, 0))
    found = {kind: bytes(payload) for kind, payload in attributes(data[4:])}
    assert found.keys() == {1, 4, 5, 6}
    assert found[4] == struct.pack("=I", 0x01020304)
    assert found[5] == bytes((7,))
    assert {kind: bytes(payload) for kind, payload in attributes(found[1])} == {
        1: struct.pack("=H", socket.AF_INET),
        2: bytes((7,)),
        3: socket.inet_aton("10.1.2.1"),
        5: struct.pack("=H", 4420),
        6: struct.pack("=I", 2),
        7: struct.pack("=i", socket.if_nametoindex("lo")),
    }
    assert {kind: bytes(payload) for kind, payload in attributes(found[6])} == {
        1: struct.pack("=H", socket.AF_INET6),
        4: socket.inet_pton(socket.AF_INET6, "2001:db8::1"),
        5: struct.pack("=H", 80),
    }
    # the nested attributes are marked as nested, which newer kernels require
    assert struct.unpack_from("=HH", data, 4)[1] == 0x8001


@needs_pyroute2
def test_an_endpoint_comes_back() -> None:
    message = netlink.messages().pm_msg()
    message["cmd"], message["version"] = 3, 1
    local = PathEndpoint(address="2001:db8::5", device="lo", flags=PathFlag.SIGNAL | PathFlag.BACKUP, id=200)
    name, *rest = _address(local)
    message["attrs"] = [(f"MPTCP_PM_ATTR_{name}", *rest)]
    body = netlink.encode(message)
    whole = struct.pack("=IHHII", 16 + len(body), 30, 0, 1, 0) + body
    answer = netlink.decode(netlink.messages().pm_msg, whole)
    assert _endpoint(answer.get_attr("MPTCP_PM_ATTR_ADDR")) == local


@needs_pyroute2
def test_events_from_bytes() -> None:
    body = bytes((6, 1, 0, 0))  # ANNOUNCED
    body += attribute(1, struct.pack("=I", 0xCAFE)) + attribute(4, b"\x03") + attribute(10, struct.pack(">H", 4420))
    body += attribute(7, socket.inet_aton("10.1.2.1")) + attribute(2, struct.pack("=H", 2))
    whole = struct.pack("=IHHII", 16 + len(body), 30, 0, 1, 0) + body
    event = parse_event(netlink.decode(netlink.messages().pm_event, whole))
    remote = Address("10.1.2.1", 4420)
    assert event == MptcpEvent(type=MptcpEventType.ANNOUNCED, token=0xCAFE, remote=remote, remote_id=3)
    unknown = whole[:16] + b"\x63" + whole[17:]
    assert parse_event(netlink.decode(netlink.messages().pm_event, unknown)) is None


def test_an_error_has_the_kernels_words() -> None:
    message = struct.pack("=IHHII", 0, 2, 0, 1, 0) + struct.pack("=i", -22) + struct.pack("=IHHII", 16, 30, 0, 1, 0)
    message += attribute(1, b"invalid local ID\0")
    with pytest.raises(OSError, match="invalid local ID") as raised:
        netlink.raise_error(message, netlink.NLM_F_ACK_TLVS | netlink.NLM_F_CAPPED)
    assert raised.value.errno == 22
    netlink.raise_error(bytes(20), 0)


@needs_pyroute2
@needs_mptcp
def test_reading_needs_no_privilege_here() -> None:
    with PathManagerSocket() as pm:
        assert pm.limits().subflows >= 0
        assert isinstance(pm.endpoints(), list)
        assert {"mptcp_pm_cmds", "mptcp_pm_events"} <= pm.groups.keys()


def test_without_pyroute2_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **keywords: Any) -> Any:
        if name.partition(".")[0] == "pyroute2":
            raise ImportError(name)
        return real(name, *rest, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    for name in [each for each in sys.modules if each.startswith("pyroute2")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "nvmeof.transport.paths.messages", raising=False)
    with pytest.raises(PathsUnavailable, match=r"pip install 'nvmeof-mptcp\[mptcp\]'"):
        PathManagerSocket()
    assert not netlink.available()
    assert isinstance(diag.connections(), list), "the figures need none"


# -- diagnosis


@pytest.mark.skipif(not BTF.exists(), reason="needs /sys/kernel/btf/vmlinux (CONFIG_DEBUG_INFO_BTF)")
def test_layouts_are_those_of_this_kernel() -> None:
    structs = btf_structs({"inet_diag_msg", "inet_diag_req_v2", "inet_diag_sockid"})
    size, members = structs["inet_diag_msg"]
    assert (size, members["idiag_state"], members["id"], members["idiag_inode"]) == (diag.REPLY_BYTES, 1, 4, 68)
    assert members["idiag_inode"] == diag._REPLY_INODE
    size, members = structs["inet_diag_req_v2"]
    assert (members["id"], size) == (diag.REQUEST.size, diag.REQUEST.size + diag.SOCKID.size + 12)
    _, members = structs["inet_diag_sockid"]
    assert (members["idiag_if"], members["idiag_cookie"]) == (diag.SOCKID.size, diag.SOCKID.size + 4)


def reply(*attrs: bytes, family: int = socket.AF_INET) -> bytes:
    ends = socket.inet_aton("10.0.0.1").ljust(16, b"\0"), socket.inet_aton("10.0.0.2").ljust(16, b"\0")
    head = bytes((family, 1, 0, 0)) + struct.pack(">HH16s16s", 4420, 5555, *ends) + struct.pack("=III", 3, 0, 0)
    return head.ljust(68, b"\0") + struct.pack("=I", 99) + b"".join(attrs)


def test_a_reply() -> None:
    subflow = attribute(2, struct.pack("=I", 0xABCD)) + attribute(8, struct.pack("=I", 32 | 128 | 1 << 20))
    subflow += attribute(9, b"\x02") + attribute(10, b"\x01") + attribute(99, b"newer")
    ulp = attribute(19, attribute(1, b"mptcp\0") + attribute(3, subflow))
    found = diag.parse_reply(
        reply(attribute(2, b"\x01" * 104), attribute(4, b"cubic\0"), attribute(15, b"\5\0\0\0"), ulp)
    )
    assert found is not None
    assert (found.local, found.peer) == (Address("10.0.0.1", 4420), Address("10.0.0.2", 5555))
    assert (found.device_index, found.inode, found.congestion, found.mark) == (3, 99, "cubic", 5)
    assert (found.token, found.local_id, found.remote_id) == (0xABCD, 1, 2)
    assert found.flags == SubflowFlag.BACKUP_LOC | SubflowFlag.CONNECTED
    assert found.backup is True
    assert len(found.info) == 104


def test_a_reply_of_plain_tcp_and_of_little() -> None:
    found = diag.parse_reply(reply())
    assert found is not None
    assert (found.backup, found.token, found.congestion, found.info) == (None, None, None, b"")
    assert diag.parse_reply(reply()[:71]) is None


@given(st.binary(max_size=300))
def test_any_reply_is_read(data: bytes) -> None:
    family = bytes((socket.AF_INET6,)) if len(data) % 2 else bytes((socket.AF_INET,))
    found = diag.parse_reply(family + data)
    assert (found is None) == (len(data) < 71)


def test_figures_of_a_real_connection() -> None:
    """Plain TCP over loopback: found by its addresses, without any privilege."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
        client.connect(listener.getsockname())
        found = diag.look_up(Address(*client.getsockname()), Address(*client.getpeername()))
        assert found is not None
        assert found.state == 1
        assert found.congestion
        assert diag.look_up(Address("127.0.0.1", 1), Address("127.0.0.1", 2)) is None


# -- sysctls


@needs_mptcp
def test_settings_of_this_kernel() -> None:
    settings = sysctl.settings()
    assert settings.enabled
    assert settings.scheduler.current in settings.scheduler.available
    assert settings.path_manager.current in settings.path_manager.available
    assert not set(settings.bpf_schedulers) & {"default"}


@pytest.mark.parametrize(
    ("files", "current", "available", "chosen"),
    [
        ({"enabled": "1", "pm_type": "1"}, "userspace", ("kernel", "userspace"), ("pm_type", "0")),
        (
            {"enabled": "1", "pm_type": "0", "path_manager": "kernel", "available_path_managers": "kernel userspace x"},
            "kernel",
            ("kernel", "userspace", "x"),
            ("path_manager", "kernel"),
        ),
    ],
)
def test_older_and_newer_kernels(
    files: dict[str, str],
    current: str,
    available: tuple[str, ...],
    chosen: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Any,
) -> None:
    for name, value in files.items():
        (tmp_path / name).write_text(value + "\n")
    monkeypatch.setattr(sysctl, "_DIRECTORY", tmp_path)
    choice = sysctl.settings().path_manager
    assert (choice.current, choice.available) == (current, available)
    assert sysctl.path_manager_sysctl("kernel") == chosen
    assert sysctl.settings().scheduler.available == ("default",)


def test_no_mptcp_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(sysctl, "_DIRECTORY", tmp_path)
    with pytest.raises(PathsUnavailable, match="no MPTCP"):
        sysctl.settings()
