"""The queue connection without sockets: batches of Read capsules in, data PDUs out, nanoseconds per command.

What no socket costs is left out on purpose: this is the protocol's own time. Payload bytes are never copied.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks import inprocess
from benchmarks import wireformat as w
from benchmarks.timing import nanoseconds
from nvmeof.protocol.connection import ConnectionConfig, TargetConnection
from nvmeof.protocol.events import CommandBatch
from nvmeof.spec.sqe import SQE
from nvmeof.wire import Buffer

BATCH = 32
BLOCK_BYTES = 4096
LONG_BYTES = 128 * 1024
MEMORY_BYTES = 1 << 24
LBA_BYTES = 512
ENTRIES = 128
NOW = 0.0

Answer = Callable[[TargetConnection, list[Any]], None]


def ready_connection(*, digests: bool = False, flow_control: bool = False) -> TargetConnection:
    """A target's connection after its handshake, with queue 1 connected."""
    connection = TargetConnection(ConnectionConfig(header_digest=digests, data_digest=digests))
    request = w.COMMON_HEADER.pack(w.ICREQ, 0, 128, 0, 128) + w.INITIALIZE.pack(0, 0, 3 if digests else 0, 0)
    connection.next_buffer()[: len(request)] = request
    connection.bytes_received(len(request), NOW)
    connection.bytes_sent(sum(map(len, connection.data_to_send())))
    connection.set_queue(1, ENTRIES, flow_control=flow_control)
    return connection


