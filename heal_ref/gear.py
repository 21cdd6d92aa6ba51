"""GEAR, Guided Entropy-Assisted Repair: find where a trajectory breaks, and mend it with a hint.

Paper: "an active intervention mechanism that detects critical reasoning breakpoints via entropy dynamics and
injects targeted hindsight hints to repair broken trajectories".

Our reading, one line a step:
1. problems that the teacher keeps failing; some of its wrong trajectories of each (`choose_paths`);
2. the breakpoint: the step at which step entropy surges most (`breakpoint_of`); the steps before it are kept;
3. a hint written in hindsight: the teacher sees problem, answer and kept prefix, and works towards the answer
   (`write_hints`);
4. the teacher goes on behind prefix + hint, without seeing the answer;
5. the repaired trajectory is prefix + continuation. The hint is not in it.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from heal_ref.config import GearConfig, SampleConfig
from heal_ref.entropy import step_values, surges
from heal_ref.generation import Rollout, generate, make_trajectory, repeats
from heal_ref.model import LM
from heal_ref.records import Trajectory, by_problem
from heal_ref.tasks.base import Task

Cut = Callable[[Trajectory], int | None]  # a trajectory's breakpoint, or None if it has none


def window_end(window: float, steps: int) -> int:
    """How many of K steps lie in the window: ⌈fK⌉, whatever f times K is in floats."""
    return math.ceil(round(window * steps, 9))


def find_breakpoint(step_entropy: Sequence[float], window: float = 1.0, signal: str = "surge") -> int | None:
    """The step (0-based) at which reasoning breaks: k* = argmax of the signal within the window.

    Stands on "detects critical reasoning breakpoints via entropy dynamics" (paper); that it is the *largest
    surge* in an early part of the trajectory is hearsay. The first step has no surge and cannot be chosen by it.

    Args:
        step_entropy: K step entropies in nats.
        window: share f of the steps that is searched: k ≤ ⌈fK⌉, counted from 1.
        signal: "surge", Δ_k = H_k − H_{k−1}; "relative", Δ_k / H_{k−1}; or "level", H_k itself.

    Returns:
        k*, or None where the window holds no step with a signal.

    Raises:
        ValueError: there is no such signal ("random" is not one: see `breakpoint_of`).

    Example:
        >>> import heal_ref as heal
        >>> heal.find_breakpoint([0.2, 0.1, 0.9, 0.3])  # the surge from 0.1 to 0.9
        2
        >>> heal.find_breakpoint([0.2, 0.1, 0.9, 0.3], window=0.5)  # steps 0 and 1 only
        1
        >>> heal.find_breakpoint([1.5, 0.1, 0.9, 0.3], signal="level")
        0
    """
    if signal not in ("surge", "level", "relative"):
        raise ValueError(f"signal {signal!r} is none of surge, level, relative; a random step comes from breakpoint_of")
    values = list(step_entropy) if signal == "level" else surges(step_entropy, relative=signal == "relative")
    inside = [k for k in range(window_end(window, len(values))) if not math.isnan(values[k])]
    return max(inside, key=values.__getitem__, default=None)


def breakpoint_of(t: Trajectory, config: GearConfig, seed: int = 0) -> int | None:
    """A trajectory's breakpoint by the configured reading; None if there is no boundary in the window to cut at.

    With `config.signal` "random", any step that a surge could have chosen, each as likely: the control. Otherwise
    `find_breakpoint` on the step entropies, and stands on the same words of the paper.

    Args:
        seed: of the random control; the other readings have no chance in them.

    Returns:
        Index of a step, 0-based.

    Example:
        The teacher never learnt "#" and is unsure there:

        >>> import heal_ref as heal
        >>> teacher, task = heal.load_lm(heal.DATA / "teacher"), heal.ClockTask()
        >>> problem = heal.Problem("p", "Start 5; + 3; # 4; * 2", "17")
        >>> t, = heal.sample(teacher, task, [problem], n=1, sampling=heal.SampleConfig(temperature=0.0))
        >>> k = heal.breakpoint_of(t, heal.GearConfig())
        >>> k, teacher.decode(t.step_ids(k)).strip()
        (2, 'Then compute 8 # 4 = 8.')
    """
    if config.signal != "random":
        return find_breakpoint(step_values(t.entropy, t.steps, config.step), config.window, config.signal)
    inside = range(1, window_end(config.window, len(t.steps)))
    return random.Random(f"{seed}/{t.problem.id}/{t.index}").choice(inside) if inside else None


def choose_paths(base: Sequence[Trajectory], config: GearConfig, cut: Cut) -> tuple[list[tuple[Trajectory, int]], Counter]:
    """Wrong trajectories to repair, each with its breakpoint, and how many were passed over for what reason."""
    chosen: list[tuple[Trajectory, int]] = []
    passed: Counter = Counter()
    for samples in by_problem(base).values():
        if sum(t.correct for t in samples) > config.max_correct:
            passed["problem solved often enough"] += len(samples)
            continue
        taken = 0
        for t in samples:
            k = None if t.correct else cut(t)
            if t.correct:
                passed["correct already"] += 1
            elif k is None:
                passed["no boundary in the window to cut at"] += 1
            elif config.hint == "wrong_answer" and t.answer is None:
                passed["no answer of its own to hint at"] += 1
            elif taken == config.paths:
                passed["enough paths of this problem"] += 1
            else:
                chosen.append((t, k))
                taken += 1
    return chosen, passed


class Hint(NamedTuple):
    """A hint for one path, and the teacher tokens that writing it cost. No text: `problem` says why."""

    text: str | None
    tokens_spent: int = 0
    problem: str = ""


def write_hints(lm: LM, task: Task, paths: Sequence[tuple[Trajectory, int]], config: GearConfig,
                sampling: SampleConfig, seed: int) -> list[list[Hint]]:
    """`config.hints` hints for each path, by the configured reading.

    "bridge": the teacher sees problem, answer and kept prefix, and writes what must come next.
    "answer": the hint states the answer. "wrong_answer", a control: it states the wrong answer that the path came to.
    """
    if config.hint != "bridge":
        right = config.hint == "answer"
        return [[Hint(task.answer_hint(t.problem.answer if right else t.answer or ""))] * config.hints for t, _ in paths]
    contexts, tails = [], []
    for t, k in paths:
        prefix = lm.decode(t.token_ids[: t.steps[k][0]])
        context, tail = repeats(lm.encode(task.hint_prompt(t.problem, t.problem.answer, prefix)), config.hints)
        contexts.append(context)
        tails.append(tail)
    rollouts = iter(generate(lm, contexts, tails, sampling=sampling, seed=seed))

    def read(r: Rollout, answer: str) -> Hint:
        if not r.finished:
            return Hint(None, r.tokens_spent, "hint cut off by the length limit")
        text = task.read_hint(lm.decode(r.ids), answer)
        return Hint(text, r.tokens_spent, "" if text else "hint unreadable")

    return [[read(next(rollouts), t.problem.answer) for _ in range(config.hints)] for t, _ in paths]


def repair(lm: LM, task: Task, base: Sequence[Trajectory], config: GearConfig | None = None, seed: int = 0, *,
           sampling: SampleConfig | None = None, cut: Cut | None = None, counts: Counter | None = None) -> list[Trajectory]:
    r"""Repair what the teacher could not solve: cut at the breakpoint, inject a hint, let it go on.

    Paper: "injects targeted hindsight hints to repair broken trajectories". What a hint says, and that it is taken out again,
    is our reading. The kept prefix is computed once for each path; all its continuations share it through the cache.

    Args:
        base: the teacher's own samples, all of each problem (how often a problem is solved decides whether it
            is repaired).
        cut: finds a trajectory's breakpoint; without it `breakpoint_of` does, by the configured reading.
        counts: if given, what was passed over and why is added to it.

    Returns:
        Trajectories of kind "repair", right or wrong, one for each path · hint · continuation. Token ids are
        kept prefix + continuation, hint left out; entropy and log-prob of the continuation were recorded with
        the hint in view. `tokens_spent` counts the continuation, and for the first one of a hint also the hint and
        the unusable hints before it, so that the sum is what the repair cost.

    Example:
        >>> import heal_ref as heal
        >>> teacher, task = heal.load_lm(heal.DATA / "teacher"), heal.ClockTask()
        >>> problem, greedy = heal.Problem("p", "Start 5; + 3; # 4; * 2", "17"), heal.SampleConfig(temperature=0.0)
        >>> wrong = heal.sample(teacher, task, [problem], n=1, sampling=greedy)
        >>> r, = heal.repair(teacher, task, wrong, heal.GearConfig(continuations=1), sampling=greedy)
        >>> r.breakpoint, r.hint, r.correct
        (2, 'this step gives 20', True)
        >>> r.text.split("\n\n")[1:4]  # step 1 was kept, steps 2 and 3 are new; the hint is in none
        ['Then compute 5 + 3 = 8.', 'Then compute 8 # 4 = 20.', 'Then compute 20 * 2 = 17.']
    """
    config, sampling = config or GearConfig(), sampling or SampleConfig()
    paths, passed = choose_paths(base, config, cut or (lambda t: breakpoint_of(t, config, seed)))
    contexts, tails, cost = list[list[int]](), list[list[list[int]]](), 0
    jobs: list[tuple[Trajectory, int, str, int]] = []
    for (t, k), hints in zip(paths, write_hints(lm, task, paths, config, sampling, seed), strict=True):
        contexts.append(lm.encode(t.prompt) + t.token_ids[: t.steps[k][0]])
        tails.append([])
        for hint in hints:
            cost += hint.tokens_spent
            if hint.text is None:
                passed[hint.problem] += 1
                continue
            tails[-1] += [lm.encode(task.inject(hint.text))] * config.continuations
            jobs += [(t, k, hint.text, 0 if i else cost) for i in range(config.continuations)]
            cost = 0
    rollouts = generate(lm, contexts, tails, sampling=sampling, seed=seed + 1)
    if counts is not None:
        counts.update(passed)
    return [_join(lm, task, *job, r) for job, r in zip(jobs, rollouts, strict=True)]


def _join(lm: LM, task: Task, t: Trajectory, k: int, hint: str, cost: int, r: Rollout) -> Trajectory:
    """Kept prefix + continuation as one trajectory, without the hint."""
    cut = t.steps[k][0]
    whole = Rollout(t.token_ids[:cut] + r.ids, t.entropy[:cut] + r.entropy, t.logprob[:cut] + r.logprob, r.finished)
    return make_trajectory(lm, task, t.problem, "repair", whole, tokens_spent=r.tokens_spent + cost,
                           parent=t.index, breakpoint=k, hint=hint)
