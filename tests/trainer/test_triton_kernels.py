"""The Triton kernels of the network compile for a GPU, also where there is none."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.triton_here import has_triton

ROOT = Path(__file__).parents[2]

COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from trainer import triton_input, triton_kernels, triton_map_norm, triton_response, triton_sums

constants = {
    "maps_stride": 96, "out_stride": 96, "channels": 48, "side": 55, "out_side": 27, "pool": 3,
    "stride": 2, "biased": True, "relu": True, "relu_last": False, "kind": 1, "k": 2.0,
    "alpha": 1e-4, "beta": 0.75, "parts": 2, "wide": False, "num_blocks": 4, "block_pixels": 64,
    "block_channels": 64, "block_elements": 256, "summed": True, "size": 5, "backward": True,
}
of_input = {"kind": 0, "size": 256, "side": 224, "rows": 57, "block_px": 4, "block": 1024}
for module, names, given in (
    (triton_kernels, ("finish", "finish_backward"), constants),
    (triton_response, ("respond",), constants),
    (triton_sums, ("sum_up", "sum_up_arriving"), constants),
    (triton_kernels, ("finish",), constants | {"kind": 0, "relu_last": True}),
    (triton_kernels, ("finish",), constants | {"kind": 2}),
    (triton_kernels, ("finish_backward",), constants | {"kind": 0, "pool": 1, "stride": 1}),
    (triton_kernels, ("finish_backward",), constants | {"kind": 2}),
    (triton_kernels, ("finish_backward",), constants | {"parts": 3, "relu": False}),
    (triton_map_norm, ("normalise", "subtract_terms"), constants),
    (triton_input, ("prepare",), of_input),
):
    for kernel in (getattr(module, name) for name in names):
        types = {"chosen": "*u8", "crop": "*i32"}
        types |= dict.fromkeys(("num_pixels", "num_elements", "crop_stride"), "i32")
        types |= {"divisor": "fp32", "images": "*fp16"}
        types |= dict.fromkeys(("maps", "gradient", "out", "term", "scaled"), "*bf16")
        signature = {
            name: "constexpr" if name in given else types.get(name, "*fp32")
            for name in kernel.arg_names
        }
        own = {name: value for name, value in given.items() if name in kernel.arg_names}
        fusion = getattr(module, "OPTIONS", triton_kernels.OPTIONS)["enable_fp_fusion"]
        options = {"num_stages": 1, "enable_fp_fusion": fusion}
        source = ASTSource(kernel, signature, own)
        built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
        assert ".target sm_90" in built.asm["ptx"]
"""


@pytest.mark.skipif(not has_triton(), reason="Triton is not installed")
@pytest.mark.slow
def test_the_kernels_compile_for_a_gpu_that_is_not_here(tmp_path: Path) -> None:
    """To the machine code of an H100 or H200, in an empty cache."""
    subprocess.run(
        [sys.executable, "-W", "error", "-c", COMPILE],
        check=True,
        timeout=600,
        env={**os.environ, "TRITON_CACHE_DIR": str(tmp_path)},
        cwd=ROOT,
    )
