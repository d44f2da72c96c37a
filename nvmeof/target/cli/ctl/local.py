"""What an argument means where the command is called, and not in the target's process: paths, and secrets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from nvmeof.errors import ConfigurationError
from nvmeof.security.secret import PREFIX
from nvmeof.target.control.verbs import Verb
from nvmeof.target.storage.namespace_text import format_namespace_text, parse_namespace_text

_FILE: Final = "file"


def local(verb: Verb, name: str, value: Any) -> Any:
    """Return an argument of a verb with its paths made absolute, from the present directory.

    Raises `ConfigurationError` for a secret that every user of the machine could read.
    """
    if name == "path" and verb.name == "save":
        return str(Path(value).absolute())
    if name in verb.secret and isinstance(value, str):
        return _secret(name, value)
    if name == "storage":
        return _storage(value)
    if name == "namespaces" and isinstance(value, list):
        return [_storage(each) for each in value]
    return value


def _secret(name: str, value: str) -> str:
    if value.startswith(PREFIX):
        raise ConfigurationError(
            f"--{name.replace('_', '-')}: a secret on the command line can be read by every user: "
            "give file:PATH, or env:NAME of the target's environment"
        )
    kind, colon, rest = value.partition(":")
    return f"{kind}{colon}{Path(rest).absolute()}" if kind == _FILE and rest else value


def _storage(text: str) -> str:
    """Return the text of storage; what is wrong with it is left to the target to say."""
    try:
        parsed = parse_namespace_text(text)
    except ConfigurationError:
        return text
    if parsed.backend.name != _FILE:
        return text
    where = str(Path(parsed.backend.value).absolute())
    return format_namespace_text(replace(parsed, backend=replace(parsed.backend, value=where)))
