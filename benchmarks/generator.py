"""The load generator process: one I/O queue against a target, or the same bytes against the floor.

``python -m benchmarks.generator --port P --subnqn NQN --op read --bs 4096 --depth 32`` prints one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from benchmarks import procstat
from benchmarks import wireformat as w
from benchmarks.engines import Counts, Engine, make_engine
from benchmarks.session import (
    BenchmarkError,
    Session,
    SessionOptions,
    open_session,
    open_socket,
    protocol_in_use,
)
from benchmarks.workload import Shape, floor_hello, prepare

DRAIN_SECONDS = 5.0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.generator", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--subnqn", default="")
    parser.add_argument("--nsid", type=int, default=1)
    parser.add_argument("--floor", action="store_true", help="the peer is benchmarks.floor")
    parser.add_argument("--op", choices=["read", "write"], default="read")
    parser.add_argument("--bs", type=int, default=4096, help="bytes per command")
    parser.add_argument("--depth", type=int, default=32)
    parser.add_argument("--batch", type=int, help="new commands leave so many at a time [a quarter of the depth]")
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--warmup", type=float, default=0.2)
    parser.add_argument("--span-bytes", type=int, default=1 << 30, help="reach of the random offsets")
    parser.add_argument("--fill", action="store_true", help="write the whole span once, in order, and stop")
    parser.add_argument("--header-digest", action="store_true")
    parser.add_argument("--data-digest", action="store_true")
    parser.add_argument("--flow-control", action="store_true", help="keep SQ flow control (no SUCCESS flag then)")
    parser.add_argument("--no-success", action="store_true", help="floor: send a response after each read's data")
    parser.add_argument("--no-in-capsule", action="store_true", help="writes wait for R2T whatever their size")
    parser.add_argument("--mptcp", action="store_true")
    parser.add_argument("--congestion")
    parser.add_argument("--engine", choices=["auto", "c", "python"], default="auto")
    parser.add_argument("--wait", choices=["spin", "poll"], default="spin")
    parser.add_argument("--cpu", type=int, help="run on this CPU")
    parser.add_argument("--watch", type=int, help="process whose CPU time is read over the measured window")
    return parser


def _percentile(ordered: Sequence[int], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] / 1000 if ordered else 0.0


def _check(session: Session, shape: Shape) -> tuple[bool, int]:
    """Write one command's worth and read it back; returns (SUCCESS was used, bytes that one read brought)."""
    size, io = shape.block_size_bytes, session.io
    blocks = size // shape.lba_bytes
    data = os.urandom(size)
    sgl = w.IN_CAPSULE if shape.in_capsule else w.TRANSPORT_SGL
    io.expect("A write", w.rw_sqe(w.WRITE, 0, shape.nsid, 0, blocks, size, sgl), data)
    reply = io.expect("A read", w.rw_sqe(w.READ, 0, shape.nsid, 0, blocks, size, w.TRANSPORT_SGL))
    if reply.data != data:
        raise BenchmarkError("what was read back is not what was written")
    return reply.success_flag, reply.wire_bytes


