"""The layers PyTorch lacks or has slow: normalisation, response norms, mask-and-halve dropout.

With them, the one rule by which the model's random numbers are drawn.
"""

import hashlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.draws import CROP_PX, MAX_OFFSET_PX
from pipeline.images import SIZE_PX
from trainer.preset import Mean


def random_source(device: torch.device | str, *key: int | str) -> torch.Generator:
    """A fresh generator on `device`, a function of `key` alone, such as (seed, step, layer name).

    So nothing has to be saved to draw the same numbers again after a restart.
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    generator = torch.Generator(device)
    generator.manual_seed(int.from_bytes(digest, "big"))
    return generator


def dropout_mask(
    seed: int, step: int, layer: str, shape: tuple[int, int], device: torch.device
) -> Tensor:
    """The 0/1 mask of a layer in a step, float32, half of it ones in the mean.

    shape: (global batch, outputs of the whole layer); a rank draws all of it and takes its slice.
    """
    return fill_dropout_mask(torch.empty(shape, device=device), seed, step, layer)


def fill_dropout_mask(mask: Tensor, seed: int, step: int, layer: str) -> Tensor:
    """Draws `dropout_mask` into memory that is there, float32; returns it."""
    generator = random_source(mask.device, seed, "dropout", step, layer)
    return mask.bernoulli_(0.5, generator=generator)


def mask_and_halve(x: Tensor, mask: Tensor | None) -> Tensor:
    """Dropout as in the paper, §4.2: x times its mask in training, x times 0.5 in test (no mask).

    Not the inverted form (x times twice the mask): with the paper's initial weights that one gives
    about four times the gradient below the last layer. x, mask: (batch, features).
    """
    return x * 0.5 if mask is None else x * mask.to(x.dtype)


class GroupedLinear(nn.Linear):
    """A fully-connected layer in `groups` equal parts that see their own part of the input only.

    weight: (outputs, inputs / groups), bias: (outputs,), as a grouped convolution has them.
    """

    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        assert inputs % groups == 0 and outputs % groups == 0
        super().__init__(inputs // groups, outputs)
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, inputs); returns (batch, outputs)."""
        parts = x.view(x.shape[0], self.groups, -1).transpose(0, 1)
        weights = self.weight.view(self.groups, -1, self.in_features).transpose(1, 2)
        out = parts @ weights  # (group, batch, input) @ (group, input, output)
        return out.transpose(0, 1).flatten(1) + self.bias


class ResponseNorm(nn.Module):
    """Local response normalisation (paper §3.3): b_i = a_i / (k + alpha * sum_j a_j^2)^beta.

    j runs over the `size` channels around i that lie in the same column: the channels are cut into
    `columns` equal runs, and the sum never crosses from one to the next. alpha multiplies the sum
    itself, where torch's `local_response_norm` first divides it by `size`.
    """

    def __init__(self, *, size: int, k: float, alpha: float, beta: float, columns: int) -> None:
        super().__init__()
        assert size % 2 == 1 and columns > 0
        self.size, self.k, self.alpha, self.beta, self.columns = size, k, alpha, beta, columns

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, channels, height, width), returned in its own dtype and memory format."""
        assert x.shape[1] % self.columns == 0
        return _normalise(x, self.size, self.columns, self.k, self.alpha, self.beta)

    def extra_repr(self) -> str:
        """What print shows of this layer."""
        return f"size={self.size}, k={self.k}, alpha={self.alpha}, beta={self.beta}"


class MapResponseNorm(nn.Module):
    """The same formula with j over the size x size pixels around a pixel, in the same map.

    The layer type `rnorm` of the 2012 code (layer.py), whose k is 1. Pixels outside the map count
    as 0.
    """

    def __init__(self, *, size: int, k: float, alpha: float, beta: float) -> None:
        super().__init__()
        assert size % 2 == 1
        self.size, self.k, self.alpha, self.beta = size, k, alpha, beta

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, channels, height, width), returned in its own dtype and memory format."""
        return _normalise(x, self.size, None, self.k, self.alpha, self.beta)

    def extra_repr(self) -> str:
        """What print shows of this layer."""
        return f"size={self.size}, k={self.k}, alpha={self.alpha}, beta={self.beta}"


def _normalise(
    x: Tensor, size: int, columns: int | None, k: float, alpha: float, beta: float
) -> Tensor:
    out: Tensor = _ResponseNorm.apply(  # type: ignore[no-untyped-call]  # torch's decorator
        x, size, columns, k, alpha, beta
    )
    return out


