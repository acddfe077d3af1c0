"""ImageNet's own archives and Kaggle's tree: the right label for every image, or a refusal."""

import gzip
import io
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from pipeline.sources import open_source
from tests.conftest import contents, cut_file, flip_byte, tar_bytes, tar_of_tars

# The challenge numbers classes in another order than that of their names: 1 is the last here.
NUMBER_OF = {"n01": 2, "n02": 3, "n03": 1}
TRAIN = {name: {f"{name}_{i}.JPEG": f"{name} {i}".encode() for i in (2, 10)} for name in NUMBER_OF}
TRUTH = [3, 1, 1, 2, 3]
KIT = {2012: "ILSVRC2012_devkit_t12", 2010: "ILSVRC2010_devkit-1.0"}
FORMAT = {2012: "ILSVRC2012_img", 2010: "ILSVRC2010_images"}


def meta(year: int, number_of: Mapping[str, int]) -> bytes:
    """data/meta.mat of a development kit: one synset per class, more below the leaves."""
    savemat = pytest.importorskip("scipy.io").savemat
    fields = [(f"ILSVRC{year}_ID", "O"), ("WNID", "O"), ("words", "O")]
    rows = [(float(number), name, "some words") for name, number in number_of.items()]
    rows.append((1001.0, "n99", "an inner node"))
    buffer = io.BytesIO()
    savemat(buffer, {"synsets": np.array(rows, fields)[:, None]})
    return buffer.getvalue()


def write_kit(
    root: Path, year: int, *, truth: list[int] = TRUTH, content: bytes | None = None
) -> Path:
    folder = f"{KIT[year]}/data"
    files = {
        f"{KIT[year]}/readme.txt": b"about",
        f"{folder}/meta.mat": meta(year, NUMBER_OF) if content is None else content,
        f"{folder}/ILSVRC{year}_validation_ground_truth.txt": lines(truth),
    }
    path = root / f"{KIT[year]}.tar.gz"
    path.write_bytes(gzip.compress(tar_bytes(files)))
    return path


def lines(numbers: list[int]) -> bytes:
    return "".join(f"{number}\n" for number in numbers).encode()


def held_out(year: int, split: str, count: int) -> dict[str, bytes]:
    """Images of a flat archive, last name first."""
    names = [f"ILSVRC{year}_{split}_{i + 1:08d}.JPEG" for i in range(count)]
    return {name: f"{split} {name}".encode() for name in reversed(names)}


def write_challenge(root: Path, year: int) -> Path:
    root.mkdir()
    (root / f"{FORMAT[year]}_train.tar").write_bytes(tar_of_tars(TRAIN))
    val = {f"val/{name}": data for name, data in held_out(year, "val", len(TRUTH)).items()}
    (root / f"{FORMAT[year]}_val.tar").write_bytes(tar_bytes(val))
    write_kit(root, year)
    return root


def expected_held_out(year: int, split: str, truth: list[int]) -> list[tuple[str, str, bytes]]:
    name_of = {number: name for name, number in NUMBER_OF.items()}
    files = sorted(held_out(year, split, len(truth)).items())
    return [
        (f"{split}/{file}", name_of[number], data)
        for (file, data), number in zip(files, truth, strict=True)
    ]


def expected_train() -> list[tuple[str, str, bytes]]:
    return sorted(
        (f"train/{name}/{file}", name, data)
        for name, files in TRAIN.items()
        for file, data in files.items()
    )


@pytest.fixture
def challenge(tmp_path: Path) -> Path:
    return write_challenge(tmp_path / "archives", 2012)


def test_the_archives_of_2012_have_the_labels_of_the_development_kit(challenge: Path) -> None:
    before = {path: path.stat() for path in sorted(challenge.iterdir())}
    for root in (challenge, challenge / "ILSVRC2012_img_train.tar"):
        source = open_source(root)
        assert source.format == "ilsvrc2012" and source.classes == ("n01", "n02", "n03")
        assert contents(source.splits["train"], source.classes) == expected_train()
        expected = expected_held_out(2012, "val", TRUTH)
        assert contents(source.splits["val"], source.classes) == expected
    after = {path: path.stat() for path in sorted(challenge.iterdir())}
    assert {p: s.st_mtime_ns for p, s in after.items()} == {
        p: s.st_mtime_ns for p, s in before.items()
    }, "something was written beside the archives"


def test_the_training_archive_alone_is_a_source_without_val(challenge: Path) -> None:
    (challenge / "ILSVRC2012_img_val.tar").unlink()
    (challenge / "ILSVRC2012_devkit_t12.tar.gz").unlink()
    assert list(open_source(challenge).splits) == ["train"]


def test_the_validation_archive_alone_is_refused(challenge: Path) -> None:
    (challenge / "ILSVRC2012_img_train.tar").unlink()
    with pytest.raises(ValueError, match=r"has ILSVRC2012_img_val.tar and no ILSVRC2012_img_tr"):
        open_source(challenge)


