"""Preparation measured: this project's, with one worker and two, against a bare OpenCV loop."""

import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg

from pipeline.engines import run_tasks
from pipeline.folders import files_below
from pipeline.images import SIZE_PX, ImageError, ImageFormat, fit
from pipeline.originals import FilePlaces, Listing, Names, Source
from pipeline.photographs import decode
from pipeline.plan import Settings
from pipeline.prepare import prepare
from pipeline.shard_maker import Stages
from tools.measure.machine import describe_machine
from tools.measure.report import build_report
from tools.measure.rounds import Contestant, Pass, PassError, run_rounds
from tools.measure.spread import require_repeats

IMAGES_PER_SHARD = 500  # half the default: as many as workers can share out evenly
BARE, CEILING = "opencv-loop", "decode+encode"
HINT = "name a folder of photographs (to try without data: tools/make_demo_images.py DIR)"


@dataclass(frozen=True, kw_only=True)
class PreparationContest:
    """What to measure: all files below `images`, repeated to at least `min_images` a pass."""

    images: Path
    min_images: int
    repeats: int
    workers: tuple[int, ...] = (1, 2)

    def __post_init__(self) -> None:
        require_repeats(self.repeats)
        if self.min_images < 1:
            raise ValueError(f"images must be at least 1, not {self.min_images}")


def run_preparation_contest(
    contest: PreparationContest, report: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Measures; returns the report (`build_report`) with `stages`, shares of the time of one.

    Ours: verification and sums included, as always. opencv-loop: what anyone would write, one
    thread, nothing checked or kept. decode+encode: libjpeg-turbo alone, the ceiling of both. CPU
    time is that of all processes: what else the machine does changes it least.
    ValueError where there is no folder, or no file below it can be decoded.
    """
    paths, listing = _originals(contest)
    report(f"{len(set(paths)):,} photographs, {len(listing):,} images a pass")
    ours = [_Ours(listing, workers) for workers in contest.workers]
    loops = [_Loop(BARE, paths, _bare), _Loop(CEILING, paths, _codec_alone)]
    contestants: list[Contestant] = [*ours, *loops]
    outcome = run_rounds(contestants, contest.repeats, report)
    one, *more = (mine.name for mine in ours)
    result = build_report(
        outcome,
        [(one, BARE), (one, CEILING), (BARE, CEILING), *((many, one) for many in more)],
        absent={},
        machine=describe_machine(Path(__file__).parent, ["opencv-python-headless", "simplejpeg"]),
        settings={
            "images_per_pass": len(listing),
            "distinct_images": len(set(paths)),
            "repeats": contest.repeats,
        },
    )
    of_one = ours[0].stages
    total = sum(of_one.values()) or 1.0
    result["stages"] = {name: round(s / total, 4) for (_, name), s in of_one.items()}
    return result


@dataclass
class _Ours:
    """The real preparation of a listing into a new folder."""

    listing: Listing
    workers: int
    stages: Stages = field(default_factory=Stages)

    @property
    def name(self) -> str:
        return f"fullfeed-{self.workers}-worker{'s' if self.workers > 1 else ''}"

    def run_pass(self) -> Pass:
        source = Source(
            root=Path(), format="folders", classes=("all",), splits={"train": self.listing}
        )
        settings = Settings(images_per_shard=IMAGES_PER_SHARD)
        with main_left_out(), tempfile.TemporaryDirectory(prefix="fullfeed-benchmark-") as folder:
            started, spent = time.perf_counter(), cpu_seconds()
            try:
                outcome = prepare(
                    source,
                    Path(folder),
                    settings,
                    lambda shards: run_tasks(shards, self.workers, lambda done: None),
                )
            except (OSError, ValueError) as error:
                raise PassError(str(error)) from error
            seconds, cpu = time.perf_counter() - started, cpu_seconds() - spent
        self.stages.update(outcome.stages)
        return Pass(num_images=len(self.listing), seconds=seconds, cpu_seconds=cpu)


@dataclass(frozen=True)
class _Loop:
    """A function over every file, in one thread of this process."""

    name: str
    paths: Sequence[Path]
    work: Callable[[bytes], None]

    def run_pass(self) -> Pass:
        cv2.setNumThreads(1)
        started, spent = time.perf_counter(), cpu_seconds()
        for path in self.paths:
            self.work(path.read_bytes())
        seconds, cpu = time.perf_counter() - started, cpu_seconds() - spent
        return Pass(num_images=len(self.paths), seconds=seconds, cpu_seconds=cpu)


@contextmanager
def main_left_out() -> Iterator[None]:
    """Keeps workers spawned in the block from importing this program's main file.

    A benchmark's imports PyTorch: seconds of each worker that prepare_shards.py never takes.
    """
    main = sys.modules["__main__"].__dict__
    file = main.pop("__file__", None)
    try:
        yield
    finally:
        if file is not None:
            main["__file__"] = file


def cpu_seconds() -> float:
    """CPU time of this process and of its children that have ended, the system's included."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in used)


def _bare(data: bytes) -> None:
    """Decode, shorter side to 256 by INTER_AREA, central square, encode at quality 90."""
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert pixels is not None
    height, width = pixels.shape[:2]
    scale = SIZE_PX / min(height, width)
    size = (max(SIZE_PX, round(width * scale)), max(SIZE_PX, round(height * scale)))
    pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    top, left = (size[1] - SIZE_PX) // 2, (size[0] - SIZE_PX) // 2
    square = pixels[top : top + SIZE_PX, left : left + SIZE_PX]
    cv2.imencode(".jpg", square, [cv2.IMWRITE_JPEG_QUALITY, ImageFormat.quality])


def _codec_alone(data: bytes) -> None:
    """libjpeg-turbo's decoding of the original, and its encoding of as many pixels as are kept."""
    pixels = simplejpeg.decode_jpeg(data, "RGB")
    square = np.resize(pixels.reshape(-1)[: SIZE_PX * SIZE_PX * 3], (SIZE_PX, SIZE_PX, 3))
    simplejpeg.encode_jpeg(square, ImageFormat.quality, "RGB", "420", False)


def _originals(contest: PreparationContest) -> tuple[list[Path], Listing]:
    """The files that every contestant can decode, and a listing that repeats them."""
    if not contest.images.is_dir():
        raise ValueError(f"there is no folder {contest.images}; {HINT}")
    found = files_below(contest.images, b".").names
    usable = []
    for name in found:
        path = contest.images / name.decode(errors="surrogateescape")
        data = path.read_bytes()
        try:
            fit(decode(data))
            simplejpeg.decode_jpeg_header(data)
        except (ImageError, ValueError):
            continue  # preparation would quarantine it, the loops would stumble over it
        usable.append(path.resolve())
    if not usable:
        raise ValueError(
            f"{contest.images} holds no JPEG photograph that can be decoded; {HINT}"
        )
    times = -(-contest.min_images // len(usable))
    names = Names.pack(str(path).encode(errors="surrogateescape") for path in usable * times)
    labels = np.zeros(len(names), np.int32)
    return usable * times, Listing(
        names=names, labels=labels, places=FilePlaces(Path("/"), names)
    )
