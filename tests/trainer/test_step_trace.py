"""The trace of a run in two processes: what Perfetto opens, and what it shows."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer.test_rank import finish, start
from trainer.step_trace import WARM_STEPS, StepTrace, trace_name

NUM_STEPS = 2


def ranges(path: Path, name: str) -> list[tuple[float, float]]:
    """Beginning and end of every range of that name, in their order."""
    events: list[dict[str, Any]] = json.loads(path.read_bytes())["traceEvents"]
    found = [e for e in events if e.get("name") == name and e.get("ph") == "X"]
    return sorted((e["ts"], e["ts"] + e["dur"]) for e in found)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "leaving"),
    [("data", ["0 of units", "0 of kernels", "1 of kernels"]), ("hybrid", ["0 of kernels"])],
)
def test_gradients_leave_while_backward_goes_on_in_the_trace_of_each_process(
    mode: str, leaving: list[str], shard_folder: Path, tmp_path: Path
) -> None:
    """Each bucket before the next is complete, in the order of backward, and waited for after."""
    options = ("--preset", "paper", "--epochs", "1", "--parallel", mode, "--profile", "2")
    code, _, err = finish(start(shard_folder, tmp_path, *options))
    assert code == 0, err
    for rank in range(2):
        path = tmp_path / trace_name(rank)
        backward = ranges(path, "backward")
        assert len(backward) == len(ranges(path, "forward")) == NUM_STEPS
        for bucket, later in pairwise([*leaving, "3 of kernels"]):
            sent, next_sent, waited = (
                ranges(path, name)
                for name in (
                    f"send bucket {bucket}", f"send bucket {later}", f"wait for bucket {bucket}"
                )
            )  # fmt: skip
            for step in range(NUM_STEPS):
                begin, end = backward[step]
                assert begin < sent[step][0] < sent[step][1] < next_sent[step][0] < end
                assert end < waited[step][1]
        exchanges = ranges(path, "gloo:all_reduce")  # one a step agrees on wishes, between steps
        for begin, end in backward:
            assert any(begin < exchange[0] < end for exchange in exchanges)


def test_only_the_steps_asked_for_are_recorded(tmp_path: Path) -> None:
    path = tmp_path / trace_name(0)
    trace = StepTrace(path, NUM_STEPS, torch.device("cpu"))
    for step in range(10):
        with torch.profiler.record_function(f"step {step}"):
            torch.ones(1).add_(1)
        trace.step()
        assert path.exists() == (step + 1 >= WARM_STEPS + NUM_STEPS)
    trace.close()
    recorded = [step for step in range(10) if ranges(path, f"step {step}")]
    assert recorded == list(range(WARM_STEPS, WARM_STEPS + NUM_STEPS))


def test_a_run_that_ends_early_leaves_what_was_recorded(tmp_path: Path) -> None:
    path = tmp_path / trace_name(0)
    trace, none = (StepTrace(path, steps, torch.device("cpu")) for steps in (100, None))
    none.step()
    for _ in range(WARM_STEPS + 1):
        trace.step()
    none.close()
    assert not path.exists()
    trace.close()
    assert json.loads(path.read_bytes())["traceEvents"]


def test_a_trace_that_cannot_be_written_stops_no_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = StepTrace(tmp_path / "absent" / "t.json", 1, torch.device("cpu"))
    for _ in range(WARM_STEPS + 1):
        trace.step()
    assert "t.json not written" in capsys.readouterr().err
