"""Recipes take turns, within a budget of epochs, or of minutes turned into epochs beforehand."""

import dataclasses
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import tools.benchmark
from tools.measure import recipe_runs
from tools.measure.recipe import (
    PEER_RATES,
    RecipeContest,
    calibrate,
    recipe_table,
    result_of,
    run_recipe_contest,
    search_and_compare,
    take_turns,
)
from tools.measure.recipe_runs import OurRecipe, Run
from trainer.config import RunConfig, asked_preset
from trainer.override import override
from trainer.presets import PAPER
from trainer.session import Session


class MadeRecipe:
    """Takes the seconds it is told for an epoch, and more for the first; notes who ran when.

    Its error with seed 0 is what it is told, with every other seed a tenth more.
    """

    def __init__(
        self, name: str, seconds: float, log: list[tuple[str, int, int]], error: float = 0.0
    ) -> None:
        self.name, self._seconds, self._log, self._error = name, seconds, log, error

    def run(self, num_epochs: int, seed: int) -> Run:
        self._log.append((self.name, num_epochs, seed))
        seconds = (10 * self._seconds, *[self._seconds] * (num_epochs - 1))
        error = self._error + 0.1 * seed
        return Run(epoch_seconds=seconds, num_images=100, top1_error=error, top5_error=0.0)


def test_epochs_are_as_many_as_fit_by_the_median_without_the_first() -> None:
    log: list[tuple[str, int, int]] = []
    recipes = [MadeRecipe("a", 1.5, log), MadeRecipe("b", 4.0, log), MadeRecipe("c", 99.0, log)]
    assert calibrate(recipes, 60.0, lambda _: None) == {"a": 40, "b": 15, "c": 1}
    assert [name for name, *_ in log] == ["a", "b", "c", "a", "b", "c"]


def test_recipes_take_turns_with_each_seed() -> None:
    log: list[tuple[str, int, int]] = []
    recipes = [MadeRecipe("a", 1.0, log), MadeRecipe("b", 1.0, log)]
    runs = take_turns(recipes, {"a": 5, "b": 7}, range(3), lambda _: None)
    assert log == [("a", 5, 0), ("b", 7, 0), ("a", 5, 1), ("b", 7, 1), ("a", 5, 2), ("b", 7, 2)]
    assert [run.top1_error for run in runs["b"]] == pytest.approx([0.0, 0.1, 0.2])


@pytest.mark.parametrize(
    ("errors", "kept"),
    [
        ((0.9, 0.8, 0.3, 0.3), ["ours", "published", "b"]),  # the first of equal ones
        ((0.2, 0.8, 0.3, 0.9), ["ours", "published"]),
    ],
)
def test_the_published_peer_and_the_best_with_the_first_seed_get_all_seeds(
    errors: tuple[float, ...], kept: list[str]
) -> None:
    log: list[tuple[str, int, int]] = []
    peers = [
        MadeRecipe(name, 1.0, log, error)
        for name, error in zip(("published", "a", "b", "c"), errors, strict=True)
    ]
    epochs = dict.fromkeys(("ours", "published", "a", "b", "c"), 4)
    runs = search_and_compare([MadeRecipe("ours", 1.0, log)], peers, epochs, 3, lambda _: None)
    assert [name for name, _, seed in log if seed == 0] == ["ours", "published", "a", "b", "c"]
    for later in (1, 2):
        assert [name for name, _, seed in log if seed == later] == kept
    for name, found in runs.items():
        assert len(found) == (3 if name in kept else 1)


def test_several_presets_without_peers_get_all_seeds_by_turns() -> None:
    log: list[tuple[str, int, int]] = []
    ours = [MadeRecipe("a", 1.0, log, 0.9), MadeRecipe("b", 1.0, log, 0.1)]
    runs = search_and_compare(ours, [], {"a": 2, "b": 3}, 3, lambda _: None)
    assert log == [(name, n, seed) for seed in range(3) for name, n in (("a", 2), ("b", 3))]
    assert {name: len(found) for name, found in runs.items()} == {"a": 3, "b": 3}


def test_a_result_is_median_and_range_over_the_seeds() -> None:
    runs = [
        Run(epoch_seconds=(1.0, 3.0), num_images=200, top1_error=error, top5_error=error / 2)
        for error in (0.5, 0.2, 0.3)
    ]
    found = result_of("a", 2, runs)
    assert found["top1_error"] == {"median": 0.3, "min": 0.2, "max": 0.5}
    assert found["images_per_second"]["median"] == 50 and found["train_seconds"]["max"] == 4
    assert [run["top1_error"] for run in found["runs"]] == [0.5, 0.2, 0.3]


def test_our_recipe_is_an_ordinary_run(shard_folder: Path) -> None:
    recipe = OurRecipe(shards=shard_folder, width=1 / 32, device="cpu")
    first, again, other = (recipe.run(2, seed) for seed in (3, 3, 4))
    assert len(first.epoch_seconds) == 2 and min(first.epoch_seconds) > 0
    assert first.num_images == 2 * 36  # batches of 4, the last partial one dropped
    assert 0 <= first.top1_error <= 1 and first.top5_error == 0.0  # three classes
    assert first.top1_error == again.top1_error
    assert other.seconds > 0


