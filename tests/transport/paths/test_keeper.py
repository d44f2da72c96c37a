"""The decisions of the path keeper, with a fake driver and fake links."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from nvmeof.transport import Address, SubflowInfo
from nvmeof.transport.paths import keeper as module
from nvmeof.transport.paths.driver import Flow, PathDriver
from nvmeof.transport.paths.events import LinkEvent
from nvmeof.transport.paths.interfaces import Interface
from nvmeof.transport.paths.keeper import LINK, SILENT, PathKeeper, PathState
from nvmeof.transport.paths.model import Limits, PathEndpoint, PathFlag

PEER = Address("10.1.1.1", 4420)


class FakeDriver(PathDriver):
    """A driver that records its calls."""

    name = "fake"

    def __init__(self) -> None:
        self.done: list[tuple[str, str]] = []
        self.fails = False

    def _note(self, what: str, address: str) -> None:
        self.done.append((what, address))
        if self.fails:
            raise OSError(1, "not permitted")

    def add(self, endpoints: Sequence[PathEndpoint], limits: Limits | None) -> list[PathEndpoint]:
        return list(endpoints)

    def remove(self, endpoint: PathEndpoint) -> None:
        self._note("remove", endpoint.address)

    def set_backup(self, endpoint: PathEndpoint, backup: bool) -> PathEndpoint:
        return endpoint

    def suspend(self, endpoint: PathEndpoint, flows: Sequence[Flow]) -> None:
        self._note("suspend", endpoint.address)

    def resume(self, endpoint: PathEndpoint) -> None:
        self._note("resume", endpoint.address)

    def close_flow(self, flow: Flow) -> None:
        self._note("close", flow.local_host)

    def close(self) -> None:
        pass


class NoEvents:
    """A replacement of the netlink socket."""

    def __init__(self, callback: Callable[[Any], object], lost: Callable[[], object] | None = None) -> None:
        pass

    def close(self) -> None:
        pass


def flow(host: str, *, dead: bool = False, state: str = "ESTABLISHED", token: int = 1, **values: Any) -> Flow:
    info = SubflowInfo(local=Address(host, 1), peer=PEER, state=state, timeouts=0, last_ack_received_ms=10)
    if dead:
        info = dataclasses.replace(info, timeouts=4, unacked_segments=9, last_ack_received_ms=5000)
    return Flow(token, dataclasses.replace(info, **values))


def made_anew(host: str, **values: Any) -> Flow:
    """Return a subflow from another port than the first one of its path."""
    return flow(host, local=Address(host, 2), **values)


class World:
    """Two paths on two links, one keeper; time passes only when the test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.driver = FakeDriver()
        self.up = {"eth1": True, "eth2": True}
        self.paths = [
            PathState(PathEndpoint(address=f"10.1.{n}.2", device=f"eth{n}", flags=PathFlag.SUBFLOW)) for n in (1, 2)
        ]
        self.flows: list[list[Flow]] = []
        monkeypatch.setattr(module, "NetworkEvents", NoEvents)
        monkeypatch.setattr(module, "interfaces", self._interfaces)
        monkeypatch.setattr(module, "flows_of", lambda connections: self.flows)
        self.keeper = PathKeeper(self.driver, self.paths, tuple, interval_seconds=1000)
        self.now = 100.0
        self.pass_time(0)

    def _interfaces(self) -> dict[str, Interface]:
        return {
            name: Interface(n, name, up, False, (f"10.1.{n}.2",)) for n, (name, up) in enumerate(self.up.items(), 1)
        }

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.keeper._loop = FakeLoop(self.now)  # type: ignore[assignment]

    def judge(self, *connections: list[Flow], seconds: float = 1.0) -> list[tuple[str, str]]:
        """Do one round, ``seconds`` later; return the calls of the driver."""
        self.pass_time(seconds)
        self.driver.done.clear()
        self.keeper._judge(list(connections))
        return list(self.driver.done)

    def look(self) -> list[tuple[str, str]]:
        self.driver.done.clear()
        self.keeper._look()
        return list(self.driver.done)


class FakeLoop:
    def __init__(self, now: float) -> None:
        self.now = now
        self.timers: list[FakeTimer] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[[], object]) -> FakeTimer:
        self.timers.append(FakeTimer(when, callback))
        return self.timers[-1]


@dataclasses.dataclass
class FakeTimer:
    when: float
    callback: Callable[[], object]
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> Any:
    made = World(monkeypatch)
    yield made
    made.keeper.close()


