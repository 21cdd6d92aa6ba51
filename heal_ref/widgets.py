"""Widgets for the notebooks. Each shows a figure that `plots` draws, so that the same view can also be had without them."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ipywidgets as widgets

from heal_ref.config import GearConfig, PureConfig, choices
from heal_ref.entropy import step_values
from heal_ref.evaluate import first_wrong_step, is_genuine, step_texts
from heal_ref.gear import breakpoint_of
from heal_ref.model import LM
from heal_ref.plots import plot_filter, plot_reading, png
from heal_ref.pure import pure_scores, pure_threshold, rescored
from heal_ref.records import InputError, PureScore, Trajectory

STAGES = ("1 the broken solution", "2 its entropy", "3 the cut", "4 the hint", "5 the continuation", "6 PURE", "7 the checker")


def explore_entropy(lm: LM, task: Any, trajectories: Sequence[Trajectory]) -> widgets.VBox:
    """Pick a trajectory and a reading of the breakpoint; text, curve, breakpoint and first wrong step move together.

    Controls, in order: trajectory, step aggregate, signal, window. The line below says whether the reading hits, and
    how many of all `trajectories` it hits. Paper: "detects critical reasoning breakpoints via entropy dynamics".

    Args:
        task: if it has a step checker, the first wrong step is shown (the reading itself never sees it).

    Raises:
        InputError: there is no trajectory to show.

    Example:
        >>> import heal_ref as heal
        >>> task, teacher = heal.ClockTask(), heal.load_lm(heal.DATA / "teacher")
        >>> problems = heal.load_problems(heal.DATA / "clock" / "validation.jsonl", task)
        >>> explorer = heal.explore_entropy(teacher, task, heal.sample(teacher, task, problems[:3], n=2))
        >>> len(explorer.children[0].options)
        6
    """
    if not trajectories:
        raise InputError("there is no trajectory to explore: the list is empty; sample some first")
    checks = task.knows_truth
    wrong = [first_wrong_step(lm, task, t) if checks else None for t in trajectories]
    names = [(f"{i + 1}: {t.problem.kind} {t.problem.question} ({'right' if t.correct else 'wrong'})", i)
             for i, t in enumerate(trajectories)]
    pick = widgets.Dropdown(options=names, description="trajectory", layout={"width": "auto"})
    step = widgets.Dropdown(options=choices(GearConfig, "step"), description="step")
    signal = widgets.Dropdown(options=choices(GearConfig, "signal"), description="signal")
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


def explore_pure(lm: LM, task: Any, scored: Sequence[PureScore], reference: Sequence[PureScore],
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

    Example:
        >>> import heal_ref as heal
        >>> task, teacher = heal.ClockTask(), heal.load_lm(heal.DATA / "teacher")
        >>> problems = heal.load_problems(heal.DATA / "clock" / "validation.jsonl", task)
        >>> scored = heal.pure_scores(teacher, task, heal.sample(teacher, task, problems[:20], n=1))
        >>> heal.explore_pure(teacher, task, scored, reference=scored).children[0].children[0].description
        'quantile'
    """
    for name, given in (("scored", scored), ("reference", reference)):
        if not given:
            raise InputError(f"there is nothing to explore: {name} is empty; score some trajectories with pure_scores")
    config, genuine = config or PureConfig(), [is_genuine(lm, task, s.trajectory) for s in scored]
    keep = widgets.FloatSlider(value=config.keep_quantile, min=0.5, max=1.0, step=0.01, description="quantile")
    how = widgets.Dropdown(options=choices(PureConfig, "aggregate"), value=config.aggregate, description="aggregate")
    lam = widgets.FloatSlider(value=config.lam, min=0.05, max=1.0, step=0.05, description="λ")
    epsilons = sorted({0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, config.epsilon})
    epsilon = widgets.SelectionSlider(options=epsilons, value=config.epsilon, description="ε")
    example = widgets.IntSlider(value=0, min=0, max=len(scored) - 1, description="example")
    picture, verdict, text = widgets.Image(format="png"), widgets.HTML(), widgets.HTML()

    def update(_: Any = None) -> None:
        c = replace(config, aggregate=how.value, lam=lam.value, epsilon=epsilon.value, keep_quantile=keep.value)
        again, limit = rescored(scored, c), pure_threshold(rescored(reference, c), c)
        picture.value = png(plot_filter(again, genuine, limit, c))
        kept = [g for s, g in zip(again, genuine, strict=True) if s.score <= limit]
        s, truth = again[example.value], "genuine" if genuine[example.value] else "spurious"
        verdict.value = (f"threshold {limit:.3f}: keeps {len(kept)} of {len(scored)} candidates, {sum(kept)} of them genuine; "
                         f"loses {sum(genuine) - sum(kept)} genuine ones")
        text.value = (f"<b>{'kept' if s.score <= limit else 'dropped'}, {truth}</b>, score {s.score:.3f}; r of each step:"
                      + _solution(lm, s.trajectory, [f"{r:.3f}" for r in s.ratio]))

    for control in (keep, how, lam, epsilon, example):
        control.observe(update, names="value")
    update()
    return widgets.VBox([widgets.HBox([keep, how]), widgets.HBox([lam, epsilon]), example, verdict, picture, text])


