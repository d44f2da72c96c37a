"""What happens in a target is told to those who listen, and to nobody else."""

from __future__ import annotations

import pytest

from nvmeof.target.core.happenings import Facts, Happenings


def test_listeners_hear_events_until_they_end() -> None:
    happenings, heard = Happenings(), list[tuple[str, dict[str, object]]]()

    def listen(kind: str, facts: Facts) -> None:
        heard.append((kind, dict(facts)))

    happenings.tell("nobody", hears="this")
    end = happenings.listen(listen)
    happenings.tell("connected", peer="x")
    end()
    end()
    happenings.tell("connected", peer="y")
    assert heard == [("connected", {"peer": "x"})]


def test_a_listener_that_fails_is_removed_and_others_hear_on(caplog: pytest.LogCaptureFixture) -> None:
    happenings, heard = Happenings(), list[str]()

    def fails(kind: str, facts: Facts) -> None:
        raise ValueError("defect")

    happenings.listen(fails)
    happenings.listen(lambda kind, facts: heard.append(kind))
    happenings.tell("one")
    happenings.tell("two")
    assert heard == ["one", "two"]
    assert caplog.text.count("a listener failed and is called no more: ValueError: defect") == 1


def test_a_listener_may_end_itself_while_it_is_told() -> None:
    happenings, heard = Happenings(), list[str]()

    def once(kind: str, facts: Facts) -> None:
        heard.append(kind)
        end()

    end = happenings.listen(once)
    happenings.tell("one")
    happenings.tell("two")
    assert heard == ["one"]
