#!/usr/bin/env python3
"""Makes the tables of README and other pages from the measurements in results/.

    tools/tables.py            writes them; make tables does the same
    tools/tables.py --check    exit code 1 where a page differs from its files
"""

import sys
from pathlib import Path

import click

from pipeline.atomic import write_whole
from pipeline.messages import clear_errors
from tools.measure.tables import fill_tables

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "shards/README.md", "docs/training.md", "docs/speed.md")


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; fail where a page would change.")
@clear_errors
def main(check: bool) -> None:
    """Make the tables of README and of the pages beside it from the JSON files they name."""
    stale = []
    for name in PAGES:
        path = ROOT / name
        page = path.read_text(encoding="utf-8")
        filled = fill_tables(page, ROOT)
        if filled != page:
            stale.append(name)
            if not check:
                write_whole(path, filled.encode())
    if check and stale:
        click.echo(f"{', '.join(stale)}: tables differ from results/; run make tables", err=True)
        sys.exit(1)
    click.echo("tables written: " + ", ".join(stale) if stale else "every table is up to date")


if __name__ == "__main__":
    main()
