"""Structs in thrift's compact protocol, as parquet files describe themselves.

The encoding is that of thrift's specification (doc/specs/thrift-compact-protocol.md).
"""

import struct
from typing import Any

TRUE, FALSE, BYTE, DOUBLE, BINARY, LIST, SET, STRUCT = 1, 2, 3, 7, 8, 9, 10, 12
INTEGERS = (4, 5, 6)  # of 16, 32 and 64 bits


def read_struct(data: bytes, at: int) -> tuple[dict[int, Any], int]:
    """A struct at `at`: its fields by number, and where it ends.

    Damage raises IndexError, KeyError, struct.error or RecursionError.
    """
    fields: dict[int, Any] = {}
    number = 0
    while head := data[at]:
        at += 1
        if head >> 4:  # from the field before
            number += head >> 4
        else:
            number, at = _read_integer(data, at)
        kind = head & 15
        if kind in (TRUE, FALSE):
            fields[number] = kind == TRUE
        else:
            fields[number], at = _read_value(data, at, kind)
    return fields, at + 1


def read_varint(data: bytes | memoryview, at: int) -> tuple[int, int]:
    """A number in groups of seven bits, and where it ends."""
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        shift += 7
        at += 1
        if data[at - 1] < 128:
            return value, at


def _read_value(data: bytes, at: int, kind: int) -> tuple[Any, int]:
    if kind in INTEGERS:
        return _read_integer(data, at)
    if kind == BYTE:
        return data[at], at + 1
    if kind == DOUBLE:
        return struct.unpack_from("<d", data, at)[0], at + 8
    if kind == BINARY:
        length, at = read_varint(data, at)
        return data[at : at + length], at + length
    if kind in (LIST, SET):
        return _read_list(data, at)
    if kind == STRUCT:
        return read_struct(data, at)
    raise KeyError(f"a field of kind {kind}")


def _read_list(data: bytes, at: int) -> tuple[list[Any], int]:
    kind, count = data[at] & 15, data[at] >> 4
    at += 1
    if count == 15:
        count, at = read_varint(data, at)
    values = []
    for _ in range(count):
        # A truth value takes a byte here; elsewhere it is the kind of its field.
        value, at = _read_value(data, at, BYTE if kind in (TRUE, FALSE) else kind)
        values.append(value)
    return values, at


def _read_integer(data: bytes, at: int) -> tuple[int, int]:
    """A whole number in zigzag: 0, -1, 1, -2, …"""
    value, at = read_varint(data, at)
    return value >> 1 ^ -(value & 1), at
