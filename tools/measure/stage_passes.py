"""Each stage of a training by itself, in a few seconds: storage, loaders, the step."""

import time
from dataclasses import replace
from itertools import chain, islice, repeat

import numpy as np

from pipeline.cores import available_cores
from pipeline.loader import Batch, Loader
from pipeline.open_shards import LocalShards
from pipeline.prefetcher import READ_AHEAD
from pipeline.reader import Reader
from tools.measure.memory import evict
from tools.measure.outlook import share_of_cores
from tools.measure.rounds import Pass
from trainer.ceiling import WARM_STEPS, copy_of, settle, time_steps
from trainer.loop import Trainer
from trainer.parts import Parts

PARTS = 3  # of each measurement, whose spread is told
FIRST_IMAGES = 4  # of the step on a CPU that tells how many fit in the time
FIRST_LOADED = 8  # of the batches that tell how many images fit in the time
READ_IMAGES = 64


def mean_speed(passes: list[Pass]) -> float:
    """Images per second, of all together."""
    return sum(done.num_images for done in passes) / sum(done.seconds for done in passes)


def read_passes(parts: Parts, seconds: float) -> list[Pass]:
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


def load_batch_size(parts: Parts, seconds: float) -> int:
    """Images of a batch of which so many come in the time as `load_passes` takes at least.

    The run's own where they are fast enough; found out with few images a batch.
    """
    whole, prefetch = parts.preset.training.batch_size, parts.config.prefetch
    few = min(FIRST_LOADED, whole)
    speed = mean_speed(load_passes(parts, 1, few, 0.0)[0])
    return _rounded(speed * seconds / (prefetch + READ_AHEAD + PARTS), few, whole)


def load_passes(
    parts: Parts, processes: int, batch_size: int, seconds: float
) -> tuple[list[Pass], str]:
    """What the loader of one of so many processes delivers on its share of the cores.

    With the name of the backend that it chose.
    """
    threads, share = share_of_cores(available_cores(), processes)
    config = replace(
        parts.loader_config("train", training=True),
        resident="none", calibrate=False, threads=threads, batch_size=batch_size,
    )  # fmt: skip
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
    return passes, loader.backend


def step_passes(parts: Parts, seconds: float, loaded: int) -> tuple[list[Pass], int]:
    """The step alone, and of how many images: on a CPU of no more than there is time for.

    loaded: how many a CPU may load for it.
    """
    on_cpu, whole = parts.world.device.type == "cpu", parts.preset.training.batch_size
    config = replace(
        parts.loader_config("train", training=True),
        resident="none", batch_size=min(loaded, whole) if on_cpu else whole,
    )  # fmt: skip
    with Loader(config) as loader:
        batch = copy_of(next(iter(loader)))
    trainer = parts.trainer(parts.model(), parts.dataset.num_samples("train") // whole)
    trainer.model.train()
    if on_cpu:
        few = first_of(batch, FIRST_IMAGES)
        per_image = _step_seconds(trainer, few) / len(few.labels)
        tries = WARM_STEPS["cpu"] + 1  # of _step_seconds
        fitting = seconds / per_image / (tries + PARTS)
        batch = first_of(batch, _rounded(fitting, len(few.labels), len(batch.labels)))
    size = len(batch.labels)
    num_steps = max(1, int(seconds / PARTS / _step_seconds(trainer, batch)))
    times = [time_steps(trainer, repeat(batch, num_steps)) for _ in range(PARTS)]
    return [Pass(num_images=num_steps * size, seconds=each.seconds) for each in times], size


def _step_seconds(trainer: Trainer, batch: Batch) -> float:
    """Of a step, after some that do not count."""
    time_steps(trainer, repeat(batch, WARM_STEPS[trainer.device.type]))
    return time_steps(trainer, [batch]).seconds


def _rounded(fitting: float, least: int, most: int) -> int:
    """`most` where so many fit, else the next lower power of two, but not under `least`."""
    return most if fitting >= most else max(least, 1 << int(fitting).bit_length() >> 1)


def first_of(batch: Batch, num_images: int) -> Batch:
    """Its first images."""
    return batch.each(lambda rows: rows[:num_images])
