"""The demo's tour: every command in turn, as a user gives it, and a table of the results."""

import json
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Tour:
    """Runs commands of this checkout one after another and remembers how long each took."""

    folder: Path
    seconds: dict[str, float] = field(default_factory=dict)

    def run(self, name: str, *command: str | Path) -> None:
        """Runs a command, showing it; its output goes to the terminal.

        ValueError where it fails, naming it.
        """
        words = [str(word) for word in command]
        click.secho(f"\n$ {' '.join(words)}", bold=True)
        started = time.monotonic()
        status = subprocess.run([sys.executable, str(ROOT / words[0]), *words[1:]]).returncode
        self.seconds[name] = time.monotonic() - started
        if status:
            raise ValueError(f"{words[0]} ended with exit code {status}; see its message above")

    def table(self) -> str:
        """What was done and measured, a line each, read from the files the commands wrote."""
        lines = [
            ("photographs", self._photographs(), "images"),
            ("shards", self._shards(), "prepare"),
            ("lighting", self._lighting(), "pca"),
            ("training", self._training(), "train"),
            ("validation", self._validation(), "evaluate"),
            ("loader alone", self._loader(), "benchmark"),
            ("picture", f"{self.folder / 'preview.png'}: what the network is shown", "preview"),
            ("report", f"{self.folder / 'report.html'}: what it learned", "report"),
        ]
        rows = [f"{name:<13}{text:<86}{self.seconds[step]:>6.0f} s" for name, text, step in lines]
        total = f"{'in all':<13}{'':<86}{sum(self.seconds.values()):>6.0f} s"
        rule = "-" * len(total)
        return "\n".join([rule, *rows, rule, total])

    def _json(self, name: str) -> Any:
        return json.loads((self.folder / name).read_text())

    def _photographs(self) -> str:
        splits = self._json("shards/dataset.json")["splits"]
        counts = ", ".join(f"{split['found']:,} {name}" for name, split in splits.items())
        return f"{counts}, made up, in {self.folder / 'images'}"

    def _shards(self) -> str:
        splits = self._json("shards/dataset.json")["splits"].values()
        found, written, quarantined, enlarged = (
            sum(split[key] for split in splits)
            for key in ("found", "written", "quarantined", "enlarged")
        )
        megabytes = sum(shard["bytes"] for split in splits for shard in split["shards"]) / 1e6
        return (
            f"found {found:,} = written {written:,} + quarantined {quarantined:,}; "
            f"{enlarged:,} enlarged; {megabytes:.0f} MB"
        )

    def _lighting(self) -> str:
        roots = [value**0.5 for value in self._json("shards/pca.json")["eigenvalues"]]
        text = ", ".join(f"{root:.1f}" for root in roots)
        return f"square roots of the eigenvalues: {text} (0..255 units)"

    def _training(self) -> str:
        reports = (self.folder / "run/metrics.jsonl").read_text().splitlines()
        epochs = [json.loads(line) for line in reports]
        seconds = sum(epoch["train_seconds"] for epoch in epochs)
        images = sum(epoch["train_seconds"] * epoch["images_per_second"] for epoch in epochs)
        waited = sum(epoch["data_wait_seconds"] for epoch in epochs)
        return (
            f"{len(epochs)} epochs, {images / seconds:,.0f} images/s, waited for data "
            f"{waited / seconds:.1%} of the time"
        )

    def _validation(self) -> str:
        errors = self._json("evaluation.json")
        return (
            f"top-1 error {errors['top1_error']:.1%}, top-5 error {errors['top5_error']:.1%} "
            f"({errors['num_images']:,} images, ten views; chance: 90 %)"
        )

    def _loader(self) -> str:
        measured = self._json("benchmark.json")
        text = "; ".join(
            f"{result['name']} {result['images_per_second']['median']:,.0f} images/s"
            for result in measured["results"]
        )
        ratios = "; ".join(f"{name} {r['median']:.2f}" for name, r in measured["ratios"].items())
        return f"{text}; ratio {ratios}"
