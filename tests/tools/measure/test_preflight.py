"""Half a minute's look at a machine: every key, on the whole and where there is nothing."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from tools import benchmark
from tools.measure.contestants import NO_GPU
from tools.measure.preflight import Preflight, advise_before, run_preflight
from tools.measure.preflight_table import preflight_table
from trainer.config import RunConfig
from trainer.loop import Trainer


def config(shards: Path, **changes: Any) -> RunConfig:
    small: dict[str, Any] = {"batch_size": 8, "width": 1 / 32, "device": "cpu"}
    return RunConfig(**{"shards": shards, "backend": "numpy", **small, **changes})


@pytest.fixture(scope="module")
def report(shard_folder: Path) -> dict[str, Any]:
    """What a look at the machine says, on the CPU, with a step that takes no time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_step", lambda trainer, batch: torch.zeros(()))
        looked = run_preflight(Preflight(config=config(shard_folder), seconds=5))
    read_back: dict[str, Any] = json.loads(json.dumps(looked))
    return read_back


def test_the_json_form_is_frozen_and_has_a_table(report: dict[str, Any]) -> None:
    assert set(report) == {
        "results", "ratios", "machine", "settings", "not_measured", "expected", "outlook",
        "memory", "advice",
    }  # fmt: skip
    names = [each["name"] for each in report["results"]]
    assert names == ["storage", "loader", "loader, 1 of 2", "loader, 1 of 4", "step"]
    assert all(each["images_per_second"]["min"] > 0 for each in report["results"])
    assert set(report["settings"]) == {
        "repeats", "seconds", "batch_size", "step_images", "preset", "width", "precision",
        "device", "images", "epochs",
    }  # fmt: skip
    assert (report["settings"]["images"], report["settings"]["epochs"]) == (39, 90)
    expected = report["expected"]
    assert expected["hours"] == pytest.approx(90 * expected["hours_per_epoch"])
    rate = expected["images_per_second"]
    assert expected["hours_per_epoch"] * rate * 3600 == pytest.approx(39)
    assert [row["devices"] for row in report["outlook"]] == [1, 2, 4]
    assert report["memory"]["resident_bytes"] == 39 * 256 * 256 * 3
    assert report["memory"]["shards_fit"] is True
    table = preflight_table(report)
    assert "39 images" in table and "for 90 epochs" in table


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_what_it_would_need_is_said_not_to_be_known(report: dict[str, Any]) -> None:
    assert report["not_measured"] == {"1, 2, 4 GPUs": NO_GPU}
    assert report["advice"].startswith(NO_GPU)
    assert all(row["fed"] is None for row in report["outlook"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no NVIDIA GPU here")
def test_with_a_gpu_nothing_says_that_there_is_none(report: dict[str, Any]) -> None:
    assert NO_GPU not in report["not_measured"].values()
    assert not report["advice"].startswith(NO_GPU)


@pytest.mark.parametrize("seconds", [0, 4.9, 3601])
def test_a_time_too_short_to_mean_anything_is_refused(tmp_path: Path, seconds: float) -> None:
    with pytest.raises(ValueError, match="--seconds is .*, must be within 5..3600"):
        Preflight(config=config(tmp_path), seconds=seconds)


def test_shards_elsewhere_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("upath", reason="universal_pathlib is not installed (fullfeed[s3])")
    arguments = ["preflight", "memory://no/shards", "--stage-dir", str(tmp_path)]
    done = CliRunner().invoke(benchmark.main, arguments)
    assert done.exit_code == 1 and "is not on this machine" in done.output


@pytest.mark.parametrize(
    ("gpu_decodes", "raw", "told"),
    [
        (False, False, "--backend dali-gpu"),
        (True, False, "--calibrate"),
        (True, True, "--loader-threads"),
    ],
)
def test_the_advice_is_of_the_decoder_that_was_measured(
    gpu_decodes: bool, raw: bool, told: str
) -> None:
    rows = [{"devices": 1, "delivered": 10.0, "fed": False, "short": "loader"}]
    text = advise_before(rows, on_gpu=True, gpu_decodes=gpu_decodes, raw=raw)
    assert text.startswith("from 1 GPU on, ") and told in text
    assert ("dali-gpu" in text) == (told == "--backend dali-gpu")
