"""The program that sets marks and congestion controls, run by a small interpreter of its instructions."""

from __future__ import annotations

import socket
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeof.errors import ConfigurationError
from nvmeof.transport.paths.sockops import SubflowRule, assemble


def execute(code: bytes, op: int, local_ip4: int) -> tuple[int, list[tuple[int, int, bytes]]]:
    """Return the return value, and the calls of bpf_setsockopt as (level, option, value)."""
    instructions = list(struct.iter_unpack("=BBhi", code))
    registers: list[Any] = [0] * 11
    registers[1], stack, calls, at = "ctx", bytearray(512), [], 0
    while True:
        opcode, both, offset, value = instructions[at]
        target, source = both & 15, both >> 4
        at += 1
        if opcode == 0xBF:
            registers[target] = 512 if source == 10 else registers[source]
        elif opcode == 0xB7:
            registers[target] = value
        elif opcode == 0x07:
            registers[target] += value
        elif opcode == 0x61:
            assert registers[source] == "ctx"
            registers[target] = {0: op, 28: local_ip4}[offset]
        elif opcode == 0x62:
            struct.pack_into("=i", stack, 512 + offset, value)
        elif opcode == 0x15:
            at += offset if registers[target] == value else 0
        elif opcode == 0x56:
            at += offset if registers[target] != value & 0xFFFFFFFF else 0
        elif opcode == 0x85:
            assert (value, registers[1]) == (49, "ctx")
            calls.append((registers[2], registers[3], bytes(stack[registers[4] : registers[4] + registers[5]])))
            registers[1:6] = [None] * 5
        else:
            assert opcode == 0x95
            return registers[0], calls


def as_loaded(address: str) -> int:
    return int(struct.unpack("=I", socket.inet_aton(address))[0])


RULES = (
    SubflowRule(address="10.1.1.2", mark=0xFFFFFFFE),
    SubflowRule(address="200.1.2.255", mark=7, congestion="reno"),
    SubflowRule(address="10.1.3.2", congestion="cubic"),
)


@pytest.mark.parametrize("op", range(16))
@pytest.mark.parametrize("rule", RULES)
def test_each_address_gets_the_values_of_its_rule(rule: SubflowRule, op: int) -> None:
    expected = []
    if op in (3, 4, 5):  # connecting, connected, accepted
        if rule.mark is not None:
            expected.append((1, 36, struct.pack("=I", rule.mark)))
        if rule.congestion is not None:
            expected.append((6, 13, rule.congestion.encode().ljust(16, b"\0")))
    assert execute(assemble(RULES), op, as_loaded(rule.address)) == (1, expected)


@given(st.integers(0, 0xFFFFFFFF))
def test_other_addresses_get_nothing(address: int) -> None:
    if address not in {as_loaded(rule.address) for rule in RULES}:
        assert execute(assemble(RULES), 3, address) == (1, [])


@pytest.mark.parametrize(
    "values",
    [{"address": "2001:db8::1"}, {"address": "10.1.1.1", "mark": -1}, {"address": "10.1.1.1", "congestion": "x" * 16}],
)
def test_bad_rules(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        SubflowRule(**values)
