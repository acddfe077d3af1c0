"""What a loader cannot deliver is refused, naming the bound and what was found."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.loader_config import LoaderConfig


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch size must be at least 1, not 0"),
        ({"prefetch": 0}, "prefetch must be at least 1, not 0"),
        ({"threads": 0}, "threads must be at least 1, not 0"),
        ({"world_size": 0}, "world size must be at least 1, not 0"),
        ({"local_world_size": 0}, "local world size must be at least 1, not 0"),
        ({"window": 0}, "window must be at least 1, not 0"),
        ({"rank": 1}, r"rank must be within 0..0, not 1"),
        ({"world_size": 4, "rank": 4}, r"rank must be within 0..3, not 4"),
        ({"world_size": 4, "rank": -1}, r"rank must be within 0..3, not -1"),
        ({"world_size": 3}, "world size 3 does not divide the global batch 8"),
        ({"seed": -1}, r"seed must be within 0..2\*\*64-1, not -1"),
        ({"seed": 2**64}, "seed must be within"),
        ({"hw_decoder_load": 1.1}, "hw_decoder_load must be within 0..1, not 1.1"),
        ({"lighting": "strong"}, r"lighting must be one of .*'std'.*, not 'strong'"),
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
