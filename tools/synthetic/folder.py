"""The demo folder: which pictures it holds, whose it is, and how it is filled."""

import json
import multiprocessing
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
from tqdm import tqdm

from pipeline.atomic import write_whole
from pipeline.terminal import bar_options
from tools.synthetic.picture import CLASSES, SPLITS, Picture, choose_form

MADE_BY = "demo_images.json"  # Marks a folder as ours and holds the arguments it was made with.
DRAWING_VERSION = 1  # Raised when the same seed gives other pictures than before.
CHUNK_PICTURES = 8  # Handed to a worker at once.


@dataclass(frozen=True, kw_only=True)
class DemoFolder:
    """An image folder, `path`/{train,val}/<class>/*.JPEG, of made-up photographs."""

    path: Path
    train_per_class: int
    val_per_class: int
    seed: int

    def __post_init__(self) -> None:
        bounds = {"train_per_class": 2, "val_per_class": 1, "seed": 0}
        for name, least in bounds.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, found {getattr(self, name)}")

    def list_pictures(self) -> list[Picture]:
        """Every picture of the folder, by split, class and index."""
        per_class = dict(zip(SPLITS, (self.train_per_class, self.val_per_class), strict=True))
        return [
            Picture(
                split=split, label=label, index=index,
                form=choose_form(split, label, index, num_pictures),
            )
            for split, num_pictures in per_class.items()
            for label in range(len(CLASSES))
            for index in range(num_pictures)
        ]

    def claim(self) -> None:
        """Make the folder ours, or raise ValueError where it already holds something else."""
        arguments = {
            "drawing_version": DRAWING_VERSION, "seed": self.seed,
            "train_per_class": self.train_per_class, "val_per_class": self.val_per_class,
        }
        marker = self.path / MADE_BY
        if marker.is_file():
            try:
                found = json.loads(marker.read_text())
            except ValueError as error:
                raise ValueError(f"{marker} was not made by this command: {error}") from error
            if found != arguments:
                raise ValueError(
                    f"{self.path} holds demo images made with {found}, asked for {arguments}: "
                    "give another folder, or remove this one first"
                )
            return
        if self.path.exists() and not (self.path.is_dir() and _is_empty(self.path)):
            raise ValueError(
                f"{self.path} is not empty and was not made by this command (it has no {MADE_BY}):"
                " give a new or empty folder"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        write_whole(marker, json.dumps(arguments, indent=1).encode() + b"\n")

    def fill(self, num_workers: int) -> None:
        """Draw the pictures that are not there yet, on `num_workers` processes."""
        if num_workers < 1:
            raise ValueError(f"num_workers must be at least 1, found {num_workers}")
        for split in SPLITS:
            for name in CLASSES:
                (self.path / split / name).mkdir(parents=True, exist_ok=True)
        missing = [one for one in self.list_pictures() if not (self.path / one.path).exists()]
        task = partial(_write_picture, self.path, self.seed)
        if num_workers == 1 or len(missing) <= CHUNK_PICTURES:
            _watch(map(task, missing), len(missing))
            return
        with ProcessPoolExecutor(
            num_workers, multiprocessing.get_context("spawn"),
            # OpenCV's own threads would compete with the other workers.
            initializer=cv2.setNumThreads, initargs=(1,),
        ) as pool:  # fmt: skip
            _watch(pool.map(task, missing, chunksize=CHUNK_PICTURES), len(missing))


def _is_empty(folder: Path) -> bool:
    return next(folder.iterdir(), None) is None


def _write_picture(folder: Path, seed: int, picture: Picture) -> None:
    write_whole(folder / picture.path, picture.draw(seed))


def _watch(done: Iterable[None], num_pictures: int) -> None:
    """Wait for all, with a progress bar where a person watches."""
    bar = tqdm(
        done, total=num_pictures, desc="draw", unit="image", disable=None, **bar_options()
    )
    for _ in bar:
        pass
