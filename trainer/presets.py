"""Every hyper-parameter, frozen, each with its source.

Sources: [paper] Krizhevsky, Sutskever, Hinton, "ImageNet Classification with Deep Convolutional
Neural Networks", NIPS 2012, with its section; [he] He et al., "Delving Deep into Rectifiers", ICCV
2015; [goyal] Goyal et al., "Accurate, Large Minibatch SGD", 2017; [ours] our choice.
"""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, Literal, get_args

Norm = Literal["response", "batch"]
Mean = Literal["image-at-crop", "channel"]
Init = Literal["normal", "kaiming"]
Lighting = Literal["variance", "std", "off"]
Schedule = Literal["plateau", "cosine"]
Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One recipe: the network, how its input is prepared, and how it is trained."""

    name: str

    norm: Norm  # after the first two convolutions: response norm in each column, or batch norm
    response_k: float  # the constants of response norm; unused with batch norm
    response_size: int
    response_alpha: float  # factor of the sum of squares itself, not divided by response_size
    response_beta: float
    init: Init
    init_std: float  # of `normal`; unused with `kaiming`
    ones_biases: bool  # biases start at 1 in conv2, conv4, conv5, fc6 and fc7; otherwise all at 0
    dropout: bool  # half of the outputs of fc6 and fc7 masked in training, outputs halved in test

    mean: Mean  # subtracted; the channel mean comes with a division by the channel deviation
    lighting: Lighting  # scale of the lighting offset: eigenvalue, its square root, or none

    batch_size: int  # global
    learning_rate: float  # at that batch
    batch_exponent: float  # another batch scales the rate by (its size / batch_size) to this power
    momentum: float
    nesterov: bool
    weight_decay: float
    decay_vectors: bool  # weight decay of biases and batch-norm parameters too
    rescale_momentum: bool  # the velocity survives a change of the learning rate (paper)
    schedule: Schedule
    warmup_epochs: float  # of `cosine`: linear, at most a quarter of the run
    num_drops: int  # of `plateau`
    drop_factor: float
    patience_epochs: int  # validations without a better top-1 error before a drop
    epochs: int
    precision: Precision  # what --precision auto takes on a GPU; a CPU gets fp32

    def __post_init__(self) -> None:
        for field, choices in (
            ("norm", Norm),
            ("init", Init),
            ("mean", Mean),
            ("lighting", Lighting),
            ("schedule", Schedule),
            ("precision", Precision),
        ):
            self._require(field, getattr(self, field) in get_args(choices), f"one of {choices}")
        for field in ("batch_size", "learning_rate", "epochs", "patience_epochs", "response_size"):
            self._require(field, getattr(self, field) > 0, "more than 0")
        for field in ("weight_decay", "warmup_epochs", "num_drops", "init_std", "batch_exponent"):
            self._require(field, getattr(self, field) >= 0, "0 or more")
        self._require("momentum", 0 <= self.momentum < 1, "at least 0 and below 1")
        self._require("drop_factor", self.drop_factor > 1, "more than 1")
        self._require("response_size", self.response_size % 2 == 1, "odd")

    def _require(self, field: str, holds: bool, expected: str) -> None:
        if not holds:
            found = getattr(self, field)
            raise ValueError(f"preset {self.name}: {field} is {found!r}, must be {expected}")

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, JSON-able."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Preset":
        """The inverse of `to_dict`; ValueError naming fields that are missing or unknown."""
        known = {field.name for field in dataclasses.fields(cls)}
        if wrong := known.symmetric_difference(fields):
            raise ValueError(f"preset fields missing or unknown: {', '.join(sorted(wrong))}")
        return cls(**fields)

    def show(self) -> str:
        """The fields as JSON, one per line."""
        return json.dumps(self.to_dict(), indent=2)


PAPER = Preset(
    name="paper",
    norm="response",  # [paper §3.3]
    response_k=2.0,  # [paper §3.3]
    response_size=5,  # [paper §3.3] n
    response_alpha=1e-4,  # [paper §3.3] as printed: the sum is not divided by n
    response_beta=0.75,  # [paper §3.3]
    init="normal",  # [paper §5]
    init_std=0.01,  # [paper §5]
    ones_biases=True,  # [paper §5]
    dropout=True,  # [paper §4.2]
    mean="image-at-crop",  # [paper §2] "the mean activity over the training set from each pixel"
    lighting="variance",  # [paper §4.1] the formula as printed: alpha times eigenvalue
    batch_size=128,  # [paper §5]
    learning_rate=0.01,  # [paper §5]
    batch_exponent=1.0,  # the 2012 lab notes: batch 256 with the rate doubled "matches exactly"
    momentum=0.9,  # [paper §5]
    nesterov=False,  # [paper §5]
    weight_decay=5e-4,  # [paper §5]
    decay_vectors=True,  # [paper §5] the rule is stated for every w
    rescale_momentum=True,  # [paper §5] v holds steps already scaled by the rate of their time
    schedule="plateau",  # [paper §5]
    warmup_epochs=0.0,  # [paper §5] none
    num_drops=3,  # [paper §5]
    drop_factor=10.0,  # [paper §5]
    patience_epochs=5,  # [ours] the paper says only "stopped improving"
    epochs=90,  # [paper §5] "roughly 90 cycles"
    precision="fp32",  # [paper §5] the GPUs of 2012
)

MODERN = Preset(
    name="modern",
    norm="batch",  # [ours] where the paper has response norm
    response_k=2.0,
    response_size=5,
    response_alpha=1e-4,
    response_beta=0.75,
    init="kaiming",  # [he §2.2]
    init_std=0.0,
    ones_biases=False,  # [he §2.2]
    dropout=True,  # [paper §4.2]
    mean="channel",  # [ours] prediction then needs no mean image
    lighting="std",  # [paper §4.1] with the standard deviations that the 2012 code multiplies
    batch_size=1024,  # [ours] keeps a large GPU busy
    learning_rate=0.08,  # [ours] the paper's 0.01 at 128, scaled linearly [goyal §2.1]
    batch_exponent=0.5,  # [ours] below 1,024 linear scaling learns too slowly: small sets, 32..128
    momentum=0.9,  # [goyal §5.1]
    nesterov=True,  # [goyal §5.1]
    weight_decay=5e-4,  # [paper §5]
    decay_vectors=False,  # [goyal §5.1] "we do not apply weight decay on" batch norm's parameters
    rescale_momentum=False,  # [ours] the rate moves at every step by little
    schedule="cosine",  # Loshchilov and Hutter, "SGDR", 2017, without restarts
    warmup_epochs=5.0,  # [goyal §2.2]
    num_drops=0,
    drop_factor=10.0,
    patience_epochs=5,
    epochs=90,  # [paper §5]
    precision="bf16",  # [ours]
)

PRESETS = {preset.name: preset for preset in (MODERN, PAPER)}


def find_preset(name: str) -> Preset:
    """The preset of that name; ValueError naming those there are."""
    if name not in PRESETS:
        raise ValueError(f"--preset {name!r} is unknown; expected one of: {', '.join(PRESETS)}")
    return PRESETS[name]
