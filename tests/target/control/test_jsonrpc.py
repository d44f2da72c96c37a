"""JSON-RPC 2.0 in lines: the specification's examples (section 7), and garbage."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nvmeof.target.control.jsonrpc import BATCH_MOST, Call, Code, encode, parse


def line(value: Any) -> bytes:
    return json.dumps(value).encode() + b"\n"


def codes(data: bytes) -> list[int]:
    return [each["error"]["code"] for each in parse(data).entries if not isinstance(each, Call)]


def test_calls_by_position_by_name_and_without_an_answer() -> None:
    (call,) = parse(line({"jsonrpc": "2.0", "method": "subtract", "params": [42, 23], "id": 1})).entries
    assert call == Call("subtract", [42, 23], 1)
    (call,) = parse(line({"jsonrpc": "2.0", "method": "update", "params": {"a": 1}})).entries
    assert call == Call("update", {"a": 1}, None, answered=False)
    (call,) = parse(line({"jsonrpc": "2.0", "method": "foobar", "id": None})).entries
    assert isinstance(call, Call) and call.answered


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b'{"jsonrpc": "2.0", "method": "foobar, "params": "bar", "baz]\n', Code.PARSE_ERROR),
        (b"\xff\xfe\n", Code.PARSE_ERROR),
        (b"\n", Code.PARSE_ERROR),
        (b"[" * 100_000 + b"\n", Code.PARSE_ERROR),
        (b"9" * 5000 + b"\n", Code.PARSE_ERROR),
        (b"NaN\n", Code.PARSE_ERROR),
        (line([]), Code.INVALID_REQUEST),
        (line([{"jsonrpc": "2.0", "method": "x"}] * (BATCH_MOST + 1)), Code.INVALID_REQUEST),
        (line(7), Code.INVALID_REQUEST),
        (line({"jsonrpc": "2.0", "method": 1, "params": "bar"}), Code.INVALID_REQUEST),
        (line({"jsonrpc": "1.0", "method": "x", "id": 1}), Code.INVALID_REQUEST),
        (line({"jsonrpc": "2.0", "method": "x", "params": 3, "id": 1}), Code.INVALID_REQUEST),
        (line({"jsonrpc": "2.0", "method": "x", "id": {}}), Code.INVALID_REQUEST),
        (line({"jsonrpc": "2.0", "method": "x", "id": True}), Code.INVALID_REQUEST),
        (line({"jsonrpc": "2.0", "method": "x", "id": 1, "extra": 1}), Code.INVALID_REQUEST),
    ],
)
def test_garbage_has_the_code_of_the_specification(data: bytes, code: Code) -> None:
    assert codes(data) == [code]


def test_a_batch_answers_each_entry_on_its_own() -> None:
    found = parse(line([1, {"jsonrpc": "2.0", "method": "x", "id": "9"}, {"foo": "boo", "id": 4}]))
    assert found.batch
    assert [isinstance(each, Call) for each in found.entries] == [False, True, False]
    assert found.entries[2]["id"] == 4, "the id of a request that is none, where it can be told"  # type: ignore[index]


@given(st.binary(max_size=200))
@example(b'{"jsonrpc":"2.0","id":1e999,"method":"x"}')
@example(b'{"\\ud800":1}')
def test_nothing_raises_and_every_answer_is_a_line(data: bytes) -> None:
    for entry in parse(data + b"\n").entries:
        if not isinstance(entry, Call):
            said = encode(entry)
            assert said.count(b"\n") == 1 and said.endswith(b"\n")
            assert json.loads(said)["jsonrpc"] == "2.0"


@pytest.mark.parametrize("number", ["1e999", "-1e999", "1" + "0" * 400 + ".0"])
def test_a_number_beyond_all_floats_is_refused(number: str) -> None:
    """As an identifier it would come back as Infinity, which is no JSON."""
    (answer,) = parse(b'{"jsonrpc":"2.0","method":"hello","id":' + number.encode() + b"}").entries
    assert isinstance(answer, dict) and answer["error"]["code"] == Code.PARSE_ERROR
    assert b"Infinity" not in encode(answer)
