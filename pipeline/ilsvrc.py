"""ImageNet as its makers and Kaggle hand it out: archives, development kits, ground truth."""

import csv
import gzip
import io
import os
import re
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.archives import Member, class_listing, members, nested_members, span_listing
from pipeline.folders import class_files, empty_classes, files_below, folder_listing
from pipeline.originals import FilePlaces, Listing, Source, litter, sorted_listing

KAGGLE_IMAGES = Path("ILSVRC/Data/CLS-LOC")
KAGGLE_TRUTH = "LOC_val_solution.csv"


@dataclass(frozen=True)
class Challenge:
    """The file names of a year's challenge."""

    year: int
    train: str
    devkit: str
    held_out: dict[str, str]  # split -> archive of its images
    patch: str | None = None  # corrected training images, which replace those of the same name


CHALLENGES = (
    Challenge(
        2012,
        "ILSVRC2012_img_train.tar",
        "ILSVRC2012_devkit_t12.tar.gz",
        {"val": "ILSVRC2012_img_val.tar"},
    ),
    Challenge(
        2010,
        "ILSVRC2010_images_train.tar",
        "ILSVRC2010_devkit-1.0.tar.gz",
        {"val": "ILSVRC2010_images_val.tar", "test": "ILSVRC2010_images_test.tar"},
        "patch_images.tar",
    ),
)


@dataclass(frozen=True)
class _Kit:
    """A development kit: WordNet id of each class number, and the numbers of validation images."""

    wnid_of: dict[int, bytes]
    val_truth: list[int]


def open_challenge(root: Path, challenge: Challenge) -> Source:
    """The official archives in the folder `root`, read in place.

    train: a tar of class tars. val (and test of 2010): a tar of images, labelled by the
    development kit (test by ILSVRC2010_test_ground_truth.txt). What is not there is left out, but
    images without their labels are refused: ValueError.
    """
    found = nested_members(root / challenge.train)
    if challenge.patch is not None and (root / challenge.patch).is_file():
        found = _patched(found, members(root / challenge.patch))
    classes, train, empty = class_listing(root / challenge.train, "train", found)
    splits = {"train": train}
    for split, archive in challenge.held_out.items():
        if (root / archive).is_file():
            kit = _read_kit(root / challenge.devkit, challenge.year)
            truth = kit.val_truth if split == "val" else _read_test_truth(root, challenge.year)
            splits[split] = _held_out(root / archive, split, truth, kit, classes)
    names = tuple(os.fsdecode(name) for name in classes)
    name = f"ilsvrc{challenge.year}"
    return Source(root=root, format=name, classes=names, splits=splits, empty=empty)


def open_kaggle(root: Path) -> Source:
    """Kaggle's tree: ILSVRC/Data/CLS-LOC/{train/<wnid>,val} and LOC_val_solution.csv in `root`.

    Its test images have no labels: they are left out and counted. ValueError where there is no
    train, or where a validation image has no label.
    """
    images = root / KAGGLE_IMAGES
    if not (images / "train").is_dir():
        raise ValueError(f"there is no folder {images}/train; is {root} Kaggle's tree?")
    found = class_files(images, "train")
    classes = sorted(name for name, inside in found.items() if inside.names)
    if not classes:
        raise ValueError(f"{images}/train has no files in class folders")
    splits = {"train": folder_listing(images, classes, found)}
    if (images / "val").is_dir():
        splits["val"] = _kaggle_val(root, images, classes)
    unlabelled = {}
    if (images / "test").is_dir():
        unlabelled["test"] = len(files_below(images, b"test").names)
    return Source(
        root=root,
        format="kaggle",
        classes=tuple(os.fsdecode(name) for name in classes),
        splits=splits,
        unlabelled=unlabelled,
        empty=empty_classes(found),
    )


def _kaggle_val(root: Path, images: Path, classes: Sequence[bytes]) -> Listing:
    path = root / KAGGLE_TRUTH
    try:
        with open(path, newline="", encoding="utf-8") as file:
            wnid_of = {
                row["ImageId"].encode(): row["PredictionString"].split()[0].encode()
                for row in csv.DictReader(file)
            }
    except (OSError, KeyError, IndexError, AttributeError, UnicodeError, csv.Error) as error:
        raise ValueError(
            f"{path} cannot be read as Kaggle's labels of the validation images (columns ImageId "
            f"and PredictionString): {error!r}"
        ) from error
    label_of = {name: label for label, name in enumerate(classes)}
    found = files_below(images, b"val")
    labels = []
    for name in found.names:
        stem = name.rsplit(b"/", 1)[-1].split(b".")[0]
        wnid = wnid_of.get(stem)
        if wnid is None or wnid not in label_of:
            what = "no line for it" if wnid is None else f"class {wnid.decode()}, not in train"
            image = images / os.fsdecode(name)
            raise ValueError(f"{image} has no label: {path} has {what}")
        labels.append(label_of[wnid])
    places = FilePlaces(images, found.names)
    return sorted_listing(found.names, labels, places, found.ignored)


