"""Tar files are read in place, whole or not at all: what is cut off or damaged is refused."""

import io
import os
import tarfile
from pathlib import Path

import pytest

from pipeline.archives import members, nested_members
from pipeline.sources import open_source
from tests.conftest import contents, flip_byte, tar_bytes, tar_of_tars

BLOCK = 512
CLASSES = {
    "n02": {"n02_7.JPEG": b"seven" * 150, "n02_10.JPEG": b"ten"},
    "n01": {"n01_1.JPEG": b"one" * 400, "n01_2.JPEG": b"two", "n01_10.JPEG": b""},
}
EXPECTED = [
    (f"train/{name}/{file}", name, CLASSES[name][file])
    for name in sorted(CLASSES)
    for file in sorted(CLASSES[name])
]


def write_outer(path: Path) -> Path:
    path.write_bytes(tar_of_tars(CLASSES))
    return path


def write_inner(folder: Path) -> Path:
    folder.mkdir()
    for name, files in CLASSES.items():
        (folder / f"{name}.tar").write_bytes(tar_bytes(files))
    return folder


def test_members_are_where_the_archive_says(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(tar_bytes(CLASSES["n01"]))
    data = path.read_bytes()
    found = {m.name.decode(): data[m.offset :][: m.size] for m in members(path)}
    assert found == CLASSES["n01"]


def test_class_tars_are_the_same_in_one_tar_and_in_a_folder(tmp_path: Path) -> None:
    outer, inner = write_outer(tmp_path / "all.tar"), write_inner(tmp_path / "each")
    for root in (outer, inner):
        source = open_source(root)
        assert (source.format, source.classes) == ("class-tars", ("n01", "n02"))
        assert list(source.splits) == ["train"]
        assert contents(source.splits["train"], source.classes) == EXPECTED


def test_names_are_sorted_bytewise_whatever_the_order_of_the_archive(tmp_path: Path) -> None:
    names = ["b", "a", "a-b", "A"]
    classes = {name: {"2.jpg": b"2", "10.jpg": b"10", "é.jpg": b"e"} for name in names}
    (tmp_path / "all.tar").write_bytes(tar_of_tars(classes))
    source = open_source(tmp_path / "all.tar")
    found = contents(source.splits["train"], source.classes)
    listed = [os.fsencode(name) for name, _, _ in found]
    assert listed == sorted(listed) and len(listed) == 12
    assert source.classes == ("A", "a", "a-b", "b")
    assert all(name.split("/")[1] == label for name, label, _ in found)


def test_folders_within_class_tars_and_of_class_tars_are_left_out_of_names(
    tmp_path: Path,
) -> None:
    inner = tar_bytes({"x/y/n01_1.JPEG": b"one"})
    (tmp_path / "a.tar").write_bytes(tar_bytes({"train/n01.tar": inner}))
    source = open_source(tmp_path / "a.tar")
    expected = [("train/n01/n01_1.JPEG", "n01", b"one")]
    assert contents(source.splits["train"], source.classes) == expected


def test_litter_in_archives_is_ignored_and_counted_and_makes_no_class(tmp_path: Path) -> None:
    classes = {
        "n01": {"._n01_1.JPEG": b"litter", "n01_1.JPEG": b"one", "Thumbs.db": b"litter"},
        "n02": {".DS_Store": b"litter"},
    }
    outer = {f"{name}.tar": tar_bytes(files) for name, files in classes.items()}
    outer["._n01.tar"] = b"no tar file at all"
    (tmp_path / "all.tar").write_bytes(tar_bytes(outer))
    each = tmp_path / "each"
    each.mkdir()
    for name, data in outer.items():
        (each / name).write_bytes(data)
    for root in (tmp_path / "all.tar", each):
        source = open_source(root)
        assert source.classes == ("n01",) and source.empty == ("n02",)
        assert list(source.splits["train"].names) == [b"train/n01/n01_1.JPEG"]
        assert source.splits["train"].ignored == 3


def test_a_class_in_two_archives_is_one_class(tmp_path: Path) -> None:
    parts = [tar_bytes({f"n01_{i}.JPEG": b"%d" % i}) for i in range(2)]
    files = {"a/n01.tar": parts[0], "b/n01.tar": parts[1]}
    (tmp_path / "a.tar").write_bytes(tar_bytes(files))
    source = open_source(tmp_path / "a.tar")
    assert source.classes == ("n01",)
    assert [name for _, name, _ in contents(source.splits["train"], source.classes)] == 2 * ["n01"]


def test_names_that_are_not_utf8_are_kept_in_archives(tmp_path: Path) -> None:
    name = os.fsdecode(b"n\xe9")
    (tmp_path / "a.tar").write_bytes(tar_of_tars({name: {f"{name} 1.JPEG": b"one"}}))
    source = open_source(tmp_path / "a.tar")
    assert source.classes == (name,)
    assert list(source.splits["train"].names) == [b"train/n\xe9/n\xe9 1.JPEG"]
    (tmp_path / "each").mkdir()
    (tmp_path / "each" / f"{name}.tar").write_bytes(tar_bytes({"1.JPEG": b"one"}))
    assert open_source(tmp_path / "each").classes == (name,)


def whole_tar(path: Path) -> bytes:
    """A tar file without the padding that tarfile adds: two empty blocks at its end."""
    data = tar_bytes(CLASSES["n01"])
    path.write_bytes(data)
    end = max(-(-(m.offset + m.size) // BLOCK) * BLOCK for m in members(path))
    return data[: end + 2 * BLOCK]


def test_a_tar_cut_off_anywhere_before_its_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "n01.tar"
    data = whole_tar(path)
    for size in range(1, len(data) - 2 * BLOCK + 1, 64):
        path.write_bytes(data[:size])
        with pytest.raises(ValueError, match=r"n01.tar cannot be read .*; copy or download"):
            members(path)
    path.write_bytes(data)
    assert len(members(path)) == 3


def test_a_tar_of_tars_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    path = write_outer(tmp_path / "all.tar")
    data = path.read_bytes().rstrip(b"\0")
    for size in range(1, len(data) - BLOCK, 1000):
        path.write_bytes(data[:size])
        with pytest.raises(ValueError, match=r"all.tar cannot be read .*; copy or download"):
            list(nested_members(path))


def test_a_class_tar_cut_off_before_it_was_packed_is_refused(tmp_path: Path) -> None:
    whole = whole_tar(tmp_path / "whole.tar")
    for size in (len(whole) - 2 * BLOCK, 3 * BLOCK, 2 * BLOCK + 40, BLOCK, 100):
        outer = tar_bytes({"n00.tar": whole, "n01.tar": whole[:size]})
        (tmp_path / "all.tar").write_bytes(outer)
        with pytest.raises(ValueError, match=r"all.tar cannot be read as a tar file \("):
            open_source(tmp_path / "all.tar")


def test_a_damaged_header_is_refused_and_does_not_end_the_listing(tmp_path: Path) -> None:
    path = tmp_path / "n01.tar"
    path.write_bytes(tar_bytes(CLASSES["n01"]))
    second = members(path)[1]
    flip_byte(path, second.offset - BLOCK + 100)
    with pytest.raises(ValueError, match=r"n01.tar cannot be read .*damaged after n01_1.JPEG"):
        members(path)


def test_a_member_of_negative_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "n01.tar"
    path.write_bytes(tar_bytes({"1.jpg": b"one", "2.jpg": b"two", "3.jpg": b"x"}))
    data = bytearray(path.read_bytes())
    header = data[2048:2560]
    header[124:136] = b"\xff" * 10 + (-1536 & 0xFFFF).to_bytes(2, "big")  # to the second
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    data[2048:2560] = header
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"n01.tar cannot be read as a tar file \(damaged"):
        members(path)


@pytest.mark.parametrize("data", [b"", b"not a tar file" * 100, bytes(4096)])
def test_what_is_no_tar_or_holds_nothing_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "odd.tar"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"odd.tar (cannot be read|holds no class archives)"):
        open_source(path)


def test_a_compressed_tar_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "packed.tar"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(write_outer(tmp_path / "all.tar"), "n01.tar")
    with pytest.raises(ValueError, match="packed.tar cannot be read as a tar file"):
        open_source(path)


def test_an_archive_that_becomes_shorter_ends_the_reading(tmp_path: Path) -> None:
    path = write_outer(tmp_path / "all.tar")
    listing = open_source(path).splits["train"]
    assert listing.places.read(0)
    os.truncate(path, 1000)
    with pytest.raises(OSError, match="all.tar was cut off while it was read; start again"):
        listing.places.read(0)


def test_more_archives_than_a_process_may_open_are_read(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    for i in range(300):
        (tmp_path / f"n{i:03d}.tar").write_bytes(tar_bytes({"1.JPEG": b"%d" % i}))
    listing = open_source(tmp_path).splits["train"]
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    try:
        found = [listing.places.read(i) for i in range(300)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert found == [b"%d" % i for i in range(300)]


def test_a_hard_link_is_its_file_and_other_links_are_seen_without_bytes(tmp_path: Path) -> None:
    path = tmp_path / "n1.tar"
    with tarfile.open(path, "w") as tar:
        folder = tarfile.TarInfo("sub")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        file = tarfile.TarInfo("a.jpg")
        file.size = 5
        tar.addfile(file, io.BytesIO(b"bytes"))
        for name, kind, target in (
            ("b.jpg", tarfile.LNKTYPE, "a.jpg"),
            ("c.jpg", tarfile.SYMTYPE, "a.jpg"),
            ("d.jpg", tarfile.LNKTYPE, "nowhere.jpg"),
        ):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, target
            tar.addfile(link)
    found = open_source(path.parent, "class-tars").splits["train"]
    assert [bytes(found.places.read(i)) for i in range(4)] == [b"bytes", b"bytes", b"", b""]
    assert list(found.names) == [f"train/n1/{letter}.jpg".encode() for letter in "abcd"]


@pytest.mark.parametrize("name", ["fall11_whole.tar", "winter21_whole.tar"])
def test_a_tar_of_tars_alone_in_a_folder_is_taken_for_what_it_is(
    tmp_path: Path, name: str
) -> None:
    expected = open_source(write_outer(tmp_path / "elsewhere.tar"))
    (tmp_path / "folder").mkdir()
    write_outer(tmp_path / "folder" / name)
    (tmp_path / "folder" / "README").write_text("beside it")
    source = open_source(tmp_path / "folder")
    assert source.classes == expected.classes == ("n01", "n02")
    assert contents(source.splits["train"], source.classes) == EXPECTED


def test_a_class_tar_alone_in_a_folder_is_a_class(tmp_path: Path) -> None:
    (tmp_path / "n01.tar").write_bytes(tar_bytes(CLASSES["n01"]))
    assert open_source(tmp_path).classes == ("n01",)


@pytest.mark.parametrize("name", ["winter21_whole.tar.gz", "n01.tgz", "n01.tar.zst"])
@pytest.mark.parametrize("named", [True, False])
def test_compressed_archives_are_refused_with_what_to_do(
    tmp_path: Path, name: str, named: bool
) -> None:
    (tmp_path / name).write_bytes(b"\x1f\x8b packed")
    with pytest.raises(ValueError, match=rf"{name} is compressed, .* unpack it to a .tar"):
        open_source(tmp_path / name if named else tmp_path)


def test_a_compressed_file_beside_class_tars_does_no_harm(tmp_path: Path) -> None:
    folder = write_inner(tmp_path / "folder")
    (folder / "devkit.tar.gz").write_bytes(b"\x1f\x8b packed")
    assert open_source(folder).classes == ("n01", "n02")
