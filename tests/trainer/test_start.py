"""What a run starts from: drawn weights, or those of another run, and what does not fit."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from trainer.config import RunConfig
from trainer.model import AlexNet
from trainer.optimizer import learning_rates
from trainer.override import override
from trainer.presets import KRIZ2012, PAPER
from trainer.session import Session
from trainer.start import load_pretrained, require_memory
from trainer.world import Wish

CLASSES = ("bee", "cat", "dog")
STAR = override(KRIZ2012, {"conv6": 256})


def star(num_classes: int = 3, seed: int = 0, **changes: Any) -> AlexNet:
    model = AlexNet(override(STAR, changes), num_classes, 1 / 32)
    model.initialise(seed)
    return model


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The checkpoint of a network with a sixth convolution and a mean of its own."""
    model = star(seed=1)
    model.normalise.mean.fill_(99.0)
    config = {"preset": STAR.to_dict(), "width": 1 / 32, "classes": list(CLASSES)}
    checkpoint = Checkpoint(
        model=model.state_dict(), momentum={}, config=config, progress={}, schedule={},
        loader={}, made_by={},
    )  # fmt: skip
    save_checkpoint(tmp_path / "pre.safetensors", checkpoint)
    return tmp_path / "pre.safetensors"


def test_weights_and_mean_are_those_of_the_checkpoint(path: Path) -> None:
    model = star()
    load_pretrained(model, path, CLASSES, replace_head=False)
    expected = load_checkpoint(path).model
    assert model.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    "changes",
    [
        {"columns": 1},
        {"exchange": False},
        {"removed": ["conv2", "conv4"]},
        {"pool_px": 2},
        {"norm": "batch"},
        {"activation": "tanh", "dropout": False},
        {"mean": "channel"},
    ],
    ids=lambda changes: " ".join(changes),
)
@pytest.mark.parametrize("replace_head", [False, True])
def test_every_variant_can_be_pre_trained_and_taken_over(
    changes: dict[str, Any], replace_head: bool, path: Path
) -> None:
    source = star(seed=1, **changes)
    saved = load_checkpoint(path)
    config = saved.config | {"preset": source.preset.to_dict()}
    save_checkpoint(path, dataclasses.replace(saved, model=source.state_dict(), config=config))
    model, drawn = star(**changes), star(**changes).state_dict()
    load_pretrained(model, path, CLASSES, replace_head=replace_head)
    for name, value in model.state_dict().items():
        new = replace_head and name.startswith("fc8.")
        assert torch.equal(value, drawn[name] if new else source.state_dict()[name]), name


def test_a_network_larger_than_the_memory_is_refused_with_what_it_needs() -> None:
    """60,965,224 parameters of the paper, 12 bytes each: 731.6 MB."""
    require_memory(PAPER, 1000, 1.0, 731_582_688)
    message = "has 60,965,224 parameters, .* 0.7 GB; this machine has 0.7 GB. Choose a smaller"
    with pytest.raises(ValueError, match=message):
        require_memory(PAPER, 1000, 1.0, 731_582_687)
    with pytest.raises(ValueError, match="smaller --width, network.channels or network.hidden"):
        require_memory(override(PAPER, {"hidden": [2**20, 2**20]}), 1000, 16.0, 2**40)


def test_a_run_that_averaged_gives_the_averaged_weights(path: Path) -> None:
    saved = load_checkpoint(path)
    average = {name: tensor / 2 for name, tensor in saved.model.items()}
    save_checkpoint(path, dataclasses.replace(saved, ema=average))
    model = star()
    load_pretrained(model, path, CLASSES, replace_head=False)
    assert torch.equal(model.fc6.weight, saved.model["fc6.weight"] / 2)


