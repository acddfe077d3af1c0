"""Rows of the training split rendered by the real pipeline, on the CPU, for pictures."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.backends import RenderSettings, Work, open_first
from pipeline.cores import available_cores
from pipeline.images import RAW_HEADER
from pipeline.manifest import Dataset
from pipeline.open_shards import LocalShards
from pipeline.order import Rows
from pipeline.reader import Reader


def render_rows(
    dataset: Dataset,
    rows: Rows,
    works: Sequence[tuple[NDArray[np.int32], NDArray[np.float32] | None]],
    *,
    full: bool,
) -> list[NDArray[Any]]:
    """Renders the images of `rows` once for each (crop, offsets): int32 and float32 (N, 3).

    Returns for each: float32 (N, 224, 224, 3) in 0..255 units plus lighting, unclamped; with
    `full`, uint8 (N, 256, 256, 3) as stored.
    """
    settings = RenderSettings(
        encoding=dataset.encoding,
        max_rows=len(rows),
        num_threads=available_cores(),
        depth=1,
        full=full,
        dtype=np.uint8 if full else np.float32,
    )
    shards = [dataset.folder / shard.name for shard in dataset.split("train").shards]
    header = RAW_HEADER if dataset.encoding == "raw" else b""
    reader = Reader(
        LocalShards(shards),
        dataset.index("train"),
        header=header,
        max_rows=len(rows),
        depth=1,
        num_threads=1,
    )
    opened = open_first("auto", lambda _: settings, on_gpu=False, encoding=dataset.encoding)
    renderer = opened.backend
    rendered = []
    try:
        for crop, offsets in works:
            reader.request(rows)
            renderer.submit(renderer.prepare(Work(reader.take(), crop, offsets)))
            rendered.append(np.array(np.from_dlpack(renderer.take())))
            reader.release()
    finally:
        renderer.close()
        reader.close()
    return rendered
