"""torchvision's network and recipe, by what is published of them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.manifest import open_dataset
from tools.measure import recipe_torchvision
from tools.measure.recipe_torchvision import (
    TorchvisionAlexNet,
    TorchvisionRecipe,
    draw_crop,
    normalise,
    rate_factor,
    resized_crop,
)

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def recipe(shard_folder: Path) -> TorchvisionRecipe:
    return TorchvisionRecipe(shard_folder, 1 / 32, CPU)


def test_the_network_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        network = TorchvisionAlexNet(1000)
        logits = network(torch.empty(2, 3, 224, 224))
    assert sum(parameter.numel() for parameter in network.parameters()) == 61_100_840
    assert logits.shape == (2, 1000)
    channels = [layer.out_channels for layer in network if isinstance(layer, torch.nn.Conv2d)]
    assert channels == [64, 192, 384, 256, 256]


def test_width_scales_channels_and_hidden_units() -> None:
    with torch.device("meta"):
        network = TorchvisionAlexNet(10, 0.25)
    sizes = [tuple(p.shape)[0] for p in network.parameters() if p.ndim > 1]
    assert sizes == [16, 48, 96, 64, 64, 1024, 1024, 10]


@pytest.mark.parametrize("num_epochs", [3, 7, 90])
def test_the_rate_drops_to_a_tenth_after_each_third(num_epochs: int) -> None:
    factors = [rate_factor(epoch, num_epochs) for epoch in range(num_epochs)]
    assert factors[0] == 1 and factors == sorted(factors, reverse=True)
    counts = [sum(one == pytest.approx(stage) for one in factors) for stage in (1, 0.1, 0.01)]
    assert sum(counts) == num_epochs and max(counts) - min(counts) <= 1


def test_the_steps_are_those_of_the_rate_asked_for(
    recipe: TorchvisionRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the optimiser has them in each epoch; the published rate unless another is asked for."""
    rates: list[float] = []

    def note(
        self: TorchvisionRecipe, model: object, optimizer: torch.optim.SGD, rng: object
    ) -> None:
        rates.append(optimizer.param_groups[0]["lr"])

    monkeypatch.setattr(TorchvisionRecipe, "_train_epoch", note)
    for one in (recipe, recipe.with_rate(0.05)):
        one.run(3, seed=0)
    assert rates == pytest.approx([0.01, 0.001, 0.0001, 0.05, 0.005, 0.0005])
    assert recipe.name == "torchvision AlexNet"
    assert recipe.with_rate(0.05).name == "torchvision AlexNet, rate 0.05"


def test_crops_lie_within_the_image_and_the_published_bounds() -> None:
    rng = np.random.default_rng(0)
    crops = np.array([draw_crop(rng) for _ in range(4000)])
    x, y, width, height = crops.T
    assert (crops >= 0).all() and (x + width <= 256).all() and (y + height <= 256).all()
    area, aspect = width * height / 256**2, width / height
    assert 0.078 < area.min() < 0.09 and 0.99 < area.max() <= 1.0
    assert 0.73 < aspect.min() < 0.76 and 1.32 < aspect.max() < 1.36
    assert np.log(aspect).mean() == pytest.approx(0, abs=0.02)  # wide as often as tall
    assert x.mean() == pytest.approx(((256 - width) / 2).mean(), rel=0.05)


def test_where_no_crop_fits_the_whole_image_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe_torchvision, "CROP_AREA", (2.0, 3.0))
    assert draw_crop(np.random.default_rng(0)) == (0, 0, 256, 256)


def test_a_crop_shows_its_part_of_the_image() -> None:
    """On a ramp, bilinear resizing gives the ramp: pixel i shows place x + (i + 1/2) w / 224."""
    ramp = np.arange(256, dtype=np.uint8)
    pixels = np.stack([np.tile(ramp, (256, 1)), np.tile(ramp[:, None], (1, 256))], 2)
    pixels = np.concatenate([pixels, np.zeros_like(pixels[:, :, :1])], 2)
    found = resized_crop(pixels, (40, 7, 100, 200)).astype(float)
    assert found.shape == (224, 224, 3)
    place = (np.arange(224) + 0.5) / 224
    inside = slice(3, -3)
    assert np.abs(found[100, inside, 0] - (40 + place * 100 - 0.5)[inside]).max() <= 1
    assert np.abs(found[inside, 100, 1] - (7 + place * 200 - 0.5)[inside]).max() <= 1


def test_normalisation_is_in_units_of_imagenet() -> None:
    images = torch.tensor([[0], [128], [255]], dtype=torch.uint8).view(1, 3, 1, 1)
    expected = [(0 - 0.485) / 0.229, (128 / 255 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    assert normalise(images).flatten().tolist() == pytest.approx(expected, rel=1e-5)


def test_an_epoch_shows_every_image_once_in_its_own_order(
    recipe: TorchvisionRecipe, shard_folder: Path
) -> None:
    epochs = [list(recipe._batches(np.random.default_rng(seed))) for seed in (0, 0, 1)]
    labels = [torch.cat([labels for _, labels in batches]) for batches in epochs]
    expected = sorted(open_dataset(shard_folder).index("train")["label"].tolist())
    for batches, found in zip(epochs, labels, strict=True):
        assert [len(images) for images, _ in batches] == [32, 7]
        assert batches[0][0].shape == (32, 3, 224, 224)
        assert sorted(found.tolist()) == expected
    assert torch.equal(epochs[0][0][0], epochs[1][0][0])
    assert not torch.equal(labels[0], labels[2])


def test_a_run_is_a_function_of_its_seed_and_leaves_the_global_generator_alone(
    recipe: TorchvisionRecipe,
) -> None:
    before = torch.get_rng_state()
    first, again = recipe.run(2, seed=5), recipe.run(2, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    assert (first.top1_error, first.top5_error) == (again.top1_error, again.top5_error)
    assert first.num_images == 2 * 39 and len(first.epoch_seconds) == 2


@pytest.mark.slow
def test_it_learns_classes_that_are_colours(shard_folder: Path) -> None:
    recipe = TorchvisionRecipe(shard_folder, 1 / 8, CPU)
    labels = torch.arange(96) % 3
    colours = torch.tensor([[230, 20, 20], [20, 230, 20], [20, 20, 230]])[labels]
    noise = torch.from_numpy(np.random.default_rng(0).integers(-20, 21, (96, 256, 256, 3)))
    images = (colours[:, None, None, :] + noise).clamp(0, 255).to(torch.uint8)
    recipe._train = recipe._val = [images, labels]
    assert recipe.run(30, seed=0).top1_error < 0.5  # chance: 2/3