async def test_a_link_is_cut_and_restored(world: World) -> None:
    assert world.look() == []
    world.up["eth2"] = False
    assert world.look() == [("suspend", "10.1.2.2")]
    assert (world.paths[1].up, world.paths[1].reason) == (False, LINK)
    assert world.look() == [], "once is enough"
    world.up["eth2"] = True
    assert world.look() == [("resume", "10.1.2.2")]
    assert world.look() == []
    assert world.paths[1].up


async def test_with_no_link_left_all_subflows_are_left_to_the_kernel(world: World) -> None:
    world.flows = [[flow("10.1.1.2"), flow("10.1.2.2")]]
    world.up["eth1"] = world.up["eth2"] = False
    assert world.look() == []
    assert all(path.up for path in world.paths)
    world.up["eth1"] = True
    assert world.look() == [], "the kernel has tried the other ways by now: the subflow stays until its link is back"
    world.up["eth2"] = True
    assert world.look() == []
    world.up["eth2"] = False
    assert world.look() == [("suspend", "10.1.2.2")], "this time there is another way"


async def test_with_only_backup_paths_left_subflows_are_left_to_the_kernel(world: World) -> None:
    backup = world.paths[1].endpoint
    world.paths[1].endpoint = dataclasses.replace(backup, flags=backup.flags | PathFlag.BACKUP)
    world.flows = [[flow("10.1.1.2"), flow("10.1.2.2")]]
    world.up["eth1"] = False
    assert world.look() == []
    world.up["eth1"] = True
    world.up["eth2"] = False
    assert world.look() == [("suspend", "10.1.2.2")]


async def test_the_last_of_a_connections_first_subflows_is_never_closed(world: World) -> None:
    """A subflow that joins later has a small receive buffer: without one of the first subflows the window collapses."""
    world.flows = [[flow("10.1.1.2"), flow("10.1.2.2")]]
    world.up["eth2"] = False
    assert world.look() == [("suspend", "10.1.2.2")]
    world.up["eth2"] = True
    assert world.look() == [("resume", "10.1.2.2")]
    world.flows = [[flow("10.1.1.2"), made_anew("10.1.2.2")]]
    world.pass_time(10)
    world.judge(*world.flows)
    world.up["eth1"] = False
    assert world.look() == []
    assert world.paths[0].up
    assert world.judge([flow("10.1.1.2", dead=True), made_anew("10.1.2.2")]) == [], "nor when it is silent"
    world.up["eth1"] = True
    assert world.look() == []
    world.up["eth2"] = False
    assert world.look() == [("suspend", "10.1.2.2")], "a new subflow may be closed again"


async def test_a_subflow_that_was_left_has_time_to_resume_when_its_link_is_restored(world: World) -> None:
    """The kernel doubles the time between its tries: the next one may come as long after as the link was down."""
    good, bad = flow("10.1.1.2"), flow("10.1.2.2", dead=True)
    world.flows = [[flow("10.1.1.2"), flow("10.1.2.2")]]
    world.up["eth1"] = world.up["eth2"] = False
    assert world.look() == []
    assert world.judge([good, bad], seconds=4) == []
    world.up["eth1"] = world.up["eth2"] = True
    assert world.look() == []
    assert world.judge([good, bad], seconds=5.9) == []
    assert world.judge([good, bad], seconds=0.2) == [("suspend", "10.1.2.2")]


async def test_the_only_subflow_of_a_connection_stays(world: World) -> None:
    world.flows = [[flow("10.1.1.2"), flow("10.1.2.2")], [flow("10.1.2.2", token=2)]]
    world.up["eth2"] = False
    assert world.look() == []


async def test_subflows_that_come_with_a_new_connection_are_its_first(world: World) -> None:
    world.judge([flow("10.1.2.2")])
    world.judge([flow("10.1.1.2"), flow("10.1.2.2")], seconds=1)
    world.flows = [[flow("10.1.1.2"), flow("10.1.2.2")]]
    world.up["eth2"] = False
    assert world.look() == [("suspend", "10.1.2.2")]


async def test_a_foreign_path_counts_too(world: World) -> None:
    world.paths.pop(0)
    world.flows = [[flow("10.1.1.2"), flow("10.1.2.2")]]
    world.up["eth2"] = False
    assert world.look() == [("suspend", "10.1.2.2")]


