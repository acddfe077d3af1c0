"""What a loader delivers, and with what."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import Any

from pipeline.atomic import is_local
from pipeline.backends import HW_DECODER_LOAD, RenderSettings
from pipeline.draws import ALPHA_STD, CROP_PX, MAX_OFFSET_PX, Draws, centre_draws, draws
from pipeline.order import ORDER_VERSION, ORDERS, Window
from pipeline.receipt import canonical_hash
from pipeline.resident import FORMATS, RESIDENT
from pipeline.stage_folder import PATIENCE_SECONDS

LIGHTING = ("std", "variance", "off")
VIEWS = ("crop", "full")
MAX_THREADS = 1024  # of one loader; where the system gives no more, DALI ends the process
MAX_EPOCHS = 2**63
# Of a state, what is named only where it is not this: states saved before stay valid.
UNNAMED = {"order": "global", "world_size": None}


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """What a loader delivers, and with what.

    batch_size: of all ranks together. training: random order, crops, flips and lighting, the last
    partial batch dropped; otherwise index order, centre crops, every image once. lighting: "std"
    (alpha times sqrt(lambda), the 2012 code), "variance" (alpha times lambda, the paper's text) or
    "off". images_per_crop: neighbours in a global batch that share one crop and flip.
    lighting_off_epoch: from this epoch on there is no lighting; 0: there always is. window: see
    pipeline/order.py. threads: of rendering, by default this rank's share of the cores. prefetch:
    steps rendered at a time, that delivered next among them; with 1 none is while the consumer
    works. local_world_size: ranks on this host, by default those torchrun says there are.
    hw_decoder_load: share of the JPEG images that the engine of a GPU decodes, 0..1; its pixels
    differ from those of the GPU's kernels. exact: none of them, so that runs on dali-gpu are
    bit-equal. calibrate: threads, load and, on a GPU, twice the prefetch are measured when the
    loader is opened, or known from then (pipeline/calibrate.py); where backend "auto" comes to
    dali-cpu, numpy too, whose pixels are the same. stage_dir: a local folder to
    which the shards are brought ahead of use (see pipeline/staging.py), needed where they lie on
    an object store; ranks, loaders and runs may share it. stage_bytes: the most it may hold,
    default nine tenths of what is free. stage_patience_seconds: that a shard is waited for which
    another process brings there without getting on.
    resident: where decoded images are kept, so that none is decoded twice: on the "device", in
    memory of the "host", "none", or "auto" (see pipeline/resident.py). resident_format: "rgb", or
    on the "device" "yuv420", half the memory and other pixels (see pipeline/subsampled.py).
    order: "global", or in training "local": a rank draws from its own share of the images, which
    is what its GPU keeps (see pipeline/order.py); other batches, and others on each world size.
    lighting_apart: on the CPU, crops as uint8 and their lighting beside them, for whoever passes
    them on: a quarter of the bytes, and Batch.lit() gives the pixels of a loader without it.
    """

    shards: Path
    batch_size: int
    split: str = "train"
    seed: int = 0
    training: bool = True
    lighting: str = "std"
    images_per_crop: int = 1
    lighting_off_epoch: int = 0
    views: str = "crop"
    window: Window = "all"
    backend: str = "auto"
    threads: int | None = None
    prefetch: int = 3
    device: str = "cpu"
    rank: int = 0
    world_size: int = 1
    local_world_size: int | None = None
    hw_decoder_load: float = HW_DECODER_LOAD
    exact: bool = False
    calibrate: bool = False
    stage_dir: Path | None = None
    stage_bytes: int | None = None
    stage_patience_seconds: float = PATIENCE_SECONDS
    resident: str = "none"
    resident_format: str = "rgb"
    order: str = "global"
    lighting_apart: bool = False

    def __post_init__(self) -> None:
        for name, folder in (("shards", self.shards), ("stage_dir", self.stage_dir)):
            if isinstance(folder, str):
                raise ValueError(
                    f"{name} must be a path, not a str: Path({folder!r}), or where it is a URL "
                    f"pipeline.locations.location({folder!r})"
                )
        counts: dict[str, Any] = {
            "batch size": self.batch_size,
            "prefetch": self.prefetch,
            "threads": 1 if self.threads is None else self.threads,
            "world size": self.world_size,
            "local world size": 1 if self.local_world_size is None else self.local_world_size,
            "images per crop": self.images_per_crop,
            "window": 1 if self.window == "all" else self.window,
            "stage bytes": 1 if self.stage_bytes is None else self.stage_bytes,
        }
        numbers: dict[str, Any] = {
            "rank": self.rank, "seed": self.seed, "lighting off epoch": self.lighting_off_epoch,
        }  # fmt: skip
        for name, value in (counts | numbers).items():
            if isinstance(value, bool) or not isinstance(value, Integral):
                raise ValueError(f"{name} must be a whole number, not {value!r}")
        for name, value in counts.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if self.threads is not None and self.threads > MAX_THREADS:
            raise ValueError(f"threads must be at most {MAX_THREADS}, not {self.threads}")
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank must be within 0..{self.world_size - 1}, not {self.rank}")
        if self.batch_size % self.world_size:
            raise ValueError(
                f"world size {self.world_size} does not divide the global batch {self.batch_size}"
            )
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed must be within 0..2**64-1, not {self.seed}")
        if not 0 <= self.hw_decoder_load <= 1:
            raise ValueError(f"hw_decoder_load must be within 0..1, not {self.hw_decoder_load}")
        if self.stage_patience_seconds <= 0:
            raise ValueError(
                f"stage patience must be over 0 seconds, not {self.stage_patience_seconds:g}"
            )
        if self.lighting not in LIGHTING:
            raise ValueError(f"lighting must be one of {LIGHTING}, not {self.lighting!r}")
        if self.lighting_off_epoch < 0:
            raise ValueError(f"lighting off epoch must be >= 0, not {self.lighting_off_epoch}")
        if self.views not in VIEWS:
            raise ValueError(f"views must be one of {VIEWS}, not {self.views!r}")
        require_stage(self.shards, self.stage_dir, self.stage_bytes)
        require_order(self.order, self.window)
        if self.lighting_apart and (self.views != "crop" or self.device != "cpu"):
            raise ValueError(
                f"lighting apart is of crops on the CPU, not of views {self.views!r} on "
                f"{self.device}"
            )
        if self.order == "local" and not self.training:
            raise ValueError("order local is of training; validation goes by the index")
        require_resident(
            self.resident, self.backend, self.resident_format, calibrate=self.calibrate
        )

    @property
    def max_rows(self) -> int:
        """The most images of a rank's part of a step."""
        return -(-self.batch_size // self.world_size)

    def draws(self, epoch: int, step: int) -> Draws:
        """The random numbers of a step's global batch; in validation, its centre crops."""
        if not self.training:
            return centre_draws(self.batch_size)
        drawn = draws(self.seed, epoch, step, self.batch_size, self.images_per_crop)
        unlit = self.lighting_off_epoch and epoch >= self.lighting_off_epoch
        return drawn.unlit() if unlit else drawn

    def rendered_as(self, settings: RenderSettings, backend: str) -> "LoaderConfig":
        """The same with the threads, depth and decoder load of another loader, measured or not.

        And with its backend, where that was measured.
        """
        return replace(
            self,
            backend=backend if self.calibrate else self.backend,
            threads=settings.num_threads,
            prefetch=settings.depth,
            hw_decoder_load=settings.hw_decoder_load,
            calibrate=False,
        )

    def fixed_state(self, fingerprint: str) -> dict[str, Any]:
        """All that batches depend on but their position: part of every saved state."""
        augmentation = {
            "crop_px": CROP_PX,
            "max_offset_px": MAX_OFFSET_PX,
            "alpha_std": ALPHA_STD,
            "training": self.training,
            "lighting": self.lighting,
            "views": self.views,
        }
        # named only where they are not what they always were: states saved before stay valid
        if self.images_per_crop != 1:
            augmentation["images_per_crop"] = self.images_per_crop
        if self.lighting_off_epoch:
            augmentation["lighting_off_epoch"] = self.lighting_off_epoch
        if self.resident_format != "rgb":
            augmentation["resident_format"] = self.resident_format
        local = {"order": "local", "world_size": self.world_size}
        return {
            "seed": self.seed,
            "split": self.split,
            "global_batch": self.batch_size,
            "window": self.window,
            "drop_last": self.training,
            "augmentation": canonical_hash(augmentation),
            "fingerprint": fingerprint,
            "order_version": ORDER_VERSION,
            **(local if self.order == "local" else {}),
        }

    def position(
        self, state: Mapping[str, Any], fingerprint: str, num_steps: int
    ) -> tuple[int, int]:
        """The epoch and step of the next batch in a saved state.

        fingerprint: of the split. num_steps: of an epoch. ValueError naming what differs: other
        shards, global batch, seed, order or augmentation; or where this loader is to be exact and
        the one of the state was not; or where there is no such step, or it is no state at all.
        """
        if not isinstance(state, Mapping):
            raise ValueError(f"a state is what state_dict() gives, not {state!r}")
        for name, here in (UNNAMED | self.fixed_state(fingerprint)).items():
            saved = state.get(name, UNNAMED.get(name))
            if saved != here:
                raise ValueError(
                    f"cannot resume: {name} is {saved} in the saved state and {here} "
                    "here; the batches would not be the same"
                )
        if self.exact and state.get("hw_decoder_load"):
            raise ValueError(
                f"cannot resume exactly: hw_decoder_load is {state['hw_decoder_load']} in the "
                "saved state, so its pixels cannot be had again; resume without --exact"
            )
        epoch, step = state.get("epoch"), state.get("step")
        if not (isinstance(epoch, int) and isinstance(step, int)) or not (
            0 <= epoch < MAX_EPOCHS and 0 <= step <= num_steps
        ):
            raise ValueError(f"cannot resume: no step {step} of epoch {epoch}, of {num_steps}")
        return epoch, step


def require_stage(shards: Path, stage_dir: Path | None, stage_bytes: int | None) -> None:
    """ValueError where shards of an object store have no local folder to be brought to."""
    if stage_dir is None and not is_local(shards):
        raise ValueError(
            f"{shards} is not on this machine: give a local folder that its shards are brought "
            "to, --stage-dir DIR, and the most it may hold, --stage-bytes 200GB"
        )
    if stage_dir is None and stage_bytes is not None:
        raise ValueError("--stage-bytes bounds what is staged: it needs --stage-dir DIR")


def require_order(order: str, window: Window) -> None:
    """ValueError for an order that there is not, or not with such a window."""
    if order not in ORDERS:
        raise ValueError(f"order must be one of {', '.join(ORDERS)}, not {order!r}")
    if order == "local" and window != "all":
        raise ValueError(f"--order local shuffles all of a share: it has no --window {window}")


def require_resident(
    resident: str, backend: str, resident_format: str, *, calibrate: bool
) -> None:
    """ValueError where images cannot be kept there, not so, or not with such a backend."""
    if resident not in RESIDENT:
        raise ValueError(f"resident must be one of {', '.join(RESIDENT)}, not {resident!r}")
    if resident_format not in FORMATS:
        raise ValueError(
            f"resident format must be one of {', '.join(FORMATS)}, not {resident_format!r}"
        )
    if resident_format != "rgb" and resident != "device":
        raise ValueError(
            f"--resident-format {resident_format} is how a GPU keeps images, with other pixels "
            f"than elsewhere: it goes with --resident device, not {resident}"
        )
    if resident == "none":
        return
    if backend not in ("auto", "numpy"):
        raise ValueError(
            f"--resident {resident} decodes each image once, on threads of the CPU, which gives "
            f"the pixels of raw shards; --backend {backend} does not go with it: take auto"
        )
    if calibrate:
        raise ValueError(f"--calibrate measures decoding, which --resident {resident} does once")
