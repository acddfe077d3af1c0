"""What a shard folder says of itself as a whole, in dataset.json; opening one, removing one."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.atomic import is_local, write_whole
from pipeline.receipt import FORMAT_VERSION, typed_record
from pipeline.shards import COMPONENTS, Index, index_name, read_index
from pipeline.transfer import read_file

DATASET_NAME = "dataset.json"
QUARANTINE_NAME = "quarantine.jsonl"
TIMM_NAME = "_info.json"
CLAIM_NAME = "preparing.json"  # on an object store, while shards are written there
MADE = re.compile(
    r"((train|val|test)-\d{6}\.(tar|idx|sums\.npz|receipt\.json)"
    r"|(train|val|test)\.index\.npy"
    rf"|{DATASET_NAME}|{QUARANTINE_NAME}|{TIMM_NAME}|{CLAIM_NAME}|pca\.json|mean\.npy)"
    r"(\.([0-9a-f]{16}\.)?tmp)?"  # of a killed writer
)


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One line of dataset.json's list of shards."""

    name: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Split:
    """A split of dataset.json; found = written + quarantined."""

    shards: tuple[Shard, ...]
    found: int
    written: int
    quarantined: int
    enlarged: int  # of those written: the original's shorter side was under 256 px
    source_bytes: int  # of the originals found
    fingerprint: str
    index_sha256: str


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A shard folder whose dataset.json is whole."""

    folder: Path
    classes: tuple[str, ...]
    settings: Mapping[str, Any]
    splits: Mapping[str, Split]

    def split(self, name: str) -> Split:
        """The split `name`; ValueError naming those there are."""
        if name not in self.splits:
            have = ", ".join(self.splits) or "none"
            raise ValueError(
                f"{self.folder} has no split {name!r}, it has: {have}; prepare a source with a "
                f"{name}/ folder"
            )
        return self.splits[name]

    def fingerprint(self, split: str) -> str:
        """SHA-256 that stands for every byte of a split's shards."""
        return self.split(split).fingerprint

    def num_samples(self, split: str) -> int:
        """How many samples a split has."""
        return self.split(split).written

    def require_images(self, split: str) -> int:
        """As `num_samples`; ValueError where there are none."""
        if not (num_images := self.num_samples(split)):
            raise ValueError(
                f"{self.folder} has no images in {split}; prepare a source that has some: "
                f"{_prepare(self.folder)}"
            )
        return num_images

    def index(self, split: str) -> Index:
        """The index rows of a split, sorted by shard and offset.

        ValueError where they are damaged, or not of these shards and classes.
        """
        found = self.split(split)
        rows = read_index(self.folder, split, found.index_sha256, found.written)
        problem = _disagreement(rows, found.shards, len(self.classes))
        if problem:
            raise ValueError(
                f"{self.folder / index_name(split)} and {DATASET_NAME} disagree: {problem}; "
                "prepare again, finished shards are kept and both are written anew: "
                f"{_prepare(self.folder)}"
            )
        return rows

    @property
    def encoding(self) -> str:
        """How images are stored: jpeg or raw."""
        return str(self.settings["encoding"])


def fingerprint(shards: Sequence[Shard]) -> str:
    """SHA-256 over the shards' SHA-256, in their order (as hexadecimal text)."""
    return hashlib.sha256("".join(shard.sha256 for shard in shards).encode()).hexdigest()


def timm_info(dataset: Dataset) -> bytes:
    """The text of _info.json, in the form that timm's reader of webdatasets documents."""
    info = {
        name: {
            "name": name,
            "num_samples": split.written,
            "filenames": [shard.name for shard in split.shards],
            "shard_lengths": [shard.samples for shard in split.shards],
        }
        for name, split in dataset.splits.items()
    }
    return _json({"splits": info})


def write_dataset(dataset: Dataset) -> None:
    """Writes dataset.json and timm's _info.json (dataset.json last: it makes the folder valid)."""
    write_whole(dataset.folder / TIMM_NAME, timm_info(dataset))
    text = {
        "format_version": FORMAT_VERSION,
        "settings": dict(dataset.settings),
        "classes": list(dataset.classes),
        "splits": {name: asdict(split) for name, split in dataset.splits.items()},
    }
    write_whole(dataset.folder / DATASET_NAME, _json(text))


