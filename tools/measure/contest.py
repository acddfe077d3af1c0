"""A loader measurement: who takes part, on which images, and what comes of it."""

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.backends import RenderSettings, open_first
from pipeline.manifest import open_dataset
from pipeline.moments import read_statistics
from tools.measure.contestants import PEERS, Entrant, our_entrant
from tools.measure.feed import FeedSettings
from tools.measure.host import Host
from tools.measure.machine import describe_machine
from tools.measure.repeat import repeat_split
from tools.measure.report import build_report
from tools.measure.rounds import run_rounds
from tools.measure.spread import require_repeats

SEED = 0


@dataclass(frozen=True, kw_only=True)
class LoaderContest:
    """What to measure.

    backends: of this project, "auto" among them. peers: names in PEERS. num_threads: threads or
    worker processes of each. min_images: of a pass; a smaller split is repeated up to it.
    """

    shards: Path
    backends: tuple[str, ...]
    peers: tuple[str, ...]
    num_threads: int
    batch_size: int
    repeats: int
    min_images: int

    def __post_init__(self) -> None:
        require_repeats(self.repeats)
        assert self.backends and set(self.peers) <= set(PEERS)
        for name, value in {"threads": self.num_threads, "batch size": self.batch_size}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        least = self.num_threads * self.batch_size
        if self.min_images < least:
            raise ValueError(
                f"images must be at least {least}, not {self.min_images}: a batch of "
                f"{self.batch_size} for each of {self.num_threads} threads"
            )


def run_loader_contest(
    contest: LoaderContest, report: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Measures; returns the report (`build_report`). report: called with a line on each step.

    ValueError where the shards cannot be used. Peers that are not installed or fail are named in
    the report with the reason, and the rest goes on.
    """
    read_statistics(contest.shards, open_dataset(contest.shards).fingerprint("train"))
    ours, absent = _our_entrants(contest)
    peers = [PEERS[name] for name in dict.fromkeys(contest.peers)]
    present: list[Entrant] = []
    for entrant in (*ours, *peers):
        if entrant.lack is None:
            present.append(entrant)
        else:
            absent[entrant.name] = entrant.lack
            report(f"{entrant.name}: {entrant.lack}")
    with ExitStack() as stack:
        folder = tempfile.TemporaryDirectory(prefix="fullfeed-benchmark-")
        scratch = Path(stack.enter_context(folder))
        shards = _long_enough(contest, scratch, report)
        hosts = [
            stack.enter_context(Host(entrant, _settings(contest, shards, scratch, entrant)))
            for entrant in present
        ]
        outcome = run_rounds(hosts, contest.repeats, report)
        num_images = open_dataset(shards).num_samples("train")
    return build_report(
        outcome,
        [(mine.name, peer.name) for mine in ours for peer in peers],
        absent=absent,
        machine=describe_machine(
            Path(__file__).parent, [name for entrant in present for name in entrant.packages]
        ),
        settings={
            "threads": contest.num_threads,
            "batch_size": contest.batch_size,
            "repeats": contest.repeats,
            "images_per_pass": num_images // contest.batch_size * contest.batch_size,
            "distinct_images": open_dataset(contest.shards).num_samples("train"),
            "encoding": open_dataset(contest.shards).encoding,
            "seed": SEED,
        },
    )


def _our_entrants(contest: LoaderContest) -> tuple[list[Entrant], dict[str, str]]:
    """This project's entrants, each once, and the backends that cannot work here with reasons."""
    import torch

    on_gpu = torch.cuda.is_available()
    encoding = open_dataset(contest.shards).encoding

    def settings_of(backend: str) -> RenderSettings:
        return RenderSettings(
            encoding=encoding,
            max_rows=1,
            num_threads=1,
            depth=1,
            full=False,
            dtype=np.float16 if backend == "dali-gpu" else np.float32,
            device=torch.cuda.current_device() if backend == "dali-gpu" else None,
        )

    names: dict[str, None] = {}
    absent: dict[str, str] = {}
    for asked in contest.backends:
        try:
            opened = open_first(asked, settings_of, on_gpu=on_gpu, encoding=encoding)
        except ValueError as error:
            absent[asked] = str(error)
        else:
            opened.backend.close()
            names[opened.name] = None
    return [our_entrant(name) for name in names], absent


def _long_enough(contest: LoaderContest, scratch: Path, report: Callable[[str], None]) -> Path:
    """The shards, or a folder in `scratch` that repeats them up to the images of a pass."""
    dataset = open_dataset(contest.shards)
    if contest.peers and dataset.encoding != "jpeg":
        raise ValueError(
            f"peers read JPEG shards, {contest.shards} holds {dataset.encoding} ones; leave out "
            "--against, or prepare with --encoding jpeg"
        )
    num_images = dataset.num_samples("train")
    if num_images >= contest.min_images:
        return contest.shards
    target = scratch / "shards"
    target.mkdir()
    repeated = repeat_split(contest.shards, target, contest.min_images)
    report(f"{num_images:,} images, repeated to {repeated.num_samples('train'):,}")
    return target


def _settings(
    contest: LoaderContest, shards: Path, scratch: Path, entrant: Entrant
) -> FeedSettings:
    own = scratch / f"of-{entrant.name}"
    own.mkdir()
    return FeedSettings(
        shards=shards,
        batch_size=contest.batch_size,
        num_threads=contest.num_threads,
        seed=SEED,
        scratch=own,
    )
