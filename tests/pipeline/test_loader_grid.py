"""Of any number of samples, in any batches, ranks and windows, cut anywhere: each exactly once."""

import json
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.loader import Batch, Loader, LoaderConfig
from pipeline.manifest import open_dataset
from tools.measure.simulated import simulate_shards

NUM_CLASSES = 7
Step = tuple[list[int], list[int], list[list[int]]]


def told(parts: Sequence[Batch]) -> Step:
    """Ids, labels and crops of a step's parts, put together."""
    return (
        [i for part in parts for i in part.ids.tolist()],
        [label for part in parts for label in part.labels.tolist()],
        [crop for part in parts for crop in part.crop.tolist()],
    )


@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_epoch_is_exactly_once_and_goes_on_from_any_cut_on_any_ranks(
    data: st.DataObject,
) -> None:
    """Three epochs of one rank; then, from a step of the second on, of others."""
    num_samples = data.draw(st.integers(1, 60), "samples")
    training = data.draw(st.booleans(), "training")
    ranks_before, ranks_after = (
        data.draw(st.sampled_from([1, 2, 3, 4]), f"world size {when}")
        for when in ("before", "after")
    )
    common = ranks_before * ranks_after
    most = num_samples if training else 70
    sizes = [size for size in range(1, most + 1) if size % common == 0]
    if not sizes:  # no batch that both divide: one rank goes on alone
        ranks_before, ranks_after, sizes = 1, 1, [1]
    options: dict[str, Any] = {
        "training": training,
        "batch_size": data.draw(st.sampled_from(sizes), "batch size"),
        "window": data.draw(st.sampled_from(["all", 1, 2, 5]), "window"),
        "seed": data.draw(st.integers(0, 2**64 - 1), "seed"),
        "lighting": "off", "backend": "numpy", "threads": 1,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        per_shard = data.draw(st.integers(1, 20), "images per shard")
        simulate_shards(Path(folder), num_samples, NUM_CLASSES, images_per_shard=per_shard)

        def opened(world_size: int) -> list[Loader]:
            return [
                stack.enter_context(
                    Loader(
                        LoaderConfig(
                            shards=Path(folder), world_size=world_size, rank=rank, **options
                        )
                    )
                )
                for rank in range(world_size)
            ]

        before, after = opened(ranks_before), opened(ranks_after)
        index = open_dataset(Path(folder)).index("train")
        label_of = dict(zip(index["id"].tolist(), index["label"].tolist(), strict=True))
        epochs = [[told(parts) for parts in zip(*before, strict=True)] for _ in range(3)]
        for epoch in epochs:
            ids = [i for step in epoch for i in step[0]]
            left_out = num_samples % options["batch_size"] if training else 0
            assert len(ids) == len(set(ids)) == num_samples - left_out
            assert set(ids) <= set(range(num_samples))
            labels = [label for step in epoch for label in step[1]]
            assert labels == [label_of[i] for i in ids]
        cut = data.draw(st.integers(0, len(before[0]) - 1), "cut")
        state = {**before[0].state_dict(), "epoch": 1, "step": cut}
        for loader in after:
            loader.load_state_dict(json.loads(json.dumps(state)))
        rest = [[told(parts) for parts in zip(*after, strict=True)] for _ in range(2)]
        assert rest == [epochs[1][cut:], epochs[2]]