def _batch(options: argparse.Namespace) -> int:
    return int(options.batch or max(1, options.depth // 4))


def _session_options(options: argparse.Namespace) -> SessionOptions:
    return SessionOptions(
        host=options.host,
        port=options.port,
        subnqn=options.subnqn,
        mptcp=options.mptcp,
        congestion=options.congestion,
        header_digest=options.header_digest,
        data_digest=options.data_digest,
        flow_control=options.flow_control,
        depth=options.depth,
        nsid=options.nsid,
    )


def _target_shape(session: Session, options: argparse.Namespace) -> Shape:
    """What this target takes of the case that was asked for."""
    if options.bs > session.mdts_bytes or options.bs % session.block_bytes:
        raise BenchmarkError(
            f"commands of {options.bs} bytes do not fit the target: MDTS {session.mdts_bytes}, "
            f"logical blocks of {session.block_bytes} bytes"
        )
    shape = Shape(
        op=options.op,
        block_size_bytes=options.bs,
        depth=min(options.depth, session.entries - 1),
        framing=session.io.framing,
        success=False,
        in_capsule=options.bs <= session.incapsule_bytes and not options.no_in_capsule,
        nsid=options.nsid,
        lba_bytes=session.block_bytes,
        span_bytes=min(options.span_bytes, session.size_bytes),
        batch=_batch(options),
    )
    success, wire_bytes = _check(session, shape)
    templates = w.reply_templates(shape.framing, options.bs, success)
    expected = len(templates["data_head"]) + options.bs + len(templates["data_tail"])
    if wire_bytes != expected:
        raise BenchmarkError(f"a read of {options.bs} bytes came in {wire_bytes} bytes, {expected} were expected")
    return replace(shape, success=success)


def _floor_shape(options: argparse.Namespace) -> Shape:
    return Shape(
        op=options.op,
        block_size_bytes=options.bs,
        depth=options.depth,
        framing=w.Framing(options.header_digest, options.data_digest),
        success=not (options.flow_control or options.no_success),
        in_capsule=options.bs <= 8192 and not options.no_in_capsule,
        span_bytes=options.span_bytes,
        batch=_batch(options),
    )


def _measure(options: argparse.Namespace, sock: socket.socket, shape: Shape) -> dict[str, Any]:
    if options.fill:
        shape = replace(shape, op="write", sequential=True, limit=shape.span_bytes // shape.block_size_bytes)
    load = prepare(shape)
    if options.floor:
        hello = json.dumps(floor_hello(shape, load)).encode() + b"\n"
        sock.sendall(hello)
        if sock.recv(1) != b"!":
            raise BenchmarkError("the floor server did not answer")
    engine, note = make_engine(options.engine, sock, load, spin=options.wait == "spin")
    if options.fill:
        engine.run(120.0)
        engine.close()
        return {"filled_bytes": engine.counts().done * shape.block_size_bytes}
    try:
        return _window(options, engine, shape) | {"engine": engine.name, "engine_note": note}
    finally:
        engine.close()


def _window(options: argparse.Namespace, engine: Engine, shape: Shape) -> dict[str, Any]:
    """Warm up, then measure for ``options.seconds``: counts and CPU of both sides are read at both ends."""
    engine.run(options.warmup)
    engine.take_latencies_ns()
    watched = options.watch
    steal = procstat.steal_seconds()
    before, own = engine.counts(), resource.getrusage(resource.RUSAGE_SELF)
    own_cpu = procstat.read_cpu(os.getpid())
    server_cpu = procstat.read_cpu(watched) if watched else None
    start = time.monotonic()
    engine.run(options.seconds)
    elapsed = time.monotonic() - start
    server = procstat.cpu_between(server_cpu, procstat.read_cpu(watched)) if server_cpu else None
    after, own_after = engine.counts(), resource.getrusage(resource.RUSAGE_SELF)
    own_use = procstat.cpu_between(own_cpu, procstat.read_cpu(os.getpid()))
    steal = procstat.steal_seconds() - steal
    latencies = sorted(engine.take_latencies_ns())
    if not options.floor:  # the floor counts on new commands to know what comes
        engine.drain(DRAIN_SECONDS)
    result = _figures(before, after, elapsed, shape.block_size_bytes)
    result |= {
        "p50_us": _percentile(latencies, 0.5),
        "p99_us": _percentile(latencies, 0.99),
        "latency_samples": len(latencies),
        "generator_user_us": (own_after.ru_utime - own.ru_utime) * 1e6 / max(1, result["ios"]),
        "generator_system_us": (own_after.ru_stime - own.ru_stime) * 1e6 / max(1, result["ios"]),
        "generator_cpu": asdict(own_use) | {"busy": own_use.busy, "got": own_use.got},
        "server_cpu": asdict(server) | {"busy": server.busy, "got": server.got} if server else None,
        "steal_seconds": steal,
        "drained": engine.counts().done == engine.counts().sent if not options.floor else None,
    }
    return result


def _figures(before: Counts, after: Counts, elapsed: float, size: int) -> dict[str, Any]:
    ios = after.done - before.done
    return {
        "ios": ios,
        "elapsed_seconds": elapsed,
        "iops": ios / elapsed,
        "mb_per_s": ios * size / elapsed / 1e6,
        "rx_bytes": after.rx_bytes - before.rx_bytes,
        "tx_bytes": after.tx_bytes - before.tx_bytes,
        "ios_per_recv": ios / max(1, after.recv_calls - before.recv_calls),
        "ios_per_send": ios / max(1, after.send_calls - before.send_calls),
    }


def run(options: argparse.Namespace) -> dict[str, Any]:
    """One measurement (or one fill), from connect to close."""
    procstat.pin(options.cpu)
    extra: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        if options.floor:
            dialled = open_socket(options.host, options.port, mptcp=options.mptcp, congestion=options.congestion)
            sock, shape = stack.enter_context(dialled), _floor_shape(options)
        else:
            session = open_session(_session_options(options))
            stack.callback(session.close)
            assert isinstance(session.io.sock, socket.socket)
            sock, shape = session.io.sock, _target_shape(session, options)
            extra = {"entries": session.entries, "target_mdts_bytes": session.mdts_bytes}
        result = _measure(options, sock, shape)
        return (
            result
            | extra
            | {
                "op": shape.op,
                "block_size_bytes": shape.block_size_bytes,
                "depth": shape.depth,
                "success_flag": shape.success if shape.op == "read" else None,
                "in_capsule": shape.in_capsule if shape.op == "write" else None,
                "header_digest": options.header_digest,
                "data_digest": options.data_digest,
                "protocol": protocol_in_use(sock),
                "wait": options.wait,
            }
        )


def main(argv: list[str] | None = None) -> int:
    """Exit code 0 with the figures, 1 with ``{"error": ...}``."""
    try:
        result = run(_parser().parse_args(argv))
    except BenchmarkError as error:
        result = {"error": str(error)}
    except OSError as error:
        result = {"error": f"the measurement broke off: {error.strerror or error}"}
    sys.stdout.write(json.dumps(result) + "\n")
    return 1 if "error" in result else 0


if __name__ == "__main__":
    raise SystemExit(main())
