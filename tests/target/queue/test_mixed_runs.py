"""Commands of many kinds by turns, sizes, namespaces and flags mixed, all in one send: each gets what is its own."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nvmeof.pdu.header import Flags, PduType
from nvmeof.target.queue.fast_path import TEMPLATES_MOST, FastPath
from nvmeof.target.storage.file import FileBackend
from nvmeof.target.storage.ramdisk import Ramdisk
from tests.conformance.rawhost import RawHost, association, io_sqe, running

READ, WRITE = 2, 1
BLOCK = 512
SLOT_BLOCKS = 16
SLOTS = 24
FUA = 1 << 30

commands = st.lists(
    st.tuples(
        st.integers(0, SLOTS - 1),
        st.sampled_from([1, 2, 3]),
        st.sampled_from(["read", "write", "fua", "asked", "asked fua"]),
        st.sampled_from([1, 2, 8, 16]),
    ),
    min_size=1,
    max_size=SLOTS,
    unique_by=lambda each: each[:2],
)


class Model:
    """What the namespaces should hold, and a host that sends many commands at once."""

    def __init__(self, io: RawHost) -> None:
        self.io = io
        self.content = {nsid: bytearray(SLOTS * SLOT_BLOCKS * BLOCK) for nsid in (1, 2, 3)}
        self.stamp = 0

    def data(self, size: int) -> bytes:
        self.stamp += 1
        return self.stamp.to_bytes(4, "little") * (size // 4)

    async def round(self, chosen: list[tuple[int, int, str, int]]) -> None:
        """Send all commands at once, and compare what comes back."""
        out, writes, wanted = [], dict[int, bytes](), dict[int, bytes]()
        for cid, (slot, nsid, kind, blocks) in enumerate(chosen):
            at, size = slot * SLOT_BLOCKS * BLOCK, blocks * BLOCK
            fields: dict[str, Any] = {"nsid": nsid, "cdw12": (blocks - 1) | (FUA if "fua" in kind else 0)}
            if kind == "read":
                wanted[cid] = bytes(self.content[nsid][at : at + size])
                out.append(self.io.capsule(io_sqe(cid, READ, slot * SLOT_BLOCKS, blocks, **fields)))
                continue
            data = writes[cid] = self.data(size)
            self.content[nsid][at : at + size] = data
            if "asked" in kind:
                out.append(self.io.capsule(io_sqe(cid, WRITE, slot * SLOT_BLOCKS, blocks, **fields)))
            else:
                out.append(self.io.capsule(io_sqe(cid, WRITE, slot * SLOT_BLOCKS, blocks, sgl=1, **fields), data))
        await self.io.send(b"".join(out))
        assert await self.answers(len(chosen), writes) == wanted

    async def answers(self, count: int, writes: dict[int, bytes]) -> dict[int, bytes]:
        """Return what was read, by CID, when all commands have ended well."""
        ended, read = set[int](), dict[int, bytes]()
        while len(ended) < count:
            pdu = await self.io.pdu()
            if pdu.kind == PduType.R2T:
                cid, ttag, offset, length = pdu.fields("HHII")
                await self.io.send(self.io.h2c(cid, ttag, offset, writes[cid][offset : offset + length]))
                continue
            if pdu.kind == PduType.C2H_DATA:
                cid = pdu.fields("H")[0]
                assert cid not in read
                read[cid] = pdu.data
                if not pdu.flags & Flags.SUCCESS:
                    continue
            else:
                assert pdu.kind == PduType.CAPSULE_RESP
                cid, status = pdu.fields("12xHH")
                assert status >> 1 == 0
            assert cid not in ended
            ended.add(cid)
        return read


@pytest.mark.parametrize("fast", [True, False])
def test_each_command_of_a_mixture_gets_its_own(fast: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not fast:
        monkeypatch.setattr(FastPath, "learn", lambda self, *arguments, **options: None)

    @settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.lists(commands, min_size=1, max_size=6))
    def check(rounds: list[list[tuple[int, int, str, int]]]) -> None:
        asyncio.run(run(rounds))

    async def run(rounds: list[list[tuple[int, int, str, int]]]) -> None:
        size = SLOTS * SLOT_BLOCKS * BLOCK
        (tmp_path / "disk").unlink(missing_ok=True)
        backends = [Ramdisk(size), FileBackend(tmp_path / "disk", size=size), Ramdisk(size)]
        async with running(check=False, namespaces=backends) as target:
            _, io = await association(target, sqsize=127)
            model = Model(io)
            for chosen in rounds:
                await model.round(chosen)
            everything = [(slot, nsid, "read", 16) for slot in range(SLOTS) for nsid in (1, 2, 3)]
            await model.round(everything)
            await model.round(everything[::-1])
            RawHost.close_all()

    check()


async def test_a_queue_has_a_bounded_number_of_templates() -> None:
    async with running(namespaces=[Ramdisk("1M")]) as target:
        _, io = await association(target)
        for blocks in range(1, 2 * TEMPLATES_MOST):
            assert (await io.read(0, blocks)).status == 0
            [driver] = [each for each in target.drivers if each.queue.ctx.qid]
            assert 0 < len(driver.queue.fast_path._reads) <= TEMPLATES_MOST
        for blocks in (1, 5, 9, 5, 1):
            assert len((await io.read(0, blocks)).data) == blocks * BLOCK