def test_litter_in_the_validation_archive_is_ignored_and_counted(challenge: Path) -> None:
    files = {"._ILSVRC2012_val_00000001.JPEG": b"litter", **held_out(2012, "val", len(TRUTH))}
    (challenge / "ILSVRC2012_img_val.tar").write_bytes(tar_bytes(files))
    listing = open_source(challenge).splits["val"]
    assert (len(listing), listing.ignored) == (len(TRUTH), 1)


def test_the_archives_of_2010_have_a_labelled_test_split_and_patches(tmp_path: Path) -> None:
    root = write_challenge(tmp_path / "archives", 2010)
    truth = [1, 2, 3, 3]
    test = tar_bytes(held_out(2010, "test", len(truth)))
    (root / "ILSVRC2010_images_test.tar").write_bytes(test)
    (root / "ILSVRC2010_test_ground_truth.txt").write_bytes(lines(truth))
    patches = tar_bytes({"patch_images/n02_10.JPEG": b"mended"})
    (root / "patch_images.tar").write_bytes(patches)
    source = open_source(root)
    assert source.format == "ilsvrc2010" and list(source.splits) == ["train", "val", "test"]
    train = [
        (name, label, b"mended" if name.endswith("n02_10.JPEG") else data)
        for name, label, data in expected_train()
    ]
    assert contents(source.splits["train"], source.classes) == train
    for split, numbers in (("val", TRUTH), ("test", truth)):
        expected = expected_held_out(2010, split, numbers)
        assert contents(source.splits[split], source.classes) == expected


def test_test_images_of_2010_without_their_labels_are_refused(tmp_path: Path) -> None:
    root = write_challenge(tmp_path / "archives", 2010)
    (root / "ILSVRC2010_images_test.tar").write_bytes(tar_bytes(held_out(2010, "test", 2)))
    with pytest.raises(ValueError, match=r"ILSVRC2010_test_ground_truth.txt cannot be read"):
        open_source(root)


def no_kit(root: Path) -> None:
    (root / f"{KIT[2012]}.tar.gz").unlink()


def kit_of_2010(root: Path) -> None:
    write_kit(root, 2010).rename(root / f"{KIT[2012]}.tar.gz")


def meta_of_2010(root: Path) -> None:
    write_kit(root, 2012, content=meta(2010, NUMBER_OF))


def kit_without_truth(root: Path) -> None:
    files = {"kit/data/meta.mat": meta(2012, NUMBER_OF)}
    (root / f"{KIT[2012]}.tar.gz").write_bytes(gzip.compress(tar_bytes(files)))


def kit_not_packed(root: Path) -> None:
    (root / f"{KIT[2012]}.tar.gz").write_bytes(b"<html>please log in</html>")


def kit_cut_off(root: Path) -> None:
    cut_file(root / f"{KIT[2012]}.tar.gz", 200)


def kit_cut_short(root: Path) -> None:
    path = root / f"{KIT[2012]}.tar.gz"
    path.write_bytes(path.read_bytes()[:30])


def truth_too_short(root: Path) -> None:
    write_kit(root, 2012, truth=TRUTH[:-1])


def truth_of_words(root: Path) -> None:
    files = {
        "kit/data/meta.mat": meta(2012, NUMBER_OF),
        "kit/data/ILSVRC2012_validation_ground_truth.txt": b"1\nn01\n",
    }
    (root / f"{KIT[2012]}.tar.gz").write_bytes(gzip.compress(tar_bytes(files)))


def truth_of_unknown_class(root: Path) -> None:
    write_kit(root, 2012, truth=[*TRUTH[:-1], 77])


def truth_of_class_not_in_train(root: Path) -> None:
    write_kit(root, 2012, truth=[*TRUTH[:-1], 1001])


def val_cut_off(root: Path) -> None:
    cut_file(root / "ILSVRC2012_img_val.tar", 8000)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (no_kit, r"devkit_t12.tar.gz cannot be read .*put it beside the archives"),
        (kit_of_2010, r"has no data/ILSVRC2012_validation_ground_truth.txt: it is another kit"),
        (meta_of_2010, r"data/meta.mat in .*devkit_t12.tar.gz is not that of ILSVRC2012"),
        (kit_without_truth, r"has no data/ILSVRC2012_validation_ground_truth.txt"),
        (kit_not_packed, r"devkit_t12.tar.gz cannot be read \(Not a gzipped file"),
        (kit_cut_off, r"devkit_t12.tar.gz cannot be read"),
        (kit_cut_short, r"devkit_t12.tar.gz cannot be read"),
        (truth_too_short, r"img_val.tar has 5 images, the ground truth 4 lines; they do not"),
        (truth_of_words, r"ground truth in .*devkit_t12.tar.gz is not a list of numbers"),
        (truth_of_unknown_class, r"names class 77, which the training archive in .* lacks"),
        (truth_of_class_not_in_train, r"names class .*n99.*, which the training archive in"),
        (val_cut_off, r"img_val.tar cannot be read as a tar file \(cut off"),
    ],
)
def test_a_wrong_development_kit_is_refused(
    challenge: Path, harm: Callable[[Path], None], message: str
) -> None:
    harm(challenge)
    with pytest.raises(ValueError, match=message):
        open_source(challenge)


