"""Figures. Titles state the finding and are made from the numbers that are drawn.

Colours are Okabe and Ito's, which colour-blind readers can tell apart; every arm also has its own hatch or marker.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from heal_ref.config import GearConfig, PureConfig
from heal_ref.entropy import step_values
from heal_ref.evaluate import Row
from heal_ref.gear import breakpoint_of, window_end
from heal_ref.records import PureScore, Trajectory

COLOUR = {"student": "#999999", "teacher": "#000000", "rft": "#E69F00", "heal": "#0072B2"}
HATCH = {"student": "..", "teacher": "", "rft": "//", "heal": "xx"}
LABEL = {"student": "base student", "teacher": "teacher", "rft": "rejection sampling", "heal": "HEAL"}
GOOD, BAD = "#009E73", "#D55E00"
UNCERTAINTY = {"typicality": "mean entropy of the step (nats)", "forced": "answer uncertainty before the step (nats)",
               "rollout": "entropy of the answers of continuations (nats)"}
PALETTE = ("#009E73", "#E69F00", "#0072B2", "#56B4E9", "#D55E00")  # Okabe and Ito's, told apart by colour-blind readers
KIND_STYLE = {kind: (colour, marker) for kind, colour, marker in zip(
    ("mastered", "shaky", "frontier", "double", "misconceived"), PALETTE, "os^vx", strict=True)}

STYLE: Any = {"figure.figsize": (7.2, 3.8), "figure.dpi": 110, "axes.spines.top": False, "axes.spines.right": False,
         "axes.titlesize": 11, "axes.titlelocation": "left", "figure.constrained_layout.use": True, "font.size": 10}


def new_figure(**size: Any) -> tuple[Figure, Axes]:
    """A figure with the project's style; not registered with pyplot, so nothing is shown twice."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(**size)
        return figure, figure.subplots()


def kind_style(kind: str) -> tuple[str, str]:
    """Colour and marker of a kind of problem: the same in all figures."""
    return KIND_STYLE.get(kind, (PALETTE[sum(map(ord, kind)) % len(PALETTE)], "D"))


def save(figure: Figure, path: Path) -> None:
    """Write a PNG without time stamps, so that the same figure is the same file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})


def png(figure: Figure) -> bytes:
    """The figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def show(figure: Figure) -> Any:
    """The figure as a picture for a notebook: the last line of a cell."""
    from IPython.display import Image

    return Image(png(figure))


def percent(x: float | np.floating) -> str:
    """A share as whole percent, for titles."""
    return f"{100 * x:.0f} %"


def plot_ceiling(rows: Sequence[Row], metric: str = "pass@1") -> Figure:
    """One group of bars a kind of problem, one bar an arm, 95 % intervals over problems."""
    rows = [r for r in rows if r.metric == metric]
    kinds, arms = list(dict.fromkeys(r.kind for r in rows)), list(dict.fromkeys(r.arm for r in rows))
    figure, axes = new_figure()
    width = 0.8 / len(arms)
    for i, arm in enumerate(arms):
        mine = {r.kind: r for r in rows if r.arm == arm}
        mean = np.array([mine[k].mean for k in kinds])
        bounds = np.array([[mine[k].mean - mine[k].low, mine[k].high - mine[k].mean] for k in kinds]).T
        place = np.arange(len(kinds)) + (i - (len(arms) - 1) / 2) * width
        axes.bar(place, mean, width * 0.92, color=COLOUR.get(arm), hatch=HATCH.get(arm), edgecolor="white",
                 label=LABEL.get(arm, arm))
        for colour, thick in (("white", 3.2), ("#333333", 1.2)):  # an outline, so that it is seen on dark bars too
            axes.errorbar(place, mean, bounds, ls="", elinewidth=thick, capsize=2, capthick=thick, ecolor=colour)
    axes.set_xticks(range(len(kinds)), [k or "all" for k in kinds])
    axes.set_ylabel(f"share solved ({metric}, temperature 1)")
    axes.set_ylim(0, 1.05)
    axes.legend(frameon=False, ncols=len(arms), loc="upper center", bbox_to_anchor=(0.5, -0.1))
    at = {(r.arm, r.kind): r.mean for r in rows}
    if ("heal", "frontier") in at:
        axes.set_title(f"Frontier problems: teacher {percent(at['teacher', 'frontier'])}, rejection sampling "
                       f"{percent(at['rft', 'frontier'])}, HEAL {percent(at['heal', 'frontier'])}")
    return figure


