"""What a run says of itself: what an epoch sums up, a bar while it trains, a report at its end."""

import dataclasses
import time
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from pipeline.terminal import COLUMNS, bar_options
from pipeline.waits import Waits
from trainer.weight_report import WeightChange

LINE_SECONDS = 30.0  # at least, between two lines off a terminal
BAR_FORMAT = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}"
NARROW_FORMAT = "{desc} {percentage:.0f}%{postfix}"
SPARED = ("last ", " images", "data ", " left")  # so that it fits in 80 columns
BAR_COLUMNS = 6  # the least of a bar that tells something


def duration(seconds: float) -> str:
    """A time to wait, for a person: 40 s, 7 min, 3 h 05 min, 2 d 4 h."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    hours, days = minutes // 60, minutes // 1440
    return f"{hours} h {minutes % 60:02d} min" if hours < 24 else f"{days} d {hours % 24} h"


@dataclass(kw_only=True)
class Totals(Waits):
    """What an epoch has summed up so far; part of a checkpoint taken in its middle."""

    loss_sum: float = 0.0  # over images
    num_images: int = 0
    seconds: float = 0.0

    @property
    def loss(self) -> float:
        """Mean loss per image."""
        return self.loss_sum / max(1, self.num_images)

    @property
    def images_per_second(self) -> float:
        """Training speed."""
        return self.num_images / self.seconds if self.seconds else 0.0

    @property
    def wait_share(self) -> float:
        """Share of the time in which the trainer waited for data, 0..1."""
        return self.data_wait_seconds / self.seconds if self.seconds else 0.0

    def reported(self) -> dict[str, float]:
        """What a report has of it, by the names of its fields."""
        return {
            "train_loss": self.loss,
            "images_per_second": self.images_per_second,
            "train_seconds": self.seconds,
            "data_wait_seconds": self.data_wait_seconds,
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(Waits)},
        }


@dataclass(frozen=True, kw_only=True)
class Report:
    """An epoch in numbers; the field names are the keys of metrics.jsonl. Errors are 0..1."""

    epoch: int  # finished epochs
    step: int  # finished steps since the start of the run
    train_loss: float  # mean over the epoch's images, with dropout and augmentation on
    learning_rate: float  # of the epoch's last step
    val_loss: float
    top1_error: float
    top5_error: float
    num_val_images: int
    images_per_second: float  # of training, validation aside
    train_seconds: float
    val_seconds: float
    data_wait_seconds: float  # part of train_seconds in which the trainer waited for a batch:
    read_wait_seconds: float  # for its bytes
    decode_wait_seconds: float  # for its pixels
    handover_wait_seconds: float  # while work and tensors changed hands
    device_wait_seconds: float  # while the GPU stood still for its input
    fed_ratio: float | None = None  # null until a ceiling was measured
    weights: dict[str, WeightChange] | None = None  # by parameter; null where not asked for

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, JSON-able."""
        return dataclasses.asdict(self)

    def line(self, num_epochs: int) -> str:
        """The report for a person, in one line."""
        share = self.data_wait_seconds / self.train_seconds if self.train_seconds else 0.0
        return (
            f"epoch {self.epoch}/{num_epochs}: train loss {self.train_loss:.3f}, "
            f"val loss {self.val_loss:.3f}, top-1 error {self.top1_error:.1%}, "
            f"top-5 error {self.top5_error:.1%}, {self.images_per_second:,.0f} images/s, "
            f"data wait {self.data_wait_seconds:.1f} s ({share:.0%})"
        )


class Progress:
    """One epoch as it goes: a bar on a terminal, a few lines elsewhere.

    num_later: epochs that follow it; last: the report of the one before, if it is known.
    with Progress(...) as progress: progress.show(steps_done, loss, images_per_second, wait_share)
    """

    def __init__(
        self,
        *,
        title: str,
        num_steps: int,
        first_step: int,
        terminal: bool,
        num_later: int = 0,
        last: Report | None = None,
        line_seconds: float = LINE_SECONDS,
    ) -> None:
        self._title, self._num_steps, self._terminal = title, num_steps, terminal
        self._first_step, self._num_later, self._last = first_step, num_later, last
        self._line_seconds, self._start = line_seconds, time.monotonic()
        self._shown = self._start
        self._bar = tqdm(
            total=num_steps, initial=first_step, desc=title, unit="step", leave=False,
            disable=not terminal, bar_format=BAR_FORMAT, **bar_options(),
        )  # fmt: skip
        self.every_steps = max(1, num_steps // (50 if terminal else 4))

    def due(self, step: int) -> bool:
        """True where `show` is worth the reading of the loss, which waits for the device."""
        return step % self.every_steps == 0 and self.late(step)

    def late(self, step: int) -> bool:
        """True where the last line is long ago and the epoch goes on, or on a terminal."""
        long_ago = time.monotonic() - self._shown >= self._line_seconds
        return self._terminal or (long_ago and step < self._num_steps)

    def show(self, step: int, loss: float, images_per_second: float, wait_share: float) -> None:
        """Tells how far the epoch is; `loss` is its mean so far."""
        text = f"loss {loss:.3f}, "
        if self._last:
            errors = f"{self._last.top1_error:.1%}/{self._last.top5_error:.1%}"
            text += f"last errors {errors}, "
        text += f"{images_per_second:,.0f} images/s, data wait {wait_share:.0%}, "
        text += f"{duration(self._seconds_left(step))} left"
        if self._terminal:
            self._draw(step, text)
        else:
            self._shown = time.monotonic()
            print(f"{self._title}, step {step}/{self._num_steps}: {text}", flush=True)

    def _draw(self, step: int, text: str) -> None:
        """A bar with the text; the text in fewer words, and no bar, where they would not fit."""
        columns = self._bar.format_dict["ncols"] or COLUMNS - 1
        whole = f"{self._title} 100%|| {step}/{self._num_steps}, {text}"
        if len(whole) + BAR_COLUMNS <= columns:
            self._bar.bar_format = BAR_FORMAT
        else:
            self._bar.bar_format = NARROW_FORMAT
            for word in SPARED:
                text = text.replace(word, "")
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.n = step
        self._bar.refresh()

    def _seconds_left(self, step: int) -> float:
        """To the end of the run, at this epoch's speed so far and the last one's validation."""
        seconds_per_step = (time.monotonic() - self._start) / max(1, step - self._first_step)
        num_steps = self._num_steps - step + self._num_steps * self._num_later
        val_seconds = self._last.val_seconds * (1 + self._num_later) if self._last else 0.0
        return seconds_per_step * num_steps + val_seconds

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()
