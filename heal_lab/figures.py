"""Figures of the evidence and of the experiment, and the example that the method is drawn on."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from heal_lab.arms import BUDGETS, FORGED
from heal_lab.compare import Results, verdict
from heal_ref.config import GearConfig, HealConfig, SampleConfig
from heal_ref.evaluate import Row
from heal_ref.gear import repair
from heal_ref.generation import sample
from heal_ref.model import load_lm
from heal_ref.pace import build_stages, solved_share
from heal_ref.plots import (
    BAD,
    COLOUR,
    GOOD,
    PALETTE,
    new_figure,
    plot_ceiling,
    save,
    styled,
    with_interval,
)
from heal_ref.pure import pure_filter, pure_scores, pure_threshold, unaided
from heal_ref.records import DATA, Problem, Trajectory, limit_by_kind
from heal_ref.run.sources import load_problems
from heal_ref.tasks import ClockTask

ARM_LABEL = {
    "student": "base student", "teacher": "teacher", "rft": "rejection sampling",
    "rft_matched": "rejection sampling, HEAL's tokens", "star": "STaR: answer shown, no filter",
    "rft_adaptive": "adaptive rejection sampling", "gold": "true solutions of all problems",
    "rft_adaptive_frontier": "adaptive, HEAL's share of frontier rows",
    "rft_unsolved": "adaptive, without equal weights",
    "rft_equal": "rejection sampling, equal weights",
    "repairs": "repairs, PURE", "repairs_unfiltered": "repairs, no filter",
    "guided_unfiltered": "guided, no filter", "heal_no_hint": "HEAL, cut but no hint",
    "heal_step_hint": "HEAL, the next step in hindsight",
    "heal_first_step": "HEAL, cut after the first step", "recall": "every seen fact recalled",
    "heal": "HEAL", "heal_no_gear": "HEAL without GEAR", "heal_no_pure": "HEAL without PURE",
    "heal_no_pace": "HEAL, one shuffled stage", "heal_restarts": "HEAL, shuffled with restarts",
    "heal_equal": "HEAL, equal exposures", "second_round": "second round, by HEAL's student",
    "second_round_teacher": "second round, by the teacher",
    "heal_stage_only": "HEAL, stages not cumulative",
    "heal_random_breakpoint": "HEAL, random breakpoint",
    "heal_answer_hint": "HEAL, hint states the answer",
    "heal_oracle_filter": "HEAL, exact checker as filter"}
for _x in BUDGETS:
    ARM_LABEL |= {f"{arm}@{_x:g}": f"{ARM_LABEL[arm]}, {_x:g} × settings"
                  for arm in ("heal", "rft_adaptive")}
    if _x > 1:
        ARM_LABEL[f"heal_few@{_x:g}"] = f"HEAL, {_x:g} × settings, as many examples as with 1 ×"
for _x in FORGED:
    ARM_LABEL |= {f"{arm}_forged@{_x:g}": f"{ARM_LABEL[arm]}, {_x:.0%} of guided forged"
                  for arm in ("heal", "heal_no_pure")}
ARM_COLOUR = {**COLOUR, "rft_matched": "#D55E00", "rft_adaptive": "#D55E00", "star": "#CC79A7",
              "heal_no_gear": "#56B4E9", "heal_random_breakpoint": "#009E73",
              "heal_no_pace": "#D55E00", "heal_restarts": "#CC79A7", "heal_equal": "#009E73",
              "heal_stage_only": "#CC79A7", "heal_no_pure": "#D55E00"}
KIND_STYLE = dict(zip(("mastered", "shaky", "frontier", "double", "misconceived"),
                      zip(PALETTE, "os^vx", strict=True), strict=True))
GREY = "#999999"


def kind_style(kind: str) -> tuple[str, str]:
    """Colour and marker of a kind of problem; black diamonds for kinds of another world."""
    return KIND_STYLE.get(kind, ("#000000", "D"))


@styled
def plot_aligned_entropy(failed: Sequence[Trajectory], wrong: Sequence[int],
                         right: Sequence[Trajectory], reach: int = 2) -> Figure:
    """Mean step entropy of failed trajectories around their first wrong step; right ones as a band.

    Args:
        wrong: index of the first wrong step of each failed trajectory (from the checker).
        reach: steps shown on either side.
    """
    figure, axes = new_figure()
    offsets = list(range(-reach, reach + 1))
    mean, error = [], []
    for d in offsets:
        column = [t.step_entropy[w + d] for t, w in zip(failed, wrong, strict=True)
                  if 0 <= w + d < len(t.steps)]
        mean.append(float(np.mean(column)) if column else math.nan)
        error.append(1.96 * float(np.std(column)) / math.sqrt(len(column)) if column else math.nan)
    axes.errorbar(offsets, mean, yerr=error, marker="o", color=BAD, capsize=3,
                  label=f"failed ({len(failed)})")
    usual = [h for t in right for h in t.step_entropy]
    axes.axhspan(*np.percentile(usual, [10, 90]), color=GOOD, alpha=0.2, lw=0,
                 label=f"right ({len(right)}), 10–90 % of steps")
    axes.set_xticks(offsets, [f"{d:+d}" if d else "first wrong" for d in offsets])
    axes.set(xlabel="step, counted from the first wrong one", ylabel="mean step entropy (nats)")
    axes.legend()
    axes.set_title("Entropy jumps where the reasoning breaks: "
                   f"{mean[reach - 1]:.2f} → {mean[reach]:.2f} nats")
    return figure


@styled
def plot_intervals(rows: Sequence[Row], metric: str, title: str, xlabel: str = "",
                   line: float | None = None) -> Figure:
    """Means with 95 % intervals, one line per arm, one colour and marker per kind of problem (no
    legend if the only one is ""). `line`: a value to compare with, such as no difference."""
    rows = [r for r in rows if r.metric == metric and r.mean is not None and not math.isnan(r.mean)]
    arms = list(dict.fromkeys(r.arm for r in rows))
    kinds = list(dict.fromkeys(r.kind for r in rows))
    figure, axes = new_figure(figsize=(7.2, 1.5 + 0.32 * len(arms)))
    for j, kind in enumerate(kinds):
        mine = [r for r in rows if r.kind == kind]
        y = [arms.index(r.arm) + (j - (len(kinds) - 1) / 2) * 0.16 for r in mine]
        errors = [r.mean - r.low for r in mine], [r.high - r.mean for r in mine]
        colour, marker = kind_style(kind)
        axes.errorbar([r.mean for r in mine], y, xerr=errors, fmt=marker, ms=5, lw=1, capsize=2,
                      color=colour, label=kind)
    axes.set_yticks(range(len(arms)), arms)
    axes.invert_yaxis()
    axes.set_xlabel(xlabel or metric)
    axes.grid(axis="x", color="#DDDDDD", lw=0.6)
    if line is not None:
        axes.axvline(line, color="#555555", lw=0.8)
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")  # the arms' names take room on the left
    if any(kinds):
        figure.legend(loc="outside lower center", ncols=len(kinds), handlelength=1.5)
    return figure


@styled
def plot_roc(scores: Mapping[str, Sequence[float]], spurious: Sequence[bool], title: str) -> Figure:
    """One curve per score: share of spurious candidates dropped against genuine ones lost."""
    figure, axes = new_figure(figsize=(7.2, 4.2))
    bad = np.asarray(spurious, dtype=bool)
    styles = ("-", "--", "-.", ":", (0, (6, 1, 1, 1)), (0, (2, 2)))
    for (name, values), colour, style in zip(scores.items(), (*PALETTE, "#000000"), styles,
                                             strict=False):
        v = np.asarray(values, dtype=float)
        limits = np.concatenate([[np.inf], np.unique(v)[::-1], [-np.inf]])
        lost = [(v[~bad] >= limit).mean() for limit in limits]
        dropped = [(v[bad] >= limit).mean() for limit in limits]
        axes.plot(lost, dropped, linestyle=style, color=colour, label=name)
    axes.axvline(0.05, color=GREY, lw=0.8)
    axes.text(0.055, 0.01, "5 %", color="#555555", fontsize=9)
    axes.set(xlabel="genuine solutions lost", ylabel="spurious solutions dropped", xlim=(0, 1),
             ylim=(0, 1.02), title=title)
    axes.legend(loc="lower right", handlelength=4)
    return figure


def curve_points(stages: Sequence[Mapping[str, Any]]) -> list[tuple[int, dict[str, float]]]:
    """(update, accuracy by kind) through all stages, from what `pace.read_curve` reads."""
    points, before = [], 0
    for stage in stages:
        for row in stage["log"]:
            if "accuracy" in row:
                points.append((before + row["step"], row["accuracy"]))
        before += stage["updates"]
    return points


@styled
def plot_stages(stages: Sequence[Mapping[str, Any]], kind: str = "frontier") -> Figure:
    """Greedy accuracy by kind through the stages of `pace.read_curve`; the title is of `kind`."""
    figure, axes = new_figure()
    points = curve_points(stages)
    updates, kinds = [u for u, _ in points], list(points[0][1])
    for name in kinds:
        colour, marker = kind_style(name)
        axes.plot(updates, [a[name] for _, a in points], color=colour, marker=marker, ms=4,
                  label=name or "all")
    before = 0
    for stage in stages:
        axes.axvline(before, color=GREY, lw=0.8, ls=":")
        axes.text(before + 4, 1.07, stage["stage"], color="#555555", fontsize=9)
        before += stage["updates"]
    axes.set(xlabel="updates", ylabel="greedy accuracy", ylim=(0, 1.05))
    figure.legend(loc="outside lower center", ncols=len(kinds))
    if kind in kinds:
        axes.set_title(f"{kind.capitalize()} accuracy through the stages: "
                       f"{points[0][1][kind]:.0%} → {points[-1][1][kind]:.0%}", pad=18)
    return figure


def mean_lines(results: Results, arms: Sequence[str], groups: Sequence[str],
               metric: str = "pass@1") -> list[tuple[str, ...]]:
    """A header and a line per arm for `plots.show_table`: its means with intervals by group."""
    return [("", *groups), *((ARM_LABEL[arm], *(with_interval(results.row(arm, group, metric))
                                                for group in groups)) for arm in arms)]


def validation_lines(results: Results, arms: Sequence[str], kinds: Sequence[str]
                     ) -> list[tuple[str, ...]]:
    """A header and a line per arm: greedy accuracy on validation problems at the end of training,
    the mean over the runs that all of these arms have. What arms may be chosen by."""
    seeds = results.seeds(*arms)
    lines: list[tuple[str, ...]] = [("validation", *kinds)]
    for arm in arms:
        ends = [curve_points(results.runs[arm, s]["curve"])[-1][1] for s in seeds]
        lines.append((ARM_LABEL[arm], *(f"{np.mean([end[k] for end in ends]):.2f}" for k in kinds)))
    return lines


def difference_lines(results: Results, compared: Sequence[tuple[str, str]],
                     groups: Sequence[str]) -> list[tuple[str, ...]]:
    """A header and a line per (arm, other) and group for `plots.show_table`: the paired difference
    of sampled pass@1 with its interval, and what it shows."""
    lines: list[tuple[str, ...]] = [("arm − other", "problems", "difference", "")]
    for arm, other in compared:
        for group in groups:
            row = results.difference(arm, other, group)
            lines.append((f"{ARM_LABEL[arm]} − {ARM_LABEL[other]}", group,
                          with_interval(row, "+"), verdict(row)))
    return lines


def plot_differences(rows: Sequence[Row], title: str, xlabel: str = "") -> Figure:
    """A forest plot of paired differences with 95 % intervals; hollow where 0 is inside."""
    named = [Row(ARM_LABEL[r.arm.split(" − ")[0]], r.kind, r.metric, r.mean, r.low, r.high, r.n,
                 r.seeds) for r in rows]
    figure = plot_intervals(named, rows[0].metric, title, xlabel)
    axes = figure.axes[0]
    axes.axvline(0, color="black", lw=0.8)
    for container, kind in zip(axes.containers, dict.fromkeys(r.kind for r in rows), strict=True):
        points = container[0]
        x, y = np.array(points.get_data())
        hollow = np.array([verdict(r) == "no difference shown" for r in rows if r.kind == kind])
        axes.plot(x[hollow], y[hollow], points.get_marker(), ms=5, mfc="white",
                  mec=points.get_color(), ls="", zorder=3)
    return figure


def verdicts(gaps: Mapping[str, Row]) -> str:
    """The names of paired differences by what each one shows."""
    said: dict[str, list[str]] = {}
    for name, gap in gaps.items():
        said.setdefault(verdict(gap), []).append(name)
    return "; ".join(f"{what} at {', '.join(of)}" for what, of in said.items())


def draw_means(axes: Any, x: Sequence[float], rows: Sequence[Row], arm: str, line: str,
               label: str = "") -> None:
    """Means with intervals as one curve, in the colour of an arm; squares are hollow."""
    colour = ARM_COLOUR[arm]
    errors = [r.mean - r.low for r in rows], [r.high - r.mean for r in rows]
    axes.errorbar(x, [r.mean for r in rows], errors, fmt=line, ms=7, lw=1.5, color=colour,
                  capsize=3, mfc="white" if line[0] == "s" else colour,
                  label=label or ARM_LABEL[arm])


def _draw_curve(axes: Any, results: Results, kind: str, arm: str, names: Sequence[str],
                x: Sequence[float], hollow: bool) -> None:
    """The variants `names` of an arm as one curve: means with intervals; thin, each pair's."""
    line = "s--" if hollow else "o-"
    pairs = [results.matrix(n, kind).mean(1) for n in names]
    draw_means(axes, x, [results.row(n, kind) for n in names], arm, line)
    axes.plot(x, pairs, line[1:], color=ARM_COLOUR[arm], lw=0.6, alpha=0.6)


