"""The account of a preparation: every image found, where it went, what took the time."""

import json
from collections import Counter
from collections.abc import Sequence

import click

from pipeline.manifest import QUARANTINE_NAME
from pipeline.originals import Source
from pipeline.prepare import Outcome
from pipeline.shard_maker import Stages

NUM_SHOWN = 5  # names in a line of the account


def print_account(outcome: Outcome, source: Source, *, seconds: float) -> None:
    """Prints per split what was found, written and quarantined; reasons; seconds per stage."""
    dataset = outcome.dataset
    header = f"{'split':<7}{'found':>11}{'written':>11}{'quarantined':>13}{'shards':>8}"
    header += f"{'MB-in':>10}{'MB-out':>10}"
    click.echo(header + f"{'enlarged':>10}{'ignored':>9}")
    for name, split in dataset.splits.items():
        megabytes_out = sum(shard.bytes for shard in split.shards) / 1e6
        click.echo(
            f"{name:<7}{split.found:>11,}{split.written:>11,}{split.quarantined:>13,}"
            f"{len(split.shards):>8,}{split.source_bytes / 1e6:>10,.1f}{megabytes_out:>10,.1f}"
            f"{split.enlarged:>10,}"
            f"{source.splits[name].ignored:>9,}"
        )
    for name, count in source.unlabelled.items():
        click.echo(f"  left out, no labels: {count:,} of {name}")
    for name, listing in source.splits.items():
        if listing.strays:
            shown = _some([repr(stray) for stray in listing.strays])
            click.echo(
                f"  ignored, beside class folders and so of no class: {len(listing.strays):,} of "
                f"{name}: {shown}"
            )
    if source.empty:
        click.echo(f"  no images, so no class: {_some(source.empty)}")
    reasons: Counter[tuple[str, str]] = Counter()
    for line in (dataset.folder / QUARANTINE_NAME).read_text().splitlines():
        entry = json.loads(line)
        reasons[entry["split"], entry["reason"].partition(":")[0]] += 1
    for (name, reason), count in reasons.most_common():
        click.echo(f"  quarantined, {reason}: {count:,} of {name}")
    if reasons:
        click.echo(f"  each in {dataset.folder / QUARANTINE_NAME}")
    _print_stages(outcome.stages)
    click.echo(
        f"{outcome.num_made:,} shards made, {outcome.num_kept:,} found finished, "
        f"{len(dataset.classes):,} classes, in {seconds:,.1f} s; "
        f"next: tools/compute_pca.py {dataset.folder}"
    )


def _some(names: Sequence[str]) -> str:
    """The first few of many names, and how many more there are."""
    more = f" and {len(names) - NUM_SHOWN:,} more" if len(names) > NUM_SHOWN else ""
    return ", ".join(names[:NUM_SHOWN]) + more


def _print_stages(stages: Stages) -> None:
    """Prints the workers' seconds per stage: of each split, of the whole, and its shares."""
    if not stages:
        return
    splits, names = (list(dict.fromkeys(key[part] for key in stages)) for part in (0, 1))
    rows = {split: [stages[split, name] for name in names] for split in splits}
    whole = [sum(column) for column in zip(*rows.values(), strict=True)]
    rows["in all"] = whole
    click.echo("seconds of the workers:")
    click.echo(f"{'split':<7}" + "".join(f"{name:>10}" for name in (*names, "all")))
    for split, seconds in rows.items():
        told = "".join(f"{each:>10,.1f}" for each in (*seconds, sum(seconds)))
        click.echo(f"{split:<7}{told}")
    shares = "".join(f"{each / sum(whole):>10.0%}" for each in whole)
    click.echo(f"{'':<7}{shares}")
