"""Two ranks that share one GPU, by gloo: what they compute is right; how fast says nothing."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer.ranks import run_ranks
from tests.trainer.test_parallel import small, train
from tests.trainer.test_rank import finish, last, start
from trainer.parallel import ALONE, MODES, build_layout

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no NVIDIA GPU here"),
]
GPU = torch.device("cuda", 0)
PRESETS = ("paper", "kriz2012")


def on_cpu(found: dict[str, Any]) -> dict[str, Any]:
    """The results with their tensors on the CPU, so that they can leave the process."""
    return {
        part: {name: tensor.cpu() for name, tensor in value.items()}
        if isinstance(value, dict) else value
        for part, value in found.items()
    }  # fmt: skip


def train_on_gpu(cases: list[tuple[str, str]]) -> list[dict[str, Any]]:
    return [
        on_cpu(train(small(preset), build_layout(mode, GPU), GPU)) for mode, preset in cases
    ]


def test_every_mode_is_the_single_process_on_the_gpu() -> None:
    cases = [(mode, preset) for mode in MODES for preset in PRESETS]
    alone = {preset: on_cpu(train(small(preset), ALONE, GPU)) for preset in PRESETS}
    for results in run_ranks(2, train_on_gpu, cases):
        for (mode, preset), found in zip(cases, results, strict=True):
            for part, value in alone[preset].items():
                if part != "sent":
                    torch.testing.assert_close(
                        found[part], value, rtol=0, atol=1e-10, msg=f"{mode}, {preset}, {part}"
                    )


@pytest.mark.parametrize("mode", MODES)
def test_the_command_trains_in_two_processes_on_one_gpu(
    mode: str, shard_folder: Path, tmp_path: Path
) -> None:
    """And a checkpoint of theirs is resumed by one process."""
    options = ("--preset", "paper", "--device", "cuda", "--epochs", "2", "--parallel", mode)
    code, out, err = finish(start(shard_folder, tmp_path, *options, "--limit-steps", "9"))
    assert code == 0, err
    assert f"2 processes, {mode}" in out
    code, out, err = finish(start(shard_folder, tmp_path, *options, "--processes", "1"))
    assert code == 0 and "resuming" in out, err
    found = last(tmp_path)
    assert found.progress["step"] == 18
    assert all(tensor.isfinite().all() for tensor in found.model.values())
    assert dataclasses.asdict(found)["made_by"]["device"] == "cuda"
