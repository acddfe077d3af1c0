"""Data sets of any size that take no space: an index of made-up samples, and listings of them."""

from pathlib import Path

import numpy as np
from isal.isal_zlib import crc32

from pipeline.images import SIZE_PX, ImageFormat, encode
from pipeline.manifest import Dataset, Shard, Split, fingerprint, write_dataset
from pipeline.originals import FilePlaces, Listing, Names, Source
from pipeline.plan import Settings
from pipeline.shards import BLOCK_BYTES, INDEX_DTYPE, Index, shard_stem, write_index

NUM_CLASSES = 21_841  # ImageNet-21k's
IMAGES_PER_SHARD = Settings().images_per_shard


def simulate_shards(
    folder: Path,
    num_images: int,
    num_classes: int = NUM_CLASSES,
    images_per_shard: int = IMAGES_PER_SHARD,
) -> Dataset:
    """Writes a shard folder of `num_images` training images, all equal, into `folder`.

    Its index is a true one, of shuffled ids and labels; its shards are one file under many names,
    with an image wherever the index has a sample. 15 million images take 420 MB of the disk.
    """
    image, slot = _slot()
    full, rest = divmod(num_images, images_per_shard)
    sizes = [images_per_shard] * full + [rest] * (rest > 0)
    shards: list[Shard] = []
    for number, size in enumerate(sizes):
        path = folder / f"{shard_stem('train', number)}.tar"
        num_bytes = len(slot) * size + 2 * BLOCK_BYTES
        if shards and shards[0].samples == size:
            path.hardlink_to(folder / shards[0].name)
        else:
            path.write_bytes((slot * size).ljust(num_bytes, b"\0"))
        shards.append(
            Shard(name=path.name, samples=size, bytes=num_bytes, sha256=f"{number:064x}")
        )
    index_sha256 = write_index(folder, "train", _rows(sizes, image, len(slot), num_classes))
    split = Split(
        shards=tuple(shards),
        found=num_images,
        written=num_images,
        quarantined=0,
        enlarged=0,
        source_bytes=len(image) * num_images,
        fingerprint=fingerprint(shards),
        index_sha256=index_sha256,
    )
    dataset = Dataset(
        folder=folder,
        classes=_class_names(num_classes),
        settings=Settings(images_per_shard=images_per_shard).as_dict(),
        splits={"train": split},
    )
    write_dataset(dataset)
    return dataset


def simulate_source(num_images: int, num_classes: int = NUM_CLASSES) -> Source:
    """A listing of `num_images` originals named as ImageNet names its own; none of them exists."""
    per_class = -(-num_images // num_classes)
    labels = np.repeat(np.arange(num_classes, dtype=np.int32), per_class)[:num_images]
    names = Names.pack(
        b"train/n%08d/n%08d_%d.JPEG" % (label, label, i)
        for label in range(num_classes)
        for i in range(min(per_class, num_images - label * per_class))
    )
    listing = Listing(names=names, labels=labels, places=FilePlaces(Path("nowhere"), names))
    return Source(
        root=Path("nowhere"),
        format="folders",
        classes=_class_names(num_classes),
        splits={"train": listing},
    )


def _class_names(num_classes: int) -> tuple[str, ...]:
    return tuple(f"n{label:08d}" for label in range(num_classes))


def _slot() -> tuple[bytes, bytes]:
    """An image, and what a sample of it takes of a shard: its header, the image, its label."""
    ramp = np.arange(SIZE_PX, dtype=np.uint8)[:, None, None]
    pixels = np.ascontiguousarray(np.broadcast_to(ramp, (SIZE_PX, SIZE_PX, 3)))
    image = encode(pixels, ImageFormat())
    num_bytes = BLOCK_BYTES + len(image) + -len(image) % BLOCK_BYTES + 2 * BLOCK_BYTES
    return image, (bytes(BLOCK_BYTES) + image).ljust(num_bytes, b"\0")


def _rows(sizes: list[int], image: bytes, slot_bytes: int, num_classes: int) -> Index:
    """The index of such shards: ids and labels shuffled by a seed, as preparation has them."""
    generator = np.random.default_rng(0)
    num_images = sum(sizes)
    rows = np.zeros(num_images, INDEX_DTYPE)
    rows["shard"] = np.repeat(np.arange(len(sizes)), sizes)
    rows["offset"] = BLOCK_BYTES + slot_bytes * (np.arange(num_images) % sizes[0])
    rows["size"], rows["crc32"] = len(image), crc32(image)
    rows["label"] = generator.integers(0, num_classes, num_images)
    rows["id"] = generator.permutation(num_images)
    return rows
