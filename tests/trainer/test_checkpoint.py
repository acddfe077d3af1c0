"""A checkpoint gives back every bit, appears whole, and says clearly what is wrong with it."""

import dataclasses
import json
import math
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.trainer.conftest import make_batch
from trainer.checkpoint import (
    Checkpoint,
    load_checkpoint,
    load_model,
    require_classes,
    require_finite,
    restore_model,
    save_checkpoint,
)
from trainer.loop import Trainer
from trainer.model import AlexNet
from trainer.optimizer import momentum_state
from trainer.override import override
from trainer.presets import MODERN, PAPER, Preset

both = pytest.mark.parametrize("preset", [PAPER, MODERN], ids=lambda preset: str(preset.name))


def trained(preset: Preset = MODERN) -> Checkpoint:
    """The checkpoint of a small network after one step; its kernels lie channels-last."""
    model = AlexNet(preset, 3, 1 / 32)
    model.initialise(0)
    trainer = Trainer(
        model=model.place(torch.device("cpu")), preset=preset, steps_per_epoch=9, seed=0,
        precision="fp32",
    )  # fmt: skip
    trainer.model.train()
    trainer.train_step(make_batch(4, 3, 0))
    return Checkpoint(
        model=model.state_dict(),
        momentum=momentum_state(model, trainer.optimizer),
        config={"preset": preset.to_dict(), "width": 1 / 32, "classes": ["bee", "cat", "dog"]},
        progress={"epoch": 0, "step": 1},
        schedule={"drops": 0, "best": None},
        loader={"epoch": 0, "step": 1},
        made_by={"torch": torch.__version__},
    )


@both
def test_every_bit_comes_back(preset: Preset, tmp_path: Path) -> None:
    saved = trained(preset)
    save_checkpoint(tmp_path / "last.safetensors", saved)
    loaded = load_checkpoint(tmp_path / "last.safetensors")
    for ours, theirs in ((saved.model, loaded.model), (saved.momentum, loaded.momentum)):
        assert list(sorted(ours)) == list(sorted(theirs)) and ours
        for name, tensor in ours.items():
            assert tensor.dtype == theirs[name].dtype and torch.equal(tensor, theirs[name])
    for field in ("config", "progress", "schedule", "loader", "made_by"):
        assert getattr(saved, field) == getattr(loaded, field)


@both
def test_the_checkpoint_alone_gives_the_network_with_its_normalisation(
    preset: Preset, tmp_path: Path
) -> None:
    saved, batch = trained(preset), make_batch(3, 3, 1)
    mean = torch.rand(saved.model["normalise.mean"].shape) * 255
    saved.model["normalise.mean"].copy_(mean)
    save_checkpoint(tmp_path / "a.safetensors", saved)
    model = restore_model(load_checkpoint(tmp_path / "a.safetensors"), torch.device("cpu"))
    assert torch.equal(model.normalise.mean, mean)
    original = AlexNet(preset, 3, 1 / 32).eval()
    original.load_state_dict(saved.model)
    expected = original.place(torch.device("cpu"))(batch.images, batch.crop, None)
    assert torch.equal(model(batch.images, batch.crop, None), expected)


def with_average(saved: Checkpoint) -> Checkpoint:
    """As of a run in fp16 that averages its weights."""
    average = {name: tensor * 2 for name, tensor in saved.model.items()}
    return dataclasses.replace(saved, ema=average, arithmetic={"scale": 2.0**-3})


def test_the_average_and_the_scale_come_back(tmp_path: Path) -> None:
    saved = with_average(trained())
    save_checkpoint(tmp_path / "a.safetensors", saved)
    loaded = load_checkpoint(tmp_path / "a.safetensors")
    assert loaded.ema.keys() == saved.model.keys() and loaded.arithmetic == {"scale": 0.125}
    for name, tensor in saved.model.items():
        assert torch.equal(loaded.ema[name], tensor * 2)
        assert torch.equal(loaded.model[name], tensor)


def test_the_network_of_a_run_that_averages_is_the_average() -> None:
    saved = with_average(trained())
    model = restore_model(saved, torch.device("cpu"))
    assert torch.equal(model.fc8.weight, saved.ema["fc8.weight"])


def test_the_file_is_a_plain_header_and_numbers_in_canonical_order(tmp_path: Path) -> None:
    """Read by hand, without pickle: JSON header, then the kernel in (out, in, y, x) order."""
    saved = trained()
    save_checkpoint(tmp_path / "a.safetensors", saved)
    data = (tmp_path / "a.safetensors").read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    assert set(header.pop("__metadata__")) == {"fullfeed", "crc32"}
    prefixes = {name.split(".")[0] for name in header}
    assert prefixes == {"model", "momentum"}
    entry = header["model.conv2.weight"]
    first, last = entry["data_offsets"]
    kernel = saved.model["conv2.weight"]
    assert entry["shape"] == list(kernel.shape)
    assert data[start + first : start + last] == kernel.contiguous().numpy().tobytes()
    assert max(entry["data_offsets"][1] for entry in header.values()) == len(data) - start


