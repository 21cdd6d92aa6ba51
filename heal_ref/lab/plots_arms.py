"""Figures of an experiment: arms against arms, against teacher tokens, and through training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from heal_ref.evaluate import Row
from heal_ref.lab.compare import Results, verdict
from heal_ref.plots import KIND_COLOURS, STYLE, curve_points, matplotlib, new_figure, plot_ceiling, plot_intervals, save

ARM_LABEL = {
    "student": "base student", "teacher": "teacher", "rft": "rejection sampling",
    "rft_matched": "rejection sampling, HEAL's tokens", "star": "STaR: answer shown, no filter", "heal": "HEAL",
    "heal_no_gear": "HEAL without GEAR", "heal_no_pure": "HEAL without PURE", "heal_no_pace": "HEAL, one shuffled stage",
    "heal_restarts": "HEAL, restarts without order", "heal_stage_only": "HEAL, stages not cumulative",
    "heal_random_breakpoint": "HEAL, random breakpoint",
    "heal_answer_hint": "HEAL, hint states the answer", "heal_oracle_filter": "HEAL, exact checker as filter"}


def plot_differences(rows: Sequence[Row], title: str, xlabel: str = "difference in pass@1") -> Figure:
    """A forest plot: paired differences with 95 % intervals, one line an arm, one colour a kind; hollow where 0 is inside."""
    named = [Row(ARM_LABEL[r.arm.split(" − ")[0]], r.kind, r.metric, r.mean, r.low, r.high, r.n, r.seeds) for r in rows]
    figure = plot_intervals(named, rows[0].metric, title, xlabel)
    axes = figure.axes[0]
    axes.axvline(0, color="black", lw=0.8)
    for container, kind in zip(axes.containers, dict.fromkeys(r.kind for r in rows), strict=True):
        points, colour = container[0], container[0].get_color()
        x, y = points.get_data()
        open_ = np.array([verdict(r) == "no difference shown" for r in rows if r.kind == kind])
        axes.plot(np.array(x)[open_], np.array(y)[open_], points.get_marker(), ms=5, mfc="white", mec=colour, ls="", zorder=3)
    axes.set_title("")
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")  # the labels take a third of the width
    return figure


def plot_budget(results: Results, kind: str, arms: Sequence[str], title: str) -> Figure:
    """Sampled pass@1 on one kind against what the teacher spent: tokens generated and scored, mean over seeds."""
    figure, axes = new_figure(figsize=(7.2, 4.2))
    teacher = results.row("teacher", kind)
    axes.axhline(teacher.mean, color="black", lw=1, ls="--", label="teacher")
    for arm, colour, marker in zip(arms, (*KIND_COLOURS, "#000000", "#999999"), "o^sDvPX", strict=False):
        spent = np.mean([results.runs[arm, s]["generated"] + results.runs[arm, s]["scored"] for s in results.seeds(arm)]) / 1000
        row = results.row(arm, kind)
        axes.errorbar(spent, row.mean, [[row.mean - row.low], [row.high - row.mean]], marker=marker, ms=7, capsize=3, ls="",
                      color=colour, label=ARM_LABEL[arm])
    axes.set(xlabel="teacher tokens, generated and scored (thousands)", ylabel=f"pass@1, {kind}", title=title, ylim=(0, None))
    axes.set_xlim(0, axes.get_xlim()[1] * 1.05)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def plot_arm_curves(results: Results, arms: Sequence[str], kinds: Sequence[str], title: str) -> Figure:
    """Learning curves on validation problems, greedy: one panel a kind, one line an arm (mean over seeds), a band from the
    lowest to the highest seed."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 3.4))
        panels = figure.subplots(1, len(kinds), squeeze=False)[0]
    for axes, kind in zip(panels, kinds, strict=True):
        for arm, colour, style in zip(arms, KIND_COLOURS, ("-", "--", "-.", ":", "-"), strict=False):
            curves = [curve_points(results.runs[arm, s]["curve"]) for s in results.seeds(arm)]
            updates = sorted(set.intersection(*({u for u, _ in c} for c in curves)))
            values = np.array([[dict(c)[u][kind] for u in updates] for c in curves])
            axes.plot(updates, values.mean(0), style, color=colour, label=ARM_LABEL[arm])
            axes.fill_between(updates, values.min(0), values.max(0), color=colour, alpha=0.15, lw=0)
        axes.set(xlabel="updates", title=kind)
        axes.set_ylim(0, max(1.02 * axes.get_ylim()[1], 0.1))
    panels[0].set_ylabel("greedy accuracy")
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    figure.legend(*panels[0].get_legend_handles_labels(), frameon=False, ncols=min(len(arms), 3), loc="outside lower center",
                  fontsize=9)
    return figure


def draw_experiment(results: Results, folder: Path) -> list[Path]:
    """The two figures that sum an experiment up, as far as its arms are there: ceiling.png and differences.png."""
    kinds, out = [g for g in results.groups if "," not in g], []
    main = [arm for arm in ("student", "teacher", "rft", "heal") if arm in results.arms]
    if {"teacher", "rft", "heal"} <= set(main):
        out.append(folder / "ceiling.png")
        save(plot_ceiling([results.row(arm, kind) for arm in main for kind in kinds]), out[-1])
    others = [arm for arm in results.arms if arm not in ("student", "teacher", "rft")]
    if "rft" in results.arms and others:
        rows = [results.difference(arm, "rft", kind) for arm in others for kind in ("mastered", "shaky", "frontier")]
        out.append(folder / "differences.png")
        save(plot_differences(rows, "Differences from rejection sampling, paired over seeds and problems"), out[-1])
    return out
