"""The text of a file of kept sections: a JSON object with a version and a checksum, one section in each line.

    {"nvmeof": 2, "sha256": "...", "kept": {
    "format": {"block_bytes": 4096}
    }}

The checksum is over the sections as this module writes them, each as `"name": value` and a line feed: white space
between them does not matter. A document without a checksum (of version 1, or edited by hand) is taken as it is, and has
one when it is written the next time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

from nvmeof.errors import ConfigurationError

VERSION: Final = 2
_NAMES: Final = frozenset({"nvmeof", "sha256", "kept"})
REMOVE_CHECKSUM: Final = 'put it back from a copy, or, if it was edited, remove its "sha256" entry'


def check_link(path: Path) -> None:
    """Raise `ConfigurationError` for a symbolic link to nothing: the state file is where the link's target was."""
    if path.is_symlink() and not path.exists():
        raise ConfigurationError(
            f"{path} is a link to {path.readlink()}, which is not there: put that back, or remove the link to go on "
            "without what was kept"
        )


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _lines(sections: Mapping[str, Any]) -> list[str]:
    return [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in sections.items()]


def _checksum(lines: list[str]) -> str:
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode("ascii")).hexdigest()


def build(sections: Mapping[str, Any]) -> str:
    """Build the text of a document."""
    lines = _lines(sections)
    inner = ",\n".join(lines)
    return f'{{"nvmeof": {VERSION}, "sha256": "{_checksum(lines)}", "kept": {{\n{inner}\n}}}}\n'


def parse(text: str, known: Collection[str]) -> tuple[dict[str, Any], bool]:
    """Return the sections of a document, and whether it had a checksum.

    Raises `ValueError` with what is wrong, in words that follow the name of the file: for what is not such a document,
    a wrong checksum, a newer version, and a section that is not among the `known` ones.
    """
    try:
        document = json.loads(text, parse_constant=_no_number, object_pairs_hook=_unique)
        version, kept = document["nvmeof"], document["kept"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"is not a state file of this version, or is damaged ({type(error).__name__}): restore it from a copy, "
            "or move it away to start with empty state"
        ) from error
    if type(version) is not int or version < 1 or not isinstance(kept, dict):
        raise ValueError(
            "is not a state file of this version, or is damaged: restore it from a copy, "
            "or move it away to start with empty state"
        )
    if version > VERSION:
        raise ValueError(
            f"was written by a newer version of nvmeof (its format is {version}, and {VERSION} is known here): "
            "use that version, or move it away to start with empty state"
        )
    strange = sorted(set(document) - _NAMES)
    if strange:
        raise ValueError(
            f"has an entry {strange[0]!r}, which is unknown: {REMOVE_CHECKSUM}, "
            "or move it away to start with empty state"
        )
    checksum = document.get("sha256")
    if checksum is not None:
        _check(checksum, kept)
    unknown = sorted(set(kept) - set(known))
    if unknown:
        raise ValueError(
            f"has a section {unknown[0]!r}, which is unknown (damaged, or written by a newer version of nvmeof): use "
            "that version, repair it, or move it away to start with empty state"
        )
    return kept, checksum is not None


def _check(checksum: Any, kept: Mapping[str, Any]) -> None:
    try:
        found = _checksum(_lines(kept))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"is damaged ({error}): restore it from a copy, or move it away to start with empty state"
        ) from error
    if checksum != found:
        raise ValueError(f"does not match its checksum: {REMOVE_CHECKSUM}, or move it away to start with empty state")
