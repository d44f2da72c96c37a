"""Run in the guest: a BPF program on the kernel's hook makes every new TCP socket an MPTCP one.

`update_socket_protocol` (Linux 6.6, net/mptcp/bpf.c) is called by socket(2) with the three arguments and gives the
protocol that is used; a program of the kind fmod_ret may give another. The program is assembled here, without compiler,
libbpf or bpftool; BTF has the number of the function. Only Python's library is used, since the guest has nothing else.

    python3 mptcpify.py PROGRAM [ARGS]     loads, runs PROGRAM, and takes the program away again
"""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

SYS_BPF = 321  # x86_64
BPF_PROG_LOAD, BPF_RAW_TRACEPOINT_OPEN = 5, 17
BPF_PROG_TYPE_TRACING = 26
BPF_MODIFY_RETURN = 26
HOOK = "update_socket_protocol"
BTF_KIND_FUNC = 12
BTF_KIND_BYTES = {1: 4, 3: 12, 14: 4, 17: 4}
"""Bytes that follow a type's 12 bytes, where their number is fixed: INT, ARRAY, VAR, DECL_TAG."""
BTF_MEMBER_BYTES = {4: 12, 5: 12, 6: 8, 13: 8, 15: 12, 19: 12}
"""Bytes per member of the others: STRUCT, UNION, ENUM, FUNC_PROTO, DATASEC, ENUM64."""


def functions(data: bytes) -> Iterator[tuple[int, str]]:
    """Return numbers and names of the functions in a BTF blob (Documentation/bpf/btf.rst)."""
    magic, _, _, header, type_at, type_bytes, text_at, text_bytes = struct.unpack_from("<HBBIIIII", data)
    if magic != 0xEB9F:
        raise ValueError("no BTF")
    types = data[header + type_at : header + type_at + type_bytes]
    text = data[header + text_at : header + text_at + text_bytes]
    at, number = 0, 1
    while at < len(types):
        name, info, _ = struct.unpack_from("<III", types, at)
        kind, members = info >> 24 & 0x1F, info & 0xFFFF
        if kind == BTF_KIND_FUNC:
            yield number, text[name : text.index(b"\0", name)].decode()
        at += 12 + BTF_KIND_BYTES.get(kind, 0) + members * BTF_MEMBER_BYTES.get(kind, 0)
        number += 1


def hook_number() -> int:
    """Return the BTF number of the hook. Raises SystemExit where this kernel has none."""
    try:
        data = Path("/sys/kernel/btf/vmlinux").read_bytes()
    except OSError as error:
        raise SystemExit(f"no BTF of the kernel: {error}") from None
    for number, name in functions(data):
        if name == HOOK:
            return number
    raise SystemExit(f"this kernel has no {HOOK}")


def _i(code: int, target: int = 0, source: int = 0, offset: int = 0, value: int = 0) -> bytes:
    return struct.pack("<BBhi", code, source << 4 | target, offset, value)


def program() -> bytes:
    """`family` in (2, 10), `type & 15` = 1 (SOCK_STREAM), `protocol` in (0, 6): 262; otherwise `protocol` as it is.

    r1 points at the arguments, 8 bytes each. A result of 0 lets the hook itself answer, which is the same.
    """
    load, jump_equal, jump_not, move = 0x79, 0x15, 0x55, 0xB7
    code = [
        _i(load, 2, 1, 0),
        _i(load, 3, 1, 8),
        _i(load, 0, 1, 16),
        _i(0x67, 0, value=32),  # the arguments have 32 bits: the upper half of the register is undefined
        _i(0xC7, 0, value=32),
        _i(0xBC, 2, 2),
        _i(0x57, 3, value=0xF),
        _i(jump_equal, 2, offset=1, value=2),
        _i(jump_not, 2, offset=4, value=10),
        _i(jump_not, 3, offset=3, value=1),
        _i(jump_equal, 0, offset=1, value=0),
        _i(jump_not, 0, offset=1, value=6),
        _i(move, 0, value=262),
        _i(0x95),
    ]
    return b"".join(code)


def bpf(command: int, attributes: bytes) -> int:
    """Call bpf(2). Raises OSError."""
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    result = ctypes.CDLL(None, use_errno=True).syscall(SYS_BPF, command, buffer, len(attributes))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(result)


def load(number: int) -> int:
    """Load the program into the kernel; return its file descriptor. Raises SystemExit with the verifier's message."""
    code = program()
    instructions, license_text = (
        ctypes.create_string_buffer(code, len(code)),
        ctypes.create_string_buffer(b"Apache-2.0"),
    )
    words = ctypes.create_string_buffer(65536)
    attributes = struct.pack(
        "<IIQQIIQII16sII36xI4x",
        BPF_PROG_TYPE_TRACING, len(code) // 8, ctypes.addressof(instructions), ctypes.addressof(license_text),
        1, len(words), ctypes.addressof(words), 0, 0, b"mptcpify", 0, BPF_MODIFY_RETURN, number,
    )  # fmt: skip
    try:
        return bpf(BPF_PROG_LOAD, attributes)
    except OSError as error:
        raise SystemExit(f"the kernel refuses the program: {error.strerror}\n{words.value.decode()}") from None


def attach(loaded: int) -> int:
    """Attach the program as long as the file descriptor is open. Raises SystemExit."""
    try:
        return bpf(BPF_RAW_TRACEPOINT_OPEN, struct.pack("<QII", 0, loaded, 0))
    except OSError as error:
        raise SystemExit(f"the kernel refuses to attach the program: {error.strerror}") from None


def main() -> int:
    """Run a command with the program attached."""
    held = attach(load(hook_number()))
    try:
        return subprocess.run(sys.argv[1:], check=False).returncode
    finally:
        os.close(held)


if __name__ == "__main__":
    sys.exit(main())
