"""Every contestant does the same work: what it delivers is explained by crop, flip and offset."""

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
import torch
from numpy.typing import NDArray

from pipeline.draws import ALPHA_STD, CROP_PX, MAX_OFFSET_PX
from pipeline.images import Pixels, decode_stored
from pipeline.manifest import open_dataset
from pipeline.reference import cut, render
from tools.measure.contestants import PEERS, Entrant, our_entrant
from tools.measure.feed import FeedSettings, lighting_matrix
from tools.measure.peers_torch import render as torch_render

BATCH_SIZE = 8
GPU_TOLERANCE = 3.0  # of 0..255, mean over an image: GPU decoders round their DCT otherwise
TOLERANCE = 1e-3  # of 0..255: recovering an offset by subtraction rounds
ENTRANTS = (
    our_entrant("numpy"), our_entrant("dali-cpu"),
    *(peer for peer in PEERS.values() if not peer.on_gpu),
)  # fmt: skip

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*multi-threaded, use of fork:DeprecationWarning"  # torch's workers are forked
)


@dataclass(frozen=True)
class Draw:
    """What made an image of a batch: the row of its original, crop (x, y, flip), offset (3,)."""

    row: int
    crop: NDArray[np.int32]
    offset: NDArray[np.float32]


def stored_bytes(shards: Path) -> list[bytes]:
    dataset = open_dataset(shards)
    files = [(shards / shard.name).read_bytes() for shard in dataset.split("train").shards]
    return [
        files[row["shard"]][row["offset"] : row["offset"] + row["size"]]
        for row in dataset.index("train")
    ]


def decode_fast(data: bytes) -> Pixels:
    """With libjpeg-turbo's fast DCT, as FFCV decodes; all others use the accurate one."""
    pixels: Pixels = simplejpeg.decode_jpeg(data, "RGB", fastdct=True)
    return pixels


def find_draw(image: NDArray[np.float32], originals: list[Pixels]) -> Draw:
    """The draw that turns one of `originals` into `image` (224, 224, 3), by trying them all."""
    rng = np.random.default_rng(0)
    probes = [(int(y), int(x)) for y, x in rng.integers(0, CROP_PX, (24, 2))]
    places = MAX_OFFSET_PX + 1
    for row, pixels in enumerate(originals):
        for flip in (0, 1):
            low = np.full((places, places, 3), np.inf, np.float32)  # low, high: (y, x, channel)
            high = -low
            for y, x in probes:
                column = CROP_PX - 1 - x if flip else x
                there = pixels[y : y + places, column : column + places]
                offset = image[y, x] - there
                low, high = np.minimum(low, offset), np.maximum(high, offset)
            spread = (high - low).max(-1)
            y, x = np.unravel_index(spread.argmin(), spread.shape)
            if spread[y, x] < TOLERANCE:
                crop = np.array([x, y, flip], np.int32)
                return Draw(row, crop, low[y, x])
    raise AssertionError("no original, crop, flip and offset make this image")


@dataclass(frozen=True)
class Delivered:
    """Two passes of a contestant: images (N, 224, 224, 3) of each, and what made the first's."""

    entrant: Entrant
    first: list[NDArray[np.float32]]
    second: list[NDArray[np.float32]]
    draws: list[Draw]
    originals: list[Pixels]


@pytest.fixture(scope="module", params=ENTRANTS, ids=lambda entrant: str(entrant.name))
def delivered(
    request: pytest.FixtureRequest, shard_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Delivered]:
    entrant = request.param
    if entrant.lack:
        pytest.skip(entrant.lack)
    settings = FeedSettings(
        shards=shard_folder,
        batch_size=BATCH_SIZE,
        num_threads=1,
        seed=0,
        scratch=tmp_path_factory.mktemp(entrant.name),
    )
    feed = importlib.import_module(entrant.module).open_feed(entrant.name, settings)
    decode = decode_fast if "fast DCT" in entrant.differs else decode_stored
    originals = [decode(data) for data in stored_bytes(shard_folder)]
    try:
        first, second = (_images(feed) for _ in range(2))
    finally:
        feed.close()
    draws = [find_draw(image, originals) for image in first]
    yield Delivered(entrant, first, second, draws, originals)


def _images(feed: Any) -> list[NDArray[np.float32]]:
    images: list[NDArray[np.float32]] = []
    for batch in feed.batches():
        assert batch.shape == (BATCH_SIZE, 3, CROP_PX, CROP_PX) and batch.dtype == torch.float32
        images += list(batch.permute(0, 2, 3, 1).clone().numpy())
    return images


def test_each_image_is_the_reference_s_for_some_draw(delivered: Delivered) -> None:
    """Decoded otherwise where the contestant says so: no pixel differs that is not told."""
    for image, draw in zip(delivered.first, delivered.draws, strict=True):
        wanted = render(delivered.originals[draw.row], draw.crop, draw.offset)
        np.testing.assert_allclose(image, wanted, rtol=0, atol=TOLERANCE)


def test_a_pass_is_every_whole_batch_of_the_split(delivered: Delivered) -> None:
    num_whole = len(delivered.originals) // BATCH_SIZE * BATCH_SIZE
    assert len(delivered.first) == len(delivered.second) == num_whole
    if not delivered.entrant.order:  # as it says: each image once
        assert len({draw.row for draw in delivered.draws}) == num_whole


