"""The random fields: their scale, their grain, and their independence."""

import numpy as np
import pytest

from tools.synthetic.noise import coarse_noise, fractal_noise


def test_noise_has_about_zero_mean_and_unit_deviation() -> None:
    rng = np.random.Generator(np.random.Philox(2))
    fields = np.stack([fractal_noise(rng, 128, 192, num_octaves=5) for _ in range(60)])
    assert abs(float(fields.mean())) < 0.15
    assert 0.8 < float(fields.std()) < 1.2


def test_every_octave_adds_detail_of_half_the_size() -> None:
    """What differs between neighbours grows with each octave, what is coarse does not vanish."""
    step_by_octaves = []
    for num_octaves in (1, 3, 5):
        rng = np.random.Generator(np.random.Philox(3))
        fields = np.stack(
            [fractal_noise(rng, 128, 128, num_octaves=num_octaves) for _ in range(20)]
        )
        step_by_octaves.append(float(np.abs(np.diff(fields, axis=2)).mean()))
        blocks = fields.reshape(20, 2, 64, 2, 64).mean(axis=(2, 4))  # (field, row, column)
        assert float(blocks.std()) > 0.25
    assert step_by_octaves[2] > 1.5 * step_by_octaves[1] > 2.25 * step_by_octaves[0]


def test_planes_are_independent() -> None:
    rng = np.random.Generator(np.random.Philox(4))
    noise = coarse_noise(rng, 200, 200, num_octaves=6, planes=(3,))
    assert noise.ndim == 3 and noise.shape[2] == 3
    correlation = np.corrcoef(noise.reshape(-1, 3), rowvar=False)
    assert np.abs(correlation - np.eye(3)).max() < 0.5


def test_no_octave_is_refused() -> None:
    with pytest.raises(ValueError, match="num_octaves must be at least 1, found 0"):
        coarse_noise(np.random.Generator(np.random.Philox(0)), 10, 10, num_octaves=0)
