"""Kernels of known weights have the known pixels; samples are what the network is shown."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.trainer.conftest import MadeFeed, make_batch
from trainer.checkpoint import load_checkpoint
from trainer.config import RunConfig
from trainer.pictures import SeenFeed, kernel_pictures, sample_pictures, tiled
from trainer.session import Session


def test_kernels_of_known_weights_have_the_known_pixels() -> None:
    weights = torch.zeros(3, 3, 2, 2)
    weights[0, 0, 0, 1] = 0.5  # red, upper right: the largest of its kernel
    weights[0, 2, 1, 0] = -0.25  # against blue, lower left: half of it
    weights[1, :, 1, 1] = -1e-3  # against white, lower right, however small
    pixels = kernel_pictures(weights)
    grey = [128, 128, 128]
    assert pixels.dtype == np.uint8 and pixels.tolist() == [
        [[grey, [255, 128, 128]], [[128, 128, 64], grey]],
        [[grey, grey], [grey, [1, 1, 1]]],
        [[grey, grey], [grey, grey]],
    ]


def test_tiles_lie_in_rows_with_a_gap_around_each() -> None:
    pictures = np.arange(1, 6, dtype=np.uint8)[:, None, None, None].repeat(3, 3)  # 1 x 1 px each
    sheet = tiled(pictures, per_row=3, scale=2, background=9)
    gap = [9] * 14
    row = [9, 9, 1, 1, 9, 9, 2, 2, 9, 9, 3, 3, 9, 9]
    last = [9, 9, 4, 4, 9, 9, 5, 5, 9, 9, 9, 9, 9, 9]
    assert sheet[..., 0].tolist() == [gap, gap, row, row, gap, gap, last, last, gap, gap]
    assert (sheet == sheet[..., :1]).all()


def test_fewer_tiles_than_a_row_holds_leave_no_empty_place() -> None:
    assert tiled(np.zeros((2, 3, 4, 3), np.uint8), per_row=16).shape == (5, 11, 3)


def test_samples_are_the_first_images_of_the_batch_clamped() -> None:
    batch = make_batch(4, 3, 0)
    batch.images[0, 0, 0, 0], batch.images[0, 1, 0, 0], batch.images[0, 2, 0, 0] = -7, 300, 99.6
    found = sample_pictures(batch, 2)
    assert found.shape == (2, 224, 224, 3) and found[0, 0, 0].tolist() == [0, 255, 100]
    expected = batch.images[:2].permute(0, 2, 3, 1).numpy()
    assert np.abs(found[1].astype(float) - expected[1]).max() <= 0.5


def test_a_seen_feed_delivers_all_and_shows_the_first_of_each_epoch() -> None:
    seen: list[int] = []
    feed = SeenFeed(MadeFeed(3), lambda batch: seen.append(int(batch.images.sum())))
    delivered = [[int(batch.images.sum()) for batch in feed] for _ in range(2)]
    plain = MadeFeed(3)
    assert delivered == [[int(batch.images.sum()) for batch in plain] for _ in range(2)]
    assert seen == [delivered[0][0], delivered[1][0]]
    assert len(feed) == 3 and feed.waits.decode_wait_seconds == 3.0


def test_tensorboard_shows_kernels_and_augmented_samples(
    shard_folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard")
    from PIL import Image
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    asked = RunConfig(
        shards=shard_folder, out=tmp_path, epochs=2, batch_size=16, width=1 / 32, backend="numpy",
        device="cpu", tensorboard=True,
    )  # fmt: skip
    with Session(asked) as session:
        session.run()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    kernels, samples = events.Images("kernels"), events.Images("augmented samples")
    assert [image.step for image in kernels] == steps
    assert [image.step for image in samples] == [0, steps[0]]
    assert samples[0].encoded_image_string != samples[1].encoded_image_string  # other draws
    assert (samples[0].width, samples[0].height) == (4 * 225 + 1, 4 * 225 + 1)
    drawn = np.asarray(Image.open(io.BytesIO(kernels[-1].encoded_image_string)))
    weights = load_checkpoint(tmp_path / "last.safetensors").model["conv1.weight"]
    np.testing.assert_array_equal(drawn, tiled(kernel_pictures(weights), 16, 4))
