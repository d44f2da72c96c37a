"""Configuration files: read with the line of what is wrong, and written."""

from __future__ import annotations

import importlib
import json
import os
import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from nvmeof import json_places
from nvmeof.errors import ConfigurationError
from nvmeof.json_places import Place
from nvmeof.target.configuration import toml_places
from nvmeof.target.configuration.nvmetcli import PlaceError, from_nvmetcli, is_nvmetcli, to_nvmetcli
from nvmeof.target.document import Document, TargetSettings, from_document

TOML: Final = ".toml"
FORMS: Final = ("toml", "json", "nvmetcli")
"""The forms that a configuration is written in: the document as TOML or JSON, and nvmetcli's JSON."""
_MOST_BYTES: Final = 64 << 20
_STEP: Final = re.compile(r"\.?([A-Za-z_]\w*)|\[(\d+)\]|\['([^']*)'\]")


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a configuration file says. ``remarks``: a sentence for each thing of it that is left out."""

    path: Path
    document: Document
    settings: TargetSettings
    remarks: tuple[str, ...] = ()


def read_configuration(path: Path) -> Loaded:
    """Read a configuration file: TOML by its name, else JSON, of this package or of nvmetcli.

    Nothing is opened yet. Raises `ConfigurationError`, one sentence with file, line, key and what would be right.
    """
    text = _read(path)
    if path.suffix == TOML:
        parsed, line_of = _toml(path, text), toml_places.line_of
    else:
        parsed, line_of = _json(path, text), json_places.line_of
    remarks: list[str] = []
    try:
        if path.suffix != TOML and is_nvmetcli(parsed):
            parsed, remarks = from_nvmetcli(parsed)
            return Loaded(path, parsed, from_document(parsed), tuple(remarks))
        return Loaded(path, parsed, from_document(parsed))
    except PlaceError as error:
        raise _located(path, text, line_of, error.place, error) from None
    except ConfigurationError as error:
        place = () if remarks else _place_of(str(error))
        raise _located(path, text, line_of, place, error) from None


def _located(
    path: Path, text: str, line_of: Callable[[str, Place], int], place: Place, error: ConfigurationError
) -> ConfigurationError:
    return ConfigurationError(f"{path}, line {line_of(text, place)}: {error}")


def _place_of(message: str) -> Place:
    """Return the place that a message of `from_document` begins with, such as ``subsystems[0].namespaces[1].nsid``."""
    place: list[str | int] = []
    at = 0
    while (step := _STEP.match(message, at)) is not None and (at == 0) == (not place):
        name, index, quoted = step.groups()
        if not place and message[step.end() : step.end() + 1] not in (".", "[", ":", " "):
            break
        place.append(int(index) if index is not None else name if name is not None else quoted)
        at = step.end()
    return tuple(place)


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from None
    if len(data) > _MOST_BYTES:
        raise ConfigurationError(f"{path} has more than {_MOST_BYTES >> 20} MiB: it is no configuration file")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigurationError(f"{path}, line {line}: no UTF-8 text") from None


def _toml(path: Path, text: str) -> Any:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path}: no TOML: {error}") from None
    except RecursionError:
        raise ConfigurationError(f"{path} is nested too deeply") from None


def _json(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigurationError(
            f"{path}, line {error.lineno}: no JSON: {error.msg}, at column {error.colno}"
        ) from None
    except (RecursionError, ValueError):
        raise ConfigurationError(f"{path} is nested too deeply, or has a number that is too long") from None


def format_configuration(document: Document, form: str) -> tuple[str, list[str]]:
    """Return a document as a text of one of `FORMS`, and a sentence for each thing that the form has no place for.

    Raises `ConfigurationError` for what cannot be written so.
    """
    if form == "nvmetcli":
        theirs, remarks = to_nvmetcli(document)
        return json.dumps(theirs, indent=2, sort_keys=True) + "\n", remarks
    if form == "toml":
        try:
            tomli_w: Any = importlib.import_module("tomli_w")
        except ImportError:
            raise ConfigurationError("TOML is written by tomli-w: pip install 'nvmeof-mptcp[config]'") from None
        text: str = tomli_w.dumps(document)
        return text, []
    return json.dumps(document, indent=2) + "\n", []


def form_of(path: Path) -> str:
    """Return the form that a file's name stands for: TOML by its suffix, nvmetcli's in nvmet's folder, else JSON."""
    if path.suffix == TOML:
        return "toml"
    return "nvmetcli" if path.parent.name == "nvmet" else "json"


def write_configuration(path: Path, document: Document, form: str | None = None) -> list[str]:
    """Write a document to a file, as a whole or not at all; it may hold secrets, and others may not read it.

    Returns a sentence for each thing that the form has no place for. Raises `ConfigurationError`.
    """
    text, remarks = format_configuration(document, form or form_of(path))
    new = path.with_name(f".{path.name}.new")
    try:
        new.unlink(missing_ok=True)
        # A file or link that somebody else has put there is not written to: it may be theirs to read.
        handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from None
    return remarks
