"""Measuring: pass@k, intervals, and metrics that need a step checker (genuine, first wrong step).

Intervals resample *problems*: samples of one problem are not independent. The step checker is for
reports only; the method never asks it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from heal_ref.config import SampleConfig
from heal_ref.generation import sample
from heal_ref.model import LM
from heal_ref.records import Problem, Trajectory, light
from heal_ref.tasks.base import Task

BOOTSTRAP = 2000


@dataclass(frozen=True)
class Row:
    """One number of a report: mean with a 95 % interval over `n` problems (or other clusters).

    Example:
        >>> heal.Row("teacher", "frontier", "pass@1", mean=0.25, low=0.0, high=0.5, n=8).mean
        0.25
    """

    arm: str  # who was measured
    kind: str  # on which problems
    metric: str  # what: accuracies are shares
    mean: float
    low: float
    high: float
    n: int
    seeds: int = 1
    rates: dict[str, float] = field(default_factory=dict, compare=False, repr=False)  # by problem

    @classmethod
    def of(cls, arm: str, kind: str, metric: str, rates: dict[str, float]) -> Row:
        """The row of these rates."""
        return cls(arm, kind, metric, *interval(list(rates.values())), n=len(rates), rates=rates)

    def to_dict(self) -> dict[str, Any]:
        """As written to report.json: without `rates`; a number that does not exist is null."""
        row = {k: v for k, v in asdict(self).items() if k != "rates"}
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()}


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased pass@k from n samples, c of them correct: 1 − C(n−c, k) / C(n, k).

    It is the probability that k of the n samples hold a correct one; ValueError for other numbers.

    Example:
        >>> heal.pass_at_k(4, 1, 1), heal.pass_at_k(4, 1, 2), heal.pass_at_k(4, 1, 4)
        (0.25, 0.5, 1.0)
    """
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(f"pass@{k} needs k between 1 and n and 0 <= c <= n, got n={n}, c={c}")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def interval(values: Sequence[float], weights: Sequence[float] | None = None
             ) -> tuple[float, float, float]:
    """Mean and 95 % percentile bootstrap interval of clusters' means; NaN without any.

    With `weights`, values are sums over so many observations, and a ratio of sums is resampled.
    Equal values give an interval without width: of n problems that are all solved, a true failure
    rate of up to 3 / n is compatible with the sample, and [1.00, 1.00] does not show it.

    Example:
        >>> heal.interval([0.0, 0.5, 1.0])
        (0.5, 0.0, 1.0)
    """
    v = np.asarray(values, dtype=float)
    w = np.ones_like(v) if weights is None else np.asarray(weights, dtype=float)
    if not w.sum():
        return math.nan, math.nan, math.nan
    picks = np.random.default_rng(0).integers(len(v), size=(BOOTSTRAP, len(v)))
    total = w[picks].sum(1)
    means = v[picks].sum(1)[total > 0] / total[total > 0]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(v.sum() / w.sum()), float(low), float(high)


def paired_difference(a: Row, b: Row) -> Row:
    """a − b with a 95 % interval: the difference of each problem, resampled over problems.

    ValueError if the rows differ in metric, kind or problems, or hold no rates (from a file).

    Example:
        >>> before, after = (heal.Row.of("student", "", "pass@1", {"p": x}) for x in (0.0, 0.5))
        >>> heal.paired_difference(after, before).mean
        0.5
    """
    if (a.metric, a.kind) != (b.metric, b.kind):
        raise ValueError(f"{a.metric} of {a.kind!r} problems and {b.metric} of {b.kind!r} problems "
                         "have no difference; compare rows of one metric and kind")
    if not a.rates or a.rates.keys() != b.rates.keys():
        raise ValueError(f"{a.arm} and {b.arm} have rates of {len(a.rates)} and {len(b.rates)} "
                         f"problems, {len(a.rates.keys() & b.rates)} in common; a paired "
                         "difference needs the same problems (rows read from a file have none)")
    rates = {key: rate - b.rates[key] for key, rate in a.rates.items()}
    return Row.of(f"{a.arm} − {b.arm}", a.kind, a.metric, rates)


def step_texts(lm: LM, t: Trajectory) -> list[str]:
    """The text of each step of a trajectory."""
    return [lm.decode(t.step_ids(k)) for k in range(len(t.steps))]


