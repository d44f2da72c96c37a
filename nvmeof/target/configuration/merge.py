"""What a restarted target serves: what the target was last, with what its file says otherwise than before.

A target that runs differs from its file by what was changed through its control socket. A reload applies the difference
of two readings of the file; here the same is done on documents, so that a restart can apply what a reload cannot.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from nvmeof.target.configuration.difference import numbered
from nvmeof.target.document import Document, TargetSettings, to_document

_NAMES: Final = {"subsystems": "nqn", "namespaces": "nsid", "ports": "portid"}
"""The lists whose entries have names; any other list is one value."""
_ABSENT: Final = object()


def plain_document(settings: TargetSettings) -> Document:
    """Return the document of settings as a running target writes it: sizes in bytes, every entry with its number."""
    return to_document(replace(settings, config=numbered(settings.config)))


def merged(running: Document, before: Document, after: Document) -> Document:
    """Return `running` with each value that differs from `before` to `after`, which are two readings of one file.

    All three as `plain_document` makes them. A value that was changed in the file wins over one that was changed while
    the target ran; an entry that was removed from the file is removed.
    """
    return _mapping(running, before, after)


def _mapping(running: Mapping[str, Any], before: Mapping[str, Any], after: Mapping[str, Any]) -> Document:
    found: Document = {}
    for name in dict.fromkeys((*running, *after)):
        values = [each.get(name, _ABSENT) for each in (running, before, after)]
        value = _value(name, *values)
        if value is not _ABSENT:
            found[name] = value
    return found


def _value(name: str, running: Any, before: Any, after: Any) -> Any:
    if before == after:
        return running
    if running == before:
        return after
    if all(isinstance(each, Mapping) for each in (running, before, after)):
        return _mapping(running, before, after)
    if name in _NAMES and all(isinstance(each, list) for each in (running, before, after)):
        by = _NAMES[name]
        entries = _mapping(*({str(each[by]): each for each in found} for found in (running, before, after)))
        return list(entries.values())
    return after
