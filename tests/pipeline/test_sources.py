"""Originals are listed in one order, whatever the file system; no file is silently lost."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.originals import Source
from pipeline.sources import FORMATS, open_source
from tests.conftest import tar_bytes


def write(root: Path, *names: str | bytes) -> Path:
    for name in names:
        path = os.path.join(os.fsencode(root), os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(b"data of " + os.fsencode(name))
    return root


def contents(source: Source) -> dict[str, tuple[list[bytes], list[int], int]]:
    """What a source lists: names, labels and the count of what was passed over, by split."""
    return {
        split: (list(listing.names), listing.labels.tolist(), listing.ignored)
        for split, listing in source.splits.items()
    }


def test_names_are_sorted_bytewise_over_whole_paths(tmp_path: Path) -> None:
    names = ["b/1.jpg", "b/10.jpg", "b/2.jpg", "a-b/x.jpg", "a/x.jpg", "a/B.jpg", "a/é.jpg"]
    source = open_source(write(tmp_path, *(f"train/{name}" for name in names)))
    listing = source.splits["train"]
    assert list(listing.names) == sorted(os.fsencode(f"train/{name}") for name in names)
    assert listing.names[0] == b"train/a-b/x.jpg"  # "-" sorts before "/"
    assert source.classes == ("a", "a-b", "b")


def test_labels_are_the_places_of_the_class_folders(tmp_path: Path) -> None:
    write(tmp_path, "train/a/x", "train/a-b/x", "train/b/x", "val/b/x", "val/a-b/x")
    source = open_source(tmp_path)
    for listing in source.splits.values():
        folders = [name.split(b"/")[1].decode() for name in listing.names]
        assert [source.classes[label] for label in listing.labels] == folders


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("split", ["train/", ""])
def test_the_order_of_the_file_system_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, split: str
) -> None:
    rng = np.random.default_rng(seed)
    write(tmp_path, *(f"{split}{c}/{d}/{i}.jpg" for c in "cab" for d in "yx" for i in range(3)))
    expected = open_source(tmp_path)
    scandir = os.scandir

    class Shuffled:
        """os.scandir in any order."""

        def __init__(self, path: Any) -> None:
            with scandir(path) as entries:
                found = sorted(entries, key=lambda e: os.fsencode(e.name))
            self._entries = iter([found[i] for i in rng.permutation(len(found))])

        def __enter__(self) -> "Shuffled":
            return self

        def __exit__(self, *_: object) -> None:
            self.close()

        def __iter__(self) -> "Shuffled":
            return self

        def __next__(self) -> "os.DirEntry[Any]":
            return next(self._entries)

        def close(self) -> None:
            pass

    monkeypatch.setattr(os, "scandir", Shuffled)
    assert contents(open_source(tmp_path)) == contents(expected)


def test_nested_folders_belong_to_their_class(tmp_path: Path) -> None:
    source = open_source(write(tmp_path, "train/a/2019/may/1.jpg", "train/a/0.jpg"))
    listing = source.splits["train"]
    assert list(listing.names) == [b"train/a/0.jpg", b"train/a/2019/may/1.jpg"]
    assert listing.labels.tolist() == [0, 0]


def test_litter_is_ignored_and_counted(tmp_path: Path) -> None:
    litter = ["Thumbs.db", "thumbs.db", ".DS_Store", "desktop.ini", "._1.jpg"]
    write(tmp_path, "train/a/1.jpg", *(f"train/a/{name}" for name in litter))
    listing = open_source(tmp_path).splits["train"]
    assert list(listing.names) == [b"train/a/1.jpg"] and listing.ignored == len(litter)


@pytest.mark.parametrize(
    "name", [b"with space.jpg", b"new\nline.jpg", b"\xff\xfe not utf-8.jpg", "größe.jpg".encode()]
)
def test_unusual_names_are_listed_and_read(tmp_path: Path, name: bytes) -> None:
    write(tmp_path, b"train/a/" + name)
    listing = open_source(tmp_path).splits["train"]
    assert list(listing.names) == [b"train/a/" + name]
    assert listing.places.read(0) == b"data of train/a/" + name


def test_broken_symbolic_links_are_listed_as_originals(tmp_path: Path) -> None:
    write(tmp_path, "train/a/1.jpg")
    (tmp_path / "train/a/2.jpg").symlink_to(tmp_path / "gone.jpg")
    names = list(open_source(tmp_path).splits["train"].names)
    assert names == [b"train/a/1.jpg", b"train/a/2.jpg"]


def test_a_class_folder_may_be_a_symbolic_link(tmp_path: Path) -> None:
    write(tmp_path, "elsewhere/1.jpg", "source/train/a/1.jpg")
    (tmp_path / "source/train/b").symlink_to(tmp_path / "elsewhere")
    source = open_source(tmp_path / "source")
    assert source.classes == ("a", "b") and len(source.splits["train"].names) == 2


def test_val_is_optional_and_an_empty_class_of_train_is_no_class(tmp_path: Path) -> None:
    (write(tmp_path, "train/b/1.jpg") / "train/a").mkdir()
    source = open_source(tmp_path)
    assert list(source.splits) == ["train"] and source.classes == ("b",)
    assert source.empty == ("a",)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("train/a/1.jpg", "validation/a/1.jpg"), "/validation would be left out: rename it to v"),
        (("train/a/1.jpg", "Val/a/1.jpg"), "/Val would be left out: rename it to val"),
        (("Train/a/1.jpg", "Val/a/1.jpg"), "/Train would be left out: rename it to train"),
        (("Train/a/1.jpg", "test/a/1.jpg"), "/Train would be left out: rename it to train"),
    ],
)
def test_a_split_under_another_name_is_not_silently_left_out(
    tmp_path: Path, names: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        open_source(write(tmp_path, *names))


def test_a_class_may_be_called_like_a_split(tmp_path: Path) -> None:
    source = open_source(write(tmp_path, "Train/1.jpg", "plane/1.jpg"))
    assert source.format == "tree" and source.classes == ("Train", "plane")


def test_a_class_that_only_val_has_is_refused_by_name(tmp_path: Path) -> None:
    (write(tmp_path, "train/a/1.jpg", "val/a/1.jpg", "val/zebra/1.jpg") / "val/empty").mkdir()
    with pytest.raises(ValueError, match=r"val has 1 classes that train has no images of: zebra;"):
        open_source(tmp_path)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), r"holds no images that .*; expected train/<class>/\* .*found: nothing"),
        (("images/1.jpg",), r"holds no images that can be prepared; .*found: images"),
        (("val/a/1.jpg", "val/b/1.jpg"), r"holds no images that can be .*found: val"),
        (("test/a/1.jpg", "val/b/1.jpg"), r"holds no images that .*found: test, val"),
        (("train/.keep",), r"train has no files in class folders; expected train/<class>/\*"),
        (("train/1.jpg",), r"train has no files in class folders; expected train/<class>/\*"),
        (("train/a/.keep",), r"train has no files in class folders; expected train/<class>/\*"),
    ],
)
def test_a_folder_that_is_no_source_is_refused(
    tmp_path: Path, names: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        open_source(write(tmp_path, *names))


def test_an_unknown_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no .*/none; expected a folder of images"):
        open_source(tmp_path / "none")
    with pytest.raises(ValueError, match=r".*/file is a file; expected a folder of images"):
        open_source(write(tmp_path, "file") / "file")


def test_a_form_can_be_forced_on_what_would_be_taken_for_another(tmp_path: Path) -> None:
    write(tmp_path, "train/a/1.jpg", "train/b/2.jpg")
    assert open_source(tmp_path).format == open_source(tmp_path, "folders").format == "folders"
    tree = open_source(tmp_path, "tree")
    assert tree.classes == ("train",) and len(tree.splits["train"]) == 2
    (tmp_path / "a.tar").write_bytes(tar_bytes({"1.jpg": b"one"}))
    tars = open_source(tmp_path, "class-tars")
    assert tars.classes == ("a",) and list(tars.splits["train"].names) == [b"train/a/1.jpg"]


@pytest.mark.parametrize("tar", ["notes.tar", "notes.tar.gz"])
def test_a_tar_beside_class_folders_is_refused_naming_both(tmp_path: Path, tar: str) -> None:
    write(tmp_path, "ant/1.jpg", "bee/x/2.jpg")
    assert open_source(tmp_path).format == "tree"
    write(tmp_path, tar)
    with pytest.raises(ValueError, match=rf"an archive, {tar}, and a folder .*, ant/: .*--format"):
        open_source(tmp_path)
    assert open_source(tmp_path, "tree").classes == ("ant", "bee")


def test_class_tars_may_have_shards_and_litter_beside_them(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_bytes({"1.jpg": b"one"}))
    write(tmp_path, ".trash/1.jpg", "empty/.keep", "shards/train-000000.receipt.json")
    write(tmp_path, "shards/train-000001.tar.0123456789abcdef.tmp", "shards/dataset.json")
    assert open_source(tmp_path).classes == ("a",)


@pytest.mark.parametrize("form", sorted(FORMATS.keys() - {"folders", "tree"}))
def test_a_forced_form_that_is_not_there_is_refused(tmp_path: Path, form: str) -> None:
    write(tmp_path, "train/a/1.jpg")
    with pytest.raises(ValueError, match=str(tmp_path)):
        open_source(tmp_path, form)


def test_image_folders_without_train_are_refused_where_they_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no folder .*/train; expected train/<class>"):
        open_source(write(tmp_path, "val/a/1.jpg"), "folders")


def test_images_are_looked_for_before_archives_and_tables_beside_them(tmp_path: Path) -> None:
    write(tmp_path, "train/a/1.jpg", "notes.tar", "data/x.parquet")
    assert open_source(tmp_path).format == "folders"