async def test_links_that_go_one_after_the_other_are_looked_at_together(world: World) -> None:
    """The keeper waits until 0.1 s passed without an event, at most 0.5 s."""
    loop = FakeLoop(100.0)
    world.keeper._loop = loop  # type: ignore[assignment]
    world.keeper._soon = None
    for number in range(10):
        loop.now = 100.0 + number * 0.09
        world.keeper._event(LinkEvent("eth1", False))
        (timer,) = [each for each in loop.timers if not each.cancelled]
        assert timer.when == pytest.approx(min(loop.now + 0.1, 100.5))
    assert timer.callback == world.keeper._look


async def test_events_of_other_links_are_ignored(world: World) -> None:
    world.keeper._soon = None
    world.keeper._event(LinkEvent("eth9", False))
    assert world.keeper._soon is None
    world.keeper._event(LinkEvent("eth1", False))
    assert world.keeper._soon is not None


async def test_a_silent_path_is_suspended_and_tried_again_with_longer_pauses(world: World) -> None:
    good, bad = flow("10.1.1.2"), flow("10.1.2.2", dead=True)
    assert world.judge([good, flow("10.1.2.2")]) == []
    assert world.judge([good, bad]) == [("suspend", "10.1.2.2")]
    assert world.paths[1].reason == SILENT
    assert world.judge([good], seconds=1) == []
    assert world.judge([good], seconds=1.1) == [("resume", "10.1.2.2")]
    # its subflow is not established: again, after 4 s and 8 s
    syn = flow("10.1.2.2", state="SYN_SENT")
    again = [("suspend", "10.1.2.2"), ("resume", "10.1.2.2")]
    assert world.judge([good, syn], seconds=3.9) == []
    assert world.judge([good, syn], seconds=0.2) == again
    assert world.judge([good, syn], seconds=7.9) == []
    assert world.judge([good, syn], seconds=0.2) == again
    # the path works: the pause is the short one again
    assert world.judge([good, flow("10.1.2.2")]) == []
    assert world.paths[1].pause_seconds == 2


async def test_the_only_way_is_never_closed(world: World) -> None:
    assert world.judge([flow("10.1.2.2", dead=True)]) == []
    assert world.judge([flow("10.1.1.2", dead=True), flow("10.1.2.2", dead=True)]) == []
    # one connection has another way, the other has none: closing for one would cut the other
    assert world.judge([flow("10.1.1.2"), flow("10.1.2.2", dead=True)], [flow("10.1.2.2", dead=True, token=2)]) == []


async def test_an_idle_connection_does_not_hide_a_dead_path(world: World) -> None:
    idle = [flow("10.1.1.2", token=2), flow("10.1.2.2", token=2, last_ack_received_ms=60_000)]
    assert world.judge([flow("10.1.1.2"), flow("10.1.2.2", dead=True)], idle) == [("suspend", "10.1.2.2")]


async def test_a_path_over_which_another_subflow_gets_answers_stays(world: World) -> None:
    assert world.judge([flow("10.1.1.2"), flow("10.1.2.2", dead=True), flow("10.1.2.2")]) == []


async def test_a_path_that_answers_again_is_resumed_at_once(world: World) -> None:
    world.judge([flow("10.1.1.2"), flow("10.1.2.2", dead=True)])
    assert world.judge([flow("10.1.1.2"), flow("10.1.2.2")], seconds=0.1) == [("resume", "10.1.2.2")]


async def test_a_path_that_was_never_used_is_not_tried_again(world: World) -> None:
    for _ in range(5):
        assert world.judge([flow("10.1.1.2")], seconds=100) == []


async def test_a_dead_subflow_of_no_path_is_closed_alone(world: World) -> None:
    stray = flow("10.9.9.2", dead=True)
    assert world.judge([flow("10.1.1.2"), stray]) == [("close", "10.9.9.2")]
    assert world.judge([stray], seconds=0.1) == []


async def test_a_new_connections_subflow_is_given_time(world: World) -> None:
    assert world.judge([flow("10.1.1.2"), flow("10.1.2.2")]) == []
    assert world.judge([flow("10.1.1.2", token=2)], seconds=1000) == []
    assert world.judge([flow("10.1.1.2", token=2)], seconds=1.9) == []
    assert world.judge([flow("10.1.1.2", token=2)], seconds=0.2) == [("suspend", "10.1.2.2"), ("resume", "10.1.2.2")]


async def test_a_driver_that_fails_is_a_line_of_the_log(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.driver.fails = True
    world.up["eth2"] = False
    assert world.look() == [("suspend", "10.1.2.2")]
    assert "not permitted" in caplog.text


async def test_no_connection_changes_nothing(world: World) -> None:
    world.paths[0].used = True
    assert world.judge(seconds=1000) == []
    await asyncio.sleep(0)
