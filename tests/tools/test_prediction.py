"""Photographs reach the network as a shard would give them back, bit for bit."""

import dataclasses
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.images import ImageFormat
from pipeline.loader import Loader, LoaderConfig
from pipeline.sources import open_source
from tests.conftest import prepare_here
from tools import prediction
from tools.prediction import Predictor, find_files, prepare_photograph
from trainer.checkpoint import Checkpoint, load_checkpoint
from trainer.evaluate import TEN_VIEWS, log_probabilities, over_views

CPU = torch.device("cpu")


@pytest.fixture
def checkpoint(run_folder: Path) -> Checkpoint:
    return load_checkpoint(run_folder / "last.safetensors")


@pytest.mark.parametrize("views", [1, 10])
def test_a_training_image_through_its_shard_and_through_its_file_is_seen_alike(
    views: int, checkpoint: Checkpoint, image_folder: Path, shard_folder: Path
) -> None:
    """CMYK, grey, PNG, turned by EXIF, enlarged: whatever lies in the folder."""
    predictor = Predictor(checkpoint, CPU, views)
    names = open_source(image_folder).splits["train"].names
    config = LoaderConfig(
        shards=shard_folder, batch_size=50, training=False, lighting="off", backend="numpy",
        views="full" if views == 10 else "crop",
    )  # fmt: skip
    with Loader(config) as loader:
        (batch,) = loader
    paths = [image_folder / os.fsdecode(names[i]) for i in batch.ids.tolist()]
    found = list(predictor.predict(paths, batch_size=50))
    with torch.no_grad():
        if views == 10:
            expected = over_views(predictor.model, batch.images, TEN_VIEWS).exp()
        else:
            expected = log_probabilities(predictor.model, batch.images, batch.crop).exp()
    assert len(found) == 39
    for one, row in zip(found, expected, strict=True):
        probabilities = {guess.name: guess.probability for guess in one.best}
        assert [probabilities[name] for name in predictor.classes] == pytest.approx(
            row.tolist(), rel=1e-5
        )


@pytest.mark.parametrize(
    "image_format", [ImageFormat(quality=40, ignore_orientation=True), ImageFormat(encoding="raw")]
)
def test_pixels_are_prepared_as_the_shards_of_the_training_were(
    image_format: ImageFormat, image_folder: Path, tmp_path: Path
) -> None:
    prepare_here(image_folder, tmp_path, image_format=image_format)
    config = LoaderConfig(
        shards=tmp_path, batch_size=50, training=False, lighting="off", views="full",
        backend="numpy",
    )  # fmt: skip
    with Loader(config) as loader:
        (batch,) = loader
        settings = loader.dataset.settings
    names = open_source(image_folder).splits["train"].names
    for i, image in zip(batch.ids.tolist(), batch.images, strict=True):
        data = (image_folder / os.fsdecode(names[i])).read_bytes()
        pixels = prepare_photograph(data, ImageFormat.from_settings(settings))
        assert np.array_equal(pixels, image.permute(1, 2, 0).numpy())


def test_probabilities_are_the_best_in_order_and_sum_to_one(
    checkpoint: Checkpoint, image_folder: Path
) -> None:
    predictor = Predictor(checkpoint, CPU)
    for one in predictor.predict([image_folder / "val"]):
        values = [guess.probability for guess in one.best]
        assert len(values) == 3 and values == sorted(values, reverse=True)
        assert sum(values) == pytest.approx(1, abs=1e-5)


def test_batches_of_any_size_give_the_same(checkpoint: Checkpoint, image_folder: Path) -> None:
    predictor = Predictor(checkpoint, CPU)
    whole, parts = (
        list(predictor.predict([image_folder / "val"], batch_size)) for batch_size in (64, 4)
    )
    assert [one.path for one in whole] == [one.path for one in parts]
    for one, other in zip(whole, parts, strict=True):
        for mine, theirs in zip(one.best, other.best, strict=True):
            assert dataclasses.astuple(mine) == pytest.approx(dataclasses.astuple(theirs))


def test_products_of_float32_are_not_rounded_on_a_gpu(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, torch.device]] = []
    monkeypatch.setattr(prediction, "set_up_device", lambda *what: asked.append(what))
    Predictor(checkpoint, CPU)
    assert asked == [("fp32", CPU)]


def test_folders_are_read_in_sorted_order_without_litter(tmp_path: Path) -> None:
    for name in ("b/2.jpg", "b/1.jpg", "a.jpg", "b/.DS_Store", "c/d/e.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = find_files([tmp_path / "none.jpg", tmp_path])
    names = ["none.jpg", "a.jpg", "b/1.jpg", "b/2.jpg", "c/d/e.png"]
    assert [os.fsdecode(name) for name in found] == [str(tmp_path / name) for name in names]


def test_a_folder_without_files_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="folder without files"):
        find_files([tmp_path])


def test_what_is_no_photograph_is_refused_with_the_reason_and_the_rest_goes_on(
    checkpoint: Checkpoint, image_folder: Path, tmp_path: Path
) -> None:
    good = tmp_path / "good.jpg"
    shutil.copy(image_folder / "val/ant/00.jpg", good)
    (tmp_path / "text.jpg").write_text("no photograph")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "cut.jpg").write_bytes(good.read_bytes()[:500])
    os.mkfifo(tmp_path / "pipe.jpg")
    names = ["text.jpg", "good.jpg", "empty.jpg", "cut.jpg", "pipe.jpg", "none.jpg"]
    paths = [tmp_path / name for name in names]
    reasons = [
        "not an image", None, "empty file", "cannot be decoded", "not a regular file",
        "No such file or directory",
    ]  # fmt: skip
    predictor = Predictor(checkpoint, CPU)
    for batch_size in (64, 1):
        found = list(predictor.predict(paths, batch_size))
        assert [one.path for one in found] == [str(path) for path in paths]
        for one, reason in zip(found, reasons, strict=True):
            assert (one.refused or "").startswith(reason or "")
            assert bool(one.best) == (reason is None) == (one.refused is None)