def explore_repair(lm: LM, task: Any, base: Sequence[Trajectory], repaired: Sequence[Trajectory], reference: Sequence[PureScore],
                   gear: GearConfig | None = None, pure: PureConfig | None = None) -> widgets.VBox:
    """Step through one repair: broken solution, its entropy, cut, hint, continuation, verdicts of PURE and of the checker.

    Controls, in order: repair, stage; then text and picture. Paper: "an active intervention mechanism that detects
    critical reasoning breakpoints via entropy dynamics and injects targeted hindsight hints to repair broken trajectories".

    Args:
        task: its step checker, if it has one, speaks in the last stage only.
        base: the samples that were repaired.
        repaired: what `repair` made of them, right or wrong.
        reference: scores, under `pure`, of unaided correct trajectories, on which the threshold is calibrated.
        gear: the reading of the breakpoint that is shown.

    Raises:
        InputError: a list is empty, or the broken solution of a repair is not in `base`.

    Example:
        >>> import heal_ref as heal
        >>> task, teacher = heal.ClockTask(), heal.load_lm(heal.DATA / "teacher")
        >>> problems = heal.load_problems(heal.DATA / "clock" / "validation.jsonl", task)
        >>> base = heal.sample(teacher, task, [p for p in problems if p.kind == "frontier"][:4], n=2)
        >>> reference = heal.pure_scores(teacher, task, heal.sample(teacher, task, problems[:4], n=1))
        >>> explorer = heal.explore_repair(teacher, task, base, heal.repair(teacher, task, base), reference)
        >>> pick, stage, text, picture = explorer.children
        >>> stage.index = 3
        >>> "not part of the result" in text.value
        True
    """
    broken = _broken_of(base, repaired, reference)
    gear, pure = gear or GearConfig(), pure or PureConfig()
    limit = pure_threshold(reference, pure)
    names = [(f"{i + 1}: {r.problem.kind} {r.problem.question} (ends {'right' if r.correct else 'wrong'})", i)
             for i, r in enumerate(repaired)]
    pick = widgets.Dropdown(options=names, description="repair", layout={"width": "auto"})
    stage = widgets.SelectionSlider(options=STAGES, description="stage", readout=False, layout={"width": "auto"})
    text, picture = widgets.HTML(), widgets.Image(format="png")

    def update(_: Any = None) -> None:
        t, r, number = broken[pick.value], repaired[pick.value], stage.index + 1
        said = _broken_text(lm, t, r, number, gear) if number < 4 else _mended_text(lm, task, r, number, pure, limit)
        text.value = f"Stage <b>{STAGES[stage.index]}</b> of {html.escape(r.problem.question)}" + said
        picture.value = _repair_picture(lm, task, t, r, number, gear)
        picture.layout.display = "none" if number == 1 else None  # first guess, then look

    for control in (pick, stage):
        control.observe(update, names="value")
    update()
    return widgets.VBox([pick, stage, text, picture])


def _broken_of(base: Sequence[Trajectory], repaired: Sequence[Trajectory], reference: Sequence[PureScore]) -> list[Trajectory]:
    """The broken solution behind each repair."""
    for name, given, why in (("base", base, "no broken solution can be shown; give the samples that were repaired"),
                             ("repaired", repaired, "there is no repair to step through; make some with repair"),
                             ("reference", reference, "PURE has no threshold; give pure_scores of unaided(base)")):
        if not given:
            raise InputError(f"{name} is empty: {why}")
    known: dict[tuple[str, int | None], Trajectory] = {(t.problem.id, t.index): t for t in base}
    for i, r in enumerate(repaired):
        if (r.problem.id, r.parent) not in known:
            raise InputError(f"repair {i + 1} mends sample {r.parent} of problem {r.problem.id}, which is not in base: its "
                             "broken solution cannot be shown; give the same samples that were repaired")
    return [known[r.problem.id, r.parent] for r in repaired]


