"""Measuring: pass@k, intervals, and what only a world with known truth can tell (genuine, first wrong step).

- pass@k is the unbiased estimator 1 − C(n−c, k) / C(n, k).
- Intervals are 95 % percentile bootstraps that resample *problems*: samples of one problem are not independent.
- "Genuine" means right in every step, by the task's `check_steps`. Only reports use it; the method never does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from heal_ref.config import SampleConfig
from heal_ref.generation import sample
from heal_ref.model import LM
from heal_ref.records import Problem, Trajectory, by_problem
from heal_ref.tasks.base import Task

BOOTSTRAP = 2000


@dataclass(frozen=True)
class Row:
    """One number of a report: mean with a 95 % interval over `n` problems (or other clusters).

    `arm` is who was measured, `kind` of which problems, `metric` what. Accuracies are shares between 0 and 1.

    Example:
        >>> import heal_ref as heal
        >>> row = heal.Row("teacher", "frontier", "pass@1", mean=0.25, low=0.0, high=0.5, n=8)
        >>> f"{row.arm}, {row.kind}: {row.metric} {row.mean} [{row.low}, {row.high}]"
        'teacher, frontier: pass@1 0.25 [0.0, 0.5]'
        >>> heal.Row("teacher", "frontier", "genuine", *[float("nan")] * 3, n=0).to_dict()["mean"] is None
        True
    """

    arm: str
    kind: str
    metric: str
    mean: float
    low: float
    high: float
    n: int
    seeds: int = 1

    def to_dict(self) -> dict[str, Any]:
        """As written to report.json; a number that does not exist (no case of this kind) is null."""
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in asdict(self).items()}


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased pass@k from n samples of which c are correct: 1 − C(n−c, k) / C(n, k).

    The probability that k of the n samples, drawn without putting back, hold a correct one.

    Raises:
        ValueError: k is not between 1 and n, or c not between 0 and n.

    Example:
        >>> import heal_ref as heal
        >>> heal.pass_at_k(4, 1, 1), heal.pass_at_k(4, 1, 2), heal.pass_at_k(4, 1, 4)
        (0.25, 0.5, 1.0)
    """
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(f"pass@{k} needs k between 1 and n and 0 <= c <= n, got n={n}, c={c}")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def interval(values: Sequence[float], weights: Sequence[float] | None = None) -> tuple[float, float, float]:
    """Mean and 95 % bootstrap interval, resampling clusters.

    Args:
        values: one number a cluster: its mean, or with `weights` its sum.
        weights: how many observations each cluster's sum is over (then a ratio of sums is resampled).
    """
    v = np.asarray(values, dtype=float)
    w = np.ones_like(v) if weights is None else np.asarray(weights, dtype=float)
    if not w.sum():
        return math.nan, math.nan, math.nan
    rng = np.random.default_rng(0)
    picks = rng.integers(len(v), size=(BOOTSTRAP, len(v)))
    total = w[picks].sum(1)
    means = v[picks].sum(1)[total > 0] / total[total > 0]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(v.sum() / w.sum()), float(low), float(high)


def step_texts(lm: LM, t: Trajectory) -> list[str]:
    """The text of each step of a trajectory."""
    return [lm.decode(t.step_ids(k)) for k in range(len(t.steps))]


def first_wrong_step(lm: LM, task: Any, t: Trajectory) -> int | None:
    """Index of the first wrong step by the exact checker, or None. For measuring only."""
    verdicts = task.check_steps(t.problem, step_texts(lm, t)) or []
    return verdicts.index(False) if False in verdicts else None


def is_genuine(lm: LM, task: Any, t: Trajectory) -> bool:
    """Correct, and right in every step. For measuring only."""
    return t.correct and bool(task.is_genuine(t.problem, step_texts(lm, t)))


def rows_of(arm: str, lm: LM, task: Task, sampled: Sequence[Trajectory], greedy: Sequence[Trajectory]) -> list[Row]:
    """Report rows of one arm by kind: pass@1, pass@8 (if there are 8 samples), genuine, pass@1_greedy."""
    rows = []
    for kind in dict.fromkeys(t.problem.kind for t in sampled):
        groups = list(by_problem([t for t in sampled if t.problem.kind == kind]).values())
        counts = [(len(g), sum(t.correct for t in g)) for g in groups]
        metrics = {"pass@1": [c / n for n, c in counts]}
        if all(n >= 8 for n, _ in counts):
            metrics["pass@8"] = [pass_at_k(n, c, 8) for n, c in counts]
        if task.knows_truth:
            metrics["genuine"] = [sum(is_genuine(lm, task, t) for t in g) / len(g) for g in groups]
        if greedy:
            metrics["pass@1_greedy"] = [float(t.correct) for t in greedy if t.problem.kind == kind]
        rows += [Row(arm, kind, name, *interval(values), n=len(values)) for name, values in metrics.items()]
    return rows


def evaluate(lm: LM, task: Task, problems: Sequence[Problem], *, n: int = 8, seed: int = 0, arm: str = "model",
             sampling: SampleConfig | None = None) -> list[Row]:
    """Sample n solutions of each problem, one more greedily, and report by kind.

    `genuine` is the share of all sampled solutions that are right in every step; it is reported where the task
    has a step checker.

    Args:
        arm: what the rows call this model.
        sampling: temperature, nucleus and length limit of the n samples; the greedy one has temperature 0.

    Returns:
        For each kind the rows pass@1, pass@8 (if n is at least 8), genuine and pass@1_greedy; shares with 95 % intervals
        over problems.

    Raises:
        FloatingPointError: the model's logits became NaN.

    Example:
        >>> import heal_ref as heal
        >>> teacher, task = heal.load_lm(heal.DATA / "teacher"), heal.ClockTask()
        >>> problems = heal.load_problems(heal.DATA / "clock" / "validation.jsonl", task)[:4]
        >>> rows = heal.evaluate(teacher, task, problems, n=2)
        >>> [(row.kind, row.metric, row.n) for row in rows]
        [('mastered', 'pass@1', 4), ('mastered', 'genuine', 4), ('mastered', 'pass@1_greedy', 4)]
        >>> rows[-1].mean
        1.0
    """
    sampling = sampling or SampleConfig()
    sampled = sample(lm, task, problems, n, seed=seed, sampling=sampling)
    greedy = sample(lm, task, problems, 1, seed=seed, sampling=replace(sampling, temperature=0.0))
    return rows_of(arm, lm, task, sampled, greedy)


def accuracy(lm: LM, task: Task, problems: Sequence[Problem]) -> dict[str, float]:
    """Share of problems that are solved greedily, by kind."""
    tried = sample(lm, task, problems, 1, sampling=SampleConfig(temperature=0.0))
    return {kind: float(np.mean([t.correct for t in tried if t.problem.kind == kind]))
            for kind in dict.fromkeys(p.kind for p in problems)}


def rows_from_report(report: dict[str, Any]) -> list[Row]:
    """The rows of a report.json or of a record as `Row` objects."""
    return [Row(**row) for row in report["rows"]]
