"""The kernels of the first layer as in the paper's Figure 3, and how much each sees of colour."""

from dataclasses import dataclass
from xml.etree.ElementTree import Element, SubElement, tostring

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from torch import Tensor

from trainer.pictures import GAP_PX, KERNELS_PER_ROW, Pictures, kernel_pictures, tiled

SCALE = 6  # screen pixels per weight
WIDTH_PX, HEIGHT_PX, MARGIN_PX, BASE_PX = 360, 64, 8, 44


@dataclass(frozen=True, kw_only=True)
class Column:
    """The first-layer kernels of one of the paper's GPUs."""

    name: str
    pictures: Pictures  # (N, height, width, 3)
    colour: NDArray[np.float64]  # (N,), of each kernel; see `colour_energy`

    def sheet(self) -> NDArray[np.uint8]:
        """The kernels in rows of 16, uint8 (height, width, 4), transparent between them."""
        opaque = np.full_like(self.pictures[..., :1], 255)
        width, gap = self.pictures.shape[2] * SCALE, GAP_PX * SCALE
        solid = tiled(self.pictures, KERNELS_PER_ROW, SCALE, background=0)
        alpha = tiled(opaque.repeat(3, 3), KERNELS_PER_ROW, SCALE, background=0)
        assert solid.shape[1] <= KERNELS_PER_ROW * (width + gap) + gap
        return np.concatenate([solid, alpha[..., :1]], 2)

    def colour_strip(self) -> Markup:
        """A dot per kernel from grey (left) to pure colour (right), a tick at their median."""
        described = f"colour energy of {len(self.colour)} kernels, median {self.median:.0%}"
        root = Element("svg", {
            "viewBox": f"0 0 {WIDTH_PX} {HEIGHT_PX}", "class": "chart strip", "role": "img",
            "aria-label": described,
        })  # fmt: skip
        ends = {"x1": f"{MARGIN_PX}", "x2": f"{WIDTH_PX - MARGIN_PX}"}
        SubElement(root, "line", {"class": "grid", "y1": "44", "y2": "44", **ends})
        for i, energy in enumerate(self.colour):
            y = BASE_PX - 8 - 4 * (i * 7 % 8)  # apart from one another, in no order
            dot = SubElement(root, "circle", {
                "class": "kernel", "cx": f"{_place(energy):.1f}", "cy": f"{y}", "r": "3",
            })  # fmt: skip
            SubElement(dot, "title").text = f"kernel {i + 1}: {energy:.0%} colour"
        x = f"{_place(self.median):.1f}"
        SubElement(root, "line", {"class": "median", "x1": x, "x2": x, "y1": "2", "y2": "48"})
        for share, where in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
            text = SubElement(root, "text", {
                "class": f"tick {where}", "x": f"{_place(share):.1f}", "y": "60",
            })  # fmt: skip
            text.text = f"{share:.0%}"
        return Markup(tostring(root, encoding="unicode"))  # noqa: S704

    @property
    def median(self) -> float:
        """Of the kernels' colour energies."""
        return float(np.median(self.colour))


def kernel_columns(weights: Tensor, num_columns: int) -> list[Column]:
    """The columns of a first layer (N, 3, height, width), the first GPU's first."""
    parts = weights.detach().float().cpu().chunk(num_columns)
    names = ["GPU 1", "GPU 2"] if len(parts) == 2 else ["All kernels"]
    return [
        Column(name=name, pictures=kernel_pictures(part), colour=colour_energy(part))
        for name, part in zip(names, parts, strict=True)
    ]


def colour_energy(weights: Tensor) -> NDArray[np.float64]:
    """The share of each kernel's energy (its sum of squares) that is no grey, 0..1; (N,).

    Grey is what red, green and blue have in common at a pixel, their mean. weights: (N, 3, h, w).
    """
    values = weights.detach().double().cpu().numpy()
    whole = np.square(values).sum((1, 2, 3))
    coloured = np.square(values - values.mean(1, keepdims=True)).sum((1, 2, 3))
    return np.asarray(coloured / np.where(whole > 0, whole, 1.0))


def _place(share: float) -> float:
    return MARGIN_PX + share * (WIDTH_PX - 2 * MARGIN_PX)
