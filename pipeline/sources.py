"""Where originals come from: recognises what a path holds and lists it."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.archives import (
    Member,
    class_listing,
    class_of,
    holds_tars,
    members,
    nested_members,
)
from pipeline.folders import (
    OTHER_NAMES,
    SPLITS,
    open_folders,
    open_tree,
    refuse_misnamed,
    split_off,
)
from pipeline.ilsvrc import CHALLENGES, KAGGLE_IMAGES, open_challenge, open_kaggle
from pipeline.manifest import is_of_shards
from pipeline.originals import Source, litter
from pipeline.parquet import open_parquet, parquet_split

COMPRESSED_ENDINGS = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
PARQUET_LEVELS = ("", "*/", "*/*/")  # train-0.parquet, data/…, default/train/0000.parquet


def open_source(root: Path, format: str = "auto", val_fraction: float | None = None) -> Source:
    """Lists the originals that `root` holds, in the form `format` (one of FORMATS) or any.

    val_fraction: the share of each class of train to set apart as val, where there is none.
    ValueError where there is nothing that can be prepared, naming what was found.
    """
    if not root.exists():
        raise ValueError(f"there is no {root}; expected a folder of images or ImageNet's archives")
    root = root.absolute()  # "." has no name to recognise
    if format == "auto":
        format = _recognise(root)
    source = FORMATS[format](root)
    return source if val_fraction is None else split_off(source, val_fraction)


def open_class_tars(root: Path) -> Source:
    """Fall 2011, ImageNet-21k: a tar of class tars, or a folder of class tars; all of it train.

    A folder with such a tar of tars alone (fall11_whole.tar) is taken for that.
    """
    found: Iterator[tuple[bytes, list[Member]]]
    paths = _tars_in(root) if root.is_dir() else [root]
    if root.is_dir() and not (len(paths) == 1 and holds_tars(paths[0])):
        found = ((class_of(os.fsencode(path.name)), members(path)) for path in paths)
    else:
        found = nested_members(paths[0])
    classes, train, empty = class_listing(root, "train", found)
    names = tuple(os.fsdecode(name) for name in classes)
    splits = {"train": train}
    return Source(root=root, format="class-tars", classes=names, splits=splits, empty=empty)


def _tars_in(folder: Path) -> list[Path]:
    """The tar files of a folder; ValueError where it has compressed ones alone."""
    found = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    tars = [path for path in found if path.suffix == ".tar"]
    compressed = [path for path in found if path.name.endswith(COMPRESSED_ENDINGS)]
    if compressed and not tars:
        raise ValueError(_compressed(compressed[0]))
    return tars


def _compressed(path: Path) -> str:
    return (
        f"{path} is compressed, so images in it cannot be read in place; unpack it to a .tar "
        f"first (gunzip {path}; rename it if it is a plain tar after all)"
    )


FORMATS: dict[str, Callable[[Path], Source]] = {
    "folders": open_folders,
    "tree": open_tree,
    "ilsvrc2012": lambda root: open_challenge(_folder(root), CHALLENGES[0]),
    "ilsvrc2010": lambda root: open_challenge(_folder(root), CHALLENGES[1]),
    "kaggle": open_kaggle,
    "parquet": open_parquet,
    "class-tars": open_class_tars,
}


def _refuse_class_folders(root: Path, tar: Path) -> None:
    """ValueError where folders of images lie beside a tar: one or the other would be left out."""
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        if litter(os.fsencode(folder.name)):
            continue
        files = (name for _, _, names in os.walk(folder) for name in names)
        if any(not litter(os.fsencode(name)) and not is_of_shards(name) for name in files):
            raise ValueError(
                f"{root} has an archive, {tar.name}, and a folder of other files, {folder.name}/: "
                "move away what is not to be prepared, or say which is: --format class-tars, or "
                "--format tree"
            )


def _folder(root: Path) -> Path:
    """The folder of an archive, where the archive itself was named."""
    return root if root.is_dir() else root.parent


def _recognise(root: Path) -> str:
    """The form of what is at `root`; ValueError where it is none of FORMATS."""
    for challenge in CHALLENGES:
        if root.name == challenge.train or (root / challenge.train).is_file():
            return f"ilsvrc{challenge.year}"
    for challenge in CHALLENGES:
        for archive in challenge.held_out.values():
            if (root / archive).is_file():
                raise ValueError(f"{root} has {archive} and no {challenge.train}: put it there")
    if root.is_file():
        if root.suffix == ".tar":
            return "class-tars"
        if root.name.endswith(COMPRESSED_ENDINGS):
            raise ValueError(_compressed(root))
        raise ValueError(f"{root} is a file; expected a folder of images or a .tar of class tars")
    if (root / KAGGLE_IMAGES / "train").is_dir():
        return "kaggle"
    if (root.parent / KAGGLE_IMAGES / "train").is_dir() and root.name == KAGGLE_IMAGES.parts[0]:
        raise ValueError(f"{root} is part of Kaggle's tree: name the folder above, {root.parent}")
    if (root / "train").is_dir() and next((root / "train").glob("*.parquet"), None) is None:
        return "folders"
    tables = (path for level in PARQUET_LEVELS for path in root.glob(f"{level}*.parquet"))
    if any(parquet_split(root, path) is not None for path in tables):
        return "parquet"
    tars = (path for path in root.iterdir() if path.name.endswith((".tar", *COMPRESSED_ENDINGS)))
    if (tar := min(tars, default=None)) is not None:
        _refuse_class_folders(root, tar)
        return "class-tars"
    folders = {path.name for path in root.iterdir() if path.is_dir() and path.name[0] != "."}
    if len(folders) > 1 and all(name.lower() in OTHER_NAMES for name in folders):
        refuse_misnamed(root)
    if len(folders) > 1 and not folders & set(SPLITS):  # one folder: a level too high, more likely
        return "tree"
    inside = ", ".join(sorted(path.name for path in root.iterdir())[:5]) or "nothing"
    raise ValueError(
        f"{root} holds no images that can be prepared; expected train/<class>/* and "
        f"val/<class>/*, two <class>/* or more, ImageNet's archives, Kaggle's ILSVRC/, or parquet "
        f"files; found: {inside}"
    )
