"""``python -m nvmeof``: the main job from end to end, on this machine, in some seconds.

A target in another process serves a ramdisk; a host in this process discovers it, connects, identifies, writes, reads
back and compares, and prints what it found. Exit code 0 when all of it went well.
"""

from __future__ import annotations

if __name__ == "__main__":
    from nvmeof.cli import early

    early.exit_at_interrupt()

import asyncio
import hashlib
import json
import os
import random
import signal
import statistics
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import click
from rich.console import Console

import nvmeof
from nvmeof.aio.runloop import run
from nvmeof.cli import interrupts
from nvmeof.cli.exit_codes import run_program
from nvmeof.cli.types import Number, Seconds
from nvmeof.errors import NvmeofError
from nvmeof.host.client import HostController, connect, discover
from nvmeof.host.namespace import Namespace
from nvmeof.launch import command_line
from nvmeof.size_text import format_size, parse_size

LABEL_COLUMNS: Final = 11
CHUNK_BYTES: Final = 256 * 1024
CHUNKS_IN_FLIGHT: Final = 8
START_SECONDS: Final = 20.0


@dataclass(slots=True)
class Demo:
    """The options of the demonstration: transport, size of the ramdisk, how much is written and read back, all in bytes
    and seconds."""

    transport: str
    ramdisk_bytes: int
    data_bytes: int
    random_seconds: float
    queues: int
    console: Console

    def say(self, label: str, text: str) -> None:
        """Print one line, its label in front."""
        self.console.print(f"[bold]{label:<{LABEL_COLUMNS}}[/bold]{text}", highlight=False)

    def more(self, lines: Iterable[str]) -> None:
        """Print lines that belong to the last one."""
        for line in lines:
            self.console.print(" " * LABEL_COLUMNS + line, highlight=False)


class TargetProcess:
    """``python -m nvmeof.target`` on a free port of the loopback address."""

    def __init__(self, transport: str, ramdisk_bytes: int) -> None:
        self.arguments = [
            "-m", "nvmeof.target", "--trtype", transport, "--listen", "127.0.0.1:0",
            "--ramdisk", format_size(ramdisk_bytes),
        ]  # fmt: skip
        self.process: asyncio.subprocess.Process
        self.told: dict[str, Any] = {}

    @property
    def command(self) -> str:
        """The command line as a person would type it."""
        return " ".join([command_line("target"), *self.arguments[2:]])

    async def __aenter__(self) -> TargetProcess:
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, *self.arguments, "--output-format", "json", "--quiet", stdout=asyncio.subprocess.PIPE
        )
        assert self.process.stdout is not None
        line = await asyncio.wait_for(self.process.stdout.readline(), START_SECONDS)
        if not line:
            raise NvmeofError(f"the target did not start (exit code {await self.process.wait()})")
        self.told = json.loads(line)
        return self

    async def stop(self) -> int:
        """Stop the target as a user would; return its exit code."""
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGINT)
        return await asyncio.wait_for(self.process.wait(), START_SECONDS)

    async def __aexit__(self, *_: object) -> None:
        if self.process.returncode is None:
            self.process.kill()
            await self.process.wait()


def _rate(size_bytes: int, seconds: float) -> str:
    return f"{format_size(size_bytes)} in {seconds:.2f} s, {size_bytes / seconds / 1e6:,.0f} MB/s"


async def _in_chunks(total_bytes: int, operation: Any) -> float:
    """Run ``operation(offset, length)`` over the whole length, several at a time; the seconds that it took."""
    offsets = iter(range(0, total_bytes, CHUNK_BYTES))

    async def worker() -> None:
        for offset in offsets:
            await operation(offset, min(CHUNK_BYTES, total_bytes - offset))

    start = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(CHUNKS_IN_FLIGHT):
            group.create_task(worker())
    return time.perf_counter() - start


