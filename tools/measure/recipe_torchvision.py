"""torchvision's AlexNet and the recipe its documentation gives for it, at any width.

Written from their description: the network of torchvision.models.alexnet, and from references/
classification/README.md `train.py --model alexnet --lr 1e-2` with the parameters of its table:
batch 32, momentum 0.9, weight decay 1e-4, the rate divided by 10 after each third of the epochs
(30 of 90). There, eight processes have a batch of 32 each at that rate; here, a small set is given
to one, with the same batch and rate: eight times the rate per image. PyTorch's own initial
weights, as there. Other rates than the published one can be asked for.
"""

import copy
import math
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from pipeline.cores import available_cores
from pipeline.draws import CROP_PX
from pipeline.images import SIZE_PX, Pixels
from pipeline.loader import Loader, LoaderConfig
from tools.measure.recipe_runs import Run
from trainer.architecture import scaled
from trainer.evaluate import Errors, Tally
from trainer.precision import set_up_device

BATCH_SIZE = 32
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.01, 0.9, 1e-4
NUM_STAGES, DROP_FACTOR = 3, 0.1
CROP_AREA = (0.08, 1.0)  # share of the image's area: RandomResizedCrop's defaults
CROP_ASPECT = (3 / 4, 4 / 3)  # width to height
CROP_TRIES = 10
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, in 0..1 units
BATCHES_AHEAD = 4
VAL_BATCH_SIZE = 128


class TorchvisionAlexNet(nn.Sequential):
    """One column, no response norm, two pixels of padding, dropout before fc6 and fc7.

    (batch, 3, 224, 224), normalised, to logits (batch, classes).
    """

    def __init__(self, num_classes: int, width: float = 1.0) -> None:
        c1, c2, c3, c4, c5 = (scaled(size, width) for size in (64, 192, 384, 256, 256))
        hidden = scaled(4096, width)
        super().__init__(
            nn.Conv2d(3, c1, 11, stride=4, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2),
            nn.Conv2d(c1, c2, 5, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2),
            nn.Conv2d(c2, c3, 3, padding=1), nn.ReLU(inplace=True),
            nn.Conv2d(c3, c4, 3, padding=1), nn.ReLU(inplace=True),
            nn.Conv2d(c4, c5, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2),
            nn.AdaptiveAvgPool2d(6), nn.Flatten(),
            nn.Dropout(), nn.Linear(c5 * 6 * 6, hidden), nn.ReLU(inplace=True),
            nn.Dropout(), nn.Linear(hidden, hidden), nn.ReLU(inplace=True),
            nn.Linear(hidden, num_classes),
        )  # fmt: skip


