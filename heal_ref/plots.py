"""Figures. Titles state the finding and are made from the numbers that are drawn. Colours are Okabe
and Ito's, for colour-blind readers; hatches and markers repeat what they say."""

import io
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator

from heal_ref.config import GearConfig, PureConfig
from heal_ref.entropy import step_values
from heal_ref.evaluate import Row
from heal_ref.gear import breakpoint_of, window_end
from heal_ref.records import PureScore, Trajectory

LABEL = {"student": "base student", "rft": "rejection sampling", "heal": "HEAL"}
COLOUR = {"student": "#999999", "teacher": "#000000", "rft": "#E69F00", "heal": "#0072B2"}
HATCH = {"student": "..", "teacher": "", "rft": "//", "heal": "xx"}
PALETTE = ("#009E73", "#E69F00", "#0072B2", "#56B4E9", "#D55E00")
GOOD, BAD = PALETTE[0], PALETTE[4]
STYLE: Any = {
    "figure.figsize": (7.2, 3.8), "figure.dpi": 110, "figure.constrained_layout.use": True,
    "axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left",
    "axes.titlesize": 11, "font.size": 10, "legend.frameon": False, "legend.handlelength": 3,
}
styled = matplotlib.rc_context(STYLE)  # a decorator: what the function draws has this style


@styled
def new_figure(**size: Any) -> tuple[Figure, Axes]:
    """A figure with the project's style; pyplot does not know it, so nothing is shown twice."""
    figure = Figure(**size)
    return figure, figure.subplots()


def png(figure: Figure) -> bytes:
    """The figure as a PNG file, without a software stamp: the same figure is the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def picture(figure: Figure) -> bytes:
    """The figure as a PNG file of 128 colours, for notebooks: less than half as large."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.open(io.BytesIO(png(figure))).convert("RGB").quantize(128).save(buffer, "PNG")
    return buffer.getvalue()


