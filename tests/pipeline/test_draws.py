"""Crop, flip and lighting follow from (seed, epoch, step), distributed as the paper says."""

import numpy as np
import pytest

from pipeline.draws import Draws, centre_draws, draws, lighting_offsets

# Of seed 7, epoch 2, step 5. Where NumPy changes its streams, ORDER_VERSION must be raised.
GOLDEN_CROP = [[1, 19, 0], [30, 24, 1], [9, 20, 1]]
GOLDEN_ALPHA = [
    [0.0664268446135242, -0.03054518177305256, 0.11346793752070915],
    [0.07472654092075146, 0.03563916807682948, -0.04887682536485586],
    [0.154534792770253, -0.10685908153207774, 0.03601683371399652],
]


def many() -> Draws:
    return draws(seed=3, epoch=1, step=4, batch_size=40_000)


def test_the_draws_are_those_of_version_one() -> None:
    drawn = draws(7, 2, 5, 3)
    assert drawn.crop.tolist() == GOLDEN_CROP and drawn.crop.dtype == np.int32
    np.testing.assert_allclose(drawn.alpha, GOLDEN_ALPHA, rtol=1e-15)


def test_draws_can_be_repeated_bit_equal() -> None:
    a, b = draws(1, 2, 3, 50), draws(1, 2, 3, 50)
    assert a.crop.tobytes() == b.crop.tobytes() and a.alpha.tobytes() == b.alpha.tobytes()


def test_seed_epoch_and_step_each_matter() -> None:
    seeds = (0, 1, 2**64 - 2, 2**64 - 1)
    places = [(seed, epoch, step) for seed in seeds for epoch in (0, 1) for step in (0, 1)]
    drawn = [draws(*place, 8) for place in places]
    assert len({d.crop.tobytes() for d in drawn}) == len({d.alpha.tobytes() for d in drawn}) == 16


def test_epoch_and_step_are_not_interchangeable() -> None:
    assert draws(0, 2, 3, 8).crop.tobytes() != draws(0, 3, 2, 8).crop.tobytes()


def test_crop_offsets_are_uniform_over_0_to_32_both_included() -> None:
    crop = many().crop
    for axis in (0, 1):
        counts = np.bincount(crop[:, axis], minlength=33)
        assert len(counts) == 33
        expected = len(crop) / 33
        assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)  # five standard deviations


def test_half_of_the_images_are_flipped() -> None:
    flips = many().crop[:, 2]
    assert set(flips.tolist()) == {0, 1}
    assert abs(flips.mean() - 0.5) < 5 * 0.5 / np.sqrt(len(flips))


def test_alpha_is_normal_with_standard_deviation_one_tenth() -> None:
    alpha = many().alpha
    assert np.abs(alpha.mean(0)).max() < 5 * 0.1 / np.sqrt(len(alpha))
    np.testing.assert_allclose(alpha.std(0), 0.1, rtol=0.03)
    assert abs((np.abs(alpha) < 0.1).mean() - 0.6827) < 0.01


def test_x_y_flip_and_lighting_are_independent() -> None:
    drawn = many()
    columns = np.concatenate([drawn.crop, drawn.alpha], axis=1)  # (image, 6)
    correlation = np.corrcoef(columns.T) - np.eye(6)
    assert np.abs(correlation).max() < 5 / np.sqrt(len(columns))


def test_parts_of_a_batch_are_its_slices() -> None:
    whole = draws(0, 0, 0, 12)
    parts = [whole.part(first, last) for first, last in ((0, 5), (5, 5), (5, 12))]
    assert np.concatenate([part.crop for part in parts]).tobytes() == whole.crop.tobytes()
    assert np.concatenate([part.alpha for part in parts]).tobytes() == whole.alpha.tobytes()


def test_one_image_per_crop_is_what_it_always_was() -> None:
    assert draws(7, 2, 5, 3, images_per_crop=1).crop.tolist() == GOLDEN_CROP


@pytest.mark.parametrize(("batch_size", "size"), [(128, 32), (100, 32), (8, 32), (64, 3)])
def test_runs_of_images_share_crop_and_flip_and_not_lighting(batch_size: int, size: int) -> None:
    drawn, alone = draws(3, 1, 4, batch_size, size), draws(3, 1, 4, batch_size)
    runs = [drawn.crop[first : first + size] for first in range(0, batch_size, size)]
    assert all((run == run[0]).all() for run in runs)
    assert len(drawn.crop) == batch_size
    assert len({tuple(run[0]) for run in runs}) == len(runs)  # 2178 crops: by this seed all differ
    assert drawn.alpha.tobytes() == alone.alpha.tobytes()


def test_shared_crops_are_as_uniform_as_others() -> None:
    crops = np.concatenate([draws(3, 0, step, 320, 32).crop[::32] for step in range(2000)])
    for axis, values in ((0, 33), (1, 33), (2, 2)):
        counts = np.bincount(crops[:, axis], minlength=values)
        expected = len(crops) / values
        assert len(counts) == values
        assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)


def test_unlit_draws_keep_their_crops() -> None:
    drawn = draws(7, 2, 5, 3)
    assert drawn.unlit().crop.tolist() == GOLDEN_CROP and not drawn.unlit().alpha.any()


def test_validation_shows_the_centre_unflipped_and_unlit() -> None:
    drawn = centre_draws(3)
    assert drawn.crop.tolist() == [[16, 16, 0]] * 3 and drawn.crop.dtype == np.int32
    assert (drawn.alpha == 0).all() and drawn.alpha.shape == (3, 3)


def test_lighting_is_the_eigenvectors_times_alpha_times_scale() -> None:
    rng = np.random.default_rng(0)
    vectors, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    scale, alpha = np.array([121.78, 37.09, 19.72]), rng.normal(size=(50, 3)) / 10
    expected = np.stack([vectors @ (a * scale) for a in alpha])  # the paper, section 4.1
    offsets = lighting_offsets(alpha, vectors, scale)
    assert offsets.dtype == np.float32 and offsets.shape == (50, 3)
    np.testing.assert_allclose(offsets, expected, rtol=1e-6, atol=1e-6)


def test_lighting_goes_along_columns_not_rows() -> None:
    vectors = np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    offsets = lighting_offsets(np.array([[1.0, 0.0, 0.0]]), vectors, np.array([5.0, 0.0, 0.0]))
    assert offsets.tolist() == [[0.0, 0.0, 5.0]]


@pytest.mark.parametrize("cut", [1, 3, 8, 15])
def test_lighting_of_a_slice_is_the_slice_of_lighting_bit_for_bit(cut: int) -> None:
    rng = np.random.default_rng(1)
    vectors, scale = rng.normal(size=(3, 3)), rng.uniform(1, 100, 3)
    alpha = draws(0, 0, 0, 16).alpha
    whole = lighting_offsets(alpha, vectors, scale)
    parts = [lighting_offsets(part, vectors, scale) for part in (alpha[:cut], alpha[cut:])]
    assert np.concatenate(parts).tobytes() == whole.tobytes()
