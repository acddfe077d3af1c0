"""Structs of thrift's compact protocol are read as its specification writes them."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.thrift import read_struct, read_varint


def varint(value: int) -> bytes:
    groups = []
    while value > 127:
        groups.append(value & 127 | 128)
        value >>= 7
    return bytes([*groups, value])


@given(st.integers(0, 2**64 - 1), st.binary(max_size=3))
def test_a_varint_is_read_back_and_its_end_is_found(value: int, before: bytes) -> None:
    data = before + varint(value) + b"rest"
    assert read_varint(data, len(before)) == (value, len(data) - 4)


@given(st.integers(-(2**63), 2**63 - 1), st.integers(1, 2**15 - 1))
def test_an_integer_is_zigzag_and_its_field_may_have_any_number(value: int, field: int) -> None:
    zigzag = varint(value << 1 if value >= 0 else (-value << 1) - 1)
    data = b"\x06" + varint(field << 1) + zigzag + b"\0"  # the long form: the number itself
    assert read_struct(data, 0) == ({field: value}, len(data))
    if field < 16:  # the short form: what is added to the number before
        data = bytes([field << 4 | 6]) + zigzag + b"\0"
        assert read_struct(data, 0) == ({field: value}, len(data))


def test_every_kind_of_field_is_read() -> None:
    data = b"".join(
        (
            b"\x11",  # 1: true
            b"\x12",  # 2: false
            b"\x13\x7f",  # 3: a byte
            b"\x17" + b"\0\0\0\0\0\0\xf8\x3f",  # 4: 1.5
            b"\x18\x03abc",  # 5: bytes
            b"\x19\x25\x01\x04",  # 6: the list -1, 2
            b"\x1a\x18\x01x",  # 7: the set of b"x"
            b"\x1c\x15\x02\0",  # 8: a struct with 1: 1
            b"\x19\x21\x01\x02",  # 9: a list of two truth values, a byte each
            b"\0",
        )
    )
    fields, end = read_struct(data, 0)
    assert end == len(data)
    assert fields == {
        1: True, 2: False, 3: 127, 4: 1.5, 5: b"abc", 6: [-1, 2], 7: [b"x"], 8: {1: 1}, 9: [1, 2]
    }  # fmt: skip


def test_a_list_of_more_than_fourteen_tells_its_length_after_its_kind() -> None:
    data = b"\x19\xf5\x14" + b"\x02" * 20 + b"\0"
    assert read_struct(data, 0) == ({1: [1] * 20}, len(data))


@pytest.mark.parametrize(
    "data", [b"", b"\x15", b"\x15\x80", b"\x1c\x15\x02", b"\x19\xf5", b"\x17"]
)
def test_what_is_cut_off_is_no_struct(data: bytes) -> None:
    with pytest.raises((IndexError, struct.error)):
        read_struct(data, 0)


def test_an_unknown_kind_is_no_field() -> None:
    with pytest.raises(KeyError, match="kind 14"):
        read_struct(b"\x1e\0", 0)
