"""Photographs: their sizes, and that all of them comes from the generator that was passed in."""

import numpy as np

from tools.synthetic.patterns import PATTERNS
from tools.synthetic.photograph import MAX_SIDE_PX, MIN_SIDE_PX, draw_size, take_photograph
from tools.synthetic.picture import Picture


def test_sizes_stay_in_bounds_and_are_of_every_kind() -> None:
    rng = np.random.Generator(np.random.Philox(1))
    sizes = np.array([draw_size(rng) for _ in range(1000)])
    assert sizes.min() >= MIN_SIDE_PX == 80
    assert sizes.max() <= MAX_SIDE_PX == 900
    height, width = sizes.T
    assert 0.2 < np.mean(height > width) < 0.8
    short = sizes.min(axis=1)
    assert np.mean(short < 200) > 0.01 and np.mean(short > 500) > 0.01
    assert np.mean((200 < short) & (short < 400)) > 0.8


def test_no_global_generator_is_read() -> None:
    shots = []
    for seed in (1, 2):
        np.random.seed(seed)
        rng = np.random.Generator(np.random.Philox(9))
        shots.append(take_photograph(rng, PATTERNS["dots"]))
    assert shots[0].dtype == np.uint8 and shots[0].shape[2] == 3
    assert np.array_equal(shots[0], shots[1])


def test_seed_split_class_and_index_each_give_another_image() -> None:
    first = Picture(split="train", label=5, index=0, form="rgb")
    others = [
        Picture(split="val", label=5, index=0, form="rgb"),
        Picture(split="train", label=6, index=0, form="rgb"),
        Picture(split="train", label=5, index=1, form="rgb"),
    ]
    drawn = [first.draw(0), first.draw(1), *(picture.draw(0) for picture in others)]
    assert first.draw(0) == drawn[0]
    assert len(set(drawn)) == len(drawn)
