"""Record exchanges: ``python -m tests.target.exchanges.record``. Do so only before a change that must change no byte.

A generator with a fixed seed makes the commands from the layouts of `benchmarks.wireformat` (none of the package's own
codecs); the answers of the target are recorded unchecked.
"""

from __future__ import annotations

import random
import sys
import uuid
from collections.abc import Callable, Iterator
from unittest import mock

from benchmarks import wireformat as w
from tests.target.exchanges.player import NQN, RECORDED, PlayedTarget, fixed_uuids, store

HOSTS = [f"nqn.2014-08.org.nvmexpress:uuid:{n:08x}-0000-4000-8000-000000000000" for n in (1, 2)]
_LBAS = (0, 1, 7, 8, 100, 255, 256, 2047, 2048, 8191, 8192, 1 << 31, (1 << 64) - 1)
_NSIDS = (0, 1, 2, 3, 4, 5, 0xFFFFFFFE, 0xFFFFFFFF)
_WORDS = (0, 1, 2, 3, 4, 7, 8, 0x10, 0xFF, 0x100, 0xFFFF, 0x10000, 0x80000000, 0xFFFFFFFF)


def icreq(digests: bool) -> bytes:
    return w.COMMON_HEADER.pack(w.ICREQ, 0, 128, 0, 128) + w.INITIALIZE.pack(0, 0, 3 if digests else 0, 0)


class Commands:
    """The capsules of one connection; CIDs count up."""

    def __init__(self, digests: bool) -> None:
        self.framing = w.Framing(digests, digests)
        self.cid = 0

    def __call__(self, opcode: int, nsid: int = 0, *, data: bytes = b"", length: int = 0, words: tuple[int, ...] = (),
                 flags: int = w.PSDT_SGL, cdw2: int = 0, cdw3: int = 0, sgl: int | None = None) -> bytes:  # fmt: skip
        self.cid = (self.cid + 1) & 0x7FFF
        kind = (w.IN_CAPSULE if data else w.TRANSPORT_SGL) if sgl is None else sgl
        sqe = w.SQE.pack(opcode, flags, self.cid, nsid, cdw2, cdw3, 0, 0, len(data) or length, kind,
                         *(words + (0,) * 6)[:6])  # fmt: skip
        return self.framing.head(w.CAPSULE_CMD, sqe, len(data)) + data + (self.framing.tail(data) if data else b"")

    def fabrics(
        self, fctype: int, *, data: bytes = b"", words: tuple[int, ...] = (), cdw2: int = 0, cdw3: int = 0
    ) -> bytes:
        return self(w.FABRICS, fctype, data=data, words=words, cdw2=cdw2, cdw3=cdw3)

    def connect(self, qid: int, cntlid: int, host: int, subnqn: str = NQN, *, flow_control: bool = True) -> bytes:
        hostid = uuid.UUID(int=host + 1).bytes
        body = hostid + cntlid.to_bytes(2, "little") + bytes(238)
        body += subnqn.encode().ljust(256, b"\0") + HOSTS[host].encode().ljust(256, b"\0") + bytes(256)
        return self.fabrics(w.CONNECT, data=body, words=(qid << 16, 127 | (0 if flow_control else 4) << 16, 0))

    def property_set(self, offset: int, value: int) -> bytes:
        return self.fabrics(w.PROPERTY_SET, words=(0, offset, value, 0))

    def property_get(self, offset: int, eight: bool = False) -> bytes:
        return self.fabrics(w.PROPERTY_GET, words=(int(eight), offset))


