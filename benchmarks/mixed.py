"""A load of commands of several kinds by turns, on one I/O queue of a target.

``python -m benchmarks.mixed --port P --subnqn NQN --mix read:4096x7,write:4096x3 --depth 32`` prints one JSON object,
in the form of `benchmarks.generator`. A kind is ``OP:BYTES``, with ``@NSID`` for a namespace other than 1 and ``xN``
for its share; OP is read, write or fua (a Write with Force Unit Access). With shares the order is shuffled by a fixed
seed; without them the kinds take turns.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import random
import re
import resource
import struct
import sys
import time
from array import array
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks import native, procstat
from benchmarks import wireformat as w
from benchmarks.engines import Counts, _failure
from benchmarks.generator import DRAIN_SECONDS, _figures, _percentile
from benchmarks.session import BenchmarkError, Session, SessionOptions, open_session, protocol_in_use

RING: Final = 8192
SEED: Final = 20260102
FUA: Final = 1 << 30
_KIND: Final = re.compile(r"(read|write|fua):(\d+)(?:@(\d+))?(?:x(\d+))?")


@dataclass(frozen=True)
class Kind:
    """Commands of one kind: ``share`` of them in a round."""

    op: str
    size: int
    nsid: int = 1
    share: int = 1


def parse_mix(text: str) -> list[Kind]:
    """Parse the text of ``--mix``. Raises `BenchmarkError`."""
    kinds = []
    for part in text.split(","):
        found = _KIND.fullmatch(part)
        if found is None:
            raise BenchmarkError(f"{part!r} is no kind of command: write OP:BYTES, such as read:4096x7 or write:4096@2")
        kinds.append(Kind(found[1], int(found[2]), int(found[3] or 1), int(found[4] or 1)))
    return kinds


class MixStruct(ctypes.Structure):
    """The part of ``struct loadmix`` that Python fills in or reads; the rest follows it in memory."""

    _fields_ = [
        ("commands", ctypes.c_char_p),
        ("starts", ctypes.c_void_p),
        ("payload", ctypes.c_char_p),
        ("fd", ctypes.c_int32),
        *((name, ctypes.c_uint32) for name in ("ring", "depth", "batch", "spin")),
        *((name, ctypes.c_uint64) for name in ("done", "sent", "rx_bytes", "tx_bytes", "recv_calls", "send_calls")),
        ("error_head", ctypes.c_uint32 * 6),
        ("latency_count", ctypes.c_uint32),
        ("latencies_ns", ctypes.c_uint32 * native.LATENCIES),
    ]


def commands(kinds: list[Kind], session: Session, span_bytes: int) -> tuple[bytes, array[int]]:
    """Return the capsules, one behind the other, and where each begins, the end of the last one too."""
    rng, framing = random.Random(SEED), session.io.framing
    turns = [kind for kind in kinds for _ in range(kind.share)]
    if any(kind.share > 1 for kind in kinds):
        rng.shuffle(turns)
    payload = rng.randbytes(max(kind.size for kind in kinds))
    parts, starts, end = [], array("Q", [0]), 0
    for cid in range(RING):
        kind = turns[cid % len(turns)]
        write, blocks = kind.op != "read", kind.size // session.block_bytes
        inline = kind.size if write and kind.size <= session.incapsule_bytes else 0
        slba = rng.randrange(span_bytes // kind.size) * blocks
        sgl = w.IN_CAPSULE if inline else w.TRANSPORT_SGL
        sqe = w.SQE.pack(
            w.WRITE if write else w.READ, w.PSDT_SGL, cid, kind.nsid, 0, 0, 0, 0, kind.size, sgl,
            slba & 0xFFFFFFFF, slba >> 32, (blocks - 1) | (FUA if kind.op == "fua" else 0), 0, 0, 0,
        )  # fmt: skip
        part = framing.head(w.CAPSULE_CMD, sqe, inline) + payload[:inline]
        end += len(part)
        parts.append(part)
        starts.append(end)
    return b"".join(parts), starts


class MixedLoad:
    """loadmix.c over the I/O queue of a session."""

    def __init__(self, session: Session, kinds: list[Kind], depth: int, span_bytes: int, *, spin: bool) -> None:
        library, note = native.compiled(Path(__file__).with_name("loadmix.c"))
        if library is None:
            raise BenchmarkError(f"a mixed load needs its C loop: {note}")
        library.mix_size.restype = ctypes.c_uint64
        library.mix_run.argtypes = (ctypes.c_void_p, ctypes.c_double, ctypes.c_int)
        self._library = library
        self._memory = ctypes.create_string_buffer(library.mix_size())
        state = self._state = MixStruct.from_buffer(self._memory)
        self._commands, self._starts = commands(kinds, session, min(span_bytes, session.size_bytes))
        self._payload = random.Random(1).randbytes(max(kind.size for kind in kinds))
        sock: Any = session.io.sock
        sock.setblocking(False)
        state.commands, state.payload, state.fd = self._commands, self._payload, sock.fileno()
        state.starts = self._starts.buffer_info()[0]
        state.ring, state.spin = RING, spin
        state.depth = min(depth, session.entries - 1)
        state.batch = max(1, state.depth // 4)

    def run(self, seconds: float, *, refilling: bool = True) -> None:
        """Send for so long; without ``refilling`` wait until all is answered. Raises `BenchmarkError`."""
        code = self._library.mix_run(ctypes.addressof(self._state), seconds, refilling)
        if code:
            raise _failure(code, bytes(self._state.error_head))

    def counts(self) -> Counts:
        """Return what was done since the start."""
        s = self._state
        return Counts(s.done, s.sent, s.rx_bytes, s.tx_bytes, s.recv_calls, s.send_calls)

    def take_latencies_ns(self) -> list[int]:
        """Return the latencies since the last call: of the last command of a batch, one batch at a time."""
        taken = list(self._state.latencies_ns[: self._state.latency_count])
        self._state.latency_count = 0
        return taken


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Make one measurement, from connect to close."""
    procstat.pin(options.cpu)
    kinds = parse_mix(options.mix)
    session = open_session(
        SessionOptions(options.host, options.port, options.subnqn, options.mptcp, depth=options.depth)
    )
    with contextlib.closing(session):
        load = MixedLoad(session, kinds, options.depth, options.span_bytes, spin=options.wait == "spin")
        load.run(options.warmup)
        load.take_latencies_ns()
        steal, before, own = procstat.steal_seconds(), load.counts(), procstat.read_cpu(os.getpid())
        server_cpu = procstat.read_cpu(options.watch) if options.watch else None
        usage, start = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
        load.run(options.seconds)
        elapsed = time.monotonic() - start
        server = procstat.cpu_between(server_cpu, procstat.read_cpu(options.watch)) if server_cpu else None
        own_use, after = procstat.cpu_between(own, procstat.read_cpu(os.getpid())), load.counts()
        usage_after = resource.getrusage(resource.RUSAGE_SELF)
        latencies = sorted(load.take_latencies_ns())
        load.run(DRAIN_SECONDS, refilling=False)
        result = _figures(before, after, elapsed, sum(k.size * k.share for k in kinds) // sum(k.share for k in kinds))
        return result | {
            "p50_us": _percentile(latencies, 0.5),
            "p99_us": _percentile(latencies, 0.99),
            "latency_samples": len(latencies),
            "generator_user_us": (usage_after.ru_utime - usage.ru_utime) * 1e6 / max(1, result["ios"]),
            "generator_cpu": asdict(own_use) | {"busy": own_use.busy, "got": own_use.got},
            "server_cpu": asdict(server) | {"busy": server.busy, "got": server.got} if server else None,
            "steal_seconds": procstat.steal_seconds() - steal,
            "drained": load.counts().done == load.counts().sent,
            "protocol": protocol_in_use(session.io.sock),  # type: ignore[arg-type]
            "mix": [asdict(kind) for kind in kinds],
        }


def main(argv: list[str] | None = None) -> int:
    """Exit code 0 with the figures, 1 with ``{"error": ...}``."""
    parser = argparse.ArgumentParser(prog="benchmarks.mixed", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--subnqn", required=True)
    parser.add_argument("--mix", required=True, help="kinds: OP:BYTES[@NSID][xN], separated by commas")
    parser.add_argument("--depth", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--warmup", type=float, default=0.2)
    parser.add_argument("--span-bytes", type=int, default=1 << 28, help="reach of the random offsets")
    parser.add_argument("--mptcp", action="store_true")
    parser.add_argument("--wait", choices=["spin", "poll"], default="spin")
    parser.add_argument("--cpu", type=int, help="run on this CPU")
    parser.add_argument("--watch", type=int, help="process whose CPU time is read over the measured window")
    try:
        result = run(parser.parse_args(argv))
    except (BenchmarkError, struct.error) as error:
        result = {"error": str(error)}
    except OSError as error:
        result = {"error": f"the measurement broke off: {error.strerror or error}"}
    sys.stdout.write(json.dumps(result) + "\n")
    return 1 if "error" in result else 0


if __name__ == "__main__":
    raise SystemExit(main())
