"""What is offered, by whom, and what the measured host may notice of it."""

from __future__ import annotations

from dataclasses import dataclass

SUBNQN = "nqn.2026-01.io.nvmeof:benchmark"
OTHER_SUBNQN = "nqn.2026-01.io.nvmeof:other"
DISCOVERY_NQN = "nqn.2014-08.org.nvmexpress.discovery"
SIZE_BYTES = 64 << 20
"""Namespace 1, in memory, and namespace 2, a file."""
OTHER_SIZE_BYTES = 256 << 20
"""The namespace of the other subsystem, which is sanitized."""
FURTHER_SUBSYSTEMS = 200
"""Subsystems without namespaces: what makes the Discovery log long."""

P99_RATIO = 3.0
MAXIMUM_RATIO = 5.0
RSS_GROWTH_BYTES = 1 << 30
"""How much larger than after its start a target may become: well over its 256 MiB of staging memory, and no leak."""

READS_PER_SECOND = 400.0
WRITES_PER_SECOND = 200.0
READ_BYTES = 4 << 10
WRITE_BYTES = 64 << 10


@dataclass(frozen=True)
class Misbehaviour:
    """One host's; ``operation``, ``size_bytes`` and ``per_second`` are what its well-behaved twin does instead."""

    number: int  # of the host
    name: str
    text: str
    operation: str  # read or write
    size_bytes: int
    per_second: float
    depth: int = 1


MISBEHAVIOURS = (
    Misbehaviour(1, "reads", "reads not received, or at 2 MiB/s", "read", 1 << 20, 40),
    Misbehaviour(2, "r2ts", "R2Ts not answered, or at 2 MiB/s", "write", 1 << 20, 40),
    Misbehaviour(3, "discovery", "Discovery log in a loop", "read", 4096, 1000, 4),
    Misbehaviour(4, "connects", "Connect storms", "write", 4096, 320, 4),
    Misbehaviour(5, "bytes", "PDUs byte by byte", "read", 4096, 200),
    Misbehaviour(6, "copies", "Copy in a loop, Sanitize elsewhere", "write", 1 << 20, 20),
    Misbehaviour(7, "resets", "aborts and resets", "read", 128 << 10, 320, 4),
)
BASELINE = "baseline"
ALL = "all"
SCENARIOS = (*(each.name for each in MISBEHAVIOURS), ALL)


def misbehaving(scenario: str) -> set[int]:
    """The numbers of the hosts that misbehave in a scenario; the others of the seven are well-behaved."""
    return {each.number for each in MISBEHAVIOURS if scenario in (ALL, each.name)}


@dataclass(frozen=True)
class Plan:
    """How long to measure: ``seconds`` of each scenario and of the baseline, in ``rounds`` interleaved slices."""

    seconds: float = 60.0
    rounds: int = 3
    settle_seconds: float = 0.5

    @property
    def slice_seconds(self) -> float:
        return self.seconds / self.rounds