def _sqes(opcode: int, length: int, sgl_type: int, count: int, rng: random.Random) -> Iterator[bytes]:
    """Commands of ``length`` bytes each at random places of the memory, made as they are taken."""
    blocks = length // LBA_BYTES
    for cid in range(count):
        slba = rng.randrange(MEMORY_BYTES // length) * blocks
        yield w.rw_sqe(opcode, cid, 1, slba, blocks, length, sgl_type)


def capsules(*, digests: bool = False, count: int = BATCH, seed: int = 1) -> bytes:
    """``count`` Reads of 4 KiB."""
    framing = w.Framing(digests, digests)
    sqes = _sqes(w.READ, BLOCK_BYTES, w.TRANSPORT_SGL, count, random.Random(seed))
    return b"".join(framing.head(w.CAPSULE_CMD, sqe) for sqe in sqes)


def writes(*, digests: bool = False, count: int = BATCH, seed: int = 1) -> bytes:
    """As `capsules`, but Writes with their 4 KiB in the capsule."""
    framing = w.Framing(digests, digests)
    rng = random.Random(seed)
    out = b""
    for sqe in _sqes(w.WRITE, BLOCK_BYTES, w.IN_CAPSULE, count, rng):
        payload = rng.randbytes(BLOCK_BYTES)
        out += framing.head(w.CAPSULE_CMD, sqe, BLOCK_BYTES) + payload + framing.tail(payload)
    return out


def long_writes(count: int = BATCH, seed: int = 1) -> bytes:
    """Writes of 128 KiB whose data has to be asked for."""
    framing = w.Framing(False, False)
    sqes = _sqes(w.WRITE, LONG_BYTES, w.TRANSPORT_SGL, count, random.Random(seed))
    return b"".join(framing.head(w.CAPSULE_CMD, sqe) for sqe in sqes)


def _parse_only(connection: TargetConnection, events: list[Any]) -> None:
    """Receive the batch and forget it: the commands' count is given back by hand."""
    for event in events:
        connection.in_flight -= event.count


def _slices(memory: memoryview) -> Answer:
    """The least that can stand behind a connection: CID and SLBA picked, a slice of memory answered."""
    header = w.CAPSULE_BYTES - w.SQE.size

    def answer(connection: TargetConnection, events: list[Any]) -> None:
        for event in events:
            if not isinstance(event, CommandBatch):
                raise AssertionError(f"unexpected event {event!r}")
            for at in range(header, event.count * event.stride, event.stride):
                fields = w.SQE.unpack_from(event.view, at)
                start = fields[10] * LBA_BYTES
                connection.send_read(fields[2], memory[start : start + BLOCK_BYTES])

    return answer


def _gathered(memory: memoryview) -> Answer:
    """As `_slices`, with a batch picked and answered in one go, the way that a queue does it."""
    header = w.CAPSULE_BYTES - w.SQE.size
    strides = (w.CAPSULE_BYTES, w.CAPSULE_BYTES + 4)
    pick = {stride: SQE.select("cid", "cdw10", before=header, size=stride) for stride in strides}

    def answer(connection: TargetConnection, events: list[Any]) -> None:
        for event in events:
            cids: list[int] = []
            views: list[Buffer] = []
            for cid, slba in pick[event.stride].iter_unpack(event.view):
                cids.append(cid)
                views.append(memory[slba * LBA_BYTES : slba * LBA_BYTES + BLOCK_BYTES])
            connection.send_reads(cids, views, BLOCK_BYTES)

    return answer


def _round(connection: TargetConnection, batch: bytes, answer: Answer) -> Callable[[], int]:
    size = len(batch)

    def once() -> int:
        connection.next_buffer()[:size] = batch
        answer(connection, connection.bytes_received(size, NOW))
        sent = sum(map(len, connection.data_to_send()))
        if sent:
            connection.bytes_sent(sent)
        return sent

    return once


def _variants() -> list[tuple[str, bool, Callable[[], int]]]:
    memory = memoryview(bytearray(MEMORY_BYTES))
    variants: list[tuple[str, bool, Callable[[], int]]] = []
    for digests in (False, True):
        suffix = ", digests" if digests else ""
        batch = capsules(digests=digests)
        once = _round(ready_connection(digests=digests), batch, _parse_only)
        variants.append((f"commands in{suffix}", digests, once))
        once = _round(ready_connection(digests=digests), batch, _slices(memory))
        variants.append((f"commands in, data out one by one{suffix}", digests, once))
        once = _round(ready_connection(digests=digests), batch, _gathered(memory))
        variants.append((f"commands in, data out in batches{suffix}", digests, once))
        once = _round(ready_connection(digests=digests, flow_control=True), batch, _gathered(memory))
        variants.append((f"commands in, data and responses out in batches{suffix}", digests, once))
        for flow_control in (False, True):
            queue = inprocess.open_queue(MEMORY_BYTES, digests=digests, flow_control=flow_control)
            responses = " and responses" if flow_control else ""
            once = functools.partial(queue.exchange, batch)
            variants.append((f"the target's queue behind it, data{responses} out{suffix}", digests, once))
        once = functools.partial(inprocess.open_queue(MEMORY_BYTES, digests=digests).exchange, writes(digests=digests))
        variants.append((f"the target's queue behind it, in-capsule writes{suffix}", digests, once))
    once = functools.partial(inprocess.open_queue(MEMORY_BYTES).exchange_writes, long_writes(), LONG_BYTES)
    variants.append(("the target's queue behind it, 128 KiB writes", False, once))
    return variants


def run(*, quick: bool = False) -> list[dict[str, Any]]:
    """One result per variant: nanoseconds per command, and the bytes that a batch sends."""
    seconds, repeats = (0.005, 3) if quick else (0.05, 7)
    variants = _variants()
    results: list[dict[str, Any]] = []
    figures = nanoseconds([once for _, _, once in variants], seconds=seconds, repeats=repeats)
    for (name, digests, once), figure in zip(variants, figures, strict=True):
        results.append(
            {
                "name": name,
                "batch": BATCH,
                "digests": digests,
                "best_ns": figure["best_ns"] / BATCH,
                "median_ns": figure["median_ns"] / BATCH,
                "sent_bytes_per_batch": once(),
            }
        )
    return results
