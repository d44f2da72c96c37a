"""loadgen.c, compiled at run time where there is a C compiler, and its struct as ctypes sees it."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("loadgen.c")
LATENCIES = 1 << 18


class LoadgenStruct(ctypes.Structure):
    """The part of ``struct loadgen`` that Python fills in or reads; the rest follows it in memory."""

    _fields_ = [
        ("heads", ctypes.c_char_p),
        ("payloads", ctypes.c_char_p),
        ("limit", ctypes.c_uint64),
        ("fd", ctypes.c_int32),
        *(
            (name, ctypes.c_uint32)
            for name in (
                "r2t",
                "spin",
                "ring",
                "head_bytes",
                "payload_bytes",
                "payload_stride",
                "payload_count",
                "unit_bytes",
                "check_head",
                "check_plen",
                "depth",
                "batch",
                "hdgst_bytes",
                "ddgst_bytes",
                "data_offset",
                "piece_bytes",
            )
        ),
        ("payload_fd", ctypes.c_int32),
        *((name, ctypes.c_uint64) for name in ("done", "sent", "rx_bytes", "tx_bytes", "recv_calls", "send_calls")),
        ("latency_count", ctypes.c_uint32),
        ("error_head", ctypes.c_uint32 * 2),
        ("latencies_ns", ctypes.c_uint32 * LATENCIES),
    ]


def build() -> tuple[ctypes.CDLL | None, str]:
    """The compiled loop, or None with the reason."""
    library, note = compiled(SOURCE)
    if library is not None:
        library.lg_size.restype = ctypes.c_uint64
        library.lg_run.argtypes = (ctypes.c_void_p, ctypes.c_double, ctypes.c_int)
        library.lg_run.restype = ctypes.c_int
    return library, note


def compiled(source: Path) -> tuple[ctypes.CDLL | None, str]:
    """A compiled source, or None with the reason. The library is kept in the user's cache, named by its source."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not compiler:
        return None, "no C compiler"
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nvmeof-benchmarks"
    target = cache / f"{source.stem}-{digest}.so"
    try:
        if not target.exists():
            cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=cache) as folder:
                made = Path(folder) / "made.so"
                command = [compiler, "-O2", "-shared", "-fPIC", "-o", str(made), str(source)]
                subprocess.run(command, check=True, capture_output=True, text=True)
                made.rename(target)
        library = ctypes.CDLL(str(target))
    except (OSError, subprocess.CalledProcessError) as error:
        return None, f"the C loop could not be built: {error}"
    return library, ""
