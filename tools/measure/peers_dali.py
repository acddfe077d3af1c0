"""DALI by itself, as its documentation recommends: its own webdataset reader and shuffle buffer.

Decoding is cut to the crop, one kernel mirrors, adds the lighting and casts, all random numbers
are drawn by DALI's operators, outputs reach torch without a copy (dynamic executor). Labels are
read as well. It differs from this project's loader in that its shuffle is a buffer of 1,024
samples over shards read in sequence.

stock-dali does all of it on the CPU; stock-dali-gpu decodes on the GPU ("mixed", with the sizes
hinted to its engine, chroma upsampled as on the CPU), where its pixels differ from the CPU's as
those of this project's dali-gpu do, and delivers float16 that lies there.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from nvidia.dali import fn, types
from nvidia.dali.pipeline import Pipeline
from torch.utils.dlpack import from_dlpack

from pipeline.draws import ALPHA_STD, CROP_PX, MAX_OFFSET_PX
from pipeline.images import SIZE_PX
from pipeline.manifest import open_dataset
from pipeline.shards import dali_index_path
from tools.measure.feed import FeedSettings, lighting_matrix, num_batches

QUEUE_DEPTH = 2  # DALI's default
ON_GPU = "stock-dali-gpu"


class DaliFeed:
    """A DALI pipeline that is scheduled for exactly the batches of a pass."""

    def __init__(self, settings: FeedSettings, *, on_gpu: bool) -> None:
        self._num_batches = num_batches(settings)
        self._on_gpu = on_gpu
        self._pipeline = Pipeline(
            batch_size=settings.batch_size,
            num_threads=settings.num_threads,
            device_id=torch.cuda.current_device() if on_gpu else None,
            seed=settings.seed,
            prefetch_queue_depth=QUEUE_DEPTH,
            exec_dynamic=True,
        )
        with self._pipeline:
            encoded, label = read(settings)
            images = render(encoded, *draw(lighting_matrix(settings.shards)), on_gpu=on_gpu)
            self._pipeline.set_outputs(images, label)
        self._pipeline.build()

    def batches(self) -> Iterator[torch.Tensor]:
        """A pass; `Pipeline.run` would go on to prefetch beyond its end."""
        scheduled = 0
        for taken in range(self._num_batches):
            while scheduled < min(taken + QUEUE_DEPTH, self._num_batches):
                self._pipeline.schedule_run()
                scheduled += 1
            stream = torch.cuda.current_stream() if self._on_gpu else None
            images, _ = self._pipeline.share_outputs(cuda_stream=stream)
            self._pipeline.release_outputs()  # a tensor taken keeps its memory
            yield from_dlpack(images.as_tensor()).permute(0, 3, 1, 2)

    def close(self) -> None:
        """Drops the pipeline and its threads."""
        del self._pipeline


def read(settings: FeedSettings) -> tuple[Any, Any]:
    """Encoded images and their labels (decimal ASCII) in a shuffled stream, as DALI nodes."""
    dataset = open_dataset(settings.shards)
    shards = dataset.split("train").shards
    encoded, label = fn.readers.webdataset(  # type: ignore[misc]  # its stub knows no outputs
        paths=[str(settings.shards / shard.name) for shard in shards],
        index_paths=[
            str(dali_index_path(settings.shards, "train", number)) for number in range(len(shards))
        ],
        ext=["jpg", "cls"],
        missing_component_behavior="error",
        random_shuffle=True,
    )
    return encoded, label


def draw(matrix: NDArray[np.float64]) -> tuple[Any, Any, Any, Any]:
    """Crop position x and y (k/32), flip (0 or 1), minus the lighting offset (3,): DALI nodes."""
    places = [k / MAX_OFFSET_PX for k in range(MAX_OFFSET_PX + 1)]
    alpha = fn.random.normal(stddev=ALPHA_STD, shape=[1, 3])
    negative_offset = fn.coord_transform(alpha, M=(-matrix).ravel().tolist())
    x, y = fn.random.uniform(values=places), fn.random.uniform(values=places)
    return x, y, fn.random.coin_flip(), fn.reshape(negative_offset, shape=[3])


def render(
    encoded: Any, x: Any, y: Any, flip: Any, negative_offset: Any, *, on_gpu: bool = False
) -> Any:
    """(224, 224, 3) of each encoded image, as a DALI node; subtracts what is negative.

    float32, or on_gpu float16.
    """
    engine: dict[str, Any] = {
        "jpeg_fancy_upsampling": True,
        "preallocate_width_hint": SIZE_PX,
        "preallocate_height_hint": SIZE_PX,
    }
    pixels = fn.decoders.image_crop(
        encoded,
        device="mixed" if on_gpu else "cpu",
        output_type=types.RGB,
        crop=(CROP_PX, CROP_PX),
        crop_pos_x=x,
        crop_pos_y=y,
        **(engine if on_gpu else {}),
    )
    return fn.crop_mirror_normalize(
        pixels,
        mirror=flip,
        mean=negative_offset,
        std=[1.0, 1.0, 1.0],
        dtype=types.FLOAT16 if on_gpu else types.FLOAT,
        output_layout="HWC",
    )


def open_feed(name: str, settings: FeedSettings) -> DaliFeed:
    """DALI's own reader, with what follows it on the CPU or on the GPU."""
    return DaliFeed(settings, on_gpu=name == ON_GPU)
