"""The account of a data set: found, written, quarantined by reason, and what still decodes."""

import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from pipeline.images import Pixels
from pipeline.manifest import QUARANTINE_NAME, Dataset
from pipeline.messages import explain
from pipeline.originals import Source
from pipeline.photographs import MAX_PIXELS, PILLOW_FORMATS
from pipeline.sources import open_source
from pipeline.transfer import read_file
from tools.figures.inline import photograph

MAX_SHOWN = 24  # quarantined originals
MAX_REASONS = 12
THUMBNAIL_PX = 160


@dataclass(frozen=True, kw_only=True)
class Quarantined:
    """An original that did not become a sample; picture: of what still decodes, a data URL."""

    source: str
    split: str
    reason: str
    picture: str | None
    told: str  # why there is no picture; empty where there is one


@dataclass(frozen=True, kw_only=True)
class Account:
    """What became of the originals of a data set."""

    folder: str
    num_classes: int
    splits: list[dict[str, Any]]  # name, found, written, quarantined, enlarged, megabytes
    reasons: list[tuple[str, int]]  # the most frequent first
    shown: list[Quarantined]
    num_quarantined: int
    remarks: list[str] = field(default_factory=list)


def account_all(datasets: Sequence[Dataset], originals: Path | None) -> list[Account]:
    """The account of each data set, once where it is the same; see `dataset_account`."""
    different = {
        (str(one.folder.absolute()), *(split.fingerprint for split in one.splits.values())): one
        for one in datasets
    }
    return [dataset_account(one, originals) for one in different.values()]


def dataset_account(dataset: Dataset, originals: Path | None) -> Account:
    """The account of `dataset`; originals: where they lie, as tools/prepare_shards.py was told."""
    remarks: list[str] = []
    entries = _read_entries(dataset.folder / QUARANTINE_NAME, remarks)
    reasons = Counter(str(entry["reason"]).partition(":")[0] for entry in entries)
    source = _open_originals(originals, remarks) if entries else None
    return Account(
        folder=str(dataset.folder),
        num_classes=len(dataset.classes),
        splits=[
            {
                "name": name,
                "found": split.found,
                "written": split.written,
                "quarantined": split.quarantined,
                "enlarged": split.enlarged,
                "shards": len(split.shards),
                "megabytes": sum(shard.bytes for shard in split.shards) / 1e6,
            }
            for name, split in dataset.splits.items()
        ],
        reasons=reasons.most_common(MAX_REASONS),
        shown=[_show(entry, source) for entry in entries[:MAX_SHOWN]],
        num_quarantined=sum(split.quarantined for split in dataset.splits.values()),
        remarks=remarks,
    )


def _read_entries(path: Path, remarks: list[str]) -> list[dict[str, Any]]:
    try:
        lines = read_file(path).splitlines()
        entries = [json.loads(line) for line in lines]
        for entry in entries:
            str(entry["reason"]), str(entry["source"]), str(entry["split"]), int(entry["id"])
        return entries
    except OSError as error:
        remarks.append(f"{path.name} cannot be read ({explain(error)}): reasons are not known.")
    except (ValueError, KeyError, TypeError):
        remarks.append(f"{path.name} is damaged: reasons are not known.")
    return []


def _open_originals(originals: Path | None, remarks: list[str]) -> Source | None:
    if originals is None:
        remarks.append(
            "Shards do not hold what was quarantined; to see it, say where the originals lie: "
            "--originals SOURCE."
        )
        return None
    try:
        return open_source(originals)
    except (ValueError, OSError) as error:
        told = explain(error)
        remarks.append(f"The originals are not there any more, so none is shown: {told}.")
        return None


def _show(entry: Mapping[str, Any], source: Source | None) -> Quarantined:
    picture, told = None, "no originals"
    if source is not None:
        try:
            data = _bytes_of(entry, source)
            picture, told = photograph(decode_leniently(data), THUMBNAIL_PX), ""
        except (OSError, ValueError) as error:
            told = explain(error)
    return Quarantined(
        source=entry["source"],
        split=entry["split"],
        reason=entry["reason"],
        picture=picture,
        told=told,
    )


def _bytes_of(entry: Mapping[str, Any], source: Source) -> bytes:
    """The bytes that were quarantined; ValueError or OSError where they are not there now."""
    listing, position = source.splits.get(entry["split"]), int(entry["id"])
    if listing is None or position >= len(listing):
        raise ValueError("no longer among the originals")
    if os.fsdecode(listing.names[position]) != entry["source"]:
        raise ValueError("the originals have changed since")
    data = listing.places.read(position)
    if entry.get("sha256") not in (None, hashlib.sha256(data).hexdigest()):
        raise ValueError("the file has changed since")
    return data


def decode_leniently(data: bytes) -> Pixels:
    """What can be made of a damaged photograph, RGB; ValueError where that is nothing.

    A JPEG that was cut off is grey from there on.
    """
    try:
        height, width, colour, _ = simplejpeg.decode_jpeg_header(data)
        if height * width <= MAX_PIXELS and colour in ("YCbCr", "Gray", "RGB"):
            return np.asarray(simplejpeg.decode_jpeg(data, "RGB", strict=False))
    except ValueError:
        pass
    try:
        with Image.open(io.BytesIO(data), formats=PILLOW_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError("too large to show")
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, Image.DecompressionBombError):
        pass
    found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB) if data else None
    if found is None:
        raise ValueError("does not decode")
    return np.asarray(found, np.uint8)
