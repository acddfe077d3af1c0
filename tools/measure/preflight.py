"""Half a minute that says what a training is to expect of this machine."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from pipeline.atomic import is_local
from pipeline.cores import available_cores
from pipeline.images import SIZE_PX
from pipeline.loader import Batch, Loader
from pipeline.open_shards import LocalShards
from pipeline.prefetcher import READ_AHEAD
from pipeline.reader import Reader
from tools.measure.attribution import ADVICE
from tools.measure.contestants import NO_GPU
from tools.measure.machine import describe_machine
from tools.measure.memory import anonymous_bytes, evict
from tools.measure.outlook import DEVICES, Speeds, on_the_same_cores, outlook, share_of_cores
from tools.measure.plots import images_text
from tools.measure.report import build_report
from tools.measure.rounds import Outcome, Pass
from trainer.ceiling import WARM_STEPS, copy_of, settle, time_steps
from trainer.config import RunConfig, find_device
from trainer.loop import Trainer
from trainer.parts import Parts, plan_parts
from trainer.world import World

SHARES = {"storage": 0.1, "loader": 0.12, "step": 0.25}  # of the time; opening takes the rest
PARTS = 3  # of each measurement, whose spread is told
FIRST_IMAGES = 4  # of the step on a CPU that tells how many fit in the time
READ_IMAGES = 64
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
    passes["storage"] = _read(parts, seconds["storage"])
    report(_told("storage, files not in memory", passes["storage"]))
    for processes in DEVICES:
        name = loader_name(processes)
        passes[name] = _load(parts, processes, seconds["loader"])
        report(_told(name, passes[name]))
    passes["step"], step_images = _step(parts, seconds["step"])
    report(_told(f"step of {step_images:,} images", passes["step"]))
    return _whole(contest, parts, passes, step_images)


def loader_name(processes: int) -> str:
    """What the loader of one of so many processes is called."""
    return "loader" if processes == 1 else f"loader, 1 of {processes}"


def _told(name: str, passes: Sequence[Pass]) -> str:
    return f"{name}: {images_text(_speed(passes))} images/s"


def _speed(passes: Sequence[Pass]) -> float:
    return sum(done.num_images for done in passes) / sum(done.seconds for done in passes)


def _read(parts: Parts, seconds: float) -> list[Pass]:
    """Images read at random, from files that are dropped from the page cache before each part."""
    index, shards = parts.dataset.index("train"), parts.dataset.split("train").shards
    paths = [parts.config.shards / shard.name for shard in shards]
    rows = np.random.default_rng(parts.config.seed).permutation(len(index))
    runs = [rows[i : i + READ_IMAGES] for i in range(0, len(rows), READ_IMAGES)]
    reader = Reader(LocalShards(paths), index, max_rows=READ_IMAGES, depth=1, num_threads=4)
    passes = []
    try:
        for part in np.array_split(np.arange(len(runs)), min(PARTS, len(runs))):
            evict(paths)
            num_images, start = 0, time.perf_counter()
            for number in part:
                reader.request(runs[number])
                num_images += len(reader.take().sizes)
                reader.release()
                if time.perf_counter() - start > seconds / PARTS:
                    break
            passes.append(Pass(num_images=num_images, seconds=time.perf_counter() - start))
    finally:
        reader.close()
    return passes


def _load(parts: Parts, processes: int, seconds: float) -> list[Pass]:
    """What the loader of one of so many processes delivers on its share of the cores."""
    threads, share = share_of_cores(available_cores(), processes)
    config = parts.loader_config("train", training=True)
    config = replace(config, resident="none", calibrate=False, threads=threads)
    passes = []
    with Loader(config) as loader:
        batches = chain.from_iterable(repeat(loader))
        for _ in islice(batches, config.prefetch + READ_AHEAD):  # more than it had ready
            pass
        for _ in range(PARTS):
            num_images, start = 0, time.perf_counter()
            while not num_images or time.perf_counter() - start < seconds / PARTS:
                num_images += len(next(batches).labels)
            settle(parts.world.device)
            spent = (time.perf_counter() - start) / share
            passes.append(Pass(num_images=num_images, seconds=spent))
    return passes


def _step(parts: Parts, seconds: float) -> tuple[list[Pass], int]:
    """The step alone, and of how many images: on a CPU of no more than there is time for."""
    config = replace(parts.loader_config("train", training=True), resident="none")
    with Loader(config) as loader:
        batch = copy_of(next(iter(loader)))
        trainer = parts.trainer(parts.model(), len(loader))
    trainer.model.train()
    if trainer.device.type == "cpu":
        few = first_of(batch, FIRST_IMAGES)
        fitting = len(few.labels) * seconds / PARTS / _seconds(trainer, few)
        batch = first_of(batch, max(FIRST_IMAGES, 1 << int(fitting).bit_length() >> 1))
    num_steps = max(1, int(seconds / PARTS / _seconds(trainer, batch)))
    size = len(batch.labels)
    times = [time_steps(trainer, repeat(batch, num_steps)) for _ in range(PARTS)]
    return [Pass(num_images=num_steps * size, seconds=each.seconds) for each in times], size


def _seconds(trainer: Trainer, batch: Batch) -> float:
    """Of a step, after some that do not count."""
    time_steps(trainer, repeat(batch, WARM_STEPS[trainer.device.type]))
    return time_steps(trainer, [batch]).seconds


def first_of(batch: Batch, num_images: int) -> Batch:
    """Its first images."""
    return Batch(
        images=batch.images[:num_images],
        labels=batch.labels[:num_images],
        ids=batch.ids[:num_images],
        crop=batch.crop[:num_images],
    )


def _whole(
    contest: Preflight, parts: Parts, passes: dict[str, list[Pass]], step_images: int
) -> dict[str, Any]:
    """`build_report`'s form with expected, of the training as it is on this machine, outlook, of
    1, 2 and 4 GPUs, memory, and advice."""
    num_images, epochs = parts.dataset.num_samples("train"), parts.preset.training.epochs
    memory, on_gpu = _memory(parts), parts.world.device.type == "cuda"
    speeds = Speeds(
        step=_speed(passes["step"]) if on_gpu else None,
        loader={n: _speed(passes[loader_name(n)]) for n in DEVICES},
        storage=_speed(passes["storage"]),
        fits=memory["shards_fit"],
    )
    rows = [asdict(outlook(speeds, n, num_images=num_images, epochs=epochs)) for n in DEVICES]
    rate = rows[0]["images_per_second"] or on_the_same_cores(
        _speed(passes["step"]), rows[0]["delivered"]
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
        "advice": _advice(rows, on_gpu=on_gpu, gpu_decodes=contest.config.backend == "dali-gpu"),
    }


def _memory(parts: Parts) -> dict[str, Any]:
    """Bytes: of a process on the host and on its GPU, of the shards, what is free; and what the
    decoded images would take (--resident)."""
    device, dataset = parts.world.device, parts.dataset
    free, shards_bytes = psutil.virtual_memory().available, _shards_bytes(parts)
    on_gpu = torch.cuda.mem_get_info(device) if device.type == "cuda" else None
    return {
        "process_bytes": anonymous_bytes(),
        "gpu_bytes": on_gpu[1] - on_gpu[0] if on_gpu else None,
        "shards_bytes": shards_bytes,
        "free_bytes": free,
        "shards_fit": shards_bytes < free,
        "resident_bytes": dataset.num_samples("train") * 3 * SIZE_PX**2,
    }


def _shards_bytes(parts: Parts) -> int:
    return sum(shard.bytes for shard in parts.dataset.split("train").shards)


def _advice(rows: Sequence[dict[str, Any]], *, on_gpu: bool, gpu_decodes: bool) -> str:
    """What is short where the fewest devices are not fed."""
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
    decode = "device_decode" if gpu_decodes else "host_decode"
    told = ADVICE["storage_read" if short["short"] == "storage" else decode]
    return f"from {short['devices']} GPU{'s' * (short['devices'] > 1)} on, {told}"