@styled
def plot_tokens(results: Results, kind: str) -> Figure:
    """Sampled pass@1 on one kind against teacher tokens (generated and scored, mean over runs, log
    axis): a curve of HEAL and one of adaptive rejection sampling, through their budgets; thin, each
    pair's. They are drawn 3 % apart, so that no interval covers another. The title says at which
    budgets their difference excludes 0."""
    budgets = ["" if x == 1 else f"@{x:g}" for x in sorted((1.0, *BUDGETS))]
    gaps = {f"{results.tokens(f'heal{at}') / 1000:,.0f}":
            results.difference(f"heal{at}", f"rft_adaptive{at}", kind)
            for at in budgets if {f"heal{at}", f"rft_adaptive{at}"} <= set(results.arms)}
    title = (f"{kind.capitalize()}, HEAL against adaptive rejection sampling, thousand tokens:\n"
             f"{verdicts(gaps)}")
    figure, axes = new_figure(figsize=(7.2, 4.2))
    axes.set_xscale("log")
    for arm, hollow in (("heal", False), ("rft_adaptive", True)):
        names = [f"{arm}{at}" for at in budgets if f"{arm}{at}" in results.arms]
        spends = [results.tokens(name) / 1000 for name in names]
        shifted = [x * (1.03 if hollow else 1) for x in spends]
        _draw_curve(axes, results, kind, arm, names, shifted, hollow)
        if arm == "heal":
            axes.set_xticks(spends, [f"{x:,.0f}" for x in spends])
    axes.minorticks_off()
    axes.set(xlabel="teacher tokens, generated and scored (thousands)", ylabel=f"pass@1, {kind}",
             ylim=(0, None), title=title)
    axes.legend(loc="lower right")
    return figure