def save(figure: Figure, path: Path) -> None:
    """Write a PNG file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(figure))


def show(figure: Figure) -> Any:
    """The figure as a picture for a notebook: the last line of a cell."""
    from IPython.display import Image

    return Image(picture(figure))


def show_table(lines: Sequence[Sequence[Any]]) -> Any:
    """A header and rows as a table for a notebook: the last line of a cell."""
    from IPython.display import Markdown

    def cell(value: Any) -> str:
        text = str(value).replace("|", r"\|")
        return re.sub(r" (\[\S+,) ", "\u00a0\\1\u00a0", text)  # an interval stays on one line

    head, *body = [[cell(value) for value in line] for line in lines]
    rows = [head, ["---"] * len(head), *body]
    return Markdown("\n".join(f"| {' | '.join(row)} |" for row in rows))


def with_interval(row: Row, sign: str = "") -> str:
    """"0.71 [0.64, 0.78]", signed if `sign` is "+"; a dash where no mean can be taken."""
    if row.mean is None or math.isnan(row.mean):
        return "–"
    return f"{row.mean:{sign}.2f} [{row.low:{sign}.2f}, {row.high:{sign}.2f}]"


@styled
def plot_ceiling(rows: Sequence[Row], metric: str = "pass@1") -> Figure:
    """One group of bars per kind of problem, one bar per arm; 95 % intervals over problems."""
    at = {(r.arm, r.kind): r for r in rows if r.metric == metric}
    arms = list(dict.fromkeys(arm for arm, _ in at))
    kinds = list(dict.fromkeys(kind for _, kind in at))
    figure, axes = new_figure()
    width = 0.8 / len(arms)
    for i, arm in enumerate(arms):
        mine = [at[arm, kind] for kind in kinds]
        means = [r.mean for r in mine]
        errors = [r.mean - r.low for r in mine], [r.high - r.mean for r in mine]
        place = np.arange(len(kinds)) + (i - (len(arms) - 1) / 2) * width
        axes.bar(place, means, width * 0.92, color=COLOUR.get(arm), hatch=HATCH.get(arm),
                 edgecolor="white", label=LABEL.get(arm, arm))
        for colour, line in (("white", 3.2), ("#333333", 1.2)):  # outlined: visible on dark bars
            axes.errorbar(place, means, errors, ls="", elinewidth=line, capthick=line, capsize=2,
                          ecolor=colour)
    axes.set_xticks(range(len(kinds)), [kind or "all" for kind in kinds])
    axes.set(ylabel=f"share solved ({metric})", ylim=(0, 1.05))
    figure.legend(loc="outside lower center", ncols=len(arms))
    if {"teacher", "rft", "heal"} <= set(arms):  # title: the kind on which HEAL gains most
        best = max(kinds, key=lambda kind: at["heal", kind].mean - at["rft", kind].mean)
        teacher, rft, heal = (at[arm, best].mean for arm in ("teacher", "rft", "heal"))
        axes.set_title(f"{(best or 'all').capitalize()} problems: teacher {teacher:.0%}, "
                       f"rejection sampling {rft:.0%}, HEAL {heal:.0%}")
    return figure


@styled
def plot_reading(pieces: Sequence[str], t: Trajectory, config: GearConfig,
                 wrong: int | None = None) -> Figure:
    """One trajectory under one reading: its text (`pieces`, one per token, as dark as its entropy)
    above its step entropies, with window, breakpoint and, if known, the first wrong step."""
    k, values = breakpoint_of(t, config), step_values(t.entropy, t.steps, config.step)
    height, name = 0.26 * max(1, len(t.steps)), f"{config.step} {config.signal}"
    figure = Figure(figsize=(7.2, 2.3 + height))
    text, curve = figure.subplots(2, 1, height_ratios=(height, 2.0))
    _draw_text(text, pieces, t, {k: "✂", wrong: "✗"} if k != wrong else {k: "✂✗"})
    found = "No step to cut at" if k is None else f"{name.capitalize()} chooses step {k + 1}"
    truth = "" if wrong is None else f"; the first wrong step is {wrong + 1}"
    text.set_title(f"{t.problem.question}\n{found}{truth}", fontsize=10)
    steps = range(1, len(values) + 1)
    if config.window < 1:
        end = window_end(config.window, len(values)) + 0.5
        curve.axvspan(0.5, end, fc="#E8E8E8", hatch="..", ec="white", lw=0, label="window")
    curve.plot(steps, values, "o-", color=PALETTE[2], label=f"{config.step} entropy of the step")
    if wrong is not None:
        curve.plot(wrong + 1, values[wrong], "x", color=BAD, ms=13, mew=2, label="first wrong step")
    if k is not None:
        curve.axvline(k + 1, color="black", ls="--", lw=1, label="breakpoint")
    curve.set_xticks(steps)
    curve.set(xlabel="step", ylabel="entropy (nats)", ylim=(0, max([1.0, *values]) * 1.1))
    curve.legend(fontsize=8, ncols=2, frameon=True, edgecolor="none")  # the window has a pattern
    return figure


def _draw_text(axes: Axes, pieces: Sequence[str], t: Trajectory, marks: dict[Any, str]) -> None:
    """One step per line. The largest entropy of all tokens, at least 1 nat, is the darkest blue."""
    shade, darkest = matplotlib.colormaps["Blues"], max([1.0, *t.entropy])
    for row, (start, end) in enumerate(t.steps):
        mark, column = marks.get(row, ""), 4.0
        axes.text(3.4, -row, f"{mark} {row + 1}", ha="right", va="center", fontsize=8,
                  color=BAD if mark else "#555555")
        for piece, h in zip(pieces[start:end], t.entropy[start:end], strict=True):
            shown, colour = piece.replace("\n", ""), shade(0.8 * h / darkest)
            axes.add_patch(Rectangle((column, -row - 0.45), len(shown), 0.9, lw=0, color=colour))
            axes.text(column, -row, shown, family="monospace", fontsize=8, va="center",
                      color="white" if h > 0.65 * darkest else "black")
            column += len(shown)
    axes.set(xlim=(0, 104), ylim=(0.4 - len(t.steps), 0.6))
    axes.axis("off")


@styled
def plot_filter(scored: Sequence[PureScore], genuine: Sequence[bool], threshold: float,
                config: PureConfig) -> Figure:
    """The worst step of each candidate: perplexity against uncertainty, coloured by what the
    checker says; under the aggregate `worst` with the boundary at `threshold`."""
    figure, axes = new_figure()
    worst = [int(np.argmax(s.ratio)) for s in scored]
    x = np.array([s.uncertainty[k] for s, k in zip(scored, worst, strict=True)])
    y = np.array([s.perplexity[k] for s, k in zip(scored, worst, strict=True)])
    good = np.array(genuine, dtype=bool)
    kept = np.array([s.score <= threshold for s in scored])
    axes.scatter(x[good], y[good], s=14, c=GOOD, alpha=0.5, label=f"genuine ({good.sum()})")
    axes.scatter(x[~good], y[~good], s=14, c=BAD, alpha=0.5, marker="x", lw=0.8,
                 label=f"spurious ({(~good).sum()})")
    if config.aggregate == "worst":
        line = np.linspace(0, x.max(), 50)
        logarithm = config.reading in ("typicality", "numbers")
        limit = np.exp(line + threshold) if logarithm else threshold * (line + config.epsilon)
        axes.plot(line, limit, "k--", lw=1, label="PURE's boundary")
    axes.set(yscale="log", ylabel="perplexity of the worst step",
             xlabel=f"uncertainty at the worst step, reading '{config.reading}' (nats)")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    axes.legend()
    axes.set_title(f"PURE drops {(~good & ~kept).sum()} of {(~good).sum()} spurious candidates and "
                   f"keeps {(good & kept).sum()} of {good.sum()} genuine ones")
    return figure
