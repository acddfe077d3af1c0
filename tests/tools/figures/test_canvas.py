"""What is drawn on sheets is what it was given, fit for a screen."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tools.figures.canvas import INK, PAPER, fitting, label, legible, shown, tile, type_of


def test_lit_pixels_are_rounded_and_clamped_to_be_shown() -> None:
    lit = np.array([-7.0, 0.4, 99.6, 255.4, 400.0], np.float32)
    assert shown(lit).tolist() == [0, 0, 100, 255, 255]


def test_a_tile_keeps_a_plain_colour() -> None:
    pixels = np.full((256, 256, 3), (10, 200, 30), np.uint8)
    small = np.asarray(tile(pixels, 40))
    assert small.shape == (40, 40, 3) and (small == (10, 200, 30)).all()


def test_a_label_is_ink_on_paper_over_the_picture() -> None:
    sheet = Image.new("RGB", (120, 30), (0, 0, 255))
    label(ImageDraw.Draw(sheet), (10, 8), "stars", 100)
    drawn = np.asarray(sheet)
    assert (drawn[0, 0] == (0, 0, 255)).all()
    assert (drawn == PAPER).all(2).any() and (drawn >= np.array(INK) - 8).all(2).any()


@pytest.mark.parametrize("name", ["stars", "a" * 400, "a\nb\tc\u202e", "\n", "名" * 90, "…" * 99])
def test_a_name_of_any_kind_comes_to_one_line_that_fits(name: str) -> None:
    word = fitting(name, 148, 12)
    assert word.isprintable() or not word
    assert type_of(12).getlength(word) <= 148
    assert word == name or not name.isprintable() or word.endswith("…")


def test_a_name_keeps_as_much_as_there_is_room_for() -> None:
    face, word = type_of(12), fitting("abcdefghij" * 9, 148, 12)
    assert word.startswith("abcdefghij") and word.endswith("…")
    longer = ("abcdefghij" * 9)[: len(word)] + "…"
    assert face.getlength(longer) > 148


@pytest.mark.parametrize(
    ("name", "drawn"),
    [
        ("goldfish, Carassius auratus", "goldfish, Carassius auratus"),
        ("crème brûlée", "creme brulee"),
        ("Smørrebrød Łódź Æsir straße", "Smorrebrod Lodz AEsir strasse"),
        ("creme\u0301", "creme"),
        ("007 日本スピッツ", "007 …"),
        ("fox 狐 (red)", "fox … (red)"),
        ("ﬁsh №5", "fish No5"),
        ("狐", "class 7"),
        ("كلب", "class 7"),
        ("🦊!", "class 7"),
    ],
)
def test_a_name_is_drawn_in_letters_that_the_face_has(name: str, drawn: str) -> None:
    """No character comes out as the box that stands for one without a picture."""
    word = legible(name, "class 7")
    assert word == drawn
    box = bytes(type_of(12).getmask("\U0010ffff"))
    assert bytes(type_of(12).getmask("狐")) == box
    assert all(bytes(type_of(12).getmask(one)) != box for one in word)