@styled
def plot_forged(results: Results, kind: str) -> Figure:
    """Sampled pass@1 on one kind against the share of forged ones among the guided examples: a
    curve of HEAL and one of HEAL without PURE; thin, each pair's. The title says at which shares
    their difference excludes 0, and how many pairs there are."""
    gaps = {f"{x:.0%}": results.difference(f"heal_forged@{x:g}", f"heal_no_pure_forged@{x:g}", kind)
            for x in FORGED}
    count = len(results.pairs("heal_forged@0", "heal_no_pure_forged@0"))
    figure, axes = new_figure(figsize=(7.2, 4.2))
    for arm, hollow in (("heal", False), ("heal_no_pure", True)):
        names = [f"{arm}_forged@{x:g}" for x in FORGED]
        _draw_curve(axes, results, kind, arm, names, [x + 0.008 * hollow for x in FORGED], hollow)
    axes.set_xticks(FORGED, list(gaps))
    axes.set(xlabel="forged, of the guided examples before the filter", ylabel=f"pass@1, {kind}",
             ylim=(0, None), title=f"{kind.capitalize()}, HEAL against HEAL without PURE, "
             f"{count} pair{'s' * (count > 1)}:\n{verdicts(gaps)} forged")
    axes.legend(loc="lower left")
    return figure


