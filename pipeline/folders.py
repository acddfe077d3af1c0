"""Image folders as sources: <split>/<class>/… of photographs, or one tree of classes."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pipeline.originals import FilePlaces, Listing, Names, Source, litter

SPLITS = ("train", "val", "test")
OTHER_NAMES = {  # of a split's folder, in small letters
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


@dataclass(frozen=True)
class Found:
    """Files below a folder: sorted paths relative to the root, and how much litter was passed.

    strays: paths of what lies beside class folders and is no litter; they are in `ignored` too.
    """

    names: Names
    ignored: int
    strays: tuple[bytes, ...] = ()


def open_folders(root: Path) -> Source:
    """<split>/<class>/… below `root`; classes are the sorted names of train's folders.

    A test folder without class folders (ImageNet's) is left out, and its files counted.
    ValueError where train has no file, where another split has a class that train lacks, or where
    a split or a class is a link that leads nowhere.
    """
    refuse_misnamed(root)
    for split in SPLITS:
        _refuse_broken_link(os.fspath(root / split))
    there = [split for split in SPLITS if (root / split).is_dir()]
    if "train" not in there:
        raise ValueError(f"there is no folder {root}/train; expected train/<class>/*")
    files = {split: class_files(root, split) for split in there}
    classes = sorted(name for name, found in files["train"].items() if found.names)
    if not classes:
        raise ValueError(f"{root}/train has no files in class folders; expected train/<class>/*")
    for split, found in files.items():
        used = (name for name, inside in found.items() if inside.names)
        extra = sorted(name for name in used if name not in set(classes))
        if extra:
            shown = ", ".join(os.fsdecode(name) for name in extra[:5])
            raise ValueError(
                f"{root}/{split} has {len(extra)} classes that train has no images of: {shown}; "
                f"add them to train or take them out of {split}"
            )
        if split == "val" and found.keys() == {b""} and found[b""].ignored:
            raise ValueError(
                f"{root}/val has {found[b''].ignored:,} files and no class folders, so their "
                "classes are not known; sort them into val/<class>/, or name the folder that "
                "holds Kaggle's ILSVRC/ and LOC_val_solution.csv, or move val away"
            )
    unlabelled = {}
    if "test" in files and files["test"].keys() == {b""}:
        unlabelled["test"] = files.pop("test")[b""].ignored
    splits = {split: folder_listing(root, classes, found) for split, found in files.items()}
    return Source(
        root=root,
        format="folders",
        classes=tuple(os.fsdecode(name) for name in classes),
        splits=splits,
        unlabelled=unlabelled,
        empty=empty_classes(files["train"]),
    )


def refuse_misnamed(root: Path) -> None:
    """ValueError where a folder is meant for a split and named otherwise: it would be left out."""
    for path in sorted(root.iterdir()):
        split = OTHER_NAMES.get(path.name.lower(), path.name)
        if path.name != split and path.is_dir():
            raise ValueError(f"{path} would be left out: rename it to {split}, or move it away")


def open_tree(root: Path) -> Source:
    """A single tree <class>/… below `root`, all of it train (see `split_off`)."""
    found = class_files(root, "")
    classes = sorted(name for name, inside in found.items() if inside.names)
    if not classes:
        raise ValueError(f"{root} has no files in class folders; expected <class>/*")
    names = tuple(os.fsdecode(name) for name in classes)
    splits = {"train": folder_listing(root, classes, found)}
    empty = empty_classes(found)
    return Source(root=root, format="tree", classes=names, splits=splits, empty=empty)


def split_off(source: Source, fraction: float) -> Source:
    """The source with a val split taken from each class of train: about `fraction` of its images.

    Which images: those of the smallest SHA-256 of their names within the class, so the other
    classes, the bytes and the order of the files do not matter.
    ValueError where there is a val split already, or where a class would lose all its images.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"--val-fraction must be over 0 and under 1, not {fraction}")
    if "val" in source.splits:
        raise ValueError(f"{source.root} has a val split of its own: leave --val-fraction out")
    train = source.splits["train"]
    keys = np.array([hashlib.sha256(name).digest() for name in train.names], "S32")
    chosen = np.zeros(len(train), bool)
    ids_by_class = np.split(
        np.argsort(train.labels, kind="stable"),
        np.bincount(train.labels, minlength=len(source.classes)).cumsum()[:-1],
    )
    for name, ids in zip(source.classes, ids_by_class, strict=True):
        num_val = round(fraction * len(ids))
        if num_val == len(ids) > 0:
            raise ValueError(f"class {name} has {len(ids)} images: none would be left to train on")
        chosen[ids[np.argsort(keys[ids])[:num_val]]] = True
    if not chosen.any():
        raise ValueError(f"--val-fraction {fraction} takes no image of any class: too small")
    splits = {
        "train": replace(
            train.take(np.flatnonzero(~chosen)), ignored=train.ignored, strays=train.strays
        ),
        "val": train.take(np.flatnonzero(chosen)),
        **{name: rest for name, rest in source.splits.items() if name != "train"},
    }
    return replace(source, splits=splits)


