"""Figure 3: known weights give the known picture, and the known share of colour."""

import base64
import io
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from tools.figures.inline import drawing
from tools.figures.kernels import SCALE, colour_energy, kernel_columns


def test_the_first_gpu_s_kernels_are_the_first_half_of_the_weights() -> None:
    weights = torch.zeros(96, 3, 11, 11)
    weights[48:, 0] = 1.0  # pure red in the second column
    first, second = kernel_columns(weights, 2)
    assert (first.name, second.name) == ("GPU 1", "GPU 2")
    assert first.pictures.shape == second.pictures.shape == (48, 11, 11, 3)
    assert (first.pictures == 128).all()
    assert (second.pictures == [255, 128, 128]).all()
    (alone,) = kernel_columns(weights, 1)
    assert len(alone.pictures) == 96


def test_a_sheet_has_the_known_pixels_between_transparent_gaps() -> None:
    weights = torch.zeros(17, 3, 2, 2)
    weights[16, 2, 0, 1] = -3.0  # against blue, alone in the second row
    (column,) = kernel_columns(weights, 1)
    sheet = column.sheet()
    step = SCALE * 3  # two pixels and a gap
    assert sheet.shape == (2 * step + SCALE, 16 * step + SCALE, 4)
    opaque = sheet[..., 3] == 255
    assert set(np.unique(sheet[..., 3])) == {0, 255}
    assert opaque.sum() == 17 * 4 * SCALE**2
    last = sheet[SCALE + step :, SCALE:][: 2 * SCALE, : 2 * SCALE]
    assert (last[:SCALE, SCALE:, :3] == [128, 128, 1]).all()
    assert (last[SCALE:, :, :3] == 128).all() and (last[..., 3] == 255).all()
    url = drawing(sheet)
    data = base64.b64decode(url.removeprefix("data:image/png;base64,"))
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), sheet)


def test_colour_energy_is_0_of_grey_and_1_of_what_cancels_out_in_grey() -> None:
    rng = torch.Generator().manual_seed(0)
    grey = torch.randn(1, 1, 5, 5, generator=rng).expand(1, 3, 5, 5)
    chroma = torch.randn(1, 3, 5, 5, generator=rng)
    chroma = chroma - chroma.mean(1, keepdim=True)
    red = torch.zeros(1, 3, 5, 5)
    red[:, 0] = 1.0
    black = torch.zeros(1, 3, 5, 5)
    found = colour_energy(torch.cat([grey, chroma, red, black]))
    assert found == pytest.approx([0, 1, 2 / 3, 0], abs=1e-6)


def test_the_parts_of_a_kernel_s_energy_add_up() -> None:
    weights = torch.randn(8, 3, 11, 11, generator=torch.Generator().manual_seed(1)).double()
    grey = weights.mean(1, keepdim=True).expand_as(weights)
    energy = weights.square().sum((1, 2, 3))
    assert colour_energy(weights) == pytest.approx(
        (1 - grey.square().sum((1, 2, 3)) / energy).numpy(), abs=1e-6
    )


def test_the_strip_has_a_dot_per_kernel_and_a_tick_at_the_median() -> None:
    weights = torch.zeros(3, 3, 2, 2)
    weights[0] = 1.0  # grey
    weights[1, 0] = 1.0
    weights[2, 0], weights[2, 1] = 1.0, -1.0  # colour alone
    (column,) = kernel_columns(weights, 1)
    svg = ElementTree.fromstring(column.colour_strip())
    dots = [float(e.attrib["cx"]) for e in svg.iter("circle")]
    assert dots == [8.0, pytest.approx(8 + 344 * 2 / 3, abs=0.1), 352.0]
    (median,) = [e for e in svg.iter("line") if e.attrib["class"] == "median"]
    assert float(median.attrib["x1"]) == dots[1]
