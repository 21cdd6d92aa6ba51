"""Widgets for the notebooks. Each shows a figure that `plots` draws, so that the same view can also be had without them."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import ipywidgets as widgets

from heal_ref.config import CHOICES, GearConfig, PureConfig
from heal_ref.evaluate import first_wrong_step, is_genuine
from heal_ref.gear import breakpoint_of
from heal_ref.lm import LM
from heal_ref.plots import plot_filter, plot_reading, png
from heal_ref.pure import pure_threshold, rescored
from heal_ref.records import InputError, Scored, Trajectory


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
        here = "hit" if breakpoint_of(t, config) == wrong[pick.value] else "miss"
        here = "no wrong step here" if wrong[pick.value] is None else here
        verdict.value = f"<b>{here}</b>; this reading finds the first wrong step of {sum(hits)} in {len(hits)} trajectories"

    for control in (pick, step, signal, window):
        control.observe(update, names="value")
    update()
    return widgets.VBox([pick, widgets.HBox([step, signal]), window, verdict, picture])


def explore_pure(lm: LM, task: Any, scored: Sequence[Scored], reference: Sequence[Scored],
                 config: PureConfig | None = None) -> widgets.VBox:
    """Move PURE's threshold, aggregate, λ and ε; scatter, counts and an example on either side of the line move together.

    Controls, in order: keep quantile, aggregate, λ, ε (ε has no part in `typicality`), example. Paper: "decouples
    genuine cognitive breakthroughs from spurious shortcuts".

    Args:
        scored: candidates, scored under `config` (its reading of the uncertainty stays).
        reference: scores of unaided correct trajectories, on which the threshold is calibrated.
        task: its step checker says which candidates are genuine (shown, and never used to filter).

    Raises:
        InputError: there is nothing to show, or nothing to calibrate on.
    """
    for name, given in (("scored", scored), ("reference", reference)):
        if not given:
            raise InputError(f"there is nothing to explore: {name} is empty; score some trajectories with pure_scores")
    config = config or PureConfig()
    genuine = [is_genuine(lm, task, s.trajectory) for s in scored]
    keep = widgets.FloatSlider(value=config.keep_quantile, min=0.5, max=1.0, step=0.01, description="keep quantile")
    how = widgets.Dropdown(options=CHOICES["aggregate"], value=config.aggregate, description="aggregate")
    lam = widgets.FloatSlider(value=config.lam, min=0.05, max=1.0, step=0.05, description="λ")
    epsilon = widgets.FloatLogSlider(value=config.epsilon, min=-2, max=1, step=0.25, description="ε")
    example = widgets.IntSlider(value=0, min=0, max=len(scored) - 1, description="example")
    picture, verdict, text = widgets.Image(format="png"), widgets.HTML(), widgets.HTML()

    def update(_: Any = None) -> None:
        c = PureConfig(uncertainty=config.uncertainty, aggregate=how.value, lam=lam.value, epsilon=epsilon.value,
                       keep_quantile=keep.value)
        again, limit = rescored(scored, c), pure_threshold(rescored(reference, c), c)
        picture.value = png(plot_filter(again, genuine, limit, c))
        kept = [g for s, g in zip(again, genuine, strict=True) if s.score <= limit]
        verdict.value = (f"threshold {limit:.3f}: keeps {len(kept)} of {len(scored)} candidates, {sum(kept)} of them genuine; "
                         f"loses {sum(genuine) - sum(kept)} genuine ones")
        s = again[example.value]
        lines = [f"{r:8.3f}  {lm.decode(s.trajectory.step_ids(k)).strip()}" for k, r in enumerate(s.ratio)]
        text.value = (f"<b>{'kept' if s.score <= limit else 'dropped'}, {'genuine' if genuine[example.value] else 'spurious'}"
                      f"</b>, score {s.score:.3f}; r of each step:<pre>" + html.escape("\n".join(lines)) + "</pre>")

    for control in (keep, how, lam, epsilon, example):
        control.observe(update, names="value")
    update()
    return widgets.VBox([widgets.HBox([keep, how]), widgets.HBox([lam, epsilon]), example, verdict, picture, text])
