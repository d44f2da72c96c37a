"""Inputs for harnesses: of a corpus, mutated; by chance, or guided by coverage with atheris."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import FunctionType
from typing import Final

from tests.fuzz.harness import HARNESSES, Harness

CORPUS: Final = Path(__file__).with_name("corpus")
MOST_BYTES: Final = 600


def corpus_of(name: str, folder: Path = CORPUS) -> list[bytes]:
    """Return the inputs that are kept for a harness, in a fixed order."""
    return [path.read_bytes() for path in sorted((folder / name).glob("*"))]


def keep(name: str, data: bytes, folder: Path) -> Path:
    """Add an input to a corpus; its name is of its content."""
    path = folder / name / sha256(data).hexdigest()[:16]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def mutated(data: bytes, corpus: list[bytes], draw: random.Random) -> bytes:
    """Return an input that is like one, or unlike any."""
    changed = bytearray(data)
    for _ in range(draw.choice((0, 1, 1, 2, 4, 8))):
        kind, at = draw.randrange(6), draw.randrange(len(changed) + 1)
        if kind == 0:
            changed[at:at] = draw.randbytes(draw.choice((1, 2, 8, 40)))
        elif kind == 1:
            del changed[at : at + draw.choice((1, 2, 8, 40))]
        elif kind == 2:
            other = draw.choice(corpus)
            changed[at:] = other[draw.randrange(len(other) + 1) :]
        elif at < len(changed):
            changed[at] = draw.choice((0, 1, 0xFF, draw.randrange(256), changed[at] ^ 1 << draw.randrange(8)))
    if draw.random() < 0.25:
        changed += draw.randbytes(draw.randrange(MOST_BYTES))
    return bytes(changed[:MOST_BYTES])


def inputs(harness: Harness, draw: random.Random, folder: Path = CORPUS) -> Iterator[bytes]:
    """Yield inputs without end: the corpus first."""
    corpus = [*harness.seeds, *corpus_of(harness.name, folder)]
    yield from corpus
    while True:
        yield mutated(draw.choice(corpus), corpus, draw)


@dataclass
class Result:
    """What one harness has been through. `failure`: the input that broke it, and how."""

    name: str
    inputs: int = 0
    pdus: int = 0
    seconds: float = 0.0
    failure: tuple[bytes, str] | None = None


def by_chance(name: str, seconds: float, seed: int, folder: Path = CORPUS) -> Result:
    """Give a harness inputs for so long, or until it breaks."""
    harness, result = HARNESSES[name](), Result(name)
    began = time.monotonic()
    try:
        for data in inputs(harness, random.Random(seed), folder):
            result.seconds = time.monotonic() - began
            if result.seconds >= seconds:
                break
            try:
                result.pdus += harness.run(data)
            except Exception as error:
                result.failure = data, f"{type(error).__name__}: {error}"
                break
            result.inputs += 1
    finally:
        harness.close()
    return result


def guided(name: str, seconds: float, folder: Path, say: Callable[[str], None]) -> None:
    """Let atheris look for inputs that reach more of the code, and keep them in a folder. It does not return."""
    try:
        import atheris
    except ImportError:
        raise SystemExit("coverage-guided fuzzing needs atheris: pip install 'nvmeof-mptcp[fuzz]'") from None
    # The package alone, of what is imported: all that Python has would take minutes.
    for function in [each for each in gc.get_objects() if isinstance(each, FunctionType)]:
        if (function.__module__ or "").startswith("nvmeof."):
            atheris.instrument_func(function)
    harness = HARNESSES[name]()
    (folder / name).mkdir(parents=True, exist_ok=True)
    say(f"{name}: atheris, for {seconds:.0f} s; what it finds goes to {folder / name}")
    words = [f"-max_total_time={int(seconds)}", f"-max_len={MOST_BYTES}", "-print_final_stats=1", str(folder / name)]
    known = CORPUS / name
    if known.is_dir() and known != folder / name:
        words.append(str(known))
    atheris.Setup(["fuzz", *words], lambda data: harness.run(data) and None)
    atheris.Fuzz()
