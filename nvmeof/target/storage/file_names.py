"""The names of a file that is served: the metadata file lies beside one of them."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from nvmeof.errors import ConfigurationError

logger = logging.getLogger(__name__)

KEPT_SUFFIX: Final = ".nvmeof"
ZONES_SUFFIX: Final = ".zones"


def beside(path: Path, suffix: str) -> Path:
    """Return `path` with `suffix` after symbolic links are resolved: the metadata file lies beside the file itself."""
    path = path.resolve()
    return path.with_name(path.name + suffix)


def check_links(path: Path, status: os.stat_result, suffixes: Sequence[str]) -> None:
    """Raise `ConfigurationError` when a metadata file lies beside another name (a hard link) of a file in its
    directory. A hard link in another directory cannot be found: a warning is logged. `suffixes`: of metadata files.
    """
    if status.st_nlink < 2:
        return
    own = path.resolve()
    others = [each for each in _names(own.parent, status) if each != own]
    for each in others:
        for kept in (each.with_name(each.name + suffix) for suffix in suffixes):
            if kept.exists():
                raise ConfigurationError(
                    f"{path} is the same file as {each} (a hard link), and {kept} has its metadata: serve it "
                    "by that name, or remove that file to continue without it"
                )
    if len(others) + 1 < status.st_nlink:
        logger.warning(
            "%s has %d names (hard links), some in other directories: its metadata is found by this name alone",
            path,
            status.st_nlink,
        )


def _names(directory: Path, status: os.stat_result) -> list[Path]:
    found = []
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.inode() == status.st_ino and entry.is_file(follow_symlinks=False):
                    found.append(directory / entry.name)
    except OSError as error:
        logger.debug("%s cannot be searched for names of a file: %s", directory, error)
    return found


def name_lost(path: Path, status: os.stat_result) -> bool:
    """Return whether `path` no longer names this file: the file was removed, or another one took its name."""
    try:
        found = path.stat()
    except OSError:
        return True
    return (found.st_dev, found.st_ino) != (status.st_dev, status.st_ino)
