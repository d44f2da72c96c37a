"""Records: declarations with a struct codec, those that fail at import, and agreement of both codecs."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import construct as c
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeof.wire import (
    U8,
    U16,
    Bits,
    DeclarationError,
    PaddedText,
    Record,
    build,
    build_cached,
    layout,
    offset_of,
    plain,
)


@dataclass(slots=True)
class Sample:
    a: int = 0
    b: int = 0
    raw: bytes = bytes(3)
    d: int = 0


SAMPLE = Record(c.Struct("a" / c.Int8ul, c.Padding(1), "b" / c.Int16ul, "raw" / c.Bytes(3), "d" / c.Int64ul), Sample)


@dataclass(slots=True)
class One:
    x: int = 0


def test_record_knows_its_layout() -> None:
    assert SAMPLE.size == 15
    assert SAMPLE.offsets == {"a": 0, "b": 2, "raw": 4, "d": 7}
    assert SAMPLE.widths == {"a": 1, "b": 2, "raw": 3, "d": 8}
    assert SAMPLE.struct.format == "<B1xH3sQ"


@given(
    a=st.integers(0, 0xFF), b=st.integers(0, 0xFFFF), raw=st.binary(min_size=3, max_size=3), d=st.integers(0, 2**64 - 1)
)
def test_record_round_trip_and_agreement_with_construct(a: int, b: int, raw: bytes, d: int) -> None:
    obj = Sample(a, b, raw, d)
    packed = SAMPLE.pack(obj)
    assert packed == SAMPLE.declaration.build({"a": a, "b": b, "raw": raw, "d": d})
    assert SAMPLE.unpack_from(packed) == obj
    parsed = SAMPLE.declaration.parse(packed)
    assert (parsed.a, parsed.b, parsed.raw, parsed.d) == (a, b, raw, d)


def test_pack_into_touches_only_its_bytes() -> None:
    buffer = bytearray(b"\xff" * 20)
    SAMPLE.pack_into(buffer, 2, Sample(1, 2, b"abc", 3))
    assert buffer[:2] == b"\xff\xff"
    assert buffer[17:] == b"\xff\xff\xff"
    assert SAMPLE.unpack_from(memoryview(buffer), 2) == Sample(1, 2, b"abc", 3)


def test_unpack_from_a_short_buffer_fails() -> None:
    with pytest.raises(struct.error):
        SAMPLE.unpack_from(bytes(14))


@pytest.mark.parametrize("raw", [b"", b"ab", b"abcd"])
def test_a_bytes_field_is_neither_padded_nor_cut(raw: bytes) -> None:
    with pytest.raises(struct.error):
        SAMPLE.pack(Sample(raw=raw))


@pytest.mark.parametrize("value", [-1, 256])
def test_a_value_that_does_not_fit_fails(value: int) -> None:
    with pytest.raises(struct.error):
        SAMPLE.pack(Sample(a=value))


def test_a_record_of_one_field() -> None:
    record = Record(c.Struct("x" / c.Int32ul), One)
    assert record.pack(One(7)) == b"\x07\0\0\0"


def test_select_skips_all_else() -> None:
    selection = SAMPLE.select("b", "d", before=5, size=32)
    assert selection.size == 32
    batch = b"".join(b"\xaa" * 5 + SAMPLE.pack(Sample(9, i, b"xyz", i * 3)) + b"\xbb" * 12 for i in range(4))
    assert list(selection.iter_unpack(batch)) == [(i, i * 3) for i in range(4)]


def test_select_of_a_bytes_field() -> None:
    assert SAMPLE.select("raw").unpack(SAMPLE.pack(Sample(raw=b"abc"))) == (b"abc",)


def test_select_refuses_disorder_and_overrun() -> None:
    with pytest.raises(DeclarationError):
        SAMPLE.select("d", "b")
    with pytest.raises(DeclarationError):
        SAMPLE.select("d", size=14)
    with pytest.raises(KeyError):
        SAMPLE.select("nothing")


def test_error_location_is_byte_and_bit() -> None:
    assert SAMPLE.error_location("b") == 2
    assert SAMPLE.error_location("b", bit=3) == 2 | 3 << 8
    assert SAMPLE.error_location("b", bit=9) == 3 | 1 << 8


@pytest.mark.parametrize(
    "field",
    [
        "x" / c.Int32ub,
        "x" / c.Int16ub,
        "x" / c.Int32un if struct.pack("=H", 1) == b"\0\1" else "x" / c.Int64ub,
        "x" / c.Int24ul,
        "x" / c.Float32l,
        "x" / c.GreedyBytes,
        "x" / c.Bytes(c.this.n),
        "x" / c.CString("ascii"),
        "x" / c.PascalString(c.Int8ul, "ascii"),
        "x" / c.Prefixed(c.Int8ul, c.GreedyBytes),
        "x" / c.GreedyRange(c.Int8ul),
        "x" / c.Int8ul[c.this.n],
        "x" / c.Int8ul[4],
        "x" / c.Struct("y" / c.Int8ul),
        "x" / c.Const(b"ab"),
        "x" / c.Optional(c.Int32ul),
    ],
    ids=str,
)
def test_a_declaration_without_a_struct_codec_fails_at_once(field: c.Construct) -> None:
    with pytest.raises(DeclarationError):
        Record(c.Struct(field), One)


@pytest.mark.parametrize("unnamed", [c.Int8ul, c.Padding(c.this.n), c.Bytes(4), c.Seek(4), c.Padded(4, c.Int8ul)])
def test_an_unnamed_field_is_padding_or_refused(unnamed: c.Construct) -> None:
    with pytest.raises(DeclarationError):
        Record(c.Struct("x" / c.Int8ul, unnamed), One)


def test_the_class_must_match_the_declaration() -> None:
    @dataclass
    class NoSlots:
        x: int = 0

    @dataclass(slots=True)
    class Swapped:
        b: int = 0
        a: int = 0

    class Plain:
        pass

    declaration = c.Struct("x" / c.Int8ul)
    for cls in (NoSlots, Plain):
        with pytest.raises(DeclarationError, match="slots"):
            Record(declaration, cls)
    with pytest.raises(DeclarationError, match="fields"):
        Record(c.Struct("a" / c.Int8ul, "b" / c.Int8ul), Swapped)
    with pytest.raises(DeclarationError):
        Record(c.Struct(c.Padding(4)), One)


COLD = c.Struct(
    "n" / c.Int16ul,
    c.Padding(2),
    "text" / PaddedText(8, b" "),
    "name" / PaddedText(8),
    "items" / c.Struct("x" / c.Int8ul, "y" / c.Int8ul)[3],
    "raw" / c.Bytes(4),
)


def test_build_fills_the_rest() -> None:
    assert build(COLD) == bytes(4) + b" " * 8 + bytes(8 + 6 + 4)
    data = build(COLD, n=1, text="ab", name="cd", items=[{"y": 2}], raw=b"z")
    assert data == b"\1\0\0\0ab      cd\0\0\0\0\0\0\0\2\0\0\0\0z\0\0\0"
    assert plain(COLD.parse(data)) == {
        "n": 1,
        "text": "ab",
        "name": "cd",
        "items": [{"x": 0, "y": 2}, {"x": 0, "y": 0}, {"x": 0, "y": 0}],
        "raw": b"z\0\0\0",
    }


def test_build_refuses_values_that_do_not_fit() -> None:
    with pytest.raises(KeyError, match="nothing"):
        build(COLD, nothing=1)
    with pytest.raises(KeyError, match="z"):
        build(COLD, items=[{"z": 1}])
    with pytest.raises(ValueError, match="3 items"):
        build(COLD, items=[{}] * 4)
    with pytest.raises(ValueError, match="4 bytes"):
        build(COLD, raw=b"12345")
    with pytest.raises(c.ConstructError):
        build(COLD, text="123456789")
    with pytest.raises(c.ConstructError):
        build(COLD, n=65536)


def test_layout_of_a_cold_structure() -> None:
    assert layout(COLD) == {"n": (0, 2), "text": (4, 8), "name": (12, 8), "items": (20, 6), "raw": (26, 4)}
    assert offset_of(COLD, "raw") == 26
    with pytest.raises(KeyError):
        offset_of(COLD, "nothing")


def test_padded_text_reads_the_text_of_peers() -> None:
    text = PaddedText(6, b" ")
    assert text.parse(b"ab    ") == "ab"
    assert text.parse(b"ab\0\0\0\0") == "ab"
    assert text.parse(b"ab \0xx") == "ab"
    assert PaddedText(6).parse(b"abcdef") == "abcdef"
    assert PaddedText(6).parse(b"ab \0xy") == "ab "
    # text that is no UTF-8 stays printable and distinguishable
    assert PaddedText(4).parse(b"a\xff\0\0") == "a\\xff"
    assert PaddedText(4).build("é") == b"\xc3\xa9\0\0"


@given(st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF), max_size=8))
def test_padded_text_round_trip(text: str) -> None:
    for fill in (b" ", b"\0"):
        field = PaddedText(16, fill)
        assert field.parse(field.build(text)) == text


REGISTER = Bits(4, low=3, _3=5, middle=16, high=8)


def test_bits_shifts() -> None:
    assert REGISTER.fields == {"low": (0, 7), "middle": (8, 0xFFFF), "high": (24, 0xFF)}
    assert REGISTER.encode(low=5, high=0xAB) == 0xAB000005
    assert REGISTER.decode(0xAB1234FD) == {"low": 5, "middle": 0x1234, "high": 0xAB}


@given(st.integers(0, 0xFFFFFFFF))
def test_bits_agree_with_construct(value: int) -> None:
    raw = REGISTER.decode(value)
    parsed = REGISTER.declaration.parse(struct.pack("<I", value))
    assert {name: parsed[name] for name in raw} == raw
    assert REGISTER.declaration.build(raw) == struct.pack("<I", REGISTER.encode(**raw))


def test_bits_refuse_invalid_fields() -> None:
    with pytest.raises(ValueError, match="low"):
        REGISTER.encode(low=8)
    with pytest.raises(ValueError, match="low"):
        REGISTER.encode(low=-1)
    with pytest.raises(KeyError):
        REGISTER.encode(nothing=1)
    with pytest.raises(DeclarationError, match="31 of 32"):
        Bits(4, a=31)


def test_cached_structures_are_the_same_as_built_ones() -> None:
    structure = c.Struct("a" / U8, "b" / U16[4], "c" / c.Bytes(3))
    other = c.Struct("a" / U8, "b" / U16[4], "c" / c.Bytes(3), "d" / U8)
    for number in range(300):
        for declaration in (structure, other):
            for _ in range(2):
                values = {"a": number & 0xFF, "b": [number], "c": b"xy"}
                assert build_cached(declaration, **values) == build(declaration, **values)
    assert build_cached(structure, a=1) is build_cached(structure, a=1)
    with pytest.raises(KeyError):
        build_cached(structure, nothing=1)