def admin_questions(c: Commands) -> Iterator[bytes]:
    """Return the commands that read through an admin queue without changing much."""
    for offset in (0, 8, 0x14, 0x1C, 0x20, 0x68, 0x100):
        for eight in (False, True):
            yield c.property_get(offset, eight)
    for cns in range(0x20):
        for nsid in _NSIDS:
            for csi in (0, 2):
                yield c(0x06, nsid, length=4096, words=(cns, csi << 24))
    for lid in range(0x100):
        for nsid, length in ((0, 512), (0xFFFFFFFF, 4096), (1, 512)):
            yield c(0x02, nsid, length=length, words=(lid | (length // 4 - 1) << 16, 0, 0, 0))
    for fid in range(0x100):
        known = fid < 0x20 or 0x78 <= fid < 0x90
        for select in range(4 if known else 1):
            yield c(0x0A, 1 if fid in (0x05, 0x10, 0x84) else 0, words=(fid | select << 8,))
            if known:
                yield c(0x0A, 0xFFFFFFFF, length=4096, words=(fid | select << 8,))


def admin_changes(c: Commands, rng: random.Random) -> Iterator[bytes]:
    """Return commands that change something, valid and invalid ones."""
    for fid in range(0x100):
        for value in (0, 1, rng.choice(_WORDS)):
            yield c(0x09, rng.choice(_NSIDS), words=(fid | rng.choice((0, 1 << 31)), value))
    for opcode in range(0x100):
        if opcode in (0x0C, 0x7F):
            continue
        for _ in range(6):
            words = tuple(rng.choice(_WORDS) for _ in range(6))
            yield c(opcode, rng.choice(_NSIDS), words=words, length=rng.choice((0, 512, 4096)) if opcode & 3 else 0)


def io_commands(c: Commands, rng: random.Random, count: int) -> Iterator[bytes]:
    """Return Reads, Writes and all other I/O commands, at the edges and inside; data is in the capsule."""
    opcodes = (0x00, 0x01, 0x02, 0x04, 0x05, 0x08, 0x09, 0x0C, 0x0D, 0x0E, 0x11, 0x15, 0x18, 0x19, 0x79, 0x7A, 0x7D)
    for _ in range(count):
        opcode = rng.choice(opcodes) if rng.random() < 0.9 else rng.randrange(0x80)
        if opcode == 0x7F:
            continue
        nsid = rng.choice((1, 1, 1, 2, 3, rng.choice(_NSIDS)))
        block = 4096 if nsid == 2 else 512
        blocks = rng.choice((1, 1, 2, 8)) if block == 512 else 1
        slba = rng.choice(_LBAS) if rng.random() < 0.3 else rng.randrange(256)
        words = [slba & 0xFFFFFFFF, slba >> 32, blocks - 1, 0, 0, 0]
        if rng.random() < 0.15:
            words[rng.randrange(6)] |= rng.choice(_WORDS)
        data, length = b"", 0
        if opcode in (0x01, 0x05, 0x7D):
            data = rng.randbytes(8) * (blocks * block // 8)
        elif opcode in (0x02, 0x0C):
            length = blocks * block if opcode == 0x02 else 0
        elif opcode in (0x09, 0x19):
            data = rng.randbytes(4) + (8).to_bytes(4, "little") + rng.randrange(64).to_bytes(8, "little") + bytes(16)
            words[0] = 0
        elif opcode in (0x0D, 0x11, 0x15):
            data = (5).to_bytes(8, "little") + rng.choice((5, 6)).to_bytes(8, "little")
            data = data[: 8 if opcode == 0x15 else 16]
            words = [rng.choice((0, 1, 2, 8, 0x100, 0x300, 0x600)), 0, 0, 0, 0, 0]
        elif opcode == 0x0E:
            length, words[0], words[1] = 4096, 1023, rng.choice((0, 1))
        elif opcode == 0x7A:
            length, words[2], words[3] = 4096, 1023, rng.choice((0, 1, 0x10000))
        elif opcode == 0x79:
            words[3] = rng.choice((1, 2, 3, 4, 5, 0x10, 0x101, 0x104))
        yield c(opcode, nsid, data=data, length=length, words=tuple(words))


def script(play: Callable[[str, bytes], bytes]) -> None:
    """Play two hosts of the subsystem (the second with digests) and one of Discovery."""
    rng = random.Random(1)
    made = {}
    for host, kind in enumerate(("plain", "digests")):
        c = Commands(kind == "digests")
        name = f"{kind}-admin"
        play(name, icreq(kind == "digests"))
        answer = play(name, c.connect(0, 0xFFFF, host))
        cntlid = int.from_bytes(answer[8 : 8 + 2], "little")
        for data in (c.property_get(0, True), c.property_set(0x14, 0x460061), c.property_get(0x1C), c.property_get(8)):
            play(name, data)
        for qid in (1, 2):
            io = Commands(kind == "digests")
            play(f"{kind}-io{qid}", icreq(kind == "digests"))
            play(f"{kind}-io{qid}", io.connect(qid, cntlid, host, flow_control=qid == 1))
            made[kind, qid] = io
        made[kind, 0] = c
    for data in admin_questions(made["plain", 0]):
        play("plain-admin", data)
    for _ in range(40):
        for kind in ("plain", "digests"):
            for qid in (1, 2):
                for data in io_commands(made[kind, qid], rng, 20):
                    play(f"{kind}-io{qid}", data)
    c = Commands(False)
    play("discovery", icreq(False))
    play("discovery", c.connect(0, 0xFFFF, 0, "nqn.2014-08.org.nvmexpress.discovery"))
    play("discovery", c.property_set(0x14, 0x460061))
    for length in (1024, 2048, 4096, 20):
        for low in (0, 1024, 4):
            play("discovery", c(0x02, 0, length=length, words=(0x70 | (length // 4 - 1) << 16, 0, low, 0)))
    for data in admin_questions(c):
        play("discovery", data)
    for data in admin_changes(made["digests", 0], rng):
        play("digests-admin", data)
    for data in io_commands(made["plain", 1], rng, 200):
        play("plain-io1", data)
    play("plain-admin", made["plain", 0].property_set(0x14, 0x464061))


def record() -> list[tuple[str, bytes, bytes]]:
    """Play the script to a new target and return the exchanges."""
    exchanges: list[tuple[str, bytes, bytes]] = []
    with mock.patch("uuid.uuid4", fixed_uuids()):
        target = PlayedTarget()

        def play(name: str, data: bytes) -> bytes:
            answer = target.play(name, data)
            exchanges.append((name, data, answer))
            return answer

        script(play)
        target.close()
    return exchanges


def main() -> int:
    first, second = record(), record()
    if first != second:
        differs = next(i for i, (a, b) in enumerate(zip(first, second, strict=True)) if a != b)
        print(f"exchange {differs} differs from run to run: {first[differs]} {second[differs]}", file=sys.stderr)
        return 1
    store(first)
    print(f"{len(first)} exchanges, {sum(len(e[2]) for e in first):,} bytes answered, {RECORDED.stat().st_size:,} kept")
    return 0


if __name__ == "__main__":
    sys.exit(main())