def plot_reading(pieces: Sequence[str], t: Trajectory, config: GearConfig, wrong: int | None = None) -> Figure:
    """One trajectory under one reading: its text, each token shaded by its entropy, over its step entropies; the
    window, the breakpoint that the reading chooses, and, if it is known, the first wrong step.

    Args:
        pieces: the text of each token (T).
        wrong: index of the first wrong step (from a checker, for measuring only).
    """
    k, values = breakpoint_of(t, config), step_values(t.entropy, t.steps, config.step)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 2.3 + 0.26 * len(t.steps)))
        text, curve = figure.subplots(2, 1, height_ratios=(0.26 * len(t.steps), 2.0))
    _draw_text(text, pieces, t, k, wrong)
    steps = range(1, len(values) + 1)
    if config.window < 1:
        end = window_end(config.window, len(values)) + 0.5
        curve.axvspan(0.5, end, facecolor="#E8E8E8", hatch="..", edgecolor="white", lw=0, label="window")
    curve.plot(steps, values, marker="o", color=PALETTE[2], label=f"{config.step} entropy of the step")
    if wrong is not None:
        curve.plot(wrong + 1, values[wrong], "x", color=BAD, ms=13, mew=2.5, label="first wrong step")
    if k is not None:
        curve.axvline(k + 1, color="black", ls="--", lw=1, label="breakpoint")
    curve.set_xticks(list(steps))
    curve.set(xlabel="step", ylabel="entropy (nats)", ylim=(0, max([1.0, *values]) * 1.1))
    curve.legend(frameon=False, fontsize=8, ncols=2)
    found = "no step to cut at" if k is None else f"{config.step} {config.signal} chooses step {k + 1}"
    truth = "" if wrong is None else f"; the first wrong step is {wrong + 1}"
    text.set_title(f"{t.problem.question}\n{found[0].upper()}{found[1:]}{truth}", fontsize=10)
    return figure


def _draw_text(axes: Axes, pieces: Sequence[str], t: Trajectory, k: int | None, wrong: int | None) -> None:
    """The trajectory's text, one step a line, each token on a background as dark as its entropy."""
    shade = matplotlib.colormaps["Blues"]
    for row, (a, b) in enumerate(t.steps):
        mark = ("✂" if row == k else "") + ("✗" if row == wrong else "")
        axes.text(3.4, -row, f"{mark} {row + 1}", ha="right", va="center", fontsize=8, color=BAD if mark else "#555555")
        column = 4.0
        for piece, h in zip(pieces[a:b], t.entropy[a:b], strict=True):
            shown = piece.replace("\n", "")
            if shown:
                axes.add_patch(matplotlib.patches.Rectangle((column, -row - 0.45), len(shown), 0.9, lw=0,
                                                            color=shade(min(h / math.log(23), 1.0) * 0.8)))
                axes.text(column, -row, shown, family="monospace", fontsize=8, va="center",
                          color="white" if h > 2.0 else "black")
            column += len(shown)
    axes.set(xlim=(0, 104), ylim=(-len(t.steps) + 0.4, 0.6))
    axes.axis("off")


def plot_intervals(rows: Sequence[Row], metric: str, title: str, xlabel: str = "") -> Figure:
    """Means with 95 % intervals, one line an arm, one colour and marker a kind of problem."""
    rows = [r for r in rows if r.metric == metric and r.mean is not None and not math.isnan(r.mean)]
    arms, kinds = list(dict.fromkeys(r.arm for r in rows)), list(dict.fromkeys(r.kind for r in rows))
    figure, axes = new_figure(figsize=(7.2, 1.2 + 0.32 * len(arms)))
    for j, kind in enumerate(kinds):
        mine = [r for r in rows if r.kind == kind]
        y = [arms.index(r.arm) + (j - (len(kinds) - 1) / 2) * 0.16 for r in mine]
        spread = [[r.mean - r.low for r in mine], [r.high - r.mean for r in mine]]
        colour, marker = kind_style(kind)
        axes.errorbar([r.mean for r in mine], y, xerr=spread, fmt=marker, ms=5, lw=1, capsize=2, color=colour, label=kind)
    axes.set_yticks(range(len(arms)), arms)
    axes.invert_yaxis()
    axes.set(xlabel=xlabel or metric, title=title)
    axes.grid(axis="x", color="#DDDDDD", lw=0.6)
    axes.legend(frameon=False, ncols=len(kinds), loc="upper center", bbox_to_anchor=(0.5, -0.5 / (0.32 * len(arms) + 0.5)))
    return figure


def plot_aligned_entropy(failed: Sequence[Trajectory], wrong: Sequence[int], right: Sequence[Trajectory],
                         reach: int = 2) -> Figure:
    """Mean step entropy of failed trajectories, aligned on their first wrong step; right ones as a band.

    Args:
        wrong: index of the first wrong step of each failed trajectory (from the checker, for measuring only).
        reach: steps shown on either side.
    """
    figure, axes = new_figure()
    offsets = list(range(-reach, reach + 1))
    pairs = list(zip(failed, wrong, strict=True))
    columns = [[t.step_entropy[w + d] for t, w in pairs if 0 <= w + d < len(t.steps)] for d in offsets]
    mean = [float(np.mean(c)) if c else math.nan for c in columns]
    spread = [1.96 * float(np.std(c)) / math.sqrt(len(c)) if c else math.nan for c in columns]
    axes.errorbar(offsets, mean, yerr=spread, marker="o", color=BAD, capsize=3, label=f"failed ({len(failed)})")
    usual = [h for t in right for h in t.step_entropy]
    axes.axhspan(*np.percentile(usual, [10, 90]), color=GOOD, alpha=0.2, lw=0, label=f"right ({len(right)}), 10–90 % of steps")
    axes.set_xticks(offsets, [f"{d:+d}" if d else "first wrong" for d in offsets])
    axes.set_xlabel("step, counted from the first wrong one")
    axes.set_ylabel("mean step entropy (nats)")
    axes.legend(frameon=False)
    axes.set_title(f"Entropy jumps where the reasoning breaks: {mean[reach - 1]:.2f} → {mean[reach]:.2f} nats")
    return figure


