"""JSON Schema from signatures, and arguments that are checked by it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeof.target.control.control import all_verbs
from nvmeof.target.control.schema import ArgumentError, Range, bind, object_schema, parameters_of

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
VERBS = {verb.name: verb for verb in all_verbs()}


def example(
    name: Annotated[str, "a name"],
    count: Annotated[int | None, Range(1, 9), "how many"] = None,
    kind: Literal["a", "b"] = "a",
    share: float = 0.5,
    names: list[str] | None = None,
    more: dict[str, Any] | None = None,
) -> None:
    """A function with a parameter of each kind."""


def test_a_signature_becomes_a_schema() -> None:
    assert object_schema(parameters_of(example)) == {
        "type": "object",
        "additionalProperties": False,
        "required": ["name"],
        "properties": {
            "name": {"type": "string", "description": "a name"},
            "count": {
                "type": ["integer", "null"], "minimum": 1, "maximum": 9, "description": "how many", "default": None,
            },
            "kind": {"type": "string", "enum": ["a", "b"], "default": "a"},
            "share": {"type": "number", "default": 0.5},
            "names": {"type": ["array", "null"], "items": {"type": "string"}, "default": None},
            "more": {"type": ["object", "null"], "additionalProperties": True, "default": None},
        },
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({}, "the parameter name must be given"),
        ({"name": 1}, "name is a text, not 1"),
        ({"name": "x\0"}, "NUL"),
        ({"name": "\ud800"}, "surrogate"),
        ({"name": "x", "count": True}, "count is a whole number or null, not True"),
        ({"name": "x", "count": 0}, "count is 1 or more, not 0"),
        ({"name": "x", "count": 10}, "count is 9 or less, not 10"),
        ({"name": "x", "kind": "c"}, "kind is one of a, b, not 'c'"),
        ({"name": "x", "names": ["y", 2]}, r"names\[1\] is a text, not 2"),
        ({"name": "x", "nome": 1}, "there is no parameter 'nome'"),
        (["x", 1, "a", 1, [], {}, 7], "there are 6 parameters, not 7"),
    ],
)
def test_what_does_not_fit_is_said_in_a_sentence(arguments: Any, says: str) -> None:
    with pytest.raises(ArgumentError, match=says):
        bind(parameters_of(example), arguments)


def test_arguments_go_by_name_and_by_position() -> None:
    wanted = {"name": "x", "count": 3}
    assert bind(parameters_of(example), ["x", 3]) == bind(parameters_of(example), wanted) == wanted


@pytest.mark.parametrize("name", sorted(VERBS))
def test_each_verb_has_a_valid_schema_and_texts(name: str) -> None:
    verb = VERBS[name]
    jsonschema.Draft202012Validator.check_schema(verb.schema)
    assert verb.summary.endswith("."), "a sentence"
    for each in verb.parameters:
        assert each.text, f"{name}: nothing says what {each.name} is"


@given(name=st.sampled_from(sorted(VERBS)), data=st.data())
def test_the_schema_and_the_check_agree(name: str, data: st.DataObject) -> None:
    verb = VERBS[name]
    names = st.sampled_from([each.name for each in verb.parameters] or ["nothing"])
    arguments = data.draw(st.dictionaries(names | st.text(max_size=3), JSON | st.integers(1, 100), max_size=4))
    try:
        jsonschema.validate(arguments, verb.schema)
        fits = True
    except jsonschema.ValidationError:
        fits = False
    try:
        bind(verb.parameters, arguments)
        taken = True
    except ArgumentError as error:
        taken = any(word in str(error) for word in ("NUL", "surrogate")) and fits  # stricter than a schema can say
    except RecursionError:
        taken = False
    whole_floats = any(isinstance(each, float) and each.is_integer() for each in arguments.values())
    assert taken == fits or whole_floats, "1.0 is an integer of JSON Schema, and none of Python"
