"""Mark and congestion control per path: a small BPF program (type SOCK_OPS) on the cgroup of this process.

The socket options of an MPTCP connection apply to all of its subflows alike; no option reaches one alone. The program
runs when a TCP socket of the cgroup connects or is accepted, subflows included, and sets what the rule for its local
IPv4 address says. It is assembled here (no compiler, no library), and goes when the returned object is closed or the
process ends, in whichever way. Needs CAP_BPF and CAP_NET_ADMIN, a cgroup v2 hierarchy, and Linux 5.7.

The rules hold for every program in the same cgroup: give a service a separate one (systemd does).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from nvmeof.errors import ConfigurationError
from nvmeof.transport.paths.model import PathsUnavailable

BPF_PROG_LOAD: Final = 5
BPF_LINK_CREATE: Final = 28
BPF_PROG_TYPE_SOCK_OPS: Final = 13
BPF_CGROUP_SOCK_OPS: Final = 3
BPF_FUNC_SETSOCKOPT: Final = 49
_SYSCALLS: Final = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "s390x": 351, "ppc64le": 361}

OP_CONNECT: Final = 3
OP_ACTIVE_ESTABLISHED: Final = 4
OP_PASSIVE_ESTABLISHED: Final = 5
_CTX_OP: Final = 0
_CTX_LOCAL_IP4: Final = 28
"""Offsets in struct bpf_sock_ops (include/uapi/linux/bpf.h)."""

_SOL_TCP: Final = 6
_TCP_CONGESTION: Final = 13
_CONGESTION_BYTES: Final = 16
_SO_MARK: Final = 36
_INSTRUCTION: Final = struct.Struct("=BBhi")
_R0, _R1, _R2, _R3, _R4, _R5, _R6, _R7, _R10 = 0, 1, 2, 3, 4, 5, 6, 7, 10


@dataclass(frozen=True, slots=True, kw_only=True)
class SubflowRule:
    """What sockets with a local IPv4 address get; None leaves it as it is."""

    address: str
    mark: int | None = None
    """SO_MARK, for routing rules and traffic control."""
    congestion: str | None = None
    """TCP_CONGESTION."""

    def __post_init__(self) -> None:
        try:
            socket.inet_aton(self.address)
        except OSError:
            raise ConfigurationError(f"{self.address!r} is no IPv4 address: rules per subflow need one") from None
        if self.mark is not None and not 0 <= self.mark <= 0xFFFFFFFF:
            raise ConfigurationError(f"the mark {self.mark} is not between 0 and {0xFFFFFFFF}")
        if self.congestion is not None and not 0 < len(self.congestion.encode()) < _CONGESTION_BYTES:
            raise ConfigurationError(f"{self.congestion!r} is no name of a congestion control")


def _i(code: int, target: int = 0, source: int = 0, offset: int = 0, value: int = 0) -> bytes:
    return _INSTRUCTION.pack(code, source << 4 | target, offset, value - (1 << 32) if value > 0x7FFFFFFF else value)


def _setsockopt(level: int, option: int, value: bytes) -> bytes:
    """Return instructions that put `value` on the stack and call bpf_setsockopt(ctx, level, option, value, size)."""
    value = value.ljust((len(value) + 3) & ~3, b"\0")
    code = b""
    for at in range(0, len(value), 4):
        code += _i(0x62, _R10, offset=at - len(value), value=struct.unpack_from("=I", value, at)[0])  # *(u32 *)
    code += _i(0xBF, _R1, _R6) + _i(0xB7, _R2, value=level) + _i(0xB7, _R3, value=option)
    code += _i(0xBF, _R4, _R10) + _i(0x07, _R4, value=(-len(value)) & 0xFFFFFFFF)
    return code + _i(0xB7, _R5, value=len(value)) + _i(0x85, value=BPF_FUNC_SETSOCKOPT)


def assemble(rules: Sequence[SubflowRule]) -> bytes:
    """Return the program for these rules."""
    end = _i(0xB7, _R0, value=1) + _i(0x95)  # return 1
    code = _i(0xBF, _R6, _R1) + _i(0x61, _R2, _R6, _CTX_OP)
    for number, op in enumerate((OP_CONNECT, OP_ACTIVE_ESTABLISHED, OP_PASSIVE_ESTABLISHED)):
        code += _i(0x15, _R2, offset=4 - number, value=op)  # if op == ...: past the end below
    code += end + _i(0x61, _R7, _R6, _CTX_LOCAL_IP4)
    for rule in rules:
        body = b""
        if rule.mark is not None:
            body += _setsockopt(socket.SOL_SOCKET, _SO_MARK, struct.pack("=I", rule.mark))
        if rule.congestion is not None:
            body += _setsockopt(_SOL_TCP, _TCP_CONGESTION, rule.congestion.encode().ljust(_CONGESTION_BYTES, b"\0"))
        address = struct.unpack("=I", socket.inet_aton(rule.address))[0]
        # 32-bit comparison: the address is compared as it lies in memory
        code += _i(0x56, _R7, offset=len(body) // 8, value=address) + body
    return code + end


class SubflowRules:
    """Rules in force until `close`. Raises PathsUnavailable, with the reason."""

    def __init__(self, rules: Sequence[SubflowRule], cgroup: Path | None = None) -> None:
        self._link = -1
        directory = cgroup or own_cgroup()
        program = _load(assemble(rules))
        try:
            group = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
            try:
                self._link = _bpf(BPF_LINK_CREATE, struct.pack("=IIII", program, group, BPF_CGROUP_SOCK_OPS, 0))
            finally:
                os.close(group)
        except OSError as error:
            raise _sentence(error, f"attaching a program to {directory}") from None
        finally:
            os.close(program)

    def close(self) -> None:
        """Take the rules away; sockets keep what they have. Idempotent."""
        if self._link >= 0:
            os.close(self._link)
            self._link = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def own_cgroup() -> Path:
    """Return the directory of this process's cgroup (v2). Raises PathsUnavailable where there is none."""
    own = ""
    with contextlib.suppress(OSError):
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        own = next((line[3:] for line in lines if line.startswith("0::")), "")
    for root in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified"):
        if own and Path(root, "cgroup.procs").exists():
            directory = Path(root) / own.lstrip("/")
            return directory if directory.exists() else Path(root)
    raise PathsUnavailable("rules per subflow need a cgroup v2 hierarchy, which is not mounted here")


