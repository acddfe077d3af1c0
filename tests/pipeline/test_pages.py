"""Values are found in a parquet file's pages where pyarrow finds them, however it was written."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.pages import SNAPPY_BLOCK_BYTES, Chunk, Spans, unpack, value_spans

pyarrow = pytest.importorskip("pyarrow")
IMAGE = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])


def values(rng: np.random.Generator, count: int) -> list[bytes | None]:
    """Byte strings of 0 to 200,000 bytes: random, repetitive, equal to an earlier one, missing."""
    found: list[bytes | None] = [b"", None, rng.bytes(3 * SNAPPY_BLOCK_BYTES), b"x" * 150_000]
    while len(found) < count:
        size = int(rng.integers(0, 200_000))
        kinds = [rng.bytes(size), rng.bytes(7) * (size // 7), found[int(rng.integers(len(found)))]]
        found.append(kinds[int(rng.integers(3))])
    return found


def chunks(path: Path, codec: str | None) -> list[Chunk]:
    """The first column of each row group of a file."""
    from pyarrow import parquet

    file = parquet.ParquetFile(path)
    data = path.read_bytes()
    found = []
    for group in (file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)):
        column = group.column(0)
        start = column.data_page_offset
        if column.has_dictionary_page:
            start = min(start, column.dictionary_page_offset)
        view = memoryview(data)[start : start + column.total_compressed_size]
        level = file.schema.column(0).max_definition_level
        found.append(Chunk(view, start, codec, group.num_rows, level))
    return found


def read(path: Path, spans: Spans, codec: str | None) -> list[bytes]:
    data = path.read_bytes()
    return [
        unpack(data[int(span["offset"]) :][: int(span["stored"])], span, codec) for span in spans
    ]


@pytest.mark.parametrize("codec", [None, "snappy", "gzip", "brotli", "zstd"])
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="dictionary"),
        pytest.param({"use_dictionary": False}, id="plain"),
        pytest.param({"data_page_version": "2.0"}, id="dictionary v2"),
        pytest.param({"data_page_version": "2.0", "use_dictionary": False}, id="plain v2"),
        pytest.param({"write_batch_size": 2, "data_page_size": 50_000}, id="small pages"),
        pytest.param({"write_batch_size": 2, "dictionary_pagesize_limit": 100_000}, id="both"),
        pytest.param({"use_content_defined_chunking": True}, id="chunked by content"),
        pytest.param({"write_page_checksum": True, "write_page_index": True}, id="checksums"),
    ],
)
def test_every_value_is_what_pyarrow_reads(
    tmp_path: Path, codec: str | None, options: dict[str, Any]
) -> None:
    from pyarrow import parquet

    expected = values(np.random.default_rng(1), 40)
    images = [value if value is None else {"bytes": value} for value in expected]
    table = pyarrow.table({"image": pyarrow.array(images, IMAGE)})
    path = tmp_path / "file.parquet"
    parquet.write_table(table, path, row_group_size=17, compression=codec or "none", **options)
    spans = np.concatenate([value_spans(chunk) for chunk in chunks(path, codec)])
    assert read(path, spans, codec) == [value or b"" for value in expected]
    if codec is None:
        assert (spans["stored"] == spans["size"]).all()


@pytest.mark.parametrize("codec", [None, "snappy", "zstd"])
@pytest.mark.parametrize("dictionary", [True, False])
def test_row_groups_of_many_rows_are_found_too(
    tmp_path: Path, codec: str | None, dictionary: bool
) -> None:
    from pyarrow import parquet

    rng = np.random.default_rng(4)
    expected = [rng.bytes(int(rng.integers(1, 300))) for _ in range(1500)]
    expected += [expected[int(i)] for i in rng.integers(0, 1500, 500)]
    table = pyarrow.table({"image": pyarrow.array([{"bytes": v} for v in expected], IMAGE)})
    path = tmp_path / "file.parquet"
    parquet.write_table(table, path, compression=codec or "none", use_dictionary=dictionary)
    (chunk,) = chunks(path, codec)
    assert read(path, value_spans(chunk), codec) == expected


def test_a_column_that_cannot_be_missing_has_no_levels(tmp_path: Path) -> None:
    from pyarrow import parquet

    schema = pyarrow.schema([pyarrow.field("image", pyarrow.binary(), nullable=False)])
    expected = [b"one", b"", b"three"]
    path = tmp_path / "file.parquet"
    parquet.write_table(pyarrow.table({"image": expected}, schema), path, compression="none")
    (chunk,) = chunks(path, None)
    assert chunk.max_level == 0 and read(path, value_spans(chunk), None) == expected


def test_a_page_of_which_snappy_refers_far_back_is_unpacked_as_a_whole() -> None:
    # Two values of 70,000 bytes, the second by one reference to the first: no encoder that works
    # in blocks writes that, the format allows it.
    value = np.random.default_rng(2).bytes(70_000)
    plain = (70_000).to_bytes(4, "little") + value
    literal = bytes([62 << 2]) + (len(plain) - 1).to_bytes(3, "little") + plain
    back = len(plain)
    copies = b""
    for start in range(0, len(plain), 64):
        size = min(64, len(plain) - start)
        copies += bytes([(size - 1) << 2 | 3]) + back.to_bytes(4, "little")
    body = _varint(2 * len(plain)) + literal + copies
    assert pyarrow.decompress(body, 2 * len(plain), "snappy", asbytes=True) == plain * 2
    header = b"\x15\x00\x15" + _varint(4 * len(plain)) + b"\x15" + _varint(2 * len(body))
    header += b"\x2c\x15\x04\x15\x00\x15\x06\x15\x06\x00\x00"  # two values, plain
    data = header + body
    spans = value_spans(Chunk(memoryview(data), 0, "snappy", 2, 0))
    assert [
        unpack(data[int(s["offset"]) :][: int(s["stored"])], s, "snappy") for s in spans
    ] == [value, value]


def _varint(value: int) -> bytes:
    groups = b""
    while value > 127:
        groups += bytes([value & 127 | 128])
        value >>= 7
    return groups + bytes([value])


@pytest.mark.parametrize("codec", [None, "snappy"])
def test_damage_is_a_value_error_or_other_values_and_nothing_else(
    tmp_path: Path, codec: str | None
) -> None:
    from pyarrow import parquet

    rng = np.random.default_rng(3)
    table = pyarrow.table({"image": pyarrow.array([{"bytes": rng.bytes(50)}] * 9, IMAGE)})
    path = tmp_path / "file.parquet"
    parquet.write_table(table, path, compression=codec or "none")
    (chunk,) = chunks(path, codec)
    refused = 0
    for position in range(len(chunk.data)):
        data = bytearray(chunk.data)
        data[position] ^= 1 << int(rng.integers(8))
        try:
            spans = value_spans(
                Chunk(memoryview(data), 0, codec, chunk.num_rows, chunk.max_level)
            )
        except ValueError:
            refused += 1
        else:
            assert len(spans) == 9
    assert refused > 20
    endless = b"\x15\x00\x15\x00\x15" + bytes([2 * 7 - 1]) + b"\x00"  # -7 bytes: itself again
    with pytest.raises(ValueError, match="a page goes beyond its column"):
        value_spans(Chunk(memoryview(endless), 0, codec, 9, chunk.max_level))
    with pytest.raises(ValueError, match="differ by 1 rows"):
        value_spans(Chunk(chunk.data, 0, codec, 10, chunk.max_level))
