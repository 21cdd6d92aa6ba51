"""Drawings of the method, made from what its functions return: no number in them is typed in.

The unit of a page is a character across and a line down, so texts are laid out by counting. Fills
also differ in lightness, so that they can be told apart in grey.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from datasets import Dataset
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from heal_ref.config import GearConfig, HealConfig, PaceConfig
from heal_ref.entropy import rises, step_values, surges
from heal_ref.gear import WRITTEN, breakpoint_of
from heal_ref.pace import updates_of
from heal_ref.plots import BAD, PALETTE
from heal_ref.records import InputError, PureScore, Trajectory

WIDE, LINE, SIZE = 126, 0.22, 9.5  # characters per page, inches per line, points
LIGHT, MIDDLE, DARK, EDGE = "#E6E6E6", PALETTE[3], PALETTE[2], "#555555"
FILL = {"kept": LIGHT, "broken": PALETTE[1], "dropped": "white", "hint": "#F7F0A0", "new": DARK,
        "base": LIGHT, "guided": MIDDLE, "repair": DARK, "frame": "none"}
DASHED = {"dropped": ":", "hint": "--"}
ENTROPY = {"max": "largest entropy of a token", "mean": "mean entropy of its tokens",
           "first": "entropy of its first token"}
SIGNAL: dict[str, tuple[str, Callable[[Sequence[float]], Sequence[float]]]] = {
    "rise": (r"rise: $H_k - \frac{1}{k-1}\,\sum_{j<k}\,H_j$", rises),
    "surge": (r"surge: $\Delta_k = H_k - H_{k-1}$", surges),
    "relative": (r"relative: $\Delta_k\,/\,H_{k-1}$", partial(surges, relative=True)),
    "level": ("level: $H_k$", list), "random": ("control: a random step", list)}
HINT = {"bridge": "written with the answer in view", "answer": "it states the answer",
        "step": "the next step, answer in view",
        "wrong_answer": "it states the wrong answer", "none": "none, a control"}
RATIO = {"typicality": r"$\log\,r_k = \log\,\mathrm{PPL}(s_k) - \bar H_k$",
         "numbers": r"$\log\,r_k = \max\,-\log\,p$ of its numbers",
         **dict.fromkeys(("forced", "rollout"), r"$r_k = \mathrm{PPL}(s_k)\,/\,(U_k + \epsilon)$")}
SOURCE = {"base": "unaided", "guided": "guided", "repair": "repaired"}
ADDS = {"foundation": "solved alone", "guided": "+ answer in view",
        "repaired": "+ repaired by GEAR"}

# ---------------------------------------------------------------- what pages are made of


def _page(lines: float, title: str, subtitle: str = "") -> tuple[Figure, Axes]:
    """An empty page, 1,000 pixels wide."""
    figure = Figure(figsize=(10, lines * LINE), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDE), ylim=(lines, 0))
    axes.axis("off")
    _write(axes, 1, 1, _short(title, 100), fontsize=12.5, fontweight="bold", parse_math=False)
    _quote(axes, 1, 2.5, subtitle, WIDE - 2)
    return figure, axes


def _short(text: str, room: float) -> str:
    """On one line; what is longer than `room` ends in "…"."""
    text = " ".join(text.split())
    return text if len(text) <= room else text[: int(room) - 1] + "…"


def _number(value: float, sign: str = "") -> str:
    return f"{round(value, 2) + 0.0:{sign}.2f}".replace("-", "−")  # -0.001 is 0.00


def _write(axes: Axes, x: float, y: float, text: str, **style: Any) -> None:
    axes.text(x, y, text, **{"fontsize": SIZE, "va": "center", **style})


def _head(axes: Axes, x: float, y: float, text: str, **style: Any) -> None:
    """A heading, which covers a line that it is on."""
    _write(axes, x, y, text, fontweight="bold", bbox={"fc": "white", "ec": "none", "pad": 1.5},
           **style)


def _quote(axes: Axes, x: float, y: float, text: str, room: float, **style: Any) -> None:
    """A text of somebody else: as it is (a $ is a $), as far as there is room."""
    _write(axes, x, y, _short(text, room), family="monospace", parse_math=False, **style)


def _box(axes: Axes, x: float, y: float, width: float, text: str, look: str, height: float = 0.86
         ) -> None:
    """A box around line `y`, with a text in it; what is dropped is struck out."""
    axes.add_patch(Rectangle((x, y - height / 2), width, height, fc=FILL[look], ec=EDGE,
                             ls=DASHED.get(look, "-")))
    _quote(axes, x + 0.7, y, text, width - 1.4, color="white" if FILL[look] == DARK else "black")
    if look == "dropped":
        axes.plot([x + 0.7, x + width - 0.7], [y, y], color=EDGE, lw=0.8)


def _frame(axes: Axes, x: float, y: float, width: float, height: float, name: str) -> None:
    axes.add_patch(Rectangle((x, y), width, height, fc="none", ec=EDGE))
    _head(axes, x + 1.5, y, name, fontsize=11)


def _arrow(axes: Axes, *points: tuple[float, float]) -> None:
    """Along `points`, with its head at the last one."""
    axes.plot(*zip(*points[:-1], strict=True), color="black", lw=1.5)
    axes.annotate("", points[-1], points[-2], arrowprops={
        "arrowstyle": "-|>", "lw": 1.5, "fc": "black", "shrinkA": 0, "shrinkB": 0})


def _chain(axes: Axes, x: float, y: float, width: float, t: Trajectory, k: int, rest: Sequence[str]
           ) -> list[float]:
    """The steps of a trajectory and how it ends; a line is free before step `k`, from which on they
    look like `rest`. The lines that they are on."""
    lines = [y + i + (i >= k) for i in range(len(t.steps))]
    for i, (text, line) in enumerate(zip(t.step_texts, lines, strict=True)):
        _write(axes, x + 1.5, line, str(i + 1), ha="right")
        _box(axes, x + 2.3, line, width - 2.3, text, "kept" if i < k else rest[min(1, i - k)])
    _write(axes, x + 2.3, y + len(lines) + 1.1, _ends(t), parse_math=False)
    return lines


def _ends(t: Trajectory) -> str:
    return f"ends in {_short(t.answer or 'no answer', 12)} ({'right' if t.correct else 'wrong'})"


def _cut(axes: Axes, x: float, end: float, y: float, text: str) -> None:
    axes.plot([x, end], [y, y], "k--", lw=1.2)
    _head(axes, x + 2.3, y, f"✂ {text}")


def _bars(axes: Axes, x: float, width: float, lines: Sequence[float], values: Sequence[float],
          k: int, sign: str = "") -> None:
    """One bar per line with its value after it, that of step `k` hatched; NaN has none."""
    known = [v for v in values if v == v]
    low = min([0.0, *known])
    unit = (width - 6) / max(1e-9, max(known, default=0.0) - low)
    zero = x - low * unit
    for i, (line, value) in enumerate(zip(lines, values, strict=True)):
        if value == value:
            axes.add_patch(Rectangle((zero, line - 0.3), value * unit, 0.6, ec="white", lw=0,
                                     fc=BAD if i == k else DARK, hatch="///" if i == k else ""))
            _write(axes, zero + max(value, 0) * unit + 0.6, line, _number(value, sign))


def _filter(axes: Axes, x: float, y: float, width: float, scored: Sequence[PureScore],
            limit: float) -> None:
    """Three lines per solution: a dot per step at its ratio, and what its worst step says."""
    ratios = [r for s in scored for r in s.ratio]
    every = [v for v in (limit, *ratios) if math.isfinite(v)] or [0.0]  # PURE is off: no limit
    low, unit = min(every), (width - 20) / max(1e-9, max(every) - min(every))
    edge = x + 18 + (min(limit, max(every)) - low) * unit
    _write(axes, edge, y - 1.2, f"threshold {_number(limit)}", ha="center")
    for i, s in enumerate(scored):
        line, kept = y + 3 * i, s.score <= limit
        k, place = s.ratio.index(max(s.ratio)), [x + 18 + (r - low) * unit for r in s.ratio]
        _head(axes, x, line, f"{SOURCE[s.trajectory.source]}: {'kept' if kept else 'dropped'}")
        if math.isfinite(limit):
            axes.plot([edge] * 2, [line - 0.7, line + 0.7], "k--", lw=1.2)
        axes.plot(place, [line] * len(place), "o", ms=6, color=DARK)
        axes.plot(place[k], line, "o" if kept else "X", ms=11, mec="black",
                  color=DARK if kept else BAD)
        _quote(axes, x, line + 1.2, f"worst {_number(s.ratio[k], '+')}: "
               f"{s.trajectory.step_texts[k]}", width)


def _stairs(axes: Axes, x: float, y: float, width: float, height: float,
            stages: Mapping[str, Dataset], config: PaceConfig, gap: float) -> None:
    """A column of boxes per stage, the taller the more examples; below it, its updates."""
    held, updates = {n: Counter(s["source"]) for n, s in stages.items()}, updates_of(stages, config)
    most, step = max([1, *map(len, stages.values())]), (width + gap) / max(1, len(stages))
    floor = y + height
    for i, (name, count) in enumerate(held.items()):
        left, top, trained = x + i * step, floor, updates.get(name, 0)
        for source in (s for s in SOURCE if count[s]):
            tall = 1 + (height - len(SOURCE)) * count[source] / most
            top -= tall
            _box(axes, left, top + tall / 2, step - gap, f"{count[source]:,} {SOURCE[source]}",
                 source, tall)
        _write(axes, left, floor + 0.9, name, fontweight="bold")
        _write(axes, left, floor + 1.9, ADDS.get(name, ""))
        _write(axes, left, floor + 2.9, f"{trained:,} updates ({trained / config.updates:.0%})")
        if i:
            _arrow(axes, (left - gap + 0.2, floor - 0.5), (left - 0.2, floor - 0.5))
            _write(axes, left - gap / 2, floor - 1.3, "warm start" if gap > 9 else "", ha="center")


# ---------------------------------------------------------------- the pages


def _cut_of(t: Trajectory, r: Trajectory) -> int:
    """The step before which `t` was cut; InputError if `r` is no repair of it."""
    if r.breakpoint is None or (r.problem.id, r.parent) != (t.problem.id, t.index):
        raise InputError(
            f"the {SOURCE.get(r.source, r.source)} trajectory {r.index} of problem {r.problem.id} "
            f"is no repair of sample {t.index} of problem {t.problem.id}: draw what `repair` made, "
            "with the sample whose index is its `parent`")
    return r.breakpoint


def _why(t: Trajectory, k: int, config: GearConfig) -> str:
    """Why the cut is before step `k`, if the configured reading puts it there."""
    found = config.signal != "random" and breakpoint_of(t, config) == k
    return f"largest {config.signal}" if found else f"before step {k + 1}"


def _hint(r: Trajectory) -> str:
    return f"hint: {r.hint}" if r.hint else f"no hint: {r.note}" if r.note else "no hint"


def draw_repair(wrong: Trajectory, repaired: Trajectory, config: GearConfig | None = None
                ) -> Figure:
    """GEAR's four moves on one chain: entropy, cut, hint, continuation.

    Args:
        wrong: one of the teacher's samples.
        repaired: what `repair` made of it, by `config`; its cut is the one that is drawn.

    Raises:
        InputError: `repaired` is no repair of `wrong`.
    """
    config, k, p = config or GearConfig(), _cut_of(wrong, repaired), wrong.problem
    formula, signal_of = SIGNAL[config.signal]
    values = step_values(wrong.entropy, wrong.steps, config.step)
    below = 9 + len(wrong.steps)
    figure, axes = _page(below + max(6.5, len(repaired.steps) + 3.5), "Cut before its step "
                 f"{k + 1} and hinted, the chain {_ends(repaired)}",
                 f"problem (answer {p.answer}): {p.question}")
    # 1) The steps and their entropy. 2) The cut.
    _head(axes, 1, 4.2, "1 Entropy: where does the chain break?")
    _write(axes, 53, 4.2, f"$H_k$: {ENTROPY[config.step]}, nats")
    _write(axes, 92, 4.2, formula)
    lines = _chain(axes, 1, 5.7, 49, wrong, k, ("broken", "dropped"))
    _bars(axes, 53, 32, lines, values, k)
    _bars(axes, 92, 33, lines, signal_of(values), k, "+")
    if config.signal == "rise":
        _write(axes, 92, lines[-1] + 1.1, "step 1: over the mean of the chain")
    _cut(axes, 1, 125, 5.7 + k, f"2 Cut: {_why(wrong, k, config)}")
    # 3) The hint, written with the answer in view. 4) The continuation, without it.
    _head(axes, 1, below, f"3 Hint: {HINT[config.hint]}")
    if config.hint in WRITTEN:
        for i, text in enumerate(("the problem", f"the answer, {p.answer}", f"kept steps: {k}")):
            _box(axes, 3.3, below + 1.5 + i, 22, text, "kept")
        _arrow(axes, (25.6, below + 2.5), (28.8, below + 2.5))
    _box(axes, 29, below + 2.5, 39, _hint(repaired), "hint")
    _arrow(axes, (68.3, below + 2.5), (71, below + 2.5), (71, below + 1.5 + k),
           (76, below + 1.5 + k))
    after = "after that step" if config.hint == "step" else "the hint is left out afterwards"
    _head(axes, 74, below, f"4 Continuation: {after}")
    _chain(axes, 74, below + 1.5, 51, repaired, k, ("new", "new"))
    _box(axes, 76.3, below + 1.5 + k, 48.7, _hint(repaired), "hint")
    return figure


def draw_stages(stages: Mapping[str, Dataset], config: PaceConfig | None = None) -> Figure:
    """PACE's stages: which examples each one holds, and its updates.

    Args:
        stages: what `build_stages` returns; of each the column `source` is read.
        config: the updates and their shares.
    """
    held = [Counter(stage["source"]) for stage in stages.values()]
    grows = len(held) > 1 and all(a <= b for a, b in zip(held, held[1:], strict=False))
    found = "Each stage holds the ones before it" if grows else "Stages"
    sizes = " → ".join(f"{len(stage):,}" for stage in stages.values()) or "no"
    figure, axes = _page(17.5, f"{found}: {sizes} examples")
    _stairs(axes, 20, 2, 86, 11.5, stages, config or PaceConfig(), gap=10)
    for x, text in ((1, "base student"), (111, "student")):
        _box(axes, x, 13, 14, text, "frame")
        _arrow(axes, (min(x + 14.2, 106.2), 13), (min(x + 18.8, 110.8), 13))
    return figure


def draw_method(wrong: Trajectory, repaired: Trajectory, scored: Sequence[PureScore], limit: float,
                stages: Mapping[str, Dataset], config: HealConfig | None = None) -> Figure:
    """The method on one page, with one problem as its example.

    Args:
        wrong, repaired: as in `draw_repair`.
        scored: scores of a few solutions of this problem, such as a kept and a dropped one.
        limit: PURE's threshold.
        stages: as in `draw_stages`.

    Raises:
        InputError: `repaired` is no repair of `wrong`.
    """
    config, k, p = config or HealConfig(), _cut_of(wrong, repaired), wrong.problem
    rows = 1 + max(len(wrong.steps), len(repaired.steps), k + 2)
    cut, below, tall = 7 + k, rows + 9.6, max(12, 3 * len(scored) + 6)
    figure, axes = _page(below + tall + 0.5, "HEAL on one problem: the teacher "
                 f"{_ends(wrong)}; its repair {_ends(repaired)}",
                 f"problem (answer {p.answer}): {p.question}")
    _frame(axes, 0.7, 4.1, 124.6, rows + 4.2, "GEAR: repair what the teacher fails")
    for x, text in ((1.5, "1 broken chain"), (36, r"2 entropy $H_k$ (nats)"), (63, "4 hint"),
                    (92, "5 continuation")):
        _head(axes, x, 5.7, text)
    lines = _chain(axes, 1.5, 7, 32, wrong, k, ("broken", "dropped"))
    _bars(axes, 36, 21, lines, step_values(wrong.entropy, wrong.steps, config.gear.step), k)
    _write(axes, 36, 8.1 + len(wrong.steps), SIGNAL[config.gear.signal][0])
    _cut(axes, 1.5, 58, cut, f"3 cut: {_why(wrong, k, config.gear)}")
    _arrow(axes, (58, cut), (62.7, cut))
    _box(axes, 63, cut, 26, _hint(repaired), "hint")
    _write(axes, 63, cut + 1.2, HINT[config.gear.hint])
    _write(axes, 63, cut + 2.2, "left out of the repair")
    _arrow(axes, (89.3, cut), (94, cut))
    _chain(axes, 92, 7, 32.5, repaired, k, ("new", "new"))
    _box(axes, 94.3, cut, 30.2, _hint(repaired), "hint")
    _arrow(axes, (108, below - 1.3), (108, below - 0.7), (40, below - 0.7), (40, below))

    _frame(axes, 0.7, below, 50, tall, "PURE: drop shortcuts")
    _head(axes, 1.5, below + 1.5, f"6 filter  {RATIO[config.pure.reading]}")
    _filter(axes, 1.5, below + 4.2, 48, scored, limit)
    _write(axes, 1.5, below + tall - 1.9, "a dot per step; far right: a forced step\n"
           f"{SOURCE['guided']}: solved with the answer in view")
    _arrow(axes, (50.8, below + tall / 2), (53.9, below + tall / 2))
    _frame(axes, 54, below, 55, tall, "PACE: train in stages")
    _head(axes, 55, below + 1.5, "7 three stages")
    _stairs(axes, 55, below + 2.2, 53, tall - 5.8, stages, config.pace, gap=2.5)
    _arrow(axes, (109.1, below + tall / 2), (111.9, below + tall / 2))
    _box(axes, 112, below + tall / 2, 13, "", "frame", 4)
    _head(axes, 113, below + tall / 2 - 1, "8 student")
    _write(axes, 113, below + tall / 2 + 0.5, "learns from\nplain prompts")
    return figure
