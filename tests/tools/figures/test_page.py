"""The page's own policy lets nothing in that it does not carry itself."""

import base64
import hashlib
import re
from pathlib import Path

from tests.tools.figures.run_folders import report, write_run
from tools.figures.chapter import Chapter
from tools.figures.page import render_page
from tools.figures.run_record import read_run


def page(folder: Path) -> str:
    run = read_run(write_run(folder / "run", [report(1), report(2, top1_error=0.7)]), "run")
    return render_page([Chapter(run=run)], [])


def test_the_policy_allows_the_page_s_style_and_data_urls_alone(tmp_path: Path) -> None:
    text = page(tmp_path)
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    (policy,) = re.findall(r'Content-Security-Policy" content="(.*?)"', text)
    assert policy.replace("&#39;", "'") == (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; "
        f"form-action 'none'"
    )
    assert "url(" not in style and "@import" not in style


def test_the_figures_at_the_top_are_of_the_best_epoch(tmp_path: Path) -> None:
    text = page(tmp_path)
    tiles = dict(re.findall(r'<dt>(.*?)</dt><dd class="value">(.*?)</dd>', text))
    assert tiles == {
        "best top-1 error": "70.0%", "top-5 error": "20.0%", "validation loss": "1.00",
        "images per second": "100", "waited for data": "10.0%", "fed ratio": "–",
    }  # fmt: skip
    assert "validation, epoch 2" in text


def test_every_link_leads_to_a_section(tmp_path: Path) -> None:
    text = page(tmp_path)
    links, ids = re.findall(r'href="#(\w+)"', text), re.findall(r'<section id="(\w+)"', text)
    assert links == ids and len(ids) == 8
