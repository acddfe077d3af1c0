"""Tiny seeded photographs, and shards prepared from them, that all tests share."""

import dataclasses
import io
import os
import shutil
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import pipeline.prepare
from pipeline.cores import available_cores
from pipeline.engines import run_tasks
from pipeline.images import ImageFormat, Pixels
from pipeline.locations import location
from pipeline.manifest import open_dataset
from pipeline.moments import statistics, write_statistics
from pipeline.originals import Listing, Source
from pipeline.photographs import ORIENTATION_TAG
from pipeline.plan import PlannedShard, Settings, plan
from pipeline.prepare import Outcome, prepare
from pipeline.sources import open_source
from pipeline.totals import merge_sums

CLASSES = ("ant", "bee", "cat")
TRAIN_PER_CLASS, VAL_PER_CLASS = 13, 5
BROKEN = {"train/bee/cut.jpg": "cannot be decoded", "train/bee/text.jpg": "not an image"}
IMAGES_PER_SHARD = 9  # 41 files, two of them broken: five shards of unequal size
MAX_WORKERS = 4  # processes of tests side by side; with the ranks of each some 2 GB


def pytest_configure() -> None:
    """Small layers are slower on several threads, by far so where cores are shared."""
    os.environ["OMP_NUM_THREADS"] = "1"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Where as many were asked for as go well."""
    return min(available_cores(), MAX_WORKERS)


def photograph(rng: np.random.Generator, width: int, height: int) -> Pixels:
    """A made-up photograph, (height, width, 3): large smooth shapes under noise."""
    coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    noise = rng.integers(-12, 13, (height, width, 3))
    return np.clip(smooth + noise, 0, 255).astype(np.uint8)


def encoded(image: Image.Image, image_format: str = "JPEG", **options: Any) -> bytes:
    """An image as the bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def with_orientation(orientation: int) -> Image.Exif:
    """EXIF data that says nothing but how the photograph was held."""
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = orientation
    return exif


def write_source(
    root: Path,
    *,
    train_per_class: int = TRAIN_PER_CLASS,
    val_per_class: int = VAL_PER_CLASS,
    seed: int = 0,
) -> Path:
    """Writes train/<class>/*.jpg and val/<class>/*.jpg, 60 to 400 px; returns `root`."""
    rng = np.random.default_rng(seed)
    for split, count in (("train", train_per_class), ("val", val_per_class)):
        for name in CLASSES:
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                width, height = (int(side) for side in rng.integers(60, 401, 2))
                image = Image.fromarray(photograph(rng, width, height))
                (folder / f"{i:02d}.jpg").write_bytes(encoded(image, quality=92))
    return root


def tar_bytes(files: Mapping[str, bytes]) -> bytes:
    """A tar file with these members, in this order."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def tar_of_tars(classes: Mapping[str, Mapping[str, bytes]]) -> bytes:
    """A tar file of class tars: class -> file -> bytes."""
    return tar_bytes({f"{name}.tar": tar_bytes(files) for name, files in classes.items()})


def contents(listing: Listing, classes: Sequence[str]) -> list[tuple[str, str, bytes]]:
    """What a listing holds: name, class and bytes of each original, in the order of the ids."""
    return [
        (os.fsdecode(name), classes[listing.labels[i]], listing.places.read(i))
        for i, name in enumerate(listing.names)
    ]


def prepare_here(source: Path, out: Path, *, num_workers: int = 1, **settings: Any) -> Outcome:
    """Prepares `source` into `out`, nine images per shard if nothing else is asked for."""
    chosen = Settings(**{"images_per_shard": IMAGES_PER_SHARD, **settings})
    return prepare(
        open_source(source),
        out,
        chosen,
        lambda tasks: run_tasks(tasks, num_workers, lambda _: None),
    )


def folder_bytes(folder: Path) -> dict[str, bytes]:
    """Every file directly in a folder, by name."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def flip_byte(path: Path, position: int) -> None:
    """Changes one byte of a file; a negative position counts from the end."""
    data = bytearray(path.read_bytes())
    data[position] ^= 0xFF
    path.write_bytes(data)


def cut_file(path: Path, num_bytes: int) -> None:
    """Takes the last `num_bytes` off a file."""
    path.write_bytes(path.read_bytes()[:-num_bytes])


def compute_statistics(folder: Path) -> None:
    """Writes pca.json and mean.npy into a shard folder."""
    dataset = open_dataset(folder)
    fingerprint = dataset.fingerprint("train")
    write_statistics(folder, statistics(merge_sums(dataset, "train"), fingerprint))


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Originals of three classes, odd formats and two broken files among them; only to be read."""
    root = write_source(tmp_path_factory.mktemp("originals") / "tiny")
    rng = np.random.default_rng(1)
    ant, bee, cat = (root / "train" / name for name in CLASSES)
    picture = Image.fromarray(photograph(rng, 320, 240))
    (ant / "00.jpg").write_bytes(encoded(picture.convert("L")))
    (ant / "01.jpg").write_bytes(encoded(picture.convert("CMYK")))
    (bee / "00.jpg").write_bytes(encoded(picture, "PNG"))
    (cat / "00.jpg").write_bytes(encoded(picture, exif=with_orientation(6)))
    (bee / "cut.jpg").write_bytes(encoded(picture)[:4000])
    (bee / "text.jpg").write_text("this is not a photograph\n")
    (cat / ".DS_Store").write_bytes(b"litter")
    return root


def _prepared(image_folder: Path, out: Path, encoding: str) -> Path:
    prepare_here(image_folder, out, image_format=ImageFormat(encoding=encoding))
    compute_statistics(out)
    return out


@pytest.fixture(scope="session")
def shard_folder(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JPEG shards of `image_folder` with their PCA; only to be read."""
    return _prepared(image_folder, tmp_path_factory.mktemp("jpeg") / "shards", "jpeg")


@pytest.fixture(scope="session")
def raw_shard_folder(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Raw shards of `image_folder` with their PCA; only to be read."""
    return _prepared(image_folder, tmp_path_factory.mktemp("raw") / "shards", "raw")


@pytest.fixture(scope="session")
def sorted_shard_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 shards of train, 10 of val, six images each, class by class; only to be read."""

    def in_order(source: Source, out: Path, settings: Settings) -> Iterator[PlannedShard]:
        first = dict.fromkeys(source.splits, 0)
        for shard in plan(source, out, settings):
            start, end = first[shard.split], first[shard.split] + len(shard.ids)
            first[shard.split] = end
            yield dataclasses.replace(shard, ids=np.arange(start, end))

    folder = tmp_path_factory.mktemp("in-order")
    source = write_source(folder / "source", train_per_class=40, val_per_class=20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.prepare, "plan", in_order)
        prepare_here(source, folder / "sorted", images_per_shard=6)
    return folder / "sorted"


@pytest.fixture
def shard_copy(shard_folder: Path, tmp_path: Path) -> Path:
    """A copy of `shard_folder` that a test may damage."""
    return Path(shutil.copytree(shard_folder, tmp_path / "shard-copy"))


@pytest.fixture
def in_memory(shard_folder: Path) -> Iterator[Path]:
    """`shard_folder` in a store that lives in this process."""
    pytest.importorskip("upath", reason="universal_pathlib is not installed (fullfeed[s3])")
    there = location("memory://staged/shards")
    for path in shard_folder.iterdir():
        (there / path.name).write_bytes(path.read_bytes())
    yield there
    getattr(there, "fs").rm("/staged", recursive=True)
