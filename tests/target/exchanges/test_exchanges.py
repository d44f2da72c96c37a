"""The target answers recorded bytes of hosts with the recorded output, byte for byte."""

from __future__ import annotations

from unittest import mock

from tests.target.exchanges.player import PlayedTarget, fixed_uuids, load


def test_recorded_exchanges() -> None:
    answered = 0
    with mock.patch("uuid.uuid4", fixed_uuids()):
        target = PlayedTarget()
        for number, (name, asked, expected) in enumerate(load()):
            got = target.play(name, asked)
            assert got == expected, f"exchange {number} on {name}: {asked[:72].hex()} was answered differently"
            answered += bool(got)
        target.close()
    assert answered > 4000
