"""What one run learned, for its page: kernels, predictions, neighbours, errors and mistakes."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.atomic import is_local
from pipeline.images import Pixels
from pipeline.manifest import Dataset, open_dataset
from pipeline.messages import explain
from tools.figures.inline import drawing, photograph
from tools.figures.kernels import Column, kernel_columns
from tools.figures.neighbours import Nearest
from tools.figures.observer import ClassScore, Observer, Tally, best_classes, spread_over_classes
from tools.figures.run_record import RunRecord
from tools.figures.stored_images import StoredImages, pick_sample
from trainer.checkpoint import Checkpoint, require_classes

NUM_EXAMPLES, NUM_QUERIES, NUM_CANDIDATES = 8, 6, 64
NUM_WORST = 12
PHOTO_PX, SMALL_PX = 256, 128
SAMPLE_SEED = 0
SAMPLE_ON_CPU, SAMPLE_ON_GPU = 1_000, 50_000  # images of each split


@dataclass(frozen=True)
class Guess:
    """A class and its probability, 0..1."""

    name: str
    probability: float
    correct: bool


@dataclass(frozen=True)
class Photo:
    """A stored image as a data URL, and its class."""

    picture: str
    name: str


@dataclass(frozen=True)
class Example:
    """A validation photograph and the five classes found most probable."""

    photo: Photo
    guesses: list[Guess]


@dataclass(frozen=True)
class Similar:
    """A validation photograph and the training images nearest to it, nearest first."""

    query: Photo
    nearest: list[Photo]


@dataclass(frozen=True)
class Taken:
    """A validation photograph taken for another class."""

    photo: Photo
    taken_for: str
    probability: float


@dataclass(kw_only=True)
class Chapter:
    """A run's pictures; what cannot be shown is empty, and has a remark."""

    run: RunRecord
    dataset: Dataset | None = None
    columns: list[tuple[Column, str]] = field(default_factory=list)  # with its drawing
    examples: list[Example] = field(default_factory=list)
    similar: list[Similar] = field(default_factory=list)
    worst: list[ClassScore] = field(default_factory=list)
    mistakes: list[Taken] = field(default_factory=list)
    classes: Sequence[str] = ()
    num_seen: int = 0  # validation images
    num_val: int = 0
    num_compared: int = 0  # training images
    num_train: int = 0
    top1_error: float = 0.0  # of those seen
    top5_error: float = 0.0
    remarks: list[str] = field(default_factory=list)


def default_sample(device: torch.device) -> int:
    """How many images of each split are looked at where nobody says: half a minute's worth."""
    return SAMPLE_ON_GPU if device.type == "cuda" else SAMPLE_ON_CPU


def write_chapter(run: RunRecord, device: torch.device, sample: int) -> Chapter:
    """Shows a run's network at most `sample` images of each split, on `device`."""
    chapter = Chapter(run=run)
    chapter.dataset = _open_shards(run, chapter.remarks)
    if run.checkpoint is None:
        return chapter
    if not all(tensor.isfinite().all() for tensor in run.checkpoint.tested.values()):
        chapter.remarks.append("The network cannot be shown: its weights are not all numbers.")
        return chapter
    network = run.checkpoint.config["preset"]["network"]
    weights = run.checkpoint.tested["conv1.weight"]
    columns = kernel_columns(weights, network["columns"])
    chapter.columns = [(column, drawing(column.sheet())) for column in columns]
    if chapter.dataset is None or not _fits(run.checkpoint, chapter.dataset, chapter.remarks):
        return chapter
    try:
        observer = Observer(run.checkpoint, device)
        _observe(chapter, chapter.dataset, observer, sample)
    except (ValueError, OSError) as error:
        chapter.remarks.append(f"Photographs cannot be shown: {explain(error)}.")
    except torch.OutOfMemoryError:
        chapter.remarks.append(
            "Not all photographs can be shown: the GPU has too little memory left; --device cpu "
            "does without it."
        )
    return chapter


def _open_shards(run: RunRecord, remarks: list[str]) -> Dataset | None:
    if run.shards is None:
        return None
    if not is_local(run.shards):
        remarks.append(
            f"The shards lie at {run.shards}; to see photographs, give a folder with --shards."
        )
        return None
    try:
        return open_dataset(run.shards, check_sizes=False)  # what is left of them is shown
    except (ValueError, OSError) as error:
        remarks.append(f"The shards are gone, and photographs with them: {explain(error)}.")
        return None


