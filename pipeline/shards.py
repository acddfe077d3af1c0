"""The bytes on disk: names of files, the records of a shard, its index rows and sums."""

import hashlib
import io
import tarfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
from isal.isal_zlib import crc32
from numpy.typing import NDArray

from pipeline.atomic import is_local, whole_file, write_whole
from pipeline.moments import Sums
from pipeline.transfer import read_file

BLOCK_BYTES = 512
NUM_KEY_DIGITS = 9
INDEX_DTYPE = np.dtype(
    [
        ("shard", "<u4"),  # number of the shard within its split
        ("offset", "<u8"),  # of the encoded image's first byte within the shard
        ("size", "<u4"),  # bytes of the encoded image
        ("label", "<i4"),
        ("id", "<u4"),  # sample id
        ("crc32", "<u4"),  # of the encoded image
    ]
)
COMPONENTS = {"jpeg": "jpg", "raw": "npy"}  # encoding -> extension of the image's component


def _tar_header() -> bytes:
    """A header as tarfile makes it (mtime, uid and gid 0), its checksum's field blank.

    tarfile itself would take as long for the headers as the disk for the images.
    """
    header = bytearray(tarfile.TarInfo().tobuf(tarfile.USTAR_FORMAT))
    header[148:156] = b" " * 8  # as the standard has it for the sum
    return bytes(header)


TAR_HEADER = _tar_header()  # its name blank, its size "0" eleven times
TAR_HEADER_SUM = sum(TAR_HEADER) - sum(TAR_HEADER[124:135])
Index = NDArray[np.void]  # rows of INDEX_DTYPE
# NumPy has Python's parser read the header of an array. That of Python 3.11.0 to 3.11.7 fails now
# and then where two threads are in it (python/cpython#106905): a sound file would be "damaged".
ONE_PARSER = threading.Lock()


def shard_stem(split: str, number: int) -> str:
    """The name of a shard without its ending, such as train-000000."""
    return f"{split}-{number:06d}"


def index_name(split: str) -> str:
    """The name of the file that holds a split's index rows."""
    return f"{split}.index.npy"


@dataclass(frozen=True)
class Written:
    """A finished shard: its size and SHA-256, its index rows, the text of its DALI index."""

    num_bytes: int
    sha256: str
    rows: Index
    dali_index: bytes


class ShardWriter:
    """Writes one USTAR shard; the file appears when the block ends without an error.

    with ShardWriter(path, number, "jpg") as writer: writer.add(...)
    Afterwards `writer.written` says what was written. OSError as the file system raises it.
    """

    def __init__(self, path: Path, number: int, component: str) -> None:
        self._number = number
        self._component = component
        self._whole = whole_file(path)
        self._hash = hashlib.sha256()
        self._offset = 0
        self._rows: list[tuple[int, int, int, int, int, int]] = []
        self._file: BinaryIO | None = None
        self.written: Written | None = None

    def __enter__(self) -> Self:
        self._file = self._whole.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            try:
                self.written = self._end()
            except BaseException as failure:  # told to the file, which goes and names itself
                self._whole.__exit__(type(failure), failure, failure.__traceback__)
                raise
        self._whole.__exit__(kind, error, trace)

    def _end(self) -> Written:
        self._write(bytes(2 * BLOCK_BYTES))  # the end of a tar file
        rows = np.array(self._rows, INDEX_DTYPE)
        return Written(
            num_bytes=self._offset,
            sha256=self._hash.hexdigest(),
            rows=rows,
            dali_index=dali_index_text(rows, self._component),
        )

    def add(self, sample_id: int, label: int, encoded: bytes) -> None:
        """Appends a sample: its encoded image, then its label as decimal text."""
        key = f"{sample_id:0{NUM_KEY_DIGITS}d}"
        text = str(label).encode()
        offset = self._offset + BLOCK_BYTES
        image = tar_member(f"{key}.{self._component}", encoded)
        self._write(image + tar_member(f"{key}.cls", text))
        self._rows.append((self._number, offset, len(encoded), label, sample_id, crc32(encoded)))

    def _write(self, data: bytes) -> None:
        assert self._file is not None
        self._file.write(data)
        self._hash.update(data)
        self._offset += len(data)


def tar_member(name: str, data: bytes) -> bytes:
    """A file of a USTAR archive: header, content, and zeros up to a whole block."""
    text, size = name.encode(), b"%011o" % len(data)
    header = bytearray(TAR_HEADER)
    header[: len(text)], header[124:135] = text, size
    header[148:156] = b"%06o\0 " % (TAR_HEADER_SUM + sum(text) + sum(size))
    return b"".join((header, data, bytes(-len(data) % BLOCK_BYTES)))


