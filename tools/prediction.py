"""Photographs from files to classes: found, prepared as for shards, shown to a network."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pipeline.cores import available_cores
from pipeline.folders import files_below
from pipeline.images import ImageError, ImageFormat, Pixels, decode_stored, encode, fit
from pipeline.originals import FilePlaces, Names
from pipeline.photographs import decode
from trainer.checkpoint import Checkpoint, restore_model
from trainer.evaluate import CENTRE_VIEW, TEN_VIEWS, over_views
from trainer.precision import set_up_device

NUM_BEST = 5


@dataclass(frozen=True)
class Guess:
    """A class and its probability, 0..1."""

    name: str
    probability: float


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a network sees in a file: its best guesses, best first; or why it cannot be seen."""

    path: str
    best: tuple[Guess, ...] = ()
    refused: str | None = None


class Predictor:
    """The network of a checkpoint, on `device`, for whole photographs; `views` is 1 or 10."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device, views: int = 1) -> None:
        set_up_device("fp32", device)
        self.model = restore_model(checkpoint, device)
        self.classes: list[str] = checkpoint.config["classes"]
        self.image_format = ImageFormat.from_settings(checkpoint.made_by["shard_settings"])
        self._views = TEN_VIEWS if views == 10 else CENTRE_VIEW
        self._device = device

    @torch.inference_mode()
    def probabilities(self, images: Sequence[Pixels]) -> torch.Tensor:
        """(N, classes), float32, on the CPU, of N images (256, 256, 3)."""
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).to(self._device)
        return over_views(self.model, pixels, self._views).exp().cpu()

    def predict(self, paths: Sequence[Path], batch_size: int = 64) -> Iterator[Prediction]:
        """A prediction for every file in `paths` and below folders among them, in that order.

        A file that is no photograph, or is not there, is refused with the reason, and the rest
        goes on. batch_size: photographs in memory and shown to the network at once.
        """
        names = find_files(paths)
        places = FilePlaces(Path(), names)

        def read(position: int) -> Pixels | str:
            try:
                return prepare_photograph(places.read(position), self.image_format)
            except OSError as error:
                return error.strerror or str(error)
            except ImageError as error:
                return str(error)

        with ThreadPoolExecutor(available_cores()) as pool:
            for first in range(0, len(names), batch_size):
                part = range(first, min(first + batch_size, len(names)))
                found = list(pool.map(read, part))
                best = iter(self._best([one for one in found if not isinstance(one, str)]))
                for position, one in zip(part, found, strict=True):
                    path = os.fsdecode(names[position])
                    if isinstance(one, str):
                        yield Prediction(path=path, refused=one)
                    else:
                        yield Prediction(path=path, best=next(best))

    def _best(self, images: Sequence[Pixels]) -> list[tuple[Guess, ...]]:
        if not images:
            return []
        found = self.probabilities(images).sort(dim=1, descending=True, stable=True)
        return [
            tuple(
                Guess(self.classes[label], value)
                for label, value in zip(labels[:NUM_BEST], values[:NUM_BEST], strict=True)
            )
            for labels, values in zip(found.indices.tolist(), found.values.tolist(), strict=True)
        ]


def find_files(paths: Sequence[Path]) -> Names:
    """Files as given; in place of a folder all files below it, sorted, file managers' litter out.

    ValueError where a folder has no file or cannot be listed.
    """
    found: list[bytes] = []
    for path in paths:
        if not path.is_dir():
            found.append(os.fsencode(path))
            continue
        below = files_below(path, b".").names
        if not len(below):
            raise ValueError(f"{path} is a folder without files; name photographs, or another one")
        found += [os.fsencode(path / os.fsdecode(name)) for name in below]
    return Names.pack(found)


def prepare_photograph(data: bytes, image_format: ImageFormat) -> Pixels:
    """What a shard would give back of an original, bit for bit: (256, 256, 3) RGB.

    ImageError where it is no photograph.
    """
    pixels = fit(decode(data, ignore_orientation=image_format.ignore_orientation))
    return decode_stored(encode(pixels, image_format))
