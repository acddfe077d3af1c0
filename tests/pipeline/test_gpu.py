"""The loader on an NVIDIA GPU: the same pixels, on the right device, never overwritten."""

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.copies import GpuCopies, pinned_empty
from pipeline.gather import gather_crop
from pipeline.loader import Batch, Loader, LoaderConfig

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no NVIDIA GPU here"),
]
BATCH = 8
JPEG_TOLERANCE = 3.0  # of 0..255, mean over a batch: GPU decoders round their DCT otherwise
MAX_GROWTH_BYTES = 50 * 10**6
RAW, DALI_GPU, DALI_CPU, NUMPY = "raw", "dali-gpu", "dali-cpu", "numpy"
RESIDENT = "resident"
Open = Callable[..., Loader]


@pytest.fixture(params=[RAW, RESIDENT, DALI_GPU, DALI_CPU, NUMPY])
def kind(request: pytest.FixtureRequest) -> str:
    """A way for batches to get to the GPU: raw images past DALI, kept there, or of a backend."""
    if request.param.startswith("dali"):
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    return str(request.param)


@pytest.fixture
def jpeg_on_gpu() -> None:
    """Skips where DALI is not installed."""
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")


@pytest.fixture
def opened(shard_folder: Path, raw_shard_folder: Path) -> Iterator[Open]:
    """Opens exact loaders of a kind, on the GPU unless asked otherwise, and closes them."""
    loaders: list[Loader] = []

    def open_loader(kind: str, **changes: Any) -> Loader:
        chosen: dict[str, Any] = {
            "shards": raw_shard_folder if kind == RAW else shard_folder,
            "backend": {RAW: DALI_GPU, RESIDENT: "auto"}.get(kind, kind),
            "resident": "device" if kind == RESIDENT else "none",
            "batch_size": BATCH,
            "device": "cuda",
            "exact": True,
            **changes,
        }
        loaders.append(Loader(LoaderConfig(**chosen)))
        return loaders[-1]

    yield open_loader
    for loader in loaders:
        loader.close()


def keep_busy() -> None:
    """Gives the current stream a kernel of some 10 ms."""
    torch.cuda._sleep(20_000_000)  # type: ignore[no-untyped-call]  # cycles of its clock


def on_cpu(opened: Open, kind: str, **changes: Any) -> list[Batch]:
    """An epoch of the oracle's, on the CPU."""
    changes = {"backend": NUMPY, "device": "cpu", **changes}
    return list(opened(RAW if kind == RAW else NUMPY, **changes))


def assert_equal(found: Batch, expected: Batch, kind: str) -> None:
    """The same batch, its pixels those of the oracle, rounded; a GPU's JPEG within tolerance."""
    assert torch.equal(found.ids, expected.ids)
    assert torch.equal(found.labels.cpu(), expected.labels)
    assert torch.equal(found.crop.cpu(), expected.crop)
    pixels, wanted = found.images.cpu(), expected.images.to(found.images.dtype)
    assert pixels.shape == wanted.shape
    if kind != DALI_GPU:
        assert torch.equal(pixels, wanted)
    elif len(pixels):
        assert (pixels.float() - wanted.float()).abs().mean().item() < JPEG_TOLERANCE


# ---- what a batch is ----


def test_a_batch_has_the_types_and_devices_it_promises(kind: str, opened: Open) -> None:
    for batch in opened(kind):
        assert batch.images.device.type == batch.labels.device.type == "cuda"
        assert batch.crop.device.type == "cuda" and batch.ids.device.type == "cpu"
        assert batch.images.dtype == torch.float16
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert batch.images.shape == (BATCH, 3, 224, 224)


@pytest.mark.parametrize("training", [True, False], ids=["training", "validation"])
@pytest.mark.parametrize("views", ["crop", "full"])
def test_batches_are_the_oracles(kind: str, training: bool, views: str, opened: Open) -> None:
    split = "train" if training else "val"  # 15 images to validate: a partial last batch
    options: dict[str, Any] = {"split": split, "training": training, "views": views}
    found = list(opened(kind, **options))
    expected = on_cpu(opened, kind, **options)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert_equal(one, other, kind)


