"""GEAR, Guided Entropy-Assisted Repair: find where a trajectory breaks, and repair it with a hint.

Paper: "an active intervention mechanism that detects critical reasoning breakpoints via entropy
dynamics and injects targeted hindsight hints to repair broken trajectories".

Our reading, one line per step:
1. take problems that the teacher keeps failing, and some of its wrong trajectories of each
   (`choose_paths`);
2. the breakpoint is the step at which entropy rises most (`breakpoint_of`); keep the steps before
   it;
3. the hint is written in hindsight: the teacher sees problem, answer and kept prefix, and says what
   comes next, or writes the next step itself (`write_hints`). If that states the answer, it is
   refused;
4. the teacher continues from prefix + hint, without seeing the answer (`repair`);
5. the repaired trajectory is prefix + continuation. A hint is not in it; a step is part of it.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from heal_ref.config import GearConfig, SampleConfig
from heal_ref.entropy import rises, step_values, surges
from heal_ref.generation import Rollout, generate, make_trajectory, repeats
from heal_ref.model import LM
from heal_ref.records import Trajectory, by_problem
from heal_ref.tasks.base import Task

WRITTEN = ("bridge", "step")  # hints that the teacher writes
Cut = Callable[[Trajectory], int | None]  # a trajectory's breakpoint, or None if it has none


def window_end(window: float, steps: int) -> int:
    """How many of K steps are in the window: ⌈fK⌉, the steps 0 … ⌈fK⌉ − 1."""
    return math.ceil(round(window * steps, 9))  # 0.07 * 100 is 7.000000000000001


def find_breakpoint(
    step_entropy: Sequence[float], window: float = 1.0, signal: str = "rise"
) -> int | None:
    """The step (0-based) at which reasoning breaks: k* = argmax of the signal within the window.

    Paper: "detects critical reasoning breakpoints via entropy dynamics". That it is the *largest
    surge* in an early part of the trajectory is from secondary sources; the default finds more
    breaks here (PAPER.md, reading 1).

    Args:
        step_entropy: K step entropies in nats.
        window: share f of the steps that is searched, from the start: the first ⌈fK⌉.
        signal: "rise", H_k over the mean of all steps before, which the first step has, too (see
            `rises`); "surge", Δ_k = H_k − H_{k−1}, which the first step does not have; "relative",
            Δ_k / H_{k−1}; or "level", H_k itself.

    Returns:
        k*, or None if no step in the window has a signal.

    Raises:
        ValueError: there is no such signal.

    Example:
        >>> import heal_ref as heal
        >>> heal.find_breakpoint([0.2, 0.1, 0.9, 0.3])  # 0.9 is 0.75 over what came before
        2
        >>> heal.find_breakpoint([1.5, 0.1, 0.9, 0.3])  # the chain breaks where it begins
        0
        >>> heal.find_breakpoint([1.5, 0.1, 0.9, 0.3], signal="surge")
        2
    """
    if signal == "level":
        values = list(step_entropy)
    elif signal == "rise":
        values = rises(step_entropy)
    elif signal in ("surge", "relative"):
        values = surges(step_entropy, relative=signal == "relative")
    else:
        raise ValueError(f"signal {signal!r} is none of surge, rise, level, relative; "
                         "a random step comes from breakpoint_of")
    inside = [k for k in range(window_end(window, len(values))) if not math.isnan(values[k])]
    return max(inside, key=lambda k: values[k], default=None)


def breakpoint_of(t: Trajectory, config: GearConfig, seed: int = 0) -> int | None:
    """A trajectory's breakpoint by the configured reading; None if there is none in the window.

    `find_breakpoint` on the step entropies, by default on the rise of each step's largest token
    entropy; or, with `config.signal` "random", any step of the window, each equally likely (`seed`
    is of this control only).

    Example:
        >>> import heal_ref as heal
        >>> teacher, task = heal.load_lm(heal.DATA / "teacher"), heal.ClockTask()
        >>> problem = heal.Problem("p", "Start 5; + 3; # 4; * 2", "17")  # "#" was never learnt
        >>> greedy = heal.SampleConfig(temperature=0.0)
        >>> t, = heal.sample(teacher, task, [problem], n=1, sampling=greedy)
        >>> k = heal.breakpoint_of(t, heal.GearConfig())
        >>> k, teacher.decode(t.step_ids(k)).strip()
        (2, 'Then compute 8 # 4 = 8.')
    """
    if config.signal != "random":
        step_entropy = step_values(t.entropy, t.steps, config.step)
        return find_breakpoint(step_entropy, config.window, config.signal)
    inside = range(window_end(config.window, len(t.steps)))
    return random.Random(f"{seed}/{t.problem.id}/{t.index}").choice(inside) if inside else None


def choose_paths(
    base: Sequence[Trajectory], config: GearConfig, cut: Cut
) -> tuple[list[tuple[Trajectory, int]], Counter]:
    """Wrong trajectories to repair, each with its breakpoint; how many were skipped, and why."""
    chosen: list[tuple[Trajectory, int]] = []
    skipped: Counter = Counter()
    for samples in by_problem(base).values():
        if sum(t.correct for t in samples) > config.max_correct:
            skipped["problem solved often enough"] += len(samples)
            continue
        taken = 0
        for t in samples:
            k = None if t.correct else cut(t)
            if t.correct:
                skipped["correct already"] += 1
            elif k is None:
                skipped["no boundary in the window to cut at"] += 1
            elif config.hint == "wrong_answer" and t.answer is None:
                skipped["no answer of its own to hint at"] += 1
            elif taken == config.paths:
                skipped["enough paths of this problem"] += 1
            else:
                chosen.append((t, k))
                taken += 1
    return chosen, skipped


class Hint(NamedTuple):
    """A hint for one path, and the teacher tokens that it cost. An empty text is injected as
    nothing; without a text (None) the path is not continued, and `note` says why. A hint that is a
    `step` is not injected: it stays in the solution."""

    text: str | None
    tokens_spent: int = 0
    note: str = ""
    step: Rollout | None = None


def write_hints(
    lm: LM, task: Task, paths: Sequence[tuple[Trajectory, int]], config: GearConfig,
    sampling: SampleConfig, seed: int,
) -> list[list[Hint]]:
    """`config.hints` hints for each path, by the configured reading of "hindsight hints" (paper).

    "bridge": the teacher sees problem, answer and kept prefix, and writes what must come next.
    "step": after a prompt that shows the answer, and the kept prefix as its own beginning, the
    teacher writes the next step of the solution. "answer": the hint states the answer. Controls:
    "wrong_answer", it states the wrong answer of the path itself; "none", it is empty, so that the
    teacher only continues after the cut.
    """
    if config.hint == "none":
        return [[Hint("")] * config.hints for _ in paths]
    if config.hint not in WRITTEN:
        right = config.hint == "answer"
        answers = [t.problem.answer if right else t.answer or "" for t, _ in paths]
        return [[Hint(task.answer_hint(answer))] * config.hints for answer in answers]
    contexts, tails = [], []
    for t, k in paths:
        kept, answer = t.token_ids[: t.steps[k][0]], t.problem.answer
        if config.hint == "step":
            asked = lm.encode(task.guided_prompt(t.problem, answer)) + kept
        else:
            asked = lm.encode(task.hint_prompt(t.problem, answer, lm.decode(kept)))
        context, tail = repeats(asked, config.hints)
        contexts.append(context)
        tails.append(tail)
    step = config.hint == "step"
    first = step or not task.knows_thoughts  # what comes after the first separator is no hint
    rollouts = iter(generate(lm, contexts, tails, sampling=sampling, seed=seed,
                             until=task.separator if first else None))
    read = _read_step if step else _read_hint
    return [[read(lm, task, t, next(rollouts), config) for _ in range(config.hints)]
            for t, _ in paths]


def _read_hint(lm: LM, task: Task, t: Trajectory, written: Rollout, config: GearConfig) -> Hint:
    """The hint in what the teacher wrote, or the reason why there is none that can be used."""
    whole = lm.decode(written.ids).lstrip()
    if not written.finished and (task.knows_thoughts or task.separator not in whole):
        return Hint(None, written.tokens_spent, "hint cut off by the length limit")
    text = task.read_hint(whole, t.problem.answer)
    if text is None:
        return Hint(None, written.tokens_spent, "hint unreadable")
    if config.refuse_answers and task.states_answer(text, t.problem.answer):
        return Hint(None, written.tokens_spent, "hint states the answer")
    return Hint(text, written.tokens_spent)


def _read_step(lm: LM, task: Task, t: Trajectory, written: Rollout, config: GearConfig) -> Hint:
    """The step that the teacher wrote with the answer in view, or why it cannot be used."""
    text, answer, note = lm.decode(written.ids).lstrip(), t.problem.answer, ""
    if written.finished or task.extract_answer(text) is not None:
        note = "step ends the solution"
    elif not text or task.reveals_help(t.problem, text):
        note = "step empty, or mentions its help"
    elif task.separator not in text:
        note = "step cut off by the length limit"
    elif config.refuse_answers and task.states_answer(text, answer):
        note = "step states the answer"
    return Hint(None if note else text, written.tokens_spent, note, None if note else written)


def repair(
    lm: LM, task: Task, base: Sequence[Trajectory], config: GearConfig | None = None,
    seed: int = 0, *, sampling: SampleConfig | None = None, cut: Cut | None = None,
    counts: Counter | None = None,
) -> list[Trajectory]:
    r"""Repair what the teacher could not solve: cut at the breakpoint, inject a hint, continue.

    Paper: "injects targeted hindsight hints to repair broken trajectories". What a hint says, and
    that it is taken out again, is our reading.

    Args:
        base: the teacher's own samples, all of each problem: how often a problem is solved decides
            whether it is repaired.
        cut: finds a trajectory's breakpoint; without it `breakpoint_of` does.
        counts: if given, what was skipped and why is added to it.

    Returns:
        Trajectories with source "repair", right or wrong: one per path, hint and continuation.
        Token ids are kept prefix + continuation, hint left out (but a "step" is part of the
        solution); entropy and log-prob were recorded with what helped in view. A hint that cannot
        be used gives one trajectory that ends at the cut (`hint` None, `note` says why).
        `tokens_spent` counts the continuation, and with the first one of each hint the hint itself.

    Example:
        >>> import heal_ref as heal
        >>> teacher, task = heal.load_lm(heal.DATA / "teacher"), heal.ClockTask()
        >>> problem = heal.Problem("p", "Start 5; + 3; # 4; * 2", "17")
        >>> greedy = heal.SampleConfig(temperature=0.0)
        >>> wrong = heal.sample(teacher, task, [problem], n=1, sampling=greedy)
        >>> config = heal.GearConfig(continuations=1)
        >>> r, = heal.repair(teacher, task, wrong, config, sampling=greedy)
        >>> r.breakpoint, r.hint, r.correct
        (2, 'this step gives 20', True)
        >>> r.text.split("\n\n")[1:4]  # step 1 was kept, steps 2 and 3 are new, without the hint
        ['Then compute 5 + 3 = 8.', 'Then compute 8 # 4 = 20.', 'Then compute 20 * 2 = 17.']
    """
    config, sampling = config or GearConfig(), sampling or SampleConfig()

    # 1) Which trajectories are cut, and where?
    paths, skipped = choose_paths(base, config, cut or (lambda t: breakpoint_of(t, config, seed)))

    # 2) Hints, written with the answer in view.
    hints = write_hints(lm, task, paths, config, sampling, seed)

    # 3) Continue from plain prompt + kept steps + hint. One context per path, computed once; its
    #    continuations (tails) share it through the cache. One rollout per tail, path by path.
    kept = [lm.encode(t.prompt) + t.token_ids[: t.steps[k][0]] for t, k in paths]
    tails = [[ids[-1:] + _tail(lm, task, hint) for hint in mine if hint.text is not None
              for _ in range(config.continuations)] for ids, mine in zip(kept, hints, strict=True)]
    made = iter(generate(lm, [ids[:-1] for ids in kept], tails, sampling=sampling, seed=seed + 1))

    # 4) Join kept steps and continuation, and leave the hint out.
    repaired = []
    for (t, k), mine in zip(paths, hints, strict=True):
        for hint in mine:
            if hint.text is None:  # it ends at the cut, and costs the hint
                skipped[hint.note] += 1
                nothing = Rollout([], [], [], finished=False)
                repaired.append(_join(lm, task, t, k, hint, nothing, hint.tokens_spent))
                continue
            for i in range(config.continuations):  # the first one also pays for the hint
                new = next(made)
                cost = new.tokens_spent + (hint.tokens_spent if i == 0 else 0)
                repaired.append(_join(lm, task, t, k, hint, new, cost))
    if counts is not None:
        counts.update(skipped)
    return repaired


def _tail(lm: LM, task: Task, hint: Hint) -> list[int]:
    """What follows the kept steps, for the teacher to continue: nothing, a step or a hint."""
    if hint.step:
        return hint.step.ids
    return lm.encode(task.inject(hint.text)) if hint.text else []


def _join(
    lm: LM, task: Task, t: Trajectory, k: int, hint: Hint, new: Rollout, cost: int
) -> Trajectory:
    """Kept steps and continuation as one trajectory, without the hint, but with a step."""
    cut = t.steps[k][0]
    kept = Rollout(t.token_ids[:cut], t.entropy[:cut], t.logprob[:cut], finished=False)
    parts = [kept, hint.step, new] if hint.step else [kept, new]
    whole = Rollout([i for p in parts for i in p.ids], [x for p in parts for x in p.entropy],
                    [x for p in parts for x in p.logprob], new.finished)
    return make_trajectory(lm, task, t.problem, "repair", whole, tokens_spent=cost, parent=t.index,
                           breakpoint=k, hint=hint.text, note=hint.note)
