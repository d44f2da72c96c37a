"""CRC32C against the vectors of RFC 3720, appendix B.4."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvmeof.pdu import digest

VECTORS = {
    "zeros": (bytes(32), 0x8A9136AA),
    "ones": (b"\xff" * 32, 0x62A8AB43),
    "ascending": (bytes(range(32)), 0x46DD794E),
    "descending": (bytes(range(31, -1, -1)), 0x113FDB5C),
    "nine digits": (b"123456789", 0xE3069283),
    "nothing": (b"", 0),
}


@pytest.mark.parametrize("name", VECTORS)
def test_known_answers(name: str) -> None:
    data, expected = VECTORS[name]
    assert digest.crc32c(data, 0) == expected
    assert digest.crc32c_table(data) == expected
    assert digest.crc32c_folded(data) == expected


def test_on_the_wire_the_digest_is_little_endian() -> None:
    assert digest.digest_bytes(bytes(32)).hex() == "aa36918a"


@pytest.mark.skipif(not digest.FAST, reason="the crc32c package is not installed")
@given(st.binary(max_size=300), st.integers(0, 2**32 - 1))
def test_the_table_equals_the_fast_implementation(data: bytes, value: int) -> None:
    assert digest.crc32c_table(data, value) == digest.crc32c(data, value)


@given(st.binary(max_size=100), st.integers(0, 100))
@pytest.mark.parametrize("function", [digest.crc32c, digest.crc32c_table, digest.crc32c_folded])
def test_goes_on_from_a_former_value(function: Callable[..., int], data: bytes, cut: int) -> None:
    assert function(data[cut:], function(data[:cut], 0)) == function(data, 0)


@pytest.mark.parametrize("kind", [bytes, bytearray, lambda b: memoryview(bytearray(b)), memoryview])
@pytest.mark.parametrize("function", [digest.crc32c, digest.crc32c_table, digest.crc32c_folded])
def test_takes_every_buffer(function: Callable[..., int], kind: Callable[[bytes], bytes]) -> None:
    assert function(kind(b"123456789"), 0) == 0xE3069283


@given(st.binary(max_size=64), st.integers(0, 5000), st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_folding_equals_the_table(seed: bytes, size: int, value: int) -> None:
    data = random.Random(seed).randbytes(size)
    assert digest.crc32c_folded(data, value) == digest.crc32c_table(data, value)


@pytest.mark.parametrize("size", [digest.FOLD_MIN_BYTES + change for change in (-1, 0, 1)] + [(1 << 20) + 77])
def test_folding_at_its_limits(size: int) -> None:
    data = random.Random(size).randbytes(size)
    assert digest.crc32c_folded(data) == digest.crc32c_table(data)


def test_slow_digests_are_logged_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    digest.warn_if_slow.cache_clear()
    monkeypatch.setattr(digest, "FAST", False)
    digest.warn_if_slow()
    digest.warn_if_slow()
    [record] = caplog.records
    assert "nvmeof-mptcp[fast]" in record.getMessage()
    digest.warn_if_slow.cache_clear()


def test_fast_digests_are_not_logged(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    digest.warn_if_slow.cache_clear()
    monkeypatch.setattr(digest, "FAST", True)
    digest.warn_if_slow()
    assert not caplog.records
    digest.warn_if_slow.cache_clear()
