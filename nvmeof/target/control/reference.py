"""The reference of the verbs, docs/control.md, made from their signatures by ``python -m`` of this module."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

from nvmeof.target.control.control import GROUPS, all_verbs
from nvmeof.target.control.jsonrpc import BATCH_MOST, REQUEST_BYTES, Code
from nvmeof.target.control.process import EVENT_KINDS, PROTOCOL
from nvmeof.target.control.schema import Parameter
from nvmeof.target.control.server import CLIENTS_MOST, EVENT_BYTES, SLOW_SECONDS
from nvmeof.target.control.verbs import Verb

_PROTOCOL: Final = f"""
# The control socket: protocol and verbs

Made by `python -m nvmeof.target.control.reference > docs/control.md`. How it is used:
[howto/control.md](howto/control.md).

## Protocol

JSON-RPC 2.0 over a Unix-domain stream socket. A message is one line: a JSON value in UTF-8 and a line feed, without
line feeds within. Batches (lists of requests) are answered with one list. The requests of one connection are executed
one after the other, in their order. Parameters go by name (an object) or by position (a list).

This is version {PROTOCOL} of the protocol, which `hello` tells; it counts up with a change that older clients do not
understand. New verbs, parameters with defaults, fields of results and kinds of events are no such change.

The socket has mode 0600 from its first moment, and the kernel says whose process connects: the target's own user and
root are served.
"""
_CODES: Final = {
    Code.PARSE_ERROR: "a line that is no JSON",
    Code.INVALID_REQUEST: "no request of JSON-RPC 2.0, or a line that is too long",
    Code.METHOD_NOT_FOUND: "there is no such verb",
    Code.INVALID_PARAMS: "parameters that do not fit the verb's schema",
    Code.INTERNAL_ERROR: "a defect of the target",
    Code.CONFIGURATION: "an object that does not exist, or a value that cannot be used; nothing was changed",
    Code.STATE: "the target is in no state for it",
    Code.FAILED: "the operating system, a device or a network does not allow it",
    Code.CROWDED: "too many clients",
    Code.FORBIDDEN: "the client's process belongs to another user",
}


def reference() -> str:
    """Return the page."""
    return "\n".join([*_head(), *_verbs()]) + "\n"


def _head() -> Iterator[str]:
    limits = {
        "a request, its line feed included": f"{REQUEST_BYTES >> 10} KiB; a longer one closes the connection",
        "requests of a batch": BATCH_MOST,
        "clients at once": f"{CLIENTS_MOST}; one more gets an error and is closed",
        "requests under way per client": "1; others wait in the socket",
        "the first request": f"within {SLOW_SECONDS:g} s of the connect",
        "an answer that is not read": f"{SLOW_SECONDS:g} s, then the connection is closed",
        "events that are not read": f"{EVENT_BYTES >> 20} MiB, then the connection is closed",
    }
    yield _PROTOCOL.strip()
    yield from ("", "| limit | |", "| --- | --- |")
    yield from (f"| {what} | {limit} |" for what, limit in limits.items())
    yield from ("", "| code | |", "| --- | --- |")
    yield from (f"| {code.value} | {_CODES[code]} |" for code in Code)
    yield ""
    yield "After `watch`, events come as notifications of the method `event`: `number` counts those of a connection"
    yield f"from 1, `time` is seconds of the Unix epoch, `kind` is one of {', '.join(EVENT_KINDS)}."


def _verbs() -> Iterator[str]:
    groups = {group.prefix: (group.__doc__ or "").strip() for group in GROUPS}
    shown: set[str] = set()
    yield ""
    yield "## Verbs"
    for verb in all_verbs():
        prefix = verb.name.rpartition(".")[0]
        if prefix not in shown:
            shown.add(prefix)
            if prefix:
                yield ""
                yield f"### {prefix}: {groups[prefix][:1].lower()}{groups[prefix][1:]}"
        yield from _verb(verb)


def _verb(verb: Verb) -> Iterator[str]:
    yield ""
    yield f"#### `{verb.name}`"
    yield ""
    yield verb.text.replace("|", "\\|")
    if verb.parameters:
        yield ""
        yield "| parameter | type | default | |"
        yield "| --- | --- | --- | --- |"
        for each in verb.parameters:
            default = "must be given" if each.required else f"`{json.dumps(each.default)}`"
            yield f"| `{each.name}` | {_type(each)} | {default} | {each.text} |"


def _type(parameter: Parameter) -> str:
    schema: dict[str, Any] = parameter.schema
    kinds = schema.get("type", "any")
    words = [each for each in (kinds if isinstance(kinds, list) else [kinds]) if each != "null"]
    text = " or ".join(words)
    if "items" in schema:
        text = f"list of {schema['items'].get('type', 'any')}"
    if "enum" in schema:
        text = ", ".join(f"`{each}`" for each in schema["enum"] if each is not None)
    least, most = schema.get("minimum"), schema.get("maximum")
    return f"{text}, {least} to {most}" if least is not None and most is not None else text


if __name__ == "__main__":
    print(reference(), end="")
