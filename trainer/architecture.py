"""The layers of AlexNet and its variants, one by one, each of the size that a rank holds."""

import math

from torch import nn

from trainer.layers import GroupedLinear, MapResponseNorm, ResponseNorm
from trainer.parallel import Layout
from trainer.preset import Network

CONV1_PX = 55
KERNEL_PX = {"conv1": 11, "conv2": 5, "conv3": 3, "conv4": 3, "conv5": 3, "conv6": 3}
MEETING = ("conv3", "conv6", "fc6", "fc7")  # see both columns where they exchange (paper §3.5)


def scaled(size: int, width: float) -> int:
    """`size` times `width`, rounded to the nearest even number (ties down), at least 2.

    Even, because the channels of every layer are shared out to two columns.
    """
    return max(2, 2 * math.ceil(size * width / 2 - 0.5))


def kernel_counts(net: Network, width: float) -> dict[str, int]:
    """How many kernels each convolution has, in order, both columns together."""
    sizes = dict(zip(KERNEL_PX, (*net.channels, net.conv6), strict=True))
    return {
        name: scaled(size, width)
        for name, size in sizes.items()
        if size and name not in net.removed
    }


def groups_of(net: Network, name: str) -> int:
    """Of a layer over both columns' outputs: 1 where it sees both."""
    return 1 if net.exchange and name in MEETING else net.columns


def convolution(
    net: Network, name: str, inputs: int, outputs: int, layout: Layout
) -> nn.Conv2d:
    ranks = layout.kernels.size
    if name == "conv1":
        return nn.Conv2d(inputs, outputs // ranks, KERNEL_PX[name], stride=4)
    groups = groups_of(net, name)
    return nn.Conv2d(
        inputs if groups == 1 else inputs // ranks,
        outputs // ranks,
        KERNEL_PX[name],
        padding=_padding_px(net, name),
        groups=max(1, groups // ranks),
    )


def _padding_px(net: Network, name: str) -> int:
    """One pixel less in conv2 and conv5 with 2x2 pooling (2012 layers-147.cfg).

    Maps of 13x13 and 6x6 come out of pooling then as well.
    """
    return KERNEL_PX[name] // 2 - (net.pool_px == 2 and name in ("conv2", "conv5"))


def pool5_px(net: Network) -> int:
    """Side of the maps that leave the last pooling."""
    side_px = CONV1_PX
    for name in ("conv1", "conv2", "conv5"):  # pooling follows them, whether they are there or not
        if name != "conv1" and name not in net.removed:
            side_px += 2 * _padding_px(net, name) - KERNEL_PX[name] + 1
        side_px = math.ceil((side_px - net.pool_px) / 2) + 1
    return side_px


def linear(net: Network, name: str, inputs: int, outputs: int, layout: Layout) -> nn.Linear:
    ranks = layout.units.size
    groups = groups_of(net, name)
    if groups > 1:
        inputs, groups = inputs // ranks, groups // ranks
    if groups > 1:
        return GroupedLinear(inputs, outputs // ranks, groups)
    return nn.Linear(inputs, outputs // ranks)


def norm(net: Network, num_channels: int, layout: Layout) -> nn.Module:
    ranks = layout.kernels.size
    if net.norm == "none":
        return nn.Identity()
    if net.norm == "batch":
        return nn.BatchNorm2d(num_channels // ranks)
    divisor = net.response_size if net.response_alpha_divided else 1
    return ResponseNorm(
        size=net.response_size,
        k=net.response_k,
        alpha=net.response_alpha / divisor,
        beta=net.response_beta,
        columns=max(1, net.columns // ranks),
    )


def map_norm(net: Network) -> nn.Module:
    if net.norm != "response" or not net.map_norm_px:
        return nn.Identity()
    return MapResponseNorm(
        size=net.map_norm_px,
        k=1.0,
        alpha=net.map_norm_scale / net.map_norm_px**2,
        beta=net.map_norm_power,
    )
