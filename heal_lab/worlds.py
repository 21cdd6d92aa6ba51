"""Clocks with other numbers of hours: what luck predicts for them, and what was measured.

A sample that guesses `a # b` is right with a chance of one in `hours`, so rejection sampling lives
on luck. The prediction was written into LOG.md (2026-11-26) before any such pair was built.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from heal_lab.compare import Results
from heal_lab.evidence import DEFAULT, RESAMPLE, read_record
from heal_lab.figures import ARM_COLOUR, GREY, draw_means, verdicts
from heal_ref.evaluate import Row, rows_from_report
from heal_ref.plots import styled

FRONTIER_PROBLEMS, OPERANDS = 300, 9  # for training; b of `a # b` is 1 to 9
OTHER_STEPS = 0.95  # share of samples that are right but for the guess
TOKENS = 49  # per sample of a frontier problem
TRIES = 28  # samples of what stays unsolved that HEAL's tokens buy
REPAIRED = 0.72  # of the frontier problems that GEAR repairs, whatever the clock
RECORDS = {11: ("gear-hours-11", "hours-11", "hours-11"), 23: ("gear-pair-0", "experiment", "0"),
           47: ("gear-hours-47", "hours-47", "hours-47")}  # GEAR, arms, and the pair


@dataclass(frozen=True)
class Luck:
    """What luck predicts for a clock: tokens per genuine frontier solution by sampling, and the
    share of frontier problems that each arm's student solves."""

    tokens: float
    student: Mapping[str, float]


def luck(hours: int) -> Luck:
    """Rejection sampling solves what at least one of its tries guesses, GEAR a share that does not
    depend on the clock. Of the 9 × `hours` facts, n solved problems hold 1 − exp(−n / 9 hours), and
    the student recalls those.

    Example:
        >>> from heal_lab.worlds import luck
        >>> {arm: round(share, 2) for arm, share in luck(47).student.items()}
        {'heal': 0.4, 'rft_adaptive': 0.27}
    """
    guess = OTHER_STEPS / hours
    solved = {"heal": REPAIRED, "rft_adaptive": 1 - (1 - guess) ** TRIES}
    return Luck(TOKENS / guess, {arm: 1 - math.exp(-FRONTIER_PROBLEMS * share / (OPERANDS * hours))
                                 for arm, share in solved.items()})


def recorded() -> dict[int, tuple[list[Row], Results]]:
    """The records of each clock, by its hours: one pair each, built from seed 0."""
    return {hours: (rows_from_report(read_record(gear)), Results(read_record(arms), pair=pair))
            for hours, (gear, arms, pair) in RECORDS.items()}


def tokens_per_genuine(rows: Sequence[Row], arm: str) -> Row:
    """Teacher tokens per genuine frontier solution, with interval, from the rows of a record of
    `evidence gear`; no upper end if the yield may be 0."""
    row, = (r for r in rows if (r.arm, r.kind, r.metric) ==
            (arm, "frontier", "genuine per 1,000 tokens"))
    low, mean, high = (1000 / x if x else math.inf for x in (row.high, row.mean, row.low))
    return Row(arm, "frontier", "tokens per genuine one", mean, low, high, row.n)


@styled
def plot_worlds(worlds: Mapping[int, tuple[Sequence[Row], Results]]) -> Figure:
    """What a genuine frontier solution costs, and what the students solve, against the hours of
    the clock (log axis); dashed: `luck`. For each number of hours, the rows of its record of
    `evidence gear` and the results of its experiment. The title says where HEAL − adaptive
    rejection sampling excludes 0."""
    figure = Figure(figsize=(8.4, 3.8))
    left, right = figure.subplots(1, 2)
    hours = sorted(worlds)
    prices = {RESAMPLE: ("sampling again", "rft_adaptive"), DEFAULT: ("GEAR", "heal")}
    for arm, (name, colour) in prices.items():
        _draw(left, hours, [tokens_per_genuine(worlds[h][0], arm) for h in hours], colour, name)
    left.plot(hours, [luck(h).tokens for h in hours], "--", color=GREY,
              label="sampling again, predicted")
    for arm in ("heal", "rft_adaptive"):
        _draw(right, hours, [worlds[h][1].row(arm, "frontier") for h in hours], arm)
        right.plot(hours, [luck(h).student[arm] for h in hours], "--" if arm == "heal" else ":",
                   color=ARM_COLOUR[arm], lw=1.5, label="predicted")
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xticks(hours, [str(h) for h in hours])
        axes.minorticks_off()
        axes.set(xlabel="hours of the clock", xlim=(hours[0] / 1.3, hours[-1] * 1.3))
        axes.legend(fontsize=9)
    left.set(yscale="log", title="teacher tokens per genuine\nfrontier solution")
    right.set(ylim=(0, 1), title="pass@1, frontier")
    gaps = {str(h): worlds[h][1].difference("heal", "rft_adaptive", "frontier") for h in hours}
    figure.suptitle(f"HEAL against adaptive rejection sampling: {verdicts(gaps)} hours",
                    fontsize=11, x=0.01, ha="left")
    return figure


def _draw(axes: Any, hours: Sequence[int], rows: Sequence[Row], arm: str, label: str = "") -> None:
    """One arm's curve; HEAL's is moved, so that no interval covers another."""
    shift, line = (1.03, "o-") if arm == "heal" else (1, "s-")
    draw_means(axes, [h * shift for h in hours], rows, arm, line, label)