def test_a_variant_is_a_preset_with_what_is_set_of_it(
    shard_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[RunConfig] = []

    class Asked(Session):
        def __init__(self, config: RunConfig) -> None:
            asked.append(config)
            super().__init__(config)

    monkeypatch.setattr(recipe_runs, "Session", Asked)
    recipe = OurRecipe(
        shards=shard_folder, width=1 / 32, device="cpu", variant="paper  lighting=std columns=1"
    )
    recipe.run(1, 7)
    (config,) = asked
    assert recipe.name == "paper, lighting=std, columns=1"
    assert asked_preset(config) == override(PAPER, {"lighting": "std", "columns": 1})
    assert (config.epochs, config.seed, config.width) == (1, 7, 1 / 32)


def test_a_run_that_diverges_is_wrong_about_all_and_ends_no_contest(shard_folder: Path) -> None:
    recipe = OurRecipe(
        shards=shard_folder, width=1 / 32, device="cpu", variant="paper learning_rate=1e6"
    )
    lines: list[str] = []
    (run,) = take_turns([recipe], {recipe.name: 1}, range(1), lines.append)[recipe.name]
    assert run.diverged and (run.top1_error, run.top5_error) == (1.0, 1.0)
    assert lines[0].endswith("top-1 error 100.0%, diverged")
    (told,) = result_of(recipe.name, 1, [run])["runs"]
    assert told["diverged"] and told["train_seconds"] >= 0
    missing = dataclasses.replace(recipe, shards=shard_folder / "none")
    with pytest.raises(ValueError, match="none"):
        missing.run(1, 0)


@pytest.mark.parametrize("epochs", [pytest.param(None, marks=pytest.mark.slow), 1])
def test_the_report_of_three_seeds(epochs: int | None, shard_folder: Path) -> None:
    contest = RecipeContest(
        shards=shard_folder, minutes=1e-6, seeds=3, width=1 / 32, device="cpu", epochs=epochs
    )
    lines: list[str] = []
    report = json.loads(json.dumps(run_recipe_contest(contest, lines.append)))
    names = [result["name"] for result in report["results"]]
    assert names[:2] == ["modern", "torchvision AlexNet"] and len(names) in (2, 3)
    for result in report["results"]:
        assert result["epochs"] == 1 and [run["seed"] for run in result["runs"]] == [0, 1, 2]
    tried = {one["rate"]: one["top1_error"] for one in report["rates"]}
    assert tuple(tried) == PEER_RATES and PEER_RATES[0] == 0.01
    best = report["results"][-1 if len(names) == 3 else 1]["runs"][0]["top1_error"]
    assert best == min(tried.values())
    settings = report["settings"]
    assert (settings["train_images"], settings["val_images"], settings["classes"]) == (39, 15, 3)
    assert (settings["epochs"], settings["minutes"]) == ((1, None) if epochs else (None, 1e-6))
    assert len(lines) == (0 if epochs else 2) + 1 + len(PEER_RATES) + 2 * len(names)
    header, *rows, last = recipe_table(report).splitlines()
    assert header.split()[-4:] == ["seed", "2", "epochs", "seconds"]
    median = report["results"][0]["top1_error"]["median"]
    assert rows[0].split()[:2] == ["modern", f"{median:.1%}"] and len(rows) == len(names)
    assert f"0.01: {tried[0.01]:.1%}, 0.02: " in last


def test_the_command_compares_the_presets_it_is_told_without_torchvision(
    shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = MadeRecipe("made", 1.0, [], 0.25)
    monkeypatch.setattr(OurRecipe, "run", lambda self, epochs, seed: made.run(epochs, seed))
    path = tmp_path / "report.json"
    options = ["--no-torchvision", "--epochs", "1", "--device", "cpu"]
    presets = ["--preset", "kriz2012", "--preset", "kriz2012 momentum=0.5"]
    command = ["recipe", "--shards", str(shard_folder), *options, *presets, "--json", str(path)]
    done = CliRunner().invoke(tools.benchmark.main, command)
    assert done.exit_code == 0, done.output
    report = json.loads(path.read_bytes())
    names = [result["name"] for result in report["results"]]
    assert names == ["kriz2012", "kriz2012, momentum=0.5"] and report["rates"] == []
    header, *rows = recipe_table(report).splitlines()
    assert [row.split()[0].rstrip(",") for row in rows] == ["kriz2012"] * 2
    assert recipe_table(report) in done.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--preset", ""], "--preset '' is unknown; expected one of: modern, paper, kriz2012"),
        (["--preset", "papre"], "--preset 'papre' is unknown"),
        (["--preset", "paper lightning=std"], "did you mean 'lighting'?"),
        (["--preset", "paper momentum=2"], "training.momentum is 2.0, must be"),
        (["--preset", "paper", "--preset", " paper"], "presets must differ from each other"),
        (["--width", "0"], "--width is 0.0, must be"),
        (["--minutes", "0"], "minutes must be a number more than 0"),
        (["--minutes", "nan"], "minutes must be a number more than 0"),
        (["--minutes", "inf"], "minutes must be a number more than 0"),
        (["--seeds", "2"], "seeds must be at least 3"),
        (["--epochs", "0"], "epochs must be at least 1"),
    ],
)
def test_what_means_nothing_is_a_usage_error(
    options: list[str], message: str, shard_folder: Path
) -> None:
    command = ["recipe", "--shards", str(shard_folder), *options]
    done = CliRunner().invoke(tools.benchmark.main, command)
    assert done.exit_code == 2 and message in done.output