@pytest.mark.parametrize("share", [0.0, 1e-5, 0.001, *(k / 10 for k in range(1, 10)), 0.999])
def test_a_truncated_file_is_refused_by_name(share: float, tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    save_checkpoint(path, trained())
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ValueError, match=r"last\.safetensors is no whole safetensors file"):
        load_checkpoint(path)


def test_a_flipped_bit_anywhere_is_found(tmp_path: Path) -> None:
    """In the tensors, in the configuration, in the file's own header: never loaded as if whole."""
    path = tmp_path / "last.safetensors"
    save_checkpoint(path, trained())
    data = path.read_bytes()
    header_bytes = 8 + int.from_bytes(data[:8], "little")
    rng = np.random.default_rng(0)
    positions = [*rng.integers(0, header_bytes, 150), *rng.integers(header_bytes, len(data), 50)]
    for position in positions:
        damaged = bytearray(data)
        damaged[position] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"last\.safetensors"):
            load_checkpoint(path)


def test_an_absent_or_foreign_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="none.safetensors: no such .*; trainer/run.py .* trains"):
        load_checkpoint(tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="is a folder; .* such as best.safetensors"):
        load_checkpoint(tmp_path)
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="other.safetensors: no 'fullfeed' header"):
        load_checkpoint(tmp_path / "other.safetensors")


def test_a_save_that_fails_keeps_the_checkpoint_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, first = tmp_path / "last.safetensors", trained()
    save_checkpoint(path, first)

    def full(*paths: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        save_checkpoint(path, dataclasses.replace(first, progress={"step": 2}))
    assert load_checkpoint(path).progress == first.progress


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm": "response"}, "network.norm is 'batch', asked for 'response'"),
        ({"activation": "tanh"}, "network.activation is 'relu', asked for 'tanh'"),
        ({"pool_px": 2}, "network.pool_px is 3, asked for 2"),
        ({"removed": ["conv3"]}, r"network.removed are 0 \(\), asked for 1 \(conv3\)"),
        ({"mean": "image-centre"}, "augmentation.mean is 'channel', asked for 'image-centre'"),
        ({"columns": 1}, "network.columns is 2, asked for 1"),
    ],
)
def test_a_checkpoint_of_another_variant_is_refused_by_what_differs(
    change: dict[str, Any], message: str
) -> None:
    """Also where every shape is the same."""
    with pytest.raises(ValueError, match=f"another network: {message}$"):
        load_model(AlexNet(override(MODERN, change), 3, 1 / 32), trained())


def test_a_checkpoint_of_another_width_or_class_count_is_refused_by_what_differs() -> None:
    with pytest.raises(ValueError, match="num_classes is 3, asked for 4; width is .* for 0.125$"):
        load_model(AlexNet(MODERN, 4, 1 / 8), trained())


def test_another_learning_rate_or_start_is_the_same_network() -> None:
    model = AlexNet(override(MODERN, {"learning_rate": 1.0, "init": "normal"}), 3, 1 / 32)
    load_model(model, trained())


def test_a_tensor_of_another_shape_is_refused_by_name() -> None:
    checkpoint = trained()
    checkpoint.model["conv1.bias"] = torch.zeros(7)
    with pytest.raises(ValueError, match=r"conv1.bias has shape \(7,\) in the checkpoint"):
        load_model(AlexNet(MODERN, 3, 1 / 32), checkpoint)


def test_other_classes_are_refused_by_number_and_by_name() -> None:
    checkpoint = trained()
    require_classes(checkpoint, ("bee", "cat", "dog"), "shards")
    with pytest.raises(ValueError, match="knows 3 classes, shards has 2"):
        require_classes(checkpoint, ("bee", "cat"), "shards")
    with pytest.raises(ValueError, match="class 1 is 'cat' in the checkpoint, 'cow' in shards"):
        require_classes(checkpoint, ("bee", "cow", "dog"), "shards")


def test_a_checkpoint_replaced_while_it_is_read_is_one_of_the_two(tmp_path: Path) -> None:
    """As by a training that goes on: never the header of one and the numbers of the other."""
    path, done = tmp_path / "last.safetensors", threading.Event()
    first = trained()
    other = {name: tensor + 1 for name, tensor in first.model.items()}
    second = dataclasses.replace(first, model=other)
    save_checkpoint(path, first)

    def write() -> None:
        while not done.is_set():
            for checkpoint in (second, first):
                save_checkpoint(path, checkpoint)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(50):
            load_checkpoint(path)
    finally:
        done.set()
        writer.join()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_no_numbers_are_refused_by_name(value: float) -> None:
    good = trained()
    require_finite(good, "a.safetensors")
    bad = {name: tensor.clone() for name, tensor in good.model.items()}
    bad["conv3.weight"][1, 0, 2, 2] = value
    message = r"^a\.safetensors: conv3\.weight holds values that are not finite"
    for broken in (dataclasses.replace(good, model=bad), dataclasses.replace(good, ema=bad)):
        with pytest.raises(ValueError, match=message):
            require_finite(broken, "a.safetensors")
    require_finite(dataclasses.replace(good, model=bad, ema=good.model), "a.safetensors")
