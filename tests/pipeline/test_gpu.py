"""The loader on an NVIDIA GPU: the same pixels, on the right device, never overwritten."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.loader import Batch, Loader, LoaderConfig

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no NVIDIA GPU here"),
]
BATCH = 8
JPEG_TOLERANCE = 3.0  # of 0..255, mean over a batch: GPU decoders round their DCT otherwise


def epoch(folder: Path, backend: str, device: str = "cuda", **options: object) -> list[Batch]:
    """All batches of the first epoch, kept until the end."""
    config = {"shards": folder, "batch_size": BATCH, "backend": backend, "device": device}
    with Loader(LoaderConfig(**{**config, **options})) as loader:  # type: ignore[arg-type]
        return list(loader)


@pytest.mark.parametrize("backend", ["dali-gpu", "dali-cpu", "numpy"])
def test_a_batch_has_the_types_and_devices_it_promises(shard_folder: Path, backend: str) -> None:
    if backend.startswith("dali"):
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    for batch in epoch(shard_folder, backend):
        assert batch.images.device.type == batch.labels.device.type == "cuda"
        assert batch.crop.device.type == "cuda" and batch.ids.device.type == "cpu"
        assert batch.images.dtype == torch.float16
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert batch.images.shape == (BATCH, 3, 224, 224)


def test_raw_shards_give_the_pixels_of_the_reference_in_half_precision(
    raw_shard_folder: Path,
) -> None:
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    expected = epoch(raw_shard_folder, "numpy", "cpu")
    found = epoch(raw_shard_folder, "dali-gpu")
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one.ids, other.ids) and torch.equal(one.crop, other.crop.cpu())
        assert torch.equal(one.images.half(), other.images.cpu())


def test_jpeg_shards_are_decoded_to_within_the_tolerance_of_gpu_decoders(
    shard_folder: Path,
) -> None:
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    expected = epoch(shard_folder, "numpy", "cpu")
    found = epoch(shard_folder, "dali-gpu")
    for one, other in zip(expected, found, strict=True):
        gap = (one.images - other.images.float().cpu()).abs().mean().item()
        assert gap < JPEG_TOLERANCE


def test_a_cpu_backend_that_feeds_the_gpu_adds_the_same_lighting_there(
    shard_folder: Path,
) -> None:
    expected = epoch(shard_folder, "numpy", "cpu")
    found = epoch(shard_folder, "numpy", "cuda")
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one.images.half(), other.images.cpu())


def test_batches_kept_by_the_user_are_not_overwritten_by_later_ones(shard_folder: Path) -> None:
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    config = LoaderConfig(
        shards=shard_folder, batch_size=BATCH, backend="dali-gpu", device="cuda", prefetch=2
    )
    with Loader(config) as loader:
        copies, kept = [], []
        for _ in range(3):
            for batch in loader:
                kept.append(batch.images)
                copies.append(batch.images.cpu().numpy())
        for image, copy in zip(kept, copies, strict=True):
            assert np.array_equal(image.cpu().numpy(), copy)
