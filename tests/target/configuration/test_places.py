"""Lines of values in texts that are TOML or JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from nvmeof import json_places
from nvmeof.json_places import Place
from nvmeof.target.configuration import toml_places

TEXT = """\
version = 1  # the only one
staging_bytes = 4194304

[sockets]
tos = 4

[[subsystems]]
nqn = "nqn.2026-01.org.example:one"
hosts = [
  "a",
]
  [[subsystems.namespaces]]
  storage = "ramdisk:1M"
  [[subsystems.namespaces]]
  nsid = 7
  storage = 'file:/x = y'
  zoned.zone_bytes = 4096

[[subsystems]]
nqn = "nqn.2026-01.org.example:two"
[subsystems.host_keys."nqn.host"]
dhchap_key = "env:KEY"

[[ports]]
ana = { 2 = "change" }
"""


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ((), 1),
        (("version",), 1),
        (("sockets", "tos"), 5),
        (("subsystems", 0), 7),
        (("subsystems", 0, "hosts", 0), 9),
        (("subsystems", 0, "namespaces", 0, "storage"), 13),
        (("subsystems", 0, "namespaces", 1), 14),
        (("subsystems", 0, "namespaces", 1, "nsid"), 15),
        (("subsystems", 0, "namespaces", 1, "zoned", "zone_bytes"), 17),
        (("subsystems", 1, "nqn"), 20),
        (("subsystems", 1, "host_keys", "nqn.host", "dhchap_key"), 22),
        (("ports", 0, "ana", "2"), 25),
        (("ports", 4, "ana"), 1),
    ],
)
def test_lines_of_a_file_that_a_person_wrote(place: Place, line: int) -> None:
    assert toml_places.line_of(TEXT, place) == line


keys = st.sampled_from(["a", "b", "key-1", "nqn.x:y"])
plain = st.integers(0, 9) | st.sampled_from(["", "x = y", "[a]", "z"])
inner = plain | st.lists(plain, max_size=2) | st.dictionaries(keys, plain, max_size=2)
values = plain | st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3)


def places(value: Any, place: Place = ()) -> list[Place]:
    found = [place]
    if isinstance(value, dict):
        for key, inner in value.items():
            found += places(inner, (*place, key))
    if isinstance(value, list):
        for index, inner in enumerate(value):
            found += places(inner, (*place, index))
    return found


@given(st.dictionaries(keys, values, max_size=4))
def test_every_place_has_a_line_of_the_text(document: dict[str, Any]) -> None:
    texts = {toml_places.line_of: tomli_w.dumps(document), json_places.line_of: json.dumps(document, indent=1)}
    for line_of, text in texts.items():
        for place in places(document):
            assert 1 <= line_of(text, place) <= max(1, len(text.splitlines()))
    for key, value in document.items():
        if not isinstance(value, dict | list):
            line = texts[toml_places.line_of].splitlines()[toml_places.line_of(texts[toml_places.line_of], (key,)) - 1]
            assert key in line
