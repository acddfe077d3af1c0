"""Where the values of a parquet column lie in its file, so that one is read without the rest.

pyarrow reads whole pages, and writers put a whole row group of photographs into one: 100 of them
are read and unpacked for each that is wanted. The layout is that of the parquet format's
specification (PageHeader in parquet.thrift, Encodings.md) and of snappy's format_description.txt.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.thrift import read_struct, read_varint

SPAN_DTYPE = np.dtype(
    [
        ("offset", "<i8"),  # of the first byte to read from the file
        ("stored", "<i8"),  # bytes to read
        ("unpacked", "<i8"),  # bytes they unpack to; 0 where they are stored as they are
        ("skip", "<i8"),  # of the unpacked bytes, those before the value
        ("size", "<i8"),  # bytes of the value; 0 where there is none
    ]
)
SNAPPY_BLOCK_BYTES = 1 << 16  # its encoders start afresh there, so unpacking can begin there too
MAX_HEADER_BYTES = 1 << 16  # of a page: writers leave out statistics that are large
MAX_PAGE_BYTES = 2**31 - 1  # parquet's own limit
DICTIONARY_PAGE, DATA_PAGE, DATA_PAGE_V2 = 2, 0, 3
PLAIN, DICTIONARY_ENCODINGS = 0, (2, 8)  # 2: PLAIN_DICTIONARY, of older writers

Spans = NDArray[np.void]  # rows of SPAN_DTYPE


@dataclass(frozen=True)
class Chunk:
    """A column of one row group: `data` is all of its bytes, from `offset` of the file on."""

    data: memoryview
    offset: int
    codec: str | None  # as pyarrow.decompress names it; None: not compressed
    num_rows: int
    max_level: int  # definition level of a value that is there


@dataclass(frozen=True)
class _Page:
    """A page of a chunk: its header's kind and details, and where its values' bytes lie."""

    kind: int
    details: dict[int, Any]
    levels: memoryview | None  # where they lie before the values' bytes, never compressed
    start: int  # of the values' bytes within the chunk
    end: int
    num_bytes: int  # that they unpack to
    codec: str | None
    body: memoryview  # those bytes, unpacked


def value_spans(chunk: Chunk) -> Spans:
    """Where each row's value lies, for a column of byte strings that is not repeated.

    ValueError where the pages are damaged or of a kind that this does not know.
    """
    found = [np.zeros(0, SPAN_DTYPE)]
    dictionary = found[0]
    num_left = chunk.num_rows
    try:
        for page in _pages(chunk):
            if page.kind == DICTIONARY_PAGE:
                dictionary = _plain_spans(chunk, page, 0)
            elif not 0 <= page.details[1] <= num_left:
                raise ValueError("a page has more rows than are left")
            else:
                found.append(_row_spans(chunk, page, dictionary))
                num_left -= len(found[-1])
    except (IndexError, KeyError, TypeError, RecursionError, struct.error) as error:
        raise ValueError(f"a page is damaged ({error!r})") from error
    if num_left:
        raise ValueError(f"its pages and its row group differ by {num_left} rows")
    return np.concatenate(found)


def unpack(stored: bytes, span: np.void, codec: str | None) -> bytes:
    """The value at `span` of the bytes that were read for it; ValueError where damaged."""
    num_bytes, skip = int(span["unpacked"]), int(span["skip"])
    if not num_bytes:
        return stored
    begin = _as_varint(num_bytes) if codec == "snappy" else b""
    return bytes(_unpacked(begin + stored, num_bytes, codec)[skip : skip + int(span["size"])])


def _pages(chunk: Chunk) -> Iterator[_Page]:
    """The pages of a chunk."""
    at = 0
    while at < len(chunk.data):
        header, length = read_struct(bytes(chunk.data[at : at + MAX_HEADER_BYTES]), 0)
        kind, num_bytes, start = header[1], header[2], at + length
        at = start + header[3]
        if not start <= at <= len(chunk.data) or not 0 <= num_bytes <= MAX_PAGE_BYTES:
            raise ValueError("a page goes beyond its column")
        codec, levels = chunk.codec, None
        if kind == DATA_PAGE_V2:
            details = header[8]
            num_levels = details[5] + details[6]
            if not 0 <= details[6] <= num_levels <= min(num_bytes, at - start):
                raise ValueError("a page's levels go beyond it")
            levels = chunk.data[start + details[6] : start + num_levels]
            start, num_bytes = start + num_levels, num_bytes - num_levels
            codec = codec if details.get(7, True) else None
        elif kind in (DATA_PAGE, DICTIONARY_PAGE):
            details = header[5 if kind == DATA_PAGE else 7]
        else:
            continue
        body = chunk.data[start:at]
        if codec is not None and num_bytes:
            body = _unpacked(body, num_bytes, codec)
        yield _Page(kind, details, levels, start, at, num_bytes, codec, body)


def _row_spans(chunk: Chunk, page: _Page, dictionary: Spans) -> Spans:
    """The rows of one data page, those without a value included."""
    encoding = page.details[2 if page.kind == DATA_PAGE else 4]
    levels, skip = page.levels, 0
    if levels is None and chunk.max_level:
        skip = 4 + int.from_bytes(page.body[:4], "little")
        levels = page.body[4:skip]
    there = np.ones(page.details[1], bool)
    if levels is not None:
        there = _hybrid(levels, chunk.max_level.bit_length(), len(there)) == chunk.max_level
    if encoding == PLAIN:
        values = _plain_spans(chunk, page, skip)
    elif encoding in DICTIONARY_ENCODINGS:
        width = page.body[skip] if there.any() else 0
        values = dictionary[_hybrid(page.body[skip + 1 :], width, int(there.sum()))]
    else:
        raise ValueError(f"its values have encoding {encoding}; expected plain or dictionary")
    if len(values) != there.sum():
        raise ValueError(f"a page has {len(values)} values for {there.sum()} rows")
    rows = np.zeros(len(there), SPAN_DTYPE)
    rows[there] = values
    return rows


def _plain_spans(chunk: Chunk, page: _Page, skip: int) -> Spans:
    """The values of a page of lengths and bytes by turns, from `skip` of its body on."""
    begins, sizes = [], []
    at = skip
    while at < len(page.body):
        (size,) = struct.unpack_from("<I", page.body, at)
        begins.append(at + 4)
        sizes.append(size)
        at += 4 + size
    if at != len(page.body):
        raise ValueError("a page's last value goes beyond it")
    spans = np.zeros(len(begins), SPAN_DTYPE)
    spans["size"] = sizes
    starts = np.array(begins, np.int64)
    if page.codec is None:
        spans["offset"] = chunk.offset + page.start + starts
        spans["stored"] = sizes
        return spans
    marks = _marks(chunk.data, page)
    first = np.searchsorted(marks[:, 0], starts, "right") - 1
    last = np.searchsorted(marks[:, 0], starts + spans["size"], "left")
    spans["offset"] = chunk.offset + marks[first, 1]
    spans["stored"] = marks[last, 1] - marks[first, 1]
    spans["unpacked"] = marks[last, 0] - marks[first, 0]
    spans["skip"] = starts - marks[first, 0]
    return spans


def _marks(data: memoryview, page: _Page) -> NDArray[np.int64]:
    """Where unpacking a page may begin and end: rows of (place unpacked, place in the chunk).

    Its two ends; in snappy's case every 64 KB too, where no reference crosses those.
    """
    assert page.codec is not None
    at = page.start + _preamble(data[page.start : page.end], page.codec)
    ends = [(0, at)]
    unpacked = 0
    while page.codec == "snappy" and at < page.end:
        if unpacked - ends[-1][0] >= SNAPPY_BLOCK_BYTES:
            ends.append((unpacked, at))
        length, back, at = _snappy_element(data, at)
        if back > unpacked - ends[-1][0]:  # another kind of encoder: only the whole unpacks
            del ends[1:]
            break
        unpacked += length
    return np.array([*ends, (page.num_bytes, page.end)], np.int64)


def _snappy_element(data: memoryview, at: int) -> tuple[int, int, int]:
    """Bytes that an element unpacks to, how far back it refers (0: it does not), and its end."""
    tag = data[at]
    kind, short = tag & 3, tag >> 2
    if kind == 0:  # bytes as they are
        num_extra = max(0, short - 59)
        if num_extra:
            short = int.from_bytes(data[at + 1 : at + 1 + num_extra], "little")
        return short + 1, 0, at + 2 + num_extra + short
    if kind == 1:
        return 4 + (short & 7), (tag >> 5) << 8 | data[at + 1], at + 2
    num_extra = 2 if kind == 2 else 4
    back = int.from_bytes(data[at + 1 : at + 1 + num_extra], "little")
    return short + 1, back, at + 1 + num_extra


def _preamble(body: memoryview, codec: str) -> int:
    """Bytes before what is packed: in snappy's case the length that it unpacks to."""
    return read_varint(body, 0)[1] if codec == "snappy" and len(body) else 0


