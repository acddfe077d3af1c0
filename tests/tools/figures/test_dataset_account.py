"""The account adds up, and shows of the quarantined what still decodes."""

import base64
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.manifest import open_dataset
from tests.conftest import BROKEN, encoded, photograph
from tools.figures.dataset_account import account_all, dataset_account, decode_leniently


def test_found_is_written_and_quarantined_by_reason(
    shard_folder: Path, image_folder: Path
) -> None:
    account = dataset_account(open_dataset(shard_folder), image_folder)
    assert account.remarks == [] and account.num_classes == 3
    train, val = account.splits
    assert (train["name"], train["found"], train["written"], train["quarantined"]) == (
        "train", 41, 39, 2,
    )  # fmt: skip
    assert (val["found"], val["quarantined"]) == (15, 0)
    assert dict(account.reasons) == {reason: 1 for reason in BROKEN.values()}
    shown = {one.source: one for one in account.shown}
    cut, text = shown["train/bee/cut.jpg"], shown["train/bee/text.jpg"]
    assert cut.picture is not None and cut.told == ""
    assert text.picture is None and text.told == "does not decode"
    data = base64.b64decode(cut.picture.partition(",")[2])
    assert Image.open(io.BytesIO(data)).size == (160, 120)  # in its own proportions


def test_originals_that_are_gone_or_not_named_are_told(
    shard_folder: Path, tmp_path: Path
) -> None:
    for originals, told in ((None, "--originals SOURCE"), (tmp_path / "gone", "not there any")):
        account = dataset_account(open_dataset(shard_folder), originals)
        assert any(told in remark for remark in account.remarks)
        assert [one.picture for one in account.shown] == [None, None]
        assert account.num_quarantined == 2


def test_an_original_that_has_changed_since_is_not_shown_as_it(
    shard_folder: Path, image_folder: Path, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(image_folder, tmp_path / "source"))
    whole = encoded(Image.fromarray(photograph(np.random.default_rng(5), 90, 90)))
    (source / "train/bee/cut.jpg").write_bytes(whole)
    account = dataset_account(open_dataset(shard_folder), source)
    assert {one.told for one in account.shown} == {
        "the file has changed since", "does not decode",
    }  # fmt: skip
    (source / "train/ant/00.jpg").unlink()  # every later id is another file's
    account = dataset_account(open_dataset(shard_folder), source)
    assert {one.told for one in account.shown} == {"the originals have changed since"}


@pytest.mark.parametrize("content", [b"{", b'{"reason": "x"}\n', b"[]\n", b"\xff\n"])
def test_a_damaged_quarantine_file_is_told(shard_copy: Path, content: bytes) -> None:
    (shard_copy / "quarantine.jsonl").write_bytes(content)
    account = dataset_account(open_dataset(shard_copy), None)
    assert account.remarks == ["quarantine.jsonl is damaged: reasons are not known."]
    assert account.num_quarantined == len(BROKEN) and not account.shown and not account.reasons


def test_a_data_set_that_several_runs_share_is_told_once(
    shard_folder: Path, shard_copy: Path
) -> None:
    here, there = open_dataset(shard_folder), open_dataset(shard_copy)
    assert len(account_all([here, here, there], None)) == 2


def test_damaged_photographs_decode_as_far_as_they_go() -> None:
    whole = photograph(np.random.default_rng(0), 320, 240)
    data = encoded(Image.fromarray(whole), quality=95)
    half = decode_leniently(data[: len(data) // 2])
    assert half.shape == whole.shape
    assert np.abs(half[:80].astype(int) - whole[:80]).mean() < 15  # its upper third is there
    assert decode_leniently(encoded(Image.fromarray(whole), "PNG")).shape == whole.shape
    for nothing in (b"", b"this is not a photograph", data[:20]):
        with pytest.raises(ValueError, match="does not decode"):
            decode_leniently(nothing)
