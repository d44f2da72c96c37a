"""JSON-RPC 2.0 in lines: one JSON value per line, UTF-8, in both directions. No I/O here.

A line is a request, a notification, or a batch of them (the specification's section 6). Codes below -32099 are the
specification's (5.1); those from -32001 on are this package's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final, NoReturn

REQUEST_BYTES: Final = 256 << 10
"""The longest line of a client, its end included."""
BATCH_MOST: Final = 64
"""The most requests of one batch."""

Message = dict[str, Any]


class Code(IntEnum):
    """The codes of errors: the specification's, then this package's."""

    PARSE_ERROR = -32700
    INVALID_REQUEST = -32600
    METHOD_NOT_FOUND = -32601
    INVALID_PARAMS = -32602
    INTERNAL_ERROR = -32603
    CONFIGURATION = -32001
    """An object that does not exist, or a value that cannot be used (`ConfigurationError`)."""
    STATE = -32002
    """The target is in no state for it (`LocalProtocolError`)."""
    FAILED = -32003
    """The operating system, a device or a network does not allow it (`OSError`, `TransportError`)."""
    CROWDED = -32004
    """Too many clients are connected, or the client is too slow."""
    FORBIDDEN = -32005
    """The peer is another user."""


class RpcError(Exception):
    """An error of a call, as it is sent: a code, one sentence, and data for programs."""

    def __init__(self, code: int, message: str, data: object = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.data = data


@dataclass(frozen=True, slots=True)
class Call:
    """One request; `answered` is False for a notification, whose result nobody gets."""

    method: str
    params: Mapping[str, Any] | Sequence[Any]
    id: str | int | float | None = None
    answered: bool = True


@dataclass(frozen=True, slots=True)
class Requests:
    """The content of a line: calls, and answers to what is no call. `batch`: the answers are one list."""

    entries: tuple[Call | Message, ...]
    batch: bool = False


def result(number: object, value: object) -> Message:
    """Make the answer to a call."""
    return {"jsonrpc": "2.0", "id": number, "result": value}


def failure(number: object, error: RpcError) -> Message:
    """Make the answer to a call that failed."""
    described: Message = {"code": int(error.code), "message": error.message}
    if error.data is not None:
        described["data"] = error.data
    return {"jsonrpc": "2.0", "id": number, "error": described}


def notification(method: str, params: Mapping[str, Any]) -> Message:
    """Make a message that has no answer."""
    return {"jsonrpc": "2.0", "method": method, "params": params}


def encode(message: Message | list[Message]) -> bytes:
    """Return a message, or the answers to a batch, as one line."""
    return json.dumps(message, separators=(",", ":"), ensure_ascii=True, default=str).encode() + b"\n"


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON")


def _finite(text: str) -> float:
    """Return a number with a fraction or exponent; one that is too large would be no JSON in an answer."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is too large")
    return number


def decode(line: bytes) -> Any:
    """Return the JSON value of a line. Raises `RpcError` (parse error) for anything else."""
    try:
        return json.loads(line.decode(), parse_constant=_refuse_constant, parse_float=_finite)
    except UnicodeDecodeError:
        raise RpcError(Code.PARSE_ERROR, "a line is UTF-8 text: this one is not") from None
    except json.JSONDecodeError as error:
        raise RpcError(Code.PARSE_ERROR, f"a line is one JSON value: {error.msg}, at column {error.colno}") from None
    except (RecursionError, ValueError):
        raise RpcError(Code.PARSE_ERROR, "a line is one JSON value: nested too deeply, or no number") from None


def parse(line: bytes) -> Requests:
    """Take a client's line apart. What is wrong with it becomes an answer, never an exception."""
    try:
        value = decode(line)
    except RpcError as error:
        return Requests((failure(None, error),))
    if not isinstance(value, list):
        return Requests((_call(value),))
    if not value or len(value) > BATCH_MOST:
        text = f"a batch has 1 to {BATCH_MOST} requests, not {len(value)}"
        return Requests((failure(None, RpcError(Code.INVALID_REQUEST, text)),))
    return Requests(tuple(_call(each) for each in value), batch=True)


def _call(value: Any) -> Call | Message:
    try:
        return _checked(value)
    except RpcError as error:
        number = value.get("id") if isinstance(value, dict) else None
        return failure(number if _is_id(number) else None, error)


def _checked(value: Any) -> Call:
    def invalid(text: str) -> RpcError:
        return RpcError(Code.INVALID_REQUEST, text)

    if not isinstance(value, dict):
        raise invalid("a request is an object with jsonrpc, method, params and id")
    if value.get("jsonrpc") != "2.0":
        raise invalid('a request has "jsonrpc": "2.0"')
    unknown = set(value) - {"jsonrpc", "method", "params", "id"}
    if unknown:
        raise invalid(f"a request has jsonrpc, method, params and id, not {ascii(min(unknown))[:40]}")
    method, params, number = value.get("method"), value.get("params", {}), value.get("id")
    if not isinstance(method, str):
        raise invalid("the method of a request is a text")
    if not isinstance(params, dict | list):
        raise invalid("the params of a request are an object or a list")
    if not _is_id(number):
        raise invalid("the id of a request is a text, a number or null")
    return Call(method, params, number, answered="id" in value)


def _is_id(value: object) -> bool:
    return value is None or (isinstance(value, str | int | float) and not isinstance(value, bool))
