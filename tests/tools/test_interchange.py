"""What is exported computes what the network computes, in other programs' hands."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load

from pipeline.loader import Loader, LoaderConfig
from tools import interchange
from tools.interchange import (
    Standalone,
    onnx_difference,
    random_images,
    require_onnx,
    to_onnx,
    to_safetensors,
)
from trainer.checkpoint import Checkpoint, load_checkpoint, restore_model
from trainer.model import AlexNet
from trainer.override import override
from trainer.preset import Preset
from trainer.presets import KRIZ2012, MODERN, PAPER

CPU = torch.device("cpu")


@pytest.fixture(
    scope="module",
    params=["run_folder", "other_folder", "kriz2012_folder"],
    ids=["modern", "paper", "kriz2012"],
)
def checkpoint(request: pytest.FixtureRequest) -> Checkpoint:
    folder: Path = request.getfixturevalue(request.param)
    return load_checkpoint(folder / "last.safetensors")


@pytest.fixture(scope="module")
def onnx_file(checkpoint: Checkpoint) -> bytes:
    return to_onnx(checkpoint)[0]  # takes ten seconds and more: its tests are slow ones


@pytest.fixture(scope="module")
def real_images(shard_folder: Path) -> torch.Tensor:
    """The centre crops of the validation images, uint8 (15, 3, 224, 224)."""
    config = LoaderConfig(
        shards=shard_folder, split="val", batch_size=15, training=False, lighting="off",
        backend="numpy",
    )  # fmt: skip
    with Loader(config) as loader:
        (batch,) = loader
    return batch.images.to(torch.uint8).contiguous()


def drawn(preset: Preset) -> Checkpoint:
    """The checkpoint of a network at its first step, and of a mean that is not flat."""
    model = AlexNet(preset, 3, 1 / 16)
    model.initialise(0)
    mean = random_images(1)[0].permute(1, 2, 0).float()
    if preset.augmentation.mean != "channel":
        model.normalise.fill(F.pad(mean, (0, 0, 16, 16, 16, 16), value=128.0), torch.ones(3))
    config = {"preset": preset.to_dict(), "width": 1 / 16, "classes": ["ant", "bee", "cat"]}
    return Checkpoint(
        model=model.state_dict(), momentum={}, config=config, progress={}, schedule={}, loader={},
        made_by={},
    )  # fmt: skip


@torch.inference_mode()
def our_logits(checkpoint: Checkpoint, images: torch.Tensor) -> torch.Tensor:
    """Of the network as training and evaluation use it."""
    crop = torch.tensor([[16, 16, 0]]).expand(len(images), 3)
    logits: torch.Tensor = restore_model(checkpoint, CPU)(images.float(), crop, None)
    return logits


@pytest.mark.slow
def test_onnxruntime_gives_our_logits_on_real_and_random_images_in_any_number(
    checkpoint: Checkpoint, onnx_file: bytes, real_images: torch.Tensor
) -> None:
    session = onnxruntime.InferenceSession(onnx_file, providers=["CPUExecutionProvider"])
    for images in (real_images, real_images[:1], random_images(7)):
        (found,) = session.run(None, {"images": images.numpy()})
        expected = our_logits(checkpoint, images).numpy()
        assert found.shape == expected.shape and found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
        assert np.ptp(expected, axis=1).min() > 1e-3  # the network says something


@pytest.mark.slow
def test_the_onnx_file_says_what_it_is(checkpoint: Checkpoint, onnx_file: bytes) -> None:
    proto = onnx.load_from_string(onnx_file)
    onnx.checker.check_model(proto)
    (images,), (logits,) = proto.graph.input, proto.graph.output
    axes = images.type.tensor_type.shape.dim
    assert images.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert axes[0].dim_param and [axis.dim_value for axis in axes][1:] == [3, 224, 224]
    assert logits.type.tensor_type.shape.dim[1].dim_value == 3
    about = {entry.key: entry.value for entry in proto.metadata_props}
    assert json.loads(about["classes"]) == ["ant", "bee", "cat"]
    assert json.loads(about["preset"]) == checkpoint.config["preset"]
    assert "0..255" in about["input"]


@pytest.mark.slow
def test_a_wrong_network_would_be_noticed(checkpoint: Checkpoint, onnx_file: bytes) -> None:
    other = Standalone(restore_model(checkpoint, CPU))
    assert onnx_difference(onnx_file, other, random_images(2)) < 1e-5
    other.model.fc8.weight.data[0, 0] += 1.0
    other.model.fc8.bias.data[0] += 0.01
    assert onnx_difference(onnx_file, other, random_images(2)) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "changes"),
    [
        (PAPER, {"conv6": 256, "activation": "tanh", "norm": "none"}),
        (PAPER, {"columns": 1, "removed": ["conv4"]}),
        (PAPER, {"exchange": False, "pool_px": 2}),
        (KRIZ2012, {"removed": ["conv2"], "dropout": False, "conv6": 256}),
        (MODERN, {"norm": "response", "exchange": False, "layer1_order": "conv-norm-pool-relu"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else str(value.name),
)
def test_every_variant_is_in_onnxruntime_what_it_is_here(
    preset: Preset, changes: dict[str, Any], real_images: torch.Tensor
) -> None:
    checkpoint = drawn(override(preset, {"init": "kaiming", **changes}))
    data, difference = to_onnx(checkpoint)
    assert difference <= 1e-4
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"images": real_images.numpy()})
    expected = our_logits(checkpoint, real_images).numpy()
    tolerated = 1e-4 * max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerated)
    assert np.ptp(expected, axis=0).max() > 100 * tolerated  # images are told apart


def test_a_difference_is_in_units_of_the_largest_logit_or_of_1(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Session:
        """Stands for onnxruntime's; its logits are all 0.003 too large."""

        def __init__(self, data: bytes, providers: list[str]) -> None:
            self.network = network

        @torch.inference_mode()
        def run(self, outputs: list[str], inputs: dict[str, Any]) -> list[Any]:
            return [(self.network(torch.from_numpy(inputs["images"])) + 0.003).numpy()]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    network = Standalone(restore_model(checkpoint, CPU))
    images = random_images(2)
    with torch.inference_mode():
        largest = network(images).abs().max().item()
    for wanted, difference in ((0.5, 0.003), (30.0, 0.0001)):
        network.model.fc8.weight.data *= wanted / largest
        network.model.fc8.bias.data *= wanted / largest
        largest = wanted
        assert onnx_difference(b"", network, images) == pytest.approx(difference, rel=1e-2)