@styled
def plot_pairs(results: Results, arms: Sequence[str], kind: str) -> Figure:
    """Sampled pass@1 on one kind: a dot per pair per arm, seeds averaged, one marker per pair; the
    mean of an arm with its interval is the black line below them. The title is about HEAL and
    adaptive rejection sampling, which the record must hold."""
    figure, axes = new_figure(figsize=(7.2, 1.4 + 0.42 * len(arms)))
    every = list(dict.fromkeys(pair for arm in arms for pair in results.pairs(arm)))
    for y, arm in enumerate(arms):
        row, means = results.row(arm, kind), results.matrix(arm, kind).mean(1)
        axes.errorbar(row.mean, y + 0.22, xerr=[[row.mean - row.low], [row.high - row.mean]],
                      fmt="|", ms=9, capsize=3, color="black")
        for pair, mean in zip(results.pairs(arm), means, strict=True):
            axes.plot(mean, y - 0.1, "os^Dv<>PX*"[every.index(pair) % 10], ms=6, mec="black",
                      mfc=ARM_COLOUR.get(arm, "white"), alpha=0.8, ls="",
                      label=pair if y == 0 else None)
    axes.set_yticks(range(len(arms)), [ARM_LABEL[arm] for arm in arms])
    axes.invert_yaxis()
    axes.grid(axis="x", color="#DDDDDD", lw=0.6)
    axes.set_xlabel(f"pass@1, {kind}; black: mean, 95 % interval over pairs and problems")
    gap = with_interval(results.difference("heal", "rft_adaptive", kind), "+")
    figure.suptitle(f"{len(every)} pairs. {kind.capitalize()}, equal tokens: HEAL − adaptive "
                    f"rejection sampling {gap}", fontsize=11, x=0.01, ha="left")
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=min(len(every), 8),
                  title="pair", handlelength=1)
    return figure