def first_wrong_step(lm: LM, task: Task, t: Trajectory) -> int | None:
    """Index of the first wrong step by the task's checker, or None. For measuring only.

    Example:
        >>> teacher, task = heal.load_lm(heal.DATA / "teacher"), heal.ClockTask()
        >>> t, = heal.sample(teacher, task, [heal.Problem("p", "Start 5; + 3; # 4; * 2", "17")], 1)
        >>> heal.first_wrong_step(teacher, task, t)  # the teacher never learnt "#"
        2
    """
    verdicts = task.check_steps(t.problem, step_texts(lm, t)) or []
    return verdicts.index(False) if False in verdicts else None


def is_genuine(lm: LM, task: Task, t: Trajectory) -> bool:
    """Correct, and right in every step. For measuring only.

    Example:
        >>> teacher, task = heal.load_lm(heal.DATA / "teacher"), heal.ClockTask()
        >>> t, = heal.sample(teacher, task, [heal.Problem("p", "Start 5; + 3; * 4", "9")], 1)
        >>> heal.is_genuine(teacher, task, t)
        True
    """
    return t.correct and bool(task.is_genuine(t.problem, step_texts(lm, t)))


def rows_of(arm: str, lm: LM, task: Task, sampled: Sequence[Trajectory],
            greedy: Sequence[Trajectory]) -> list[Row]:
    """Rows of one arm by kind: pass@1, pass@8 (of 8 samples or more), genuine (where the task has a
    step checker: the share of all samples that are right in every step), pass@1_greedy."""
    # 1) Per kind and problem: samples, correct ones, genuine ones; the greedy one.
    counts: dict[str, dict[str, list[int]]] = {}
    for t in sampled if task.knows_truth else light(sampled):
        genuine = task.knows_truth and is_genuine(lm, task, t)
        mine = counts.setdefault(t.problem.kind, {}).setdefault(t.problem.id, [0, 0, 0])
        mine[:] = mine[0] + 1, mine[1] + t.correct, mine[2] + genuine
    once: dict[str, dict[str, float]] = {}
    for t in light(greedy):
        once.setdefault(t.problem.kind, {})[t.problem.id] = float(t.correct)
    # 2) One row per kind and metric.
    rows = []
    for kind in dict.fromkeys([*counts, *once]):
        groups = counts.get(kind, {})
        metrics = {"pass@1": {key: right / n for key, (n, right, _) in groups.items()}}
        if all(n >= 8 for n, _, _ in groups.values()):
            metrics["pass@8"] = {k: pass_at_k(n, right, 8) for k, (n, right, _) in groups.items()}
        if task.knows_truth:
            metrics["genuine"] = {key: genuine / n for key, (n, _, genuine) in groups.items()}
        metrics["pass@1_greedy"] = once.get(kind, {})
        rows += [Row.of(arm, kind, name, rates) for name, rates in metrics.items() if rates]
    return rows


def evaluate(lm: LM, task: Task, problems: Sequence[Problem], *, n: int = 8, seed: int = 0,
             sampling: SampleConfig | None = None, arm: str = "model") -> list[Row]:
    """Sample n solutions per problem and one more greedily; report shares by kind (`rows_of`).

    The n solutions use all of `sampling`; the greedy one has temperature 0, and is otherwise the
    same. Prompts are those of this model (`task.for_tokenizer`).

    Example:
        >>> teacher, task = heal.load_lm(heal.DATA / "teacher"), heal.ClockTask()
        >>> problems = heal.load_problems(heal.DATA / "clock" / "validation.jsonl", task)[:4]
        >>> [(row.kind, row.metric, row.n) for row in heal.evaluate(teacher, task, problems, n=2)]
        [('mastered', 'pass@1', 4), ('mastered', 'genuine', 4), ('mastered', 'pass@1_greedy', 4)]
    """
    own, sampling = task.for_tokenizer(lm.tokenizer), sampling or SampleConfig()
    sampled = sample(lm, own, problems, n, seed=seed, sampling=sampling)
    greedy = sample(lm, own, problems, 1, seed=seed, sampling=replace(sampling, temperature=0.0))
    return rows_of(arm, lm, own, sampled, greedy)


def accuracy(lm: LM, task: Task, problems: Sequence[Problem],
             sampling: SampleConfig | None = None) -> dict[str, float]:
    """Share of problems solved greedily, by kind: `evaluate` without its sampled solutions."""
    rows = evaluate(lm, task, problems, n=0, sampling=sampling)
    return {row.kind: row.mean for row in rows}


def rows_from_report(report: dict[str, Any]) -> list[Row]:
    """The rows of a report.json or of a record as `Row` objects."""
    return [Row(**row) for row in report["rows"]]