def test_the_plain_form_is_the_network(checkpoint: Checkpoint, real_images: torch.Tensor) -> None:
    with torch.inference_mode():
        found = Standalone(restore_model(checkpoint, CPU))(real_images)
    torch.testing.assert_close(found, our_logits(checkpoint, real_images), rtol=1e-5, atol=1e-5)


def test_safetensors_hold_the_weights_the_normalisation_and_what_they_are(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    data = to_safetensors(checkpoint)
    tensors = load(data)
    assert tensors.keys() == checkpoint.model.keys()
    assert all(torch.equal(tensors[name], checkpoint.model[name]) for name in tensors)
    assert {"normalise.mean", "normalise.std"} <= tensors.keys()
    (tmp_path / "a.safetensors").write_bytes(data)
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        about = file.metadata()
    assert json.loads(about["classes"]) == ["ant", "bee", "cat"]
    assert json.loads(about["preset"]) == checkpoint.config["preset"]
    assert about["format"] == "pt" and float(about["width"]) == checkpoint.config["width"]
    assert "0..255" in about["input"]


def test_a_missing_extra_is_named_with_the_next_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interchange, "EXTRA", ("onnx", "there_is_no_such_package"))
    with pytest.raises(ValueError, match=r"needs there_is_no_such_package: .*fullfeed\[export\]"):
        require_onnx()
