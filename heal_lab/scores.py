"""How well a score tells two classes apart, with intervals: AUROC, detection at a false-alarm rate, shares by problem."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import numpy as np

from heal_ref.evaluate import BOOTSTRAP, interval
from heal_ref.records import Trajectory, by_problem

Numbers = Sequence[float] | np.ndarray
Statistic = Callable[[Numbers, Numbers], float]


def share(trajectories: Sequence[Trajectory], holds: Callable[[Trajectory], bool]) -> tuple[float, float, float]:
    """Share of trajectories for which something holds, with problems as clusters."""
    groups = by_problem(trajectories).values()
    return interval([sum(map(holds, g)) for g in groups], [len(g) for g in groups])


def auroc(scores: Numbers, positive: Numbers) -> float:
    """Probability that a positive scores above a negative (ties count half); NaN if either is missing."""
    s, p = np.asarray(scores, dtype=float), np.asarray(positive, dtype=bool)
    if p.all() or not p.any():
        return math.nan
    negative = np.sort(s[~p])
    below = np.searchsorted(negative, s[p], "left") + np.searchsorted(negative, s[p], "right")
    return float(below.mean() / 2 / len(negative))


def detected(scores: Numbers, positive: Numbers, false_alarms: float = 0.05) -> float:
    """Share of positives above the threshold that at most a share `false_alarms` of the negatives exceeds (true-positive
    rate at a false-positive rate); NaN if either class is missing."""
    s, p = np.asarray(scores, dtype=float), np.asarray(positive, dtype=bool)
    if p.all() or not p.any():
        return math.nan
    return float((s[p] > np.quantile(s[~p], 1 - false_alarms, method="higher")).mean())


@functools.lru_cache(maxsize=2)  # the scores of one set of trajectories are resampled alike, and one after another
def _cluster_resamples(clusters: tuple[str, ...]) -> list[np.ndarray]:
    """Bootstrap resamples of whole clusters, as indices of observations."""
    groups: dict[str, list[int]] = {}
    for i, cluster in enumerate(clusters):
        groups.setdefault(cluster, []).append(i)
    members, rng = [np.array(g) for g in groups.values()], np.random.default_rng(0)
    return [np.concatenate([members[j] for j in rng.integers(len(members), size=len(members))]) for _ in range(BOOTSTRAP // 4)]


def cluster_interval(scored: Sequence[tuple[str, float, bool]], statistic: Statistic = auroc) -> tuple[float, float, float]:
    """A statistic of scores with its 95 % interval from (problem id, score, positive) triples, problems as clusters;
    NaN if either class is missing."""
    if not any(positive for _, _, positive in scored) or all(positive for _, _, positive in scored):
        return math.nan, math.nan, math.nan
    s, p = np.array([x[1] for x in scored]), np.array([x[2] for x in scored], dtype=bool)
    values = [statistic(s[pick], p[pick]) for pick in _cluster_resamples(tuple(x[0] for x in scored))]
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return statistic(s, p), float(low), float(high)
