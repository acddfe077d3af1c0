"""Sums over pixels are exact integers; what follows from them equals NumPy's own."""

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.images import Pixels
from pipeline.moments import (
    MEAN_NAME,
    PCA_NAME,
    Statistics,
    Sums,
    read_statistics,
    statistics,
    write_statistics,
)
from tests.conftest import cut_file

FINGERPRINT = "f" * 64


def images(count: int = 4, seed: int = 0) -> list[Pixels]:
    """Images whose channels are correlated, each of its own brightness."""
    rng = np.random.default_rng(seed)
    grey = rng.integers(0, 256, (count, 256, 256, 1))
    tinted = grey * rng.uniform(0.3, 1.0, (count, 1, 1, 3)) + rng.integers(-9, 10, grey.shape)
    return list(np.clip(tinted, 0, 255).astype(np.uint8))


def sums_of(pictures: list[Pixels]) -> Sums:
    sums = Sums()
    for pixels in pictures:
        sums.add(pixels)
    sums.flush()
    return sums


def assert_equal(a: Sums, b: Sums) -> None:
    assert a.num_images == b.num_images
    np.testing.assert_array_equal(a.pixel_sum, b.pixel_sum)
    np.testing.assert_array_equal(a.product_sum, b.product_sum)


def test_sums_equal_a_64_bit_integer_reference() -> None:
    pictures = images()
    sums = sums_of(pictures)
    centred = np.stack(pictures).reshape(-1, 3).astype(np.int64) - 128  # (pixel, channel)
    assert sums.num_images == len(pictures)
    np.testing.assert_array_equal(sums.pixel_sum, np.stack(pictures).astype(np.int64).sum(0))
    np.testing.assert_array_equal(sums.product_sum, centred.T @ centred)


@pytest.mark.parametrize("value", [0, 255])
def test_extreme_pixels_are_summed_exactly(value: int) -> None:
    sums = sums_of([np.full((256, 256, 3), value, np.uint8)] * 2)
    assert (sums.pixel_sum == 2 * value).all()
    assert (sums.product_sum == 2 * 256 * 256 * (value - 128) ** 2).all()


def test_more_images_than_the_16_bit_buffer_holds_are_summed_exactly() -> None:
    white = np.full((256, 256, 3), 255, np.uint8)
    sums = Sums()
    for _ in range(260):  # the buffer holds 257
        sums.add(white)
    arrays = sums.arrays()
    assert (arrays["pixel_sum"] == 260 * 255).all()
    assert arrays["num_images"] == 260


def test_order_and_division_among_workers_do_not_matter() -> None:
    pictures = images(5)
    whole = sums_of(pictures)
    assert_equal(sums_of(pictures[::-1]), whole)
    merged = Sums()
    for part in (pictures[3:], pictures[:1], [], pictures[1:3]):
        merged.merge(sums_of(part))
    assert_equal(merged, whole)


def test_merge_counts_what_the_other_still_holds_back() -> None:
    pictures = images(2)
    total, other = sums_of(pictures[:1]), Sums()
    other.add(pictures[1])
    total.merge(other)
    assert_equal(total, sums_of(pictures))


def test_arrays_give_the_same_sums_back() -> None:
    sums = sums_of(images(3))
    assert sums.arrays()["pixel_sum"].dtype == np.uint32
    assert_equal(Sums.from_arrays(sums.arrays()), sums)


def test_sums_beyond_32_bits_are_kept() -> None:
    sums = sums_of(images(1))
    sums.pixel_sum[0, 0, 0] = 2**32
    assert_equal(Sums.from_arrays(sums.arrays()), sums)


def test_statistics_equal_numpy_over_all_pixels() -> None:
    pictures = images()
    found = statistics(sums_of(pictures), FINGERPRINT)
    pixels = np.stack(pictures).reshape(-1, 3).astype(float)
    np.testing.assert_allclose(found.covariance, np.cov(pixels.T, bias=True), rtol=1e-11)
    np.testing.assert_allclose(found.mean, pixels.mean(0), rtol=1e-13)
    np.testing.assert_allclose(found.std, pixels.std(0), rtol=1e-11)
    np.testing.assert_array_equal(found.mean_image, np.stack(pictures).mean(0).astype(np.float32))
    assert found.mean_image.dtype == np.float32
    assert found.num_pixels == len(pixels)


def test_eigenvectors_are_columns_and_rebuild_the_covariance() -> None:
    found = statistics(sums_of(images()), FINGERPRINT)
    vectors, values = found.eigenvectors, found.eigenvalues
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(3), atol=1e-14)
    np.testing.assert_allclose((vectors * values) @ vectors.T, found.covariance, rtol=1e-12)
    assert values[0] > values[1] > values[2] > 0


