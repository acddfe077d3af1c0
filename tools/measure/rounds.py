"""The order of a measurement: warm-up of each contestant, then rounds A B C, A B C, …"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from pipeline.waits import Waits
from tools.measure.plots import images_text


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One uninterrupted stretch of a contestant's work.

    cpu_seconds: CPU time of all threads and processes that worked, the system's included.
    caller_seconds: CPU time of the thread that took the images. anonymous_bytes: of its process
    when the pass was over (RssAnon: what it keeps of files does not count), worker processes
    aside. peak_bytes: the most that its process had resident until then. batch_seconds: from each
    batch or step to the next. issued_seconds: until the host had asked a device for all of the
    work. waits: for data. None, or none, where it was not measured.
    """

    num_images: int
    seconds: float
    cpu_seconds: float | None = None
    caller_seconds: float | None = None
    anonymous_bytes: int | None = None
    peak_bytes: int | None = None
    batch_seconds: tuple[float, ...] = ()
    issued_seconds: float | None = None
    waits: Waits | None = None

    @property
    def images_per_second(self) -> float:
        """Its speed."""
        return self.num_images / self.seconds


class PassError(Exception):
    """A contestant could not do its work; the text is the reason."""


class Contestant(Protocol):
    """What is measured."""

    @property
    def name(self) -> str:
        """What it is called in tables."""

    def run_pass(self) -> Pass:
        """Does its work once and leaves nothing running; PassError where it cannot."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """passes: of each contestant that came through, one per round. failed: name to reason."""

    passes: dict[str, list[Pass]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def run_rounds(
    contestants: Sequence[Contestant],
    repeats: int,
    report: Callable[[str], None] = lambda line: None,
) -> Outcome:
    """Warms each contestant up with a pass that does not count, then measures `repeats` rounds.

    One contestant works at a time, and each round has every one of them: a machine that slows down
    for minutes slows all alike. One that fails is left out from there on, and its earlier passes
    with it. report: called with a line on each pass.
    """
    outcome = Outcome()
    for number in range(repeats + 1):
        for contestant in contestants:
            name = contestant.name
            if name in outcome.failed:
                continue
            try:
                done = contestant.run_pass()
            except PassError as error:
                outcome.failed[name] = str(error)
                outcome.passes.pop(name, None)
                report(f"{name} failed: {error}")
                continue
            what = f"round {number} of {repeats}" if number else "warm-up"
            speed = images_text(done.images_per_second)
            report(f"{what}: {name} {speed} images/s, {done.seconds:.1f} s")
            if number:
                outcome.passes.setdefault(name, []).append(done)
    return outcome
