"""What a run is asked to do, and the preset that follows from it."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.loader_config import require_order, require_resident, require_stage
from pipeline.order import Window
from trainer.ema import require_decay
from trainer.override import override, parse_settings, read_config
from trainer.parallel import MODES
from trainer.precision import PRECISIONS
from trainer.preset import LayerRate, Preset
from trainer.presets import find_preset

DEVICES = ("auto", "cuda", "cpu")
WIRE_DTYPES = {"fp32": None, "bf16": torch.bfloat16}  # of gradients between processes


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The options of the training command; None stands for the preset's own value."""

    shards: Path
    preset: str = "modern"
    config_file: Path | None = None  # a TOML file of preset fields
    settings: tuple[str, ...] = ()  # more of them, as "training.momentum=0.8"; these win
    init_from: Path | None = None  # a checkpoint whose weights are the first
    replace_head: bool = False  # but for those of the last layer
    epochs: int | None = None
    batch_size: int | None = None  # global
    width: float = 1.0
    device: str = "auto"
    backend: str = "auto"
    loader_threads: int | None = None  # this process's share of the cores
    prefetch: int = 3  # steps
    calibrate: bool = False
    exact: bool = False
    window: Window = "all"
    stage_dir: Path | None = None
    stage_bytes: int | None = None
    resident: str = "none"
    resident_format: str = "rgb"
    order: str = "global"
    precision: str = "auto"
    compile: bool = True  # the step as a CUDA graph, where it can be one
    micro_batch: int | None = None  # images per forward and backward pass; None: the batch
    ema: float | None = None  # decay of the moving average of the weights; None: there is none
    weight_report: int | None = None  # epochs between two tables of weights; None: none
    tensorboard: bool = False
    fed_ratio: bool = False  # whether the speed of the step alone is measured first
    profile: int | None = None  # steps in the trace of each process; None: there is none
    limit_steps: int | None = None  # of the whole run
    overfit: int | None = None  # training images that stand for both splits
    processes: int | None = None  # None: one per GPU that this process sees; on CPUs, one
    parallel: str = "auto"
    wire: str = "fp32"
    max_restarts: int = 3
    timeout_seconds: float = 600.0
    save_every_minutes: float | None = None  # besides the end of each epoch; None: only there
    save_every_epochs: int | None = None  # between two that are kept; None: none is
    seed: int = 0
    out: Path | None = None  # runs/PRESET-SEED, with --overfit N runs/PRESET-SEED-overfit-N

    def __post_init__(self) -> None:
        find_preset(self.preset)
        require_stage(self.shards, self.stage_dir, self.stage_bytes)
        require_order(self.order, self.window)
        require_resident(
            self.resident, self.backend, self.resident_format, calibrate=self.calibrate
        )
        for flag, value in (
            ("--epochs", self.epochs),
            ("--batch-size", self.batch_size),
            ("--micro-batch", self.micro_batch),
            ("--weight-report", self.weight_report),
            ("--save-every-epochs", self.save_every_epochs),
            ("--profile", self.profile),
            ("--limit-steps", self.limit_steps),
            ("--processes", self.processes),
            ("--overfit", self.overfit),
            ("--loader-threads", self.loader_threads),
            ("--prefetch", self.prefetch),
        ):
            if value is not None and value < 1:
                raise ValueError(f"{flag} is {value}, must be at least 1")
        for flag, name, choices in (
            ("--device", self.device, DEVICES),
            ("--precision", self.precision, PRECISIONS),
            ("--parallel", self.parallel, ("auto", *MODES)),
            ("--wire", self.wire, tuple(WIRE_DTYPES)),
        ):
            if name not in choices:
                raise ValueError(f"{flag} is {name!r}, must be one of {', '.join(choices)}")
        if not 0.01 <= self.width <= 16:
            raise ValueError(f"--width is {self.width}, must be 0.01 to 16")
        if self.replace_head and self.init_from is None:
            raise ValueError("--replace-head goes with --init-from CHECKPOINT only")
        if self.ema is not None:
            require_decay(self.ema)
        if self.max_restarts < 0:
            raise ValueError(f"--max-restarts is {self.max_restarts}, must be at least 0")
        for flag, amount in (
            ("--timeout-seconds", self.timeout_seconds),
            ("--save-every-minutes", self.save_every_minutes),
        ):
            if amount is not None and not 0 < amount < math.inf:
                raise ValueError(f"{flag} is {amount}, must be a number more than 0")
        if self.batch_size and self.processes and self.batch_size % self.processes:
            raise ValueError(
                f"--processes {self.processes} does not divide --batch-size {self.batch_size}, "
                "which is that of all together"
            )
        if self.overfit and self.processes not in (None, 1):
            raise ValueError("--overfit trains in one process; leave out --processes")
        if self.seed < 0:
            raise ValueError(f"--seed is {self.seed}, must be at least 0")

    @property
    def folder(self) -> Path:
        """The run folder."""
        overfit = f"-overfit-{self.overfit}" if self.overfit else ""
        return self.out or Path("runs") / f"{self.preset}-{self.seed}{overfit}"


