"""Widgets for the notebooks. Each shows a figure that `plots` draws, so that the same view can also be had without them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ipywidgets as widgets

from heal_ref.config import CHOICES, GearConfig
from heal_ref.evaluate import first_wrong_step
from heal_ref.gear import breakpoint_of
from heal_ref.lm import LM
from heal_ref.plots import plot_reading, png
from heal_ref.records import InputError, Trajectory


def explore_entropy(lm: LM, task: Any, trajectories: Sequence[Trajectory]) -> widgets.VBox:
    """Pick a trajectory and a reading of the breakpoint; text, curve, breakpoint and first wrong step move together.

    Controls, in order: trajectory, step aggregate, signal, window. The line below says whether the reading hits, and
    how many of all `trajectories` it hits. Paper: "detects critical reasoning breakpoints via entropy dynamics".

    Args:
        task: if it has a step checker, the first wrong step is shown (the reading itself never sees it).

    Raises:
        InputError: there is no trajectory to show.
    """
    if not trajectories:
        raise InputError("there is no trajectory to explore: the list is empty; sample some first")
    checks = hasattr(task, "check_steps")
    wrong = [first_wrong_step(lm, task, t) if checks else None for t in trajectories]
    names = [(f"{i + 1}: {t.problem.kind} {t.problem.question} ({'right' if t.correct else 'wrong'})", i)
             for i, t in enumerate(trajectories)]
    pick = widgets.Dropdown(options=names, description="trajectory", layout={"width": "auto"})
    step = widgets.Dropdown(options=CHOICES["step"], description="step")
    signal = widgets.Dropdown(options=CHOICES["signal"], description="signal")
    window = widgets.FloatSlider(value=1.0, min=0.1, max=1.0, step=0.05, description="window f")
    picture, verdict = widgets.Image(format="png"), widgets.HTML()

    def update(_: Any = None) -> None:
        t, config = trajectories[pick.value], GearConfig(step=step.value, signal=signal.value, window=window.value)
        picture.value = png(plot_reading(lm.pieces(t.token_ids), t, config, wrong[pick.value]))
        hits = [breakpoint_of(u, config) == w for u, w in zip(trajectories, wrong, strict=True) if w is not None]
        here = "no wrong step here" if wrong[pick.value] is None else "miss"
        here = "hit" if breakpoint_of(t, config) == wrong[pick.value] is not None else here
        verdict.value = f"<b>{here}</b>; this reading finds the first wrong step of {sum(hits)} in {len(hits)} trajectories"

    for control in (pick, step, signal, window):
        control.observe(update, names="value")
    update()
    return widgets.VBox([pick, widgets.HBox([step, signal]), window, verdict, picture])
