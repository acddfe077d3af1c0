"""Errors counted over exactly the images given, from one view and from ten."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.trainer.conftest import make_batch
from trainer.evaluate import (
    CENTRE_VIEW,
    TEN_VIEWS,
    Tally,
    evaluate,
    evaluate_together,
    log_probabilities,
    misses,
    over_views,
)
from trainer.layers import random_source
from trainer.model import AlexNet
from trainer.override import override
from trainer.presets import MODERN, PAPER, Preset

both = pytest.mark.parametrize("preset", [PAPER, MODERN], ids=lambda preset: str(preset.name))


def make_model(
    preset: Preset, num_classes: int = 7, width: float = 1 / 16, seed: int = 0
) -> AlexNet:
    """A network whose predictions depend on the image and on the crop."""
    preset = override(preset, {"init": "kaiming", "ones_biases": False})
    model = AlexNet(preset, num_classes, width)
    model.initialise(seed)
    mean = torch.rand(model.normalise.mean.shape, generator=random_source("cpu", 4)) * 255
    model.normalise.fill(mean, torch.full((3,), 60.0))
    model.fc8.weight.data.mul_(0.2)  # so that no probability is nearly 1
    return model.place(torch.device("cpu")).eval()


def test_misses_against_a_sorted_list() -> None:
    scores = torch.randn(200, 12, generator=random_source("cpu", 1)).round(decimals=1)  # with ties
    labels = torch.randint(12, (200,), generator=random_source("cpu", 2))
    for k in (1, 5):
        best = np.argsort(-scores.numpy(), axis=1, kind="stable")[:, :k]
        expected = [label not in row for label, row in zip(labels.tolist(), best, strict=True)]
        assert misses(scores, labels, k).tolist() == expected


def test_a_network_that_says_nothing_is_right_as_often_as_chance() -> None:
    labels = torch.arange(10)
    assert misses(torch.zeros(10, 10), labels, 1).sum() == 9
    assert misses(torch.zeros(10, 10), labels, 5).sum() == 5


def test_a_score_that_is_not_a_number_is_a_miss() -> None:
    scores = torch.full((2, 3), float("nan"))
    assert misses(scores, torch.tensor([0, 2]), 1).all()
    assert misses(scores, torch.tensor([0, 2]), 5).all()


@pytest.mark.parametrize("num_classes", [1, 2, 4, 5])
def test_with_five_classes_or_fewer_no_top_5_is_missed(num_classes: int) -> None:
    model = make_model(MODERN, num_classes)
    errors = evaluate(model, [make_batch(6, num_classes, 0)])
    assert errors.top5_error == 0.0 and errors.num_images == 6


@both
def test_batches_of_any_size_give_the_errors_of_all_images_at_once(preset: Preset) -> None:
    model, whole = make_model(preset), make_batch(11, 7, 0)
    parts = [
        dataclasses.replace(
            whole,
            images=whole.images[first:last],
            labels=whole.labels[first:last],
            crop=whole.crop[first:last],
        )
        for first, last in ((0, 5), (5, 10), (10, 11))
    ]
    at_once, in_parts = evaluate(model, [whole]), evaluate(model, parts)
    assert at_once.num_images == in_parts.num_images == 11
    assert at_once.top1_error == in_parts.top1_error
    assert at_once.top5_error == in_parts.top5_error
    assert in_parts.loss == pytest.approx(at_once.loss, rel=1e-5)
    with torch.no_grad():
        logits = model(whole.images, whole.crop, None)
    expected = torch.nn.functional.cross_entropy(logits.double(), whole.labels).item()
    assert at_once.loss == pytest.approx(expected, rel=1e-5)
    assert at_once.top1_error == (logits.argmax(1) != whole.labels).sum().item() / 11


def test_no_image_is_refused() -> None:
    with pytest.raises(ValueError, match="no image to evaluate on"):
        evaluate(make_model(MODERN), [])


def test_the_ten_views_are_the_corners_and_the_centre_and_their_mirror_images() -> None:
    places = [(0, 0), (32, 0), (0, 32), (32, 32), (16, 16)]
    assert sorted(TEN_VIEWS) == sorted((x, y, flip) for x, y in places for flip in (0, 1))


def ten_views_by_loop(model: AlexNet, image: Tensor) -> Tensor:
    """Mean of the ten probability vectors of one image, the views cut by NumPy in float64."""
    pixels = image.permute(1, 2, 0).numpy()
    total = torch.zeros(model.num_classes, dtype=torch.float64)
    for x, y in ((0, 0), (0, 32), (32, 0), (32, 32), (16, 16)):
        for flip in (0, 1):
            view = pixels[y : y + 224, x : x + 224]
            view = np.ascontiguousarray(view[:, ::-1] if flip else view).astype(np.float32)
            crop = torch.tensor([[x, y, flip]])
            logits = model(torch.from_numpy(view).permute(2, 0, 1)[None], crop, None)
            total += logits[0].double().softmax(0)
    return total / 10


@both
@torch.no_grad()
def test_ten_views_average_the_probabilities_of_a_loop(preset: Preset) -> None:
    model, batch = make_model(preset), make_batch(3, 7, 0, side_px=256)
    found = over_views(model, batch.images, TEN_VIEWS).double().exp()
    expected = torch.stack([ten_views_by_loop(model, image) for image in batch.images])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert (expected[0] - expected[1]).abs().max() > 1e-3  # the images differ to the network
    errors = evaluate(model, [batch], views=10)
    assert errors.top1_error == (expected.argmax(1) != batch.labels).sum().item() / 3
    own = expected.gather(1, batch.labels[:, None])
    assert errors.loss == pytest.approx(-own.log().mean().item(), rel=1e-4)


@both
@torch.no_grad()
def test_the_centre_view_of_whole_images_is_their_centre_crop(preset: Preset) -> None:
    model, batch = make_model(preset), make_batch(3, 7, 0, side_px=256)
    crops = batch.images[:, :, 16:240, 16:240].float()
    expected = log_probabilities(model, crops, torch.tensor([[16, 16, 0]] * 3))
    assert torch.equal(over_views(model, batch.images, CENTRE_VIEW), expected)


@pytest.mark.parametrize(("views", "side_px"), [(1, 224), (10, 256)])
def test_networks_together_average_the_probabilities_of_each(views: int, side_px: int) -> None:
    """Of other presets, widths and normalisations; each alone is as if nobody else were there."""
    models = [make_model(PAPER), make_model(MODERN, seed=1), make_model(MODERN, width=1 / 32)]
    batch = make_batch(9, 7, 3, side_px=side_px)
    *alone, together = evaluate_together(models, [batch], views)
    assert [tally.errors() for tally in alone] == [
        evaluate(model, [batch], views) for model in models
    ]
    with torch.no_grad():
        found = [
            over_views(model, batch.images, TEN_VIEWS)
            if views == 10
            else log_probabilities(model, batch.images, batch.crop)
            for model in models
        ]
    mean = sum(np.exp(one.double().numpy()) for one in found) / 3
    labels = batch.labels.numpy()
    errors = together.errors()
    assert errors.loss == pytest.approx(-np.log(mean[np.arange(9), labels]).mean(), rel=1e-5)
    best = np.argsort(-mean, axis=1)
    assert errors.top1_error == (best[:, 0] != labels).mean()
    assert errors.top5_error == np.mean([label not in row[:5] for label, row in zip(labels, best)])


def test_errors_by_class_are_those_of_its_images_and_sum_up_to_all() -> None:
    scores = torch.randn(200, 12, generator=random_source("cpu", 1))
    labels = torch.randint(11, (200,), generator=random_source("cpu", 2))  # the last has no image
    tally = Tally(12, torch.device("cpu"))
    for first in (0, 90, 180):
        tally.add(scores[first : first + 90], labels[first : first + 90])
    found = tally.by_class()
    assert [one.label for one in found] == list(range(11))
    for one in found:
        own = labels == one.label
        assert one.num_images == own.sum()
        assert one.top1_error == misses(scores[own], labels[own], 1).double().mean()
        assert one.top5_error == misses(scores[own], labels[own], 5).double().mean()
    errors = tally.errors()
    for field in ("top1_error", "top5_error"):
        total = sum(getattr(one, field) * one.num_images for one in found)
        assert getattr(errors, field) * 200 == pytest.approx(total)
