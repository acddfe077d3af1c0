"""How much of a preparation is done: what progress bars and accounts add up."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Tally:
    """images: originals looked at. quarantined: of them. source_bytes: their size on disk."""

    images: int = 0
    quarantined: int = 0
    source_bytes: int = 0

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(
            images=self.images + other.images,
            quarantined=self.quarantined + other.quarantined,
            source_bytes=self.source_bytes + other.source_bytes,
        )
