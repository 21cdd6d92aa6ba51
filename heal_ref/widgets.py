"""Explorers for notebooks: controls above a text and a picture that `plots` draws."""

import base64
import html
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ipywidgets import HTML, Box, Dropdown, FloatSlider, Image, IntSlider, SelectionSlider, VBox

from heal_ref.config import GearConfig, PureConfig, choices
from heal_ref.entropy import step_values
from heal_ref.evaluate import first_wrong_step, is_genuine, step_texts
from heal_ref.gear import breakpoint_of
from heal_ref.model import LM
from heal_ref.plots import picture, plot_filter, plot_reading
from heal_ref.pure import pure_scores, pure_threshold, rescored
from heal_ref.records import InputError, PureScore, Trajectory
from heal_ref.tasks.base import Task

STAGES = ("1 the broken solution", "2 its entropy", "3 the cut", "4 the hint",
          "5 the continuation", "6 PURE", "7 the checker")
WIDE = {"width": "98%"}
MAKERS = {"trajectories": "sample", "base": "sample", "repaired": "repair", "scored": "pure_scores",
          "reference": "pure_scores of correct unaided samples"}


class Explorer(VBox):
    """Controls above a text and a picture; for readers who run nothing, a picture alone."""

    still = b""

    def _repr_mimebundle_(self, **asked: Any) -> Any:
        bundle = super()._repr_mimebundle_(**asked)
        bundle["text/plain"] = "An explorer: run this cell to move its controls."
        bundle["image/png"] = base64.b64encode(self.still).decode()
        return bundle


def _explorer(show: Callable[..., tuple[str, bytes]], still: bytes = b"", **controls: Any
              ) -> Explorer:
    """Controls above the text and the picture that `show` makes of their values, now and whenever
    one of them moves. (`interactive_output` would print control codes outside of notebooks.)
    Where nothing runs, the picture is `still`, or the first one."""
    text, image = HTML(), Image(format="png")

    def update(_: Any = None) -> None:
        text.value, image.value = show(**{name: c.value for name, c in controls.items()})
        image.layout.display = None if image.value else "none"

    for name, control in controls.items():
        control.description = name
        control.style.description_width = "initial"
        control.observe(update, names="value")
    update()
    explorer = Explorer([Box(list(controls.values()), layout={"flex_flow": "row wrap"}), text,
                         image])
    explorer.still = still or image.value
    return explorer


def _menu(trajectories: Sequence[Trajectory]) -> Dropdown:
    """Choose one of several trajectories, by index."""
    ends = [t.note or ("ends right" if t.correct else "ends wrong") for t in trajectories]
    return Dropdown(layout=WIDE, options=[
        (f"{i + 1}: {t.problem.kind} {t.problem.question} ({ends[i]})", i)
        for i, t in enumerate(trajectories)])


def _solution(lm: LM, t: Trajectory, marks: Sequence[str]) -> str:
    """The steps that have a mark, one per line; those marked "dropped" are struck out."""
    lines = []
    for k, (mark, step) in enumerate(zip(marks, step_texts(lm, t), strict=False), 1):
        text = html.escape(step.strip())
        lines.append(f"{mark:>8}  {k:2d}  " + (f"<s>{text}</s>" if mark == "dropped" else text))
    return "<pre style='white-space: pre-wrap'>" + "\n".join(lines) + "</pre>"


def _refuse_empty(**lists: Sequence[Any]) -> None:
    for name, given in lists.items():
        if not given:
            raise InputError(f"nothing to explore: {name} is empty; use {MAKERS[name]}")


