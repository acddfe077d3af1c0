"""A loader measurement: who takes part, on which images, and what comes of it."""

import itertools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
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
    raw_shards: the same photographs as raw shards, measured as well. cold: files are dropped from
    the page cache before each pass.
    """

    shards: Path
    backends: tuple[str, ...]
    peers: tuple[str, ...]
    num_threads: int
    batch_size: int
    repeats: int
    min_images: int
    raw_shards: Path | None = None
    cold: bool = False

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
    """Measures; returns the report (`build_report`) with `differs`: of each that came through, how
    what it delivers differs from the reference's, "" where it does not.

    report: called with a line on each step. ValueError where the shards cannot be used. Peers that
    are not installed or fail are named in the report with the reason, and the rest goes on.
    """
    folders = _folders(contest)
    ours, absent = _our_entrants(contest.backends, folders)
    peers = _peers(contest.peers, folders, absent)
    present = _openable((*ours, *peers), absent, report)
    with ExitStack() as stack:
        folder = tempfile.TemporaryDirectory(prefix="fullfeed-benchmark-")
        scratch = Path(stack.enter_context(folder))
        shards = {
            encoding: _long_enough(contest, folder, scratch / encoding, report)
            for encoding, folder in folders.items()
        }
        hosts = [
            stack.enter_context(
                Host(entrant, _settings(contest, shards[entrant.encoding], scratch, entrant))
            )
            for entrant in present
        ]
        outcome = run_rounds(hosts, contest.repeats, report)
        num_images = open_dataset(next(iter(shards.values()))).num_samples("train")
    packages = [name for entrant in present for name in entrant.packages]
    found = build_report(
        outcome,
        _pairs(ours, peers),
        absent=absent,
        machine=describe_machine(Path(__file__).parent, packages, shards=contest.shards),
        settings=_reported(contest, folders, num_images),
    )
    came_through = [each for each in present if each.label in outcome.passes]
    return found | {"differs": {each.label: each.differs for each in came_through}}


def _openable(
    entrants: Sequence[Entrant], absent: dict[str, str], report: Callable[[str], None]
) -> list[Entrant]:
    """Those that lack nothing here; the others are told, and noted in `absent` with the reason."""
    present = []
    for entrant in entrants:
        if (lack := entrant.lack) is None:
            present.append(entrant)
        else:
            absent[entrant.label] = lack
            report(f"{entrant.label}: {lack}")
    return present


def _reported(
    contest: LoaderContest, folders: Mapping[str, Path], num_images: int
) -> dict[str, Any]:
    """The report's settings. num_images: of the split that is measured, repeated or not."""
    return {
        "threads": contest.num_threads,
        "batch_size": contest.batch_size,
        "repeats": contest.repeats,
        "images_per_pass": num_images // contest.batch_size * contest.batch_size,
        "distinct_images": open_dataset(contest.shards).num_samples("train"),
        "encodings": list(folders),
        "cold": contest.cold,
        "seed": SEED,
    }


def _folders(contest: LoaderContest) -> dict[str, Path]:
    """Encoding to the shard folder that has it; ValueError where they cannot be used."""
    folders = {open_dataset(contest.shards).encoding: contest.shards}
    if contest.raw_shards is not None:
        found = open_dataset(contest.raw_shards).encoding
        if found != "raw" or "raw" in folders:
            raise ValueError(
                f"raw shards are compared with JPEG ones: {contest.raw_shards} holds {found} "
                f"ones, {contest.shards} {' '.join(folders)} ones"
            )
        folders["raw"] = contest.raw_shards
    for folder in folders.values():
        dataset = open_dataset(folder)
        dataset.require_images("train")
        read_statistics(folder, dataset.fingerprint("train"))
    return folders


def _our_entrants(
    backends: Sequence[str], folders: Mapping[str, Path]
) -> tuple[list[Entrant], dict[str, str]]:
    """This project's entrants, each once, and the backends that cannot work here with reasons."""
    names: dict[tuple[str, str], None] = {}
    absent: dict[str, str] = {}
    for encoding, asked in itertools.product(folders, backends):
        try:
            names[_working_backend(asked, encoding), encoding] = None
        except ValueError as error:
            absent[asked if encoding == "jpeg" else f"{asked}-{encoding}"] = str(error)
    return [replace(our_entrant(name), encoding=encoding) for name, encoding in names], absent


def _working_backend(asked: str, encoding: str) -> str:
    """The name of the backend that is opened when `asked` is; ValueError where none works."""
    import torch

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

    on_gpu = torch.cuda.is_available()
    opened = open_first(asked, settings_of, on_gpu=on_gpu, encoding=encoding)
    opened.backend.close()
    return opened.name


def _peers(
    names: Sequence[str], folders: Mapping[str, Path], absent: dict[str, str]
) -> list[Entrant]:
    """Every peer once for each encoding it reads; one that reads none is told in `absent`."""
    peers = []
    for name in dict.fromkeys(names):
        found = [each for each in folders if each in PEERS[name].encodings]
        peers += [replace(PEERS[name], encoding=encoding) for encoding in found]
        if not found:
            absent[name] = f"reads no {' or '.join(folders)} shards"
    return peers


def _pairs(ours: Sequence[Entrant], peers: Sequence[Entrant]) -> list[tuple[str, str]]:
    """Whose ratio is taken: ours to every peer of the same encoding, our raw to our JPEG."""
    pairs = [
        (mine.label, peer.label)
        for mine, peer in itertools.product(ours, peers)
        if mine.encoding == peer.encoding
    ]
    return pairs + [
        (mine.label, other.label)
        for mine, other in itertools.product(ours, ours)
        if mine.name == other.name and (mine.encoding, other.encoding) == ("raw", "jpeg")
    ]


def _long_enough(
    contest: LoaderContest, shards: Path, target: Path, report: Callable[[str], None]
) -> Path:
    """The shards, or `target`, made to repeat them up to the images of a pass."""
    num_images = open_dataset(shards).num_samples("train")
    if num_images >= contest.min_images:
        return shards
    target.mkdir()
    # A copy has pages of its own; links would be warm after the first repeat of a cold pass.
    repeated = repeat_split(shards, target, contest.min_images, copies=contest.cold)
    report(f"{num_images:,} images, repeated to {repeated.num_samples('train'):,}")
    return target


def _settings(
    contest: LoaderContest, shards: Path, scratch: Path, entrant: Entrant
) -> FeedSettings:
    own = scratch / f"of-{entrant.label}"
    own.mkdir()
    return FeedSettings(
        shards=shards,
        batch_size=contest.batch_size,
        num_threads=contest.num_threads,
        seed=SEED,
        scratch=own,
        cold=contest.cold,
    )
