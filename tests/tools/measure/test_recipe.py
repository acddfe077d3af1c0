"""Recipes take turns, within a budget that was turned into epochs beforehand."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import tools.benchmark
from tools.measure.recipe import (
    RecipeContest,
    calibrate,
    recipe_table,
    result_of,
    run_recipe_contest,
    take_turns,
)
from tools.measure.recipe_runs import OurRecipe, Run


class MadeRecipe:
    """Takes the seconds it is told for an epoch, and more for the first; notes who ran when."""

    def __init__(self, name: str, seconds: float, log: list[tuple[str, int, int]]) -> None:
        self.name, self._seconds, self._log = name, seconds, log

    def run(self, num_epochs: int, seed: int) -> Run:
        self._log.append((self.name, num_epochs, seed))
        seconds = (10 * self._seconds, *[self._seconds] * (num_epochs - 1))
        return Run(epoch_seconds=seconds, num_images=100, top1_error=0.1 * seed, top5_error=0.0)


def test_epochs_are_as_many_as_fit_by_the_median_without_the_first() -> None:
    log: list[tuple[str, int, int]] = []
    recipes = [MadeRecipe("a", 1.5, log), MadeRecipe("b", 4.0, log), MadeRecipe("c", 99.0, log)]
    assert calibrate(recipes, 60.0, lambda _: None) == {"a": 40, "b": 15, "c": 1}
    assert [name for name, *_ in log] == ["a", "b", "c", "a", "b", "c"]


def test_recipes_take_turns_with_each_seed() -> None:
    log: list[tuple[str, int, int]] = []
    recipes = [MadeRecipe("a", 1.0, log), MadeRecipe("b", 1.0, log)]
    runs = take_turns(recipes, {"a": 5, "b": 7}, 3, lambda _: None)
    assert log == [("a", 5, 0), ("b", 7, 0), ("a", 5, 1), ("b", 7, 1), ("a", 5, 2), ("b", 7, 2)]
    assert [run.top1_error for run in runs["b"]] == pytest.approx([0.0, 0.1, 0.2])


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


def test_the_report_of_two_seeds(shard_folder: Path) -> None:
    contest = RecipeContest(
        shards=shard_folder, minutes=1e-6, seeds=2, width=1 / 32, device="cpu"
    )
    lines: list[str] = []
    report = json.loads(json.dumps(run_recipe_contest(contest, lines.append)))
    assert [result["name"] for result in report["results"]] == ["modern", "torchvision AlexNet"]
    for result in report["results"]:
        assert result["epochs"] == 1 and [run["seed"] for run in result["runs"]] == [0, 1]
    settings = report["settings"]
    assert (settings["train_images"], settings["val_images"], settings["classes"]) == (39, 15, 3)
    assert len(lines) == 2 + 4
    header, *rows = recipe_table(report).splitlines()
    assert header.split()[-4:] == ["seed", "1", "epochs", "seconds"]
    median = report["results"][0]["top1_error"]["median"]
    assert rows[0].split()[:2] == ["modern", f"{median:.1%}"] and len(rows) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--minutes", "0"], "minutes must be a number more than 0"),
        (["--minutes", "nan"], "minutes must be a number more than 0"),
        (["--minutes", "inf"], "minutes must be a number more than 0"),
        (["--seeds", "0"], "seeds must be at least 1"),
    ],
)
def test_what_means_nothing_is_a_usage_error(
    options: list[str], message: str, shard_folder: Path
) -> None:
    command = ["recipe", "--shards", str(shard_folder), *options]
    done = CliRunner().invoke(tools.benchmark.main, command)
    assert done.exit_code == 2 and message in done.output