def test_crops_flips_and_order_are_drawn_per_image_and_differ_between_passes(
    delivered: Delivered,
) -> None:
    crops = np.array([draw.crop for draw in delivered.draws])
    assert crops.min() >= 0 and crops[:, :2].max() <= MAX_OFFSET_PX
    assert len(np.unique(crops[:, 0])) > 8 and len(np.unique(crops[:, 1])) > 8
    assert 0.15 < crops[:, 2].mean() < 0.85
    rows = [draw.row for draw in delivered.draws]
    assert rows != sorted(rows)
    assert not np.array_equal(delivered.first[0], delivered.second[0])


def test_lighting_has_the_strength_of_the_shards_statistics(
    delivered: Delivered, shard_folder: Path
) -> None:
    """Whitened by the statistics, offsets are alpha again: mean 0, deviation 0.1 in all three."""
    offsets = np.array([draw.offset for draw in delivered.draws], np.float64)  # (image, channel)
    alpha = np.linalg.solve(lighting_matrix(shard_folder), offsets.T)  # alpha: (component, image)
    num_images = alpha.shape[1]
    assert np.abs(alpha.mean(1)).max() < 4 * ALPHA_STD / np.sqrt(num_images)
    np.testing.assert_allclose(alpha.std(1), ALPHA_STD, rtol=4 / np.sqrt(2 * num_images))


@pytest.mark.parametrize("crop", [(0, 0, 0), (32, 0, 1), (7, 32, 0), (31, 5, 1)])
def test_torch_s_pixels_for_fixed_draws_equal_the_reference_bit_for_bit(
    shard_folder: Path, crop: tuple[int, int, int]
) -> None:
    offset = np.array([3.5, -20.25, 0.1], np.float32)
    for data in stored_bytes(shard_folder)[:6]:
        image = torch_render(data, crop, torch.from_numpy(offset))
        wanted = render(decode_stored(data), np.array(crop, np.int32), offset)
        np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), wanted)


def test_torchvision_s_pixels_for_fixed_draws_equal_the_reference_bit_for_bit(
    shard_folder: Path,
) -> None:
    if PEERS["torchvision"].lack:
        pytest.skip(PEERS["torchvision"].lack)
    from tools.measure.peers_torchvision import render as torchvision_render

    offset = np.array([3.5, -20.25, 0.1], np.float32)
    for data, crop in zip(stored_bytes(shard_folder), [(0, 0, 0), (7, 32, 1)], strict=False):
        image = torchvision_render(data, crop, torch.from_numpy(offset))
        wanted = render(decode_stored(data), np.array(crop, np.int32), offset)
        np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), wanted)


def fixed_draws_by_dali(
    encoded: list[NDArray[np.uint8]], crop: NDArray[np.int32], offset: NDArray[np.float32],
    device: int | None,
) -> NDArray[np.float32]:  # fmt: skip
    """The images (N, 224, 224, 3) that the stock pipeline renders with these draws."""
    from nvidia.dali import fn
    from nvidia.dali.pipeline import Pipeline

    from tools.measure.peers_dali import render as dali_render

    position = crop[:, :2].astype(np.float32) / MAX_OFFSET_PX
    inputs = [encoded, list(position[:, 0]), list(position[:, 1]), list(crop[:, 2]), list(-offset)]
    pipeline = Pipeline(
        batch_size=len(encoded), num_threads=1, device_id=device, exec_dynamic=True
    )
    with pipeline:
        nodes = [fn.external_source([values], cycle=True) for values in inputs]
        pipeline.set_outputs(dali_render(*nodes, on_gpu=device is not None))
    pipeline.build()
    (images,) = pipeline.run()
    found: NDArray[np.float32] = np.asarray(images.as_cpu().as_array(), np.float32)
    return found


@pytest.mark.parametrize(
    "name", ["stock-dali", pytest.param("stock-dali-gpu", marks=pytest.mark.gpu)]
)
def test_stock_dali_s_pixels_for_fixed_draws_equal_the_reference(
    shard_folder: Path, name: str
) -> None:
    """Bit for bit on the CPU; on a GPU within what its decoder rounds otherwise."""
    if lack := PEERS[name].lack:
        pytest.skip(lack)
    encoded = [np.frombuffer(data, np.uint8) for data in stored_bytes(shard_folder)[:6]]
    rng = np.random.default_rng(0)
    crop = rng.integers(0, [MAX_OFFSET_PX + 1, MAX_OFFSET_PX + 1, 2], (6, 3)).astype(np.int32)
    offset = rng.normal(0, 12, (6, 3)).astype(np.float32)
    device = 0 if PEERS[name].on_gpu else None
    images = fixed_draws_by_dali(encoded, crop, offset, device)
    for i, data in enumerate(encoded):
        wanted = cut(decode_stored(data.tobytes()), crop[i]).astype(np.float32) + offset[i]
        if device is None:
            np.testing.assert_array_equal(images[i], wanted)
        assert np.abs(images[i] - wanted).mean() < GPU_TOLERANCE


@pytest.mark.gpu
def test_stock_dali_on_a_gpu_delivers_whole_batches_there(
    shard_folder: Path, tmp_path: Path
) -> None:
    if lack := PEERS["stock-dali-gpu"].lack:
        pytest.skip(lack)
    from tools.measure.peers_dali import open_feed

    settings = FeedSettings(
        shards=shard_folder, batch_size=BATCH_SIZE, num_threads=1, seed=0, scratch=tmp_path
    )
    feed = open_feed("stock-dali-gpu", settings)
    batches = [batch.clone() for batch in feed.batches()]
    feed.close()
    assert len(batches) == len(stored_bytes(shard_folder)) // BATCH_SIZE
    for batch in batches:
        assert batch.is_cuda and batch.dtype == torch.float16
        assert batch.shape == (BATCH_SIZE, 3, CROP_PX, CROP_PX)
        assert batch.float().isfinite().all() and batch.float().std() > 1
