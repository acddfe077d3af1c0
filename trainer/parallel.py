"""Who holds what, where there is more than one rank: the paper's columns, data, or both in one.

columns: a pair of ranks is the paper's two GPUs. Each holds half of the kernels and units of every
    layer; they exchange maps where the paper's columns meet, and both see the same images. More
    ranks are more such pairs, each with its part of the batch.
data: every rank holds the whole network and sees its part of the batch.
hybrid: convolutions as in `data`, fully-connected layers shared out over all ranks, which see the
    maps of the whole batch.

A state, or a momentum, is always that of the whole network: `part` and `whole` translate.
"""

from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from trainer.collectives import Group
from trainer.link import Link
from trainer.preset import Preset

MODES = ("data", "columns", "hybrid")
NUM_COLUMNS = 2
EQUAL_BATCH = 4096  # whose maps and units are as many values as the gradients of their layers
STATISTICS = (".running_mean", ".running_var", ".num_batches_tracked")
UNIT_LAYERS = ("fc6", "fc7", "fc8")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The groups that this rank is in. What is not shared out has a group of one.

    ranks: all; each decodes its part of the batch. kernels: share out the kernels of every
    convolution, and see the same images. units: share out the units of fc6 and fc7. rows: bring
    their maps together before fc6. kernel_copies, unit_copies: hold the same kernels, or units,
    and see other images, so that gradients are summed over them.
    """

    mode: str = "alone"
    ranks: Group = field(default_factory=Group)
    kernels: Group = field(default_factory=Group)
    units: Group = field(default_factory=Group)
    rows: Group = field(default_factory=Group)
    kernel_copies: Group = field(default_factory=Group)
    unit_copies: Group = field(default_factory=Group)

    def __deepcopy__(self, memo: object) -> "Layout":
        """Itself: a copied network is of the same ranks."""
        return self

    @property
    def bytes_sent(self) -> int:
        """By this rank since the start."""
        groups = {id(group): group for group in vars(self).values() if isinstance(group, Group)}
        return sum(group.bytes_sent for group in groups.values())

    def images(self, mine: Tensor) -> Tensor:
        """What this rank's convolutions see: the images, or crops, of the ranks with its kernels.

        mine: those that this rank decoded, along axis 0.
        """
        return self.kernels.all_gather(mine, 0)

    def labels(self, seen: Tensor) -> Tensor:
        """The labels of the rows of this rank's logits; seen: those of the images it sees."""
        return self.rows.all_gather(seen, 0)

    def mask(self, whole: Tensor) -> Tensor:
        """This rank's part of a dropout mask of the global batch and the whole layer."""
        rows, units = (
            group.part(length)
            for group, length in zip((self.unit_copies, self.units), whole.shape, strict=True)
        )
        return whole[rows, units]

    def part(self, name: str, whole: Tensor) -> Tensor:
        """What this rank holds of a parameter, buffer or momentum of the whole network."""
        shared = self._shared(name, whole)
        if shared is None:
            return whole
        axis, group = shared
        own = group.part(whole.shape[axis])
        return whole.narrow(axis, own.start, own.stop - own.start)

    def part_state(self, wholes: dict[str, Tensor]) -> dict[str, Tensor]:
        """`part` of every tensor by its name."""
        return {name: self.part(name, whole) for name, whole in wholes.items()}

    def whole_shape(self, name: str, part: Tensor) -> tuple[int, ...]:
        """The shape of `whole`."""
        shape, shared = list(part.shape), self._shared(name, part)
        if shared is not None:
            shape[shared[0]] *= shared[1].size
        return tuple(shape)

    def whole(self, name: str, part: Tensor) -> Tensor:
        """The inverse of `part`: every rank calls it, and gets it.

        Batch norm's statistics, which differ with the images a rank sees, are the first rank's.
        """
        if name.endswith(STATISTICS):
            part = self.kernel_copies.broadcast(part)
        shared = self._shared(name, part)
        return part if shared is None else shared[1].all_gather(part, shared[0])

    def whole_state(self, parts: dict[str, Tensor]) -> dict[str, Tensor]:
        """`whole` of every tensor by its name; every rank calls it with the same names."""
        return {name: self.whole(name, part) for name, part in parts.items()}

    def _shared(self, name: str, tensor: Tensor) -> tuple[int, Group] | None:
        """Along which axis, and by whom, a tensor is shared out; None where each has all of it."""
        layer, _, kind = name.partition(".")
        if layer in UNIT_LAYERS:
            axis = 1 if layer == "fc8" else 0  # fc8 takes the units of fc7, and gives every class
            return None if (layer, kind) == ("fc8", "bias") else (axis, self.units)
        if layer.startswith(("conv", "norm")) and layer != "normalise" and tensor.ndim:
            return 0, self.kernels
        return None


