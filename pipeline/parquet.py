"""Hugging Face parquet files as sources: image.bytes and label, each image read by itself."""

import json
import mmap
import os
import re
import struct
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.cores import available_cores
from pipeline.originals import (
    Ids,
    Listing,
    Names,
    Source,
    litter,
    positions_in_changed,
    read_span,
    sorted_listing,
)
from pipeline.pages import Chunk, Spans, unpack, value_spans
from pipeline.thrift import read_struct

SPLIT_NAMES = {"train": "train", "validation": "val", "val": "val", "test": "test"}
MAX_LISTERS = 4  # files listed at once; each may hold a row group unpacked, 110 MB at 1,000 images
MAX_CLASSES = 1 << 20  # a damaged label can be any number, and each up to it would get a name
CODECS = {  # by their number in parquet.thrift, as pyarrow.decompress names them
    0: None, 1: "snappy", 2: "gzip", 4: "brotli", 6: "zstd",
}  # fmt: skip
# A file that is one of so many; older ones end in a hash.
PART = re.compile(r"(.*)-(\d{1,6})-of-(\d{1,6})(?:-[0-9a-f]+)?\.parquet")
TAIL_BYTES = 8  # of a file: the length of its footer, 4 bytes, and "PAR1"


@dataclass(frozen=True)
class ParquetPlaces:
    """Values of parquet files' columns, where their bytes lie."""

    files: tuple[Path, ...]
    file: NDArray[np.uint32]  # (original,), position in `files`
    spans: Spans  # (original,)
    codecs: tuple[str | None, ...]  # of each file

    def take(self, ids: Ids, names: Names) -> "ParquetPlaces":
        """The places at these positions."""
        return ParquetPlaces(self.files, self.file[ids], self.spans[ids], self.codecs)

    def num_bytes(self) -> int | None:
        """The sum of the images' sizes."""
        return int(self.spans["size"].sum())

    def changed_since(self, time_ns: int) -> list[int]:
        """See Places: all that lie in a file that was changed."""
        return positions_in_changed(self.files, self.file, time_ns)

    def read(self, position: int) -> bytes:
        """The bytes of one image; OSError where the file is not what it was when it was listed."""
        number, span = int(self.file[position]), self.spans[position]
        path = self.files[number]
        stored = read_span(path, int(span["offset"]), int(span["stored"]))
        try:
            return unpack(stored, span, self.codecs[number])
        except ValueError as error:
            raise OSError(f"{path}: {error}; start again when it is whole") from error


def open_parquet(root: Path) -> Source:
    """The parquet files below `root`, in the forms that Hugging Face gives them.

    The split is told by a file's name (train-00000-of-00257.parquet) or else by the folder it lies
    in (default/train/0000.parquet). Classes are the names in the files' own description where
    there are any, else the numbers. Images without a label (-1, as the test images of ImageNet)
    are left out and counted. ValueError where columns are missing, or files of a split (by their
    names, number-of-count).
    """
    splits = _files_by_split(root)
    found = {split: _read_rows(root, paths) for split, paths in splits.items()}
    classes = _class_names(splits["train"][0])
    if classes is None:
        highest = max(int(labels.max(initial=0)) for _, labels, _ in found.values())
        classes = tuple(str(label) for label in range(highest + 1))
    listings, unlabelled = {}, {}
    for split, (names, labels, places) in found.items():
        if (labels >= 0).any():
            listing = sorted_listing(names, labels.tolist(), places)
            labelled = np.flatnonzero(listing.labels >= 0)
            ignored = len(listing) - len(labelled)
            listing = replace(listing.take(labelled), ignored=ignored)
            listings[split] = _checked(listing, classes, split)
        else:
            unlabelled[split] = len(labels)
    return Source(
        root=root, format="parquet", classes=classes, splits=listings, unlabelled=unlabelled
    )


def parquet_split(root: Path, path: Path) -> str | None:
    """The split that a parquet file below `root` belongs to, by its name or its folders'.

    None where it belongs to none, or is a file manager's (._train-0.parquet).
    """
    if litter(os.fsencode(path.name)):
        return None
    stem = path.name.split("-")[0].split(".")[0]
    folders = reversed(path.relative_to(root).parent.parts)
    return next((SPLIT_NAMES[name] for name in (stem, *folders) if name in SPLIT_NAMES), None)


def _files_by_split(root: Path) -> dict[str, list[Path]]:
    splits: dict[str, list[Path]] = {}
    for path in sorted(root.rglob("*.parquet")):
        split = parquet_split(root, path)
        if split is not None:
            splits.setdefault(split, []).append(path)
    if "train" not in splits:
        raise ValueError(
            f"{root} has no train-*.parquet and no train/*.parquet; expected train-* and "
            "validation-* files, or train/ and validation/ folders of them"
        )
    folders = sorted({str(path.parent) for path in splits["train"]})
    if len(folders) > 1:
        raise ValueError(
            f"{root} has train files in {folders[0]} and {folders[1]}: name one data set"
        )
    for paths in splits.values():
        _refuse_missing(paths)
    return splits


def _refuse_missing(paths: Sequence[Path]) -> None:
    """ValueError where names such as train-00000-of-00257.parquet tell of files that lack."""
    numbers: dict[tuple[Path, str, str], set[int]] = {}
    for path in paths:
        if part := PART.fullmatch(path.name):
            stem, number, count = part.groups()
            numbers.setdefault((path.parent, stem, count), set()).add(int(number))
    for (folder, stem, count), there in numbers.items():
        missing = sorted(set(range(int(count))) - there)
        if missing:
            raise ValueError(
                f"{folder} lacks {len(missing):,} of the {int(count):,} files of {stem}, first "
                f"{stem}-{missing[0]:0{len(count)}d}-of-{count}.parquet: download it, or rename "
                "the files if those there are to be prepared alone"
            )


