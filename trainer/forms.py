"""The same convolution computed in several ways; which is fastest depends on the machine.

Parameters are always those of the plain layer, so checkpoints know nothing of forms; results
differ by rounding alone.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PLAIN = "plain"
BLOCK_PX = 4  # conv1's stride: the side of the blocks that become channels
ROUNDS = 7
HOLD_CYCLES = 10_000_000  # of a GPU, some 5 ms: longer than a layer takes to be launched
Form = Callable[[nn.Conv2d, Tensor], Tensor]


def unshuffled(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """A convolution of stride 4 as one of stride 1 over 4x4 blocks, each taken as 16 channels.

    x: (batch, channels, height, width). Exact: the kernel, (outputs, channels, 11, 11), is filled
    up with zeros to 12x12 and cut into blocks likewise, (outputs, 16 channels, 3, 3), and so is x
    with zeros that meet zeros only. 1.19 times the products, in a shape that tensor cores take.
    """
    down, across = (-side % BLOCK_PX for side in x.shape[2:])
    blocks = F.pixel_unshuffle(F.pad(x, (0, across, 0, down)), BLOCK_PX)
    spare = -layer.kernel_size[0] % BLOCK_PX
    kernel = F.pixel_unshuffle(F.pad(layer.weight, (0, spare, 0, spare)), BLOCK_PX)
    out = F.conv2d(
        blocks.contiguous(memory_format=torch.channels_last),
        kernel.contiguous(memory_format=torch.channels_last),
        layer.bias,
    )
    rows, columns = ((side - layer.kernel_size[0]) // BLOCK_PX + 1 for side in x.shape[2:])
    return out[:, :, :rows, :columns]


def split(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """A grouped convolution as one of its own for each group."""
    assert layer.bias is not None
    groups = layer.groups
    parts = zip(x.chunk(groups, 1), layer.weight.chunk(groups), layer.bias.chunk(groups))
    outs = [
        F.conv2d(part, weight, bias, layer.stride, layer.padding) for part, weight, bias in parts
    ]
    return torch.cat(outs, 1)


def dense(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """A grouped convolution as an ungrouped one whose other weights are 0: more products."""
    groups, outputs = layer.groups, layer.out_channels
    apart = torch.eye(groups, dtype=layer.weight.dtype, device=x.device)
    own = layer.weight.view(groups, outputs // groups, 1, *layer.weight.shape[1:])
    # own: (group, output, 1, input, kernel, kernel); apart: which group an input is of
    whole = (own * apart.view(groups, 1, groups, 1, 1, 1)).flatten(2, 3).flatten(0, 1)
    return F.conv2d(
        x,
        whole.contiguous(memory_format=torch.channels_last),
        layer.bias,
        layer.stride,
        layer.padding,
    )


def plain(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """As torch has it."""
    out: Tensor = layer(x)
    return out


FORMS: Mapping[str, Form] = {
    PLAIN: plain,
    "unshuffled": unshuffled,
    "split": split,
    "dense": dense,
}


def forms_of(layer: nn.Conv2d) -> tuple[str, ...]:
    """Names of the forms that compute a layer, the plain one first."""
    if layer.stride[0] == BLOCK_PX and layer.padding[0] == 0 and layer.groups == 1:
        return PLAIN, "unshuffled"
    return (PLAIN, "split", "dense") if layer.groups > 1 else (PLAIN,)


def fastest_form(
    layer: nn.Conv2d,
    x: Tensor,
    context: Callable[[], AbstractContextManager[Any]],
    *,
    needs_gradient: bool,
) -> tuple[str, dict[str, float]]:
    """The form of the least median time there and back, and the median seconds of each.

    x: an input of the shape it will have. context: of the forward pass. needs_gradient: of x.
    Interleaved, so that what slows the machine down slows all of them; the first round warms up.
    """
    names = forms_of(layer)
    if len(names) == 1:
        return names[0], {}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    given = x.detach().requires_grad_(needs_gradient)
    for _ in range(ROUNDS + 1):
        for name, own in seconds.items():

            def there_and_back(form: Form = FORMS[name]) -> None:
                with context():
                    out = form(layer, given)
                inputs = [*layer.parameters(), *([given] if needs_gradient else [])]
                torch.autograd.grad(out, inputs, torch.ones_like(out))

            own.append(_seconds_of(there_and_back, x.device))
    medians = {name: statistics.median(own[1:]) for name, own in seconds.items()}
    return min(medians, key=lambda name: medians[name]), medians


def _seconds_of(call: Callable[[], None], device: torch.device) -> float:
    """On a GPU by its own clock, without the time that launching takes: a graph has none."""
    if device.type != "cuda":
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    with torch.cuda.device(device):
        begun, ended = (
            torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch's
            for _ in range(2)
        )
        torch.cuda.synchronize()
        torch.cuda._sleep(HOLD_CYCLES)  # type: ignore[no-untyped-call]  # all waits behind it
        begun.record()
        call()
        ended.record()
        torch.cuda.synchronize()
    return float(begun.elapsed_time(ended)) / 1000  # from ms
