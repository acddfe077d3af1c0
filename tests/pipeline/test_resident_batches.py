"""The batches of images kept in memory are those decoded anew, wherever a run is cut."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pipeline.reference
import pipeline.renderer
from pipeline.images import ImageError, decode_stored
from pipeline.loader import Loader, LoaderConfig
from pipeline.reference import cut
from pipeline.resident import Needs, needs
from pipeline.subsampled import restored, subsampled
from tests.pipeline.conftest import Open, kept, opener

BATCH = 6  # of 39 images: six whole steps and three images that an epoch leaves out


@pytest.fixture
def opened() -> Iterator[Open]:
    """Opens loaders that keep images in the host's memory, and closes them after the test."""
    yield from opener(batch_size=BATCH, threads=2, resident="host", backend="auto")


@pytest.fixture
def on_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has `--resident device` keep images in what torch calls the CPU, as a GPU would."""
    monkeypatch.setattr(pipeline.renderer, "free_device_bytes", lambda *_: 1 << 40)

    def on_gpu(num_images: int, **_: object) -> Needs:
        return needs(num_images, on_gpu=True, num_ranks=1)

    monkeypatch.setattr(pipeline.renderer, "needs", on_gpu)


@pytest.fixture
def num_decoded(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many images were decoded since it was asked last."""
    calls = itertools.count()
    last = 0

    def counting(data: Any) -> Any:
        next(calls)
        return decode_stored(data)

    def since() -> int:
        nonlocal last
        now = next(calls)
        found, last = now - last, now + 1
        return found

    monkeypatch.setattr(pipeline.reference, "decode_stored", counting)
    return since


def epochs(loader: Loader, num_epochs: int) -> list[Any]:
    return [kept(batch) for _ in range(num_epochs) for batch in loader]


@pytest.mark.parametrize("folder_name", ["shard_folder", "raw_shard_folder"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "validation"])
@pytest.mark.parametrize("views", ["crop", "full"])
def test_every_batch_of_every_epoch_is_the_one_that_is_decoded_anew(
    folder_name: str,
    training: bool,
    views: str,
    opened: Open,
    request: pytest.FixtureRequest,
) -> None:
    folder: Path = request.getfixturevalue(folder_name)
    split = "train" if training else "val"
    options: dict[str, Any] = {"training": training, "split": split, "views": views, "seed": 3}
    expected = epochs(opened(folder, resident="none", backend="numpy", **options), 3)
    assert epochs(opened(folder, **options), 3) == expected


@pytest.mark.usefixtures("on_device")
@pytest.mark.parametrize("training", [True, False], ids=["training", "validation"])
@pytest.mark.parametrize("views", ["crop", "full"])
def test_images_kept_on_a_device_give_the_same_batches_rounded_to_float16(
    training: bool, views: str, shard_folder: Path, opened: Open
) -> None:
    split = "train" if training else "val"
    options: dict[str, Any] = {"training": training, "split": split, "views": views}
    plain = opened(shard_folder, resident="none", backend="numpy", **options)
    loader = opened(shard_folder, resident="device", **options)
    for _ in range(3):
        for found, expected in zip(loader, plain, strict=True):
            assert found.images.dtype == (torch.uint8 if views == "full" else torch.float16)
            assert torch.equal(found.images, expected.images.to(found.images.dtype))
            assert torch.equal(found.ids, expected.ids)


def test_raw_shards_and_kept_jpegs_are_the_same_pixels_where_nothing_was_lost(
    raw_shard_folder: Path, opened: Open
) -> None:
    """What is kept is what raw shards hold: bit-equal whole, before any cast."""
    raw = opened(raw_shard_folder, resident="none", backend="numpy", views="full")
    found = opened(raw_shard_folder, views="full")
    assert epochs(found, 2) == epochs(raw, 2)


def test_after_the_first_epoch_nothing_is_decoded_but_what_it_left_out(
    shard_folder: Path, opened: Open, num_decoded: Callable[[], int]
) -> None:
    loader = opened(shard_folder)
    epochs(loader, 1)
    assert num_decoded() == 36
    epochs(loader, 8)
    assert num_decoded() <= 3
    validation = opened(shard_folder, split="val", training=False)
    epochs(validation, 1)
    assert num_decoded() == 15
    epochs(validation, 3)
    assert num_decoded() == 0


