"""The fused gather is its plain form, bit for bit: run by Triton's interpreter here."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.gather import gather_plain
from pipeline.subsampled import subsampled
from pipeline.triton_here import has_triton

needs_triton = pytest.mark.skipif(not has_triton(), reason="Triton is not installed")
ROWS = [4, 0, 4, 2, 1, 3]
CORNERS = [[0, 0, 0], [32, 0, 1], [7, 19, 1], [16, 16, 0], [0, 32, 1], [32, 32, 0]]  # x, y, flip


def stored_images() -> tuple[Tensor, Tensor]:
    """Five images of noise, whole, and in half the bytes."""
    pixels = np.random.default_rng(0).integers(0, 256, (5, 256, 256, 3), np.uint8)
    halves = np.stack([subsampled(one) for one in pixels])
    return torch.from_numpy(pixels), torch.from_numpy(halves)


def compare_all(device: str, num_images: int = len(ROWS)) -> None:
    """Every kind of image and type, lit and not; called where Triton interprets, or on a GPU."""
    from pipeline import triton_gather

    numbers = torch.tensor([[row, 0, *corner] for row, corner in zip(ROWS, CORNERS, strict=True)])
    numbers = numbers[-num_images:]
    rows, crop = numbers.to(device)[:, 0], numbers.to(device)[:, 2:]  # views, with strides
    lighting = torch.randn((num_images, 3), generator=torch.Generator().manual_seed(1)) * 200
    for images in stored_images():
        for dtype, lit in ((torch.uint8, False), (torch.float16, True), (torch.float32, False)):
            offsets = lighting if lit else None
            given = lighting.to(device) if lit else None
            found = triton_gather.gather(images.to(device), rows, crop, given, dtype)
            expected = gather_plain(images, rows.cpu(), crop.cpu(), offsets, dtype)
            assert found.is_contiguous() and found.dtype == dtype
            assert torch.equal(found.cpu(), expected)
    none = triton_gather.gather(stored_images()[0], rows[:0], crop[:0], None, torch.float16)
    assert none.shape == (0, 224, 224, 3)


def in_a_process(code: str, **variables: str) -> None:
    """Triton decides whether to interpret when it is imported."""
    subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        check=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
        cwd=Path(__file__).parents[2],
    )


@needs_triton
def test_the_kernels_are_the_plain_form_bit_for_bit() -> None:
    in_a_process(
        "from pipeline import triton_gather\n"
        "from tests.pipeline.test_triton_gather import compare_all\n"
        "triton_gather.OPTIONS['block'] = 1 << 17\n"  # each program costs the interpreter as much
        "compare_all('cpu', 2)",
        TRITON_INTERPRET="1",
    )


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from pipeline import triton_gather

blocks = {"block": triton_gather.OPTIONS["block"]}
options = {"enable_fp_fusion": triton_gather.OPTIONS["enable_fp_fusion"]}
for kernel in (triton_gather._gather_rgb, triton_gather._gather_subsampled):
    for crop, out, lit in (("*i64", "*fp16", True), ("*i32", "*u8", False)):
        constants = {"lit": lit, "size": 256, "side": 224, **blocks}
        signature = {name: "constexpr" for name in kernel.arg_names} | {
            "images": "*u8", "rows": "*i64", "crop": crop, "out": out,
            "offsets": "*fp32" if lit else out, "row_stride": "i32", "crop_stride": "i32",
        }
        source = ASTSource(kernel, signature, constants)
        built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
        assert ".target sm_90" in built.asm["ptx"]
"""


@needs_triton
def test_the_kernels_compile_for_a_gpu_that_is_not_here(tmp_path: Path) -> None:
    """To the machine code of an H100 or H200, in an empty cache."""
    in_a_process(COMPILE, TRITON_CACHE_DIR=str(tmp_path))


@needs_triton
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no NVIDIA GPU here")
def test_on_a_gpu_the_kernels_are_the_plain_form_bit_for_bit() -> None:
    compare_all("cuda")
