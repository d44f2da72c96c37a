"""JSON Schema of the parameters of a function, made from its annotations, and arguments checked by it.

Annotations are those that JSON has: ``str``, ``int``, ``float``, ``bool``, ``list[…]``, ``dict[str, …]``, ``Literal``,
``Any``, and any of them ``| None``. ``Annotated`` adds a text for people and a :class:`Range`.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin, get_type_hints

Schema = dict[str, Any]
_PLAIN: Final[Mapping[Any, str]] = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    type(None): "null",
}
_WORDS: Final[Mapping[str, str]] = {
    "string": "a text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "null": "null",
    "array": "a list",
    "object": "an object",
}
_SHOWN_CHARACTERS: Final = 60


class ArgumentError(Exception):
    """Arguments that a function cannot be called with; one sentence that says what would be right."""


@dataclass(frozen=True, slots=True)
class Range:
    """Limits of a number, both included; None: no such limit."""

    least: int | float | None = None
    most: int | float | None = None


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a function."""

    name: str
    schema: Schema
    required: bool
    default: Any = None

    @property
    def text(self) -> str:
        """What it is, for people."""
        return str(self.schema.get("description", ""))


def schema_of(hint: Any) -> Schema:
    """Return the JSON Schema of an annotation. Raises `TypeError` for one that JSON has no type for."""
    if hint is Any:
        return {}
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _annotated(schema_of(arguments[0]), arguments[1:])
    if origin in (Union, types.UnionType):
        return _union([schema_of(each) for each in arguments])
    if origin is Literal:
        return {"type": "string", "enum": list(arguments)}
    if origin is list:
        return {"type": "array", "items": schema_of(arguments[0])}
    if origin is dict:
        return {"type": "object", "additionalProperties": schema_of(arguments[1]) or True}
    if hint in _PLAIN:
        return {"type": _PLAIN[hint]}
    raise TypeError(f"JSON has no type for {hint!r}")


def _annotated(schema: Schema, extras: Sequence[Any]) -> Schema:
    for each in extras:
        if isinstance(each, str):
            schema["description"] = each
        elif isinstance(each, Range):
            if each.least is not None:
                schema["minimum"] = each.least
            if each.most is not None:
                schema["maximum"] = each.most
    return schema


def _union(members: list[Schema]) -> Schema:
    merged: Schema = {}
    for each in members:
        merged.update({name: value for name, value in each.items() if name != "type"})
    if "enum" in merged and any(each.get("type") == "null" for each in members):
        merged["enum"] = [*merged["enum"], None]
    return {"type": [each["type"] for each in members], **merged}


def parameters_of(function: Callable[..., Any], hidden: frozenset[str] = frozenset({"self"})) -> tuple[Parameter, ...]:
    """Return the parameters of a function but for the `hidden` ones, in their order."""
    hints = get_type_hints(function, include_extras=True)
    return tuple(
        Parameter(
            name=name,
            schema=schema_of(hints[name]),
            required=each.default is inspect.Parameter.empty,
            default=None if each.default is inspect.Parameter.empty else each.default,
        )
        for name, each in inspect.signature(function).parameters.items()
        if name not in hidden
    )


def object_schema(parameters: Sequence[Parameter]) -> Schema:
    """Return the JSON Schema of parameters as one object, by their names."""
    properties = {
        each.name: each.schema if each.required else {**each.schema, "default": each.default} for each in parameters
    }
    made: Schema = {"type": "object", "properties": properties, "additionalProperties": False}
    required = [each.name for each in parameters if each.required]
    return {**made, "required": required} if required else made


def bind(parameters: Sequence[Parameter], given: Mapping[str, Any] | Sequence[Any]) -> dict[str, Any]:
    """Return arguments by name, checked. `given`: by name, or by position. Raises `ArgumentError`."""
    if not isinstance(given, Mapping):
        if len(given) > len(parameters):
            raise ArgumentError(f"there are {len(parameters)} parameters, not {len(given)}")
        given = dict(zip((each.name for each in parameters), given, strict=False))
    known = {each.name for each in parameters}
    for name in given:
        if name not in known:
            raise ArgumentError(f"there is no parameter {shown(name)}; there are {', '.join(sorted(known)) or 'none'}")
    for each in parameters:
        if each.required and each.name not in given:
            raise ArgumentError(f"the parameter {each.name} must be given")
    return {each.name: _checked(each.schema, given[each.name], each.name) for each in parameters if each.name in given}


def shown(value: object) -> str:
    """Return a value for a message: printable, and not longer than a line."""
    text = ascii(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"


def _checked(schema: Schema, value: Any, name: str) -> Any:
    """Return the value, which the schema describes. Raises `ArgumentError`."""
    if "type" not in schema:
        return value
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    kind = next((each for each in kinds if _is(each, value)), None)
    if kind is None:
        raise ArgumentError(f"{name} is {' or '.join(_WORDS[each] for each in kinds)}, not {shown(value)}")
    if "enum" in schema and value not in schema["enum"]:
        words = ", ".join(str(each) for each in schema["enum"] if each is not None)
        raise ArgumentError(f"{name} is one of {words}, not {shown(value)}")
    if kind in ("integer", "number"):
        _check_range(schema, value, name)
    elif kind == "string":
        _check_text(value, name)
    elif kind == "array":
        return [_checked(schema["items"], each, f"{name}[{at}]") for at, each in enumerate(value)]
    elif kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return {key: _checked(schema["additionalProperties"], each, f"{name}.{key}") for key, each in value.items()}
    return value


def _is(kind: str, value: Any) -> bool:
    if kind in ("integer", "number") and isinstance(value, bool):
        return False
    types_: Any = {
        "string": str,
        "integer": int,
        "number": int | float,
        "boolean": bool,
        "null": type(None),
        "array": list,
        "object": dict,
    }[kind]
    return isinstance(value, types_)


def _check_range(schema: Schema, value: float, name: str) -> None:
    least, most = schema.get("minimum"), schema.get("maximum")
    if least is not None and value < least:
        raise ArgumentError(f"{name} is {least} or more, not {shown(value)}")
    if most is not None and value > most:
        raise ArgumentError(f"{name} is {most} or less, not {shown(value)}")


def _check_text(value: str, name: str) -> None:
    if "\0" in value:
        raise ArgumentError(f"{name} is a text without NUL characters")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ArgumentError(f"{name} is a text of whole characters: it has half a surrogate pair") from None
