"""What was measured before a run: how fast teacher and student are, and how they write."""

import math
from collections.abc import Sequence
from typing import NamedTuple


class Writer(NamedTuple):
    """How a model writes. A decoding step takes `step` seconds, and `each` for each sequence."""

    each: float
    lengths: tuple[float, ...]  # of sampled texts, in tokens; one that was cut off counts `most`
    most: float  # tokens that a text can have
    step: float = 0.0

    def seconds(self, sequences: float, lengths: Sequence[float], shards: int, at_once: int
                ) -> float:
        """Time to write texts: a batch takes as many steps as the longest of its texts."""
        calls = shards * math.ceil(sequences / shards / at_once)
        rows = sequences / max(calls, 1)
        return calls * longest(lengths, rows) * (self.step + self.each * rows)


class Expected(NamedTuple):
    """What became of the problems that were tried while measuring."""

    guided: float  # share of the problems that the teacher mostly fails
    solved: float  # share of the problems with a correct sample
    paths: float  # wrong trajectories that are repaired, per problem
    kept: float = 0.0  # tokens before the cut
    usable: float = 1.0  # share of the hints
    hints: tuple[float, ...] = ()  # lengths; empty: as those of solutions
    led: tuple[float, ...] = ()  # lengths of answer-guided samples; empty: the same
    right: float = 1.0  # share of those that are correct


class Speed(NamedTuple):
    """Tokens per second, and mean lengths in tokens; all else is measured, or follows from them."""

    sampled: float
    scored: float
    learnt: float  # by the student, forward and backward
    prompt: float
    solution: float  # the limit where most samples did not end within the minute
    steps: float = 8.0  # per solution
    teacher: Writer | None = None
    student: Writer | None = None
    expected: Expected | None = None
    base: int = 0  # bytes of the process without any model


def longest(lengths: Sequence[float], rows: float) -> float:
    """The mean length of the longest of so many texts: E max = Σ ℓ_i ((i/m)^rows − ((i−1)/m)^rows)
    over the m lengths in order."""
    m = len(lengths)
    return sum(length * ((i / m) ** rows - ((i - 1) / m) ** rows)
               for i, length in enumerate(sorted(lengths), start=1))
