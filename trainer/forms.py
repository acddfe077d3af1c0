"""The same convolution computed in several ways; which is fastest depends on the machine.

Parameters are always those of the plain layer, so checkpoints know nothing of forms; results
differ by rounding alone. No form adds the bias: what follows does, in one pass with the rest.
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
OVER_BLOCKS = ("unshuffled", "unshuffled-split")
BLOCK_PX = 4  # conv1's stride: the side of the blocks that become channels
ROUNDS = 7
HOLD_CYCLES = 10_000_000  # of a GPU, some 5 ms: longer than a layer takes to be launched
Maps = tuple[Tensor, ...]  # one tensor of all channels, or one of each column's, in order
Form = Callable[[nn.Conv2d, Maps], Maps]


def joined(maps: Maps) -> Tensor:
    """All channels in one tensor."""
    return maps[0] if len(maps) == 1 else torch.cat(maps, 1)


def apart(maps: Maps, columns: int) -> Maps:
    """Each column's channels in a tensor of their own; views, where they lie in one."""
    return maps if len(maps) == columns else joined(maps).chunk(columns, 1)


def blocks_of(x: Tensor) -> Tensor:
    """4x4 blocks of pixels as channels, zeros beyond the edge.

    x: (batch, channels, height, width); returns (batch, 16 channels, rows, columns of blocks).
    """
    down, across = (-side % BLOCK_PX for side in x.shape[2:])
    return F.pixel_unshuffle(F.pad(x, (0, across, 0, down)), BLOCK_PX)


def unshuffled(layer: nn.Conv2d, maps: Maps) -> Maps:
    """A convolution of stride 4 as one of stride 1 over `blocks_of` its input.

    Exact, for sides of one pixel less than whole blocks, as conv1's is: the kernel, (outputs,
    channels, 11, 11), is filled up with zeros to 12x12 and cut into blocks likewise, (outputs,
    16 channels, 3, 3). 1.19 times the products, in a shape that tensor cores take.
    """
    return (F.conv2d(_blocks(maps), _kernel_of_blocks(layer)),)


def unshuffled_split(layer: nn.Conv2d, maps: Maps) -> Maps:
    """`unshuffled`, the two halves of its kernels one after the other; their maps stay apart."""
    blocks = _blocks(maps)
    return tuple(F.conv2d(blocks, half) for half in _kernel_of_blocks(layer).chunk(2))


def _blocks(maps: Maps) -> Tensor:
    return joined(maps).contiguous(memory_format=torch.channels_last)


def _kernel_of_blocks(layer: nn.Conv2d) -> Tensor:
    spare = -layer.kernel_size[0] % BLOCK_PX
    kernel = F.pixel_unshuffle(F.pad(layer.weight, (0, spare, 0, spare)), BLOCK_PX)
    return kernel.contiguous(memory_format=torch.channels_last)


def split(layer: nn.Conv2d, maps: Maps) -> Maps:
    """A grouped convolution as one of its own for each group, whose maps stay apart."""
    parts = zip(apart(maps, layer.groups), layer.weight.chunk(layer.groups), strict=True)
    return tuple(
        F.conv2d(part, weight, None, layer.stride, layer.padding) for part, weight in parts
    )


def dense(layer: nn.Conv2d, maps: Maps) -> Maps:
    """A grouped convolution as an ungrouped one whose other weights are 0: more products."""
    x = joined(maps)
    groups, outputs = layer.groups, layer.out_channels
    own_group = torch.eye(groups, dtype=layer.weight.dtype, device=x.device)
    own = layer.weight.view(groups, outputs // groups, 1, *layer.weight.shape[1:])
    # own: (group, output, 1, input, kernel, kernel); own_group: which group an input is of
    whole = (own * own_group.view(groups, 1, groups, 1, 1, 1)).flatten(2, 3).flatten(0, 1)
    kernel = whole.contiguous(memory_format=torch.channels_last)
    return (F.conv2d(x, kernel, None, layer.stride, layer.padding),)


def plain(layer: nn.Conv2d, maps: Maps) -> Maps:
    """As torch has it."""
    x = joined(maps)
    out = F.conv2d(x, layer.weight, None, layer.stride, layer.padding, groups=layer.groups)
    return (out,)


FORMS: Mapping[str, Form] = {
    PLAIN: plain,
    "unshuffled": unshuffled,
    "unshuffled-split": unshuffled_split,
    "split": split,
    "dense": dense,
}


def forms_of(layer: nn.Conv2d) -> tuple[str, ...]:
    """Names of the forms that compute a layer, the plain one first."""
    if layer.stride[0] == BLOCK_PX and layer.padding[0] == 0 and layer.groups == 1:
        return (PLAIN, *OVER_BLOCKS) if layer.out_channels % 2 == 0 else (PLAIN, OVER_BLOCKS[0])
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
    Each form is given it as what comes before hands it over: in blocks, in columns, or whole.
    Interleaved, so that what slows the machine down slows all of them; the first round warms up.
    """
    names = forms_of(layer)
    if len(names) == 1:
        return names[0], {}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    given = {name: handed_over(name, layer, x, needs_gradient) for name in names}
    for _ in range(ROUNDS + 1):
        for name, own in seconds.items():

            def there_and_back(form: Form = FORMS[name], maps: Maps = given[name]) -> None:
                with context():
                    outs = form(layer, maps)
                inputs = [layer.weight, *(maps if needs_gradient else ())]
                torch.autograd.grad(outs, inputs, [torch.ones_like(out) for out in outs])

            own.append(_seconds_of(there_and_back, x.device))
    medians = {name: statistics.median(own[1:]) for name, own in seconds.items()}
    return min(medians, key=lambda name: medians[name]), medians


def handed_over(name: str, layer: nn.Conv2d, x: Tensor, needs_gradient: bool) -> Maps:
    """An input as a form takes it, each part in memory of its own."""
    maps: Maps = (x.detach(),)
    if name in OVER_BLOCKS:
        maps = (blocks_of(x.detach()),)
    elif name == "split":
        maps = apart(maps, layer.groups)
    return tuple(
        part.contiguous(memory_format=torch.channels_last).requires_grad_(needs_gradient)
        for part in maps
    )


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
