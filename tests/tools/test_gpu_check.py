"""Without a GPU the check says so; with its stages replaced, what it runs and what it makes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from tools.gpu_check import main
from tools.measure.gpu import BATCHES, STORAGES, GpuCheck, check_table, commands, rooflines
from tools.measure.roofline import Ceilings


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so_and_fails() -> None:
    result = CliRunner().invoke(main)
    assert result.exit_code == 1
    assert "needs an NVIDIA GPU" in result.output and "nothing was measured" in result.output


def test_every_batch_is_measured_on_every_storage_and_once_per_preset() -> None:
    found = commands({"jpeg": Path("j"), "raw": Path("r")})
    for batch in BATCHES:
        for storage in STORAGES:
            command = [str(word) for word in found[f"fed-{storage}-{batch}"]]
            assert command[command.index("--batch-size") + 1] == str(batch)
            assert ("--resident" in command) == (storage == "resident")
            assert command[command.index("--shards") + 1] == ("j" if storage == "jpeg" else "r")
    assert {"loader", "trainer-paper-1024", "trainer-kriz2012-1024"} <= found.keys()


def stage(name: str, median: float, **settings: Any) -> dict[str, Any]:
    spread = {"median": median, "min": median, "max": median}
    return {
        "results": [{"name": name, "images_per_second": spread}],
        "settings": {"preset": "paper", "batch_size": 128, **settings},
    }


def test_the_table_tells_speeds_shares_and_what_failed() -> None:
    stages: dict[str, Any] = {
        "tests": "passed",
        "fed-raw-128": {**stage("step", 50_000.0), "fed_ratio": {"median": 0.985}},
        "loader": stage("dali-gpu", 21_000.0),
    }
    ceilings = Ceilings(multiply_adds=4e14, bytes=4e12)
    roofline = rooflines(stages, ceilings)
    assert roofline.keys() == {"fed-raw-128"}
    table = check_table({
        "machine": {"gpu": "H200"},
        "seconds": 400.0,
        "failed": {"fed-jpeg-128": "exit code 1; see what it printed"},
        "ceilings": vars(ceilings),
        "stages": stages,
        "roofline": roofline,
    })  # fmt: skip
    assert "H200: 800 bf16 TFLOP/s, 4,000 GB/s" in table
    assert "50,000" in table and "0.985" in table and "21,000" in table
    assert "failed: fed-jpeg-128: exit code 1" in table


def test_a_stage_that_fails_is_told_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200 (test)")
    check = GpuCheck(tmp_path, limit_seconds=60.0)
    assert check.path == tmp_path / "gpu-nvidia-h200-test.json"
    assert check._call("good", ["true"]) and not check._call("bad", ["false"])
    late = GpuCheck(tmp_path, limit_seconds=0.0)
    assert not late._call("late", ["true"])
    assert check.failed == {"bad": "exit code 1; see what it printed"}
    assert late.failed == {"late": "not begun: 0 s were over"}


def test_the_report_is_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ceilings = Ceilings(multiply_adds=4e14, bytes=4e12)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "H200")
    monkeypatch.setattr("tools.measure.gpu.measure_ceilings", lambda device: ceilings)
    found = {"fed-raw-128": stage("step", 1)}
    monkeypatch.setattr(GpuCheck, "_stages", lambda self, folder: found)
    check = GpuCheck(tmp_path / "new", limit_seconds=1.0)
    report = check.run()
    assert json.loads(check.path.read_text()) == json.loads(json.dumps(report))
    assert report["roofline"]["fed-raw-128"]["images_per_second"] == 1


def test_without_ceilings_the_rest_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(device: torch.device) -> Ceilings:
        raise RuntimeError("CUDA out of memory\nand more")

    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "H200")
    monkeypatch.setattr("tools.measure.gpu.measure_ceilings", fail)
    found = {"fed-raw-128": stage("step", 1234.0), "loader": {}}
    monkeypatch.setattr(GpuCheck, "_stages", lambda self, folder: found)
    check = GpuCheck(tmp_path, limit_seconds=1.0)
    report = check.run()
    assert report["ceilings"] is None and json.loads(check.path.read_text())["stages"] == found
    table = check_table(json.loads(json.dumps(report)))
    assert "could not be measured" in table and "1,234" in table
    assert "failed: ceilings: CUDA out of memory" in table


def test_a_stage_that_takes_too_long_or_cannot_be_started_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "H200")
    check = GpuCheck(tmp_path, limit_seconds=60.0)
    assert not check._call("slow", ["sleep", "60"], 0.1)
    assert not check._call("missing", [tmp_path / "nothing"])
    assert check.failed["slow"] == "not ended within 0 s"
    assert "cannot be started" in check.failed["missing"]