def find_device(name: str) -> torch.device:
    """`auto` is the first GPU where there is one; ValueError for a GPU that is not there."""
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise ValueError("--device cuda: PyTorch sees no GPU here; use --device cpu")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and there) else "cpu")


def default_batch_size(preset: Preset, num_images: int) -> int:
    """The preset's, lowered to the largest power of two <= one eighth of the training images."""
    largest = 1 << max(0, (num_images // 8).bit_length() - 1)
    return min(preset.training.batch_size, largest)


def asked_preset(config: RunConfig) -> Preset:
    """The preset with the fields that --config and --set give it; ValueError naming a bad one."""
    changes = read_config(config.config_file) if config.config_file else {}
    return override(find_preset(config.preset), changes | parse_settings(config.settings))


def resolve_preset(config: RunConfig, num_images: int) -> Preset:
    """The preset asked for with the run's own epochs and batch.

    The learning rate is scaled with the batch; what happens at an epoch of the preset moves in
    proportion to --epochs. num_images: of the training split. ValueError where a batch is larger.
    """
    preset = asked_preset(config)
    if config.overfit:
        preset = _for_overfit(preset)
    training = preset.training
    batch_size = config.batch_size or default_batch_size(preset, num_images)
    if batch_size > num_images:
        raise ValueError(
            f"--batch-size is {batch_size}, the training split has {num_images} images: no full "
            f"batch; use at most that many"
        )
    scale = (batch_size / training.batch_size) ** training.batch_exponent
    training = dataclasses.replace(
        training, batch_size=batch_size, learning_rate=training.learning_rate * scale
    )
    preset = dataclasses.replace(preset, training=training)
    return stretch(preset, config.epochs) if config.epochs else preset


def _for_overfit(preset: Preset) -> Preset:
    """The preset for a few images again and again: dark, at a rate that can be seen to learn.

    In proportion to a batch of 4 the rate of 2012 would learn next to nothing, and drop before
    `paper` has left chance; with the root of the batch and no drop both come down to no errors.
    """
    training = preset.training
    if training.schedule != "cosine":
        training = dataclasses.replace(training, schedule="steps", drop_epochs=(), layer_rates=())
    return dataclasses.replace(
        preset,
        augmentation=dataclasses.replace(preset.augmentation, lighting="off"),
        training=dataclasses.replace(
            training, batch_exponent=min(0.5, training.batch_exponent)
        ),
    )


def stretch(preset: Preset, epochs: int) -> Preset:
    """The preset over another number of epochs, its events moved in proportion, rounded up."""
    training, augmentation = preset.training, preset.augmentation

    def moved(epoch: int) -> int:
        return math.ceil(epoch * epochs / training.epochs)

    rates = (LayerRate(moved(rate.epoch), *rate[1:]) for rate in training.layer_rates)
    return dataclasses.replace(
        preset,
        training=dataclasses.replace(
            training,
            epochs=epochs,
            # never shorter: a network may be at chance for some epochs before it learns at all
            patience_epochs=max(training.patience_epochs, moved(training.patience_epochs)),
            drop_epochs=tuple(moved(epoch) for epoch in training.drop_epochs),
            layer_rates=tuple(rates),
        ),
        augmentation=dataclasses.replace(
            augmentation, lighting_off_epoch=moved(augmentation.lighting_off_epoch)
        ),
    )


def notes(config: RunConfig, preset: Preset) -> list[str]:
    """What is out of the ordinary in a run, a line each, for its beginning."""
    lines = []
    if config.overfit:
        lines.append(
            f"OVERFIT: trains on the first {config.overfit:,} training images over and over, "
            f"without augmentation; errors are over these images and should fall to 0"
        )
    if config.micro_batch:
        sees = "; batch norm sees one at a time" if preset.network.norm == "batch" else ""
        lines.append(f"micro-batches of {config.micro_batch:,} images{sees}")
    if config.ema is not None:
        lines.append(f"errors are of the weights averaged with decay {config.ema:g}")
    return lines
