"""What a shard folder says of itself: a receipt per shard, one dataset.json; opening one."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar, get_origin, get_type_hints

from pipeline.atomic import is_local, write_whole
from pipeline.shards import (
    COMPONENTS,
    Index,
    dali_index_path,
    dali_index_text,
    read_index,
    read_rows,
    read_source_crc32,
    shard_stem,
)
from pipeline.transfer import read_file

FORMAT_VERSION = 1
DATASET_NAME = "dataset.json"
QUARANTINE_NAME = "quarantine.jsonl"
TIMM_NAME = "_info.json"
CLAIM_NAME = "preparing.json"  # on an object store, while shards are written there
Record = TypeVar("Record", "Receipt", "Shard", "Split")


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """That a shard is finished: written last, so a shard without a valid one does not exist."""

    format_version: int
    shard: str  # file name
    split: str
    samples: int
    bytes: int
    sha256: str
    enlarged: int  # originals with a shorter side under 256 px
    source_bytes: int  # of the originals, those quarantined included
    quarantined: list[dict[str, Any]]  # source, split, id, reason, sha256
    settings: dict[str, Any]
    settings_hash: str
    plan_hash: str  # of the sources, ids and labels that belong into this shard


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

    def index(self, split: str) -> Index:
        """The index rows of a split, sorted by shard and offset; ValueError where damaged."""
        found = self.split(split)
        return read_index(self.folder, split, found.index_sha256, found.written)

    @property
    def encoding(self) -> str:
        """How images are stored: jpeg or raw."""
        return str(self.settings["encoding"])


def canonical_hash(value: Any) -> str:
    """SHA-256 of a JSON-able value; equal values give equal hashes."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def fingerprint(shards: Sequence[Shard]) -> str:
    """SHA-256 over the shards' SHA-256, in their order (as hexadecimal text)."""
    return hashlib.sha256("".join(shard.sha256 for shard in shards).encode()).hexdigest()


def receipt_path(folder: Path, split: str, number: int) -> Path:
    """Where the receipt of a shard lies."""
    return folder / f"{shard_stem(split, number)}.receipt.json"


def write_receipt(folder: Path, number: int, receipt: Receipt) -> None:
    """Writes a shard's receipt, whole or not at all."""
    text = json.dumps(asdict(receipt), indent=2) + "\n"
    write_whole(receipt_path(folder, receipt.split, number), text.encode())


def read_receipt(folder: Path, split: str, number: int) -> Receipt | None:
    """The receipt of a shard that is there, as large as it says; None where there is none."""
    try:
        receipt = _typed(Receipt, json.loads(receipt_path(folder, split, number).read_bytes()))
        known = receipt.format_version == FORMAT_VERSION and receipt.split == split
        if not known or not _is_consistent(receipt):
            return None
        size = (folder / receipt.shard).stat().st_size
        rows = read_rows(folder, split, number)
        num_originals = len(read_source_crc32(folder, split, number))
        dali_index = dali_index_path(folder, split, number).read_bytes()
        component = COMPONENTS[receipt.settings["encoding"]]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    whole = size == receipt.bytes and len(rows) == receipt.samples
    whole = whole and num_originals == receipt.samples + len(receipt.quarantined)
    return receipt if whole and dali_index == dali_index_text(rows, component) else None


def _is_consistent(receipt: Receipt) -> bool:
    """Whether a receipt's settings are those of its hash, and its quarantined have a reason."""
    entries = all(
        isinstance(entry, dict)
        and isinstance(entry.get("id"), int)
        and isinstance(entry.get("reason"), str)
        for entry in receipt.quarantined
    )
    return entries and receipt.settings_hash == canonical_hash(receipt.settings)


def _typed(kind: type[Record], value: Any) -> Record:
    """What a JSON object says; TypeError where a field is missing, unknown or of another type.

    All its numbers are counts: TypeError too where one is negative, or over what 64 bits hold.
    """
    record = kind(**value)
    for name, annotation in get_type_hints(kind).items():
        found, expected = getattr(record, name), get_origin(annotation) or annotation
        if not isinstance(found, expected) or isinstance(found, bool):
            raise TypeError(f"{name} is {found!r}, expected {expected.__name__}")
        if isinstance(found, int) and not 0 <= found < 2**63:
            raise TypeError(f"{name} is {found}, expected a number of 0 to 2**63 - 1")
    return record


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
    except FileNotFoundError:
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


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def _split(value: dict[str, Any]) -> Split:
    shards = tuple(_typed(Shard, shard) for shard in value["shards"])
    return _typed(Split, {**value, "shards": shards})


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r}, expected text")
    return value


def remove_dataset(folder: Path) -> int:
    """Removes all that a preparation wrote into `folder`, and nothing else; returns the count.

    To be called by the folder's sole writer.
    """
    made = re.compile(
        r"((train|val|test)-\d{6}\.(tar|idx|sums\.npz|receipt\.json)"
        r"|(train|val|test)\.index\.npy"
        rf"|{DATASET_NAME}|{QUARANTINE_NAME}|{TIMM_NAME}|{CLAIM_NAME}|pca\.json|mean\.npy)"
        r"(\.([0-9a-f]{16}\.)?tmp)?"  # of a killed writer
    )
    paths = [path for path in folder.glob("*") if made.fullmatch(path.name)]
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
