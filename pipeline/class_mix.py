"""How evenly classes are spread over shards or batches, against chance; what sorted shards forbid.

The measure is the class entropy within a group: of the histogram of the classes of its samples.
Groups filled at random come close to the entropy of the whole split, sorted ones to zero.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.order import Window
from pipeline.shards import Index

MIX_TAG = 0x6D6978  # "mix": keeps this stream of random numbers apart from every other
NUM_DRAWS = 16  # groupings by chance that the measured one is held against
SORTED_SHARE = 0.9  # of the entropy by chance: sorted shards have less
CHANCE_NATS = 14.0  # exp(-14): chance itself looks sorted once in a million data sets


@dataclass(frozen=True, kw_only=True)
class ClassMix:
    """Class entropy within groups, mean over their samples, in bits; and the same by chance."""

    measured_bits: float
    expected_bits: float  # mean over groupings by chance
    deviation_bits: float  # standard deviation over them
    num_samples: int  # looked at
    num_groups: int  # looked at

    @property
    def is_sorted(self) -> bool:
        """Whether classes are in runs: clearly less entropy than by chance, and not by chance.

        What is missing, in nats over all samples, is a log-likelihood ratio: chance exceeds
        sqrt(2 t) of its standard deviations plus t with a probability of about exp(-t)
        (Bernstein's bound). So a few small groups of rare classes are not taken for sorted.
        """
        missing = self.expected_bits - self.measured_bits
        to_nats = self.num_samples * np.log(2)
        by_chance = np.sqrt(2 * CHANCE_NATS) * self.deviation_bits * to_nats + CHANCE_NATS
        few = self.measured_bits < SORTED_SHARE * self.expected_bits
        return bool(few and missing * to_nats > by_chance)

    def __str__(self) -> str:
        return f"{self.measured_bits:.2f} bits, {self.expected_bits:.2f} expected by chance"


def class_mix(
    labels: NDArray[np.integer], sizes: NDArray[np.integer], max_samples: int = 2**16
) -> ClassMix:
    """The mix of groups of samples.

    labels: (sample,) >= 0, in the order of the groups. sizes: (group,), their samples; there is
    one group at least. max_samples: so many are looked at, of groups chosen at random (always of
    one group): at most 0.3 s of one core for the default, also of 15 million samples.
    """
    generator = np.random.default_rng(MIX_TAG)
    chosen = generator.permutation(len(sizes))
    num_chosen = np.searchsorted(np.cumsum(sizes[chosen]), max_samples, side="right")
    chosen = chosen[: max(1, num_chosen)]
    first = np.cumsum(sizes) - sizes
    rows = np.concatenate([np.arange(first[i], first[i] + sizes[i]) for i in chosen])
    groups = np.repeat(np.arange(len(chosen)), sizes[chosen])  # groups: (row,)
    by_chance = [
        _entropy_bits(labels[generator.choice(len(labels), len(rows), replace=False)], groups)
        for _ in range(NUM_DRAWS)
    ]
    return ClassMix(
        measured_bits=_entropy_bits(labels[rows], groups),
        expected_bits=float(np.mean(by_chance)),
        deviation_bits=float(np.std(by_chance, ddof=1)),
        num_samples=len(rows),
        num_groups=len(chosen),
    )


def shard_mix(rows: Index) -> ClassMix:
    """The mix of a split's shards, from its index rows (one at least)."""
    sizes = np.bincount(rows["shard"])
    return class_mix(rows["label"], sizes[sizes > 0])


def check_window(rows: Index, window: Window, name: str) -> None:
    """ValueError where a window smaller than the split would make batches of few classes.

    rows: the split's index. name: what the split is called in the message.
    """
    num_shards = int(rows["shard"][-1]) + 1
    if window == "all" or window >= num_shards:
        return
    mix = shard_mix(rows)
    if mix.is_sorted:
        raise ValueError(
            f"{name}: its shards are sorted by class, class entropy within a shard is {mix}; a "
            f"window of {window} of the {num_shards} shards would make batches of few classes: "
            "use --window all (window=\"all\"), or prepare again, which mixes them: "
            "tools/prepare_shards.py SOURCE --out OTHER --shuffle-seed 0"
        )


def _entropy_bits(labels: NDArray[np.integer], groups: NDArray[np.int64]) -> float:
    """Class entropy within groups, mean over samples: (sum n log n - sum k log k) / samples.

    n: samples of a group. k: samples of a group and class.
    """
    pairs = groups * (int(labels.max()) + 1) + labels
    k = np.unique(pairs, return_counts=True)[1]
    n = np.bincount(groups)
    entropy = (n * np.log2(n)).sum() - (k * np.log2(k)).sum()
    return max(0.0, float(entropy / len(labels)))  # rounding may leave it under zero
