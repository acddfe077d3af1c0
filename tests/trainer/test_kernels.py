"""The fused kernels are their plain forms, both ways: run by Triton's interpreter here."""

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.triton_here import has_triton
from tests.trainer.conftest import make_batch
from trainer.forms import joined
from trainer.kernels import After, finish, fits, is_fused
from trainer.layers import MapResponseNorm, ResponseNorm
from trainer.map_norm import is_norm_fused, norm_maps
from trainer.model import AlexNet
from trainer.presets import find_preset

ROOT = Path(__file__).parents[2]
needs_triton = pytest.mark.skipif(not has_triton(), reason="Triton is not installed")
has_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no NVIDIA GPU")
Case = tuple[int, int, After, bool, int, int]


def norm(columns: int, alpha: float = 2e-2) -> ResponseNorm:
    """The paper's, with an alpha that moves numbers near 1 as its own moves pixels."""
    return ResponseNorm(size=5, k=2.0, alpha=alpha, beta=0.75, columns=columns)


CASES: Sequence[Case] = (  # channels, side, what follows, whether biased, tensors in and out
    (12, 7, After(norm=norm(2), pool_px=3), True, 1, 2),  # layer 1 of the paper
    (12, 7, After(norm=norm(2), pool_px=3), True, 2, 1),  # layer 2
    (16, 7, After(norm=norm(2), pool_px=3, relu=False, relu_last=True), True, 1, 1),  # 2012
    (12, 7, After(norm=norm(1), pool_px=3), True, 2, 1),  # a sum over what came apart
    (12, 5, After(norm=norm(1)), True, 1, 1),  # one column, no pooling
    (4, 6, After(norm=norm(2), pool_px=3), True, 1, 1),  # columns narrower than the sum
    (10, 6, After(norm=norm(1), pool_px=2), False, 1, 1),  # windows reach over the edge
    (24, 5, After(), True, 1, 2),
    (24, 7, After(pool_px=3), True, 2, 1),
    (24, 7, After(pool_px=3, relu=False), False, 1, 1),  # where a convolution was removed
    (12, 7, After(norm=nn.BatchNorm2d(12), pool_px=3), True, 1, 2),
    (40, 5, After(norm=nn.BatchNorm2d(40)), True, 2, 1),
    (12, 7, After(norm=nn.BatchNorm2d(12), pool_px=3, relu=False, relu_last=True), False, 1, 1),
    (24, 6, After(pool_px=2, relu=False, relu_last=True), True, 1, 2),
)


