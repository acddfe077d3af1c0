"""The command writes a sheet of what a preset's lighting shows, or says what is missing."""

import io
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from pipeline.moments import PCA_NAME
from tools.preview import main

OPTIONS = ("--images", "2", "--draws", "1")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_it_writes_a_png_and_says_where(shard_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "sheet.png"
    result = run(shard_folder, "--out", out, *OPTIONS)
    assert result.exit_code == 0, result.output
    sheet = Image.open(io.BytesIO(out.read_bytes()))
    assert sheet.format == "PNG"
    assert result.output == f"wrote {out}, {sheet.width} x {sheet.height} px\n"


def test_the_papers_lighting_is_drawn_where_it_is_asked_for(
    shard_folder: Path, tmp_path: Path
) -> None:
    """Stronger than the other by the root of the variance: far more pixels are at their bounds."""
    bounds = []
    for lighting in ("std", "variance"):
        out = tmp_path / f"{lighting}.png"
        assert run(shard_folder, "--out", out, "--lighting", lighting, *OPTIONS).exit_code == 0
        pixels = np.asarray(Image.open(out).convert("RGB"))
        bounds.append(np.mean((pixels == 0) | (pixels == 255)))
    assert bounds[1] > 1.2 * bounds[0]


@pytest.mark.parametrize(
    ("lacking", "told"), [(PCA_NAME, "compute_pca.py"), ("dataset.json", "prepare_shards.py")]
)
def test_what_is_missing_is_told_in_one_message(
    shard_copy: Path, tmp_path: Path, lacking: str, told: str
) -> None:
    (shard_copy / lacking).unlink()
    result = run(shard_copy, "--out", tmp_path / "sheet.png")
    assert result.exit_code == 1 and not (tmp_path / "sheet.png").exists()
    assert told in result.output
    assert "Traceback" not in result.output


def test_a_place_that_cannot_be_written_is_told_before_anything_is_drawn(
    shard_folder: Path, tmp_path: Path
) -> None:
    result = run(shard_folder, "--out", tmp_path / "no folder" / "sheet.png")
    assert result.exit_code == 1 and "--out" in result.output