def _patched(
    found: Iterator[tuple[bytes, list[Member]]], patches: list[Member]
) -> Iterator[tuple[bytes, list[Member]]]:
    """Training images with those of the same file name in the patch archive put in their place."""
    new = {member.name.rsplit(b"/", 1)[-1]: member for member in patches}
    for folder, inside in found:
        yield folder, [new.get(member.name.rsplit(b"/", 1)[-1], member) for member in inside]


def _held_out(
    archive: Path, split: str, truth: list[int], kit: _Kit, classes: Sequence[bytes]
) -> Listing:
    """Images of a flat archive, in the order of their names, labelled by line of the truth."""
    inside = members(archive)
    found = sorted(
        (member for member in inside if not litter(member.name)),
        key=lambda member: member.name.rsplit(b"/", 1)[-1],
    )
    if len(found) != len(truth):
        raise ValueError(
            f"{archive} has {len(found):,} images, the ground truth {len(truth):,} lines; they do "
            "not belong together, or one is cut off"
        )
    label_of = {name: label for label, name in enumerate(classes)}
    try:
        labels = [label_of[kit.wnid_of[number]] for number in truth]
    except KeyError as error:
        raise ValueError(
            f"the development kit names class {error.args[0]!r}, which the training archive in "
            f"{archive.parent} lacks: not of the same challenge, or that archive is not whole"
        ) from error
    names = [split.encode() + b"/" + member.name.rsplit(b"/", 1)[-1] for member in found]
    return span_listing(names, labels, found, ignored=len(inside) - len(found))


def _read_kit(path: Path, year: int) -> _Kit:
    """A development kit: data/meta.mat and data/ILSVRC<year>_validation_ground_truth.txt in it.

    It is unpacked whole (a few MB) before it is read as a tar file: tarfile stops ahead of the
    gzip checksum, which alone finds some damage.
    """
    truth_name = f"ILSVRC{year}_validation_ground_truth.txt"
    try:
        with gzip.open(path) as packed:
            unpacked = io.BytesIO(packed.read())
        with tarfile.open(fileobj=unpacked, mode="r:") as tar:
            files = {
                os.path.basename(info.name): info
                for info in tar
                if info.isreg() and re.search(r"(^|/)data/[^/]+$", info.name)
            }
            meta, truth = (_content(tar, files[name]) for name in ("meta.mat", truth_name))
    except KeyError as error:
        raise ValueError(f"{path} has no data/{error.args[0]}: it is another kit") from error
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise ValueError(
            f"{path} cannot be read ({error}): the labels of the validation images are in it; it "
            f"is part of the ILSVRC{year} download, put it beside the archives"
        ) from error
    return _Kit(_read_meta(path, meta, year), _numbers(path, truth))


def _content(tar: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(info)
    assert file is not None
    return file.read()


def _read_meta(path: Path, data: bytes, year: int) -> dict[int, bytes]:
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise ValueError(
            "the development kit is a MATLAB file: pip install 'fullfeed[ilsvrc]' (scipy)"
        ) from error
    try:
        synsets = loadmat(io.BytesIO(data), squeeze_me=True)["synsets"]
        return {
            int(synset[f"ILSVRC{year}_ID"]): str(synset["WNID"]).encode()
            for synset in synsets.ravel()
        }
    except Exception as error:  # scipy's own kind, OSError, zlib.error, … for a damaged file
        what = f"data/meta.mat in {path} is not that of ILSVRC{year}"
        raise ValueError(f"{what}: {error}") from error


def _read_test_truth(root: Path, year: int) -> list[int]:
    path = root / f"ILSVRC{year}_test_ground_truth.txt"
    try:
        return _numbers(path, path.read_bytes())
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read ({error.strerror}): the labels of the test images are in it; "
            "put it there, or move the test archive away"
        ) from error


def _numbers(path: Path, data: bytes) -> list[int]:
    try:
        return [int(line) for line in data.split()]
    except ValueError as error:
        what = f"the ground truth in {path} is not a list of numbers"
        raise ValueError(f"{what}: {error}") from error
