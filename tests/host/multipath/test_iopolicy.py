"""The choices of the I/O policies, beside a plain statement of what Linux does."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeof.errors import ConfigurationError
from nvmeof.host.multipath.iopolicy import (
    IOPOLICIES,
    NON_OPTIMIZED,
    OPTIMIZED,
    UNUSABLE,
    Candidate,
    IoPolicy,
    Numa,
    QueueDepth,
    RoundRobin,
    ServiceTime,
    check_iopolicy,
)


@dataclass(eq=False)
class Model:
    """A path."""

    access: int = OPTIMIZED
    depth: int = 0
    outstanding_bytes: int = 0
    bytes_per_second: float = 0.0
    name: str = ""


paths_of = st.lists(
    st.builds(
        Model,
        access=st.sampled_from([UNUSABLE, NON_OPTIMIZED, OPTIMIZED]),
        depth=st.integers(0, 4),
        outstanding_bytes=st.integers(0, 4).map(lambda n: n * 4096),
        bytes_per_second=st.sampled_from([0.0, 1e6, 2e6, 1e8]),
    ),
    max_size=6,
)


def run(policy: IoPolicy[Model], paths: list[Model], count: int, size: int = 4096) -> list[int]:
    found = []
    for _ in range(count):
        path = policy.choose(paths, size)
        assert path is not None
        found.append(paths.index(path))
    return found


@pytest.mark.parametrize("name", IOPOLICIES)
@given(paths=paths_of)
def test_only_paths_of_the_best_access_are_chosen(name: str, paths: list[Model]) -> None:
    policy: IoPolicy[Candidate] = IOPOLICIES[name]()
    best = max((path.access for path in paths), default=UNUSABLE)
    for _ in range(3):
        chosen = policy.choose(paths, 4096)
        if best == UNUSABLE:
            assert chosen is None
        else:
            assert chosen is not None and chosen.access == best and chosen in paths


@pytest.mark.parametrize("name", IOPOLICIES)
@given(paths=paths_of, data=st.data())
def test_a_choice_follows_every_change(name: str, paths: list[Model], data: st.DataObject) -> None:
    """Whatever a policy remembers, the next choice is one of the paths that are best now."""
    policy: IoPolicy[Candidate] = IOPOLICIES[name]()
    for _ in range(data.draw(st.integers(1, 8))):
        policy.choose(paths, 4096)
        what = data.draw(st.sampled_from(["access", "remove", "add"]))
        if what == "add":
            paths.append(Model(access=data.draw(st.sampled_from([UNUSABLE, NON_OPTIMIZED, OPTIMIZED]))))
        elif paths:
            at = data.draw(st.integers(0, len(paths) - 1))
            if what == "remove":
                policy.forget(paths.pop(at))
            else:
                paths[at].access = data.draw(st.sampled_from([UNUSABLE, NON_OPTIMIZED, OPTIMIZED]))
        best = max((path.access for path in paths), default=UNUSABLE)
        chosen = policy.choose(paths, 4096)
        assert (chosen.access if chosen is not None else UNUSABLE) == best
        assert chosen is None or chosen in paths


def test_numa_stays_on_the_first_path_until_it_fails() -> None:
    paths, policy = [Model(), Model(), Model()], Numa[Model]()
    assert run(policy, paths, 3) == [0, 0, 0]
    paths[0].access = UNUSABLE
    assert run(policy, paths, 3) == [1, 1, 1]
    paths[0].access = OPTIMIZED
    assert run(policy, paths, 2) == [1, 1]  # the current path is good enough until `settled` is called
    policy.settled(paths)
    assert run(policy, paths, 2) == [0, 0]


def test_numa_leaves_a_non_optimized_path_for_an_optimized_one_at_once() -> None:
    paths, policy = [Model(NON_OPTIMIZED), Model(UNUSABLE)], Numa[Model]()
    assert run(policy, paths, 1) == [0]
    paths[1].access = OPTIMIZED
    assert run(policy, paths, 1) == [1]


def test_round_robin_takes_turns_over_the_optimized_paths() -> None:
    """B1 of the lab: two optimized and one non-optimized share 600 reads as 300, 300 and 0."""
    paths, policy = [Model(), Model(), Model(NON_OPTIMIZED)], RoundRobin[Model]()
    found = run(policy, paths, 600)
    assert [found.count(at) for at in range(3)] == [300, 300, 0]
    paths[0].access = UNUSABLE
    assert set(run(policy, paths, 10)) == {1}
    paths[1].access = UNUSABLE
    assert set(run(policy, paths, 10)) == {2}


def test_round_robin_over_non_optimized_paths() -> None:
    """All non-optimized: 200 each. Linux's loop takes the last path that it meets, which is a turn as well."""
    paths, policy = [Model(NON_OPTIMIZED) for _ in range(3)], RoundRobin[Model]()
    found = run(policy, paths, 600)
    assert [found.count(at) for at in range(3)] == [200, 200, 200]


def test_queue_depth_takes_the_shortest_queue_and_the_first_of_equals() -> None:
    paths, policy = [Model(depth=3), Model(depth=1), Model(depth=1), Model(NON_OPTIMIZED)], QueueDepth[Model]()
    assert run(policy, paths, 2) == [1, 1]
    paths[1].depth = 2
    assert run(policy, paths, 1) == [2]
    assert run(policy, [Model(), Model()], 5) == [0] * 5  # depth 1: everything on the first path


@given(paths=paths_of)
def test_queue_depth_by_example(paths: list[Model]) -> None:
    chosen = QueueDepth[Model]().choose(paths, 0)
    usable = [path for path in paths if path.access]
    assert chosen is min(usable, key=lambda path: (-path.access, path.depth, paths.index(path)), default=None)


def test_service_time_prefers_the_earliest_completion() -> None:
    slow, fast = Model(bytes_per_second=1e6), Model(bytes_per_second=4e6, outstanding_bytes=8192)
    policy = ServiceTime[Model]()
    assert policy.choose([slow, fast], 4096) is fast  # 12288 / 4e6 against 4096 / 1e6
    fast.outstanding_bytes = 16384
    assert policy.choose([slow, fast], 4096) is slow
    assert policy.choose([slow, fast], 65536) is fast  # a large command counts more on the slow path


def test_service_time_divides_bytes_by_throughput() -> None:
    """With commands that stay outstanding, the bytes on the paths are in the ratio of their throughputs."""
    paths, policy = [Model(bytes_per_second=1e6), Model(bytes_per_second=3e6)], ServiceTime[Model]()
    for _ in range(400):
        path = policy.choose(paths, 4096)
        assert path is not None
        path.outstanding_bytes += 4096
    assert abs(paths[1].outstanding_bytes / paths[0].outstanding_bytes - 3) < 0.1


def test_service_time_tries_a_path_of_unknown_throughput() -> None:
    known, unknown = Model(bytes_per_second=1e6, outstanding_bytes=4096), Model(bytes_per_second=0.0)
    assert ServiceTime[Model]().choose([known, unknown], 4096) is unknown
    # without any estimate the paths take turns
    assert run(ServiceTime[Model](), [Model(), Model(), Model()], 6) == [0, 1, 2, 0, 1, 2]


def test_names() -> None:
    assert list(IOPOLICIES) == ["numa", "round-robin", "queue-depth", "service-time"]
    with pytest.raises(ConfigurationError, match="unknown I/O policy 'fastest': choose one of numa, round-robin"):
        check_iopolicy("fastest")
