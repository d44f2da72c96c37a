"""The short form of `make fuzz`: the corpus, then some seconds of inputs by hypothesis; and what memory is left."""

from __future__ import annotations

import logging
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.fuzz import control, sans_io, with_loop
from tests.fuzz.__main__ import main
from tests.fuzz.engine import MOST_BYTES, by_chance, corpus_of, keep, mutated
from tests.fuzz.harness import GROWTH_BYTES, HARNESSES, Harness, Violation, growth

NAMES = ("framer", "commands", "authentication", "nbd-negotiation", "target", "nbd", "control")
assert control and sans_io and with_loop, "they register what they have"


@pytest.fixture
def harness(request: pytest.FixtureRequest) -> Iterator[Harness]:
    made = HARNESSES[request.param]()
    yield made
    made.close()


def some(name: str, count: int) -> list[bytes]:
    draw = random.Random(name)
    corpus = [*HARNESSES[name].seeds, *corpus_of(name)]  # type: ignore[attr-defined]
    return corpus + [mutated(draw.choice(corpus), corpus, draw) for _ in range(count)]


@pytest.mark.parametrize("harness", NAMES, indirect=True)
def test_the_corpus_and_inputs_by_chance(harness: Harness) -> None:
    inputs = some(harness.name, 60)
    assert len(inputs) > 65, "it has a corpus"
    assert sum(harness.run(data) for data in inputs) > 200


@pytest.mark.parametrize("harness", NAMES, indirect=True)
def test_inputs_by_hypothesis(harness: Harness) -> None:
    @settings(
        max_examples=40,
        deadline=None,
        database=None,
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(st.binary(max_size=MOST_BYTES))
    def each(data: bytes) -> None:
        harness.run(data)

    each()


@pytest.mark.parametrize("harness", NAMES, indirect=True)
def test_no_memory_is_left(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("nvmeof"), "handlers", [harness.faults])  # pytest keeps what is logged
    assert growth(harness, some(harness.name, 25)) < GROWTH_BYTES


class Faulty(Harness):
    """It does not like some bytes."""

    name = "faulty"
    seeds = (b"abc",)

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[bytes] = []

    def one(self, data: bytes) -> int:
        if b"\xff" in data:
            raise ValueError("too large")
        self.kept.append(bytes(100_000))
        return 1


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(HARNESSES, "faulty", Faulty)


def test_a_harness_that_breaks_is_found_with_its_input(faulty: None, tmp_path: Path) -> None:
    result = by_chance("faulty", 20.0, 1, tmp_path)
    assert result.failure is not None and b"\xff" in result.failure[0] and "ValueError: too large" in result.failure[1]
    path = keep("faulty", result.failure[0], tmp_path)
    assert corpus_of("faulty", tmp_path) == [path.read_bytes()]
    told = CliRunner().invoke(main, ["--harness", "faulty", "--minutes", "1", "--corpus", str(tmp_path)])
    assert told.exit_code == 1 and "too large" in told.output and str(path.parent) in told.output


def test_memory_that_is_left_is_found() -> None:
    harness = Faulty()
    assert growth(harness, [b"a", b"b"]) > GROWTH_BYTES
    harness.close()


def test_a_defect_that_the_target_survives_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    harness = HARNESSES["commands"]()
    try:
        monkeypatch.setattr("nvmeof.target.namespaces.namespace.Namespace.flush", lambda self: 1 // 0)
        with pytest.raises(Violation, match="ZeroDivisionError"):
            for data in some("commands", 400):
                harness.run(data)
    finally:
        harness.close()


def test_a_module_of_its_own_brings_a_harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_harness.py").write_text(
        "from tests.fuzz.harness import Harness, register\n"
        "@register\n"
        "class Mine(Harness):\n"
        "    '''A control socket, say.'''\n"
        "    name = 'mine'\n"
        "    def one(self, data):\n"
        "        return 1\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    try:
        told = CliRunner().invoke(main, ["--module", "my_harness", "--harness", "mine", "--minutes", "0.002"])
        assert told.exit_code == 0 and "mine" in told.output and "per second" in told.output
        assert "A control socket" in CliRunner().invoke(main, ["--module", "my_harness", "--list"]).output
        assert CliRunner().invoke(main, ["--harness", "none"]).exit_code == 2
    finally:
        HARNESSES.pop("mine", None)
        sys.modules.pop("my_harness", None)


@pytest.mark.parametrize("name", NAMES)
def test_corpora_are_small(name: str) -> None:
    corpus = corpus_of(name)
    assert 3 <= len(corpus) <= 60 and max(map(len, corpus)) <= MOST_BYTES


def test_a_defect_of_a_verb_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    harness = HARNESSES["control"]()
    try:
        monkeypatch.setattr("nvmeof.target.administration.Administration.add_host", lambda *_, **__: 1 // 0)
        with pytest.raises(Violation, match="ZeroDivisionError"):
            for data in some("control", 400):
                harness.run(data)
    finally:
        harness.close()