def _unpacked(stored: bytes | memoryview, num_bytes: int, codec: str | None) -> memoryview:
    import pyarrow

    try:
        buffer = pyarrow.decompress(stored, num_bytes, codec)
        return memoryview(buffer).cast("B")  # pyarrow's own bytes are signed
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(f"a page cannot be unpacked: {error}") from error


def _hybrid(data: memoryview, width: int, count: int) -> NDArray[np.int64]:
    """`count` numbers of `width` bits in parquet's hybrid of runs and bit-packed groups."""
    parts = [np.zeros(count if width == 0 else 0, np.int64)]
    at, num_found = 0, len(parts[0])
    while num_found < count:
        head, at = read_varint(data, at)
        if head & 1:
            num_bytes = (head >> 1) * width  # eight numbers take as many bytes as one has bits
            packed = np.frombuffer(data[at : at + num_bytes], np.uint8)
            bits = np.unpackbits(packed, bitorder="little").reshape(-1, width)
            part = bits @ (1 << np.arange(width, dtype=np.int64))
        else:
            num_bytes = -(-width // 8)
            number = int.from_bytes(data[at : at + num_bytes], "little")
            part = np.full(min(head >> 1, count), number, np.int64)
        if not len(part):
            raise ValueError("a page's numbers are cut off")
        at += num_bytes
        num_found += len(part)
        parts.append(part)
    return np.concatenate(parts)[:count]


def _as_varint(value: int) -> bytes:
    groups = []
    while value > 127:
        groups.append(value & 127 | 128)
        value >>= 7
    return bytes([*groups, value])
