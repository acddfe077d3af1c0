"""Real learning: recipes on the same images and width, the errors of several seeds.

Each recipe gets the same number of epochs, or the same minutes of training. Minutes are turned
into epochs beforehand: each recipe trains for a few epochs, by turns, and the median of their
times says how many fit. So every run is an ordinary one, its schedule (cosine or steps) goes from
start to end, and it can be repeated with that number of epochs. What it took in the end is
reported beside the budget.

torchvision's rate is that of ImageNet and of weeks of training. So that a rate that does not suit
a small set is not taken for a weak recipe, it is also searched for, in torchvision's favour: of
PEER_RATES, tried with the first seed, the one with the least error on the very images that count
in the end is given all seeds too. Our presets are taken as they are asked for.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from pipeline.manifest import open_dataset
from tools.measure.machine import describe_machine
from tools.measure.recipe_runs import OurRecipe, Recipe, Run
from tools.measure.recipe_torchvision import LEARNING_RATE, TorchvisionRecipe
from tools.measure.spread import spread_of
from trainer.config import find_device

CALIBRATION_EPOCHS = 3  # a run; the first of each does not count
CALIBRATION_ROUNDS = 2
MIN_SEEDS = 3  # a whole training each; their errors are listed one by one besides
PEER_RATES = (LEARNING_RATE, 0.02, 0.05, 0.1)  # the published one first
Report = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class RecipeContest:
    """What to compare: on these shards, seeds 0, 1, …

    Of each run either the minutes of training or, where it is given, the number of epochs.
    presets: each as a variant of OurRecipe; torchvision: whether its recipe is compared with them.
    """

    shards: Path
    minutes: float
    seeds: int
    width: float
    epochs: int | None = None
    presets: tuple[str, ...] = ("modern",)
    torchvision: bool = True
    device: str = "auto"

    def __post_init__(self) -> None:
        if not 0 < self.minutes < math.inf:
            raise ValueError(f"minutes must be a number more than 0, not {self.minutes}")
        if self.seeds < MIN_SEEDS:
            raise ValueError(
                f"seeds must be at least {MIN_SEEDS}, not {self.seeds}: errors of fewer runs say "
                "nothing of their spread"
            )
        if self.epochs is not None and self.epochs < 1:
            raise ValueError(f"epochs must be at least 1, not {self.epochs}")
        if len({recipe.name for recipe in self.ours()}) < len(self.presets):
            raise ValueError(f"presets must differ from each other, not {self.presets}")

    def ours(self) -> list[OurRecipe]:
        """A recipe for each preset."""
        return [
            OurRecipe(shards=self.shards, width=self.width, device=self.device, variant=variant)
            for variant in self.presets
        ]


def run_recipe_contest(
    contest: RecipeContest, report: Report = lambda line: None
) -> dict[str, Any]:
    """Trains every recipe with every seed, by turns; returns the report, JSON-able.

    report: called with a line on each step. ValueError where the shards cannot be trained from.
    """
    dataset = open_dataset(contest.shards)
    for split in ("train", "val"):
        dataset.require_images(split)
    device = find_device(contest.device)
    ours, peers = contest.ours(), []
    if contest.torchvision:
        peer = TorchvisionRecipe(contest.shards, contest.width, device)
        peers = [peer.with_rate(rate) for rate in PEER_RATES]
    measured: list[Recipe] = [*ours, *peers[:1]]  # a rate changes no epoch's time
    if contest.epochs is None:
        epochs = calibrate(measured, 60 * contest.minutes, report)
    else:
        epochs = {recipe.name: contest.epochs for recipe in measured}
    epochs |= {peer.name: epochs[peers[0].name] for peer in peers}
    runs = search_and_compare(ours, peers, epochs, contest.seeds, report)
    return {
        "results": [
            result_of(name, epochs[name], found)
            for name, found in runs.items()
            if len(found) == contest.seeds
        ],
        "rates": [
            {"rate": peer.rate, "top1_error": runs[peer.name][0].top1_error} for peer in peers
        ],
        "machine": describe_machine(Path(__file__).parent),
        "settings": {
            "minutes": None if contest.epochs else contest.minutes,
            "epochs": contest.epochs,
            "repeats": contest.seeds,
            "width": contest.width,
            "device": device.type,
            "threads": torch.get_num_threads(),
            "classes": len(dataset.classes),
            "train_images": dataset.num_samples("train"),
            "val_images": dataset.num_samples("val"),
            "fingerprint": dataset.fingerprint("train"),
        },
    }


def search_and_compare(
    ours: Sequence[Recipe],
    peers: Sequence[Recipe],
    epochs: Mapping[str, int],
    seeds: int,
    report: Report,
) -> dict[str, list[Run]]:
    """The runs by recipe: all with seed 0; with the other seeds ours, the first peer, the best.

    Best: of the peers, if any, the one of the least top-1 error with seed 0, the first of equals.
    """
    runs = take_turns([*ours, *peers], epochs, range(1), report)
    kept = [*ours, *peers[:1]]
    best = min(peers, key=lambda peer: runs[peer.name][0].top1_error, default=None)
    if best is not None and best is not peers[0]:
        kept.append(best)
    for name, more in take_turns(kept, epochs, range(1, seeds), report).items():
        runs[name] += more
    return runs


def calibrate(
    recipes: Sequence[Recipe], budget_seconds: float, report: Report
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
    recipes: Sequence[Recipe], epochs: Mapping[str, int], seeds: Sequence[int], report: Report
) -> dict[str, list[Run]]:
    """The runs of every recipe, seed by seed: with each seed all of them, one after another."""
    runs: dict[str, list[Run]] = {recipe.name: [] for recipe in recipes}
    for seed in seeds:
        for recipe in recipes:
            done = recipe.run(epochs[recipe.name], seed)
            runs[recipe.name].append(done)
            ended = ", diverged" if done.diverged else ""
            report(
                f"seed {seed}: {recipe.name}, {epochs[recipe.name]} epochs in {done.seconds:.0f} "
                f"s, top-1 error {done.top1_error:.1%}{ended}"
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
                "diverged": run.diverged,
            }
            for seed, run in enumerate(runs)
        ],
    }


def recipe_table(report: Mapping[str, Any]) -> str:
    """Top-1 errors of the validation images, by recipe and seed; those of the rates tried."""
    seeds = "".join(f"{f'seed {seed}':>9}" for seed in range(report["settings"]["repeats"]))
    lines = [
        f"{'top-1 error':<32}{'median':>9}{'min':>9}{'max':>9}{seeds}{'epochs':>9}{'seconds':>9}"
    ]
    for result in report["results"]:
        errors = [*result["top1_error"].values(), *(run["top1_error"] for run in result["runs"])]
        shown = "".join(f"{error:>9.1%}" for error in errors)
        seconds = result["train_seconds"]["median"]
        lines.append(f"{result['name']:<32}{shown}{result['epochs']:>9}{seconds:>9.0f}")
    if not report["rates"]:
        return "\n".join(lines)
    tried = ", ".join(f"{one['rate']:g}: {one['top1_error']:.1%}" for one in report["rates"])
    return "\n".join([*lines, f"torchvision's rates tried with seed 0: {tried}"])
