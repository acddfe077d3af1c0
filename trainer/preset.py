"""What a preset consists of: the network, what it is shown, and how it is trained.

The numbers of the three presets, with their sources, are in presets.py.
"""

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

Order = Literal["conv-relu-norm-pool", "conv-norm-pool-relu"]
Activation = Literal["relu", "tanh"]
Norm = Literal["response", "batch", "none"]
Init = Literal["normal", "kaiming"]
Mean = Literal["image-at-crop", "image-centre", "channel"]
Lighting = Literal["variance", "std", "off"]
Schedule = Literal["plateau", "steps", "cosine"]
Precision = Literal["fp32", "tf32", "bf16", "fp16"]

REMOVABLE = ("conv2", "conv3", "conv4", "conv5")  # not conv1: see docs/training.md
LAYERS = ("conv1", *REMOVABLE, "conv6", "fc6", "fc7", "fc8")
MAX_EPOCHS = 10_000
MAX_DECADES = 20  # over which drops may divide the learning rate
MAX_KERNELS = 2**20  # of a layer: their number and that of its weights are counted in 64 bits
MAX_FACTOR = 1e6  # of what is multiplied: float32 holds the product of several


@dataclass(frozen=True, kw_only=True)
class Network:
    """The layers, and their values before the first step."""

    columns: int  # conv2, conv4, conv5 and response norm see their own column's maps only
    exchange: bool  # conv3, conv6, fc6 and fc7 see both columns; otherwise only fc8 does
    channels: tuple[int, int, int, int, int]  # kernels of conv1..conv5, both columns together
    conv6: int  # kernels of a sixth convolution, over pool5; 0: there is none
    hidden: tuple[int, int]  # outputs of fc6 and fc7
    removed: tuple[str, ...]  # convolutions left out, with their normalisation; pooling stays
    activation: Activation
    layer1_order: Order
    pool_px: int  # side of the pooling windows, whose stride is 2

    norm: Norm  # in layers 1 and 2
    response_k: float  # response norm: a / (k + alpha * sum of squares) ** beta
    response_size: int  # channels that the sum runs over
    response_alpha: float
    response_alpha_divided: bool  # alpha is divided by response_size
    response_beta: float
    map_norm_px: int  # side of the window of a second norm in layer 2, in the same map; 0: none
    map_norm_scale: float  # a / (1 + scale / side ** 2 * sum of squares) ** power
    map_norm_power: float

    init: Init
    init_std: float  # of `normal`, at full width; unused with `kaiming`, like the next
    deep_init_std: float  # the same for conv3..conv6
    ones_biases: bool  # biases start at 1 in conv2, conv4..conv6, fc6 and fc7; otherwise all at 0
    dropout: bool  # half of the outputs of fc6 and fc7 masked in training, outputs halved in test

    def __post_init__(self) -> None:
        _require_choices(self, {
            "activation": Activation, "layer1_order": Order, "norm": Norm, "init": Init,
        })  # fmt: skip
        _require(self, "columns", self.columns in (1, 2), "1 or 2")
        for field, length in (("channels", 5), ("hidden", 2)):
            sizes = getattr(self, field)
            even = all(0 < size <= MAX_KERNELS and size % 2 == 0 for size in sizes)
            expected = f"{length} even numbers from 2 to {MAX_KERNELS:,}"
            _require(self, field, len(sizes) == length and even, expected)
        even = 0 <= self.conv6 <= MAX_KERNELS and self.conv6 % 2 == 0
        _require(self, "conv6", even, f"even, 0 to {MAX_KERNELS:,}")
        expected = (
            f"among {', '.join(REMOVABLE)}; conv1 takes 224 pixels to 55 and colours to columns, "
            f"and the others do not make up for it"
        )
        _require(self, "removed", set(self.removed) <= set(REMOVABLE), expected)
        _require(self, "pool_px", self.pool_px in (2, 3), "2 or 3")
        _require(self, "response_size", self.response_size % 2 == 1, "odd")
        _require(self, "map_norm_px", self.map_norm_px in (0, 3, 5, 7), "0, 3, 5 or 7")
        for field in ("response_k", "response_alpha", "response_beta", "response_size"):
            _require_factor(self, field, positive=True)
        for field in ("map_norm_scale", "map_norm_power", "init_std", "deep_init_std"):
            _require_factor(self, field)


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What the network is shown of an image in training."""

    mean: Mean  # subtracted; `channel` comes with a division by the channel deviation
    lighting: Lighting  # scale of the lighting offset: eigenvalue, its square root, or none
    lighting_off_epoch: int  # finished epochs after which lighting ends; 0: it stays
    input_divisor: float  # of the image without its mean, in training while lighting is on
    images_per_crop: int  # neighbours in a batch that share one crop and flip

    def __post_init__(self) -> None:
        _require_choices(self, {"mean": Mean, "lighting": Lighting})
        _require(self, "lighting_off_epoch", self.lighting_off_epoch >= 0, "0 or more")
        within = 1 / MAX_FACTOR <= self.input_divisor <= MAX_FACTOR
        _require(self, "input_divisor", within, f"{1 / MAX_FACTOR:g} to {MAX_FACTOR:,.0f}")
        _require(self, "images_per_crop", self.images_per_crop >= 1, "at least 1")

    def is_lit(self, epoch: int) -> bool:
        """Whether lighting is on in `epoch`, counted from 0."""
        on = not self.lighting_off_epoch or epoch < self.lighting_off_epoch
        return on and self.lighting != "off"

    def divisor(self, epoch: int) -> float:
        """What images are divided by in training in `epoch`, counted from 0."""
        return self.input_divisor if self.is_lit(epoch) else 1.0


class LayerRate(NamedTuple):
    """From `epoch` finished epochs on, `layer` learns at `factor` times the schedule's rate."""

    epoch: int
    layer: str
    factor: float  # 0: the layer is frozen


