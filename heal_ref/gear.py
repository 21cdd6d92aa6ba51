"""GEAR, Guided Entropy-Assisted Repair: find where a trajectory breaks, and mend it with a hint.

Paper: "an active intervention mechanism that detects critical reasoning breakpoints via entropy dynamics and
injects targeted hindsight hints to repair broken trajectories".

Our reading, one line a step:
1. problems that the teacher keeps failing; some of its wrong trajectories of each (`choose_paths`);
2. the breakpoint: the step at which step entropy surges most (`find_breakpoint`); the steps before it are kept;
3. a hint written in hindsight: the teacher sees problem, answer and kept prefix, and works towards the answer;
4. the teacher goes on behind prefix + hint, without seeing the answer;
5. the repaired trajectory is prefix + continuation. The hint is not in it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from heal_ref.config import GearConfig, SampleConfig
from heal_ref.entropy import surges
from heal_ref.lm import LM, Rollout, generate, make_trajectory
from heal_ref.records import Trajectory, by_problem
from heal_ref.tasks import Task


def find_breakpoint(step_entropy: Sequence[float], window: float = 1.0, signal: str = "surge") -> int | None:
    """The step (0-based) at which reasoning breaks: k* = argmax of the signal within the window.

    Stands on "detects critical reasoning breakpoints via entropy dynamics" (paper); that it is the *largest
    surge* in an early part of the trajectory is hearsay. The first step has no surge and cannot be chosen by it.

    Args:
        step_entropy: K mean entropies in nats.
        window: share f of the steps that is searched: k ≤ ⌈fK⌉, counted from 1.
        signal: "surge", Δ_k = H_k − H_{k−1}, or "level", H_k itself.

    Returns:
        k*, or None where the window holds no step with a signal.
    """
    values = surges(step_entropy) if signal == "surge" else list(step_entropy)
    inside = [k for k in range(math.ceil(window * len(values))) if not math.isnan(values[k])]
    return max(inside, key=values.__getitem__, default=None)


def choose_paths(base: Sequence[Trajectory], config: GearConfig) -> tuple[list[tuple[Trajectory, int]], Counter]:
    """Wrong trajectories to repair, each with its breakpoint, and how many were passed over for what reason."""
    chosen: list[tuple[Trajectory, int]] = []
    passed: Counter = Counter()
    for samples in by_problem(base).values():
        if sum(t.correct for t in samples) > config.max_correct:
            passed["problem solved often enough"] += 1
            continue
        taken = 0
        for t in samples:
            k = find_breakpoint(t.step_entropy, config.window, config.signal)
            if t.correct:
                passed["trajectory correct already"] += 1
            elif k is None:
                passed["no step to cut at"] += 1
            elif taken == config.paths:
                passed["enough paths of this problem"] += 1
            else:
                chosen.append((t, k))
                taken += 1
    return chosen, passed


def write_hints(lm: LM, task: Task, paths: Sequence[tuple[Trajectory, int]], config: GearConfig,
                sampling: SampleConfig, seed: int) -> list[tuple[str | None, int]]:
    """`config.hints` hints for each path, in order: (hint or None if unreadable, tokens it cost)."""
    if config.hint == "answer":
        return [(task.answer_hint(t.problem.answer), 0) for t, _ in paths for _ in range(config.hints)]
    contexts = []
    for t, k in paths:
        prefix = lm.decode(t.token_ids[: t.steps[k][0]])
        contexts += [lm.encode(task.hint_prompt(t.problem, t.problem.answer, prefix))] * config.hints
    rollouts = generate(lm, contexts, config=sampling, seed=seed)
    return [(task.read_hint(lm.decode(r.ids)) if r.finished else None, r.tokens_spent) for r in rollouts]


def repair(lm: LM, task: Task, base: Sequence[Trajectory], config: GearConfig | None = None, seed: int = 0, *,
           sampling: SampleConfig | None = None, counts: Counter | None = None) -> list[Trajectory]:
    """Repair what the teacher could not solve: cut at the breakpoint, inject a hint, let it go on.

    Args:
        base: the teacher's own samples, all of each problem (how often a problem is solved decides whether it
            is repaired).
        counts: if given, what was passed over and why is added to it.

    Returns:
        Trajectories of kind "repair", right or wrong, one for each path · hint · continuation. Token ids are
        kept prefix + continuation, hint left out; entropy and log-prob of the continuation were recorded with
        the hint in view. `tokens_spent` counts the continuation and its share of the hint.
    """
    config, sampling = config or GearConfig(), sampling or SampleConfig()
    paths, passed = choose_paths(base, config)
    hints = write_hints(lm, task, paths, config, sampling, seed)
    jobs, contexts = [], []
    for i, (hint, cost) in enumerate(hints):
        t, k = paths[i // config.hints]
        if hint is None:
            passed["hint unreadable or cut off"] += 1
            continue
        prefix = t.token_ids[: t.steps[k][0]]
        jobs += [(t, k, hint, cost / config.continuations)] * config.continuations
        contexts += [lm.encode(t.prompt) + prefix + lm.encode(task.inject(hint))] * config.continuations
    rollouts = generate(lm, contexts, config=sampling, seed=seed + 1)
    if counts is not None:
        counts.update(passed)
    return [_join(lm, task, t, k, hint, cost, r) for (t, k, hint, cost), r in zip(jobs, rollouts, strict=True)]


def _join(lm: LM, task: Task, t: Trajectory, k: int, hint: str, cost: float, r: Rollout) -> Trajectory:
    """Kept prefix + continuation as one trajectory, without the hint."""
    cut = t.steps[k][0]
    whole = Rollout(t.token_ids[:cut] + r.ids, t.entropy[:cut] + r.entropy, t.logprob[:cut] + r.logprob, r.finished)
    return make_trajectory(lm, task, t.problem, "repair", whole, tokens_spent=round(r.tokens_spent + cost),
                           parent=t.index, breakpoint=k, hint=hint)
