"""README's loader runs as it stands there; what was measured is told by tables, not by hand."""

import re
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
MAX_LINES = 15


def test_the_loader_s_example_trains_another_model_and_saves_its_place(
    shard_folder: Path, tmp_path: Path
) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.partition("## A loader for your own training loop")[2]
    found = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert found is not None
    code = found[1]
    assert len(code.splitlines()) <= MAX_LINES
    assert "trainer" not in code  # a model that is not ours
    assert code.count("batch_size=256") == 1  # of a data set larger than the tests'
    (tmp_path / "shards").symlink_to(shard_folder)
    (tmp_path / "loop.py").write_text(code.replace("batch_size=256", "batch_size=8"))
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "loop.py"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    saved = torch.load(tmp_path / "last.pt", weights_only=True)
    assert (saved["loader"]["epoch"], saved["loader"]["step"]) == (2, 0)
    assert saved["model"]["2.weight"].isfinite().all()


def test_no_speed_was_typed_beside_the_tables_of_what_was_measured() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    measured = text.partition("\n## Measured\n")[2].partition("\n## ")[0]
    prose, num_tables = re.subn(r"<!-- table: .*?<!-- end of table -->", "", measured, flags=re.S)
    assert num_tables > 10
    speed = r"[\d,.]*\d\s+images(?:/s|\s+(?:a|per)\s+second)"
    assert re.findall(speed, "the step at 60,000 images\na second") == ["60,000 images\na second"]
    assert re.findall(speed, prose) == []
