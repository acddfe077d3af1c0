"""The bounds of a preset's fields, and what it says of an epoch."""

import re
from typing import Any

import pytest

from trainer.override import override
from trainer.presets import KRIZ2012, MODERN, PAPER


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("network.columns", 3),
        ("network.channels", [96, 256, 384, 384]),
        ("network.channels", [95, 256, 384, 384, 256]),
        ("network.channels", [96, 256, 384, 384, 2**21]),
        ("network.hidden", [10**12, 4096]),
        ("network.conv6", 10**12),
        ("network.hidden", [4096, 0]),
        ("network.conv6", -2),
        ("network.removed", ["conv1"]),
        ("network.activation", "gelu"),
        ("network.layer1_order", "conv-pool"),
        ("network.pool_px", 4),
        ("network.norm", "layer"),
        ("network.response_size", 4),
        ("network.response_beta", 0.0),
        ("network.response_beta", 1e300),
        ("network.response_k", 1e300),
        ("network.init_std", 1e300),
        ("network.map_norm_px", 4),
        ("network.init", "uniform"),
        ("network.init_std", -0.01),
        ("augmentation.mean", "median"),
        ("augmentation.lighting", "on"),
        ("augmentation.lighting_off_epoch", -1),
        ("augmentation.input_divisor", 0.0),
        ("augmentation.input_divisor", 1e-300),
        ("augmentation.images_per_crop", 0),
        ("training.batch_size", 0),
        ("training.learning_rate", 0.0),
        ("training.learning_rate", 1e300),
        ("training.momentum", 1.0),
        ("training.batch_exponent", 1.5),
        ("training.weight_decay", -1.0),
        ("training.weight_decay", 1e300),
        ("training.vector_rate_factor", 0.0),
        ("training.vector_rate_factor", 1e300),
        ("training.schedule", "linear"),
        ("training.patience_epochs", 0),
        ("training.precision", "fp8"),
    ],
)
def test_a_value_out_of_bounds_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{field} is .*, must be "):
        override(PAPER, {field: value})


@pytest.mark.parametrize(
    "rate", [[91, "conv1", 0.1], [1, "conv9", 0.1], [1, "conv1", -0.1], [1, "conv1", 1e300]]
)
def test_a_rate_of_a_layer_out_of_bounds_is_the_one_that_is_named(rate: list[Any]) -> None:
    message = f"training.layer_rates has {rate}, must be [epoch within 0..90, layer among conv1, "
    with pytest.raises(ValueError, match=re.escape(message)):
        override(PAPER, {"layer_rates": [[1, "conv1", 0.1], rate]})


@pytest.mark.parametrize(
    ("layer", "changes"), [("conv6", {}), ("conv3", {"removed": ["conv4", "conv3"]})]
)
def test_a_rate_of_a_layer_that_the_network_lacks_is_refused(
    layer: str, changes: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=f"layer_rates has {layer}, which the network lacks"):
        override(PAPER, {"layer_rates": [[1, layer, 0.1]], **changes})


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("epochs", 0, "epochs is 0, must be 1 to 10,000: a schedule has to end"),
        ("epochs", 10**9, "a schedule has to end"),
        ("drop_factor", 1.0, "drop_factor is 1.0, must be more than 1: the rate has to fall"),
        ("drop_epochs", [23, 94], r"drop_epochs is \(23, 94\), .* = 93, or it never comes"),
        ("drop_epochs", [51, 23], "rising epochs"),
        ("drop_epochs", [0], "epochs from 1"),
        ("drop_factor", 1e300, "drop_factor is 1e.300, must be smaller: 3 drops would leave less"),
        ("drop_epochs", [1] * 21, "drop_factor is 10.0, must be smaller: 21 drops"),
        ("lighting_off_epoch", 94, "off_epoch is 94, must be at most training.epochs = 93, or"),
    ],
)
def test_a_schedule_that_never_ends_or_never_falls_is_refused(
    field: str, value: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        override(KRIZ2012, {field: value})


def test_a_plateau_that_never_stops_dropping_is_refused() -> None:
    with pytest.raises(ValueError, match="must be smaller: 400 drops would leave less"):
        override(PAPER, {"num_drops": 400})
    assert override(KRIZ2012, {"num_drops": 400}).training.num_drops == 400  # has no use for it


def test_nesterov_needs_momentum() -> None:
    with pytest.raises(ValueError, match="nesterov is True, .* where training.momentum is 0"):
        override(MODERN, {"momentum": 0.0})
    assert override(MODERN, {"momentum": 0.0, "nesterov": False}).training.momentum == 0


def test_lighting_and_the_divisor_end_together_after_68_epochs() -> None:
    augmentation = KRIZ2012.augmentation
    assert [augmentation.is_lit(epoch) for epoch in (0, 67, 68, 92)] == [True, True, False, False]
    assert [augmentation.divisor(epoch) for epoch in (0, 67, 68, 92)] == [1.1, 1.1, 1.0, 1.0]


def test_elsewhere_lighting_stays_on_and_images_are_not_divided() -> None:
    for preset in (PAPER, MODERN):
        assert preset.augmentation.is_lit(10**4) and preset.augmentation.divisor(0) == 1.0
    dark = override(KRIZ2012, {"lighting": "off"}).augmentation
    assert not dark.is_lit(0) and dark.divisor(0) == 1.0
