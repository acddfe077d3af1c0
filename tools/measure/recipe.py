"""Real learning: two recipes on the same images, width and minutes, the errors of several seeds.

The budget is of training alone. It is turned into epochs beforehand: each recipe trains for a few
epochs, by turns, and the median of their times says how many fit. So every run is an ordinary one,
its schedule (cosine or steps) goes from start to end, and it can be repeated with that number of
epochs. What it took in the end is reported beside the budget.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from pipeline.manifest import open_dataset
from tools.measure.machine import describe_machine
from tools.measure.recipe_runs import OurRecipe, Recipe, Run
from tools.measure.recipe_torchvision import TorchvisionRecipe
from tools.measure.spread import spread_of
from trainer.config import find_device

CALIBRATION_EPOCHS = 3  # a run; the first of each does not count
CALIBRATION_ROUNDS = 2


@dataclass(frozen=True, kw_only=True)
class RecipeContest:
    """What to compare: on these shards, for so many minutes of training, seeds 0, 1, …"""

    shards: Path
    minutes: float
    seeds: int
    width: float
    device: str = "auto"

    def __post_init__(self) -> None:
        if not 0 < self.minutes < math.inf:
            raise ValueError(f"minutes must be a number more than 0, not {self.minutes}")
        if self.seeds < 1:
            raise ValueError(f"seeds must be at least 1, not {self.seeds}")


def run_recipe_contest(
    contest: RecipeContest, report: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Trains every recipe with every seed, by turns; returns the report, JSON-able.

    report: called with a line on each step. ValueError where the shards cannot be trained from.
    """
    dataset = open_dataset(contest.shards)
    recipes: list[Recipe] = [
        OurRecipe(shards=contest.shards, width=contest.width, device=contest.device),
        TorchvisionRecipe(contest.shards, contest.width, find_device(contest.device)),
    ]
    epochs = calibrate(recipes, 60 * contest.minutes, report)
    runs = take_turns(recipes, epochs, contest.seeds, report)
    return {
        "results": [result_of(name, epochs[name], found) for name, found in runs.items()],
        "machine": describe_machine(Path(__file__).parent),
        "settings": {
            "minutes": contest.minutes,
            "repeats": contest.seeds,
            "width": contest.width,
            "device": find_device(contest.device).type,
            "classes": len(dataset.classes),
            "train_images": dataset.num_samples("train"),
            "val_images": dataset.num_samples("val"),
            "fingerprint": dataset.fingerprint("train"),
        },
    }


def calibrate(
    recipes: Sequence[Recipe], budget_seconds: float, report: Callable[[str], None]
) -> dict[str, int]:
    """How many epochs of each recipe fit into the budget: at least one."""
    seconds: dict[str, list[float]] = {recipe.name: [] for recipe in recipes}
    for number in range(CALIBRATION_ROUNDS):
        for recipe in recipes:
            seconds[recipe.name] += recipe.run(CALIBRATION_EPOCHS, number).epoch_seconds[1:]
    epochs = {}
    for name, values in seconds.items():
        epochs[name] = max(1, int(budget_seconds / median(values)))
        report(f"{name}: {median(values):.2f} s an epoch, so {epochs[name]} epochs")
    return epochs


def take_turns(
    recipes: Sequence[Recipe], epochs: Mapping[str, int], seeds: int, report: Callable[[str], None]
) -> dict[str, list[Run]]:
    """The runs of every recipe, seed by seed: with each seed all of them, one after another."""
    runs: dict[str, list[Run]] = {recipe.name: [] for recipe in recipes}
    for seed in range(seeds):
        for recipe in recipes:
            done = recipe.run(epochs[recipe.name], seed)
            runs[recipe.name].append(done)
            report(
                f"seed {seed}: {recipe.name}, {epochs[recipe.name]} epochs in {done.seconds:.0f} "
                f"s, top-1 error {done.top1_error:.1%}"
            )
    return runs


def result_of(name: str, num_epochs: int, runs: Sequence[Run]) -> dict[str, Any]:
    """A recipe's runs, seed by seed, with median and range of what they came to."""
    return {
        "name": name,
        "epochs": num_epochs,
        "top1_error": asdict(spread_of([run.top1_error for run in runs])),
        "top5_error": asdict(spread_of([run.top5_error for run in runs])),
        "train_seconds": asdict(spread_of([run.seconds for run in runs])),
        "images_per_second": asdict(spread_of([run.num_images / run.seconds for run in runs])),
        "runs": [
            {
                "seed": seed,
                "top1_error": run.top1_error,
                "top5_error": run.top5_error,
                "train_seconds": round(run.seconds, 2),
            }
            for seed, run in enumerate(runs)
        ],
    }


def recipe_table(report: Mapping[str, Any]) -> str:
    """Top-1 errors of the validation images, by recipe and seed."""
    seeds = "".join(f"{f'seed {seed}':>9}" for seed in range(report["settings"]["repeats"]))
    lines = [
        f"{'top-1 error':<22}{'median':>9}{'min':>9}{'max':>9}{seeds}{'epochs':>9}{'seconds':>9}"
    ]
    for result in report["results"]:
        errors = [*result["top1_error"].values(), *(run["top1_error"] for run in result["runs"])]
        shown = "".join(f"{error:>9.1%}" for error in errors)
        seconds = result["train_seconds"]["median"]
        lines.append(f"{result['name']:<22}{shown}{result['epochs']:>9}{seconds:>9.0f}")
    return "\n".join(lines)