@styled
def plot_arm_curves(results: Results, arms: Sequence[str], kinds: Sequence[str],
                    title: str) -> Figure:
    """Greedy learning curves on validation problems: mean over the seeds that all arms have, a band
    from the lowest to the highest seed, dotted lines where a new stage begins."""
    seeds = results.seeds(*arms)
    borders = np.cumsum([s["updates"] for s in results.runs[arms[0], seeds[0]]["curve"]])[:-1]
    figure = Figure(figsize=(7.2, 3.6))
    panels = figure.subplots(1, len(kinds), squeeze=False, sharey=True)[0]
    for axes, kind in zip(panels, kinds, strict=True):
        for arm, style in zip(arms, ("-", "--", "-."), strict=False):
            curves = [dict(curve_points(results.runs[arm, s]["curve"])) for s in seeds]
            updates = sorted(set.intersection(*(set(c) for c in curves)))
            values = np.array([[c[u][kind] for u in updates] for c in curves])
            colour = ARM_COLOUR[arm]
            axes.plot(updates, values.mean(0), style, color=colour, label=ARM_LABEL[arm])
            axes.fill_between(updates, values.min(0), values.max(0), color=colour, alpha=0.15, lw=0)
        for border in borders:
            axes.axvline(border, color=GREY, lw=0.8, ls=":")
        axes.set(xlabel="updates", title=kind, ylim=(0, 1.02))
    panels[0].set_ylabel("greedy accuracy, validation")
    runs = "one run" if len(seeds) == 1 else f"{len(seeds)} seeds"
    figure.suptitle(f"{title} ({runs})", fontsize=11, x=0.01, ha="left")
    figure.legend(*panels[0].get_legend_handles_labels(), ncols=min(len(arms), 3), fontsize=9,
                  loc="outside lower center")
    return figure