ALONE = Layout()


def build_layout(mode: str, device: torch.device) -> Layout:
    """The layout of this rank in a mode of MODES; all ranks of the process group call it.

    ValueError where the number of ranks does not fit.
    """
    assert mode in MODES
    world = Group(dist.group.WORLD)
    if mode == "data":
        return Layout(mode=mode, ranks=world, kernel_copies=world, unit_copies=world)
    if mode == "hybrid":
        return Layout(mode=mode, ranks=world, units=world, rows=world, kernel_copies=world)
    if world.size % NUM_COLUMNS:
        raise ValueError(
            f"--parallel columns needs an even number of processes, there are {world.size}: each "
            f"pair is the two columns of the paper"
        )
    mesh = init_device_mesh(
        device.type,
        (world.size // NUM_COLUMNS, NUM_COLUMNS),
        mesh_dim_names=("pairs", "columns"),
    )
    pair, others = Group(mesh.get_group("columns")), Group(mesh.get_group("pairs"))
    return Layout(
        mode=mode, ranks=world, kernels=pair, units=pair, kernel_copies=others, unit_copies=others
    )


def choose_mode(
    asked: str,
    preset: Preset,
    num_ranks: int,
    *,
    link: Link,
    value_bytes: int = 4,
    hidden: tuple[int, int],
    skips_steps: bool = False,
) -> tuple[str, str]:
    """The mode for `asked`, one of MODES or "auto", and why.

    link: between the ranks; value_bytes: of a gradient that travels. hidden: units of fc6 and fc7.
    skips_steps: a step whose gradients overflow is left out, on which only ranks with the same
    gradients agree. ValueError where the network cannot be shared out that way.
    """
    network = preset.network
    fits = not any(units % num_ranks for units in hidden) and network.exchange
    if skips_steps and asked in ("columns", "hybrid"):
        raise ValueError(
            f"--parallel {asked} does not go with --precision fp16, whose overflows each process "
            f"would find in its own part of the gradients; take bf16, or --parallel data"
        )
    if asked == "columns" and network.columns != NUM_COLUMNS:
        raise ValueError("--parallel columns needs a network of two columns, this one has one")
    if asked == "hybrid" and not fits:
        raise ValueError(
            f"--parallel hybrid shares fc6 and fc7 out: {num_ranks} processes must divide "
            f"{hidden}, and the columns must exchange (network.exchange)"
        )
    if asked != "auto":
        return asked, "asked for"
    if skips_steps:
        return "data", "fp16: every process sees the same overflows"
    if not fits:
        return "data", f"{num_ranks} processes do not divide the fully-connected layers"
    batch = preset.training.batch_size
    if batch >= EQUAL_BATCH:
        return "data", f"at batch {batch:,} the maps of hybrid are as many as the gradients"
    each = batch // num_ranks
    if each >= link.hides_from(value_bytes):
        return "data", f"{each:,} images each hide the exchange of gradients by {link.name}"
    return "hybrid", (
        f"at batch {batch:,} its maps are fewer bytes than gradients of fc6 and fc7, which by "
        f"{link.name} take longer than {each:,} images each hide"
    )
