"""Tar files as sources, read in place: the members of one, and of the tar files within one."""

import io
import os
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pipeline.originals import Listing, Names, SpanPlaces, litter, sorted_listing

BLOCK_BYTES = 512


@dataclass(frozen=True)
class Member:
    """A file within an archive: its bytes are [offset, offset + size) of the archive's file."""

    archive: Path
    name: bytes
    offset: int
    size: int


def members(path: Path, data: bytes | None = None) -> list[Member]:
    """The regular files in a tar file; ValueError where it is cut off or no tar file.

    data: its bytes, where they were read already (those of an object store have to be).
    """
    try:
        with open(path, "rb") if data is None else io.BytesIO(data) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                return list(_members(tar, path, start=0, size=size))
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


def holds_tars(path: Path) -> bool:
    """Whether the first file in a tar is a tar itself; ValueError where it is no tar file."""
    try:
        with tarfile.open(path, "r:") as tar:
            first = next((info for info in tar if not info.isdir()), None)
    except (tarfile.TarError, OSError) as error:
        raise ValueError(_damaged(path, error)) from error
    return first is not None and first.name.endswith(".tar")


def class_of(name: bytes) -> bytes:
    """The class that an archive is named after: n01440764 of train/n01440764.tar."""
    return name.rsplit(b"/", 1)[-1].removesuffix(b".tar")


def class_listing(
    root: Path, split: str, found: Iterable[tuple[bytes, list[Member]]]
) -> tuple[list[bytes], Listing, tuple[str, ...]]:
    """The sorted classes, and the listing, of class archives as they come, each with its files.

    Names are split/class/file, as in an image folder. With them the names of archives without an
    image, which are no classes. ValueError where there is no image at all.
    """
    seen = set()
    parts: dict[bytes, list[Listing]] = {}  # packed at once: there can be 15 million files
    num_ignored = 0
    for folder, inside in found:
        seen.add(folder)
        images = [member for member in inside if not litter(member.name)]
        num_ignored += len(inside) - len(images)
        if images:
            prefix = b"/".join((split.encode(), folder, b""))
            names = [prefix + member.name.rsplit(b"/", 1)[-1] for member in images]
            parts.setdefault(folder, []).append(span_listing(names, [0] * len(names), images))
    if not parts:
        raise ValueError(f"{root} holds no class archives with images (n*.tar)")
    classes = sorted(parts)
    label_of = {name: label for label, name in enumerate(classes)}
    # With a slash, the order of folders is that of their files' names: "a-b/" before "a/".
    folders = sorted(classes, key=lambda name: name + b"/")
    joined = [_class_of_parts(parts.pop(folder)) for folder in folders]
    labels = np.array([label_of[folder] for folder in folders], np.int32)
    whole = _joined(joined)
    counts = [len(listing) for listing in joined]
    listing = replace(whole, labels=np.repeat(labels, counts), ignored=num_ignored)
    return classes, listing, tuple(os.fsdecode(name) for name in sorted(seen.difference(classes)))


def _class_of_parts(parts: Sequence[Listing]) -> Listing:
    """The listing of one class, which several archives may hold."""
    if len(parts) == 1:
        return parts[0]
    whole = _joined(parts)
    return sorted_listing(whole.names, whole.labels.tolist(), whole.places)


def _joined(listings: Sequence[Listing]) -> Listing:
    """Listings of archive members as one, in the order given."""
    places = [listing.places for listing in listings if isinstance(listing.places, SpanPlaces)]
    archives = tuple(dict.fromkeys(path for place in places for path in place.archives))
    number = {path: i for i, path in enumerate(archives)}
    numbers = [np.array([number[path] for path in place.archives]) for place in places]
    archive = [new[place.archive] for new, place in zip(numbers, places, strict=True)]
    return Listing(
        names=Names.pack(name for listing in listings for name in listing.names),
        labels=np.concatenate([listing.labels for listing in listings]),
        places=SpanPlaces(
            archives=archives,
            archive=np.concatenate(archive).astype(np.uint32),
            offset=np.concatenate([place.offset for place in places]),
            size=np.concatenate([place.size for place in places]),
        ),
    )


def span_listing(
    names: Sequence[bytes], labels: Sequence[int], places: Sequence[Member], ignored: int = 0
) -> Listing:
    """A sorted listing of archive members."""
    archives = tuple(dict.fromkeys(member.archive for member in places))
    number = {path: i for i, path in enumerate(archives)}
    spans = SpanPlaces(
        archives=archives,
        archive=np.array([number[member.archive] for member in places], np.uint32),
        offset=np.array([member.offset for member in places], np.int64),
        size=np.array([member.size for member in places], np.int64),
    )
    return sorted_listing(names, labels, spans, ignored)


def _members(tar: tarfile.TarFile, path: Path, *, start: int, size: int) -> Iterator[Member]:
    """The files of an open tar that fills [start, start + size) of the file `path`.

    A hard link is the file it names. What else is no folder (symbolic links, devices, sparse
    files) has no bytes here: it is given with none, so that it ends in quarantine and not unseen.
    """
    files: dict[str, tarfile.TarInfo] = {}
    for info in _whole_infos(tar, size):
        if info.isdir():
            continue
        target = files.get(info.linkname, info) if info.islnk() else info
        num_bytes = target.size if target.isreg() and not target.issparse() else 0
        files[info.name] = target
        yield Member(path, os.fsencode(info.name), start + target.offset_data, num_bytes)


def _whole_infos(tar: tarfile.TarFile, size: int) -> Iterator[tarfile.TarInfo]:
    """The members of an open tar of `size` bytes; tarfile.ReadError where it is cut off.

    tarfile itself takes a file that ends after a whole member for a whole archive.
    """
    last = "its beginning"
    for info in tar:
        if info.size < 0:  # tarfile would go back and read the same members for ever
            raise tarfile.ReadError(f"damaged at {info.name}")
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
