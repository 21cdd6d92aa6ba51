"""Figures of an experiment: arms against arms, against teacher tokens, and through training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from heal_lab.compare import Results, verdict
from heal_ref.evaluate import Row
from heal_ref.plots import COLOUR, STYLE, curve_points, matplotlib, new_figure, plot_ceiling, plot_intervals, save

ARM_LABEL = {
    "student": "base student", "teacher": "teacher", "rft": "rejection sampling",
    "rft_matched": "rejection sampling, HEAL's tokens", "star": "STaR: answer shown, no filter", "heal": "HEAL",
    "heal_no_gear": "HEAL without GEAR", "heal_no_pure": "HEAL without PURE", "heal_no_pace": "HEAL, one shuffled stage",
    "heal_restarts": "HEAL, restarts without order", "heal_stage_only": "HEAL, stages not cumulative",
    "heal_random_breakpoint": "HEAL, random breakpoint",
    "heal_answer_hint": "HEAL, hint states the answer", "heal_oracle_filter": "HEAL, exact checker as filter"}
ARM_COLOUR = {**COLOUR, "rft_matched": "#D55E00", "star": "#CC79A7", "heal_no_gear": "#56B4E9",
              "heal_random_breakpoint": "#009E73", "heal_no_pace": "#D55E00", "heal_restarts": "#009E73",
              "heal_stage_only": "#CC79A7"}

FINDING = "On the frontier, only arms with filtered help beat rejection sampling"


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
    axes.axhline(teacher.mean, color=COLOUR["teacher"], lw=1, ls="--")
    axes.annotate(f"teacher {teacher.mean:.2f}", (0, teacher.mean), xytext=(4, 4), textcoords="offset points", fontsize=9)
    for arm, marker in zip(arms, "o^sDvPX", strict=False):
        spent = np.mean([results.runs[arm, s]["generated"] + results.runs[arm, s]["scored"] for s in results.seeds(arm)]) / 1000
        row = results.row(arm, kind)
        axes.errorbar(spent, row.mean, [[row.mean - row.low], [row.high - row.mean]], marker=marker, ms=7, capsize=3, ls="",
                      color=ARM_COLOUR[arm])
        axes.annotate(ARM_LABEL[arm], (spent, row.mean), xytext=(-8, 0), textcoords="offset points", fontsize=9, ha="right",
                      va="center", bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5})
    axes.set(xlabel="teacher tokens, generated and scored (thousands)", ylabel=f"pass@1, {kind}", title=title, ylim=(0, None))
    axes.set_xlim(0, axes.get_xlim()[1] * 1.05)
    return figure


def plot_arm_curves(results: Results, arms: Sequence[str], kinds: Sequence[str], title: str) -> Figure:
    """Learning curves on validation problems, greedy: one panel a kind, one line an arm (mean over the seeds that all arms
    have), a band from the lowest to the highest seed; dotted lines where a new stage begins."""
    seeds = sorted(set.intersection(*(set(results.seeds(arm)) for arm in arms)))
    borders = np.cumsum([s["updates"] for s in results.runs[arms[0], seeds[0]]["curve"]])[:-1]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 3.6))
        panels = figure.subplots(1, len(kinds), squeeze=False, sharey=True)[0]
    for axes, kind in zip(panels, kinds, strict=True):
        for arm, style in zip(arms, ("-", "--", "-."), strict=False):
            curves = [curve_points(results.runs[arm, s]["curve"]) for s in seeds]
            updates = sorted(set.intersection(*({u for u, _ in c} for c in curves)))
            values = np.array([[dict(c)[u][kind] for u in updates] for c in curves])
            axes.plot(updates, values.mean(0), style, color=ARM_COLOUR[arm], label=ARM_LABEL[arm])
            axes.fill_between(updates, values.min(0), values.max(0), color=ARM_COLOUR[arm], alpha=0.15, lw=0)
        for border in borders:
            axes.axvline(border, color="#999999", lw=0.8, ls=":")
        axes.set(xlabel="updates", title=kind, ylim=(0, 1.02))
    panels[0].set_ylabel("greedy accuracy, validation")
    figure.suptitle(f"{title} ({len(seeds)} seeds)", fontsize=11, x=0.01, ha="left")
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
        save(plot_differences(rows, FINDING, "pass@1, arm − rejection sampling"), out[-1])
    return out
