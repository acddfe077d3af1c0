"""Exact integer sums over pixels, and what follows: mean image, covariance, eigenvectors.

Everything is summed as integers, so the result depends neither on the order of the images nor on
how they were divided among workers.
"""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.atomic import write_whole
from pipeline.images import SIZE_PX, Pixels
from pipeline.transfer import read_file

CENTRE = 128  # products are of values centred here: sums over 10**9 images fit int64
PCA_NAME = "pca.json"
MEAN_NAME = "mean.npy"
# Square roots of ImageNet's eigenvalues, 0..255 units (computerhistory/AlexNet-Source-Code)
ROOTS_2012 = (121.8, 37.1, 19.7)


class Sums:
    """Sums over images of (256, 256, 3) uint8: exact for up to 10**9 images.

    num_images: how many. pixel_sum: int64 (256, 256, 3), the sum of values at each position.
    product_sum: int64 (3, 3), over all pixels, of the products of channel values less 128.
    """

    def __init__(self) -> None:
        self.num_images = 0
        self.pixel_sum: NDArray[np.int64] = np.zeros((SIZE_PX, SIZE_PX, 3), np.int64)
        self.product_sum: NDArray[np.int64] = np.zeros((3, 3), np.int64)
        self._pending: NDArray[np.uint16] = np.zeros((SIZE_PX, SIZE_PX, 3), np.uint16)
        self._num_pending = 0
        self._planes = tuple(np.empty((SIZE_PX, SIZE_PX), np.uint8) for _ in range(3))

    def add(self, pixels: Pixels) -> None:
        """Adds one image, (256, 256, 3) uint8 RGB."""
        assert pixels.shape == (SIZE_PX, SIZE_PX, 3) and pixels.dtype == np.uint8
        self._pending += pixels  # uint16 holds 257 images of 255; four times as fast as int64
        self._num_pending += 1
        if self._num_pending == 257:
            self.flush()
        cv2.split(pixels, self._planes)  # into memory that is in the cache already
        self.product_sum += _centred_products(self._planes)
        self.num_images += 1

    def flush(self) -> None:
        """Moves what `add` holds back for speed into `pixel_sum`."""
        self.pixel_sum += self._pending
        self._pending[:] = 0
        self._num_pending = 0

    def merge(self, other: "Sums") -> None:
        """Adds all images of `other`."""
        other.flush()
        self.num_images += other.num_images
        self.pixel_sum += other.pixel_sum
        self.product_sum += other.product_sum

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The sums as named arrays, for a .npz file; pixel sums in 32 bits where they fit."""
        self.flush()
        fits = self.pixel_sum.max(initial=0) < 2**32
        return {
            "num_images": np.array(self.num_images, np.int64),
            "pixel_sum": self.pixel_sum.astype(np.uint32) if fits else self.pixel_sum,
            "product_sum": self.product_sum,
        }

    @classmethod
    def from_arrays(cls, arrays: Any) -> "Sums":
        """The sums that `arrays()` gave (or the opened .npz file of them)."""
        sums = cls()
        sums.num_images = int(arrays["num_images"])
        sums.pixel_sum = arrays["pixel_sum"].astype(np.int64)
        sums.product_sum = arrays["product_sum"].astype(np.int64)
        return sums


def _centred_products(planes: Sequence[NDArray[np.uint8]]) -> NDArray[np.int64]:
    """Sums over the pixels of (a - 128)(b - 128) for planes a, b: int64 (3, 3), exact.

    By OpenCV's sums of squares, exact for bytes (integers up to 2**31, then float64 below 2**53):
    2 ab = a**2 + b**2 - (a - b)**2. Three times as fast as products of float32 planes.
    """
    totals = [int(cv2.sumElems(plane)[0]) for plane in planes]
    squares = [round(cv2.norm(plane, cv2.NORM_L2SQR)) for plane in planes]
    products = np.empty((3, 3), np.int64)
    for i in range(3):
        for j in range(i, 3):
            gap = round(cv2.norm(planes[i], planes[j], cv2.NORM_L2SQR)) if i != j else 0
            product = (squares[i] + squares[j] - gap) // 2
            product += CENTRE * CENTRE * SIZE_PX * SIZE_PX - CENTRE * (totals[i] + totals[j])
            products[i, j] = products[j, i] = product
    return products


@dataclass(frozen=True)
class Statistics:
    """Mean image and colour covariance of a split, in 0..255 units, RGB.

    eigenvalues are variances, descending; eigenvectors are the columns of (3, 3), each with its
    largest component positive; mean_image is float32 (256, 256, 3).
    """

    mean_image: NDArray[np.float32]
    mean: NDArray[np.float64]  # (3,)
    covariance: NDArray[np.float64]  # (3, 3)
    eigenvalues: NDArray[np.float64]  # (3,)
    eigenvectors: NDArray[np.float64]  # (component, principal axis)
    num_pixels: int
    fingerprint: str

    @property
    def std(self) -> NDArray[np.float64]:
        """Standard deviation of each channel, (3,)."""
        return np.sqrt(np.diag(self.covariance))


def statistics(sums: Sums, fingerprint: str) -> Statistics:
    """Mean image, mean colour, covariance (of the population) and its eigenvectors.

    The covariance is computed in rational numbers and rounded once. ValueError where no image was
    summed.
    """
    sums.flush()
    if sums.num_images == 0:
        raise ValueError("there is no image to take statistics of")
    num_pixels = sums.num_images * SIZE_PX * SIZE_PX
    totals = [int(x) - CENTRE * num_pixels for x in sums.pixel_sum.sum((0, 1))]
    covariance = np.empty((3, 3))
    for i in range(3):
        for j in range(3):
            product = num_pixels * int(sums.product_sum[i, j]) - totals[i] * totals[j]
            covariance[i, j] = float(Fraction(product, num_pixels**2))
    eigenvalues, eigenvectors = np.linalg.eigh(covariance)  # ascending
    eigenvalues, eigenvectors = np.maximum(eigenvalues[::-1], 0.0), eigenvectors[:, ::-1]
    largest = np.abs(eigenvectors).argmax(0)
    signs = np.where(eigenvectors[largest, np.arange(3)] < 0, -1.0, 1.0)
    return Statistics(
        mean_image=(sums.pixel_sum / sums.num_images).astype(np.float32),
        mean=np.array([float(CENTRE + Fraction(x, num_pixels)) for x in totals]),
        covariance=covariance,
        eigenvalues=eigenvalues,
        eigenvectors=eigenvectors * signs,
        num_pixels=num_pixels,
        fingerprint=fingerprint,
    )


def same_statistics(one: Statistics, other: Statistics) -> bool:
    """Whether two statistics are equal; eigenvectors, which differ by library, to 1e-9."""
    exact = all(
        np.array_equal(getattr(one, name), getattr(other, name))
        for name in ("mean_image", "mean", "covariance", "num_pixels", "fingerprint")
    )
    rebuilt = one.eigenvectors * one.eigenvalues @ one.eigenvectors.T
    scale = np.abs(other.covariance).max()
    return exact and bool(np.abs(rebuilt - other.covariance).max() <= 1e-9 * scale)


def write_statistics(folder: Path, found: Statistics) -> None:
    """Writes mean.npy and pca.json into a shard folder (pca.json last: it names the shards)."""
    buffer = io.BytesIO()
    np.save(buffer, found.mean_image, allow_pickle=False)
    write_whole(folder / MEAN_NAME, buffer.getvalue())
    text = {
        "eigenvalues": found.eigenvalues.tolist(),
        "eigenvectors": found.eigenvectors.tolist(),
        "covariance": found.covariance.tolist(),
        "mean": found.mean.tolist(),
        "num_pixels": found.num_pixels,
        "fingerprint": found.fingerprint,
    }
    write_whole(folder / PCA_NAME, (json.dumps(text, indent=2) + "\n").encode())


def read_statistics(folder: Path, fingerprint: str) -> Statistics:
    """The statistics of the shards in `folder`, whose training split has this `fingerprint`.

    ValueError, with the command that mends it, where they are absent, damaged, or were computed
    from other shards.
    """
    mend = f"run: tools/compute_pca.py {folder}"
    try:
        text = json.loads(read_file(folder / PCA_NAME))
        mean_image = np.load(io.BytesIO(read_file(folder / MEAN_NAME)), allow_pickle=False)
        found = Statistics(
            mean_image=mean_image,
            mean=np.array(text["mean"], np.float64),
            covariance=np.array(text["covariance"], np.float64),
            eigenvalues=np.array(text["eigenvalues"], np.float64),
            eigenvectors=np.array(text["eigenvectors"], np.float64),
            num_pixels=int(text["num_pixels"]),
            fingerprint=str(text["fingerprint"]),
        )
    except FileNotFoundError as error:
        name = Path(error.filename).name
        raise ValueError(f"{folder} has no {name}, which lighting and mean need; {mend}") from None
    except OSError as error:
        raise ValueError(f"{error.filename} cannot be read: {error.strerror}") from error
    except (
        ValueError, KeyError, TypeError, EOFError, OverflowError, RecursionError
    ) as error:  # fmt: skip
        raise ValueError(
            f"{folder / PCA_NAME} or {MEAN_NAME} is damaged ({error}); {mend}"
        ) from error
    if found.fingerprint != fingerprint:
        raise ValueError(
            f"{folder / PCA_NAME} was computed from other shards (fingerprint "
            f"{found.fingerprint[:12]}, these have {fingerprint[:12]}); {mend}"
        )
    shapes = [found.eigenvectors.shape, found.covariance.shape, mean_image.shape]
    shapes += [found.eigenvalues.shape, found.mean.shape]
    if shapes != [(3, 3), (3, 3), (SIZE_PX, SIZE_PX, 3), (3,), (3,)]:
        raise ValueError(f"{folder / PCA_NAME} or {MEAN_NAME} has a wrong shape; {mend}")
    return found
