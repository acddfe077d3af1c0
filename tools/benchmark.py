#!/usr/bin/env python3
"""How fast each stage is, against what else could do its work, and whether training is fed.

    tools/benchmark.py preflight shards/                         what to expect, in 30 seconds
    tools/benchmark.py fed --shards shards/ --require 0.97       exit code 1 where it is not
    tools/benchmark.py trainer --shards shards/                  the step alone: the ceiling
    tools/benchmark.py modes --shards shards/ --require 0.85     two processes against one
    tools/benchmark.py loader --shards shards/ --against torch --against stock-dali
    tools/benchmark.py peers --shards shards/                    all that are installed
    tools/benchmark.py prepare --images /path/to/photographs
    tools/benchmark.py recipe --shards shards/ --minutes 2 --seeds 3 --width 0.25
    tools/benchmark.py scale --images 15000000                   simulated: seconds, memory
"""

import click

from tools.measure.commands import loader, peers, prepare, recipe, scale
from tools.measure.fed_commands import fed, modes, preflight, trainer

COMMANDS = (preflight, fed, trainer, modes, loader, peers, prepare, recipe, scale)


@click.group(
    context_settings={"show_default": True}, commands={each.name: each for each in COMMANDS}
)
def main() -> None:
    """Measures; prints a table for people and, as last line, one JSON object for programs."""


if __name__ == "__main__":
    main()