def test_no_damage_of_the_development_kit_gives_other_labels(challenge: Path) -> None:
    """Its gzip checksum finds each flipped byte that matters; none ends in a traceback."""
    path = challenge / f"{KIT[2012]}.tar.gz"
    sound = contents(open_source(challenge).splits["val"], ("n01", "n02", "n03"))
    whole = path.read_bytes()
    for position in range(10, len(whole)):
        flip_byte(path, position)
        try:
            source = open_source(challenge)
        except ValueError as error:
            assert path.name in str(error) or "kit" in str(error)
        else:
            assert contents(source.splits["val"], source.classes) == sound
        path.write_bytes(whole)


@pytest.mark.parametrize("size", [0, 60, 200, 400])
def test_a_damaged_meta_file_is_refused(challenge: Path, size: int) -> None:
    write_kit(challenge, 2012, content=meta(2012, NUMBER_OF)[:size])
    with pytest.raises(ValueError, match=r"data/meta.mat in .* is not that of ILSVRC2012"):
        open_source(challenge)


def test_without_scipy_the_message_names_the_extra(
    challenge: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(ValueError, match=r"pip install 'fullfeed\[ilsvrc\]'"):
        open_source(challenge)


def write_kaggle(root: Path) -> Path:
    images = root / "ILSVRC/Data/CLS-LOC"
    for name, files in TRAIN.items():
        (images / "train" / name).mkdir(parents=True)
        for file, data in files.items():
            (images / "train" / name / file).write_bytes(data)
    (images / "val").mkdir()
    rows = ["ImageId,PredictionString"]
    name_of = {number: name for name, number in NUMBER_OF.items()}
    for (file, data), number in zip(
        sorted(held_out(2012, "val", len(TRUTH)).items()), TRUTH, strict=True
    ):
        (images / "val" / file).write_bytes(data)
        rows.insert(1, f"{Path(file).stem},{name_of[number]} 10 20 30 40 n01 1 2 3 4")
    (root / "LOC_val_solution.csv").write_text("\n".join(rows) + "\n")
    return root


def test_kaggles_tree_has_the_same_originals_as_the_archives(
    challenge: Path, tmp_path: Path
) -> None:
    archives, tree = open_source(challenge), open_source(write_kaggle(tmp_path / "kaggle"))
    assert tree.format == "kaggle" and tree.classes == archives.classes
    for split in ("train", "val"):
        found = contents(tree.splits[split], tree.classes)
        assert found == contents(archives.splits[split], archives.classes)


def test_kaggles_test_images_have_no_labels_and_are_counted(tmp_path: Path) -> None:
    root = write_kaggle(tmp_path)
    assert open_source(root).unlabelled == {}
    (root / "ILSVRC/Data/CLS-LOC/test").mkdir()
    for number in range(4):
        (root / f"ILSVRC/Data/CLS-LOC/test/ILSVRC2012_test_{number:08d}.JPEG").touch()
    assert open_source(root).unlabelled == {"test": 4}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"LOC_val_solution.csv cannot be read as Kaggle's labels .*FileNotFound"),
        (b"a,b\n1,2\n", r"LOC_val_solution.csv cannot be read .*ImageId and PredictionString"),
        (b"\xff\xfe\x00", r"LOC_val_solution.csv cannot be read"),
        (b"ImageId,PredictionString\nILSVRC2012_val_00000001,\n", r"csv cannot be read"),
        (b"ImageId,PredictionString\nILSVRC2012_val_00000001\n", r"csv cannot be read"),
        (
            b"ImageId,PredictionString\nILSVRC2012_val_00000001,n77 1 2 3 4\n",
            r"val_00000001.JPEG has no label: .*csv has class n77, not in train",
        ),
        (
            b"ImageId,PredictionString\nILSVRC2012_val_00000009,n01 1 2 3 4\n",
            r"val_00000001.JPEG has no label: .*csv has no line for it",
        ),
    ],
)
def test_wrong_labels_of_kaggle_are_refused(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    root = write_kaggle(tmp_path / "kaggle")
    if content is None:
        (root / "LOC_val_solution.csv").unlink()
    else:
        (root / "LOC_val_solution.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        open_source(root)


def test_a_level_too_deep_in_kaggles_tree_is_refused(tmp_path: Path) -> None:
    root = write_kaggle(tmp_path / "kaggle")
    with pytest.raises(ValueError, match=r"CLS-LOC/val has 5 files and no class folders"):
        open_source(root / "ILSVRC/Data/CLS-LOC")
    with pytest.raises(ValueError, match="Data holds no images that can be prepared"):
        open_source(root / "ILSVRC/Data")
    (root / "ILSVRC/Annotations/CLS-LOC/train").mkdir(parents=True)
    with pytest.raises(ValueError, match="ILSVRC is part of Kaggle's tree: name the folder above"):
        open_source(root / "ILSVRC")


def test_kaggles_tree_without_val_is_a_source_without_val(tmp_path: Path) -> None:
    root = write_kaggle(tmp_path / "kaggle")
    val = root / "ILSVRC/Data/CLS-LOC/val"
    for name in os.listdir(val):
        (val / name).unlink()
    val.rmdir()
    assert list(open_source(root).splits) == ["train"]