@pytest.mark.parametrize("resident", ["none", "host"])
@pytest.mark.parametrize("num_taken", [0, 1, 5, 6, 8])
def test_a_run_goes_on_with_or_without_kept_images(
    num_taken: int, resident: str, shard_folder: Path, opened: Open
) -> None:
    """The state is the same one: what is kept is no part of it."""
    first, second = opened(shard_folder), opened(shard_folder, resident=resident)
    expected = epochs(opened(shard_folder, resident="none", backend="numpy"), 3)
    batches = (batch for _ in range(3) for batch in first)
    found = [kept(batch) for batch in itertools.islice(batches, num_taken)]
    second.load_state_dict(first.state_dict())
    found += epochs(second, 3 - second.epoch)
    assert found == expected


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("resident", ["host", "device"])
@pytest.mark.usefixtures("on_device")
def test_ranks_together_see_what_one_rank_sees(
    world_size: int, resident: str, shard_folder: Path, opened: Open
) -> None:
    whole = opened(shard_folder, resident="none", backend="numpy")
    ranks = [
        opened(shard_folder, resident=resident, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    for _ in range(3):
        for expected, *parts in zip(whole, *ranks, strict=True):
            images = torch.cat([part.images for part in parts])
            assert torch.equal(images, expected.images.to(images.dtype))
            assert torch.equal(torch.cat([part.ids for part in parts]), expected.ids)


@pytest.mark.parametrize("resident", ["none", "host", "device"])
@pytest.mark.parametrize("num_taken", [0, 1, 5, 6, 8])
@pytest.mark.usefixtures("on_device")
def test_a_local_order_goes_on_where_it_was_cut_and_visits_each_image_once(
    num_taken: int, resident: str, shard_folder: Path, opened: Open
) -> None:
    """Of two ranks: a share each, the same batches wherever images are kept."""
    size: dict[str, Any] = {"world_size": 2, "order": "local"}
    for rank in range(2):
        plain = opened(shard_folder, resident="none", backend="numpy", rank=rank, **size)
        expected = list(itertools.chain(*(plain for _ in range(2))))
        first = opened(shard_folder, resident=resident, backend="numpy", rank=rank, **size)
        batches = (batch for _ in range(2) for batch in first)
        found = list(itertools.islice(batches, num_taken))
        second = opened(shard_folder, resident=resident, backend="numpy", rank=rank, **size)
        second.load_state_dict(first.state_dict())
        found += [batch for _ in range(2 - second.epoch) for batch in second]
        for one, other in zip(found, expected, strict=True):
            assert one.ids.tolist() == other.ids.tolist()
            assert torch.equal(one.images, other.images.to(one.images.dtype))
        seen = [batch.ids.tolist() for batch in found]
        for epoch in (seen[:6], seen[6:]):
            assert len(set(itertools.chain(*epoch))) == 18  # of 39 images, six steps of three


@pytest.mark.usefixtures("on_device")
def test_in_a_local_order_a_rank_reads_none_but_its_own_share_and_each_once(
    shard_folder: Path, opened: Open, num_decoded: Callable[[], int]
) -> None:
    size: dict[str, Any] = {"world_size": 2, "local_world_size": 2, "order": "local"}
    ranks = [opened(shard_folder, resident="device", rank=r, **size) for r in range(2)]
    assert [loader._renderer._store._host for loader in ranks] == [None, None]  # type: ignore
    for _ in range(5):
        shown = [set[int]().union(*(batch.ids.tolist() for batch in loader)) for loader in ranks]
        assert not shown[0] & shown[1]
    assert num_decoded() <= 39


@pytest.mark.usefixtures("on_device")
@pytest.mark.parametrize(
    ("views", "world_size", "num_taken"),
    [("crop", 2, 4), ("full", 1, 7)],
)
def test_images_in_half_the_bytes_are_the_reference_s_on_any_ranks_and_cut_anywhere(
    views: str, world_size: int, num_taken: int, shard_folder: Path, opened: Open
) -> None:
    whole = opened(shard_folder, resident="none", backend="numpy", views="full")
    options: dict[str, Any] = {
        "resident": "device", "resident_format": "yuv420", "views": views, "lighting": "off",
        "world_size": world_size,
    }  # fmt: skip
    parts = []
    for rank in range(world_size):
        first, second = (opened(shard_folder, rank=rank, **options) for _ in range(2))
        found = list(itertools.islice((one for _ in range(2) for one in first), num_taken))
        second.load_state_dict(first.state_dict())
        parts.append([*found, *(one for _ in range(2 - second.epoch) for one in second)])
    expected = [batch for _ in range(2) for batch in whole]
    for stored, *ranks in zip(expected, *parts, strict=True):
        found_images = torch.cat([part.images for part in ranks]).permute(0, 2, 3, 1).numpy()
        wanted = [
            restored(subsampled(image))
            for image in stored.images.permute(0, 2, 3, 1).numpy()
        ]
        if views == "crop":
            crops = torch.cat([part.crop for part in ranks]).numpy()
            wanted = [cut(image, crop) for image, crop in zip(wanted, crops, strict=True)]
        np.testing.assert_array_equal(found_images, np.stack(wanted))


def test_half_the_bytes_are_resumed_in_that_format_alone(shard_folder: Path, opened: Open) -> None:
    plain = LoaderConfig(shards=shard_folder, batch_size=BATCH)
    halves = LoaderConfig(
        shards=shard_folder, batch_size=BATCH, resident="device", resident_format="yuv420"
    )
    saved = {**plain.fixed_state("f"), "epoch": 0, "step": 1}
    with pytest.raises(ValueError, match="cannot resume: augmentation"):
        halves.position(saved, "f", 6)


def test_ranks_of_a_machine_decode_an_image_once_for_all_of_them(
    shard_folder: Path, opened: Open, num_decoded: Callable[[], int]
) -> None:
    ranks = [
        opened(shard_folder, rank=rank, world_size=2, local_world_size=2) for rank in range(2)
    ]
    whole = opened(shard_folder, resident="none", backend="numpy")
    for _ in range(4):
        for expected, *parts in zip(whole, *ranks, strict=True):
            assert torch.equal(torch.cat([part.images for part in parts]), expected.images)
    assert num_decoded() <= 4 * 36 + 39  # the whole loader's, and each image once


def test_a_rank_without_images_gets_an_empty_batch(shard_folder: Path, opened: Open) -> None:
    options: dict[str, Any] = {"split": "val", "training": False, "batch_size": 4, "world_size": 4}
    loader = opened(shard_folder, **options)  # the last batch is of three images
    for _ in range(2):
        *_, last = loader
        assert last.images.shape == (0, 3, 224, 224)


def test_an_image_that_is_none_is_named(shard_copy: Path, opened: Open) -> None:
    loader = opened(shard_copy)

    def fail(data: Any) -> Any:
        raise ImageError("cut short")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.reference, "decode_stored", fail)
        with pytest.raises(ValueError, match=r"train-\d{6}.tar, sample \d+: .*cut short"):
            list(loader)
    assert len(list(loader)) == 6
