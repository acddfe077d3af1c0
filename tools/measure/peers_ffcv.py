"""FFCV, as its documentation recommends: its own file, compiled pipeline, memory-mapped, shuffled.

The stored JPEGs, or raw pixels, are copied into a .beton file as they are. RandomResizedCrop with
area 224²/256² and ratio 1 is the 224-px crop; RandomHorizontalFlip; the lighting is an operation
of the same form as FFCV's own NormalizeImage, which makes float32 of uint8 in the compiled loop;
the order is its RANDOM. It differs from the others in that FFCV decodes with the fast DCT of
libjpeg-turbo (less work; on real photographs up to 9 levels off, 1 on average), and that it
overwrites a batch after a few more were taken.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ffcv.fields import IntField, RGBImageField  # type: ignore[import-not-found]
from ffcv.fields.decoders import (  # type: ignore[import-not-found]
    IntDecoder,
    RandomResizedCropRGBImageDecoder,
)
from ffcv.fields.rgb_image import IMAGE_MODES  # type: ignore[import-not-found]
from ffcv.loader import Loader, OrderOption  # type: ignore[import-not-found]
from ffcv.pipeline.allocation_query import AllocationQuery  # type: ignore[import-not-found]
from ffcv.pipeline.compiler import Compiler  # type: ignore[import-not-found]
from ffcv.pipeline.operation import Operation  # type: ignore[import-not-found]
from ffcv.transforms import (  # type: ignore[import-not-found]
    RandomHorizontalFlip,
    ToTensor,
    ToTorchImage,
)
from ffcv.writer import DatasetWriter  # type: ignore[import-not-found]
from numpy.typing import NDArray

from pipeline.draws import ALPHA_STD, CROP_PX
from pipeline.images import SIZE_PX, decode_stored
from pipeline.manifest import open_dataset
from tools.measure.feed import FeedSettings, lighting_matrix

AREA = (CROP_PX / SIZE_PX) ** 2


class Lighting(Operation):  # type: ignore[misc]
    """uint8 images to float32 ones plus the lighting offset, drawn per image."""

    def __init__(self, matrix: NDArray[np.float64]) -> None:
        super().__init__()
        self._matrix = (matrix * ALPHA_STD).astype(np.float32)

    def generate_code(self) -> Callable[..., Any]:
        """The function that FFCV compiles."""
        each, matrix = Compiler.get_iterator(), self._matrix

        def add_lighting(images: Any, result: Any) -> Any:
            for i in each(images.shape[0]):
                a, b, c = np.random.randn(), np.random.randn(), np.random.randn()
                for channel in range(3):
                    row = matrix[channel]
                    offset = np.float32(row[0] * a + row[1] * b + row[2] * c)
                    result[i, :, :, channel] = images[i, :, :, channel] + offset
            return result[: images.shape[0]]

        add_lighting.is_parallel = True  # type: ignore[attr-defined]  # FFCV looks for it
        return add_lighting

    def declare_state_and_memory(self, previous_state: Any) -> tuple[Any, Any]:
        """float32 of the same shape."""
        dtype = np.dtype("float32")
        state = replace(previous_state, jit_mode=True, dtype=dtype)
        return state, AllocationQuery(previous_state.shape, dtype)


class StoredImages:
    """Items: an image's label and its encoded bytes, uint8 (size,); of a raw one, its pixels."""

    def __init__(self, shards: Path) -> None:
        dataset = open_dataset(shards)
        self._paths = [shards / shard.name for shard in dataset.split("train").shards]
        self._index = dataset.index("train")
        self._is_raw = dataset.encoding == "raw"

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, row: int) -> tuple[NDArray[np.uint8], int]:
        found = self._index[row]
        with open(self._paths[found["shard"]], "rb") as file:
            data = os.pread(file.fileno(), int(found["size"]), int(found["offset"]))
        image = decode_stored(data) if self._is_raw else np.frombuffer(data, np.uint8)
        return image, int(found["label"])


class FfcvFeed:
    """A pass is one epoch of FFCV's loader."""

    def __init__(self, settings: FeedSettings) -> None:
        path = settings.scratch / "train.beton"
        write_beton(settings.shards, path, settings.num_threads)
        decoder = RandomResizedCropRGBImageDecoder(
            (CROP_PX, CROP_PX), scale=(AREA, AREA), ratio=(1.0, 1.0)
        )
        lighting = Lighting(lighting_matrix(settings.shards))
        self._loader = Loader(
            str(path),
            batch_size=settings.batch_size,
            num_workers=settings.num_threads,
            order=OrderOption.RANDOM,
            os_cache=True,
            seed=settings.seed,
            drop_last=True,
            pipelines={
                "image": [
                    decoder, RandomHorizontalFlip(), lighting, ToTensor(), ToTorchImage(),
                ],
                "label": [IntDecoder(), ToTensor()],
            },
        )  # fmt: skip

    def batches(self) -> Iterator[torch.Tensor]:
        """An epoch; its thread ends with its last batch."""
        for images, _ in self._loader:
            yield images

    def close(self) -> None:
        """Drops the loader."""
        del self._loader


def write_beton(shards: Path, path: Path, num_workers: int) -> None:
    """Copies the stored images and labels of split train into an FFCV file."""
    if open_dataset(shards).encoding == "raw":
        field = RGBImageField(write_mode="raw")
    else:
        field = RGBImageField(write_mode="jpg")
        field.encode = store_encoded  # FFCV's own would encode pixels anew
    fields = {"image": field, "label": IntField()}
    writer = DatasetWriter(str(path), fields, num_workers=num_workers)
    with redirect_stdout(sys.stderr):
        writer.from_indexed_dataset(StoredImages(shards))


def store_encoded(
    destination: Any, encoded: NDArray[np.uint8], malloc: Callable[[int], Any]
) -> None:
    """What RGBImageField.encode does in mode jpg, of an image that is a JPEG already."""
    destination["mode"] = IMAGE_MODES["jpg"]
    destination["height"] = destination["width"] = SIZE_PX
    destination["data_ptr"], storage = malloc(encoded.nbytes)
    storage[:] = encoded


def open_feed(name: str, settings: FeedSettings) -> FfcvFeed:
    """FFCV's loader."""
    return FfcvFeed(settings)
