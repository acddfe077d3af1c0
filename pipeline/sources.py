"""Where originals come from: image folders, listed in an order that nothing else can change."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SPLITS = ("train", "val")
IGNORED_NAMES = (b"thumbs.db", b"desktop.ini")  # and every name that begins with a dot


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The originals of a split; an original's position here is its sample id.

    names: relative POSIX paths as the file system has them (bytes), sorted bytewise.
    labels: position of each original's class in `Source.classes`. ignored: files passed over
    because they are a file manager's litter.
    """

    names: Sequence[bytes]
    labels: Sequence[int]
    ignored: int


@dataclass(frozen=True, kw_only=True)
class Source:
    """A folder of originals: train/<class>/… and, where there is one, val/<class>/…"""

    root: Path
    classes: tuple[str, ...]
    splits: Mapping[str, Listing]


def open_source(root: Path) -> Source:
    """Lists the image folders under `root`; classes are the sorted names of train's folders.

    ValueError where there are none, where train has no file, or where val has a class that train
    lacks.
    """
    if not root.is_dir():
        raise ValueError(f"there is no folder {root}; expected train/<class>/* (and val/) in it")
    if not (root / "train").is_dir():
        inside = ", ".join(sorted(entry.name for entry in root.iterdir())[:5]) or "nothing"
        raise ValueError(
            f"{root} has no train/ folder; expected train/<class>/* and val/<class>/*, found: "
            f"{inside}"
        )
    folders = {name: _class_folders(root, name) for name in SPLITS if (root / name).is_dir()}
    files = {
        split: {folder: _files(root, split, folder) for folder in names}
        for split, names in folders.items()
    }
    classes = sorted(folder for folder, found in files["train"].items() if found.names)
    if not classes:
        raise ValueError(f"{root}/train has no files in class folders; expected train/<class>/*")
    for split, found in files.items():
        used = (name for name, inside in found.items() if inside.names)
        extra = sorted(name for name in used if name not in classes)
        if extra:
            shown = ", ".join(os.fsdecode(name) for name in extra[:5])
            raise ValueError(
                f"{root}/{split} has {len(extra)} classes that train has no images of: {shown}; "
                f"add them to train or take them out of {split}"
            )
    return Source(
        root=root,
        classes=tuple(os.fsdecode(name) for name in classes),
        splits={split: _listing(classes, found) for split, found in files.items()},
    )


def read_original(root: Path, name: bytes) -> bytes:
    """The bytes of an original; OSError as the file system raises it."""
    with open(os.path.join(os.fsencode(root), name), "rb") as file:
        return file.read()


@dataclass(frozen=True)
class _Found:
    names: list[bytes]
    ignored: int


def _class_folders(root: Path, split: str) -> list[bytes]:
    with os.scandir(os.fsencode(root / split)) as entries:
        return [entry.name for entry in entries if entry.is_dir() and entry.name[:1] != b"."]


def _files(root: Path, split: str, folder: bytes) -> _Found:
    """All files below a class folder, as sorted paths relative to the root."""
    base = os.fsencode(root)
    names: list[bytes] = []
    ignored = 0
    for parent, _, files in os.walk(os.path.join(base, split.encode(), folder), onerror=_raise):
        for name in files:
            if name[:1] == b"." or name.lower() in IGNORED_NAMES:
                ignored += 1
            else:
                names.append(parent[len(base) + 1 :] + b"/" + name)
    return _Found(sorted(names), ignored)


def _raise(error: OSError) -> None:
    name = os.fsdecode(error.filename)
    raise ValueError(f"{name} cannot be listed: {error.strerror}") from error


def _listing(classes: list[bytes], found: Mapping[bytes, _Found]) -> Listing:
    label_of = {name: label for label, name in enumerate(classes)}
    # A sort of the whole paths: "a/" and "a-b/" sort otherwise than the names "a" and "a-b" do.
    pairs = sorted(
        (name, label_of[folder]) for folder, inside in found.items() for name in inside.names
    )
    return Listing(
        names=[name for name, _ in pairs],
        labels=[label for _, label in pairs],
        ignored=sum(inside.ignored for inside in found.values()),
    )
