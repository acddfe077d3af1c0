"""Hugging Face parquet files as sources: image.bytes and label, read a row group at a time."""

import functools
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.originals import Ids, Listing, Names, Source, sorted_listing

SPLIT_PREFIXES = {"train": "train", "validation": "val", "val": "val", "test": "test"}
CACHED_GROUPS = 4  # row groups a process keeps; Hugging Face writes 100 images into each


@dataclass(frozen=True)
class ParquetPlaces:
    """Rows of parquet files, by file and row number."""

    files: tuple[Path, ...]
    file: NDArray[np.uint32]  # (original,), position in `files`
    row: NDArray[np.uint32]  # (original,), row within the file

    def take(self, ids: Ids, names: Names) -> "ParquetPlaces":
        """The places at these positions."""
        return ParquetPlaces(self.files, self.file[ids], self.row[ids])

    def num_bytes(self) -> int | None:
        """None: only reading would tell."""
        return None

    def read(self, position: int) -> bytes:
        """The bytes of one image; OSError where the file cannot be read any more."""
        path, row = self.files[int(self.file[position])], int(self.row[position])
        try:
            starts = _group_starts(path)
            group = int(np.searchsorted(starts, row, "right")) - 1
            data = _images_of_group(path, group)[row - int(starts[group])]
        except ValueError as error:  # it was a sound file when it was listed
            raise OSError(f"{error}; start again when it is whole") from error
        return b"" if data is None else data


def open_parquet(root: Path) -> Source:
    """The parquet files below `root`: train-*.parquet, validation-*.parquet, test-*.parquet.

    Classes are the names in the files' own description where there are any, else the numbers.
    Test images without labels (-1) are left out. ValueError where columns are missing.
    """
    splits: dict[str, list[Path]] = {}
    for path in sorted(root.rglob("*.parquet")):
        split = SPLIT_PREFIXES.get(path.name.split("-")[0].split(".")[0])
        if split is not None:
            splits.setdefault(split, []).append(path)
    if "train" not in splits:
        raise ValueError(f"{root} has no train-*.parquet; expected train-* and validation-* files")
    found = {split: _read_labels(root, paths) for split, paths in splits.items()}
    classes = _class_names(splits["train"][0])
    if classes is None:
        highest = max(int(labels.max(initial=0)) for _, labels, _ in found.values())
        classes = tuple(str(label) for label in range(highest + 1))
    listings = {}
    for split, (names, labels, places) in found.items():
        if (labels >= 0).any():
            listing = sorted_listing(names, labels.tolist(), places)
            labelled = np.flatnonzero(listing.labels >= 0)
            ignored = len(listing) - len(labelled)
            listing = replace(listing.take(labelled), ignored=ignored)
            listings[split] = _checked(listing, classes, split)
    return Source(root=root, format="parquet", classes=classes, splits=listings)


def _checked(listing: Listing, classes: tuple[str, ...], split: str) -> Listing:
    highest = int(listing.labels.max())
    if highest >= len(classes):
        raise ValueError(f"{split} has label {highest}, the files name {len(classes)} classes")
    return listing


def _read_labels(
    root: Path, paths: list[Path]
) -> tuple[list[bytes], NDArray[np.int64], ParquetPlaces]:
    names: list[bytes] = []
    labels, files, rows = [], [], []
    for number, path in enumerate(paths):
        found = _labels(path)
        relative = path.relative_to(root).as_posix()
        names += [f"{relative}#{row:09d}".encode() for row in range(len(found))]
        labels.append(found)
        files.append(np.full(len(found), number, np.uint32))
        rows.append(np.arange(len(found), dtype=np.uint32))
    places = ParquetPlaces(tuple(paths), np.concatenate(files), np.concatenate(rows))
    return names, np.concatenate(labels), places


def _labels(path: Path) -> NDArray[np.int64]:
    file = _open(path)
    columns = {file.schema.column(i).path for i in range(len(file.schema))}
    if not {"image.bytes", "label"} <= columns:
        shown = ", ".join(sorted(columns)[:8])
        raise ValueError(f"{path} lacks the columns image.bytes and label; it has: {shown}")
    column = file.read(columns=["label"]).column("label")
    if column.null_count:
        raise ValueError(f"{path} has {column.null_count} rows without a label")
    return np.asarray(column.to_numpy(), np.int64)


def _class_names(path: Path) -> tuple[str, ...] | None:
    """The names in the "huggingface" entry of the file's metadata, if it has one."""
    metadata = _open(path).schema_arrow.metadata or {}
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        return tuple(str(name) for name in features["label"]["names"])
    except (KeyError, TypeError, ValueError):
        return None


@functools.lru_cache(maxsize=64)
def _open(path: Path) -> Any:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ValueError("parquet files need pyarrow: pip install 'fullfeed[parquet]'") from error
    try:
        return parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(f"{path} cannot be read as a parquet file: {error}") from error


@functools.lru_cache(maxsize=64)
def _group_starts(path: Path) -> NDArray[np.int64]:
    """The first row of each row group."""
    metadata = _open(path).metadata
    sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    return np.cumsum([0, *sizes[:-1]])


@functools.lru_cache(maxsize=CACHED_GROUPS)
def _images_of_group(path: Path, group: int) -> list[bytes | None]:
    table = _open(path).read_row_group(group, columns=["image.bytes"])
    column = table.column("image").combine_chunks().field("bytes")
    return [value.as_py() for value in column]
