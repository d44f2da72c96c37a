"""Codecs: construct as declared, the codec derived from the declaration, and a bare struct as the floor."""

from __future__ import annotations

import dataclasses
from typing import Any

from benchmarks.timing import nanoseconds
from nvmeof.pdu.handshake import ICREQ
from nvmeof.pdu.header import CH
from nvmeof.pdu.transfer import C2H_DATA, H2C_DATA, R2T_PDU
from nvmeof.spec.cqe import CQE
from nvmeof.spec.sqe import SQE
from nvmeof.wire import Record

RECORDS: dict[str, Record[Any]] = {
    "SQE": SQE,
    "CQE": CQE,
    "CH": CH,
    "H2CData": H2C_DATA,
    "C2HData": C2H_DATA,
    "R2T": R2T_PDU,
    "ICReq": ICREQ,
}
BATCH = 32
READ_FIELDS = ("opcode", "cid", "nsid", "sgl_length", "sgl_type", "cdw10", "cdw11", "cdw12")
READ_STRIDE = 72


def run(*, quick: bool = False) -> list[dict[str, Any]]:
    """One result per record and direction, nanoseconds per record, and one for fields picked out of a batch."""
    seconds, repeats = (0.002, 3) if quick else (0.02, 7)
    results = [r for name, record in RECORDS.items() for r in _record(name, record, seconds, repeats)]
    results.append(_batch(seconds, repeats))
    return results


def _line(name: str, size: int, labels: tuple[str, ...], figures: list[dict[str, float]]) -> dict[str, Any]:
    line: dict[str, Any] = {"name": name, "bytes": size}
    for label, figure in zip(labels, figures, strict=True):
        line |= {f"{label}_ns": figure["best_ns"], f"{label}_median_ns": figure["median_ns"]}
    return line


def _record(name: str, record: Record[Any], seconds: float, repeats: int) -> list[dict[str, Any]]:
    raw = bytes(range(1, record.size + 1))
    declared: Any = record.declaration
    obj = record.unpack_from(raw)
    values = tuple(getattr(obj, field.name) for field in dataclasses.fields(obj))
    fields = {field.name: getattr(obj, field.name) for field in dataclasses.fields(obj)}
    bare = record.struct
    labels = ("construct", "derived", "struct")
    parse = nanoseconds(
        [lambda: declared.parse(raw), lambda: record.unpack_from(raw), lambda: bare.unpack_from(raw)],
        seconds=seconds,
        repeats=repeats,
    )
    build = nanoseconds(
        [lambda: declared.build(fields), lambda: record.pack(obj), lambda: bare.pack(*values)],
        seconds=seconds,
        repeats=repeats,
    )
    return [
        _line(f"{name} parse", record.size, labels, parse),
        _line(f"{name} build", record.size, labels, build),
    ]


def _batch(seconds: float, repeats: int) -> dict[str, Any]:
    """What the hot path does: a Read's fields out of a batch of capsules, no object made. Per command."""
    header_bytes = READ_STRIDE - SQE.size
    picked = SQE.select(*READ_FIELDS, before=header_bytes, size=READ_STRIDE)
    batch = memoryview(bytes(READ_STRIDE * BATCH))

    def derived() -> None:
        for _ in picked.iter_unpack(batch):
            pass

    def objects() -> None:
        for at in range(header_bytes, READ_STRIDE * BATCH, READ_STRIDE):
            SQE.unpack_from(batch, at)

    def declared() -> None:
        for at in range(header_bytes, READ_STRIDE * BATCH, READ_STRIDE):
            SQE.declaration.parse(bytes(batch[at : at + SQE.size]))

    figures = nanoseconds([declared, objects, derived], seconds=seconds, repeats=repeats)
    per_command = [{key: value / BATCH for key, value in figure.items()} for figure in figures]
    return _line("SQE batch of 32, Read's fields", READ_STRIDE, ("construct", "derived", "struct"), per_command)
