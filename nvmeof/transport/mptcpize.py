"""An unmodified program's TCP sockets as MPTCP ones: a library that the dynamic linker loads in front of libc.

Debian's `mptcpize` (package mptcpize) where it is installed; otherwise the small library beside this module,
`mptcpize.c`, built on first use with the C compiler of this machine and cached in the user's cache directory.

Beyond the reach of either: statically linked programs, programs that call the kernel without libc (Go, io_uring),
set-uid programs, and every socket that the kernel opens for itself, such as those of its NVMe/TCP initiator.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shlex
import shutil
import stat
import struct
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from nvmeof.errors import ConfigurationError, TransportError

SOURCE: Final = Path(__file__).with_suffix(".c")
_BUILD_SECONDS: Final = 60.0
_COMPILERS: Final = ("cc", "gcc", "clang")
_ELF_MAGIC: Final = b"\x7fELF"
_PT_INTERP: Final = 3
_INTERPRETERS_MAX: Final = 4
"""How many `#!` lines Linux follows, and we too."""
_PRIVILEGES: Final = "security.capability"


class Means(StrEnum):
    """What puts itself in front of libc."""

    AUTO = "auto"
    SYSTEM = "system"
    """Debian's mptcpize."""
    OWN = "own"
    """The library built from `mptcpize.c`."""


@dataclass(frozen=True, slots=True)
class Launch:
    """What to execute: the file, its arguments (the first is its name), and its environment."""

    path: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str]


def launch(
    command: Sequence[str], *, means: Means = Means.AUTO, environment: Mapping[str, str] | None = None
) -> Launch:
    """Return how to run `command` with MPTCP in place of TCP.

    Raises ConfigurationError for a program that cannot be run, or that no library can be put in front of;
    TransportError where there is neither mptcpize nor a compiler. Each says why in one sentence.
    """
    environment = dict(os.environ if environment is None else environment)
    program = find_program(command[0], environment)
    refusal = out_of_reach(program)
    if refusal is not None:
        raise ConfigurationError(f"{command[0]} cannot be given MPTCP: {refusal}")
    system = shutil.which("mptcpize", path=environment.get("PATH")) if means is not Means.OWN else None
    if system is not None:
        return Launch(system, ("mptcpize", "run", *command), environment)
    if means is Means.SYSTEM:
        raise TransportError("mptcpize is not installed here (Debian's package mptcpize)")
    library = str(built_library())
    # others' libraries stay, behind ours
    environment["LD_PRELOAD"] = " ".join(filter(None, (library, environment.get("LD_PRELOAD"))))
    return Launch(str(program), tuple(command), environment)


def find_program(name: str, environment: Mapping[str, str]) -> Path:
    """Return the file that a shell would run. Raises ConfigurationError."""
    found = shutil.which(name, path=environment.get("PATH"))
    if found is not None:
        return Path(found)
    if "/" in name and Path(name).exists():
        raise ConfigurationError(f"{name} is not executable")
    raise ConfigurationError(f"there is no program {name}")


def out_of_reach(program: Path) -> str | None:
    """Return why no library can be preloaded into this program; None where it can, or where that is unknown."""
    try:
        for _ in range(_INTERPRETERS_MAX + 1):
            status = program.stat()
            # of scripts Linux ignores these bits; of programs they make the linker ignore what is to be preloaded
            with program.open("rb") as file:
                head = file.read(256)
                if head.startswith(b"#!"):
                    words = head[2:].split(b"\n")[0].split()
                    program = _interpreter(words) if words else program
                    continue
                if not head.startswith(_ELF_MAGIC):
                    return None
                if status.st_mode & (stat.S_ISUID | stat.S_ISGID) and os.geteuid() != status.st_uid:
                    return "it is a set-uid program, and the dynamic linker preloads nothing into those"
                if _has_privileges(program):
                    return "it has capabilities of its own, and the dynamic linker preloads nothing into such programs"
                if not _dynamic(file.fileno(), head):
                    return "it is statically linked, so there is no C library to stand in front of"
                return None
    except (OSError, IndexError, struct.error):  # odd files are the kernel's to refuse
        pass
    return None


