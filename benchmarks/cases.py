"""The grid of loopback cases, and the goals that some of them carry."""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024


@dataclass(frozen=True)
class Case:
    """One line of the loopback table."""

    op: str
    block_size_bytes: int
    depth: int
    transport: str = "tcp"
    digests: bool = False
    flow_control: bool = False
    storage: str = "ramdisk"

    @property
    def name(self) -> str:
        parts = [self.transport, self.op, f"{self.block_size_bytes // KIB}k", f"d{self.depth}"]
        parts += ["digests"] * self.digests + ["sqflow"] * self.flow_control
        parts += [self.storage] * (self.storage != "ramdisk")
        return "-".join(parts)

    def arguments(self) -> list[str]:
        """For the load generator."""
        out = ["--op", self.op, "--bs", str(self.block_size_bytes), "--depth", str(self.depth)]
        out += ["--mptcp"] * (self.transport == "mptcp") + ["--flow-control"] * self.flow_control
        return out + ["--header-digest", "--data-digest"] * self.digests


SIZES = ((4 * KIB, 1), (4 * KIB, 32), (4 * KIB, 128), (128 * KIB, 8))


def full_grid(transports: tuple[str, ...] = ("tcp", "mptcp")) -> list[Case]:
    cases = []
    for transport in transports:
        for digests in (False, True):
            for op in ("read", "write"):
                cases += [Case(op, size, depth, transport, digests) for size, depth in SIZES]
        cases.append(Case("read", 4 * KIB, 32, transport, flow_control=True))
    return cases


def quick_grid(transports: tuple[str, ...] = ("tcp", "mptcp")) -> list[Case]:
    """What the goals need, and one case of every other kind."""
    cases = [
        Case("read", 4 * KIB, 1),
        Case("read", 4 * KIB, 32),
        Case("read", 4 * KIB, 128),
        Case("write", 4 * KIB, 32),
        Case("read", 128 * KIB, 8),
        Case("write", 128 * KIB, 8),
        Case("read", 4 * KIB, 32, digests=True),
        Case("read", 4 * KIB, 32, flow_control=True),
        Case("read", 4 * KIB, 32, "mptcp"),
        Case("write", 128 * KIB, 8, "mptcp"),
    ]
    return [case for case in cases if case.transport in transports]


@dataclass(frozen=True)
class Goal:
    """A number that one case has to reach."""

    case: Case
    figure: str  # a key of the case's summary
    limit: float
    at_most: bool
    text: str

    def reached(self, value: float) -> bool:
        return value <= self.limit if self.at_most else value >= self.limit


GOALS = (
    Goal(
        Case("read", 4 * KIB, 32),
        "target_user_us",
        1.2,
        True,
        "4 KiB random read, depth 32: user CPU per I/O <= 1.2 us",
    ),
    Goal(Case("read", 4 * KIB, 32), "iops_ratio", 0.45, False, "4 KiB random read, depth 32: >= 0.45 of the floor"),
    Goal(Case("read", 128 * KIB, 8), "iops_ratio", 0.8, False, "128 KiB read, depth 8: >= 0.8 of the floor"),
    Goal(Case("write", 128 * KIB, 8), "iops_ratio", 0.8, False, "128 KiB write, depth 8: >= 0.8 of the floor"),
)