def _load(code: bytes) -> int:
    instructions, license_text = ctypes.create_string_buffer(code), ctypes.create_string_buffer(b"Apache-2.0")
    attributes = struct.pack(
        "=IIQQIIQII16sII",
        BPF_PROG_TYPE_SOCK_OPS,
        len(code) // _INSTRUCTION.size,
        ctypes.addressof(instructions),
        ctypes.addressof(license_text),
        0,
        0,
        0,
        0,
        0,
        b"nvmeof_subflows"[:15],
        0,
        BPF_CGROUP_SOCK_OPS,
    )
    try:
        return _bpf(BPF_PROG_LOAD, attributes)
    except OSError as error:
        raise _sentence(error, "loading a BPF program") from None


def _bpf(command: int, attributes: bytes) -> int:
    number = _SYSCALLS.get(platform.machine())
    if number is None:
        raise PathsUnavailable(f"rules per subflow are not known for the processor {platform.machine()}")
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    result = int(ctypes.CDLL(None, use_errno=True).syscall(number, command, buffer, len(attributes)))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _sentence(error: OSError, what: str) -> Exception:
    if error.errno in (errno.EPERM, errno.EACCES):
        return PathsUnavailable(f"{what} needs CAP_BPF and CAP_NET_ADMIN, outside of any user namespace")
    return PathsUnavailable(f"{what} does not work on this kernel: {error.strerror or error}")
