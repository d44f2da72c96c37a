"""Any arguments that fit a verb's schema are executed or refused with a sentence: no verb meets a defect."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nvmeof.target.control import Control
from nvmeof.target.control.control import all_verbs
from nvmeof.target.control.jsonrpc import Code, RpcError, encode
from nvmeof.target.control.verbs import Verb
from nvmeof.target.server import Target
from nvmeof.target.storage.ramdisk import Ramdisk
from tests.target.control.tools import HOST, NQN, OTHER

TEXTS = st.sampled_from(
    [
        NQN, OTHER, HOST, "nqn.2026-01.org.example:é", "nqn.", "", "x" * 300, "ramdisk:1M", "ramdisk:1M,delay:read=1ms",
        "ramdisk:-1", "ramdisk:1M,zoned", "ramdisk:", "ramdisk", ":", ",,", "file:/dev/null/x", "file:/",
        "127.0.0.1:0", "127.0.0.1:99999", "[::1]:0", "[::1", "*", "192.0.2.1%lo", "10.0.0.1,backup", "0", "-1", "1M",
        "11111111-2222-3333-4444-555555555555", "ab" * 16, "cd" * 8, "zz", "tcp", "mptcp", "rdma", "DHHC-1:00:x:",
        "file:/nowhere", "env:NOWHERE", "sha256", "ffdhe2048", "\r\n\t", "\u2028",
    ]
) | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)  # fmt: skip
ADDRESSES = st.sampled_from(["127.0.0.1:0", "[::1]:0", "127.0.0.1:99999", "127.0.0.1:-1", "[::1", ":", "127.0.0.1:x"])
"""No names, which would be looked up, and no port that others use."""
OBJECTS = st.dictionaries(
    st.sampled_from(["nqn", "serial", "model", "zoned", "ana", "referrals", "x", "max_io_queues", "advertise_as"]),
    st.none() | st.integers(-2, 70000) | TEXTS | st.lists(TEXTS, max_size=2) | st.dictionaries(TEXTS, TEXTS),
    max_size=2,
)
LEFT_OUT = frozenset({"save", "reload", "log-level", "path.add"})
"""Verbs that write files, change the log of the tests, or what the kernel announces."""


def arguments(verb: Verb) -> st.SearchStrategy[dict[str, Any]]:
    """Arguments that fit the schema of a verb."""
    required = {each.name: value(each.schema) for each in verb.parameters if each.required}
    if verb.name == "port.add":
        required["address"] = ADDRESSES
    return st.fixed_dictionaries(
        required, optional={each.name: value(each.schema) for each in verb.parameters if not each.required}
    )


def value(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values of a parameter's schema."""
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    least, most = schema.get("minimum", 0), schema.get("maximum", 1 << 64)
    made = {
        "string": TEXTS,
        "integer": st.integers(least, min(most, 6)) | st.integers(least, most),
        "number": st.floats(least, min(most, 0.01)),
        "boolean": st.booleans(),
        "null": st.none(),
        "array": st.lists(TEXTS, max_size=3),
        "object": OBJECTS,
    }
    return st.one_of([made[kind] for kind in kinds])


CALLS = st.one_of(
    [
        st.tuples(st.just(verb.name), arguments(verb))
        for verb in all_verbs()
        if verb.name not in LEFT_OUT and not verb.name.endswith("list")
    ]
)


@given(st.lists(CALLS, max_size=12))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_no_arguments_meet_a_defect(calls: list[tuple[str, dict[str, Any]]]) -> None:
    async def run() -> None:
        async with Target(namespaces=[Ramdisk("1M")], trtype="tcp") as target:
            control = Control(target)
            lists = [(verb.name, dict[str, Any]()) for verb in all_verbs() if verb.name.endswith("list")]
            for name, given_ in [*calls, *lists]:
                try:
                    encode({"result": await control.call(name, given_)})
                except RpcError as error:
                    assert error.code != Code.INTERNAL_ERROR, f"{name} {given_}: {error}"
                    assert error.message and "\n" not in error.message, f"{name} {given_}: {error.message!r}"

    logging.getLogger("nvmeof").setLevel(logging.CRITICAL)
    try:
        asyncio.run(run())
    finally:
        logging.getLogger("nvmeof").setLevel(logging.NOTSET)
