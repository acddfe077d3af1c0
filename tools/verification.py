"""A verification of shards with a progress bar, and its findings in print."""

import click

from pipeline.manifest import Dataset
from pipeline.verify import Findings, verify_dataset
from tools.progress import Progress


def verify(dataset: Dataset, sample: float, seed: int) -> Findings:
    """Verifies, and prints what was found."""
    total = sum(len(split.shards) for split in dataset.splits.values())
    with Progress("verify", total=total, unit="shard") as progress:
        findings = verify_dataset(dataset, sample=sample, seed=seed, report=progress.show)
    for (split, number), problems in findings.damaged.items():
        for problem in problems[:5]:
            click.echo(f"damaged: {dataset.splits[split].shards[number].name}: {problem}")
        if len(problems) > 5:
            click.echo(f"  and {len(problems) - 5} more of that shard")
    for remark in findings.remarks():
        click.echo(remark)
    for split, mix in findings.class_mix.items():
        note = ": sorted, read with --window all only" if mix.is_sorted else ""
        click.echo(f"{split}: class entropy within a shard {mix}{note}")
    verdict = "sound" if findings.sound else "NOT sound (mend: --repair SOURCE)"
    click.echo(
        f"{dataset.folder}: {findings.num_shards} shards, "
        f"{findings.num_decoded:,} images decoded: {verdict}"
    )
    return findings
