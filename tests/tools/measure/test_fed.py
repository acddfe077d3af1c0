"""Whole measurements with a slow reader, decoder or step put in; and what passes come to."""

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import pipeline.open_shards
from pipeline.images import Pixels, decode_stored
from pipeline.open_shards import OpenShard
from pipeline.resident import Residence
from pipeline.waits import Waits
from tools.measure.contestants import NO_GPU
from tools.measure.fed import FedContest, feeding, in_all, run_fed_contest
from tools.measure.fed_table import fed_table
from tools.measure.rig import BESIDE, REAL, STEP
from tools.measure.rounds import Pass
from trainer.config import RunConfig
from trainer.loop import Trainer
from trainer.world import World

SLOW_SECONDS = 0.05  # far more than all else of a step on tiny shards takes


def contest(shards: Path, **changes: Any) -> FedContest:
    config = RunConfig(
        shards=shards, batch_size=8, width=1 / 32, device="cpu", backend="numpy", loader_threads=2
    )
    return FedContest(**{"config": config, "pass_seconds": 1e-9, **changes})


def measure(shards: Path, **changes: Any) -> dict[str, Any]:
    return run_fed_contest(contest(shards, **changes), World(device=torch.device("cpu")))


def no_step(self: Trainer, batch: object) -> torch.Tensor:
    return torch.zeros(())