def maps(channels: int, side: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    made = torch.randn(2, channels, side, side, generator=source) * 5
    return made.to(dtype).contiguous(memory_format=torch.channels_last)


def plain(x: Tensor, bias: Tensor | None, after: After, num_in: int, num_out: int) -> Tensor:
    """The oracle: layer by layer."""
    x = x if bias is None else x + bias.to(x.dtype).view(-1, 1, 1)
    x = x.relu() if after.relu else x
    x = x if after.norm is None else after.norm(x)
    x = x if after.pool_px == 1 else F.max_pool2d(x, after.pool_px, 2, ceil_mode=True)
    return x.relu() if after.relu_last else x


def fused(x: Tensor, bias: Tensor | None, after: After, num_in: int, num_out: int) -> Tensor:
    parts = (x,) if num_in == 1 else tuple(
        part.contiguous(memory_format=torch.channels_last) for part in x.chunk(num_in, 1)
    )  # fmt: skip
    assert fits(parts, after)
    outs = finish(parts, bias, after, num_out)
    assert len(outs) == num_out
    return joined(outs)


def both_ways(form: Callable[..., Tensor], x: Tensor, case: Case) -> dict[str, Tensor]:
    """What a form gives, all gradients, and what it made of a norm's averages."""
    channels, _, after, biased, num_in, num_out = case
    source = torch.Generator().manual_seed(1)
    bias = torch.randn(channels, generator=source).to(x.device).requires_grad_()
    given = x.clone().requires_grad_()
    inputs = {"maps": given} | ({"bias": bias} if biased else {})
    kept = {}
    if isinstance(after.norm, nn.BatchNorm2d):
        after.norm.reset_running_stats()
        inputs |= {"scale": after.norm.weight, "shift": after.norm.bias}
        kept = dict(after.norm.named_buffers())
    out = form(given * 1, bias if biased else None, after, num_in, num_out)
    weight = torch.randn(out.shape, generator=source).to(out.device)
    gradients = torch.autograd.grad((out.float() * weight).sum(), list(inputs.values()))
    found = {"out": out.detach(), **dict(zip(inputs, gradients, strict=True))}
    return found | {name: value.clone() for name, value in kept.items()}


def compare(case: Case, dtype: torch.dtype, device: str = "cpu", tolerance: float = 3e-6) -> None:
    """Fused against plain in the same type; errors relative to the largest number of each kind.

    Of 16 bits, where the plain form rounds in between, only what comes out is compared: values
    that are equal once rounded are chosen apart by a pooling, and their gradient goes elsewhere.
    """
    x = maps(case[0], case[1], dtype).to(device).contiguous(memory_format=torch.channels_last)
    found, expected = both_ways(fused, x, case), both_ways(plain, x, case)
    assert found.keys() == expected.keys()
    for name in found if dtype == torch.float32 else ("out",):
        one, other = found[name], expected[name]
        assert one.shape == other.shape and one.dtype == other.dtype, name
        largest = float(other.float().abs().max())
        torch.testing.assert_close(
            one.float(), other.float(), rtol=0, atol=tolerance * max(largest, 1e-6), msg=name
        )


def compare_map_norm(device: str = "cpu", channels: int = 24, side: int = 7) -> None:
    layer = MapResponseNorm(size=5, k=1.0, alpha=0.02, beta=0.75)
    x = maps(channels, side, torch.float32).to(device)
    x = x.contiguous(memory_format=torch.channels_last)
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(device)
    found = []
    for form in (lambda given: norm_maps(given, layer), layer):
        given = x.clone().requires_grad_()
        out = form(given)
        (gradient,) = torch.autograd.grad((out * weight).sum(), given)
        found.append((out.detach(), gradient))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def compare_all() -> None:
    """Every case; called where Triton interprets."""
    from trainer import triton_kernels, triton_map_norm

    smaller = {"block_pixels": 64, "num_blocks": 2, "block_elements": 2048}
    triton_kernels.OPTIONS.update(wide=True, **smaller)
    triton_map_norm.OPTIONS["block_pixels"] = 128  # each program costs the interpreter as much
    for case in CASES:
        compare(case, torch.float32)
    compare(CASES[0], torch.bfloat16, tolerance=1e-2)
    compare(CASES[4], torch.float16, tolerance=2e-3)
    compare(CASES[10], torch.bfloat16, tolerance=1e-2)
    compare_map_norm()


def run_interpreted(code: str) -> None:
    """In a process of its own: Triton decides whether to interpret when it is imported."""
    subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        check=True,
        timeout=600,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
    )


@needs_triton
@pytest.mark.slow
def test_the_kernels_are_the_plain_form_both_ways() -> None:
    run_interpreted("from tests.trainer.test_kernels import compare_all; compare_all()")


def gradients_of(name: str, forms: dict[str, str]) -> dict[str, Tensor]:
    """Of a narrow network's parameters after one batch."""
    batch, model = make_batch(2, 3), AlexNet(find_preset(name), 3, 1 / 16)
    model.initialise(0)
    model.place(torch.device("cpu")).forms = forms
    masks = model.dropout_masks(0, 0, 2, torch.device("cpu"))
    loss = F.cross_entropy(model(batch.images, batch.crop, masks, 1.1), batch.labels)
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