class _ResponseNorm(torch.autograd.Function):
    """The formula above and its gradient, each with one sum over a neighbourhood.

    With s_i = k + alpha * sum_j a_j^2 and h the gradient of b:
    gradient of a_i = h_i s_i^-beta - 2 alpha beta a_i * sum_j h_j a_j s_j^(-beta-1),
    as j is a neighbour of i where i is one of j. The sum is over channels within `columns`, or,
    where that is None, over pixels. At least in float32, whatever comes in. Four times as fast on
    a CPU as the same sums left to autograd.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, size: int, columns: int | None, k: float, alpha: float, beta: float
    ) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        scale = _sum_around(wide.square(), size, columns).mul_(alpha).add_(k)
        factor = _falling_power(scale, beta)
        ctx.save_for_backward(x, scale, factor)
        ctx.constants = size, columns, alpha, beta
        return (wide * factor).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, factor = ctx.saved_tensors
        size, columns, alpha, beta = ctx.constants
        wide, scaled = x.to(scale.dtype), gradients[0].to(scale.dtype) * factor
        sums = _sum_around((scaled * wide).div_(scale), size, columns)
        scaled.addcmul_(sums, wide, value=-2 * alpha * beta)
        return scaled.to(x.dtype), None, None, None, None, None


def _falling_power(x: Tensor, exponent: float) -> Tensor:
    """x ** -exponent; for 3/4, the paper's, by roots, which take a fraction of the time."""
    if exponent != 0.75:
        return x**-exponent
    root = x.rsqrt()
    return root.sqrt().mul_(root)


def _sum_around(x: Tensor, size: int, columns: int | None) -> Tensor:
    return patch_sum(x, size) if columns is None else window_sum(x, size, columns)


def window_sum(x: Tensor, size: int, columns: int) -> Tensor:
    """Each channel's sum over the `size` channels around it in its column, as shifted additions.

    x: (batch, channels, height, width); the result has its shape, dtype and memory format.
    """
    out = x.clone()
    parts, sums = (part.view(len(x), columns, -1, *x.shape[2:]) for part in (x, out))
    # parts, sums: (batch, column, channel in column, height, width)
    for shift in range(1, size // 2 + 1):
        sums[:, :, shift:] += parts[:, :, :-shift]
        sums[:, :, :-shift] += parts[:, :, shift:]
    return out


def patch_sum(x: Tensor, size: int) -> Tensor:
    """Each pixel's sum over the size x size pixels around it, zeros outside.

    x: (batch, channels, height, width); the result has its shape, dtype and memory format.
    """
    return F.avg_pool2d(x, size, stride=1, padding=size // 2, divisor_override=1)


class Normalise(nn.Module):
    """Takes the mean off the pixels, in float32.

    mean: "image-at-crop": `mean` is an image (256, 256, 3), and each pixel's mean is that of its
    place in the whole image, whatever crop and flip it was seen through (paper §2);
    "image-centre": its middle 224x224, whatever the crop and the flip (2012 convdata.py);
    "channel": `mean` is (3,), and the result is divided by `std` (3,). Both in 0..255 units; zeros
    and ones until `fill`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, *, mean: Mean) -> None:
        super().__init__()
        self.kind = mean
        shape = (3,) if mean == "channel" else (SIZE_PX, SIZE_PX, 3)
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("std", torch.ones(3))

    def fill(self, mean: Tensor, std: Tensor) -> None:
        """Sets the buffers; `mean` as the class says, `std` (3,), of use to "channel" only.

        A deviation below one level is taken as one level: flat images are not blown up.
        """
        assert mean.shape == self.mean.shape and std.shape == self.std.shape
        self.mean.copy_(mean)
        if self.kind == "channel":
            self.std.copy_(std.clamp_min(1.0))

    def forward(self, images: Tensor, crop: Tensor, divisor: float = 1.0) -> Tensor:
        """What the first convolution sees, float32 (batch, 3, 224, 224).

        images: (batch, 3, 224, 224), 0..255; crop: (batch, 3) = x, y, flip; divisor: of the
        result, the preset's input divisor in training.
        """
        images = images.float()
        if self.kind == "channel":
            scale = 1 / (self.std * divisor)
            return (images - self.mean.view(3, 1, 1)).mul_(scale.view(3, 1, 1))
        if self.kind == "image-centre":
            out = images - self.centre().permute(2, 0, 1)
        else:
            out = images + mean_at_crop(-self.mean, crop)
        return out if divisor == 1.0 else out.div_(divisor)

    def centre(self) -> Tensor:
        """The middle of the mean image, (224, 224, 3), of which no pixel is copied."""
        middle = slice(MAX_OFFSET_PX // 2, MAX_OFFSET_PX // 2 + CROP_PX)
        return self.mean[middle, middle]


def mean_at_crop(mean: Tensor, crop: Tensor) -> Tensor:
    """The part of the mean image that each crop shows, mirrored where the crop is.

    mean: (256, 256, 3); crop: (batch, 3) integers = x, y, flip. Returns (batch, 3, 224, 224) in
    channels-last memory.
    """
    return mean_windows(mean)[window_places(crop)].permute(0, 3, 1, 2)


def mean_windows(mean: Tensor) -> Tensor:
    """Every part of the mean image that a crop may show, by `window_places`.

    (mirrored, y, x, 224, 224, channel), of which no pixel is copied.
    """
    both = torch.stack((mean, mean.flip(1)))
    by_image, by_row, by_column, by_channel = both.stride()
    places = MAX_OFFSET_PX + 1
    return both.as_strided(
        (2, places, places, CROP_PX, CROP_PX, 3),
        (by_image, by_row, by_column, by_row, by_column, by_channel),
    )


def window_places(crop: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where the mean of each crop is among `mean_windows`: mirrored, y and x, (batch,) each."""
    x, y, flip = crop.long().unbind(1)
    return flip, y, torch.where(flip == 1, MAX_OFFSET_PX - x, x)
