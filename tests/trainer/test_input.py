"""What conv1 sees: the same from the kernel as from the plain form, whole or in blocks."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.handover import lit
from pipeline.triton_here import has_triton
from trainer.input import _prepared_by_kernel, fits, prepared
from trainer.layers import Normalise
from trainer.preset import Mean

needs_triton = pytest.mark.skipif(not has_triton(), reason="Triton is not installed")
KINDS: tuple[Mean, ...] = ("image-at-crop", "image-centre", "channel")


def normalise(kind: Mean) -> Normalise:
    source = torch.Generator().manual_seed(0)
    layer = Normalise(mean=kind)
    layer.fill(
        torch.rand(layer.mean.shape, generator=source) * 200,
        torch.rand(3, generator=source) * 50 + 20,
    )
    return layer


def images(dtype: torch.dtype = torch.float16) -> tuple[Tensor, Tensor]:
    """Three images, and crops at the corners, mirrored and not."""
    source = torch.Generator().manual_seed(1)
    pixels = torch.rand(3, 224, 224, 3, generator=source) * 255
    crop = torch.tensor([[0, 32, 1], [5, 6, 0], [32, 0, 1]], dtype=torch.int32)
    return pixels.to(dtype).permute(0, 3, 1, 2), crop


def compare_all(device: str = "cpu") -> None:
    """Kernel against plain form, bit for bit but for a division; where Triton interprets too."""
    from trainer import triton_input

    if device == "cpu":
        triton_input.OPTIONS["block"] = 65536  # each program costs the interpreter as much
    for kind in KINDS:
        layer = normalise(kind).to(device)
        for dtype, blocks, divisor in (
            (torch.float16, True, 1.0), (torch.float32, False, 1.1), (torch.uint8, True, 1.1)
        ):  # fmt: skip
            seen, crop = (tensor.to(device) for tensor in images(dtype))
            assert fits(seen)
            found = _prepared_by_kernel(layer, seen, crop, divisor, blocks=blocks, out=None)
            plain = F.pad(layer(seen, crop, divisor), (0, 3, 0, 3))
            wanted = F.pixel_unshuffle(F.pad(plain, (0, 1, 0, 1)), 4) if blocks else plain
            assert found.is_contiguous(memory_format=torch.channels_last)
            torch.testing.assert_close(found, wanted, rtol=3e-7, atol=0)


@needs_triton
@pytest.mark.slow
def test_the_kernel_is_the_plain_form() -> None:
    subprocess.run(
        [
            sys.executable, "-W", "error", "-c",
            "from tests.trainer.test_input import compare_all; compare_all()",
        ],
        check=True,
        timeout=600,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
    )  # fmt: skip


@needs_triton
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no NVIDIA GPU here")
def test_on_a_gpu_the_kernel_is_the_plain_form() -> None:
    compare_all("cuda")


@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_is_taken_off_and_the_edge_is_zero(kind: Mean) -> None:
    layer, (seen, crop) = normalise(kind), images()
    found = prepared(layer, seen, crop, 1.1, blocks=False)
    assert found.shape == (3, 3, 227, 227)
    assert torch.equal(found[:, :, :224, :224], layer(seen, crop, 1.1))
    assert not found[:, :, 224:].any() and not found[:, :, :, 224:].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.uint8])
@pytest.mark.parametrize("kind", KINDS)
def test_image_by_image_on_a_cpu_it_is_the_plain_form(kind: Mean, dtype: torch.dtype) -> None:
    """Bit for bit, whatever lay in the memory written to; in float64 it is the plain form."""
    layer, (seen, crop) = normalise(kind), images(dtype)
    lighting = torch.randn(3, 3, generator=torch.Generator().manual_seed(2)) * 9
    for divisor in (1.0, 1.1):
        for added in (None, lighting) if dtype == torch.uint8 else (None,):
            plain = F.pad(layer(lit(seen, added), crop, divisor), (0, 3, 0, 3))
            found = prepared(layer, seen, crop, divisor, blocks=False, lighting=added)
            assert torch.equal(found, plain)
            assert found.is_contiguous(memory_format=torch.channels_last)
            again = torch.full_like(found, torch.nan)
            prepared(layer, seen, crop, divisor, blocks=False, lighting=added, out=again)
            assert torch.equal(again, plain)
            exact = prepared(
                copy.deepcopy(layer).double(), seen, crop, divisor, blocks=False, lighting=added
            )
            assert exact.dtype == torch.float64
            torch.testing.assert_close(exact.float(), plain, rtol=1e-6, atol=1e-4)


def test_blocks_hold_the_same_pixels_and_zeros() -> None:
    layer, (seen, crop) = normalise("channel"), images()
    whole = prepared(layer, seen, crop, blocks=False)
    blocks = prepared(layer, seen, crop, blocks=True)
    assert blocks.shape == (3, 48, 57, 57)
    assert torch.equal(F.pixel_shuffle(blocks, 4)[:, :, :227, :227], whole)
    assert int((blocks != 0).sum()) == int((whole != 0).sum())


def test_it_is_rounded_as_autocast_would_and_written_where_asked() -> None:
    layer, (seen, crop) = normalise("image-at-crop"), images()
    plain = prepared(layer, seen, crop, blocks=False)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = prepared(layer, seen, crop, blocks=False)
        again = torch.zeros_like(rounded)
        assert prepared(layer, seen, crop, blocks=False, out=again) is again
    assert plain.dtype == torch.float32 and rounded.dtype == torch.bfloat16
    assert torch.equal(rounded, plain.bfloat16()) and torch.equal(again, rounded)


@pytest.mark.parametrize("damage", ["float64", "channels first"])
def test_images_that_the_kernel_does_not_know_take_the_plain_form(damage: str) -> None:
    seen, _ = images(torch.float64 if damage == "float64" else torch.float16)
    assert not fits(seen.contiguous() if damage == "channels first" else seen)