def test_a_slow_reader_is_found(shard_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening a shard takes long; the step takes nothing."""
    opened = pipeline.open_shards.LocalShards.get

    def slow(self: pipeline.open_shards.LocalShards, number: int) -> OpenShard:
        time.sleep(SLOW_SECONDS)
        return opened(self, number)

    monkeypatch.setattr(Trainer, "train_step", no_step)
    monkeypatch.setattr(pipeline.open_shards.LocalShards, "get", slow)
    report = measure(shard_folder)
    assert report["short"] == "storage_read" and not report["fed"]
    assert report["attribution"]["storage_read"] > 0.5
    assert report["advice"].startswith("storage is short (")


def test_a_slow_decoder_is_found(shard_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a step that takes nothing it slows nobody: steps wait for it, it is no contention."""

    def slow(data: bytes) -> Pixels:
        time.sleep(SLOW_SECONDS / 4)  # an image; two threads, eight images
        return decode_stored(data)

    monkeypatch.setattr(Trainer, "train_step", no_step)
    monkeypatch.setattr("pipeline.reference.decode_stored", slow)
    report = measure(shard_folder)
    assert report["short"] == "host_decode" and not report["fed"]
    assert report["attribution"]["host_decode"] > 0.5
    assert report["advice"].startswith("CPU cores are short (")


def test_a_slow_step_is_fed(shard_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(self: Trainer, batch: object) -> torch.Tensor:
        time.sleep(SLOW_SECONDS)
        return torch.zeros(())

    monkeypatch.setattr(Trainer, "train_step", slow)
    monkeypatch.setattr("tools.measure.fed.ENOUGH", 0.6)  # also where others use the cores
    report = measure(shard_folder)
    assert report["short"] == "step" and report["fed"]
    assert report["attribution"]["step"] > 0.6
    assert report["advice"].startswith("fed: the step itself is the limit")


def test_a_decoder_that_slows_the_step_beside_it_is_contention(
    shard_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where images are being decoded, a step takes long; it never waits for one."""
    decoded = [0]

    def counted(data: bytes) -> Pixels:
        decoded[0] += 1
        return decode_stored(data)

    def step(self: Trainer, batch: object) -> torch.Tensor:
        time.sleep(SLOW_SECONDS / 4)  # room for decoding the next batch beside it
        if decoded[0] != seen[0]:
            time.sleep(SLOW_SECONDS)
        seen[0] = decoded[0]
        return torch.zeros(())

    seen = [0]
    monkeypatch.setattr(Trainer, "train_step", step)
    monkeypatch.setattr("pipeline.reference.decode_stored", counted)
    report = measure(shard_folder)
    assert report["short"] == "contention" and not report["fed"]
    assert report["attribution"]["contention"] > 0.3


REPORT_KEYS = {
    "results", "ratios", "machine", "settings", "not_measured", "fed_ratio", "required", "fed",
    "ranks", "attribution", "short", "advice", "timeline",
}  # fmt: skip
SETTINGS_KEYS = {
    "repeats", "steps_per_pass", "batch_size", "preset", "width", "precision", "device",
    "processes", "parallel", "backend", "loader", "prefetch", "seed", "fingerprint",
}  # fmt: skip
CAUSES = {
    "step", "storage_read", "host_decode", "device_decode", "contention", "hand_over", "python",
}  # fmt: skip


def test_the_json_form_is_frozen_and_has_a_table(
    shard_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "train_step", no_step)
    report = json.loads(json.dumps(measure(shard_folder)))
    assert set(report) == REPORT_KEYS and set(report["settings"]) == SETTINGS_KEYS
    assert [each["name"] for each in report["results"]] == [STEP, BESIDE, REAL]
    for result in report["results"]:
        assert set(result) == {"name", "images_per_second", "batch_ms"}
        assert set(result["batch_ms"]) == {"p50", "p90", "p99", "max"}
    assert list(report["ratios"]) == ["real/step", "step+decoding/step"]
    assert report["ratios"]["real/step"] == report["fed_ratio"]
    assert set(report["fed_ratio"]) == {"median", "min", "max"}
    assert set(report["attribution"]) == CAUSES
    assert sum(report["attribution"].values()) == pytest.approx(1, abs=1e-3)
    assert [set(rank) for rank in report["ranks"]] == [{"rank", "fed_ratio", "wait_ms"}]
    assert set(report["ranks"][0]["wait_ms"]) == {"read", "decode", "handover", "device"}
    assert set(report["timeline"]) == {STEP, BESIDE, REAL}
    assert report["settings"]["steps_per_pass"] == len(report["timeline"][REAL]) == 10
    assert report["not_measured"] == ({} if torch.cuda.is_available() else {"GPU": NO_GPU})
    table = fed_table(report)
    assert "the step itself" in table and report["advice"] in table.splitlines()


def test_the_step_alone_has_the_form_of_every_benchmark(
    shard_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "train_step", no_step)
    report = measure(shard_folder, alone=True)
    assert set(report) == {"results", "ratios", "machine", "settings", "not_measured"}
    assert [each["name"] for each in report["results"]] == [STEP]
    assert report["ratios"] == {}


def passes(step: float, real: float, **waits: float) -> dict[str, list[Pass]]:
    """Five rounds of one step of 100 images; waits: seconds in it."""

    def done(seconds: float, waited: Waits | None = None) -> list[Pass]:
        one = Pass(
            num_images=100, seconds=seconds, batch_seconds=(seconds,), issued_seconds=seconds,
            waits=waited,
        )  # fmt: skip
        return [one] * 5

    waited = Waits(**{f"{name}_wait_seconds": value for name, value in waits.items()})
    return {STEP: done(step), REAL: done(real, waited)}


def test_of_several_ranks_each_has_its_ratio_and_all_are_as_slow_as_the_slowest() -> None:
    """The second waits for pixels; the first waits for it, in the exchange of its step."""
    ranks = [passes(1.0, 1.9), passes(1.25, 2.0, decode=0.7)]
    whole = in_all(ranks)
    assert [done.seconds for done in whole[STEP]] == [1.25] * 5
    assert [done.seconds for done in whole[REAL]] == [2.0] * 5
    told = feeding(ranks, gpu_decodes=False, on_gpu=False, require=0.7)
    assert told["fed_ratio"]["median"] == pytest.approx(0.625)
    assert [rank["fed_ratio"]["median"] for rank in told["ranks"]] == [0.5263, 0.625]
    assert [rank["wait_ms"]["decode"] for rank in told["ranks"]] == [0.0, 700.0]
    assert told["short"] == "host_decode" and told["attribution"]["host_decode"] == 0.35
    assert told["fed"] is False and told["required"] == 0.7


@pytest.mark.parametrize(("real", "fed"), [(1.0, True), (1.03, True), (1.04, False)])
def test_without_a_requirement_97_of_100_is_fed(real: float, fed: bool) -> None:
    told = feeding([passes(1.0, real)], gpu_decodes=False, on_gpu=False, require=None)
    assert told["fed"] is fed and (told["short"] == "step") is fed


def test_a_requirement_that_is_reached_does_not_hide_what_is_short() -> None:
    told = feeding([passes(1.0, 1.6)], gpu_decodes=False, on_gpu=False, require=0.5)
    assert told["fed"] and told["short"] != "step" and not told["advice"].startswith("fed")


def test_a_requirement_above_97_of_100_that_is_missed_is_not_called_fed() -> None:
    told = feeding([passes(0.98, 1.0)], gpu_decodes=False, on_gpu=False, require=0.99)
    assert not told["fed"] and told["short"] != "step" and not told["advice"].startswith("fed")


def test_what_falls_short_by_less_than_is_printed_falls_short() -> None:
    told = feeding([passes(0.96996, 1.0)], gpu_decodes=False, on_gpu=False, require=0.97)
    assert told["fed_ratio"]["median"] == 0.97 and not told["fed"]


@pytest.mark.parametrize(("where", "measured"), [("none", True), ("host", False)])
def test_decoding_beside_the_step_is_measured_wherever_images_are_not_kept(
    where: str, measured: bool, shard_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --resident auto by the room there is: without any it decodes as ever."""
    found = Residence(where, "the room there is")
    monkeypatch.setattr("pipeline.renderer.find_residence", lambda *asked, **room: found)
    monkeypatch.setattr(Trainer, "train_step", no_step)
    asked = contest(shard_folder)
    report = run_fed_contest(
        replace(asked, config=replace(asked.config, resident="auto", backend="auto")),
        World(device=torch.device("cpu")),
    )
    assert (BESIDE in [each["name"] for each in report["results"]]) is measured
    assert (BESIDE in report["not_measured"]) is not measured


@pytest.mark.parametrize(("slowest", "doubted"), [(1.2, False), (1.3, True)])
def test_rounds_that_disagree_are_told_beside_the_verdict(slowest: float, doubted: bool) -> None:
    steady, slower = passes(1.0, 1.0), passes(1.0, slowest)
    mixed = {STEP: steady[STEP], REAL: [*steady[REAL][:4], slower[REAL][0]]}
    told = feeding([mixed], gpu_decodes=False, on_gpu=False, require=None)
    assert told["fed"] and told["advice"].startswith("fed: ")
    assert ("but the rounds disagree (0.769-1.000)" in told["advice"]) is doubted


def test_a_long_pass_is_told_in_runs_of_steps() -> None:
    steps = tuple([0.1] * 300 + [0.2] * 300)
    one = Pass(num_images=6000, seconds=sum(steps), batch_seconds=steps, waits=Waits())
    both: Mapping[str, list[Pass]] = {STEP: [one] * 5, REAL: [one] * 5}
    told = feeding([both], gpu_decodes=False, on_gpu=False, require=None)
    assert told["timeline"][REAL] == pytest.approx([100.0] * 100 + [50.0] * 100)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"repeats": 4}, "repeats must be at least 5, not 4"),
        ({"pass_seconds": 0}, "--seconds is 0, must be more than 0"),
        ({"require": 1.5}, "--require is 1.5, must be more than 0 and at most 1"),
        ({"require": 0.0}, "--require is 0.0, must be more than 0"),
    ],
)
def test_what_means_nothing_is_refused(
    tmp_path: Path, changes: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        contest(tmp_path, **changes)
