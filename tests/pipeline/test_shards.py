"""What lies on the disk is what the index says, and what other programs expect."""

import ast
import errno
import os
import re
import tarfile
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.manifest import open_dataset
from pipeline.moments import Sums
from pipeline.shards import (
    BLOCK_BYTES,
    INDEX_DTYPE,
    ShardWriter,
    index_name,
    read_index,
    read_rows,
    read_source_crc32,
    read_sums,
    shard_stem,
    tar_member,
    write_index,
    write_sums,
)

SPLITS = ("train", "val")


def tars(folder: Path, split: str) -> list[Path]:
    return sorted(folder.glob(f"{split}-*.tar"))


@pytest.mark.parametrize("split", SPLITS)
def test_tars_are_plain_ustar_without_times_or_owners(shard_folder: Path, split: str) -> None:
    for path in tars(shard_folder, split):
        data = path.read_bytes()
        assert len(data) % BLOCK_BYTES == 0 and data.endswith(bytes(2 * BLOCK_BYTES))
        with tarfile.open(path, "r:") as tar:
            members = tar.getmembers()
            assert not tar.pax_headers
        assert members
        for member in members:
            assert data[member.offset + 257 :][:8] == b"ustar\x0000"
            assert member.isreg() and member.mtime == member.uid == member.gid == 0
            assert member.uname == member.gname == ""


