"""What the demo images promise: their bytes, their oddities, and classes that differ in shape."""

import hashlib
import io
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner, Result
from PIL import Image, UnidentifiedImageError

from tools.make_demo_images import main
from tools.synthetic.folder import MADE_BY, DemoFolder
from tools.synthetic.photograph import MAX_SIDE_PX, MIN_SIDE_PX
from tools.synthetic.picture import CLASSES

TRAIN_PER_CLASS, VAL_PER_CLASS = 14, 6
FEW = ["--train-per-class", "2", "--val-per-class", "1"]
ENTRY_FILE = Path(__file__).parents[2] / "tools" / "make_demo_images.py"


@dataclass(frozen=True, kw_only=True)
class Colours:
    """What is left of images without their shapes."""

    pixels: npt.NDArray[np.float64]  # (images, 1000, RGB)
    labels: npt.NDArray[np.int64]  # (images,)
    is_train: npt.NDArray[np.bool_]  # (images,)


def means_and_deviations(pixels: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(images, pixels, RGB) -> (images, 6), each column of unit deviation."""
    found = np.concatenate([pixels.mean(axis=1), pixels.std(axis=1)], axis=1)
    scaled: npt.NDArray[np.float64] = found / found.std(axis=0)
    return scaled


def histogram(pixels: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(images, pixels, RGB) -> (images, 64): square roots of counts, 4 bins per channel."""
    cells = (pixels // 64).astype(int) @ np.array([16, 4, 1])
    return np.sqrt(np.stack([np.bincount(row, minlength=64) for row in cells]))


def nearest_mean_error(features: npt.NDArray[np.float64], colours: Colours) -> float:
    """Share of val images that lie nearest to another class's mean over train."""
    train, val = features[colours.is_train], features[~colours.is_train]
    labels = colours.labels[colours.is_train]
    means = np.stack([train[labels == label].mean(axis=0) for label in range(len(CLASSES))])
    nearest = np.linalg.norm(val[:, np.newaxis] - means, axis=2).argmin(axis=1)
    return float(np.mean(nearest != colours.labels[~colours.is_train]))


def read_bytes(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def open_or_none(data: bytes) -> Image.Image | None:
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except (UnidentifiedImageError, OSError):
        return None
    return image


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Every file of a folder of 10 x (14 + 6) images, by its path, drawn by two workers."""
    out = tmp_path_factory.mktemp("demo") / "images"
    result = run(
        out, "--train-per-class", str(TRAIN_PER_CLASS), "--val-per-class", str(VAL_PER_CLASS),
        "--workers", "2",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert f"200 images of 10 classes in {out}" in result.output
    assert f"tools/prepare_shards.py {out} --out shards" in result.output
    return {path: data for path, data in read_bytes(out).items() if path.endswith(".JPEG")}


@pytest.fixture(scope="module")
def images(files: dict[str, bytes]) -> dict[str, Image.Image]:
    """The images of `files` that can be read."""
    opened = {path: open_or_none(data) for path, data in files.items()}
    return {path: image for path, image in opened.items() if image is not None}


@pytest.fixture(scope="module")
def colours(images: dict[str, Image.Image]) -> Colours:
    """1,000 pixels of each RGB image, spread over all of it; grey ones hold no colour to judge."""
    kept = [path for path, image in images.items() if image.mode == "RGB"]
    pixels = [np.asarray(images[path]).reshape(-1, 3) for path in kept]
    return Colours(
        pixels=np.stack(
            [one[np.linspace(0, len(one) - 1, 1000).astype(int)] for one in pixels]
        ).astype(np.float64),
        labels=np.array([CLASSES.index(path.split("/")[1]) for path in kept]),
        is_train=np.array([path.startswith("train/") for path in kept]),
    )


def test_every_class_has_its_number_of_files(files: dict[str, bytes]) -> None:
    found = Counter(tuple(path.split("/")[:2]) for path in files)
    wanted = {("train", name): TRAIN_PER_CLASS for name in CLASSES}
    assert found == wanted | {("val", name): VAL_PER_CLASS for name in CLASSES}


def test_two_files_are_broken_one_cut_short_and_one_no_image(
    files: dict[str, bytes], images: dict[str, Image.Image]
) -> None:
    broken = sorted(set(files) - set(images))
    assert len(broken) == 2
    assert all(path.startswith("train/") for path in broken)
    is_jpeg = [files[path].startswith(b"\xff\xd8") for path in broken]
    assert sorted(is_jpeg) == [False, True]


@pytest.mark.parametrize("split", ["train", "val"])
def test_each_split_holds_grey_and_cmyk_jpegs_and_png_by_another_name(
    images: dict[str, Image.Image], split: str
) -> None:
    kinds = Counter(
        (image.format, image.mode) for path, image in images.items() if path.startswith(split)
    )
    assert kinds.keys() == {("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "RGB")}
    assert kinds["JPEG", "RGB"] > sum(kinds.values()) / 2


@pytest.mark.parametrize("describe", [means_and_deviations, histogram])
def test_colour_does_not_tell_the_class(
    colours: Colours, describe: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]
) -> None:
    """Chance is an error of 0.9; a tint per class, which it must notice, well under."""
    assert nearest_mean_error(describe(colours.pixels), colours) >= 0.7
    hue = colours.labels * 2 * np.pi / len(CLASSES)
    tint = 120 * np.stack([np.cos(hue), np.sin(hue), -np.cos(hue)], axis=1)[:, np.newaxis]
    tinted = np.clip(colours.pixels + tint, 0, 255)
    assert nearest_mean_error(describe(tinted), colours) < 0.6


def test_colours_vary_as_in_photographs(colours: Colours) -> None:
    """Brightness, then blue against yellow, then green against magenta, each far apart."""
    covariance = np.cov(colours.pixels.reshape(-1, 3), rowvar=False)
    variances, axes = np.linalg.eigh(covariance)
    green_magenta, blue_yellow, brightness = np.sqrt(variances)
    assert 80 < brightness < 140
    assert 2 < brightness / blue_yellow < 5
    assert 1.5 < blue_yellow / green_magenta < 4
    expected = np.array([[1, -2, 1], [1, 0, -1], [1, 1, 1]]) / np.sqrt([[6], [2], [3]])
    assert np.all(np.abs(np.sum(axes.T * expected, axis=1)) > 0.9)


def test_written_sizes_are_in_bounds(images: dict[str, Image.Image]) -> None:
    sides = [side for image in images.values() for side in image.size]
    assert MIN_SIDE_PX <= min(sides) and max(sides) <= MAX_SIDE_PX


def test_same_seed_same_bytes_for_any_number_of_workers(
    files: dict[str, bytes], tmp_path: Path
) -> None:
    """Each image depends on its own place alone: here, in a folder of fewer images."""
    assert run(tmp_path, *FEW, "--workers", "1").exit_code == 0
    again = read_bytes(tmp_path)
    # The last train images of two classes are broken in one folder and whole in the other.
    same = [path for path in again if path in files and "00001" not in path]
    assert len(same) == 20
    assert all(again[path] == files[path] for path in same)


def test_no_image_is_drawn_twice(files: dict[str, bytes]) -> None:
    digests = {hashlib.sha256(data).digest() for data in files.values()}
    assert len(digests) == len(files)


def test_second_run_draws_only_what_is_missing(tmp_path: Path) -> None:
    assert run(tmp_path, *FEW).exit_code == 0
    before = read_bytes(tmp_path)
    removed = tmp_path / "val" / "rings" / "rings_00000.JPEG"
    kept = tmp_path / "val" / "waves" / "waves_00000.JPEG"
    removed.unlink()
    changed_at = kept.stat().st_mtime_ns
    assert run(tmp_path, *FEW).exit_code == 0
    assert read_bytes(tmp_path) == before
    assert kept.stat().st_mtime_ns == changed_at


def test_foreign_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"mine")
    result = run(tmp_path, *FEW)
    assert result.exit_code == 2
    assert str(tmp_path) in result.output and "was not made by this command" in result.output
    assert read_bytes(tmp_path) == {"holiday.jpg": b"mine"}


def test_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "notes.txt"
    out.write_text("mine")
    assert run(out, *FEW).exit_code == 2
    assert out.read_text() == "mine"


def test_other_arguments_are_refused_naming_both(tmp_path: Path) -> None:
    DemoFolder(path=tmp_path, train_per_class=2, val_per_class=1, seed=0).claim()
    result = run(tmp_path, *FEW, "--seed", "7")
    assert result.exit_code == 2
    assert "'seed': 0" in result.output and "'seed': 7" in result.output


def test_marker_of_another_command_is_refused(tmp_path: Path) -> None:
    (tmp_path / MADE_BY).write_text("mine")
    result = run(tmp_path, *FEW)
    assert result.exit_code == 2
    assert MADE_BY in result.output and "was not made by this command" in result.output


@pytest.mark.parametrize("field", ["train_per_class", "val_per_class", "seed"])
def test_bounds_name_the_field(tmp_path: Path, field: str) -> None:
    arguments = {"train_per_class": 2, "val_per_class": 1, "seed": 0} | {field: -1}
    with pytest.raises(ValueError, match=f"{field} must be at least .*found -1"):
        DemoFolder(path=tmp_path, **arguments)


def test_entry_file_runs_from_another_folder(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", ENTRY_FILE, "images", *FEW, "--workers", "2"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("images/*/*/*.JPEG"))) == 30
    assert os.access(ENTRY_FILE, os.X_OK)