def draw_experiment(results: Results, folder: Path) -> list[Path]:
    """The figures that sum an experiment up, as far as its arms are there."""
    kinds = [group for group in results.groups if "," not in group]
    main = [arm for arm in ("student", "teacher", "rft", "heal") if arm in results.arms]
    figures = {}
    if {"teacher", "rft", "heal"} <= set(main):
        rows = [results.row(arm, kind) for arm in main for kind in kinds]
        figures["ceiling"] = plot_ceiling(rows)
    once = [arm for arm in results.arms if "@" not in arm]
    base = "rft_adaptive" if "rft_adaptive" in once else "rft"
    others = [arm for arm in once if arm not in ("student", "teacher", "rft", base)]
    if base in once and others:
        rows = [results.difference(arm, base, kind) for arm in others
                for kind in ("mastered", "shaky", "frontier")]
        better = sum(verdict(row) == "better" for row in rows if row.kind == "frontier")
        title = f"Better than {ARM_LABEL[base]} on the frontier: {better} of {len(others)} arms"
        figures["differences"] = plot_differences(rows, title, f"pass@1, arm − {ARM_LABEL[base]}")
    if {"heal", "rft_adaptive"} <= set(once) and {f"heal@{x:g}" for x in BUDGETS} & {*results.arms}:
        figures["tokens"] = plot_tokens(results, "frontier")
    if results.unit == "pair" and {"heal", "rft_adaptive"} <= set(once):
        shown = [a for a in ("student", "teacher", "rft", "rft_adaptive", "heal") if a in once]
        figures["pairs"] = plot_pairs(results, shown, "frontier")
    for name, figure in figures.items():
        save(figure, folder / f"{name}.png")
    return [folder / f"{name}.png" for name in figures]


def method_example(each: int = 12) -> dict[str, Any]:
    """The arguments of `draw_method`: the shipped teacher on one problem that it fails, among
    `each` validation problems of each kind. It samples greedily, so every machine draws the same.
    """
    teacher, task, config = load_lm(DATA / "teacher"), ClockTask(), HealConfig.tiny()
    greedy = SampleConfig(n=1, temperature=0.0)
    shown = Problem("shown", "Start 5; + 3; # 4; * 2", "17")
    file = load_problems(DATA / "clock" / "validation.jsonl", task)
    base = sample(teacher, task, [shown, *limit_by_kind(file, each)], sampling=greedy)
    solved = solved_share(base)
    hard = [t.problem for t in base if solved[t.problem.id] < config.pace.guided_below]
    guided = sample(teacher, task, hard, sampling=greedy, guided=True)
    repaired = repair(teacher, task, base, GearConfig(continuations=1), sampling=greedy)
    reference = pure_scores(teacher, task, unaided(base))
    scores = [pure_scores(teacher, task, helped) for helped in (repaired, guided)]
    kept = [pure_filter(some, reference=reference) for some in scores]
    return {"wrong": base[0], "repaired": repaired[0], "limit": pure_threshold(reference),
            "scored": [s for some in scores for s in some if s.trajectory.problem == shown],
            "stages": build_stages(base, kept[1], kept[0], config.pace), "config": config}