def test_ranks_together_see_what_one_rank_sees(kind: str, opened: Open) -> None:
    ranks = [opened(kind, rank=rank, world_size=2, local_world_size=2) for rank in range(2)]
    for whole, *parts in zip(opened(kind), *ranks, strict=True):
        assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
        assert torch.equal(torch.cat([part.ids for part in parts]), whole.ids)


def test_a_rank_without_images_gets_an_empty_batch(kind: str, opened: Open) -> None:
    options: dict[str, Any] = {"split": "val", "training": False, "batch_size": 4}
    *_, last = opened(kind, **options, rank=0, world_size=4)  # the last batch is of three
    assert last.images.shape == (0, 3, 224, 224)
    assert last.images.device.type == "cuda" and last.images.dtype == torch.float16


@pytest.mark.usefixtures("jpeg_on_gpu")
def test_auto_decodes_on_the_gpu(opened: Open) -> None:
    loader = opened(NUMPY, backend="auto")
    assert loader.backend == DALI_GPU, loader.description


def test_raw_images_need_no_dali(monkeypatch: pytest.MonkeyPatch, opened: Open) -> None:
    monkeypatch.setattr("pipeline.backends._has_dali", lambda: False)
    loader = opened(RAW, backend="auto")
    assert loader.backend == DALI_GPU and "past DALI" in loader.description
    for one, other in zip(loader, on_cpu(opened, RAW), strict=True):
        assert_equal(one, other, RAW)


def test_the_gather_is_the_one_of_the_cpu_bit_for_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (5, 256, 256, 3), dtype=torch.uint8, generator=generator)
    rows = torch.randint(0, 5, (7,), generator=generator)
    crop = torch.randint(0, 33, (7, 3), dtype=torch.int32, generator=generator)
    crop[:, 2] %= 2
    offsets = torch.randn((7, 3), generator=generator) * 20
    expected = gather_crop(images, rows, crop, offsets, torch.float16)
    there = images.cuda(), rows.cuda(), crop.cuda(), offsets.cuda()
    assert torch.equal(gather_crop(*there, torch.float16).cpu(), expected)


# ---- exact, cut and resumed ----


def test_two_exact_runs_are_bit_equal_whatever_their_threads(kind: str, opened: Open) -> None:
    first, second = (opened(kind, threads=threads) for threads in (2, 6))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.images, other.images) and torch.equal(one.ids, other.ids)


@pytest.mark.parametrize("num_taken", [1, 3])
def test_resumed_in_mid_epoch_the_rest_is_bit_equal(
    kind: str, num_taken: int, opened: Open
) -> None:
    loader = opened(kind)
    iterator = iter(loader)
    for _ in range(num_taken):
        next(iterator)
    state = loader.state_dict()
    expected = [batch.images.clone() for batch in iterator]
    fresh = opened(kind)
    fresh.load_state_dict(state)
    found = [batch.images for batch in fresh]
    assert len(found) == len(expected) > 0
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.usefixtures("jpeg_on_gpu")
def test_the_load_used_is_in_the_state_and_zero_where_exact(opened: Open) -> None:
    loose = opened(DALI_GPU, exact=False, hw_decoder_load=0.5)
    exact = opened(DALI_GPU)
    assert loose.state_dict()["hw_decoder_load"] == 0.5
    assert exact.state_dict()["hw_decoder_load"] == 0.0
    assert opened(RAW).state_dict()["hw_decoder_load"] is None
    loose.load_state_dict(exact.state_dict())
    with pytest.raises(ValueError, match="cannot resume exactly: hw_decoder_load is 0.5"):
        exact.load_state_dict(loose.state_dict())


@pytest.mark.usefixtures("jpeg_on_gpu")
def test_a_calibrated_decoder_gives_the_same_pixels(opened: Open) -> None:
    loader = opened(DALI_GPU, exact=False, calibrate=True, threads=4)
    assert loader.settings.num_threads in (2, 4)
    for one, other in zip(loader, on_cpu(opened, DALI_GPU), strict=True):
        assert_equal(one, other, DALI_GPU)