def _checked(listing: Listing, classes: tuple[str, ...], split: str) -> Listing:
    highest = int(listing.labels.max())
    if highest >= len(classes):
        raise ValueError(f"{split} has label {highest}, the files name {len(classes)} classes")
    return listing


def _read_rows(
    root: Path, paths: Sequence[Path]
) -> tuple[list[bytes], NDArray[np.int64], ParquetPlaces]:
    """Names, labels and places of all rows of these files."""
    with ThreadPoolExecutor(min(available_cores(), MAX_LISTERS)) as pool:  # they free the GIL
        rows = list(pool.map(_rows_of_file, paths))
    names = [
        f"{path.relative_to(root).as_posix()}#{row:09d}".encode()
        for path, (labels, _, _) in zip(paths, rows, strict=True)
        for row in range(len(labels))
    ]
    counts = [len(labels) for labels, _, _ in rows]
    places = ParquetPlaces(
        files=tuple(paths),
        file=np.repeat(np.arange(len(paths), dtype=np.uint32), counts),
        spans=np.concatenate([spans for _, spans, _ in rows]),
        codecs=tuple(codec for _, _, codec in rows),
    )
    return names, np.concatenate([labels for labels, _, _ in rows]), places


def _rows_of_file(path: Path) -> tuple[NDArray[np.int64], Spans, str | None]:
    """Labels, places and codec of a file's images.

    Where it is compressed, all of the images are read for this; else little but their lengths.
    """
    with _open(path) as file:
        with _damage_of(path):
            columns = {file.schema.column(i).path: i for i in range(len(file.schema))}
        if not {"image.bytes", "label"} <= columns.keys():
            shown = ", ".join(sorted(columns)[:8])
            raise ValueError(f"{path} lacks the columns image.bytes and label; it has: {shown}")
        with _damage_of(path):
            column = file.read(columns=["label"]).column("label")
        if column.null_count:
            raise ValueError(f"{path} has {column.null_count} rows without a label")
        labels = column.to_numpy()
        if labels.dtype.kind not in "biu":
            raise ValueError(f"{path} has labels of type {column.type}; expected whole numbers")
        if len(labels) and not -1 <= labels.min() <= labels.max() < MAX_CLASSES:
            raise ValueError(
                f"{path} has labels from {labels.min()} to {labels.max()}; expected -1 (none) or "
                f"more, under {MAX_CLASSES:,}"
            )
        with open(path, "rb") as raw, _damage_of(path):
            # Not closed but dropped: an error's traceback may still hold views of it.
            data = mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ)
            spans, codec = _image_spans(file, columns["image.bytes"], memoryview(data))
            if len(spans) != len(labels):
                raise ValueError(f"it has {len(spans)} images and {len(labels)} labels")
    return labels.astype(np.int64), spans, codec


def _image_spans(file: Any, column: int, data: memoryview) -> tuple[Spans, str | None]:
    """Where the images of an opened file, `data`, lie, and how they are compressed."""
    level = file.schema.column(column).max_definition_level
    groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
    codec = _codec(data, column)
    found = [value_spans(Chunk(memoryview(b""), 0, None, 0, 0))]
    for group in groups:
        if group.num_rows == 0:  # of an empty table: it has no page
            continue
        chunk = group.column(column)
        start = chunk.data_page_offset
        if chunk.has_dictionary_page:
            start = min(start, chunk.dictionary_page_offset)
        part = data[start : start + chunk.total_compressed_size]
        found.append(value_spans(Chunk(part, start, codec, group.num_rows, level)))
    return np.concatenate(found), codec


def _codec(data: memoryview, column: int) -> str | None:
    """How a column of the file `data` is compressed.

    Read from the footer itself: asked for a codec that it does not know, as damage may name,
    pyarrow ends the process. Fields by their numbers in parquet.thrift.
    """
    length = int.from_bytes(data[-TAIL_BYTES:][:4], "little")
    try:
        footer, _ = read_struct(bytes(data[-length - TAIL_BYTES : -TAIL_BYTES]), 0)
        chunks = [row_group[1][column] for row_group in footer[4]]
        numbers = {int(chunk[3][4]) for chunk in chunks} or {0}
    except (LookupError, TypeError, RecursionError, struct.error) as error:
        raise ValueError(f"its footer is damaged ({error!r})") from error
    if len(numbers) > 1 or not numbers <= CODECS.keys():
        shown = ", ".join(map(str, sorted(numbers)))
        names = ", ".join(name or "none" for name in CODECS.values())
        raise ValueError(
            f"it is compressed by codec {shown}; expected one of {names}: write it anew with that"
        )
    return CODECS[numbers.pop()]


def _class_names(path: Path) -> tuple[str, ...] | None:
    """The names in the "huggingface" entry of the file's metadata, if it has one."""
    with _open(path) as file, _damage_of(path):
        metadata = file.schema_arrow.metadata or {}
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        return tuple(str(name) for name in features["label"]["names"])
    except (KeyError, TypeError, ValueError, RecursionError):
        return None


def _open(path: Path) -> Any:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise ValueError("parquet files need pyarrow: pip install 'fullfeed[parquet]'") from error
    with _damage_of(path):
        return parquet.ParquetFile(path)


@contextmanager
def _damage_of(path: Path) -> Iterator[None]:
    """Whatever pyarrow raises for a damaged file, as a ValueError that names it."""
    import pyarrow

    try:
        yield
    except (OSError, ValueError, OverflowError, pyarrow.ArrowException) as error:
        raise ValueError(f"{path} cannot be read as a parquet file: {error}") from error