def class_files(root: Path, split: str) -> dict[bytes, Found]:
    """The files of every class folder of root/split (of root where `split` is ""), by class name.

    What lies beside the class folders and belongs to none counts as litter, under the name b"".
    ValueError where a link there leads nowhere: it may be a class, and all labels would shift.
    """
    names, num_ignored, strays = [], 0, []
    above = os.fsencode(split)
    with os.scandir(os.fsencode(root / split)) as entries:
        for entry in entries:
            if entry.is_dir() and entry.name[:1] != b".":
                names.append(entry.name)
                continue
            num_ignored += 1
            if not litter(entry.name):
                _refuse_broken_link(os.fsdecode(entry.path))
                strays.append(os.path.join(above, entry.name))
    found = {name: files_below(root, os.path.join(above, name)) for name in sorted(names)}
    return found | {b"": Found(Names.pack([]), num_ignored, tuple(sorted(strays)))}


def _refuse_broken_link(path: str) -> None:
    if os.path.islink(path) and not os.path.exists(path):
        raise ValueError(
            f"{path} is a broken symbolic link, to {os.readlink(path)}: its images would be left "
            "out; mount what it leads to, or remove it"
        )


def empty_classes(found: Mapping[bytes, Found]) -> tuple[str, ...]:
    """The names of the class folders without a file."""
    return tuple(os.fsdecode(name) for name in sorted(found) if name and not found[name].names)


def files_below(root: Path, folder: bytes) -> Found:
    """All files below root/folder, links to files too; ValueError where it cannot be listed.

    Links to folders are not followed (they may lead in circles): they are listed, and end in
    quarantine.
    """
    base = os.fsencode(root)
    names: list[bytes] = []
    num_ignored = 0
    for parent, folders, files in os.walk(os.path.join(base, folder), onerror=_raise):
        prefix = parent[len(base) :].lstrip(b"/") + b"/"
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        for name in files + links:
            if litter(name):
                num_ignored += 1
            else:
                names.append(prefix + name)
        num_ignored += sum(litter(name) for name in folders)
        folders[:] = [name for name in folders if not litter(name)]
    return Found(Names.pack(sorted(names)), num_ignored)


def folder_listing(
    root: Path, classes: Sequence[bytes], found: Mapping[bytes, Found]
) -> Listing:
    """The listing of a split's class folders, in bytewise order of the paths.

    Folders are taken in the order of their names with a slash ("a-b/" comes before "a/"), which is
    that of the paths; so no list of all paths is ever sorted.
    """
    label_of = {name: label for label, name in enumerate(classes)}
    folders = sorted((name for name in found if name in label_of), key=lambda name: name + b"/")
    counts = [len(found[name].names) for name in folders]
    names = Names.pack(path for name in folders for path in found[name].names)
    labels = np.repeat(np.array([label_of[name] for name in folders], np.int32), counts)
    return Listing(
        names=names,
        labels=labels,
        places=FilePlaces(root, names),
        ignored=sum(inside.ignored for inside in found.values()),
        strays=tuple(os.fsdecode(name) for inside in found.values() for name in inside.strays),
    )


def _raise(error: OSError) -> None:
    name = os.fsdecode(error.filename)
    raise ValueError(f"{name} cannot be listed: {error.strerror}") from error