@pytest.mark.parametrize(("folder_name", "ending"), [("shard", "jpg"), ("raw_shard", "npy")])
@pytest.mark.parametrize("split", SPLITS)
def test_components_of_a_sample_are_adjacent_under_a_nine_digit_key(
    folder_name: str, ending: str, split: str, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(f"{folder_name}_folder")
    for path in tars(folder, split):
        with tarfile.open(path, "r:") as tar:
            names = tar.getnames()
        keys = [name.partition(".")[0] for name in names[::2]]
        assert all(re.fullmatch(r"\d{9}", key) for key in keys)
        assert names == [f"{key}.{end}" for key in keys for end in (ending, "cls")]


@pytest.mark.parametrize("folder_name", ["shard", "raw_shard"])
@pytest.mark.parametrize("split", SPLITS)
def test_index_rows_point_at_what_the_tars_hold(
    folder_name: str, split: str, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(f"{folder_name}_folder")
    expected = []
    for number, path in enumerate(tars(folder, split)):
        with tarfile.open(path, "r:") as tar:
            members = tar.getmembers()
            for image, label in zip(members[::2], members[1::2], strict=True):
                data, text = (tar.extractfile(member) for member in (image, label))
                assert data is not None and text is not None
                expected.append(
                    (
                        number,
                        image.offset_data,
                        image.size,
                        int(text.read()),
                        int(image.name[:9]),
                        zlib.crc32(data.read()),
                    )
                )
    rows = open_dataset(folder).index(split)
    assert rows.dtype == INDEX_DTYPE and rows.tolist() == expected
    places = [(row[0], row[1]) for row in expected]
    assert places == sorted(places)


@pytest.mark.parametrize("split", SPLITS)
def test_the_dali_index_names_every_component_where_it_lies(
    shard_folder: Path, split: str
) -> None:
    for path in tars(shard_folder, split):
        with tarfile.open(path, "r:") as tar:
            members = tar.getmembers()
        fields = [
            [f"{m.name.partition('.')[2]}", f"{m.offset_data}", f"{m.size}", m.name]
            for m in members
        ]
        lines = [" ".join(image + label) for image, label in zip(fields[::2], fields[1::2])]
        expected = [f"v1.2 {len(lines)}", *lines]
        assert path.with_suffix(".idx").read_text().splitlines() == expected


def test_dalis_own_reader_reads_the_shards_through_the_index(shard_folder: Path) -> None:
    pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed")
    from nvidia.dali import fn
    from nvidia.dali.pipeline import Pipeline

    paths = tars(shard_folder, "train")
    rows = open_dataset(shard_folder).index("train")
    pipeline = Pipeline(batch_size=len(rows), num_threads=1, device_id=None)
    with pipeline:
        outputs: Any = fn.readers.webdataset(
            paths=[str(path) for path in paths],
            index_paths=[str(path.with_suffix(".idx")) for path in paths],
            ext=["jpg", "cls"],
            missing_component_behavior="error",
        )
        pipeline.set_outputs(*outputs)
    pipeline.build()
    jpegs, labels = pipeline.run()
    crcs = [zlib.crc32(np.asarray(jpegs.at(i)).tobytes()) for i in range(len(rows))]
    assert crcs == rows["crc32"].tolist()
    texts = [bytes(np.asarray(labels.at(i))) for i in range(len(rows))]
    assert [int(text) for text in texts] == rows["label"].tolist()


@pytest.mark.parametrize("split", SPLITS)
def test_the_index_file_is_the_rows_beside_every_shard_put_together(
    shard_folder: Path, split: str
) -> None:
    dataset = open_dataset(shard_folder)
    parts = [read_rows(shard_folder, split, n) for n in range(len(dataset.split(split).shards))]
    np.testing.assert_array_equal(np.concatenate(parts), dataset.index(split))


def test_the_writer_says_what_it_wrote(tmp_path: Path) -> None:
    images = [b"", b"a", b"b" * 511, b"c" * 512, b"d" * 513]
    path = tmp_path / f"{shard_stem('train', 7)}.tar"
    with ShardWriter(path, 7, "jpg") as writer:
        for i, data in enumerate(images):
            writer.add(10 * i, i, data)
    assert writer.written is not None and path.name == "train-000007.tar"
    assert writer.written.num_bytes == path.stat().st_size
    rows = writer.written.rows
    assert (rows["shard"] == 7).all() and rows["id"].tolist() == [0, 10, 20, 30, 40]
    data = path.read_bytes()
    found = [data[row["offset"] :][: row["size"]] for row in rows]
    assert found == images


def test_a_shard_whose_writing_fails_does_not_appear(tmp_path: Path) -> None:
    path = tmp_path / "train-000000.tar"
    with pytest.raises(OSError, match="disk full"), ShardWriter(path, 0, "jpg") as writer:
        writer.add(0, 0, b"image")
        raise OSError("disk full")
    assert not path.exists() and writer.written is None


def test_a_disk_that_is_full_at_the_end_of_a_shard_is_told_by_its_name_and_keeps_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(writer: ShardWriter, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as writing does: no name

    path = tmp_path / "train-000000.tar"
    with pytest.raises(OSError, match="No space left") as caught:
        with ShardWriter(path, 0, "jpg") as writer:
            writer.add(0, 0, b"image")
            monkeypatch.setattr(ShardWriter, "_write", fill)
    assert caught.value.filename == str(path)
    assert list(tmp_path.iterdir()) == [] and writer.written is None


def some_rows(count: int = 5) -> NDArray[np.void]:
    rows = np.zeros(count, INDEX_DTYPE)
    rows["id"] = np.arange(count)
    rows["crc32"] = 2**32 - 1 - rows["id"]
    return rows


def test_sums_and_rows_come_back_and_equal_arrays_give_equal_bytes(tmp_path: Path) -> None:
    sums = Sums()
    sums.add(np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8))
    for number in (0, 1):
        write_sums(tmp_path, "train", number, sums, some_rows(), [0, 2**32 - 1])
    first, second = sorted(tmp_path.iterdir())
    assert first.read_bytes() == second.read_bytes()
    np.testing.assert_array_equal(read_rows(tmp_path, "train", 0), some_rows())
    assert read_source_crc32(tmp_path, "train", 0).tolist() == [0, 2**32 - 1]
    np.testing.assert_array_equal(read_sums(tmp_path, "train", 0).pixel_sum, sums.pixel_sum)


def test_headers_of_arrays_are_parsed_by_one_thread_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two in Python's parser at once fail now and then up to 3.11.7: python/cpython#106905."""
    write_sums(tmp_path, "train", 0, Sums(), some_rows(), [0, 1])
    sha256 = write_index(tmp_path, "train", some_rows())
    together = threading.Barrier(2)
    parse, num_met = ast.literal_eval, 0

    def meet(text: str) -> Any:
        nonlocal num_met
        try:
            together.wait(timeout=0.2)
            num_met += 1
        except threading.BrokenBarrierError:  # alone
            together.reset()
        return parse(text)

    monkeypatch.setattr(ast, "literal_eval", meet)
    with ThreadPoolExecutor(3) as pool:
        pool.submit(read_rows, tmp_path, "train", 0)
        pool.submit(read_source_crc32, tmp_path, "train", 0)
        read = pool.submit(read_index, tmp_path, "train", sha256, len(some_rows()))
    np.testing.assert_array_equal(read.result(), some_rows())
    assert num_met == 0


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    changed: dict[str, Any] = {
        "flipped": data[:-1] + bytes([data[-1] ^ 1]),
        "cut": data[:-8],
        "emptied": b"",
    }
    path.unlink()
    if how != "missing":
        path.write_bytes(changed[how])


@pytest.mark.parametrize("how", ["flipped", "cut", "emptied", "missing"])
def test_a_damaged_index_is_named_with_the_mend(tmp_path: Path, how: str) -> None:
    sha256 = write_index(tmp_path, "train", some_rows())
    np.testing.assert_array_equal(read_index(tmp_path, "train", sha256, 5), some_rows())
    damage(tmp_path / index_name("train"), how)
    expected = rf"{tmp_path}/train.index.npy .*(damaged|cannot be read).*prepare again"
    with pytest.raises(ValueError, match=expected):
        read_index(tmp_path, "train", sha256, 5)


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 21_343, 300_000])
def test_a_member_is_what_tarfile_writes(size: int) -> None:
    data = np.random.default_rng(size).bytes(size)
    info = tarfile.TarInfo("000000123.jpg")
    info.size = size
    expected = info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-size % 512)
    assert tar_member("000000123.jpg", data) == expected
