"""Half a minute that says what a training is to expect of this machine."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from pipeline.atomic import is_local
from pipeline.images import SIZE_PX
from tools.measure.attribution import remedy
from tools.measure.contestants import NO_GPU
from tools.measure.machine import describe_machine
from tools.measure.memory import peak_bytes
from tools.measure.outlook import DEVICES, Speeds, on_the_same_cores, outlook
from tools.measure.plots import images_text
from tools.measure.report import build_report
from tools.measure.rounds import Outcome, Pass
from tools.measure.stage_passes import (
    PARTS,
    load_batch_size,
    load_passes,
    mean_speed,
    read_passes,
    step_passes,
)
from trainer.config import RunConfig, find_device
from trainer.parts import Parts, plan_parts
from trainer.world import World

SHARES = {"storage": 0.1, "loader": 0.12, "step": 0.25}  # of the time; opening takes the rest
Report = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """What to look at: the training that these options describe, in about so many seconds."""

    config: RunConfig
    seconds: float = 30.0

    def __post_init__(self) -> None:
        if not 5 <= self.seconds <= 3600:
            raise ValueError(f"--seconds is {self.seconds}, must be within 5..3600")


def run_preflight(contest: Preflight, report: Report = lambda line: None) -> dict[str, Any]:
    """Measures storage, loaders and step in turn; returns the report, JSON-able.

    report: called with a line on each. ValueError for what the user has to put right first.
    """
    config = contest.config
    if not is_local(config.shards):
        raise ValueError(f"{config.shards} is not on this machine; look at a copy of some shards")
    parts = plan_parts(config, World(device=find_device(config.device)))
    seconds = {name: share * contest.seconds for name, share in SHARES.items()}
    passes: dict[str, list[Pass]] = {}
    passes["storage"] = read_passes(parts, seconds["storage"])
    report(_told("storage, files not in memory", passes["storage"]))
    loaded = load_batch_size(parts, seconds["loader"])
    for processes in DEVICES:
        name = loader_name(processes)
        share = max(1, loaded // processes)
        passes[name], backend = load_passes(parts, processes, share, seconds["loader"])
        report(_told(name, passes[name]))
    passes["step"], step_images = step_passes(parts, seconds["step"], loaded)
    report(_told(f"step of {step_images:,} images", passes["step"]))
    return _whole(contest, parts, passes, step_images, backend)


def loader_name(processes: int) -> str:
    """What the loader of one of so many processes is called."""
    return "loader" if processes == 1 else f"loader, 1 of {processes}"


def _told(name: str, passes: list[Pass]) -> str:
    return f"{name}: {images_text(mean_speed(passes))} images/s"


def _whole(
    contest: Preflight,
    parts: Parts,
    passes: dict[str, list[Pass]],
    step_images: int,
    backend: str,
) -> dict[str, Any]:
    """`build_report`'s form with expected, of the training as it is on this machine, outlook, of
    1, 2 and 4 GPUs, memory, and advice."""
    num_images, epochs = parts.dataset.num_samples("train"), parts.preset.training.epochs
    memory, on_gpu = _memory(parts), parts.world.device.type == "cuda"
    speeds = Speeds(
        step=mean_speed(passes["step"]) if on_gpu else None,
        loader={n: mean_speed(passes[loader_name(n)]) for n in DEVICES},
        storage=mean_speed(passes["storage"]),
        fits=memory["shards_fit"],
    )
    rows = [asdict(outlook(speeds, n, num_images=num_images, epochs=epochs)) for n in DEVICES]
    rate = rows[0]["images_per_second"] or on_the_same_cores(
        mean_speed(passes["step"]), rows[0]["delivered"]
    )
    report = build_report(
        Outcome(passes=passes),
        [],
        absent={} if on_gpu else {"1, 2, 4 GPUs": NO_GPU},
        machine=describe_machine(Path(__file__).parent, shards=contest.config.shards),
        settings={
            "repeats": PARTS,
            "seconds": contest.seconds,
            "batch_size": parts.preset.training.batch_size,
            "step_images": step_images,
            "preset": parts.preset.name,
            "width": contest.config.width,
            "precision": parts.precision,
            "device": parts.world.device.type,
            "images": num_images,
            "epochs": epochs,
        },
    )
    return report | {
        "expected": {
            "images_per_second": rate,
            "hours_per_epoch": num_images / rate / 3600,
            "hours": epochs * num_images / rate / 3600,
        },
        "outlook": rows,
        "memory": memory,
        "advice": advise_before(
            rows,
            on_gpu=on_gpu,
            gpu_decodes=backend == "dali-gpu",
            raw=parts.dataset.encoding == "raw",
        ),
    }


def _memory(parts: Parts) -> dict[str, Any]:
    """Bytes: of a process on the host and on its GPU, of the shards, what is free; and what the
    decoded images would take (--resident)."""
    device, dataset = parts.world.device, parts.dataset
    free, shards_bytes = psutil.virtual_memory().available, _shards_bytes(parts)
    on_gpu = torch.cuda.mem_get_info(device) if device.type == "cuda" else None
    return {
        "process_bytes": peak_bytes(),  # while it trained and loaded
        "gpu_bytes": on_gpu[1] - on_gpu[0] if on_gpu else None,  # of all that use it
        "shards_bytes": shards_bytes,
        "free_bytes": free,
        "shards_fit": shards_bytes < free,
        "resident_bytes": dataset.num_samples("train") * 3 * SIZE_PX**2,
    }


def _shards_bytes(parts: Parts) -> int:
    return sum(shard.bytes for shard in parts.dataset.split("train").shards)


def advise_before(
    rows: Sequence[dict[str, Any]], *, on_gpu: bool, gpu_decodes: bool, raw: bool
) -> str:
    """What is short where the fewest devices are not fed, and what would help."""
    if not on_gpu:
        first, *others = ((row["devices"], row["delivered"] / row["devices"]) for row in rows)
        more = "".join(f", {n} that take {images_text(speed)} each" for n, speed in others)
        return (
            f"{NO_GPU}; loaders on these cores would feed {first[0]} that takes "
            f"{images_text(first[1])} images/s{more}"
        )
    short = next((row for row in rows if not row["fed"]), None)
    if short is None:
        return f"fed: the step itself is the limit, on up to {rows[-1]['devices']} GPUs"
    decode = "device_decode" if gpu_decodes and not raw else "host_decode"
    cause = "storage_read" if short["short"] == "storage" else decode
    told = remedy(cause, gpu_decodes=gpu_decodes, on_gpu=on_gpu, raw=raw)
    return f"from {short['devices']} GPU{'s' * (short['devices'] > 1)} on, {told}"
