"""The receipt of a shard: that it is finished, what of, and with which settings."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar, get_origin, get_type_hints

from pipeline.atomic import write_whole
from pipeline.shards import (
    COMPONENTS,
    dali_index_path,
    dali_index_text,
    read_rows,
    read_source_crc32,
    shard_stem,
)

FORMAT_VERSION = 1  # of receipts and of dataset.json
UNREADABLE = "unreadable"  # begins the reason of an original that may be readable another time
Record = TypeVar("Record")


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


def canonical_hash(value: Any) -> str:
    """SHA-256 of a JSON-able value; equal values give equal hashes."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


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
        text = json.loads(receipt_path(folder, split, number).read_bytes())
        receipt = typed_record(Receipt, text)
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


def made_receipt(folder: Path, split: str, number: int) -> Receipt:
    """The receipt of a shard that an engine made just now; OSError where it is not there."""
    receipt = read_receipt(folder, split, number)
    if receipt is None:
        raise OSError(
            f"{shard_stem(split, number)}.tar was made and is not in {folder}: the nodes do not "
            "share this output folder, or somebody removed files of it"
        )
    return receipt


def _is_consistent(receipt: Receipt) -> bool:
    """Whether a receipt's settings are those of its hash, and its quarantined have a reason."""
    entries = all(
        isinstance(entry, dict)
        and isinstance(entry.get("id"), int)
        and isinstance(entry.get("reason"), str)
        for entry in receipt.quarantined
    )
    return entries and receipt.settings_hash == canonical_hash(receipt.settings)


def typed_record(kind: type[Record], value: Any) -> Record:
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
