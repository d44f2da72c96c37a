"""All that a target of a new process needs to go on where one has stopped: a value, with open descriptors.

`Target.hand_over` makes it and `Target(handover=...)` takes it, in another process or in the same
(docs/decisions/0031-restart.md). Between processes it is a JSON document and a list of descriptors, in the form of
`VERSION`: a process that knows another form refuses it, and the process before goes on.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from nvmeof.errors import ConfigurationError
from nvmeof.target.document import Document
from nvmeof.target.storage.handed_over import BackendState, Number, PoolState, to_memory_file
from nvmeof.transport.base import Address
from nvmeof.transport.service_manager import InheritedSocket, inherited_socket

VERSION: Final = 1
"""The form that this package writes, and the only one that it takes."""


@dataclass(slots=True)
class SubsystemState:
    """What a subsystem has in memory. `kept`: its own sections (None: they are in a file, or a pool's); `backends` and
    `reservations`: by NSID; `cntlids`: the controller ID that was allocated last, and those that hosts may believe to
    have."""

    kept: dict[str, Any] | None = None
    pool: PoolState | None = None
    backends: dict[int, BackendState] = field(default_factory=dict)
    reservations: dict[int, dict[str, Any]] = field(default_factory=dict)
    cntlids: tuple[int, frozenset[int]] = (0, frozenset())

    @property
    def states(self) -> Iterator[BackendState]:
        """The states of all storage."""
        yield from self.backends.values()
        if self.pool is not None:
            yield from self.pool.backends.values()

    def document(self, number: Number) -> dict[str, Any]:
        """Return the state as a JSON value. `number` takes descriptors."""
        last, used = self.cntlids
        pool = None
        if self.pool is not None:
            backends = {name: each.document(number) for name, each in self.pool.backends.items()}
            pool = {"kept": self.pool.kept, "backends": backends}
        return {
            "kept": self.kept,
            "pool": pool,
            "backends": {str(nsid): each.document(number) for nsid, each in self.backends.items()},
            "reservations": {str(nsid): each for nsid, each in self.reservations.items()},
            "cntlids": [last, sorted(used)],
        }

    @classmethod
    def from_document(cls, document: Any, descriptors: list[int]) -> SubsystemState:
        """Make the state that `document` has written."""

        def states(found: Any) -> dict[str, BackendState]:
            return {name: BackendState.from_document(each, descriptors) for name, each in found.items()}

        pool, (last, used) = document["pool"], document["cntlids"]
        return cls(
            document["kept"],
            None if pool is None else PoolState(pool["kept"], states(pool["backends"])),
            {int(nsid): each for nsid, each in states(document["backends"]).items()},
            {int(nsid): each for nsid, each in document["reservations"].items()},
            (int(last), frozenset(map(int, used))),
        )


@dataclass(slots=True)
class Handover:
    """What one target leaves to the next. `document`: its configuration as it was last (`Administration.save`);
    `subsystems`: what was in memory, by NQN; `sockets`: those that listen; `generation`: GENCTR of the Discovery log;
    `discovery_cntlids`: as `SubsystemState.cntlids`; `extra`: what the program that runs the target adds, JSON values.
    """

    document: Document
    subsystems: dict[str, SubsystemState] = field(default_factory=dict)
    sockets: list[InheritedSocket] = field(default_factory=list)
    generation: int = 0
    discovery_cntlids: tuple[int, frozenset[int]] = (0, frozenset())
    extra: dict[str, Any] = field(default_factory=dict)

    def to_memory_files(self) -> None:
        """Move what is in this process' memory to memory files. For a thread. Raises `OSError`: what has not been moved
        is where it was, and only a target of this process can take the handover."""
        for subsystem in self.subsystems.values():
            for state in subsystem.states:
                if state.memory is not None:
                    to_memory_file(state.memory)

    def encode(self) -> tuple[Document, list[int]]:
        """Return the document and the descriptors for another process. `to_memory_files` comes before."""
        descriptors: list[int] = []

        def number(descriptor: int) -> int:
            descriptors.append(descriptor)
            return len(descriptors) - 1

        last, used = self.discovery_cntlids
        document = {
            "version": VERSION,
            "document": self.document,
            "subsystems": {nqn: each.document(number) for nqn, each in self.subsystems.items()},
            "sockets": [
                {
                    "transport": each.transport,
                    "host": each.address.host,
                    "port": each.address.port,
                    "fallback_reason": each.fallback_reason,
                    "descriptor": number(each.sock.fileno()),
                }
                for each in self.sockets
            ],
            "generation": self.generation,
            "discovery_cntlids": [last, sorted(used)],
            "extra": self.extra,
        }
        return document, descriptors

    @classmethod
    def decode(cls, document: Any, descriptors: list[int]) -> Handover:
        """Make the handover of what another process has encoded.

        Raises `ConfigurationError` for what was written by another version, or was not written by this package.
        """
        try:
            version = document["version"]
            if version != VERSION:
                raise ConfigurationError(
                    f"the process before hands over in form {version}, and form {VERSION} is known here: stop the "
                    "target and start it again"
                )
            last, used = document["discovery_cntlids"]
            return cls(
                document["document"],
                {nqn: SubsystemState.from_document(each, descriptors) for nqn, each in document["subsystems"].items()},
                [
                    inherited_socket(
                        descriptors[each["descriptor"]],
                        each["transport"],
                        Address(each["host"], each["port"]),
                        each["fallback_reason"],
                    )
                    for each in document["sockets"]
                ],
                int(document["generation"]),
                (int(last), frozenset(map(int, used))),
                dict(document["extra"]),
            )
        except (KeyError, TypeError, IndexError, ValueError, AttributeError) as error:
            raise ConfigurationError(
                f"the process before has handed over what is no state of a target ({type(error).__name__}: {error}): "
                "stop it and start the target again"
            ) from error

    def close(self) -> None:
        """Close the descriptors of memory files, once a target has taken what is in them, or never will."""
        for subsystem in self.subsystems.values():
            for state in subsystem.states:
                if state.memory is not None and state.memory.descriptor >= 0:
                    with contextlib.suppress(OSError):
                        os.close(state.memory.descriptor)
                    state.memory.descriptor = -1

    def close_sockets(self) -> None:
        """Close the listening sockets that are this process' own copies."""
        for each in self.sockets:
            with contextlib.suppress(OSError):
                each.sock.close()
