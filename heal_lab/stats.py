"""Statistics of the evidence: shares, AUROC, and 95 % percentile bootstraps with a fixed seed.

`heal_ref.evaluate.interval` resamples problems for a mean or a ratio of sums, `cluster_interval`
for any statistic of scores; `two_way_interval` resamples seeds *and* problems; `pairs_interval`
pairs and problems; `ratio_difference` and `ratio_of_ratios` problems, for two ratios of sums.
"""

import functools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from heal_ref.evaluate import BOOTSTRAP, Row, interval

Interval = tuple[float, float, float]  # mean, lower end, upper end
Numbers = Sequence[float] | np.ndarray
Statistic = Callable[[Numbers, Numbers], float]


def share_row(arm: str, kind: str, metric: str, cases: Iterable[tuple[str, bool]]) -> Row:
    """The share of cases (problem id, whether it holds) that hold, with problems as clusters."""
    held: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    for problem, holds in cases:
        held[problem] += holds
        seen[problem] += 1
    values = interval([held[problem] for problem in seen], list(seen.values()))
    return Row(arm, kind, metric, *values, n=seen.total())


def auroc(scores: Numbers, positive: Numbers) -> float:
    """Probability that a positive scores above a negative (ties count half); NaN without both."""
    s, p = np.asarray(scores, dtype=float), np.asarray(positive, dtype=bool)
    if p.all() or not p.any():
        return math.nan
    negative = np.sort(s[~p])
    below = np.searchsorted(negative, s[p], "left") + np.searchsorted(negative, s[p], "right")
    return float(below.mean() / 2 / len(negative))


def detected(scores: Numbers, positive: Numbers, false_alarms: float = 0.05) -> float:
    """Share of positives above the threshold that at most `false_alarms` of the negatives exceed
    (true-positive rate at a false-positive rate); NaN without both."""
    s, p = np.asarray(scores, dtype=float), np.asarray(positive, dtype=bool)
    if p.all() or not p.any():
        return math.nan
    return float((s[p] > np.quantile(s[~p], 1 - false_alarms, method="higher")).mean())


@functools.lru_cache(maxsize=2)  # many scores of the same trajectories share their resamples
def _cluster_resamples(clusters: tuple[str, ...]) -> list[np.ndarray]:
    """Resamples of whole clusters, each as indices of observations."""
    members: dict[str, list[int]] = {}
    for i, cluster in enumerate(clusters):
        members.setdefault(cluster, []).append(i)
    groups, size = [np.array(group) for group in members.values()], (BOOTSTRAP // 4, len(members))
    picks = np.random.default_rng(0).integers(len(groups), size=size)
    return [np.concatenate([groups[j] for j in pick]) for pick in picks]


def cluster_interval(scored: Sequence[tuple[str, float, bool]],
                     statistic: Statistic = auroc) -> Interval:
    """A statistic of (problem id, score, positive) with its interval over problems; NaN if either
    class is missing."""
    scores = np.array([score for _, score, _ in scored])
    positive = np.array([is_positive for *_, is_positive in scored], dtype=bool)
    if positive.all() or not positive.any():
        return math.nan, math.nan, math.nan
    picks = _cluster_resamples(tuple(problem for problem, *_ in scored))
    values = [statistic(scores[pick], positive[pick]) for pick in picks]
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return statistic(scores, positive), float(low), float(high)


@functools.lru_cache(maxsize=8)
def _two_way_resamples(seeds: int, problems: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights of the rows (B, S) and of the columns (B, P) in each of B resamples."""
    rng = np.random.default_rng(0)
    rows, columns = (rng.multinomial(n, np.full(n, 1 / n), size=BOOTSTRAP) / n
                     for n in (seeds, problems))
    return rows, columns


def two_way_interval(matrix: np.ndarray) -> Interval:
    """Mean of an (S, P) matrix with its interval over seeds and problems (the pigeonhole
    bootstrap). With few seeds their share of the variance is underestimated by (S − 1) / S."""
    rows, columns = _two_way_resamples(*matrix.shape)
    low, high = np.percentile(((rows @ matrix) * columns).sum(1), [2.5, 97.5])
    return float(matrix.mean()), float(low), float(high)


T_QUANTILE = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}


def pairs_interval(matrix: np.ndarray) -> Interval:
    """`two_way_interval` of an (S, P) matrix that draws the pairs' deviations as wide as S allows.

    A bootstrap of few rows is too narrow: S resampled rows vary by (S − 1) / S of what they should,
    and what S rows say about their own spread needs Student's t, not the normal distribution. So
    each row's deviation from the mean is stretched by √(S / (S − 1)) · t / 1.96 first, t being the
    0.975 quantile with S − 1 degrees of freedom. `test_compare.py` measures the coverage.
    """
    pairs, mean = len(matrix), float(matrix.mean())
    if pairs > 1:
        t = T_QUANTILE.get(pairs - 1, 1.96 + 2.4 / (pairs - 1))
        stretch = math.sqrt(pairs / (pairs - 1)) * t / 1.96
        matrix = matrix + (stretch - 1) * (matrix.mean(1, keepdims=True) - mean)
    return mean, *two_way_interval(matrix)[1:]


def ratio_difference(ours: Any, theirs: Any, per: float = 1.0) -> Interval:
    """The difference of two ratios of sums, times `per`, with its interval over problems. Of each
    numerator and denominator per problem (P, 2), the problems in the same order."""
    return _of_ratios(ours, theirs, lambda a, b: per * (a - b), "linear")


def ratio_of_ratios(ours: Any, theirs: Any) -> Interval:
    """The quotient of two such ratios; infinite, as an end of the interval may be, if the second
    one is 0."""
    return _of_ratios(ours, theirs, np.divide, "nearest")  # nothing is between two infinities


def _of_ratios(ours: Any, theirs: Any, compare: Callable[[Any, Any], Any], method: Any) -> Interval:
    counts = np.concatenate([ours, theirs], axis=1)
    picks = np.random.default_rng(0).integers(0, len(counts), (BOOTSTRAP, len(counts)))
    sums = np.vstack([counts.sum(0), counts[picks].sum(1)])  # first the problems themselves
    with np.errstate(invalid="ignore", divide="ignore"):  # 0 / 0: such resamples are left out
        values = compare(sums[:, 0] / sums[:, 1], sums[:, 2] / sums[:, 3])
    low, high = np.nanpercentile(values[1:], [2.5, 97.5], method=method)
    return float(values[0]), float(low), float(high)
