"""What a trained network makes of stored images: classes, features, its errors and mistakes."""

import heapq
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.images import Pixels
from tools.figures.stored_images import Images
from trainer.checkpoint import Checkpoint, restore_model
from trainer.evaluate import CENTRE_VIEW, over_views
from trainer.precision import set_up_device

NUM_BEST = 5
NUM_MISTAKES = 12
CONFIDENCE_Z = 1.0  # of the bound that classes are ranked by: one standard deviation
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Seen:
    """probabilities (N, classes) and features (N, outputs of fc7) of N images, float32."""

    probabilities: Floats
    features: Floats


class Observer:
    """The network of a checkpoint, on `device`, in float32, shown centre crops."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        set_up_device("fp32", device)
        self.model = restore_model(checkpoint, device)
        self._device = device
        self._features = torch.empty(0)
        # fc7's outputs, as fc8 sees them: after the activation and what dropout does in test
        self.model.fc8.register_forward_pre_hook(self._keep)

    def _keep(self, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self._features = inputs[0]

    @torch.inference_mode()
    def see(self, pixels: Pixels) -> Seen:
        """Probabilities and features of images (N, 256, 256, 3)."""
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(self._device)
        found = over_views(self.model, images, CENTRE_VIEW).exp()
        return Seen(found.cpu().numpy(), self._features.float().cpu().numpy())


@dataclass(frozen=True, order=True)
class Mistake:
    """An image taken for a class that it is not, and how probable the network found that."""

    probability: float
    row: int
    label: int
    taken_for: int


@dataclass(frozen=True, kw_only=True)
class ClassScore:
    """How often a class's images are missed, and what they are taken for most."""

    label: int
    num_images: int
    num_errors: int
    taken_for: int | None
    num_taken: int

    @property
    def error(self) -> float:
        """Top-1 error, 0..1."""
        return self.num_errors / self.num_images

    @property
    def sure_error(self) -> float:
        """The error that the few images make sure of: Wilson's lower bound, one deviation."""
        n, p, z = self.num_images, self.error, CONFIDENCE_Z
        spread = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return (p + z * z / (2 * n) - spread) / (1 + z * z / n)


class Tally:
    """Errors of a sample, image by image, in memory that does not grow with it."""

    def __init__(self) -> None:
        self.num_images = self.num_top1 = self.num_top5 = 0  # the latter two: missed
        self._images: Counter[int] = Counter()
        self._pairs: Counter[tuple[int, int]] = Counter()  # (label, taken for), errors only
        self._worst: list[Mistake] = []

    def add(self, images: Images, probabilities: Floats) -> None:
        """Counts a batch in."""
        best = best_classes(probabilities)
        for i, (row, label) in enumerate(zip(images.rows, images.labels, strict=True)):
            own, first = int(label), int(best[i, 0])
            self.num_images += 1
            self._images[own] += 1
            self.num_top5 += own not in best[i]
            if first != own:
                self.num_top1 += 1
                self._pairs[own, first] += 1
                mistake = Mistake(float(probabilities[i, first]), int(row), own, first)
                keep = heapq.heappush if len(self._worst) < NUM_MISTAKES else heapq.heappushpop
                keep(self._worst, mistake)

    def mistakes(self) -> list[Mistake]:
        """Those it was surest of, the surest first."""
        return sorted(self._worst, key=lambda one: (-one.probability, one.row))

    def worst_classes(self, count: int) -> list[ClassScore]:
        """The classes it surely misses most, worst first; none without an error."""
        errors: Counter[int] = Counter()
        favourite: dict[int, tuple[int, int]] = {}
        for (label, taken_for), number in sorted(self._pairs.items()):
            errors[label] += number
            if number > favourite.get(label, (0, 0))[1]:
                favourite[label] = taken_for, number
        scores = [
            ClassScore(
                label=label,
                num_images=self._images[label],
                num_errors=number,
                taken_for=favourite[label][0],
                num_taken=favourite[label][1],
            )
            for label, number in errors.items()
        ]
        return sorted(scores, key=lambda score: (-score.sure_error, score.label))[:count]


def best_classes(probabilities: Floats) -> NDArray[np.int64]:
    """The five most probable classes of each image, best first; of equal ones the lower first."""
    return np.argsort(-probabilities, axis=1, kind="stable")[:, :NUM_BEST]


def spread_over_classes(rows: Iterable[int], labels: Iterable[int], count: int) -> list[int]:
    """The first `count` of `rows`, of as many different classes as there are."""
    queue = list(zip(rows, labels, strict=True))
    chosen: list[int] = []
    while queue and len(chosen) < count:
        later, seen = [], set()
        for row, label in queue:
            if label in seen or len(chosen) == count:
                later.append((row, label))
            else:
                seen.add(label)
                chosen.append(row)
        queue = later
    return chosen
