"""Folders of any shape: what is no photograph is counted, what cannot be read is quarantined."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from pipeline.sources import open_source
from tests.conftest import contents, write_source
from tests.pipeline.test_sources import write


def tree_of(root: Path, sizes: dict[str, int]) -> Path:
    return write(root, *(f"{name}/{i:03d}.jpg" for name, n in sizes.items() for i in range(n)))


SIZES = {"ant": 40, "bee": 10, "cat": 1, "dog": 25}


def names_of(root: Path, split: str, fraction: float) -> set[bytes]:
    return set(open_source(root, val_fraction=fraction).splits[split].names)


def test_a_tree_of_classes_is_train_and_its_names_begin_with_the_class(tmp_path: Path) -> None:
    source = open_source(write(tmp_path, "b/2.jpg", "a-b/1.jpg", "a/x/3.jpg", ".cache/4.jpg"))
    assert source.format == "tree" and list(source.splits) == ["train"]
    assert contents(source.splits["train"], source.classes) == [
        ("a-b/1.jpg", "a-b", b"data of a-b/1.jpg"),
        ("a/x/3.jpg", "a", b"data of a/x/3.jpg"),
        ("b/2.jpg", "b", b"data of b/2.jpg"),
    ]
    assert source.splits["train"].ignored == 1


def test_a_tree_may_be_named_from_within(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree_of(tmp_path, SIZES)
    expected = contents(open_source(tmp_path).splits["train"], sorted(SIZES))
    monkeypatch.chdir(tmp_path)
    for name in (".", "", "ant/..", f"../{tmp_path.name}"):
        listing = open_source(Path(name)).splits["train"]
        assert contents(listing, sorted(SIZES)) == expected


@pytest.mark.parametrize("fraction", [0.04, 0.1, 0.34, 0.5])
def test_the_fraction_is_taken_from_each_class_and_nothing_is_lost(
    tmp_path: Path, fraction: float
) -> None:
    whole = open_source(tree_of(tmp_path, SIZES))
    source = open_source(tmp_path, val_fraction=fraction)
    train, val = source.splits["train"], source.splits["val"]
    assert source.classes == whole.classes
    sizes = np.bincount(val.labels, minlength=4).tolist()
    assert sizes == [round(fraction * n) for n in SIZES.values()]
    both = contents(train, source.classes) + contents(val, source.classes)
    assert sorted(both) == contents(whole.splits["train"], whole.classes)
    for listing in (train, val):
        assert list(listing.names) == sorted(listing.names)


def test_val_is_those_of_the_smallest_hash_of_the_name(tmp_path: Path) -> None:
    found = names_of(tree_of(tmp_path, SIZES), "val", 0.2)
    expected: set[bytes] = set()
    for name, count in SIZES.items():
        names = [f"{name}/{i:03d}.jpg".encode() for i in range(count)]
        names.sort(key=lambda name: hashlib.sha256(name).digest())
        expected |= set(names[: round(0.2 * count)])
    assert found == expected


def test_other_classes_and_contents_do_not_change_what_is_val(tmp_path: Path) -> None:
    alone = names_of(tree_of(tmp_path / "one", SIZES), "val", 0.2)
    tree_of(tmp_path / "two", {**SIZES, "aaa": 30, "zzz": 30})
    for path in (tmp_path / "two" / "ant").iterdir():
        path.write_bytes(b"other bytes")
    more = names_of(tmp_path / "two", "val", 0.2)
    assert {name for name in more if name[:3] not in (b"aaa", b"zzz")} == alone


def test_a_new_image_moves_at_most_one_other_image(tmp_path: Path) -> None:
    before = names_of(tree_of(tmp_path, SIZES), "val", 0.2)
    write(tmp_path, "ant/new.jpg")
    after = names_of(tmp_path, "val", 0.2)
    assert len(before ^ after) <= 2 and before & after


def test_image_folders_without_val_can_be_split_and_keep_the_count_of_litter(
    tmp_path: Path,
) -> None:
    tree_of(tmp_path / "train", SIZES)
    write(tmp_path, "train/ant/.DS_Store")
    source = open_source(tmp_path, val_fraction=0.5)
    assert source.format == "folders" and source.splits["train"].ignored == 1
    assert len(source.splits["train"]) == 20 + 5 + 1 + 13  # round() rounds 0.5 and 12.5 down


@pytest.mark.parametrize(
    ("fraction", "message"),
    [
        (0.0, r"--val-fraction must be over 0 and under 1, not 0.0"),
        (1.0, r"--val-fraction must be over 0 and under 1, not 1.0"),
        (-0.1, r"--val-fraction must be over 0"),
        (float("nan"), r"--val-fraction must be over 0"),
        (0.001, r"--val-fraction 0.001 takes no image of any class: too small"),
        (0.6, r"class cat has 1 images: none would be left to train on"),
    ],
)
def test_impossible_fractions_are_refused(tmp_path: Path, fraction: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_source(tree_of(tmp_path, SIZES), val_fraction=fraction)


def test_a_source_with_val_has_no_need_of_a_fraction(tmp_path: Path) -> None:
    write(tmp_path, "train/a/1.jpg", "train/a/2.jpg", "val/a/1.jpg")
    with pytest.raises(ValueError, match="has a val split of its own: leave --val-fraction out"):
        open_source(tmp_path, val_fraction=0.5)


def test_what_lies_beside_class_folders_is_counted(tmp_path: Path) -> None:
    write(tmp_path, "train/a/1.jpg", "train/README", "train/2.jpg", "train/.hidden/3.jpg")
    write(tmp_path, "val/a/1.jpg", "val/.DS_Store")
    source = open_source(tmp_path)
    assert [len(listing) for listing in source.splits.values()] == [1, 1]
    assert [listing.ignored for listing in source.splits.values()] == [3, 1]
    named = [listing.strays for listing in source.splits.values()]
    assert named == [("train/2.jpg", "train/README"), ()]  # what is hidden is litter


def test_what_lies_beside_the_classes_of_a_tree_stays_named_where_val_is_set_apart(
    tmp_path: Path,
) -> None:
    write(tree_of(tmp_path, SIZES), "stray.jpg")
    splits = open_source(tmp_path, val_fraction=0.5).splits
    assert {name: listing.strays for name, listing in splits.items()} == {
        "train": ("stray.jpg",), "val": ()
    }  # fmt: skip


@pytest.mark.parametrize("name", ["train/b", "val/b", "val"])
def test_a_class_or_split_that_is_a_broken_link_is_refused_by_name(
    tmp_path: Path, name: str
) -> None:
    write(tmp_path, "train/a/1.jpg", "train/c/1.jpg")
    if name != "val":
        write(tmp_path, "val/a/1.jpg")
    (tmp_path / name).symlink_to("unmounted/b")
    expected = rf"{tmp_path / name} is a broken symbolic link, to unmounted/b: .*mount"
    with pytest.raises(ValueError, match=expected):
        open_source(tmp_path)


def test_a_class_of_a_tree_that_is_a_broken_link_is_refused_by_name(tmp_path: Path) -> None:
    (tree_of(tmp_path, SIZES) / "zebra").symlink_to("unmounted")
    with pytest.raises(ValueError, match=r"/zebra is a broken symbolic link, to unmounted: "):
        open_source(tmp_path)


def test_hidden_folders_within_classes_are_passed_over_and_counted(tmp_path: Path) -> None:
    write(tmp_path, "train/a/1.jpg", "train/a/.thumbnails/1.jpg", "train/a/x/.git/2.jpg")
    listing = open_source(tmp_path).splits["train"]
    assert list(listing.names) == [b"train/a/1.jpg"] and listing.ignored == 2


def test_flat_validation_images_are_not_silently_left_out(tmp_path: Path) -> None:
    write(tmp_path, "train/a/1.jpg", "val/ILSVRC2012_val_00000001.JPEG", "val/2.JPEG")
    with pytest.raises(ValueError, match=r"val has 2 files and no class folders, so their"):
        open_source(tmp_path)


def test_classes_whose_names_differ_in_case_only_are_two(tmp_path: Path) -> None:
    write(tmp_path, "train/Bat/1.jpg", "train/bat/1.jpg")
    if len(os.listdir(tmp_path / "train")) == 1:
        pytest.skip("this file system does not tell upper from lower case")
    source = open_source(tmp_path)
    assert source.classes == ("Bat", "bat")
    found = contents(source.splits["train"], source.classes)
    assert [(name, label) for name, label, _ in found] == [
        ("train/Bat/1.jpg", "Bat"),
        ("train/bat/1.jpg", "bat"),
    ]


def test_links_to_folders_are_listed_and_not_followed(tmp_path: Path) -> None:
    write(tmp_path, "train/a/1.jpg")
    (tmp_path / "train/a/circle").symlink_to(tmp_path / "train", target_is_directory=True)
    listing = open_source(tmp_path).splits["train"]
    assert list(listing.names) == [b"train/a/1.jpg", b"train/a/circle"]
    num_open = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    with pytest.raises(IsADirectoryError):
        listing.places.read(1)
    if num_open:
        assert len(os.listdir("/proc/self/fd")) == num_open


def test_a_folder_that_cannot_be_listed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "train/a/1.jpg", "train/b/1.jpg")
    scandir = os.scandir

    def refuse(path: bytes) -> object:
        if os.path.basename(os.fsencode(path)) == b"b":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ValueError, match=r"train/b cannot be listed: Permission denied"):
        open_source(tmp_path)


def test_setting_val_apart_keeps_a_test_split(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", train_per_class=4, val_per_class=2)
    (source / "val").rename(source / "test")
    found = open_source(source, val_fraction=0.5).splits
    assert {name: len(listing) for name, listing in found.items()} == {
        "train": 6,
        "val": 6,
        "test": 6,
    }


def test_a_flat_test_folder_is_left_out_and_counted(tmp_path: Path) -> None:
    write(tmp_path, "train/a/1.jpg", "test/ILSVRC2012_test_00000001.JPEG", "test/2.JPEG")
    source = open_source(tmp_path)
    assert list(source.splits) == ["train"] and source.unlabelled == {"test": 2}
    write(tmp_path, "train/a/2.jpg")
    assert open_source(tmp_path, val_fraction=0.5).unlabelled == {"test": 2}


def test_a_test_folder_of_classes_is_a_split(tmp_path: Path) -> None:
    source = open_source(write(tmp_path, "train/a/1.jpg", "test/a/1.jpg", "test/stray.jpg"))
    assert list(source.splits) == ["train", "test"] and source.unlabelled == {}
    assert source.splits["test"].ignored == 1