def _solution(lm: LM, t: Trajectory, marks: Sequence[str], struck: range = range(0)) -> str:
    """The steps of a solution that have a mark, each on a line behind it; those in `struck` are struck out."""
    lines = []
    for k, (mark, step) in enumerate(zip(marks, step_texts(lm, t), strict=False)):
        line = html.escape(step.strip())
        lines.append(f"{html.escape(mark):>8}  {k + 1:2d}  " + (f"<s>{line}</s>" if k in struck else line))
    return "<pre style='white-space: pre-wrap'>" + "\n".join(lines) + "</pre>"


def _broken_text(lm: LM, t: Trajectory, r: Trajectory, number: int, gear: GearConfig) -> str:
    """Stages 1 to 3: solution `t` breaks, and is cut where the repair `r` says."""
    cut, count, found = r.breakpoint or 0, len(t.steps), breakpoint_of(t, gear)
    if number == 1:
        end = "without an answer" if t.answer is None else f"in {html.escape(t.answer)}"
        note = f"It ends {end}; the right answer is {html.escape(r.problem.answer)}. Where does it break?"
        return _solution(lm, t, [""] * count) + note
    if number == 2:
        chosen = "finds no step to cut at" if found is None else f"chooses step {found + 1}"
        note = f"In front, the {gear.step} entropy of each step, in nats. The {gear.signal} {chosen}."
        return _solution(lm, t, [f"{h:.2f}" for h in step_values(t.entropy, t.steps, gear.step)]) + note
    note = f"✂ Cut before step {cut + 1}." + ("" if found == cut else " The reading of stage 2 would have cut elsewhere.")
    return _solution(lm, t, ["kept"] * cut + ["dropped"] * (count - cut), range(cut, count)) + note


def _mended_text(lm: LM, task: Any, r: Trajectory, number: int, pure: PureConfig, limit: float) -> str:
    """Stages 4 to 7: the hint, what was written behind it, and the two verdicts."""
    cut = r.breakpoint or 0
    marks = ["kept"] * cut + ["new"] * (len(r.steps) - cut)
    if number == 4:
        hint = f"<pre style='white-space: pre-wrap'>{'':>14}{html.escape(task.inject(r.hint or '').strip())}</pre>"
        note = "The teacher goes on behind the hint. Then the hint is taken out: it is <b>not part of the result</b>."
        return _solution(lm, r, marks[:cut]) + hint + note
    if number == 5:
        note = f"Without the hint. The answer is <b>{'right' if r.correct else 'wrong'}</b>."
    elif number == 6:
        note = "Not scored: its answer is wrong."
        for s in pure_scores(lm, task, [r], pure):
            marks, above = [f"{x:.3f}" for x in s.ratio], s.score > limit
            note = (f"In front, r of each step under the plain prompt. The score ({pure.aggregate.replace('_', ' ')}) is "
                    f"{s.score:.3f}, {'above' if above else 'not above'} the threshold {limit:.3f}: "
                    f"<b>{'dropped' if above else 'kept'}</b>.")
    elif task.knows_truth:
        marks = ["right" if ok else "✗ wrong" for ok in task.check_steps(r.problem, step_texts(lm, r))]
        wrong = first_wrong_step(lm, task, r)
        note = "<b>Every step is right.</b>" if wrong is None else f"<b>Step {wrong + 1} is the first wrong step.</b>"
    else:
        note = "No checker is known for this task: nobody can say whether every step is right."
    return _solution(lm, r, marks) + note


def _repair_picture(lm: LM, task: Any, t: Trajectory, r: Trajectory, number: int, gear: GearConfig) -> bytes:
    """The reading of the broken solution up to the hint, of the repaired one afterwards."""
    if number <= 4:
        return png(plot_reading(lm.pieces(t.token_ids), t, gear))
    wrong = first_wrong_step(lm, task, r) if number == 7 and task.knows_truth else None
    figure, again = plot_reading(lm.pieces(r.token_ids), r, gear, wrong), breakpoint_of(r, gear)
    now = "finds no step to cut at" if again is None else f"would now cut at step {again + 1}"
    figure.axes[0].set_title(f"Repaired from step {(r.breakpoint or 0) + 1} on; entropy as recorded, with the hint in view\n"
                             f"The same reading {now}", fontsize=10)
    return png(figure)
