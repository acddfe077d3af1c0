"""Names are packed without loss; originals are read from where they lie."""

import errno
import hashlib
import os
import pickle
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.originals import FilePlaces, Listing, Names, litter, sorted_listing

NAMES = st.lists(st.binary(max_size=12))


@given(NAMES)
def test_names_come_back_as_they_were_packed(names: list[bytes]) -> None:
    packed = Names.pack(names)
    assert len(packed) == len(names) and list(packed) == names
    assert [packed[i] for i in range(-len(names), 0)] == names
    for beyond in (len(names), -len(names) - 1):
        with pytest.raises(IndexError):
            packed[beyond]


@given(NAMES.filter(bool), st.data())
def test_taking_names_is_indexing(names: list[bytes], data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, len(names) - 1)))
    taken = Names.pack(names).take(np.array(ids, np.int64))
    assert list(taken) == [names[i] for i in ids]


@given(st.lists(st.tuples(st.binary(max_size=6), st.integers(0, 9))))
def test_a_listing_is_sorted_bytewise_with_labels_and_places(
    rows: list[tuple[bytes, int]],
) -> None:
    names = Names.pack(name for name, _ in rows)
    places = FilePlaces(Path("nowhere"), names)
    labels = [label for _, label in rows]
    listing = sorted_listing([name for name, _ in rows], labels, places, ignored=3)
    found = list(zip(listing.names, listing.labels.tolist(), strict=True))
    assert found == sorted(rows, key=lambda row: row[0]) and listing.ignored == 3
    assert isinstance(listing.places, FilePlaces)
    assert list(listing.places.names) == list(listing.names)


@pytest.mark.parametrize(
    ("name", "is_litter"),
    [
        (b"a/.DS_Store", True), (b"a/._1.jpg", True), (b"THUMBS.DB", True),
        (b"a/Desktop.ini", True), (b".a/1.jpg", False), (b"a/thumbs.db.jpg", False),
        (b"a/1.jpg", False), (b"a/x.DS_Store", False),
    ],
)  # fmt: skip
def test_litter_is_known_by_its_last_name(name: bytes, is_litter: bool) -> None:
    assert litter(name) == is_litter


def listing_of(root: Path, *names: bytes) -> Listing:
    packed = Names.pack(names)
    labels = np.zeros(len(names), np.int32)
    return Listing(names=packed, labels=labels, places=FilePlaces(root, packed))


def test_a_pipe_is_no_original_and_nobody_waits_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(OSError, match="not a regular file") as caught:
        listing_of(tmp_path, b"pipe.jpg").places.read(0)
    assert caught.value.errno == errno.EINVAL


def test_a_part_of_a_listing_reads_the_same_in_another_process(tmp_path: Path) -> None:
    names = [b"%d.jpg" % i for i in range(5)]
    for name in names:
        (tmp_path / name.decode()).write_bytes(b"data of " + name)
    listing = listing_of(tmp_path, *names).take(np.array([3, 1], np.int64))
    again: Listing = pickle.loads(pickle.dumps(listing))
    assert [again.places.read(i) for i in range(2)] == [b"data of 3.jpg", b"data of 1.jpg"]


def test_a_part_carries_only_its_own_names(tmp_path: Path) -> None:
    whole = listing_of(tmp_path, *(b"%099d" % i for i in range(1000)))
    part = whole.take(np.arange(10))
    assert len(pickle.dumps(part)) < len(pickle.dumps(whole)) / 20


def test_the_checksums_of_a_file_take_little_memory(tmp_path: Path) -> None:
    data = np.random.default_rng(0).bytes(9_000_001)
    (tmp_path / "film").write_bytes(data)
    places = FilePlaces(tmp_path, Names.pack([b"film"]))
    tracemalloc.start()
    found = places.checksums(0)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 4_000_000
    assert (found.num_bytes, found.crc32) == (len(data), zlib.crc32(data))
    assert found.sha256 == hashlib.sha256(data).hexdigest()