def _fits(checkpoint: Checkpoint, dataset: Dataset, remarks: list[str]) -> bool:
    """Whether the network's classes are those of the shards."""
    try:
        require_classes(checkpoint, dataset.classes, str(dataset.folder))
    except ValueError as error:
        remarks.append(f"Photographs cannot be shown: {error}.")
        return False
    trained_on = checkpoint.config.get("fingerprints") or {}
    there = {name: split.fingerprint for name, split in dataset.splits.items()}
    changed = [name for name, value in trained_on.items() if there.get(name) != value]
    if changed:
        remarks.append(
            f"The shards in {dataset.folder} are not those the run had ({', '.join(changed)} "
            f"differ); what follows is of the shards that are there now."
        )
    return True


def _observe(chapter: Chapter, dataset: Dataset, observer: Observer, sample: int) -> None:
    chapter.classes = dataset.classes
    val, train = StoredImages(dataset, "val"), StoredImages(dataset, "train")
    try:
        chapter.num_val, chapter.num_train = len(val), len(train)
        queries = _validate(chapter, val, observer, sample)
        if len(queries):
            _compare(chapter, train, queries, observer, sample)
    finally:
        val.close()
        train.close()
    for split, images in (("val", val), ("train", train)):
        for reason, count in images.missing.items():
            chapter.remarks.append(f"{count:,} {split} images cannot be read: {reason}.")


def _validate(
    chapter: Chapter, val: StoredImages, observer: Observer, sample: int
) -> NDArray[np.float32]:
    """Fills in what validation images show; returns the features of the queries."""
    rows = pick_sample(len(val), sample, SAMPLE_SEED)
    shuffled = np.random.Generator(np.random.Philox(SAMPLE_SEED)).permutation(rows)
    order = spread_over_classes(shuffled, val.index["label"][shuffled], NUM_CANDIDATES)
    kept: dict[int, tuple[Pixels, NDArray[np.float32], NDArray[np.float32]]] = {}
    candidates, tally = set(order), Tally()
    for images in val.batches(rows):
        seen = observer.see(images.pixels)
        tally.add(images, seen.probabilities)
        for i, row in enumerate(images.rows):
            if row in candidates:
                kept[int(row)] = images.pixels[i], seen.probabilities[i], seen.features[i]
    chosen = [row for row in order if row in kept][:NUM_EXAMPLES]
    for row in chosen:
        label = int(val.index["label"][row])
        chapter.examples.append(_example(chapter, label, *kept[row][:2]))
    _count(chapter, tally, val)
    queries = chosen[:NUM_QUERIES]
    chapter.similar = [Similar(chapter.examples[i].photo, []) for i in range(len(queries))]
    features = [kept[row][2] for row in queries]
    return np.stack(features) if features else np.empty((0, 0), np.float32)


def _example(
    chapter: Chapter, label: int, pixels: Pixels, probabilities: NDArray[np.float32]
) -> Example:
    guesses = [
        Guess(chapter.classes[best], float(probabilities[best]), best == label)
        for best in best_classes(probabilities[None])[0].tolist()
    ]
    return Example(Photo(photograph(pixels, PHOTO_PX), chapter.classes[label]), guesses)


def _count(chapter: Chapter, tally: Tally, val: StoredImages) -> None:
    chapter.num_seen = tally.num_images
    if not tally.num_images:
        return
    chapter.top1_error = tally.num_top1 / tally.num_images
    chapter.top5_error = tally.num_top5 / tally.num_images
    chapter.worst = tally.worst_classes(NUM_WORST)
    mistakes = tally.mistakes()
    pictures = val.read(np.array([mistake.row for mistake in mistakes], np.int64))
    chapter.mistakes = [
        Taken(
            Photo(photograph(pictures[one.row], PHOTO_PX), chapter.classes[one.label]),
            chapter.classes[one.taken_for],
            one.probability,
        )
        for one in mistakes
        if one.row in pictures
    ]


def _compare(
    chapter: Chapter, train: StoredImages, queries: NDArray[np.float32], observer: Observer,
    sample: int,
) -> None:  # fmt: skip
    """Finds the training images nearest to each query."""
    nearest = Nearest(queries)
    for images in train.batches(pick_sample(len(train), sample, SAMPLE_SEED)):
        nearest.add(images.rows, observer.see(images.pixels).features)
        chapter.num_compared += len(images.rows)
    pictures = train.read(np.unique(nearest.rows))
    for similar, rows in zip(chapter.similar, nearest.rows.tolist(), strict=True):
        similar.nearest.extend(
            Photo(
                photograph(pictures[row], SMALL_PX), chapter.classes[train.index["label"][row]]
            )
            for row in rows
            if row in pictures
        )
