"""PURE, Perplexity-Uncertainty Ratio Estimator: keep breakthroughs, drop shortcuts.

Paper: "a rigorous filtering protocol that decouples genuine cognitive breakthroughs from spurious shortcuts".
The name gives a perplexity over an uncertainty; everything else is our reading:

- a step that surprises its own author where the author was *uncertain* may be a breakthrough; one that surprises
  where everything was *settled* is a forced move: perplexity over uncertainty is then large;
- `typicality` (default): the uncertainty is the step's own. PPL(s_k) / exp(H_k), in logarithms log PPL(s_k) − H_k;
- `forced`: the uncertainty is the answer's. PPL(s_k) / (U_k + ε), U_k the entropy of an answer demanded before the
  step. In the clock world ε decides everything: the closing step has U_k near 0 and dominates every other step;
- `rollout`: the same, with U_k the entropy of the final answers that continuations from there end in;
- all are measured by the teacher under the plain prompt, without any hint;
- the threshold is calibrated on the teacher's own unaided correct trajectories, which had no hint to cheat with.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from heal_ref.config import PureConfig, SampleConfig
from heal_ref.generation import generate
from heal_ref.model import LM
from heal_ref.records import PureScore, Trajectory, by_problem
from heal_ref.scoring import text_stats
from heal_ref.tasks.base import Task


def answer_uncertainty(lm: LM, task: Task, trajectories: Sequence[Trajectory]) -> list[list[float]]:
    """U_k by the `forced` reading: entropy (nats) of the answer's first token when it is demanded before step k.

    One list of K numbers for each trajectory. A trajectory is computed once; the demands behind its prefixes share it.
    """
    demand, prompts = lm.encode(task.elicit), [lm.encode(t.prompt) for t in trajectories]
    rollouts = iter(generate(
        lm, [[*p, *t.token_ids] for p, t in zip(prompts, trajectories, strict=True)],
        [[demand] * len(t.steps) for t in trajectories], sampling=SampleConfig(temperature=0.0, max_new_tokens=1), seed=0,
        visible=[[len(p) + a for a, _ in t.steps] for p, t in zip(prompts, trajectories, strict=True)], ends=False))
    return [[next(rollouts).entropy[0] for _ in t.steps] for t in trajectories]


def rollout_uncertainty(lm: LM, task: Task, trajectories: Sequence[Trajectory], m: int = 8, seed: int = 0,
                        sampling: SampleConfig | None = None) -> list[list[float]]:
    """U_k by the `rollout` reading: entropy (nats) of the final answers of m continuations sampled before step k.

    One list of K numbers for each trajectory, each between 0 and log m; no answer counts as an answer of its own.
    A trajectory is computed once, and m · K continuations of its prefixes are generated.
    """
    prompts = [lm.encode(t.prompt) for t in trajectories]
    texts = [[*p, *t.token_ids] for p, t in zip(prompts, trajectories, strict=True)]
    cuts = [[len(p) + a for a, _ in t.steps] for p, t in zip(prompts, trajectories, strict=True)]
    rollouts = iter(generate(
        lm, texts, [[[x[c - 1]] for c in mine for _ in range(m)] for x, mine in zip(texts, cuts, strict=True)],
        sampling=sampling or SampleConfig(), seed=seed, visible=[[c - 1 for c in mine for _ in range(m)] for mine in cuts]))

    def entropy(t: Trajectory, start: int) -> float:
        ends = [next(rollouts) for _ in range(m)]
        answers = Counter(task.extract_answer(lm.decode([*t.token_ids[:start], *r.ids])) if r.finished else None for r in ends)
        return -sum(c / m * math.log(c / m) for c in answers.values()) + 0.0

    return [[entropy(t, a) for a, _ in t.steps] for t in trajectories]


def step_ratios(log_ppl: Sequence[float], uncertainty: Sequence[float], config: PureConfig) -> list[float]:
    """r_k for K steps from log PPL(s_k) and U_k: PPL / (U_k + ε); with `typicality`, log PPL − H_k."""
    if config.reading == "typicality":
        return [s - u for s, u in zip(log_ppl, uncertainty, strict=True)]
    return [math.exp(s) / (u + config.epsilon) for s, u in zip(log_ppl, uncertainty, strict=True)]


def aggregate(ratio: Sequence[float], config: PureConfig) -> float:
    """One number from K step ratios: the worst, the mean of the worst share λ, or the mean."""
    if config.aggregate == "worst":
        return max(ratio)
    share = config.lam if config.aggregate == "worst_share" else 1.0
    return float(np.mean(sorted(ratio, reverse=True)[: max(1, math.ceil(share * len(ratio)))]))


def step_surprise(lm: LM, trajectories: Sequence[Trajectory]) -> tuple[list[list[float]], list[list[float]]]:
    """log PPL(s_k | q, s_<k) and mean entropy H_k (nats) of each step, by the model under the plain prompt.

    Two lists with K numbers for each trajectory, from one forward pass over prompt and trajectory.
    """
    plain = text_stats(lm, ((lm.encode(t.prompt), t.token_ids) for t in trajectories))
    surprise = [[-float(np.mean(p[a:b])) for a, b in t.steps] for t, (_, p) in zip(trajectories, plain, strict=True)]
    entropy = [[float(np.mean(h[a:b])) for a, b in t.steps] for t, (h, _) in zip(trajectories, plain, strict=True)]
    return surprise, entropy


def pure_scores(lm: LM, task: Task, trajectories: Sequence[Trajectory], config: PureConfig | None = None, seed: int = 0, *,
                sampling: SampleConfig | None = None) -> list[PureScore]:
    r"""Score the trajectories whose answer is right (the others are left out), hint-free.

    Paper: "decouples genuine cognitive breakthroughs from spurious shortcuts", by a "Perplexity-Uncertainty Ratio"; the
    formulas are our reading.

    r_k = PPL(s_k | q, s_<k) / (U_k + ε), with U_k by `config.reading`:
        forced      entropy in nats of the answer demanded before step k;
        rollout     entropy in nats of the final answers of `config.rollouts` continuations (seed and sampling are theirs);
        typicality  in the log domain: log r_k = log PPL(s_k) − H_k, surprise beyond the model's own mean entropy
                    H_k over the step. `uncertainty` and `ratio` hold H_k and log r_k; ε has no part.

    Returns:
        One `PureScore` for each correct trajectory, in order, with K numbers a list.

    Raises:
        InputError: a text is longer than the model's positions.
        FloatingPointError: the model's logits are NaN.

    Example:
        Shown the answer 17, the teacher bends a step to reach it. Without the answer in view, that step surprises it.

        >>> import heal_ref as heal
        >>> teacher, task = heal.load_lm(heal.DATA / "teacher"), heal.ClockTask()
        >>> problem, greedy = heal.Problem("p", "Start 5; + 3; # 4; * 2", "17"), heal.SampleConfig(temperature=0.0)
        >>> t, = heal.sample(teacher, task, [problem], n=1, sampling=greedy, guided=True)
        >>> t.text.split("\n\n")[3]
        'Then compute 8 * 2 = 17.'
        >>> s, = heal.pure_scores(teacher, task, [t])
        >>> s.ratio.index(max(s.ratio)), round(s.score, 1)
        (3, 0.6)
    """
    config = config or PureConfig()
    good = [t for t in trajectories if t.correct]
    surprise, uncertainty = step_surprise(lm, good)
    if config.reading == "forced":
        uncertainty = answer_uncertainty(lm, task, good)
    elif config.reading == "rollout":
        uncertainty = rollout_uncertainty(lm, task, good, config.rollouts, seed, sampling)
    out = []
    for t, s, u in zip(good, surprise, uncertainty, strict=True):
        ratio = step_ratios(s, u, config)
        ppl, unsure, r = ([round(x, 6) for x in row] for row in (map(math.exp, s), u, ratio))
        out.append(PureScore(t, ppl, unsure, r, score=round(aggregate(ratio, config), 6)))
    return out


def rescored(scored: Sequence[PureScore], config: PureConfig) -> list[PureScore]:
    """The same step scores under another ε, λ or aggregate. The reading of U_k must be the one they were made with."""
    out = []
    for s in scored:
        ratio = step_ratios([math.log(p) for p in s.perplexity], s.uncertainty, config)
        out.append(PureScore(s.trajectory, s.perplexity, s.uncertainty, [round(x, 6) for x in ratio],
                          score=round(aggregate(ratio, config), 6)))
    return out


def unaided(base: Sequence[Trajectory]) -> list[Trajectory]:
    """What the threshold is calibrated on: of each problem that the teacher solved alone, its first correct trajectory."""
    return [next(t for t in g if t.correct) for g in by_problem(base).values() if any(t.correct for t in g)]


def pure_threshold(reference: Sequence[PureScore], config: PureConfig | None = None) -> float:
    """The score above which a trajectory counts as a shortcut: a quantile of `reference` scores.

    Our own: that the paper filters we know, not where it draws the line.

    Args:
        reference: scores of the teacher's unaided correct trajectories, which had no hint to cheat with.

    Returns:
        The `config.keep_quantile` quantile, in the unit of the scores; infinite if `reference` is empty: nothing is dropped.

    Example:
        >>> import heal_ref as heal
        >>> reference = [heal.PureScore(None, [], [], [], score=x) for x in (0.0, 0.25, 0.5, 0.75, 3.0)]  # only scores count here
        >>> heal.pure_threshold(reference, heal.PureConfig(keep_quantile=0.75))
        0.75
        >>> heal.pure_threshold([])
        inf
    """
    config = config or PureConfig()
    return float(np.quantile([s.score for s in reference], config.keep_quantile)) if reference else math.inf


def pure_filter(scored: Sequence[PureScore], config: PureConfig | None = None,
                reference: Sequence[PureScore] | None = None) -> list[Trajectory]:
    """The trajectories whose score is not above the threshold.

    Paper: "a rigorous filtering protocol"; the threshold is our own.

    Args:
        scored: candidates, all scored by one reading.
        reference: scores of the teacher's unaided correct trajectories, on which the threshold is calibrated.
            Without it, the share 1 − keep_quantile with the highest scores among `scored` is dropped.

    Example:
        Two ways to the right answer, by showing it and by repair. The filter keeps the second.

        >>> import heal_ref as heal
        >>> teacher, task = heal.load_lm(heal.DATA / "teacher"), heal.ClockTask()
        >>> problems = heal.load_problems(heal.DATA / "clock" / "validation.jsonl", task)
        >>> easy, hard, greedy = problems[:8], problems[603:604], heal.SampleConfig(temperature=0.0)
        >>> reference = heal.pure_scores(teacher, task, heal.sample(teacher, task, easy, n=4))
        >>> wrong = heal.sample(teacher, task, hard, n=1, sampling=greedy)
        >>> shown = heal.sample(teacher, task, hard, n=1, sampling=greedy, guided=True)
        >>> repaired = heal.repair(teacher, task, wrong, heal.GearConfig(continuations=1), sampling=greedy)
        >>> scored = heal.pure_scores(teacher, task, shown + repaired)
        >>> [s.trajectory.source for s in scored], [t.source for t in heal.pure_filter(scored, reference=reference)]
        (['guided', 'repair'], ['repair'])
    """
    limit = pure_threshold(scored if reference is None else reference, config)
    return [s.trajectory for s in scored if s.score <= limit]