def _interpreter(words: Sequence[bytes]) -> Path:
    """Return the program of a `#!` line; `/usr/bin/env NAME` is looked up."""
    program = Path(os.fsdecode(words[0]))
    if program.name == "env" and len(words) > 1 and not words[-1].startswith(b"-"):
        found = shutil.which(os.fsdecode(words[-1]))
        return Path(found) if found else program
    return program


def _has_privileges(program: Path) -> bool:
    with contextlib.suppress(OSError):
        return bool(os.getxattr(program, _PRIVILEGES)) and os.geteuid() != 0
    return False


def _dynamic(descriptor: int, head: bytes) -> bool:
    """Return whether an ELF file names a dynamic linker (a program header PT_INTERP)."""
    wide, order = head[4] == 2, "<" if head[5] == 1 else ">"
    if wide:
        offset, size, count = struct.unpack_from(order + "Q", head, 32) + struct.unpack_from(order + "HH", head, 54)
    else:
        offset, size, count = struct.unpack_from(order + "I", head, 28) + struct.unpack_from(order + "HH", head, 42)
    table = os.pread(descriptor, size * count, offset)
    return any(struct.unpack_from(order + "I", table, each * size)[0] == _PT_INTERP for each in range(count))


# -- the library -----------------------------------------------------------------------------------------------------


def compiler() -> list[str] | None:
    """Return the C compiler of this machine as the start of a command line: $CC, cc, gcc or clang."""
    chosen = shlex.split(os.environ.get("CC", ""))
    if chosen and shutil.which(chosen[0]):
        return chosen
    return next(([name] for name in _COMPILERS if shutil.which(name)), None)


def cache_directory() -> Path:
    """Return the directory of built libraries: `nvmeof` in the user's cache directory."""
    base = os.environ.get("XDG_CACHE_HOME") or ""
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "nvmeof"


def built_library(directory: Path | None = None) -> Path:
    """Return the library, built now unless it was built before from the same source for this kind of processor.

    Raises TransportError where it cannot be built or found by the linker, or where others could change it.
    """
    directory = directory or cache_directory()
    if " " in str(directory) or ":" in str(directory):
        raise TransportError(f"{directory} cannot be preloaded from: the linker splits names at spaces and colons")
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]
    library = directory / f"mptcpize-{platform.machine()}-{digest}.so"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _only_ours(directory)
        if not library.exists():
            _build(library)
        _only_ours(library)
    except OSError as error:
        raise TransportError(f"{error.filename or directory}: {error.strerror or error}") from None
    return library


def _only_ours(path: Path) -> None:
    """Refuse a directory that another user may write: programs are going to load files from it."""
    status = path.stat()
    if status.st_uid not in (os.geteuid(), 0) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise TransportError(f"{path} can be changed by other users: nothing is preloaded from there")


def _build(library: Path) -> None:
    command = compiler()
    if command is None:
        raise TransportError(
            "programs can be given MPTCP with Debian's package mptcpize, or with a C compiler: neither is installed"
        )
    handle, made = tempfile.mkstemp(prefix=".mptcpize-", suffix=".so", dir=library.parent)
    os.close(handle)
    try:
        done = subprocess.run(
            [*command, "-O2", "-Wall", "-shared", "-fPIC", "-o", made, str(SOURCE), "-ldl"],
            capture_output=True,
            text=True,
            check=False,
            timeout=_BUILD_SECONDS,
        )
        if done.returncode:
            reason = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip())
            raise TransportError(f"{command[0]} could not build {SOURCE.name}: {reason}")
        Path(made).chmod(0o755)
        Path(made).rename(library)  # at once: another process may be building it too
    except subprocess.TimeoutExpired:
        raise TransportError(f"{command[0]} did not build {SOURCE.name} within {_BUILD_SECONDS:.0f} s") from None
    finally:
        Path(made).unlink(missing_ok=True)