def open_dataset(folder: Path, *, check_sizes: bool = True) -> Dataset:
    """The data set in a shard folder, every shard of the right size (unless that is left out).

    On an object store sizes are not checked: a request each, and staging checks SHA-256.
    ValueError naming the file, what was found and the next command: no shards, preparation not
    finished, a shard missing or cut off, dataset.json damaged or of another format version.
    """
    path = folder / DATASET_NAME
    try:
        text = json.loads(read_file(path))
        version = text["format_version"]
        if version != FORMAT_VERSION:
            raise ValueError(
                f"{path} has format version {version}, this program reads {FORMAT_VERSION}; "
                "prepare the shards again"
            )
        splits = {name: _split(value) for name, value in text["splits"].items()}
        COMPONENTS[text["settings"]["encoding"]]  # which all readers need
        dataset = Dataset(
            folder=folder,
            classes=tuple(_text(name) for name in text["classes"]),
            settings=text["settings"],
            splits=splits,
        )
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(_no_dataset(folder)) from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except (
        json.JSONDecodeError,
        UnicodeDecodeError,
        AttributeError,
        KeyError,
        TypeError,
        RecursionError,  # of brackets without end
    ) as error:
        raise ValueError(
            f"{path} is damaged ({type(error).__name__}: {error}); prepare again, finished shards "
            f"are kept and dataset.json is written anew: {_prepare(folder)}"
        ) from error
    for split in splits.values() if check_sizes and is_local(folder) else ():
        _check_sizes(folder, split)
    return dataset


def _disagreement(rows: Index, shards: Sequence[Shard], num_classes: int) -> str | None:
    """What an index says otherwise than a list of shards and classes; None where they agree."""
    if len(rows) and not (rows["label"].min() >= 0 and rows["label"].max() < num_classes):
        return f"its labels go beyond {num_classes} classes"
    ends = np.searchsorted(rows["shard"], np.arange(len(shards)), side="right")
    begin = 0
    for shard, end in zip(shards, ends.tolist(), strict=True):
        if end - begin != shard.samples:
            return f"{shard.name} has {end - begin} rows and {shard.samples} samples"
        last = rows[end - 1] if end > begin else None
        if last is not None and int(last["offset"]) + int(last["size"]) > shard.bytes:
            return f"{shard.name} ends before its last row"
        begin = end
    return None if begin == len(rows) else f"it has {len(rows) - begin} rows of no shard"


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def _split(value: dict[str, Any]) -> Split:
    shards = tuple(typed_record(Shard, shard) for shard in value["shards"])
    return typed_record(Split, {**value, "shards": shards})


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r}, expected text")
    return value


def is_of_shards(name: str) -> bool:
    """Whether a preparation gives files this name."""
    return MADE.fullmatch(name) is not None


def remove_dataset(folder: Path) -> int:
    """Removes all that a preparation wrote into `folder`, and nothing else; returns the count.

    To be called by the folder's sole writer.
    """
    paths = [path for path in folder.glob("*") if is_of_shards(path.name)]
    for path in sorted(paths, key=lambda path: path.name != DATASET_NAME):  # it goes first
        path.unlink()
    return len(paths)


def _prepare(folder: Path) -> str:
    return f"tools/prepare_shards.py SOURCE --out {folder}"


def _no_dataset(folder: Path) -> str:
    prepare = _prepare(folder)
    if not is_local(folder):  # which need not be able to list what it holds
        return (
            f"there is no {folder / DATASET_NAME}: nothing was prepared there, or not to the end; "
            f"{prepare}"
        )
    if folder.exists() and not folder.is_dir():
        return f"{folder} is a file; expected a folder, made by: tools/prepare_shards.py"
    if not folder.is_dir():
        return f"there is no folder {folder}; prepare shards first: {prepare}"
    if any(folder.glob("*.receipt.json")):
        return f"the preparation of {folder} has not finished; start it again to go on: {prepare}"
    return f"{folder} holds no shards (no {DATASET_NAME}); prepare them first: {prepare}"


def _check_sizes(folder: Path, split: Split) -> None:
    for shard in split.shards:
        path = folder / shard.name
        try:
            size = path.stat().st_size
        except OSError as error:
            raise ValueError(
                f"{path} cannot be read ({error.strerror}); prepare again, only missing shards "
                f"are written: {_prepare(folder)}"
            ) from error
        if size != shard.bytes:
            raise ValueError(
                f"{path} has {size} bytes, {shard.bytes} were written: it was cut off or "
                f"replaced; prepare again, only damaged shards are made anew: {_prepare(folder)}"
            )