def plot_filter(scored: Sequence[PureScore], genuine: Sequence[bool], threshold: float, pure: PureConfig) -> Figure:
    """Worst step of each candidate: perplexity against uncertainty, the filter's boundary for the `worst` aggregate,
    coloured by what the checker says."""
    figure, axes = new_figure()
    worst = [max(range(len(s.ratio)), key=s.ratio.__getitem__) for s in scored]
    for value, colour, marker, name in ((True, GOOD, "o", "genuine"), (False, BAD, "x", "spurious")):
        points = [(s.uncertainty[k], s.perplexity[k]) for s, k, g in zip(scored, worst, genuine, strict=True) if g == value]
        if points:
            u, ppl = zip(*points, strict=True)
            axes.scatter(u, ppl, s=14, c=colour, marker=marker, alpha=0.5, lw=0.8,
                         label=f"{name} ({len(points)})")
    if pure.aggregate == "worst":
        line = np.linspace(0, max(s.uncertainty[k] for s, k in zip(scored, worst, strict=True)), 50)
        limit = np.exp(line + threshold) if pure.reading == "typicality" else threshold * (line + pure.epsilon)
        axes.plot(line, limit, "k--", lw=1, label="PURE's boundary")
    axes.set_xlabel(UNCERTAINTY[pure.reading])
    axes.set_ylabel("step perplexity")
    axes.set_yscale("log")
    axes.legend(frameon=False)
    dropped = [s.score > threshold for s in scored]
    bad = [d for d, g in zip(dropped, genuine, strict=True) if not g]
    good = [not d for d, g in zip(dropped, genuine, strict=True) if g]
    axes.set_title(f"PURE drops {percent(np.mean(bad or math.nan))} of the spurious candidates and keeps "
                   f"{percent(np.mean(good or math.nan))} of the genuine")
    return figure


def plot_roc(scores: Mapping[str, Sequence[float]], spurious: Sequence[bool], title: str) -> Figure:
    """One curve a score: share of spurious candidates dropped against share of genuine ones lost with them."""
    figure, axes = new_figure(figsize=(7.2, 4.2))
    bad = np.asarray(spurious, dtype=bool)
    styles = ("-", "--", "-.", ":", (0, (6, 1, 1, 1)), (0, (2, 2)))
    for (name, values), colour, style in zip(scores.items(), (*PALETTE, "#000000"), styles, strict=False):
        v = np.asarray(values, dtype=float)
        limits = np.concatenate([[np.inf], np.unique(v)[::-1], [-np.inf]])
        lost, dropped = (np.array([(v[which] >= x).mean() for x in limits]) for which in (~bad, bad))
        axes.plot(lost, dropped, linestyle=style, color=colour, label=name)
    axes.axvline(0.05, color="#999999", lw=0.8)
    axes.text(0.055, 0.01, "5 %", color="#555555", fontsize=9)
    axes.set(xlabel="genuine solutions lost", ylabel="spurious solutions dropped", xlim=(0, 1), ylim=(0, 1.02), title=title)
    axes.legend(frameon=False, loc="lower right")
    return figure


def curve_points(stages: Sequence[Mapping[str, Any]]) -> list[tuple[int, dict[str, float]]]:
    """(update, accuracy by kind) through all stages, from what `pace.read_curve` reads."""
    points, before = [], 0
    for stage in stages:
        points += [(before + row["step"], row["accuracy"]) for row in stage["log"] if "accuracy" in row]
        before += stage["updates"]
    return points


def plot_stages(stages: Sequence[Mapping[str, Any]], title: str = "") -> Figure:
    """Greedy accuracy by kind against updates, through the stages of `pace.read_curve`."""
    figure, axes = new_figure()
    points = curve_points(stages)
    for kind in points[0][1]:
        colour, marker = kind_style(kind)
        axes.plot([u for u, _ in points], [a[kind] for _, a in points], color=colour, marker=marker, ms=4, label=kind or "all")
    before = 0
    for stage in stages:
        axes.axvline(before, color="#999999", lw=0.8, ls=":")
        axes.text(before + 4, 1.07, stage["stage"], color="#555555", fontsize=9)
        before += stage["updates"]
    axes.set(xlabel="updates", ylabel="greedy accuracy", ylim=(0, 1.05))
    axes.legend(frameon=False, ncols=len(points[0][1]), loc="upper center", bbox_to_anchor=(0.5, -0.16))
    if not title and "frontier" in points[0][1]:
        ends = [point["frontier"] for point in (points[0][1], points[-1][1])]
        title = f"Frontier accuracy through the stages: {percent(ends[0])} → {percent(ends[-1])}"
    axes.set_title(title, pad=18)
    return figure
