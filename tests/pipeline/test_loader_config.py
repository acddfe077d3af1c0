"""What a loader cannot deliver is refused, naming the bound and what was found."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.draws import centre_draws, draws
from pipeline.loader_config import LoaderConfig

AUGMENTATION_0_1_0 = "46d496cc96b98b5b6a4796b2a4ac32e9e9da06f823cda848e254007a73d8887a"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch size must be at least 1, not 0"),
        ({"prefetch": 0}, "prefetch must be at least 1, not 0"),
        ({"threads": 0}, "threads must be at least 1, not 0"),
        ({"world_size": 0}, "world size must be at least 1, not 0"),
        ({"local_world_size": 0}, "local world size must be at least 1, not 0"),
        ({"threads": 1025}, "threads must be at most 1024, not 1025"),
        ({"window": 2.5}, "window must be a whole number, not 2.5"),
        ({"batch_size": "8"}, "batch size must be a whole number, not '8'"),
        ({"batch_size": True}, "batch size must be a whole number, not True"),
        ({"rank": "0"}, "rank must be a whole number, not '0'"),
        ({"seed": 1.5}, "seed must be a whole number, not 1.5"),
        ({"lighting_off_epoch": None}, "lighting off epoch must be a whole number, not None"),
        ({"window": 0}, "window must be at least 1, not 0"),
        ({"rank": 1}, r"rank must be within 0..0, not 1"),
        ({"world_size": 4, "rank": 4}, r"rank must be within 0..3, not 4"),
        ({"world_size": 4, "rank": -1}, r"rank must be within 0..3, not -1"),
        ({"world_size": 3}, "world size 3 does not divide the global batch 8"),
        ({"seed": -1}, r"seed must be within 0..2\*\*64-1, not -1"),
        ({"seed": 2**64}, "seed must be within"),
        ({"hw_decoder_load": 1.1}, "hw_decoder_load must be within 0..1, not 1.1"),
        ({"order": "any"}, "order must be one of global, local, not 'any'"),
        ({"order": "local", "window": 2}, "--order local .* no --window 2"),
        ({"order": "local", "training": False}, "order local is of training"),
        ({"resident_format": "bgr"}, "resident format must be one of rgb, yuv420, not 'bgr'"),
        (
            {"resident_format": "yuv420", "resident": "auto"},
            "--resident-format yuv420 .* goes with --resident device, not auto",
        ),
        ({"lighting": "strong"}, r"lighting must be one of .*'std'.*, not 'strong'"),
        ({"images_per_crop": 0}, "images per crop must be at least 1, not 0"),
        ({"lighting_off_epoch": -1}, "lighting off epoch must be >= 0, not -1"),
        ({"shards": "shards"}, r"shards must be a path, not a str: Path\('shards'\)"),
        ({"stage_dir": "stage"}, r"stage_dir must be a path, not a str: Path\('stage'\)"),
        ({"views": "ten"}, r"views must be one of .*'full'.*, not 'ten'"),
    ],
)
def test_a_value_out_of_bounds_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoaderConfig(**{"shards": Path("shards"), "batch_size": 8, **changes})


def test_values_at_the_bounds_are_taken() -> None:
    LoaderConfig(
        shards=Path("shards"), batch_size=4, world_size=4, rank=3, seed=2**64 - 1, window=1
    )


def config(**changes: Any) -> LoaderConfig:
    return LoaderConfig(shards=Path("shards"), batch_size=8, seed=3, **changes)


def test_the_draws_of_a_step_are_those_of_the_configuration() -> None:
    drawn, expected = config().draws(2, 5), draws(3, 2, 5, 8)
    assert drawn.crop.tolist() == expected.crop.tolist()
    assert drawn.alpha.tolist() == expected.alpha.tolist()
    chunks = config(images_per_crop=4).draws(2, 5)
    assert chunks.crop.tolist() == draws(3, 2, 5, 8, images_per_crop=4).crop.tolist()
    validation = config(training=False, images_per_crop=4).draws(2, 5)
    assert validation.crop.tolist() == centre_draws(8).crop.tolist()


@pytest.mark.parametrize(("epoch", "lit"), [(0, True), (1, True), (2, False), (9, False)])
def test_lighting_ends_with_its_epoch_and_crops_go_on(epoch: int, lit: bool) -> None:
    drawn, always = config(lighting_off_epoch=2).draws(epoch, 1), config().draws(epoch, 1)
    assert drawn.crop.tolist() == always.crop.tolist()
    assert drawn.alpha.tolist() == (always.alpha if lit else 0 * always.alpha).tolist()


def test_states_saved_before_these_options_stay_valid() -> None:
    """The hash of the defaults is the one of version 0.1.0; each option has its own."""
    hashes = {
        config(**changes).fixed_state("f")["augmentation"]
        for changes in (
            {},
            {"images_per_crop": 32},
            {"lighting_off_epoch": 68},
            {"resident": "device", "resident_format": "yuv420"},
        )
    }
    assert config().fixed_state("f")["augmentation"] == AUGMENTATION_0_1_0
    assert len(hashes) == 4
    assert not {"order", "world_size"} & config().fixed_state("f").keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epoch": 2**63}, "no step 0 of epoch 9223372036854775808"),
        ({"epoch": 1.0}, "no step 0 of epoch 1.0"),
        ({"step": 6}, "no step 6 of epoch 1, of 5"),
        ({"seed": None}, "seed is None in the saved state and 3 here"),
    ],
)
def test_a_state_without_a_position_is_refused(change: dict[str, Any], message: str) -> None:
    saved = {**config().fixed_state("f"), "epoch": 1, "step": 0}
    assert config().position(saved, "f", 5) == (1, 0)
    with pytest.raises(ValueError, match=f"cannot resume: {message}"):
        config().position({**saved, **change}, "f", 5)


@pytest.mark.parametrize("state", [None, [], "state"])
def test_what_is_no_state_is_refused(state: Any) -> None:
    with pytest.raises(ValueError, match=r"a state is what state_dict\(\) gives, not"):
        config().position(state, "f", 5)


def test_a_local_order_is_resumed_on_its_own_world_size_alone() -> None:
    alone, pair, four = (
        config(order="local", world_size=number) for number in (1, 2, 4)
    )
    saved = {**pair.fixed_state("f"), "epoch": 1, "step": 2}
    assert pair.position(saved, "f", 5) == (1, 2)
    second = config(order="local", world_size=2, rank=1)
    assert second.position(saved, "f", 5) == (1, 2)
    for other, told in (
        (alone, "world_size is 2 in the saved state and 1 here"),
        (four, "world_size is 2 in the saved state and 4 here"),
        (config(world_size=2), "order is local in the saved state and global here"),
    ):
        with pytest.raises(ValueError, match=told):
            other.position(saved, "f", 5)
    of_global = {**config().fixed_state("f"), "epoch": 1, "step": 2}
    with pytest.raises(ValueError, match="order is global in the saved state and local here"):
        pair.position(of_global, "f", 5)