# ---- streams and memory ----


def expected_images(opened: Open, kind: str) -> list[Tensor]:
    """Two epochs, each batch copied to the CPU before the next is asked for."""
    loader = opened(kind, prefetch=2)
    return [batch.images.cpu() for _ in range(2) for batch in loader]


def test_a_slow_consumer_on_another_stream_sees_every_batch_whole(
    kind: str, opened: Open
) -> None:
    """Batches are dropped while kernels that read them wait: their memory must not be reused."""
    expected = expected_images(opened, kind)
    loader = opened(kind, prefetch=2)
    side, seen = torch.cuda.Stream(), []  # type: ignore[no-untyped-call]
    for _ in range(2):
        for batch in loader:
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                keep_busy()
                seen.append(batch.images.clone())
                if kind != DALI_GPU:  # torch's own memory, and torch's rule for other streams
                    batch.images.record_stream(side)
            del batch
    torch.cuda.synchronize()
    assert all(torch.equal(one.cpu(), other) for one, other in zip(seen, expected, strict=True))


def test_a_busy_stream_neither_delays_the_host_nor_loses_a_batch(kind: str, opened: Open) -> None:
    """The host runs ahead of the GPU: what it reads into must have been copied before."""
    expected = expected_images(opened, kind)
    loader = opened(kind, prefetch=2)
    seen = []
    for _ in range(2):
        for batch in loader:
            seen.append(batch.images.clone())
            keep_busy()
    torch.cuda.synchronize()
    assert all(torch.equal(one.cpu(), other) for one, other in zip(seen, expected, strict=True))


def test_batches_taken_in_a_stream_of_ones_own_are_whole(kind: str, opened: Open) -> None:
    expected = expected_images(opened, kind)
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(side):
        loader = opened(kind, prefetch=2)
        seen = [batch.images.cpu() for _ in range(2) for batch in loader]
    assert all(torch.equal(one, other) for one, other in zip(seen, expected, strict=True))


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_no_operation_of_the_hand_over_synchronises(kind: str, opened: Open) -> None:
    loader = opened(kind)
    list(loader)  # what is allocated once has been
    torch.cuda.set_sync_debug_mode("error")  # torch then raises where it would wait
    try:
        list(loader)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_batches_kept_by_the_user_are_not_overwritten_by_later_ones(
    kind: str, opened: Open
) -> None:
    loader = opened(kind, prefetch=2)
    copies, kept = [], []
    for _ in range(3):
        for batch in loader:
            kept.append(batch.images)
            copies.append(batch.images.cpu().numpy())
    for image, copy in zip(kept, copies, strict=True):
        assert np.array_equal(image.cpu().numpy(), copy)


def test_a_copy_waits_for_what_it_follows() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    copies = GpuCopies(device)
    source = torch.from_numpy(pinned_empty((1 << 20,), np.uint8)).fill_(7)
    target = torch.zeros(1 << 20, dtype=torch.uint8, device=device)
    keep_busy()
    target.fill_(1)  # late
    end = copies.begin([(target, source)], after=copies.mark())
    copies.wait(end)
    found = target + 1
    end.synchronize()
    source.fill_(0)  # the copy is over
    assert bool((found == 8).all())


def used_bytes() -> tuple[int, int]:
    """Memory in use, of the GPU by all and of the host by this process (RssAnon)."""
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    status = Path("/proc/self/status").read_text().splitlines()
    (resident,) = [line.split()[1] for line in status if line.startswith("RssAnon")]
    return total - free, int(resident) * 1024


def test_memory_stays_the_same_over_twenty_epochs_of_training_and_validation(
    kind: str, opened: Open
) -> None:
    training = opened(kind)
    validation = opened(kind, split="val", training=False)
    used = []
    for _ in range(20):
        for loader in (training, validation):
            for batch in loader:
                del batch
        used.append(used_bytes())
    for after_warming_up, at_the_end in zip(used[3], used[-1], strict=True):
        assert at_the_end - after_warming_up < MAX_GROWTH_BYTES
