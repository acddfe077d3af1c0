"""metrics.jsonl, the table beside it, TensorBoard: what is told, and what a resumed run drops."""

import csv
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from trainer.sinks import MetricsFile, Sinks, flatten, table_of


def report(epoch: int, **more: Any) -> dict[str, Any]:
    loss = 2.5 / epoch
    return {"epoch": epoch, "step": 10 * epoch, "train_loss": loss, "fed_ratio": None, **more}


def steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def told(folder: Path, **options: Any) -> Sinks:
    """Sinks that were told three epochs."""
    sinks = Sinks(folder, **options)
    sinks.resume(-1)
    for epoch in (1, 2, 3):
        sinks.append(report(epoch))
    return sinks


@pytest.fixture
def lines(tmp_path: Path) -> MetricsFile:
    file = MetricsFile(tmp_path / "metrics.jsonl")
    for epoch in (1, 2, 3):
        file.append(report(epoch))
    return file


def test_a_line_is_the_report(lines: MetricsFile) -> None:
    assert lines.read() == [report(1), report(2), report(3)]
    first = lines.path.read_text().splitlines()[0]
    assert first == '{"epoch": 1, "step": 10, "train_loss": 2.5, "fed_ratio": null}'


@pytest.mark.parametrize(
    ("step", "kept"), [(-1, []), (10, [10]), (25, [10, 20]), (30, [10, 20, 30])]
)
def test_lines_past_the_checkpoint_are_dropped(
    lines: MetricsFile, step: int, kept: list[int]
) -> None:
    lines.drop_after(step)
    assert steps(lines.path) == kept


def test_a_line_that_is_no_report_is_dropped(lines: MetricsFile) -> None:
    whole = lines.path.read_bytes()
    lines.path.write_bytes(whole + b'null\n[]\n{"step": Infinity}\n{"step": "x"}\n')
    lines.drop_after(30)
    assert lines.path.read_bytes() == whole


def test_a_line_cut_off_in_the_middle_is_dropped_at_any_length(lines: MetricsFile) -> None:
    whole = lines.path.read_bytes()
    last = len(whole.splitlines(keepends=True)[-1])
    for length in range(1, last - 1):
        lines.path.write_bytes(whole[:-length - 1])
        lines.drop_after(30)
        assert steps(lines.path) == [10, 20]
        lines.append(report(3))
        assert lines.path.read_bytes() == whole


def test_a_run_without_reports_has_none_to_drop(tmp_path: Path) -> None:
    Sinks(tmp_path).resume(0)
    assert not list(tmp_path.iterdir())


def test_a_number_that_json_does_not_know_is_refused_and_leaves_no_line(
    lines: MetricsFile,
) -> None:
    with pytest.raises(ValueError, match="JSON"):
        lines.append(report(4, top1_error=float("nan")))
    assert steps(lines.path) == [10, 20, 30]


# ---- the table ----


def test_the_table_has_the_keys_and_numbers_of_the_lines(tmp_path: Path) -> None:
    told(tmp_path)
    rows = list(csv.reader((tmp_path / "metrics.csv").read_text().splitlines()))
    assert rows[0] == list(report(1))
    assert rows[1:] == [
        ["1", "10", "2.5", ""],
        ["2", "20", "1.25", ""],
        ["3", "30", repr(2.5 / 3), ""],
    ]


@pytest.mark.parametrize("step", [-1, 10, 20, 30])
def test_the_table_of_a_resumed_run_is_that_of_one_undisturbed(tmp_path: Path, step: int) -> None:
    told(tmp_path)
    whole = (tmp_path / "metrics.csv").read_bytes()
    again = Sinks(tmp_path)
    again.resume(step)
    for epoch in (1, 2, 3):
        if 10 * epoch > step:
            again.append(report(epoch))
    assert (tmp_path / "metrics.csv").read_bytes() == whole


def test_nested_numbers_get_columns_that_are_empty_where_there_are_none() -> None:
    sizes = {"conv1.weight": {"mean_abs": 0.5, "ratio": 0.25}}
    reports = [report(1, weights=None), report(2, weights=sizes), report(3, weights=None)]
    assert table_of(reports).splitlines() == [
        "epoch,step,train_loss,fed_ratio,weights/conv1.weight/mean_abs,weights/conv1.weight/ratio",
        "1,10,2.5,,,",
        "2,20,1.25,,0.5,0.25",
        f"3,30,{2.5 / 3},,,",
    ]


def test_a_report_without_nesting_stays_as_it_is() -> None:
    assert flatten(report(1)) == report(1)


# ---- TensorBoard ----


def curve(folder: Path, name: str) -> list[tuple[int, float]]:
    """What TensorBoard shows of a run folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def age(folder: Path) -> None:
    """Names the files as if made long ago: their order is that of the seconds in the names."""
    for file in (folder / "tensorboard").iterdir():
        start, seconds, rest = file.name.partition(file.name.split(".")[3])
        assert int(seconds) > 10**9
        file.rename(file.with_name(f"{start}{10**9}{rest}"))


def test_tensorboard_shows_every_number(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    with_weights = report(4, weights={"fc8.bias": {"ratio": 0.125}})
    sinks = told(tmp_path, tensorboard=True)
    sinks.append(with_weights)
    sinks.close()
    assert curve(tmp_path, "epoch") == [(10, 1), (20, 2), (30, 3), (40, 4)]
    assert curve(tmp_path, "train_loss")[:2] == [(10, 2.5), (20, 1.25)]
    assert curve(tmp_path, "weights/fc8.bias/ratio") == [(40, 0.125)]


@pytest.mark.parametrize("step", [-1, 10, 20, 30])
def test_tensorboard_forgets_what_lies_past_the_checkpoint(tmp_path: Path, step: int) -> None:
    pytest.importorskip("tensorboard")
    told(tmp_path, tensorboard=True).close()
    age(tmp_path)
    again = Sinks(tmp_path, tensorboard=True)
    again.resume(step)
    again.append(report(5))
    again.close()
    kept = [(10 * epoch, epoch) for epoch in (1, 2, 3) if 10 * epoch <= step]
    assert curve(tmp_path, "epoch") == [*kept, (50, 5)]


def test_without_the_package_its_name_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match=r"pip install 'fullfeed\[tensorboard\]'"):
        Sinks(tmp_path, tensorboard=True)
    Sinks(tmp_path, tensorboard=False)