def dali_index_text(rows: Index, component: str) -> bytes:
    """The index of a shard as DALI's webdataset reader wants it, version 1.2.

    A line per sample: kind, offset, size and name of the image, then of the label behind it.
    """
    lines = [f"v1.2 {len(rows)}"]
    for offset, size, label, sample_id in rows[["offset", "size", "label", "id"]].tolist():
        key = f"{sample_id:0{NUM_KEY_DIGITS}d}"
        label_offset = offset + size + -size % BLOCK_BYTES + BLOCK_BYTES
        lines.append(
            f"{component} {offset} {size} {key}.{component} "
            f"cls {label_offset} {len(str(label))} {key}.cls"
        )
    return "".join(line + "\n" for line in lines).encode()


def dali_index_path(folder: Path, split: str, number: int) -> Path:
    """Where the index of a shard for DALI's own reader lies."""
    return folder / f"{shard_stem(split, number)}.idx"


def sums_path(folder: Path, split: str, number: int) -> Path:
    """Where the exact sums, the index rows and the originals' CRC-32 of a shard lie."""
    return folder / f"{shard_stem(split, number)}.sums.npz"


def write_sums(
    folder: Path, split: str, number: int, sums: Sums, rows: Index, source_crc32: Sequence[int]
) -> None:
    """Writes a shard's exact sums and its index rows; equal arrays give equal bytes.

    source_crc32: of the bytes of every original of the shard, in the order of the plan, those in
    quarantine included.
    """
    crcs = np.array(source_crc32, np.uint32)
    with whole_file(sums_path(folder, split, number)) as file:
        np.savez(file, allow_pickle=False, **sums.arrays(), rows=rows, source_crc32=crcs)


def read_rows(folder: Path, split: str, number: int) -> Index:
    """The index rows of one shard; OSError or ValueError where they cannot be read."""
    with _arrays(sums_path(folder, split, number)) as arrays:
        rows: Index = arrays["rows"]
    return rows


def read_source_crc32(folder: Path, split: str, number: int) -> NDArray[np.uint32]:
    """The CRC-32 of the originals of one shard, in the plan's order; errors as above."""
    with _arrays(sums_path(folder, split, number)) as arrays:
        found: NDArray[np.uint32] = arrays["source_crc32"]
    return found


def read_sums(folder: Path, split: str, number: int) -> Sums:
    """The exact sums over one shard's decoded pixels; OSError or ValueError as above."""
    with _arrays(sums_path(folder, split, number)) as arrays:
        return Sums.from_arrays(arrays)


@contextmanager
def _arrays(path: Path) -> Iterator[Any]:
    """An opened .npz file; ValueError where it is damaged."""
    try:
        # NumPy alone would leave the file open where it is no archive.
        with path.open("rb") as file:
            # An object store is not waited for under the lock.
            content = file if is_local(path) else io.BytesIO(file.read())
            with ONE_PARSER, np.load(content, allow_pickle=False) as arrays:
                yield arrays
    except OSError:
        raise
    except Exception as error:  # zipfile, tokenize and struct raise their own, RuntimeError too
        raise ValueError(f"{path} is damaged: {error}") from error


def write_index(folder: Path, split: str, rows: Index) -> str:
    """Writes a split's index file; returns the SHA-256 of its bytes."""
    buffer = io.BytesIO()
    np.save(buffer, rows, allow_pickle=False)
    write_whole(folder / index_name(split), buffer.getvalue())
    return hashlib.sha256(buffer.getbuffer()).hexdigest()


def read_index(folder: Path, split: str, sha256: str, num_samples: int) -> Index:
    """The index rows of a split, read-only; ValueError, with the mend, where they are damaged."""
    path = folder / index_name(split)
    mend = (
        "prepare again, finished shards are kept and the index is written anew: "
        f"tools/prepare_shards.py SOURCE --out {folder}"
    )
    try:
        data = read_file(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); {mend}") from error
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise ValueError(
            f"{path} is damaged: its SHA-256 is {found[:12]}…, dataset.json says {sha256[:12]}…; "
            f"{mend}"
        )
    header = io.BytesIO(data)
    assert np.lib.format.read_magic(header) == (1, 0)
    with ONE_PARSER:
        shape, _, dtype = np.lib.format.read_array_header_1_0(header)
    assert dtype == INDEX_DTYPE
    if shape != (num_samples,):
        raise ValueError(
            f"{path} has {shape[0]} rows, dataset.json says {num_samples}; {mend}"
        )
    return np.frombuffer(data, dtype, offset=header.tell())  # np.load would copy 28 bytes a row