class TorchvisionRecipe:
    """Trains that network on a shard folder's images, decoded once and kept in memory."""

    def __init__(self, shards: Path, width: float, device: torch.device) -> None:
        set_up_device("fp32", device)
        self._width, self._device = width, device
        self.rate = LEARNING_RATE
        self._num_classes, *self._train = _decoded(shards, "train")
        _, *self._val = _decoded(shards, "val")

    @property
    def name(self) -> str:
        """With the learning rate where it is not the published one."""
        own = "" if self.rate == LEARNING_RATE else f", rate {self.rate:g}"
        return f"torchvision AlexNet{own}"

    def with_rate(self, rate: float) -> "TorchvisionRecipe":
        """The same on the same images, with another learning rate."""
        other = copy.copy(self)
        other.rate = rate
        return other

    def run(self, num_epochs: int, seed: int) -> Run:
        """Trains for `num_epochs` and evaluates; a function of the seed on one machine."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)  # of the initial weights and of dropout
            model = TorchvisionAlexNet(self._num_classes, self._width).to(self._device)
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's
            optimizer = torch.optim.SGD(
                model.parameters(), lr=self.rate, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY
            )
            seconds = []
            for epoch in range(num_epochs):
                for group in optimizer.param_groups:
                    group["lr"] = self.rate * rate_factor(epoch, num_epochs)
                started = time.perf_counter()
                self._train_epoch(model, optimizer, np.random.default_rng((seed, epoch)))
                seconds.append(time.perf_counter() - started)
        errors = self._evaluate(model)
        return Run(
            epoch_seconds=tuple(seconds),
            num_images=num_epochs * len(self._train[0]),
            top1_error=errors.top1_error,
            top5_error=errors.top5_error,
        )

    def _train_epoch(
        self, model: nn.Module, optimizer: torch.optim.SGD, rng: np.random.Generator
    ) -> None:
        model.train()
        for images, labels in self._batches(rng):
            loss = F.cross_entropy(model(normalise(images.to(self._device))), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it without annotations
            optimizer.step()
        loss.item()  # waits for the device, as whoever stops the clock must

    def _batches(self, rng: np.random.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """An epoch's batches in random order, cut by threads ahead of use; the last is smaller."""
        images, labels = self._train
        order = rng.permutation(len(images))
        crops = [draw_crop(rng) for _ in order]
        flips = rng.integers(0, 2, len(order)) == 1

        def cut(position: int) -> Pixels:
            square = resized_crop(images[order[position]].numpy(), crops[position])
            return square[:, ::-1] if flips[position] else square

        ahead: deque[tuple[list[Future[Pixels]], Tensor]] = deque()
        with ThreadPoolExecutor(available_cores()) as pool:
            for first in range(0, len(order), BATCH_SIZE):
                part = range(first, min(first + BATCH_SIZE, len(order)))
                chosen = labels[order[part.start : part.stop]].to(self._device)
                ahead.append(([pool.submit(cut, position) for position in part], chosen))
                if len(ahead) > BATCHES_AHEAD:
                    yield _ready(*ahead.popleft())
            while ahead:
                yield _ready(*ahead.popleft())

    @torch.inference_mode()
    def _evaluate(self, model: nn.Module) -> Errors:
        """From the centre crop, over all validation images."""
        model.eval()
        tally = Tally(self._num_classes, self._device)
        edge = (SIZE_PX - CROP_PX) // 2
        images, labels = self._val
        for first in range(0, len(images), VAL_BATCH_SIZE):
            part = slice(first, first + VAL_BATCH_SIZE)
            view = images[part, edge : edge + CROP_PX, edge : edge + CROP_PX].permute(0, 3, 1, 2)
            scores = torch.log_softmax(model(normalise(view.to(self._device))), 1)
            tally.add(scores, labels[part].to(self._device))
        return tally.errors()


def rate_factor(epoch: int, num_epochs: int) -> float:
    """What the rate of an epoch is of the first one: a tenth after each third of them."""
    return DROP_FACTOR ** (epoch * NUM_STAGES // num_epochs)


def draw_crop(rng: np.random.Generator) -> tuple[int, int, int, int]:
    """x, y, width and height, px, of RandomResizedCrop: area uniform, log of the aspect uniform.

    Drawn again up to ten times where it does not fit; then the whole (square) image.
    """
    for _ in range(CROP_TRIES):
        area = rng.uniform(*CROP_AREA) * SIZE_PX * SIZE_PX
        aspect = math.exp(rng.uniform(math.log(CROP_ASPECT[0]), math.log(CROP_ASPECT[1])))
        width, height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < width <= SIZE_PX and 0 < height <= SIZE_PX:
            x, y = rng.integers(0, SIZE_PX - width + 1), rng.integers(0, SIZE_PX - height + 1)
            return int(x), int(y), width, height
    return 0, 0, SIZE_PX, SIZE_PX


def resized_crop(pixels: Pixels, crop: tuple[int, int, int, int]) -> Pixels:
    """That part of (256, 256, 3), by Pillow's bilinear filter to (224, 224, 3)."""
    x, y, width, height = crop
    part = Image.fromarray(pixels).crop((x, y, x + width, y + height))
    return np.asarray(part.resize((CROP_PX, CROP_PX), Image.Resampling.BILINEAR))


def normalise(images: Tensor) -> Tensor:
    """uint8 (batch, 3, height, width) as float32 in units of ImageNet's deviation."""
    mean, std = (torch.tensor(value, device=images.device) for value in (MEAN, STD))
    return (images.float() / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)


def _ready(parts: list[Future[Pixels]], labels: Tensor) -> tuple[Tensor, Tensor]:
    stacked: NDArray[np.uint8] = np.stack([part.result() for part in parts])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2), labels


def _decoded(shards: Path, split: str) -> tuple[int, Tensor, Tensor]:
    """The number of classes, all stored images (N, 256, 256, 3) uint8, and their labels (N,)."""
    config = LoaderConfig(
        shards=shards, split=split, batch_size=VAL_BATCH_SIZE, training=False, lighting="off",
        views="full",
    )  # fmt: skip
    with Loader(config) as loader:
        batches = [(batch.images.clone(), batch.labels) for batch in loader]
        images = torch.cat([images.permute(0, 2, 3, 1) for images, _ in batches])
        return len(loader.dataset.classes), images, torch.cat([labels for _, labels in batches])
