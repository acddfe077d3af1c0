"""A network in the forms that other programs read: ONNX and plain safetensors."""

import copy
import importlib.util
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from pipeline.draws import CROP_PX
from trainer.checkpoint import Checkpoint, restore_model
from trainer.evaluate import CENTRE_VIEW
from trainer.layers import MapResponseNorm, ResponseNorm, random_source
from trainer.model import AlexNet

EXTRA = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4  # of the largest logit, or of 1 where that is more
NUM_CHECKED = 3  # images that the exported network is tried on
INPUT = (
    "uint8 (N, 3, 224, 224), R, G, B in 0..255: the central 224 x 224 of a photograph's central "
    "square at 256 x 256; do not normalise"
)
SAFETENSORS_INPUT = (
    "float (N, 3, 224, 224), R, G, B in 0..255: the central 224 x 224 of a photograph's central "
    "square at 256 x 256, minus normalise.mean (of (256, 256, 3): its centre), over "
    "normalise.std; then three pixels of 0 to the right and below; where the preset has dropout, "
    "what fc6 and fc7 give after their activation is halved"
)


class Standalone(nn.Module):
    """Centre crops to logits in test mode, with nothing but plain operations.

    images: uint8 (batch, 3, 224, 224), 0..255. Returns float32 (batch, classes).
    """

    crop: Tensor

    def __init__(self, model: AlexNet) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).eval()
        for name, layer in model.named_children():
            if isinstance(layer, ResponseNorm | MapResponseNorm):
                setattr(self.model, name, PlainResponseNorm(layer))
        self.register_buffer("crop", torch.tensor(CENTRE_VIEW))  # of one image, stands for all

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        logits: Tensor = self.model(images, self.crop, None)
        return logits


class PlainResponseNorm(nn.Module):
    """A response norm without the gradient of its own, which has no name in ONNX."""

    def __init__(self, layer: ResponseNorm | MapResponseNorm) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, channels, height, width)."""
        layer = self.layer
        if isinstance(layer, ResponseNorm):
            columns = x.square().chunk(layer.columns, 1)
            sums = torch.cat([channel_sum(column, layer.size) for column in columns], 1)
        else:
            sums = F.avg_pool2d(x.square(), layer.size, 1, layer.size // 2) * layer.size**2
        return x * (layer.k + layer.alpha * sums) ** -layer.beta


def channel_sum(x: Tensor, size: int) -> Tensor:
    """Each channel's sum over the `size` channels around it, zeros outside; shaped like x."""
    reach = size // 2
    padded = F.pad(x, (0, 0, 0, 0, reach, reach))
    return torch.stack([padded[:, i : i + x.shape[1]] for i in range(size)]).sum(0)


def require_onnx() -> None:
    """ValueError, with the next command, where the extra is not installed."""
    missing = [name for name in EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"ONNX needs {', '.join(missing)}: pip install 'fullfeed[export]', or ask for "
            "--out NAME.safetensors"
        )


def to_onnx(checkpoint: Checkpoint) -> tuple[bytes, float]:
    """The network as an ONNX file, and how far its logits are from ours on random images.

    Input `images`, see INPUT, any number of them; output `logits`, float32 (N, classes). Preset,
    classes and input are in the file's metadata too. ValueError without the extra, or where
    onnxruntime's logits are further from ours than TOLERANCE, see onnx_difference: float32 sums of
    thousands of terms agree to so much of their size, not to so much of any one of them.
    """
    require_onnx()
    import onnx

    network = Standalone(restore_model(checkpoint, torch.device("cpu"))).eval()
    images = random_images(NUM_CHECKED)
    # The exporter warns of its own use of torch, and that torchvision is not installed.
    with warnings.catch_warnings(), _quiet("torch.onnx._internal.exporter._registration"):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network, (images,), dynamo=True, external_data=False, verbose=False,
            input_names=["images"], output_names=["logits"],
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
        )  # fmt: skip
    assert program is not None
    proto = program.model_proto
    onnx.helper.set_model_props(proto, _about(checkpoint, INPUT))
    data: bytes = proto.SerializeToString()
    difference = max(onnx_difference(data, network, part) for part in (images, images[:1]))
    if not difference <= TOLERANCE:
        raise ValueError(
            f"onnxruntime's logits differ from ours by {difference:.1g} of the largest, tolerated "
            f"are {TOLERANCE:g}; file not written"
        )
    return data, difference


@torch.inference_mode()
def onnx_difference(data: bytes, network: nn.Module, images: Tensor) -> float:
    """The largest difference between the logits of an ONNX file and of the network it came from.

    In units of the largest logit of all images, or of 1 where that is more.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    (found,) = session.run(["logits"], {"images": images.numpy()})
    expected = network(images)
    largest = expected.abs().max().clamp_min(1.0)
    return float((torch.from_numpy(found) - expected).abs().max() / largest)


def to_safetensors(checkpoint: Checkpoint) -> bytes:
    """Weights and normalisation alone, in safetensors; the rest as text in its metadata."""
    weights = restore_model(checkpoint, torch.device("cpu")).state_dict()
    tensors = {name: tensor.contiguous() for name, tensor in weights.items()}
    return save(tensors, {"format": "pt", **_about(checkpoint, SAFETENSORS_INPUT)})


def random_images(count: int) -> Tensor:
    """uint8 (count, 3, 224, 224), always the same."""
    shape, source = (count, 3, CROP_PX, CROP_PX), random_source("cpu", "export")
    return torch.randint(0, 256, shape, generator=source, dtype=torch.uint8)


def _about(checkpoint: Checkpoint, convention: str) -> dict[str, str]:
    """What a reader of the file has to know, as text; values of more than one part as JSON."""
    config: dict[str, Any] = checkpoint.config
    return {
        "input": convention,
        "classes": json.dumps(config["classes"]),
        "preset": json.dumps(config["preset"]),
        "width": str(config["width"]),
        "made_by": json.dumps(checkpoint.made_by),
    }


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Keeps a logger's warnings back while the block runs."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
