"""What measured speeds let a training expect: images/s, hours, what is short. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

HEADROOM = 1.1  # what a loader has to deliver for each image of the step: beside it, it is slower
DEVICES = (1, 2, 4)


@dataclass(frozen=True, kw_only=True)
class Speeds:
    """Images per second. step: of one device alone on batches that lie there; None where no such
    device was measured. loader: of each of n processes that share the cores, by n. storage: of
    files that are not in memory; fits: whether the shards stay there once they were read.
    """

    step: float | None
    loader: Mapping[int, float]
    storage: float
    fits: bool


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """Of n devices. images_per_second, hours_per_epoch, hours: None where the step is unknown.

    delivered: what loaders and storage can deliver to all of them, images/s. fed: whether that is
    enough, with some headroom. short: "step", "decode" or "storage".
    """

    devices: int
    images_per_second: float | None
    hours_per_epoch: float | None
    hours: float | None
    delivered: float
    fed: bool | None
    short: str | None


def outlook(speeds: Speeds, devices: int, *, num_images: int, epochs: int) -> Outlook:
    """A process per device. num_images: of an epoch. epochs: of the whole training.

    Shards that fit in memory are read from storage once; that first epoch is not told apart.
    """
    decoded = devices * speeds.loader[devices]
    delivered = decoded if speeds.fits else min(decoded, speeds.storage)
    cause = "decode" if delivered == decoded else "storage"
    if speeds.step is None:
        return Outlook(
            devices=devices, images_per_second=None, hours_per_epoch=None, hours=None,
            delivered=delivered, fed=None, short=None,
        )  # fmt: skip
    wanted = devices * speeds.step
    hours = num_images / min(wanted, delivered) / 3600
    fed = delivered >= HEADROOM * wanted
    return Outlook(
        devices=devices,
        images_per_second=min(wanted, delivered),
        hours_per_epoch=hours,
        hours=epochs * hours,
        delivered=delivered,
        fed=fed,
        short="step" if fed else cause,
    )


def on_the_same_cores(step: float, loader: float) -> float:
    """Images per second where step and decoding take turns on the cores, each as fast as alone."""
    return 1 / (1 / step + 1 / loader)


def share_of_cores(cores: int, processes: int) -> tuple[int, float]:
    """Threads of each of so many processes, and by what its speed with them is to be multiplied.

    Where there are fewer cores than processes, each has one thread and a share of a core.
    """
    threads = max(1, cores // processes)
    return threads, min(1.0, cores / (processes * threads))