@pytest.mark.parametrize("num_classes", [3, 7])
def test_a_replaced_head_is_the_one_drawn_for_the_new_classes(
    num_classes: int, path: Path
) -> None:
    model, drawn = star(num_classes), star(num_classes).state_dict()
    load_pretrained(model, path, tuple("abcdefg"[:num_classes]), replace_head=True)
    expected = load_checkpoint(path).model
    for name, value in model.state_dict().items():
        source = drawn if name.startswith("fc8.") else expected
        assert torch.equal(value, source[name]), name
    assert not torch.equal(model.fc7.weight, drawn["fc7.weight"])


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"conv6": 0}, "network.conv6 is 256, asked for 0"),
        ({"activation": "tanh"}, "network.activation is 'relu', asked for 'tanh'"),
        ({"map_norm_px": 0}, "network.map_norm_px is 5, asked for 0"),
        ({"mean": "channel"}, "augmentation.mean is 'image-centre', asked for 'channel'"),
        ({"columns": 1, "pool_px": 2}, "columns is 2, .*; network.pool_px is 3, asked"),
    ],
)
def test_a_checkpoint_of_another_variant_is_refused_by_what_differs(
    changes: dict[str, Any], difference: str, path: Path
) -> None:
    for replace_head in (False, True):
        message = f"pre.safetensors is another network: .*{difference}"
        with pytest.raises(ValueError, match=message):
            load_pretrained(star(**changes), path, CLASSES, replace_head=replace_head)


def test_weights_of_a_run_that_diverged_are_refused(path: Path) -> None:
    saved = load_checkpoint(path)
    saved.model["conv6.bias"][0] = torch.inf
    save_checkpoint(path, saved)
    with pytest.raises(ValueError, match="--init-from .*pre.safetensors: conv6.bias holds values"):
        load_pretrained(star(), path, CLASSES, replace_head=False)


def test_a_checkpoint_of_another_width_is_refused(path: Path) -> None:
    with pytest.raises(ValueError, match="width is 0.03125, asked for 0.0625"):
        load_pretrained(AlexNet(STAR, 3, 1 / 16), path, CLASSES, replace_head=True)


def test_how_weights_were_drawn_does_not_matter_to_weights_that_are_loaded(path: Path) -> None:
    load_pretrained(star(init_std=0.02, ones_biases=False), path, CLASSES, replace_head=False)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (("bee", "cat"), "--init-from .*pre.safetensors knows 3 classes, the shard folder has 2"),
        (("bee", "cow", "dog"), "class 1 is 'cat' in --init-from .*, 'cow' in the shard folder"),
    ],
)
def test_other_classes_are_refused_with_the_option_that_takes_them(
    classes: tuple[str, ...], message: str, path: Path
) -> None:
    with pytest.raises(ValueError, match=f"{message}; give --replace-head"):
        load_pretrained(star(len(classes)), path, classes, replace_head=False)


def test_pre_training_then_fine_tuning(shard_folder: Path, tmp_path: Path) -> None:
    """The example file on tiny shards: rates per layer, a new head, the old weights elsewhere."""
    small: dict[str, Any] = {
        "shards": shard_folder, "preset": "kriz2012", "batch_size": 8, "width": 1 / 32,
        "backend": "numpy", "device": "cpu",
    }  # fmt: skip
    first = RunConfig(**small, out=tmp_path / "first", epochs=1, settings=("conv6=256",))
    with Session(first) as session:
        assert session.run()
    tuning = RunConfig(
        **small,
        out=tmp_path / "tuned",
        config_file=Path(__file__).parents[2] / "docs/recipes/fine-tune.toml",
        init_from=tmp_path / "first" / "last.safetensors",
        replace_head=True,
        epochs=2,
    )
    with Session(tuning) as session:
        before = {k: v.clone() for k, v in session.model.state_dict().items()}
        session._run_epoch(lambda: Wish.NOTHING)
        rates = learning_rates(session.trainer.optimizer)
    pre = load_checkpoint(tmp_path / "first" / "last.safetensors").model
    assert all(torch.equal(before[k], pre[k]) != k.startswith("fc8.") for k in before)
    base = 0.001 * 8 / 128
    expected = {"matrices": 1, "conv1.matrices": 0.1, "fc8.matrices": 10}
    expected |= {name.replace("matrices", "vectors"): 2 * f for name, f in expected.items()}
    assert rates == pytest.approx({name: base * factor for name, factor in expected.items()})
    with Session(tuning) as session:
        assert session.epoch == 1 and session.run()
    averaged = dataclasses.replace(tuning, ema=0.9, out=tmp_path / "averaged")
    with Session(averaged) as session:
        assert session.trainer.ema
        for name, value in session.trainer.ema.state_dict().items():
            assert torch.equal(value, before[name]), name  # the average starts where the run does
    damaged = tmp_path / "first" / "best.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:999])
    other = dataclasses.replace(tuning, init_from=damaged, out=tmp_path / "other")
    with pytest.raises(ValueError, match="best.safetensors is no whole safetensors file"):
        Session(other)
