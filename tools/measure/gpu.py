"""All that is measured on a GPU, stage by stage, each in a process of its own, in bounded time."""

import importlib.util
import json
import math
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import torch

from pipeline.atomic import write_whole
from tools.measure.machine import describe_machine
from tools.measure.repeat import repeat_split
from tools.measure.roofline import Ceilings, measure_ceilings, work_of
from trainer.presets import find_preset

ROOT = Path(__file__).resolve().parents[2]
LIMIT_SECONDS = 480.0
TEST_PROCESSES = 6  # that share the GPU
TESTS_SECONDS = 150.0  # at most, so that time is left to measure
BATCHES = (1024, 128, 512)  # the most telling first, should time run out
STORAGES = ("resident", "raw", "jpeg")
NUM_IMAGES, MIN_IMAGES = 600, 20_000  # made up; of an epoch, in which they repeat
PASS_SECONDS = "0.7"
NUM_CLASSES = 10
Command = Sequence[str | Path]


class GpuCheck:
    """Runs the stages one after the other; one that fails is told, and the rest goes on."""

    def __init__(self, results: Path, limit_seconds: float) -> None:
        name = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
        self.path = results / f"gpu-{name}.json"
        self._limit_seconds, self._began = limit_seconds, time.monotonic()
        self.failed: dict[str, str] = {}

    def run(self) -> dict[str, Any]:
        """The report, which is also written: what was measured, and what failed and why."""
        with tempfile.TemporaryDirectory() as folder:
            stages = self._stages(Path(folder))
        ceilings = self._ceilings()
        report = {
            "machine": describe_machine(ROOT),
            "seconds": round(time.monotonic() - self._began, 1),
            "failed": self.failed,
            "ceilings": None if ceilings is None else asdict(ceilings),
            "stages": stages,
            "roofline": {} if ceilings is None else rooflines(stages, ceilings),
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.path, (json.dumps(report, indent=1) + "\n").encode())
        return report

    def _ceilings(self) -> Ceilings | None:
        """Of this GPU; None where they cannot be measured: what else was found is told."""
        try:
            return measure_ceilings(torch.device("cuda"))
        except RuntimeError as error:  # of memory, or of a GPU that a stage has left in disorder
            self.failed["ceilings"] = str(error).strip().partition("\n")[0]
            return None

    def _stages(self, folder: Path) -> dict[str, Any]:
        shards = {name: folder / name for name in ("jpeg", "raw")}
        if not self._make(folder, shards):
            return {}
        found: dict[str, Any] = {}
        tests: Command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", *_side_by_side()]
        if self._call("tests", tests, TESTS_SECONDS):
            found["tests"] = "passed"
        for name, command in commands(shards).items():
            path = folder / f"{name}.json"
            if self._call(name, [sys.executable, *command, "--json", path]):
                try:
                    found[name] = json.loads(path.read_bytes())
                except (OSError, ValueError) as error:
                    self.failed[name] = f"its measurements cannot be read: {error}"
        return found

    def _make(self, folder: Path, shards: Mapping[str, Path]) -> bool:
        """Photographs, and shards of them that repeat, JPEG and raw."""
        images = folder / "images"
        made = self._call("photographs", [
            sys.executable, ROOT / "tools/make_demo_images.py", images,
            "--train-per-class", str(NUM_IMAGES // 10), "--val-per-class", "6",
        ])  # fmt: skip
        for encoding, target in shards.items():
            source = folder / f"once-{encoding}"
            prepare: Command = [
                "tools/prepare_shards.py", images, "--out", source, "--encoding", encoding
            ]  # fmt: skip
            made = made and self._call(f"shards, {encoding}", _python(prepare))
            pca: Command = ["tools/compute_pca.py", source]
            made = made and self._call(f"pca, {encoding}", _python(pca))
            if made:
                target.mkdir()
                repeat_split(source, target, MIN_IMAGES)
        return made

    def _call(self, stage: str, command: Command, at_most: float = math.inf) -> bool:
        """Runs a command of a stage; False where it failed or took too many seconds."""
        left = self._limit_seconds - (time.monotonic() - self._began)
        if left <= 0:
            self.failed[stage] = f"not begun: {self._limit_seconds:g} s were over"
            return False
        click.secho(f"\n$ {' '.join(str(word) for word in command)}", bold=True)
        try:
            status = subprocess.run(command, cwd=ROOT, timeout=min(left, at_most)).returncode
        except subprocess.TimeoutExpired:
            self.failed[stage] = f"not ended within {min(left, at_most):.0f} s"
            return False
        except OSError as error:
            self.failed[stage] = f"cannot be started: {error.strerror}"
            return False
        if status:
            self.failed[stage] = f"exit code {status}; see what it printed"
        return not status


def commands(shards: Mapping[str, Path]) -> dict[str, list[str | Path]]:
    """What is measured on these shards, jpeg and raw, by the stage's name, in order."""
    benchmark: list[str | Path] = ["tools/benchmark.py"]
    brief = ["--device", "cuda", "--processes", "1", "--seconds", PASS_SECONDS]
    found: dict[str, list[str | Path]] = {}
    for batch in BATCHES:
        for storage in STORAGES:
            folder = shards["jpeg" if storage == "jpeg" else "raw"]
            kept = ["--resident", "device"] if storage == "resident" else []
            found[f"fed-{storage}-{batch}"] = [
                *benchmark, "fed", "--shards", folder, "--batch-size", str(batch), *brief, *kept,
            ]  # fmt: skip
        if batch == BATCHES[0]:
            for preset in ("paper", "kriz2012"):
                found[f"trainer-{preset}-{batch}"] = [
                    *benchmark, "trainer", "--shards", shards["raw"], "--preset", preset,
                    "--precision", "bf16", "--batch-size", str(batch), *brief,
                ]  # fmt: skip
            found[f"trainer-eager-{batch}"] = [
                *benchmark, "trainer", "--shards", shards["raw"], "--batch-size", str(batch),
                "--no-compile", *brief,
            ]  # fmt: skip
            found["loader"] = [
                *benchmark, "loader", "--shards", shards["jpeg"], "--backend", "dali-gpu",
                "--against", "stock-dali-gpu", "--against", "stock-dali",
                "--images", str(MIN_IMAGES), "--batch-size", "512",
            ]  # fmt: skip
    return found


def _side_by_side() -> list[str]:
    """Options for several processes of tests, where pytest-xdist is there."""
    if importlib.util.find_spec("xdist") is None:
        return []
    return ["-n", str(TEST_PROCESSES), "-p", "no:benchmark"]  # which warns beside it


def _python(command: Command) -> list[str | Path]:
    return [sys.executable, ROOT / command[0], *command[1:]]


def speed(stage: Mapping[str, Any], name: str) -> float | None:
    """The median images per second of an entrant of a stage."""
    for result in stage.get("results", []):
        if result["name"] == name:
            return float(result["images_per_second"]["median"])
    return None


def rooflines(stages: Mapping[str, Any], ceilings: Ceilings) -> dict[str, dict[str, float]]:
    """Of each stage with a step: its speed alone, and its shares of the measured ceilings."""
    found = {}
    for name, stage in stages.items():
        if not name.startswith(("fed", "trainer")) or (alone := speed(stage, "step")) is None:
            continue
        settings = stage["settings"]
        work = work_of(find_preset(settings["preset"]), NUM_CLASSES)
        shares = work.shares(ceilings, alone, settings["batch_size"])
        found[name] = {"images_per_second": alone, **shares}
    return found


def check_table(report: Mapping[str, Any]) -> str:
    """The report for people: speeds, fed ratios, shares of the ceilings, and what failed."""
    ceilings = report["ceilings"]
    told = "its ceilings could not be measured"
    if ceilings is not None:
        told = (
            f"{2e-12 * ceilings['multiply_adds']:,.0f} bf16 TFLOP/s, "
            f"{1e-9 * ceilings['bytes']:,.0f} GB/s, measured"
        )
    lines = [
        f"{report['machine']['gpu']}: {told}; {report['seconds']:.0f} s",
        f"{'stage':<24}{'images/s':>10}{'fed ratio':>11}{'matrix':>9}{'memory':>9}{'ideal':>9}",
    ]
    for name, stage in report["stages"].items():
        if name == "tests":
            continue
        shares = report["roofline"].get(name)
        if shares is None:
            for result in stage.get("results", []):
                median = result["images_per_second"]["median"]
                lines.append(f"{name + ' ' + result['name']:<24}{median:>10,.0f}")
            continue
        fed = stage.get("fed_ratio")
        told = f"{fed['median']:.3f}" if fed else "-"
        parts = "".join(f"{shares[key]:>9.0%}" for key in ("matrix", "memory", "ideal"))
        lines.append(f"{name:<24}{shares['images_per_second']:>10,.0f}{told:>11}{parts}")
    lines += [f"failed: {stage}: {why}" for stage, why in report["failed"].items()]
    return "\n".join(lines)