async def _copy_and_compare(demo: Demo, namespace: Namespace) -> None:
    data = memoryview(random.Random(4420).randbytes(demo.data_bytes))
    back = memoryview(bytearray(demo.data_bytes))
    block = namespace.block_bytes
    seconds = await _in_chunks(
        demo.data_bytes, lambda offset, length: namespace.write(offset // block, data[offset : offset + length])
    )
    await namespace.flush()
    demo.say("write", f"{_rate(demo.data_bytes, seconds)}, {format_size(CHUNK_BYTES)} at a time, then flush")
    seconds = await _in_chunks(
        demo.data_bytes, lambda offset, length: namespace.read_into(offset // block, back[offset : offset + length])
    )
    demo.say("read back", _rate(demo.data_bytes, seconds))
    written, read = hashlib.sha256(data).hexdigest(), hashlib.sha256(back).hexdigest()
    if written != read:
        raise NvmeofError(f"what was read back differs from what was written: {read} instead of {written}")
    demo.say("verify", f"identical, SHA-256 {read[:32]}…")


async def _random_reads(demo: Demo, namespace: Namespace) -> None:
    blocks = 4096 // namespace.block_bytes or 1
    most = demo.data_bytes // namespace.block_bytes - blocks
    latencies: list[float] = []
    end = time.perf_counter() + demo.random_seconds

    async def worker(seed: int) -> None:
        chooser = random.Random(seed)
        buffer = memoryview(bytearray(blocks * namespace.block_bytes))
        while (start := time.perf_counter()) < end:
            await namespace.read_into(chooser.randrange(most), buffer)
            latencies.append(time.perf_counter() - start)

    async with asyncio.TaskGroup() as group:
        for seed in range(32):
            group.create_task(worker(seed))
    cuts = statistics.quantiles(latencies, n=100)
    demo.say(
        "random",
        f"4 KiB reads, depth 32: {len(latencies) / demo.random_seconds:,.0f} IOPS, "
        f"latency p50 {cuts[49] * 1e6:.0f} µs, p99 {cuts[98] * 1e6:.0f} µs",
    )


def _paths(controller: HostController) -> Iterable[str]:
    for queue in controller.describe():
        info = queue
        name = "admin queue" if info["qid"] == 0 else f"queue {info['qid']}"
        token = f", token {info['token']:#010x}" if info.get("token") is not None else ""
        subflows = info.get("subflows") or []
        yield f"{name}: {info['protocol']}{token}, {len(subflows)} subflow{'' if len(subflows) == 1 else 's'}"
        for subflow in subflows:
            rtt = f", rtt {subflow['rtt_us']} µs" if subflow.get("rtt_us") is not None else ""
            yield (
                f"  {subflow['local']} > {subflow['peer']}: {(subflow['bytes_sent'] or 0) / 1e6:,.1f} MB out, "
                f"{(subflow['bytes_received'] or 0) / 1e6:,.1f} MB in, "
                f"{subflow['retransmits'] or 0} retransmitted{rtt}"
            )


async def demonstrate(demo: Demo) -> int:
    """Run the demonstration; return the target's exit code."""
    async with TargetProcess(demo.transport, demo.ramdisk_bytes) as target:
        listener = target.told["listeners"][0]
        host, port = listener["address"], listener["port"]
        demo.say("target", target.command)
        demo.more(
            [f"process {target.process.pid} on {host}:{port}, {listener['protocol']}, loop {target.told['loop']}"]
        )
        entries = await discover(host, port, transport=demo.transport)
        demo.say("discover", f"{len(entries)} entries")
        demo.more(f"trtype {e.trtype}, {e.traddr}:{e.trsvcid}, {e.subnqn}" for e in entries)
        controller = await connect(
            host, port, subnqn=target.told["subnqn"], transport=demo.transport, nr_io_queues=demo.queues
        )
        async with controller:
            in_use = sorted({str(queue["protocol"]) for queue in controller.describe()})
            asked = "" if in_use == [demo.transport] else f" (asked for {demo.transport})"
            demo.say(
                "connect",
                f"controller {controller.cntlid}, {demo.queues} I/O queues over {' and '.join(in_use)}{asked}",
            )
            identity = await controller.identify()
            demo.say("identify", f"model {identity.mn}, serial {identity.sn}, firmware {identity.fr}")
            namespace = (await controller.namespaces())[0]
            demo.say(
                "namespace",
                f"{namespace.nsid}: {format_size(namespace.size_bytes)} in blocks of {namespace.block_bytes} bytes, "
                f"uuid {target.told['namespaces'][0]['uuid']}",
            )
            await _copy_and_compare(demo, namespace)
            await _random_reads(demo, namespace)
            demo.say("paths", "what went over the wire, from the kernel's own figures")
            demo.more(_paths(controller))
        code = await target.stop()
        demo.say("stopped", f"disconnected, target ended with exit code {code}")
        return code


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-t", "--transport", default="mptcp", show_default=True, help="mptcp (falls back to tcp) or tcp.")
@click.option("--ramdisk", default="256M", show_default=True, metavar="SIZE", help="Size of the target's ramdisk.")
@click.option("--data", default="128M", show_default=True, metavar="SIZE", help="How much is written and read back.")
@click.option("--seconds", type=Seconds(0.01), default=1.0, show_default=True, help="Length of the random reads.")
@click.option("--queues", type=Number(1, 65535), default=2, show_default=True, help="I/O queues.")
@click.version_option(nvmeof.__version__, prog_name="nvmeof")
def cli(transport: str, ramdisk: str, data: str, seconds: float, queues: int) -> None:
    """Show a target and a host at work: discover, connect, identify, write, read back, verify."""
    ramdisk_bytes, data_bytes = parse_size(ramdisk), parse_size(data)
    if data_bytes > ramdisk_bytes:
        raise click.UsageError("--data is more than the --ramdisk holds")
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(f"nvmeof {nvmeof.__version__}: NVMe over {transport.upper()}, no root, no kernel module\n")
    demo = Demo(transport, ramdisk_bytes, data_bytes, seconds, queues, console)
    code = interrupts.run("nvmeof", demonstrate(demo), run)
    if code:
        sys.exit(1)
    host = command_line("host")
    console.print(f"\nnext       {command_line('target')} --ramdisk 1G -l 127.0.0.1   and, beside it,", highlight=False)
    console.print(f"           {host} list -a 127.0.0.1   ({host} --help names all commands)", highlight=False)


def main() -> int:
    """Run the demonstration; the exit code. One sentence on stderr for whatever goes wrong."""
    return run_program("nvmeof", cli)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(main())