@pytest.mark.parametrize("seed", range(6))
def test_the_largest_component_of_each_eigenvector_is_positive(seed: int) -> None:
    vectors = statistics(sums_of(images(2, seed)), FINGERPRINT).eigenvectors
    assert (vectors[np.abs(vectors).argmax(0), range(3)] > 0).all()


def test_constant_images_have_no_variance_and_no_nan() -> None:
    found = statistics(sums_of([np.full((256, 256, 3), 77, np.uint8)] * 3), FINGERPRINT)
    assert (found.covariance == 0).all() and (found.eigenvalues == 0).all()
    assert (found.mean == 77).all() and np.isfinite(found.eigenvectors).all()


def test_no_images_have_no_statistics() -> None:
    with pytest.raises(ValueError, match="no image"):
        statistics(Sums(), FINGERPRINT)


@pytest.fixture
def written(tmp_path: Path) -> Statistics:
    """Statistics that lie in tmp_path."""
    found = statistics(sums_of(images(2)), FINGERPRINT)
    write_statistics(tmp_path, found)
    return found


def test_statistics_are_read_back_bit_equal(written: Statistics, tmp_path: Path) -> None:
    found = read_statistics(tmp_path, FINGERPRINT)
    names = ("mean_image", "mean", "covariance", "eigenvalues", "eigenvectors")
    for name in names:
        array: NDArray[np.float64] = getattr(written, name)
        assert getattr(found, name).tobytes() == array.tobytes(), name
    assert (found.num_pixels, found.fingerprint) == (written.num_pixels, FINGERPRINT)


@pytest.mark.parametrize("name", [PCA_NAME, MEAN_NAME])
def test_absent_statistics_are_named_with_the_command(
    written: Statistics, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).unlink()
    with pytest.raises(ValueError, match=f"has no {name}.*run: tools/compute_pca.py {tmp_path}"):
        read_statistics(tmp_path, FINGERPRINT)


@pytest.mark.parametrize("name", [PCA_NAME, MEAN_NAME])
@pytest.mark.parametrize("left", [0, 60], ids=["emptied", "cut"])
def test_damaged_statistics_are_named_with_the_command(
    written: Statistics, tmp_path: Path, name: str, left: int
) -> None:
    path = tmp_path / name
    cut_file(path, path.stat().st_size - left)
    with pytest.raises(ValueError, match=r"is damaged .*run: tools/compute_pca.py"):
        read_statistics(tmp_path, FINGERPRINT)


def test_a_number_of_pixels_without_end_is_damage(written: Statistics, tmp_path: Path) -> None:
    path = tmp_path / PCA_NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_pixels": float("inf")}))
    with pytest.raises(ValueError, match=r"is damaged .*run: tools/compute_pca.py"):
        read_statistics(tmp_path, FINGERPRINT)


@pytest.mark.parametrize("text", ["[]", "null", "{}", '{"mean": "high"}'])
def test_json_that_is_no_pca_is_refused(written: Statistics, tmp_path: Path, text: str) -> None:
    (tmp_path / PCA_NAME).write_text(text)
    with pytest.raises(ValueError, match=r"is damaged .*run: tools/compute_pca.py"):
        read_statistics(tmp_path, FINGERPRINT)


def test_statistics_of_other_shards_are_refused(written: Statistics, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"other shards.*ffffffffffff.*aaaa.*compute_pca.py"):
        read_statistics(tmp_path, "a" * 64)


def test_statistics_of_wrong_shapes_are_refused(written: Statistics, tmp_path: Path) -> None:
    np.save(tmp_path / MEAN_NAME, np.zeros((224, 224, 3), np.float32))
    with pytest.raises(ValueError, match=r"wrong shape; run: tools/compute_pca.py"):
        read_statistics(tmp_path, FINGERPRINT)


@pytest.mark.parametrize("name", ["eigenvalues", "mean", "covariance", "eigenvectors"])
def test_pca_arrays_of_wrong_shapes_are_refused(
    written: Statistics, tmp_path: Path, name: str
) -> None:
    text = json.loads((tmp_path / PCA_NAME).read_text())
    (tmp_path / PCA_NAME).write_text(json.dumps({**text, name: [1.0, 2.0]}))
    with pytest.raises(ValueError, match=r"wrong shape; run: tools/compute_pca.py"):
        read_statistics(tmp_path, FINGERPRINT)
