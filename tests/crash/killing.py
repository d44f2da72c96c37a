"""`python -m tests.crash.killing`: kill a target again and again (SIGKILL) under a host that knows what it was told.

The target serves a file and a zoned file. After each kill the next one serves the same files, and the host reads all:
each block holds what was acknowledged last, or what was under way when the target was killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import click

import nvmeof
from nvmeof.errors import NvmeofError, NvmeStatusError

BLOCK: Final = 512
BLOCKS: Final = 768
LANES: Final = 12
ZONES: Final = 4
ZONE: Final = 64  # blocks
SECONDS: Final = 60.0
UNREADABLE: Final = b"unreadable"
MEDIA_ERROR: Final = 0x281  # Unrecovered Read Error
NQN: Final = "nqn.2026-01.org.example:killed"


@dataclass
class Ledger:
    """What each block may hold: one content when the last command there was acknowledged, else several."""

    blocks: dict[int, set[bytes]] = field(default_factory=dict)
    acknowledged: int = 0
    under_way: int = 0

    def possible(self, block: int) -> set[bytes]:
        return self.blocks.get(block, {bytes(BLOCK)})

    async def write(self, command: Awaitable[object], lba: int, contents: list[bytes]) -> None:
        """Send a command that gives blocks these contents; an exception means that it may have done so."""
        for number, content in enumerate(contents):
            self.blocks[lba + number] = self.possible(lba + number) | {content}
        self.under_way += 1
        await command
        self.under_way -= 1
        self.acknowledged += 1
        for number, content in enumerate(contents):
            self.blocks[lba + number] = {content}


@dataclass
class Life:
    """A target's process, from its start to its death."""

    process: asyncio.subprocess.Process
    port: int

    async def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        await self.process.wait()


@contextlib.asynccontextmanager
async def life(directory: Path) -> AsyncIterator[Life]:
    zoned = f"zoned,zone-size={ZONE * BLOCK}"
    made = {name: (directory / name).exists() for name in ("plain", "zoned")}
    sizes = {"plain": BLOCKS * BLOCK, "zoned": ZONES * ZONE * BLOCK}
    for name, there in made.items():
        if not there:
            (directory / name).write_bytes(bytes(sizes[name]))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "nvmeof.target", "-t", "tcp", "-l", "127.0.0.1:0", "-o", "json", "-n", NQN,
        "--file", str(directory / "plain"), "--file", f"{directory / 'zoned'},{zoned}",
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None and process.stderr is not None
        line = await asyncio.wait_for(process.stdout.readline(), SECONDS)
        assert line, (await process.stderr.read()).decode()
        yield Life(process, json.loads(line)["listeners"][0]["port"])
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        process._transport.close()  # type: ignore[attr-defined]


class Killer:
    """Serves, loads, kills and compares."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.directory = directory
        self.random = random.Random(seed)
        self.plain, self.zoned = Ledger(), Ledger()
        self.pointers = [0] * ZONES
        self.marks = 0
        self.kills = self.compared = 0

    def content(self, blocks: int) -> list[bytes]:
        """Return blocks unlike any other."""
        first, self.marks = self.marks + 1, self.marks + blocks
        return [number.to_bytes(8, "big") * (BLOCK // 8) for number in range(first, first + blocks)]

    async def run(self, kills: int) -> None:
        """Kill that many times; an AssertionError says which block is wrong, and after which kill."""
        for number in range(kills + 1):
            async with (
                life(self.directory) as target,
                await nvmeof.connect("127.0.0.1", target.port, subnqn=NQN, nr_io_queues=2, queue_size=64) as controller,
            ):
                await self.compare(controller)
                if number == kills:
                    return
                await self.load(controller, target)

    async def load(self, controller: Any, target: Life) -> None:
        lanes = [asyncio.create_task(self.lane(controller.namespace(1), lane)) for lane in range(LANES)]
        lanes += [asyncio.create_task(self.zone_lane(controller.namespace(2), zone)) for zone in range(ZONES)]
        await asyncio.sleep(self.random.uniform(0.02, 0.4))
        await target.kill()
        self.kills += 1
        async with asyncio.timeout(SECONDS):
            for result in await asyncio.gather(*lanes, return_exceptions=True):
                assert isinstance(result, NvmeofError), result

    async def lane(self, namespace: Any, lane: int) -> None:
        """Write in a part of the namespace, until the connection is lost."""
        size = BLOCKS // LANES
        while True:
            blocks = self.random.choice((1, 1, 2, 8, 16))
            lba = lane * size + self.random.randrange(size - blocks)
            what = self.random.choice(("write", "write", "write", "fua", "zeroes", "mark", "flush"))
            if what == "flush":
                await namespace.flush()
            elif what == "zeroes":
                await self.plain.write(namespace.write_zeroes(lba, blocks), lba, [bytes(BLOCK)] * blocks)
            elif what == "mark":
                await self.plain.write(namespace.write_uncorrectable(lba, 1), lba, [UNREADABLE])
            else:
                data = self.content(blocks)
                await self.plain.write(namespace.write(lba, b"".join(data), fua=what == "fua"), lba, data)

    async def zone_lane(self, namespace: Any, zone: int) -> None:
        """Append to a zone, and reset it when it is full."""
        while True:
            at, blocks = self.pointers[zone], self.random.choice((1, 2, 8))
            if at + blocks > ZONE:
                first = zone * ZONE
                self.pointers[zone] = -1  # not known until it is acknowledged
                await self.zoned.write(namespace.zones.reset(first), first, [bytes(BLOCK)] * ZONE)
                self.pointers[zone] = 0
                continue
            data, fua = self.content(blocks), self.random.random() < 0.2
            self.pointers[zone] = at + blocks
            where = zone * ZONE + at
            await self.zoned.write(namespace.zones.append(zone * ZONE, b"".join(data), fua=fua), where, data)

    async def compare(self, controller: Any) -> None:
        """Read all blocks, and take what is there for the truth from now on."""
        for number, ledger, blocks in ((1, self.plain, BLOCKS), (2, self.zoned, ZONES * ZONE)):
            namespace = controller.namespace(number)
            for block, held in enumerate(await asyncio.gather(*(self.read(namespace, at) for at in range(blocks)))):
                possible = ledger.possible(block)
                assert held in possible, (
                    f"after {self.kills} kills block {block} of namespace {number} holds {held[:8]!r}, and not one of "
                    f"{[each[:8] for each in possible]}"
                )
                ledger.blocks[block] = {held}
                self.compared += 1
            ledger.under_way = 0
        for zone in range(ZONES):
            written = [any(*self.zoned.possible(zone * ZONE + at)) for at in range(ZONE)]
            self.pointers[zone] = sum(written)
            assert all(written[: sum(written)]), f"zone {zone} has a hole"

    async def read(self, namespace: Any, lba: int) -> bytes:
        try:
            return bytes(await namespace.read(lba, 1))
        except NvmeStatusError as error:
            if error.status != MEDIA_ERROR:
                raise
            return UNREADABLE


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--kills", default=100, show_default=True, help="How many times.")
@click.option("--seed", default=1, show_default=True, help="Of what is done and when it is killed.")
def main(kills: int, seed: int) -> None:
    """Kill a target under load, and look whether anything that was acknowledged is lost."""
    with tempfile.TemporaryDirectory() as name:
        killer = Killer(Path(name), seed)
        asyncio.run(killer.run(kills))
    click.echo(
        f"killed {killer.kills} times: {killer.plain.acknowledged + killer.zoned.acknowledged} acknowledged commands, "
        f"{killer.compared} blocks compared, nothing lost"
    )


if __name__ == "__main__":
    main()
