"""Parquet files in Hugging Face's form give the images and labels that were put into them."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.pages import SNAPPY_BLOCK_BYTES
from pipeline.parquet import ParquetPlaces
from pipeline.sources import open_source
from pipeline.thrift import read_struct
from tests.conftest import contents, cut_file

pyarrow = pytest.importorskip("pyarrow")
NAMES = ("ant", "bee", "cat")
IMAGE = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])


def image(split: str, row: int) -> bytes:
    return f"{split} image {row}".encode() * (row + 1)


def write_rows(
    path: Path,
    labels: list[int | None],
    *,
    first: int = 0,
    names: tuple[str, ...] | None = NAMES,
    group: int = 3,
    **options: Any,
) -> None:
    """A file of images numbered from `first`, `group` of them to a row group."""
    from pyarrow import parquet

    split = path.name.split("-")[0]
    images = [{"bytes": image(split, first + i), "path": f"{i}"} for i in range(len(labels))]
    table = pyarrow.table(
        {"image": pyarrow.array(images, IMAGE), "label": pyarrow.array(labels, pyarrow.int64())}
    )
    if names is not None:
        features = {"label": {"names": list(names), "_type": "ClassLabel"}}
        text = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": text})
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path, row_group_size=group, **options)


def write_source(root: Path, **options: Any) -> Path:
    write_rows(root / "data/train-00000-of-00002.parquet", [2, 0, 1, 1, 0, 2, 2], **options)
    write_rows(root / "data/train-00001-of-00002.parquet", [1, 1], first=7, **options)
    write_rows(root / "data/validation-00000-of-00001.parquet", [0, 1, 2], **options)
    write_rows(root / "data/test-00000-of-00001.parquet", [-1, -1], **options)
    return root


@pytest.mark.parametrize(("names", "classes"), [(NAMES, NAMES), (None, ("0", "1", "2"))])
def test_rows_are_listed_with_their_labels_and_bytes(
    tmp_path: Path, names: tuple[str, ...] | None, classes: tuple[str, ...]
) -> None:
    source = open_source(write_source(tmp_path, names=names))
    assert source.format == "parquet" and source.classes == classes
    assert list(source.splits) == ["train", "val"] and source.unlabelled == {"test": 2}
    train = [
        (f"data/train-00000-of-00002.parquet#{i:09d}", classes[label], image("train", i))
        for i, label in enumerate([2, 0, 1, 1, 0, 2, 2])
    ] + [
        (f"data/train-00001-of-00002.parquet#{i:09d}", classes[1], image("train", 7 + i))
        for i in range(2)
    ]
    assert contents(source.splits["train"], source.classes) == train
    val = [
        (f"data/validation-00000-of-00001.parquet#{i:09d}", classes[i], image("validation", i))
        for i in range(3)
    ]
    assert contents(source.splits["val"], source.classes) == val


def test_labelled_test_rows_are_a_split_and_the_others_are_counted(tmp_path: Path) -> None:
    write_source(tmp_path)
    write_rows(tmp_path / "data/test-00000-of-00001.parquet", [-1, 2, -1, 0])
    source = open_source(tmp_path)
    found = contents(source.splits["test"], source.classes)
    assert [entry[1:] for entry in found] == [("cat", image("test", 1)), ("ant", image("test", 3))]
    assert source.splits["test"].ignored == 2


def test_files_may_lie_in_the_folder_itself(tmp_path: Path) -> None:
    write_rows(tmp_path / "train-0.parquet", [0, 1])
    assert list(open_source(tmp_path).splits["train"].names) == [
        b"train-0.parquet#000000000",
        b"train-0.parquet#000000001",
    ]


def test_a_row_without_bytes_is_an_empty_original(tmp_path: Path) -> None:
    from pyarrow import parquet

    images = pyarrow.array([None, {"bytes": None, "path": "x"}, {"bytes": b"x"}], IMAGE)
    table = pyarrow.table({"image": images, "label": pyarrow.array([0, 1, 1])})
    parquet.write_table(table, tmp_path / "train.parquet")
    source = open_source(tmp_path)
    found = contents(source.splits["train"], source.classes)
    assert [data for _, _, data in found] == [b"", b"", b"x"]


def test_a_file_without_rows_adds_nothing(tmp_path: Path) -> None:
    without = open_source(write_source(tmp_path / "a"))
    root = write_source(tmp_path / "b")
    write_rows(root / "data/train-more.parquet", [])
    found = open_source(root)
    listed = [contents(it.splits["train"], it.classes) for it in (found, without)]
    assert listed[0] == listed[1] and len(listed[0]) == 9


@pytest.mark.parametrize("name", ["train-00000-of-00002", "train-00001-of-00002"])
def test_a_file_that_its_split_lacks_is_named(tmp_path: Path, name: str) -> None:
    (write_source(tmp_path) / f"data/{name}.parquet").unlink()
    message = rf"data lacks 1 of the 2 files of train, first {name}\.parquet: download it"
    with pytest.raises(ValueError, match=message):
        open_source(tmp_path)


def test_files_of_which_one_tells_of_others_are_refused(tmp_path: Path) -> None:
    root = write_source(tmp_path)
    write_rows(root / "data/train-00293-of-00294-0a1b2c3d.parquet", [0])
    with pytest.raises(ValueError, match=r"lacks 293 of the 294 files of train, .*00000-of-"):
        open_source(tmp_path)


def test_files_without_the_columns_are_refused_by_name(tmp_path: Path) -> None:
    from pyarrow import parquet

    path = tmp_path / "train-0.parquet"
    parquet.write_table(pyarrow.table({"img": [b"x"], "label": [0]}), path)
    with pytest.raises(ValueError, match=r"train-0.parquet lacks the columns .*; it has: img"):
        open_source(tmp_path)


def test_rows_without_a_label_are_refused(tmp_path: Path) -> None:
    write_rows(tmp_path / "train-0.parquet", [0, None, 1])
    with pytest.raises(ValueError, match="train-0.parquet has 1 rows without a label"):
        open_source(tmp_path)


def test_labels_beyond_the_names_are_refused(tmp_path: Path) -> None:
    write_rows(tmp_path / "train-0.parquet", [0, 3])
    with pytest.raises(ValueError, match="train has label 3, the files name 3 classes"):
        open_source(tmp_path)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["0", "1"], "labels of type string; expected whole numbers"),
        ([0.0, 1.5], "labels of type double; expected whole numbers"),
        ([0, 2**40], "labels from 0 to 1099511627776; expected -1"),
        ([-2, 0], "labels from -2 to 0; expected -1"),
    ],
)
def test_labels_that_are_none_are_refused(
    tmp_path: Path, labels: list[Any], message: str
) -> None:
    from pyarrow import parquet

    images = pyarrow.array([{"bytes": b"x", "path": "x"}] * 2, IMAGE)
    table = pyarrow.table({"image": images, "label": labels})
    parquet.write_table(table, tmp_path / "train-0.parquet")
    with pytest.raises(ValueError, match=f"train-0.parquet has {message}"):
        open_source(tmp_path)


def test_what_a_file_manager_left_is_no_table(tmp_path: Path) -> None:
    write_rows(tmp_path / "train/0.parquet", [0, 1])
    (tmp_path / "train/._0.parquet").write_bytes(b"litter")
    assert len(open_source(tmp_path).splits["train"]) == 2


@pytest.mark.parametrize("codec", ["none", "snappy"])
def test_damage_of_values_is_one_error_that_names_the_file_or_other_values(
    tmp_path: Path, codec: str
) -> None:
    path = tmp_path / "train-0.parquet"
    write_rows(path, [0, 2, 1, 1, 0], names=None, compression=codec)
    data = path.read_bytes()
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")  # pyarrow's own to read
    rng = np.random.default_rng(6)
    refused = 0
    for position in range(4, footer, 4):
        damaged = bytearray(data)
        damaged[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            source = open_source(tmp_path)
        except ValueError as error:
            assert str(path) in str(error)
            refused += 1
        else:
            assert sum(len(listing) for listing in source.splits.values()) <= 5
    assert refused > 20


def test_a_damaged_footer_is_refused_or_read_and_never_ends_the_process(tmp_path: Path) -> None:
    path = tmp_path / "train-0.parquet"
    write_rows(path, [0, 2, 1, 1, 0], names=None)
    data = path.read_bytes()
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    rng = np.random.default_rng(8)
    refused = 0
    for position in range(footer, len(data), 11):
        damaged = bytearray(data)
        damaged[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            open_source(tmp_path)
        except ValueError as error:
            assert str(tmp_path) in str(error)
            refused += 1
    assert refused > 20


@pytest.mark.parametrize("number", [3, 5, 18, 63])
def test_a_codec_that_is_none_is_refused_and_pyarrow_is_not_asked(
    tmp_path: Path, number: int
) -> None:
    path = tmp_path / "train-0.parquet"
    write_rows(path, [0, 1, 1], names=None, compression="snappy")
    data = bytearray(path.read_bytes())
    length = int.from_bytes(data[-8:-4], "little")
    start = len(data) - 8 - length
    footer, _ = read_struct(bytes(data[start:-8]), 0)
    bytes_chunk = footer[4][0][1][0]
    assert bytes_chunk[3][3] == [b"image", b"bytes"] and bytes_chunk[3][4] == 1  # snappy
    path_end = start + data[start:].index(b"\x05image\x05bytes") + len(b"\x05image\x05bytes")
    assert data[path_end : path_end + 2] == b"\x15\x02"  # the next field, an integer: 1
    data[path_end + 1] = number << 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"{path} .* compressed by codec {number}; expected"):
        open_source(tmp_path)


def test_files_without_train_are_refused(tmp_path: Path) -> None:
    write_rows(tmp_path / "validation-0.parquet", [0, 1])
    with pytest.raises(ValueError, match=r"has no train-\*.parquet"):
        open_source(tmp_path)


def test_two_data_sets_in_one_folder_are_not_mixed(tmp_path: Path) -> None:
    write_rows(tmp_path / "default/train/0000.parquet", [0, 1])
    write_rows(tmp_path / "small/train/0000.parquet", [0, 1])
    with pytest.raises(ValueError, match=r"train files in .*/default/train and .*: name one data"):
        open_source(tmp_path)


@pytest.mark.parametrize("num_bytes", [1, 100, 10_000])
def test_a_file_cut_off_is_refused(tmp_path: Path, num_bytes: int) -> None:
    write_rows(tmp_path / "train-0.parquet", [0, 1] * 50)
    cut_file(tmp_path / "train-0.parquet", num_bytes)
    with pytest.raises(ValueError, match="train-0.parquet cannot be read as a parquet file"):
        open_source(tmp_path)


def test_without_pyarrow_the_message_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows(tmp_path / "train-0.parquet", [0, 1])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"pip install 'fullfeed\[parquet\]'"):
        open_source(tmp_path)


def test_a_file_that_vanishes_is_an_error_of_the_system(tmp_path: Path) -> None:
    write_rows(tmp_path / "train-0.parquet", [0, 1])
    listing = open_source(tmp_path).splits["train"]
    (tmp_path / "train-0.parquet").unlink()
    with pytest.raises(OSError, match="No such file .*train-0.parquet"):
        listing.places.read(0)


def test_a_file_cut_off_after_it_was_listed_is_an_error_of_the_system(tmp_path: Path) -> None:
    write_rows(tmp_path / "train-0.parquet", [0, 1])
    listing = open_source(tmp_path).splits["train"]
    os.truncate(tmp_path / "train-0.parquet", 10)
    with pytest.raises(OSError, match="train-0.parquet was cut off while it was read"):
        listing.places.read(1)


@pytest.mark.parametrize("options", [{"compression": "none"}, {"compression": "snappy"}])
def test_one_image_is_read_and_not_its_row_group(tmp_path: Path, options: dict[str, str]) -> None:
    from pyarrow import parquet

    rng = np.random.default_rng(0)
    photographs = [rng.bytes(100_000) for _ in range(50)]  # no more packs than a JPEG does
    images = pyarrow.array([{"bytes": data} for data in photographs], IMAGE)
    table = pyarrow.table({"image": images, "label": pyarrow.array([0, 1] * 25)})
    parquet.write_table(table, tmp_path / "train-0.parquet", row_group_size=50, **options)
    train = open_source(tmp_path).splits["train"]
    assert [train.places.read(i) for i in range(50)] == photographs
    assert isinstance(train.places, ParquetPlaces)
    assert train.places.num_bytes() == sum(map(len, photographs))
    assert train.places.spans["stored"].max() <= 100_000 + 2 * SNAPPY_BLOCK_BYTES


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("train-00000-of-00001.parquet", "validation-00000-of-00001.parquet"),
        ("data/train-00000-of-00001-0a1b2c3d.parquet", "data/val-00000-of-00001.parquet"),
        ("train/0000.parquet", "validation/0000.parquet"),
        ("default/train/0000.parquet", "default/val/0000.parquet"),
    ],
)
def test_the_layouts_of_the_hub_are_recognised(tmp_path: Path, train: str, val: str) -> None:
    write_rows(tmp_path / train, [0, 1])
    write_rows(tmp_path / val, [1])
    source = open_source(tmp_path)
    assert source.format == "parquet"
    assert {split: len(listing) for split, listing in source.splits.items()} == {
        "train": 2,
        "val": 1,
    }
    assert source.splits["train"].names[1] == f"{train}#000000001".encode()