def train_fused() -> None:
    """A network of all of its kernels against its plain self; called where Triton interprets."""
    from trainer import triton_input, triton_kernels, triton_map_norm

    larger = {"block_pixels": 512, "block_elements": 8192}
    triton_kernels.OPTIONS.update(wide=True, **larger)
    triton_map_norm.OPTIONS["block_pixels"] = 512
    triton_input.OPTIONS["block"] = 65536
    forms = {"conv1": "unshuffled-split", "conv2": "split", "conv5": "dense"}
    for name in ("kriz2012", "modern"):
        expected = gradients_of(name, {})
        with (
            patch("trainer.model.is_fused", fits),
            patch("trainer.model.is_norm_fused", lambda x: True),
            patch("trainer.input.triton_works", lambda device: True),
            patch.object(AlexNet, "_may_fuse", lambda self, x: True),
            patch("trainer.model.finish", wraps=finish) as called,
        ):
            found = gradients_of(name, forms)
        assert called.call_count >= 5  # after each convolution
        for key, wanted in expected.items():
            scale = float(wanted.abs().max()) + 1e-12
            # Roundings differ, and so may which of two nearly equal pixels a pooling takes.
            torch.testing.assert_close(found[key], wanted, rtol=0, atol=2e-4 * scale, msg=key)


@needs_triton
@pytest.mark.slow
def test_a_network_of_kernels_has_the_gradients_of_the_plain_one() -> None:
    run_interpreted("from tests.trainer.test_kernels import train_fused; train_fused()")


def test_without_a_gpu_the_kernels_are_left_alone() -> None:
    x, after = maps(12, 7, torch.float32), After(norm=norm(2))
    assert fits((x,), after) and not is_fused((x,), after) and not is_norm_fused(x)


@pytest.mark.parametrize(
    ("x", "layer"),
    [
        (maps(12, 7, torch.float64), norm(2)),
        (maps(12, 7, torch.float32), ResponseNorm(size=3, k=2.0, alpha=1e-4, beta=1, columns=2)),
        (maps(12, 7, torch.float32).contiguous(), norm(2)),
        (maps(12, 7, torch.float32)[:, :, :5], norm(2)),
        (maps(12, 7, torch.float32)[:0], norm(2)),
        (maps(300, 3, torch.float32), norm(2)),
        (maps(12, 7, torch.float32), nn.BatchNorm2d(12).eval()),
        (maps(12, 7, torch.float32), nn.GroupNorm(2, 12)),
    ],
    ids=[
        "float64", "another size", "not channels-last", "not square", "empty", "a wide column",
        "averages that stand", "another norm",
    ],
)  # fmt: skip
def test_maps_that_the_kernels_do_not_know_take_the_plain_form(
    x: Tensor, layer: nn.Module
) -> None:
    assert not fits((x,), After(norm=layer))


def test_a_late_relu_needs_a_pooling() -> None:
    """Which pixels it let through is in the byte that is kept of each window."""
    x, pooled = maps(12, 7, torch.float32), After(norm=norm(2), relu_last=True, pool_px=3)
    assert fits((x,), pooled) and not fits((x,), dataclasses.replace(pooled, pool_px=1))


@needs_triton
@pytest.mark.gpu
@has_gpu
@pytest.mark.parametrize("case", range(len(CASES)))
def test_on_a_gpu_the_kernels_are_the_plain_form(case: int) -> None:
    channels, side, after, *rest = CASES[case]
    if after.norm is not None:
        after.norm.cuda()
    compare((channels, side, after, *rest), torch.float32, "cuda")  # type: ignore[arg-type]


@needs_triton
@pytest.mark.gpu
@has_gpu
@pytest.mark.parametrize("kind", ["response", "batch", "none"])
@pytest.mark.parametrize(("channels", "side", "num_in"), [(96, 55, 1), (256, 27, 2)])
def test_on_a_gpu_the_kernels_are_the_plain_form_at_full_size(
    channels: int, side: int, num_in: int, kind: str
) -> None:
    layer = {"response": norm(2), "batch": nn.BatchNorm2d(channels).cuda(), "none": None}[kind]
    case = (channels, side, After(norm=layer, pool_px=3), True, num_in, 3 - num_in)
    assert is_fused((maps(channels, side, torch.float32).cuda(),), case[2])
    compare(case, torch.float32, "cuda", tolerance=2e-5)
    compare(case, torch.bfloat16, "cuda", tolerance=1e-2)


@needs_triton
@pytest.mark.gpu
@has_gpu
def test_on_a_gpu_the_norm_over_pixels_is_the_plain_form_at_full_size() -> None:
    compare_map_norm("cuda", 256, 27)
