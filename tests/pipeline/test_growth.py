"""A loader keeps no more memory after twenty epochs than after the first ones."""

import multiprocessing
from pathlib import Path

import pytest

from pipeline.loader import Loader, LoaderConfig
from tools.measure.memory import anonymous_bytes

NUM_EPOCHS, WARM_EPOCHS = 20, 3
MAX_DISTANCE_MB = 50  # a batch is 5, and one kept of each epoch would come to 80

pytestmark = pytest.mark.slow


def kept_after_epochs(folder: Path, backend: str) -> list[int]:
    """Anonymous resident bytes of this process after each epoch, validation between them."""
    train = LoaderConfig(shards=folder, batch_size=8, backend=backend, threads=2)
    val = LoaderConfig(
        shards=folder, split="val", training=False, batch_size=8, backend=backend, threads=2
    )
    kept = []
    with Loader(train) as training, Loader(val) as validation:
        for _ in range(NUM_EPOCHS):
            assert sum(len(batch.ids) for batch in training) == 32
            assert sum(len(batch.ids) for batch in validation) == 15
            kept.append(anonymous_bytes() or 0)
    return kept


@pytest.mark.parametrize("backend", ["numpy", "dali-cpu"])
def test_memory_stays_flat_over_twenty_epochs(shard_folder: Path, backend: str) -> None:
    if backend.startswith("dali"):
        pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        kept = pool.apply(kept_after_epochs, (shard_folder, backend))
    if not all(kept):
        pytest.skip("this system does not say how much anonymous memory a process has")
    first = kept[WARM_EPOCHS]
    grown = [round((each - first) / 1e6, 1) for each in kept[WARM_EPOCHS:]]
    print(f"{backend}: {first / 1e6:.0f} MB after the first warm epoch, then more by, MB: {grown}")
    assert max(abs(each) for each in grown) < MAX_DISTANCE_MB