def explore_entropy(lm: LM, task: Task, trajectories: Sequence[Trajectory]) -> VBox:
    """Choose a trajectory and a reading of the breakpoint; text, curve and breakpoint follow.

    Where the task checks steps, the text says whether the reading hits the first wrong one, here
    and in all trajectories. InputError if there are none.

    Example:
        >>> heal.explore_entropy(None, heal.ClockTask(), [])
        Traceback (most recent call last):
        heal_ref.records.InputError: nothing to explore: trajectories is empty; use sample
    """
    _refuse_empty(trajectories=trajectories)
    wrong = [first_wrong_step(lm, task, t) for t in trajectories]

    def show(trajectory: int, **reading: Any) -> tuple[str, bytes]:
        config, t, truth = GearConfig(**reading), trajectories[trajectory], wrong[trajectory]
        hits = [breakpoint_of(t, config) == w for t, w in zip(trajectories, wrong, strict=True)
                if w is not None]
        here = "hit" if breakpoint_of(t, config) == truth else "miss"
        text = (f"<b>{'no wrong step here' if truth is None else here}</b>; this reading finds the "
                f"first wrong step of {sum(hits)} in {len(hits)} trajectories")
        return text, picture(plot_reading(lm.pieces(t.token_ids), t, config, truth))

    step, signal = (Dropdown(options=choices(GearConfig, name), value=getattr(GearConfig(), name))
                    for name in ("step", "signal"))
    return _explorer(
        show, trajectory=_menu(trajectories), step=step, signal=signal,
        window=FloatSlider(1.0, min=0.1, max=1.0, step=0.05))


def explore_pure(lm: LM, task: Task, scored: Sequence[PureScore], reference: Sequence[PureScore],
                 config: PureConfig | None = None) -> VBox:
    """Change `PureConfig`'s numbers and aggregate; scatter, counts and one example follow.

    The checker says which of `scored` are genuine; `reference` (scores of unaided correct
    trajectories) gives the threshold. All have the reading of `config`. InputError if one is empty.

    Example:
        >>> heal.explore_pure(None, heal.ClockTask(), [], [])
        Traceback (most recent call last):
        heal_ref.records.InputError: nothing to explore: scored is empty; use pure_scores
    """
    _refuse_empty(scored=scored, reference=reference)
    start, genuine = config or PureConfig(), [is_genuine(lm, task, s.trajectory) for s in scored]

    def show(example: int, **fields: Any) -> tuple[str, bytes]:
        config = replace(start, **fields)
        again, limit = rescored(scored, config), pure_threshold(rescored(reference, config), config)
        kept = [g for s, g in zip(again, genuine, strict=True) if s.score <= limit]
        s = again[example]
        verdict = "kept" if s.score <= limit else "dropped"
        truth = "genuine" if genuine[example] else "spurious"
        text = (f"threshold {limit:.3f}: keeps {len(kept)} of {len(scored)} candidates, "
                f"{sum(kept)} of them genuine; loses {sum(genuine) - sum(kept)} genuine ones<br>"
                f"<b>{verdict}, {truth}</b>, score {s.score:.3f}; r of each step:")
        text += _solution(lm, s.trajectory, [f"{r:.3f}" for r in s.ratio])
        return text, picture(plot_filter(again, genuine, limit, config))

    epsilons = sorted({0.01, 0.1, 0.3, 1.0, 3.0, start.epsilon})
    return _explorer(
        show, keep_quantile=FloatSlider(start.keep_quantile, min=0.5, max=1.0, step=0.01),
        aggregate=Dropdown(options=choices(PureConfig, "aggregate"), value=start.aggregate),
        lam=FloatSlider(start.lam, min=0.05, max=1.0, step=0.05),
        epsilon=SelectionSlider(options=epsilons, value=start.epsilon),
        example=IntSlider(0, min=0, max=len(scored) - 1))