@dataclass(frozen=True, kw_only=True)
class Training:
    """The update rule, the learning rate and the length of a run."""

    batch_size: int  # global
    learning_rate: float  # at that batch
    batch_exponent: float  # another batch scales the rate by (its size / batch_size) to this power
    momentum: float
    nesterov: bool
    weight_decay: float
    decay_vectors: bool  # weight decay of biases and batch-norm parameters too
    vector_rate_factor: float  # their learning rate, in that of the kernels and matrices
    rescale_momentum: bool  # the velocity survives a change of the learning rate

    schedule: Schedule
    epochs: int  # passes over the training split
    drop_factor: float  # of `plateau` and `steps`: what the rate is divided by at a drop
    drop_epochs: tuple[int, ...]  # of `steps`: finished epochs before each drop
    num_drops: int  # of `plateau`
    patience_epochs: int  # of `plateau`: validations without a better top-1 error before a drop
    warmup_epochs: float  # of `cosine`: linear, at most a quarter of the run
    layer_rates: tuple[LayerRate, ...]  # layers with a rate of their own; the last one holds
    precision: Precision  # what --precision auto takes on a GPU; a CPU gets fp32

    def __post_init__(self) -> None:
        _require_choices(self, {"schedule": Schedule, "precision": Precision})
        for field in ("batch_size", "patience_epochs"):
            _require(self, field, getattr(self, field) >= 1, "at least 1")
        for field in ("learning_rate", "vector_rate_factor"):
            _require_factor(self, field, positive=True)
        for field in ("weight_decay", "warmup_epochs", "num_drops"):
            _require_factor(self, field)
        _require(self, "batch_exponent", 0 <= self.batch_exponent <= 1, "0 to 1")
        _require(self, "momentum", 0 <= self.momentum < 1, "at least 0 and below 1")
        plain = not self.nesterov or self.momentum > 0
        _require(self, "nesterov", plain, "false where training.momentum is 0")
        _require(self, "drop_factor", self.drop_factor > 1, "more than 1: the rate has to fall")
        ends = 1 <= self.epochs <= MAX_EPOCHS
        _require(self, "epochs", ends, f"1 to {MAX_EPOCHS:,}: a schedule has to end")
        self._check_events()

    def _check_events(self) -> None:
        rises = all(a <= b for a, b in zip(self.drop_epochs, self.drop_epochs[1:]))
        within = all(1 <= epoch <= self.epochs for epoch in self.drop_epochs)
        expected = (
            f"rising epochs from 1 to training.epochs = {self.epochs}, or it never comes; "
            f"--epochs moves them in proportion"
        )
        _require(self, "drop_epochs", rises and within, expected)
        drops = self.num_drops if self.schedule == "plateau" else len(self.drop_epochs)
        left = drops * math.log10(self.drop_factor) <= MAX_DECADES
        expected = f"smaller: {drops} drops would leave less than a rate / 10^{MAX_DECADES}"
        _require(self, "drop_factor", left, expected)
        for epoch, layer, factor in self.layer_rates:
            known = 0 <= epoch <= self.epochs and layer in LAYERS
            if not (known and 0 <= factor <= MAX_FACTOR):
                raise ValueError(
                    f"training.layer_rates has {[epoch, layer, factor]}, must be [epoch within "
                    f"0..{self.epochs}, layer among {', '.join(LAYERS)}, factor 0 to "
                    f"{MAX_FACTOR:,.0f}]"
                )


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One recipe."""

    name: str
    network: Network
    augmentation: Augmentation
    training: Training

    def __post_init__(self) -> None:
        last = self.training.epochs
        ends = self.augmentation.lighting_off_epoch <= last
        expected = f"at most training.epochs = {last}, or it never comes"
        _require(self.augmentation, "lighting_off_epoch", ends, expected)
        lacking = {*self.network.removed} | ({"conv6"} if not self.network.conv6 else set())
        for _, layer, _ in self.training.layer_rates:
            if layer in lacking:
                raise ValueError(f"training.layer_rates has {layer}, which the network lacks")

    def to_dict(self) -> dict[str, Any]:
        """The fields by owner and name, as JSON gives them back."""
        fields: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return fields


def _require(owner: Any, field: str, holds: bool, expected: str) -> None:
    if not holds:
        name = f"{type(owner).__name__.lower()}.{field}"
        raise ValueError(f"{name} is {getattr(owner, field)!r}, must be {expected}")


def _require_factor(owner: Any, field: str, *, positive: bool = False) -> None:
    value, least = getattr(owner, field), "more than 0, at most" if positive else "0 to"
    good = 0 < value <= MAX_FACTOR or (value == 0 and not positive)
    _require(owner, field, good, f"{least} {MAX_FACTOR:,.0f}")


def _require_choices(owner: Any, choices: dict[str, Any]) -> None:
    for field, literal in choices.items():
        options = get_args(literal)
        _require(owner, field, getattr(owner, field) in options, f"one of {', '.join(options)}")
