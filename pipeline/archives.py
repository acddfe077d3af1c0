"""Tar files as sources, read in place: the members of one, and of the tar files within one."""

import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.originals import Listing, SpanPlaces, litter, sorted_listing

BLOCK_BYTES = 512


@dataclass(frozen=True)
class Member:
    """A file within an archive: its bytes are [offset, offset + size) of the archive's file."""

    archive: Path
    name: bytes
    offset: int
    size: int


def members(path: Path) -> list[Member]:
    """The regular files in a tar file; ValueError where it is cut off or no tar file."""
    try:
        with tarfile.open(path, "r:") as tar:
            return list(_members(tar, path, start=0, size=os.path.getsize(path)))
    except (tarfile.TarError, OSError) as error:
        raise ValueError(_damaged(path, error)) from error


def nested_members(path: Path) -> Iterator[tuple[bytes, list[Member]]]:
    """The classes of a tar of class tars: (class name, its files), in the archive's order.

    ValueError where the archive or a tar within it is cut off.
    """
    try:
        with tarfile.open(path, "r:") as outer:
            for info in _whole_infos(outer, os.path.getsize(path)):
                inner = outer.extractfile(info)
                name = os.fsencode(info.name)
                if inner is None or litter(name) or not name.endswith(b".tar"):
                    continue
                with inner, tarfile.open(fileobj=inner, mode="r:") as tar:
                    found = list(_members(tar, path, start=info.offset_data, size=info.size))
                yield class_of(name), found
    except (tarfile.TarError, OSError) as error:
        raise ValueError(_damaged(path, error)) from error


def class_of(name: bytes) -> bytes:
    """The class that an archive is named after: n01440764 of train/n01440764.tar."""
    return name.rsplit(b"/", 1)[-1].removesuffix(b".tar")


def class_names(found: Sequence[tuple[bytes, list[Member]]]) -> list[bytes]:
    """The sorted names of the classes that have an image."""
    used = {name for name, inside in found if any(not litter(member.name) for member in inside)}
    return sorted(used)


def class_listing(
    split: str, found: Sequence[tuple[bytes, list[Member]]], classes: Sequence[bytes]
) -> Listing:
    """The listing of class archives; names are split/class/file, as in an image folder."""
    label_of = {name: label for label, name in enumerate(classes)}
    prefix = split.encode()
    rows = [
        (b"/".join((prefix, folder, member.name.rsplit(b"/", 1)[-1])), label_of[folder], member)
        for folder, inside in found
        for member in inside
        if not litter(member.name)
    ]
    num_ignored = sum(litter(member.name) for _, inside in found for member in inside)
    return span_listing(
        [row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows], num_ignored
    )


def span_listing(
    names: Sequence[bytes], labels: Sequence[int], places: Sequence[Member], ignored: int = 0
) -> Listing:
    """A sorted listing of archive members."""
    archives = tuple(dict.fromkeys(member.archive for member in places))
    number = {path: i for i, path in enumerate(archives)}
    spans = SpanPlaces(
        archives=archives,
        archive=np.array([number[member.archive] for member in places], np.uint16),
        offset=np.array([member.offset for member in places], np.int64),
        size=np.array([member.size for member in places], np.int64),
    )
    return sorted_listing(names, labels, spans, ignored)


def _members(tar: tarfile.TarFile, path: Path, *, start: int, size: int) -> Iterator[Member]:
    """The regular files of an open tar that fills [start, start + size) of the file `path`."""
    for info in _whole_infos(tar, size):
        if info.isreg():
            yield Member(path, os.fsencode(info.name), start + info.offset_data, info.size)


def _whole_infos(tar: tarfile.TarFile, size: int) -> Iterator[tarfile.TarInfo]:
    """The members of an open tar of `size` bytes; tarfile.ReadError where it is cut off.

    tarfile itself takes a file that ends after a whole member for a whole archive.
    """
    last = "its beginning"
    for info in tar:
        if info.offset_data + info.size > size:
            raise tarfile.ReadError(f"cut off within {info.name}")
        yield info
        last = info.name
    if tar.offset + BLOCK_BYTES > size:  # every tar ends with empty blocks
        raise tarfile.ReadError(f"cut off after {last}")
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    if any(tar.fileobj.read(BLOCK_BYTES)):  # what is no header, tarfile takes for the end
        raise tarfile.ReadError(f"damaged after {last}")


def _damaged(path: Path, error: Exception) -> str:
    what = error.strerror if isinstance(error, OSError) and error.strerror else error
    return f"{path} cannot be read as a tar file ({what}); copy or download it again"
