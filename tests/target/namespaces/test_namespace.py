"""A namespace against a bytearray: random commands, on memory and on a file."""

import asyncio
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from nvmeof.errors import CommandError, ConfigurationError
from nvmeof.spec.status import Status
from nvmeof.target.namespaces.namespace import Namespace, NamespaceIdentifiers
from nvmeof.target.storage.base import Backend
from nvmeof.target.storage.file import FileBackend
from nvmeof.target.storage.ramdisk import Ramdisk
from tests.target.backend_tools import settled

NQN = "nqn.2026-01.org.example:disk"
BLOCK = 512
BLOCKS = 64
ranges = st.tuples(st.integers(0, BLOCKS + 2), st.integers(1, BLOCKS))


class NamespaceModel(RuleBasedStateMachine):
    def make(self) -> Backend:
        raise NotImplementedError

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.backend = self.make()
        self.wait(self.backend.open())
        self.namespace = Namespace(1, self.backend, NamespaceIdentifiers.derive(NQN, 1))
        self.model = bytearray(BLOCKS * BLOCK)
        self.marked: set[int] = set()

    def wait(self, result):
        async def run():
            return await settled(result)

        return self.loop.run_until_complete(run())

    def call(self, operation, slba: int, nlb: int, *, reading: bool = False):
        """Return the operation's result, or None after the right refusal of a range beyond the end."""

        async def run():
            return await settled(operation())

        unreadable = reading and not self.marked.isdisjoint(range(slba, slba + nlb))
        try:
            result = self.loop.run_until_complete(run())
        except CommandError as error:
            if slba + nlb > BLOCKS:
                assert error.status == Status.LBA_OUT_OF_RANGE
            else:
                assert unreadable and error.status == Status.UNRECOVERED_READ_ERROR
            return False, None
        assert slba + nlb <= BLOCKS and not unreadable
        return True, result

    def replaced(self, slba: int, nlb: int, data: bytes) -> None:
        self.model[slba * BLOCK : (slba + nlb) * BLOCK] = data
        self.marked -= set(range(slba, slba + nlb))

    @rule(at=ranges, seed=st.binary(min_size=1, max_size=7), fua=st.booleans())
    def write(self, at, seed, fua):
        slba, nlb = at
        data = (seed * (nlb * BLOCK))[: nlb * BLOCK]
        done, _ = self.call(lambda: self.namespace.write(slba, memoryview(data), fua=fua), slba, nlb)
        if done:
            self.replaced(slba, nlb, data)

    @rule(at=ranges)
    def read(self, at):
        slba, nlb = at
        done, lease = self.call(lambda: self.namespace.read(slba, nlb), slba, nlb, reading=True)
        if done:
            assert bytes(lease.view) == self.model[slba * BLOCK : (slba + nlb) * BLOCK]
            lease.release()

    @rule(at=ranges, other=st.none() | st.integers(0, BLOCKS * BLOCK - 1))
    def compare(self, at, other):
        slba, nlb = at
        data = bytearray(self.model[slba * BLOCK : (slba + nlb) * BLOCK].ljust(nlb * BLOCK))
        if other is not None:
            data[other % len(data)] ^= 0x80
        done, same = self.call(lambda: self.namespace.compare(slba, memoryview(data)), slba, nlb, reading=True)
        if done:
            assert same is (other is None)

    @rule(at=ranges)
    def verify(self, at):
        self.call(lambda: self.namespace.verify(*at), *at, reading=True)

    @rule(at=ranges, source=st.integers(0, BLOCKS), fua=st.booleans())
    def copy(self, at, source, fua):
        slba, nlb = at[0], min(at[1], abs(at[0] - source))
        if nlb == 0:
            return
        operation = lambda: self.namespace.copy(source, slba, nlb, fua=fua)  # noqa: E731
        beyond = max(source, slba)
        unreadable = not self.marked.isdisjoint(range(source, source + nlb))
        data = bytes(self.model[source * BLOCK : (source + nlb) * BLOCK])
        if unreadable and beyond + nlb <= BLOCKS:
            self.call(operation, source, nlb, reading=True)
        else:
            done, _ = self.call(operation, beyond, nlb)
            if done:
                self.replaced(slba, nlb, data)

    @rule(at=ranges, deallocate=st.booleans(), fua=st.booleans())
    def write_zeroes(self, at, deallocate, fua):
        slba, nlb = at
        operation = lambda: self.namespace.write_zeroes(slba, nlb, deallocate=deallocate, fua=fua)  # noqa: E731
        done, _ = self.call(operation, slba, nlb)
        if done:
            self.replaced(slba, nlb, bytes(nlb * BLOCK))

    @rule(at=ranges)
    def deallocate(self, at):
        slba, nlb = at
        done, _ = self.call(lambda: self.namespace.deallocate(slba, nlb), slba, nlb)
        if done:
            self.replaced(slba, nlb, bytes(nlb * BLOCK))

    @rule()
    def flush(self):
        self.call(self.namespace.flush, 0, 0)

    @rule(at=ranges)
    def mark(self, at):
        done, _ = self.call(lambda: self.namespace.mark_uncorrectable(*at), *at)
        if done:
            self.marked |= set(range(at[0], at[0] + at[1]))

    @rule(blocks=st.sampled_from([BLOCKS // 2, BLOCKS]))
    def resize(self, blocks):
        """Resize to fewer blocks, and back: the new blocks can be read, and hold zeroes."""
        self.backend.resize(blocks * BLOCK)
        self.namespace.refresh()
        self.backend.resize(BLOCKS * BLOCK)
        self.namespace.refresh()
        self.replaced(blocks, BLOCKS - blocks, bytes((BLOCKS - blocks) * BLOCK))

    @invariant()
    def whole_content(self):
        if not hasattr(self, "model"):
            return
        if self.marked:
            self.call(lambda: self.namespace.read(0, BLOCKS), 0, BLOCKS, reading=True)
            assert self.namespace.memory is None
            return
        done, lease = self.call(lambda: self.namespace.read(0, BLOCKS), 0, BLOCKS)
        assert done and bytes(lease.view) == self.model
        lease.release()
        assert self.namespace.memory is self.backend.memory

    def teardown(self):
        self.wait(self.backend.close())
        self.loop.close()


class RamdiskModel(NamespaceModel):
    def make(self) -> Backend:
        return Ramdisk(BLOCKS * BLOCK)


class FileModel(NamespaceModel):
    def make(self) -> Backend:
        self.directory = tempfile.TemporaryDirectory()
        return FileBackend(Path(self.directory.name) / "disk", size=BLOCKS * BLOCK, workers=2)

    def teardown(self):
        super().teardown()
        assert self.backend._pool.used_bytes == 0 and len(self.backend._ranges) == 0
        self.directory.cleanup()


RamdiskModel.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
FileModel.TestCase.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
TestRamdisk = RamdiskModel.TestCase
TestFile = FileModel.TestCase


def test_identifiers_are_stable_and_distinct():
    first = NamespaceIdentifiers.derive(NQN, 1)
    assert first == NamespaceIdentifiers.derive(NQN, 1)
    assert str(first.uuid) == "0adbafd8-f289-5017-9fdf-913f20a830eb", "must not change between releases"
    others = [NamespaceIdentifiers.derive(NQN, 2), NamespaceIdentifiers.derive(NQN + "x", 1)]
    assert len({item.uuid for item in (first, *others)}) == len({item.nguid for item in (first, *others)}) == 3
    assert len(first.nguid) == 16 and first.nguid != first.uuid.bytes


@pytest.mark.parametrize("nsid", [0, 0xFFFFFFFF, -1])
def test_namespace_ids(nsid):
    with pytest.raises(ConfigurationError):
        Namespace(nsid, Ramdisk("1M"), NamespaceIdentifiers.derive(NQN, 1))
