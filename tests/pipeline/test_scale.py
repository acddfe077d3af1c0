"""Fifteen million samples, ImageNet-21k's size: opened, ordered and proven in seconds."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline.order import Window
from tools.measure.memory import peak_bytes
from tools.measure.scale import in_fresh_process
from tools.measure.scale_passes import open_and_order
from tools.measure.simulated import simulate_shards
from tools.verify_shards import main as verify_shards

NUM_SAMPLES = 15_000_000

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def huge_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A true index of 15 million samples beside shards that are links to one."""
    folder = tmp_path_factory.mktemp("huge")
    simulate_shards(folder, NUM_SAMPLES)
    yield folder
    shutil.rmtree(folder)


def verify_epoch(folder: Path, ledger: Path) -> tuple[int, str, int | None]:
    """Exit code and output of the proof of an epoch; the peak of memory."""
    options = ["--epoch", 3, "--world-size", 8, "--batch-size", 1024, "--ledger", ledger]
    done = CliRunner().invoke(verify_shards, [str(each) for each in (folder, *options)])
    return done.exit_code, done.output, peak_bytes()


@pytest.mark.parametrize("window", ["all", 1, 16])
def test_a_loader_opens_and_orders_within_memory(huge_folder: Path, window: Window) -> None:
    """And says, with pytest -s, how much of a core's time that takes."""
    opened, ordered = in_fresh_process(open_and_order, huge_folder, window)
    assert ordered.peak_bytes is not None
    print(
        f"open {opened.cpu_seconds:.2f} s, order {ordered.cpu_seconds:.2f} s of CPU, "
        f"{ordered.peak_bytes / 1e9:.2f} GB"
    )
    assert ordered.peak_bytes < 1.5e9


def test_an_epoch_is_proven_within_memory(huge_folder: Path, tmp_path: Path) -> None:
    code, output, peak = in_fresh_process(verify_epoch, huge_folder, tmp_path / "ledger.jsonl")
    assert code == 0, output
    assert "117,184 parts of 14,648 steps, 14,999,552 distinct samples, 448 missing" in output
    assert peak is not None and peak < 2e9
    (tmp_path / "ledger.jsonl").unlink()
