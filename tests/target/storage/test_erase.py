"""Erasing memory yields to the event loop: no piece occupies it for long."""

from __future__ import annotations

import pytest

from nvmeof.target.storage import erase
from nvmeof.target.storage.ramdisk import Ramdisk
from tests.fake_runtime import FakeRuntime

MIB = 1 << 20


class Counting(Ramdisk):
    """Records how many bytes change in each turn."""

    overwrite_to_erase = True

    def __init__(self) -> None:
        super().__init__(32 * MIB)
        self.turns = [0]

    def write(self, offset: int, data: memoryview, *, fua: bool = False) -> None:
        self.turns[-1] += len(data)
        super().write(offset, data, fua=fua)

    def write_zeroes(self, offset: int, length: int, *, deallocate: bool, fua: bool = False) -> None:
        self.turns[-1] += length
        super().write_zeroes(offset, length, deallocate=deallocate, fua=fua)


@pytest.mark.parametrize("secure", [False, True])
def test_a_long_erase_yields_to_others(secure: bool) -> None:
    backend, runtime = Counting(), FakeRuntime()
    reported: list[int] = []
    memory = backend.memory
    assert memory is not None
    memory[:] = b"x" * len(memory)
    runtime.spawn(erase.erase(runtime, backend, secure=secure, report=reported.append))
    while runtime.background:
        runtime.turn()
        backend.turns.append(0)
    assert not any(memory)
    assert (
        sum(reported) == erase.bytes_to_erase(backend, secure=secure) == backend.capabilities.size_bytes * (1 + secure)
    )
    given_back = [each for each in backend.turns if each > erase.MEMORY_WRITE_BYTES]
    assert given_back == [erase.MEMORY_PIECE_BYTES] * 4, "and all else in pieces that are copied"
    assert max((each for each in backend.turns if each not in given_back), default=0) <= 256 * 1024