def explore_repair(lm: LM, task: Task, base: Sequence[Trajectory], repaired: Sequence[Trajectory],
                   reference: Sequence[PureScore], gear: GearConfig | None = None,
                   pure: PureConfig | None = None) -> VBox:
    """Step through the repairs of `base`: broken solution, entropy, cut, hint, result, verdicts.

    `gear` is the reading of the breakpoint that is shown. `reference` (scores of unaided correct
    trajectories under `pure`) gives the threshold.

    Raises:
        InputError: a list is empty, or the broken solution of a repair is not in `base`.

    Example:
        >>> heal.explore_repair(None, heal.ClockTask(), [], [], [])
        Traceback (most recent call last):
        heal_ref.records.InputError: nothing to explore: base is empty; use sample
    """
    _refuse_empty(base=base, repaired=repaired, reference=reference)
    samples = {(t.problem.id, t.index): t for t in base}
    for i, r in enumerate(repaired, 1):
        if (r.problem.id, r.parent or 0) not in samples:
            raise InputError(f"repair {i} starts from sample {r.parent} of problem {r.problem.id}, "
                             "which is not in base; give the same samples that were repaired")
    gear, limit = gear or GearConfig(), pure_threshold(reference, pure)
    scores = {id(s.trajectory): s for s in pure_scores(lm, task, repaired, pure)}

    def show(repair: int, stage: str) -> tuple[str, bytes]:
        number, r = STAGES.index(stage), repaired[repair]
        broken = samples[r.problem.id, r.parent or 0]
        t, marks, note = _story(lm, task, broken, r, gear, scores.get(id(r)), limit)[number]
        text = f"Stage <b>{stage}</b> of {html.escape(r.problem.question)}"
        text += _solution(lm, t, marks) + html.escape(note)
        if number == 0:  # first guess, then look
            return text, b""
        drawn = r if number > 3 else broken
        wrong = first_wrong_step(lm, task, r) if number == 6 else None
        return text, picture(plot_reading(lm.pieces(drawn.token_ids), drawn, gear, wrong))

    return _explorer(show, show(0, STAGES[1])[1], repair=_menu(repaired), stage=SelectionSlider(
        options=STAGES, readout=False, layout=WIDE))


def _story(lm: LM, task: Task, t: Trajectory, r: Trajectory, gear: GearConfig,
           s: PureScore | None, limit: float) -> list[tuple[Trajectory, list[str], str]]:
    """Each stage of the repair `r` of `t`: a solution, marks of its steps, and what is said."""
    cut, found, wrong = r.breakpoint or 0, breakpoint_of(t, gear), first_wrong_step(lm, task, r)
    marks = ["kept"] * cut + ["new"] * (len(r.steps) - cut)
    struck = ["kept"] * cut + ["dropped"] * (len(t.steps) - cut)
    values = [f"{h:.2f}" for h in step_values(t.entropy, t.steps, gear.step)]
    chosen = "finds no step to cut at" if found is None else f"chooses step {found + 1}"
    hint = f"No usable hint was written: {r.note}. The repair ends at the cut."
    if r.hint is not None:
        hint = (f"{task.inject(r.hint).strip()} … The teacher continues after the hint, which is "
                "not part of the result.")
    ratios, filtered = marks, "Not scored: its answer is wrong."
    if s is not None:
        ratios, verdict = [f"{x:.3f}" for x in s.ratio], "kept" if s.score <= limit else "dropped"
        filtered = (f"In front, r of each step under the plain prompt. The score is {s.score:.3f}, "
                    f"the threshold {limit:.3f}: {verdict}.")
    checked = "No checker is known for this task: whether every step is right stays unknown."
    if task.knows_truth:
        checked = f"Step {wrong + 1} is the first wrong step." if wrong is not None else (
            "Every step is right.")
    return [
        (t, [""] * len(t.steps), f"It ends in {t.answer}; the right answer is {r.problem.answer}. "
                                 "Where does it break?"),
        (t, values, f"In front, the {gear.step} entropy of each step. The {gear.signal} {chosen}."),
        (t, struck, f"Cut before step {cut + 1}."),
        (r, marks[:cut], hint),
        (r, marks, f"Without the hint. The answer is {'right' if r.correct else 'wrong'}."),
        (r, ratios, filtered),
        (r, marks, checked)]
