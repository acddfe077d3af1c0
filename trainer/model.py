"""AlexNet: five convolutions in two columns, three fully-connected layers (paper §3.5).

And its variants: one column, columns that never meet, a sixth convolution, one removed.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.architecture import (
    MEETING,
    convolution,
    groups_of,
    kernel_counts,
    linear,
    map_norm,
    norm,
    pool5_px,
    scaled,
)
from trainer.forms import FORMS, OVER_BLOCKS, PLAIN, Maps, joined
from trainer.input import prepared
from trainer.kernels import After, finish, is_fused
from trainer.layers import (
    MapResponseNorm,
    Normalise,
    dropout_mask,
    mask_and_halve,
    random_source,
)
from trainer.map_norm import is_norm_fused, norm_maps
from trainer.parallel import ALONE, Layout
from trainer.preset import Preset

ONES_BIASES = ("conv2", "conv4", "conv5", "conv6", "fc6", "fc7")  # paper §5; 2012 layers-146
DEEP = ("conv3", "conv4", "conv5", "conv6")
STAGES = ("conv1", "conv2", *DEEP)
POOLED = ("conv1", "conv2", "conv5")  # pooling follows, also where the convolution is removed


class AlexNet(nn.Module):
    """The network of a preset; its normalisation is its first step and part of its state.

    Built with PyTorch's own random weights: call `initialise` and `normalise.fill`, or load a
    state. ValueError for a width that is not a positive number. A convolution that is removed
    takes its activation and normalisation with it, not the pooling that follows. layout: where
    several ranks share the network out, this holds one rank's part of it.
    """

    conv1: nn.Conv2d
    conv2: nn.Conv2d  # this and the other convolutions are missing where the preset removes them
    conv3: nn.Conv2d
    conv4: nn.Conv2d
    conv5: nn.Conv2d
    conv6: nn.Conv2d

    def __init__(
        self, preset: Preset, num_classes: int, width: float = 1.0, layout: Layout = ALONE
    ) -> None:
        super().__init__()
        if not (math.isfinite(width) and width > 0):
            raise ValueError(f"--width is {width}, must be a number more than 0")
        self.preset, self.num_classes, self.width = preset, num_classes, width
        self.layout = layout
        self.forms: dict[str, str] = {}  # how a convolution is computed, where not plainly
        self.fuses = True  # what follows a convolution, where there is a kernel that does
        net = preset.network
        self.normalise = Normalise(mean=preset.augmentation.mean)
        kernels = kernel_counts(net, width)
        self.convolutions = tuple(kernels)
        channels = 3
        for name, count in kernels.items():
            self.add_module(name, convolution(net, name, channels, count, layout))
            channels = count
        self.norm1 = norm(net, kernels["conv1"], layout)
        self.norm2 = norm(net, kernels["conv2"], layout) if "conv2" in kernels else nn.Identity()
        self.map_norm2 = map_norm(net) if "conv2" in kernels else nn.Identity()
        # rounded up, as 2012 layer.py does: of effect for windows of 2x2 only
        self.pool = nn.MaxPool2d(net.pool_px, 2, ceil_mode=True)
        hidden = [scaled(size, width) for size in net.hidden]
        self.hidden = hidden[0], hidden[1]
        self.fc6 = linear(net, "fc6", channels * pool5_px(net) ** 2, hidden[0], layout)
        self.fc7 = linear(net, "fc7", hidden[0], hidden[1], layout)
        self.fc8 = nn.Linear(hidden[1] // layout.units.size, num_classes)

    def initialise(self, seed: int) -> None:
        """Sets weights and biases; those of a layer are a function of (seed, layer name).

        The deviations of `normal` are those of the full width. A layer that sees fewer inputs gets
        them larger by the root of that, or the signal would fade from layer to layer.
        """
        net = self.preset.network
        for name, layer in self.named_children():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                weight = torch.empty(self.layout.whole_shape(f"{name}.weight", layer.weight))
                source = random_source("cpu", seed, "weights", name)
                if net.init == "normal":
                    std = net.deep_init_std if name in DEEP else net.init_std
                    narrower = 1.0 if name == "conv1" else self.width  # it sees three colours
                    std /= math.sqrt(narrower)
                    nn.init.normal_(weight, 0, std, generator=source)
                else:
                    nn.init.kaiming_normal_(weight, nonlinearity="relu", generator=source)
                ones = net.ones_biases and name in ONES_BIASES
                assert layer.bias is not None
                with torch.no_grad():
                    layer.weight.copy_(self.layout.part(f"{name}.weight", weight))
                    layer.bias.fill_(float(ones))

    def place(self, device: torch.device) -> "AlexNet":
        """Moves itself to `device`, kernels in channels-last memory; returns itself."""
        self.to(device)
        for parameter in self.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        return self

    def dropout_masks(
        self, seed: int, step: int, num_images: int, device: torch.device
    ) -> tuple[Tensor | None, Tensor | None]:
        """The masks of fc6 and fc7 in a step, of this rank's rows and units; None without dropout.

        num_images: of the global batch.
        """
        if not self.preset.network.dropout:
            return None, None
        fc6, fc7 = (
            self.layout.mask(dropout_mask(seed, step, name, (num_images, units), device))
            for name, units in zip(("fc6", "fc7"), self.hidden, strict=True)
        )
        return fc6, fc7

    def forward(
        self,
        images: Tensor,
        crop: Tensor,
        masks: tuple[Tensor | None, Tensor | None] | None,
        divisor: float = 1.0,
        lighting: Tensor | None = None,
    ) -> Tensor:
        """Logits (batch, classes), of the rows of `layout.labels`.

        images: (batch, 3, 224, 224) in 0..255 units; crop: (batch, 3) = x, y, flip; masks: of
        `dropout_masks` in training, None in test; divisor: of the normalised images, the preset's
        in training; lighting: (batch, 3), of images that are without theirs.
        """
        return self.logits(self.prepared(images, crop, divisor, lighting), masks)

    def prepared(
        self,
        images: Tensor,
        crop: Tensor,
        divisor: float = 1.0,
        lighting: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """What conv1 sees of images, and `logits` and `features` take; as `trainer.input`."""
        blocks = self.forms.get("conv1") in OVER_BLOCKS
        return prepared(
            self.normalise, images, crop, divisor, blocks=blocks, lighting=lighting, out=out
        )

    def logits(self, x: Tensor, masks: tuple[Tensor | None, Tensor | None] | None) -> Tensor:
        """What `forward` gives, of `prepared` images."""
        assert self.training == (masks is not None)
        x = self._meet("fc6", self.features(x))
        x = self.layout.rows.gather(x, 0).flatten(1)
        x = self._dropout(self._activate(self.fc6(x)), masks, 0)
        if self._meets("fc7"):
            x = self.layout.units.gather(x, 1)
        x = self._dropout(self._activate(self.fc7(x)), masks, 1)
        if self.layout.units.size == 1:
            logits: Tensor = self.fc8(x)
            return logits
        return self.layout.units.add(F.linear(x, self.fc8.weight)) + self.fc8.bias

    def features(self, x: Tensor) -> Tensor:
        """What fc6 sees, as maps (batch, channels, height, width), of `prepared` images."""
        maps: Maps = (x,)
        for name in STAGES:
            if name in self.convolutions:
                maps = self._convolve(name, maps)
            elif name in POOLED:
                maps = self._finish(name, maps, None, After(relu=False, pool_px=self._pool_px))
        return joined(maps)

    @property
    def _pool_px(self) -> int:
        return self.preset.network.pool_px

    def _convolve(self, name: str, maps: Maps) -> Maps:
        """A convolution and what follows it: activation, norm, pooling, in the preset's order."""
        net = self.preset.network
        layer: nn.Conv2d = getattr(self, name)
        if self._meets(name):
            maps = (self.layout.kernels.gather(joined(maps), 1),)
        norm = {"conv1": self.norm1, "conv2": self.norm2}.get(name)
        late = name == "conv1" and net.layer1_order == "conv-norm-pool-relu"
        pool_px = self._pool_px if name in POOLED else 1
        if name != "conv2" or isinstance(self.map_norm2, nn.Identity):
            after = After(norm=norm, pool_px=pool_px, relu=not late, relu_last=late)
            return self._apply_kernels(name, layer, maps, after)
        maps = self._apply_kernels(name, layer, maps, After(norm=norm))
        maps = (self._norm_maps(joined(maps)),)
        return self._finish(name, maps, None, After(relu=False, pool_px=pool_px))

    def _apply_kernels(self, name: str, layer: nn.Conv2d, maps: Maps, after: After) -> Maps:
        form = self.forms.get(name, PLAIN)
        if form == PLAIN and not self._may_fuse(maps[0]):
            return self._plainly((layer(joined(maps)),), after)  # with its bias, and its hooks
        return self._finish(name, FORMS[form](layer, maps), layer.bias, after)

    def _finish(self, name: str, maps: Maps, bias: Tensor | None, after: After) -> Maps:
        """What follows a convolution, in one kernel where there is one.

        Maps come out in columns where the next convolution takes them so.
        """
        if self._may_fuse(maps[0]) and is_fused(maps, after):
            return finish(maps, bias, after, self._parts_after(name))
        x = joined(maps)
        return self._plainly((x if bias is None else x + bias.to(x.dtype).view(-1, 1, 1),), after)

    def _parts_after(self, name: str) -> int:
        """How many tensors the next convolution takes its maps in."""
        rest = STAGES[STAGES.index(name) + 1 :]
        following = next((n for n in rest if n in self.convolutions), None)
        if following is None or self.forms.get(following) != "split":
            return 1
        layer: nn.Conv2d = getattr(self, following)
        return layer.groups

    def _may_fuse(self, x: Tensor) -> bool:
        return self.fuses and x.is_cuda and self.preset.network.activation == "relu"

    def _plainly(self, maps: Maps, after: After) -> Maps:
        (x,) = maps
        x = self._activate(x) if after.relu else x
        x = x if after.norm is None else after.norm(x)
        x = x if after.pool_px == 1 else self.pool(x)
        return (self._activate(x) if after.relu_last else x,)

    def _norm_maps(self, x: Tensor) -> Tensor:
        norm = self.map_norm2
        if self._may_fuse(x) and isinstance(norm, MapResponseNorm) and is_norm_fused(x):
            return norm_maps(x, norm)
        out: Tensor = norm(x)
        return out

    def _meet(self, name: str, maps: Tensor) -> Tensor:
        """The maps that a layer sees, where ranks hold a column each: both columns' or its own."""
        return self.layout.kernels.gather(maps, 1) if self._meets(name) else maps

    def _meets(self, name: str) -> bool:
        return name in MEETING and groups_of(self.preset.network, name) == 1

    def _activate(self, x: Tensor) -> Tensor:
        """In place: what comes in is of use to nobody else."""
        return x.tanh_() if self.preset.network.activation == "tanh" else x.relu_()

    def _dropout(
        self, x: Tensor, masks: tuple[Tensor | None, Tensor | None] | None, layer: int
    ) -> Tensor:
        if not self.preset.network.dropout:
            return x
        return mask_and_halve(x, None if masks is None else masks[layer])
