"""What the options of a run come to on its shards and ranks, and the parts built from that."""

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

from pipeline.loader import Batch, Loader, LoaderConfig
from pipeline.manifest import Dataset, open_dataset
from pipeline.moments import Statistics, read_statistics
from trainer.ceiling import first_batch, measure_ceiling
from trainer.checkpoint import Checkpoint
from trainer.chosen_forms import find_forms, forms_told, known_forms
from trainer.config import WIRE_DTYPES, RunConfig, asked_preset, notes, resolve_preset
from trainer.loop import Trainer, why_eager
from trainer.model import AlexNet
from trainer.overfit import OverfitFeed, require_images
from trainer.parallel import Layout
from trainer.precision import (
    Arithmetic,
    explain_precision,
    find_precision,
    set_up_device,
)
from trainer.preset import Preset
from trainer.start import build_model, find_layout
from trainer.state import ResumableFeed
from trainer.world import World


@dataclass(frozen=True, kw_only=True)
class Parts:
    """A run before anything of it is built.

    asked: the preset as it was asked for; preset: with the run's own epochs, batch and rate.
    mode_told: who holds what and why, in words; "" where this process is alone.
    """

    config: RunConfig
    world: World
    dataset: Dataset
    statistics: Statistics
    asked: Preset
    preset: Preset
    precision: str
    layout: Layout
    mode_told: str

    @property
    def eager_reason(self) -> str | None:
        """Why the step cannot be a CUDA graph; None where it can."""
        return why_eager(
            self.world.device, self.layout, self.precision == "fp16", self.config.micro_batch
        )

    @property
    def step_told(self) -> str:
        """Whether the step is a CUDA graph, in words; "" on a CPU, where there is no question."""
        if self.world.device.type != "cuda":
            return ""
        if not self.config.compile:
            return "step: kernel by kernel, as --no-compile asks"
        if self.eager_reason is not None:
            return f"step: kernel by kernel: {self.eager_reason}"
        return "step: one CUDA graph"

    @property
    def chooses_forms(self) -> bool:
        """Whether convolutions are computed in other than their plain form: on a GPU."""
        return self.world.device.type == "cuda"

    def introduction(
        self, loader: str, forms: Mapping[str, str], *, resumed: bool = False
    ) -> list[str]:
        """What the run is about to do, line by line.

        loader: in words, what feeds it; forms: of its convolutions, where they are not plain;
        resumed: whether they are those of a checkpoint.
        """
        config, training = self.config, self.preset.training
        num_train, num_val = (
            config.overfit or self.dataset.num_samples(split) for split in ("train", "val")
        )
        own = self.asked.training.batch_size
        lowered = f" (the preset's is {own:,})" if training.batch_size != own else ""
        return [
            f"{self.preset.name}: {training.epochs} epochs of {num_train:,} images in "
            f"{len(self.dataset.classes)} classes, {num_val:,} to validate",
            f"batch {training.batch_size:,}{lowered}, learning rate {training.learning_rate:g}, "
            f"{explain_precision(self.precision, self.world.device)}",
            f"loader: {loader}; run folder: {config.folder}",
            *(told for told in (self.mode_told, self.step_told) if told),
            *([forms_told(forms, resumed=resumed)] if forms else []),
            *notes(config, self.preset),
        ]

    def model(self) -> AlexNet:
        """The `plain_model` with its convolutions in the forms of a run that begins.

        Every rank calls it.
        """
        built = self.plain_model()
        built.forms = self.forms(built)
        return built

    def plain_model(self) -> AlexNet:
        """The network with its first weights, on this rank's device."""
        return build_model(
            self.preset, self.dataset.classes, self.config, self.statistics, self.layout
        ).place(self.world.device)

    def forms(self, model: AlexNet, checkpoint: Checkpoint | None = None) -> dict[str, str]:
        """How the network's convolutions are computed; those that are not named, plainly.

        Of a run that begins, the fastest; every rank calls it. They round differently, so one
        that goes on from `checkpoint` keeps those it began with. On a CPU, and in what begins with
        --no-compile, all are plain.
        """
        if not self.chooses_forms:
            return {}
        if checkpoint is not None:
            return known_forms(model, checkpoint.progress.get("forms", {}))
        if not self.config.compile:
            return {}
        arithmetic = Arithmetic(self.precision, self.world.device)
        return find_forms(model, self._num_images, arithmetic, self.layout.ranks)

    @property
    def _num_images(self) -> int:
        """Of a pass through this rank's convolutions."""
        of_rank = self.preset.training.batch_size // self.world.size * self.layout.kernels.size
        return min(of_rank, self.config.micro_batch or of_rank)

    def trainer(self, model: AlexNet, steps_per_epoch: int) -> Trainer:
        """What trains it."""
        return Trainer(
            model=model,
            preset=self.preset,
            steps_per_epoch=steps_per_epoch,
            seed=self.config.seed,
            precision=self.precision,
            micro_batch=self.config.micro_batch,
            ema_decay=self.config.ema,
            wire_dtype=WIRE_DTYPES[self.config.wire],
            captured=self.config.compile and self.eager_reason is None,
        )

    def train_feed(self) -> Loader:
        """What it is trained on, open."""
        return Loader(self.loader_config("train", training=True))

    def open_feeds(self, stack: ExitStack) -> tuple[ResumableFeed, Iterable[Batch]]:
        """What is trained on and what is validated on, until `stack` is closed."""
        if self.config.overfit:
            few = OverfitFeed(
                Loader(self.loader_config("train", training=False)), self.config.overfit
            )
            return few, few.whole()
        train = stack.enter_context(self.train_feed())
        val_config = self.loader_config("val", training=False)
        val_config = val_config.rendered_as(train.settings, train.backend)
        return train, stack.enter_context(Loader(val_config))

    def measure_ceiling(self, feed: ResumableFeed, forms: Mapping[str, str]) -> float:
        """Images per second of the step alone, on a network that is thrown away.

        feed: whose next batch it is shown again and again; its place stays. forms: those of the
        run. Every rank calls it.
        """
        model = self.plain_model()
        model.forms = dict(forms)
        return measure_ceiling(self.trainer(model, len(feed)), first_batch(feed))

    def loader_config(self, split: str, *, training: bool) -> LoaderConfig:
        """What feeds it, or validates it."""
        config, augmentation = self.config, self.preset.augmentation
        device = str(self.world.device)
        return LoaderConfig(
            shards=config.shards,
            split=split,
            batch_size=self.preset.training.batch_size,
            seed=config.seed,
            training=training,
            lighting=augmentation.lighting,
            lighting_off_epoch=augmentation.lighting_off_epoch,
            images_per_crop=augmentation.images_per_crop,
            window=config.window,
            backend=config.backend,
            threads=config.loader_threads,
            prefetch=config.prefetch,
            stage_dir=config.stage_dir,
            stage_bytes=config.stage_bytes,
            resident="none" if config.overfit else config.resident,
            resident_format="rgb" if config.overfit else config.resident_format,
            order=config.order if training else "global",
            device=device,
            rank=self.world.rank,
            world_size=self.world.size,
            exact=config.exact,
            calibrate=config.calibrate,
            lighting_apart=training and self.layout.kernels.size > 1 and device == "cpu",
        )


def plan_parts(config: RunConfig, world: World) -> Parts:
    """Opens the shards and settles what the options leave open; every rank calls it.

    Sets how this process computes on its device.
    ValueError for what the user has to put right: shards, statistics, batch, precision, modes.
    """
    dataset = open_dataset(config.shards)
    statistics = read_statistics(config.shards, dataset.fingerprint("train"))
    num_images = dataset.require_images("train")
    if config.overfit:
        require_images(config.overfit, num_images)
    preset = resolve_preset(config, config.overfit or num_images)
    precision = find_precision(config.precision, preset.training.precision, world.device)
    set_up_device(precision, world.device)
    layout, mode_told = find_layout(config, preset, world, precision)
    return Parts(
        config=config,
        world=world,
        dataset=dataset,
        statistics=statistics,
        asked=asked_preset(config),
        preset=preset,
        precision=precision,
        layout=layout,
        mode_told=mode_told,
    )
