"""Arms against arms, over seeds and problems: means, paired differences, 95 % intervals.

- The data of one arm and one kind is a matrix (S, P): one line a seed, one column a problem. Another arm has the same
  seeds and the same problems, so differences are paired in both.
- Intervals resample seeds *and* problems, each with replacement (the two-way or pigeonhole bootstrap): a new seed and a
  new problem would both change the result. It is rather too wide than too narrow in the problems; with few seeds, their
  own share of the variance is underestimated by (S − 1) / S, as in every bootstrap.
- Nothing is called better whose interval holds 0.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from heal_ref.evaluate import BOOTSTRAP, Row, pass_at_k

Run = Mapping[str, Any]  # one arm with one seed: see `experiment.Trial.result`
LENGTHS = {"3-4 operations": (3, 4), "5-6 operations": (5, 6), "7-8 operations": (7, 8)}
LONGEST_TRAINED = 6
METRICS = ("pass@1", "pass@1_greedy", "pass@4", "pass@8", "genuine")


@functools.lru_cache(maxsize=8)
def _resamples(seeds: int, problems: int) -> tuple[np.ndarray, np.ndarray]:
    """How often each line (B, S) and each column (B, P) is drawn in each of B resamples, as shares."""
    rng = np.random.default_rng(0)
    lines, columns = (rng.multinomial(n, np.full(n, 1 / n), size=BOOTSTRAP) / n for n in (seeds, problems))
    return lines, columns


def two_way_interval(matrix: np.ndarray) -> tuple[float, float, float]:
    """Mean of an (S, P) matrix with its 95 % interval over seeds and problems."""
    lines, columns = _resamples(*matrix.shape)
    means = ((lines @ matrix) * columns).sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(matrix.mean()), float(low), float(high)


def values(run: Run, metric: str) -> np.ndarray:
    """One number a problem (P) of one run: share of samples, pass@k, or greedy 0 or 1."""
    if metric == "pass@1_greedy":
        return np.array(run["greedy"], dtype=float)
    n = run["n"]
    if metric == "genuine":
        return np.array(run["genuine"]) / n
    k = int(metric.removeprefix("pass@"))
    return np.array([pass_at_k(n, c, k) for c in run["correct"]])


def groups(problems: Mapping[str, Sequence[Any]]) -> dict[str, np.ndarray]:
    """Which problems (indices) each name of a group stands for: a kind, at the lengths that the pair was trained on, and a
    kind at one range of lengths."""
    kinds, lengths = np.array(problems["kind"]), np.array(problems["length"])
    out = {}
    for kind in dict.fromkeys(problems["kind"]):
        mine = kinds == kind
        out[kind] = np.flatnonzero(mine & (lengths <= LONGEST_TRAINED))
        for name, (a, b) in LENGTHS.items():
            out[f"{kind}, {name}"] = np.flatnonzero(mine & (lengths >= a) & (lengths <= b))
    return {name: members for name, members in out.items() if len(members)}


class Results:
    """The runs of an experiment, as matrices.

    Args:
        record: what `experiment` wrote: `problems` (`kind`, `length`: P entries each) and `runs`.
        pair: only runs with this pair; "all" for every one.
    """

    def __init__(self, record: Mapping[str, Any], pair: str = "all"):
        self.groups = groups(record["problems"])
        self.runs = {(r["arm"], r["seed"]): r for r in record["runs"] if pair in ("all", r["pair"])}
        self.arms = list(dict.fromkeys(arm for arm, _ in self.runs))
        self.most = max((r["n"] for r in self.runs.values()), default=0)
        self._values: dict[tuple[str, int, str], np.ndarray] = {}

    @property
    def metrics(self) -> list[str]:
        """The metrics that the number of samples allows."""
        return [m for m in METRICS if m in ("pass@1", "pass@1_greedy", "genuine") or int(m[5:]) <= self.most]

    def seeds(self, *arms: str) -> list[int]:
        """The seeds that all of these arms have been run with."""
        return sorted(set.intersection(*({s for a, s in self.runs if a == arm} for arm in arms)))

    def matrix(self, arm: str, group: str, metric: str = "pass@1", seeds: Sequence[int] | None = None) -> np.ndarray:
        """(S, P): one line a seed, one column a problem of the group."""
        lines = []
        for seed in self.seeds(arm) if seeds is None else seeds:
            key = (arm, seed, metric)
            if key not in self._values:
                self._values[key] = values(self.runs[arm, seed], metric)
            lines.append(self._values[key][self.groups[group]])
        return np.array(lines)

    def row(self, arm: str, group: str, metric: str = "pass@1") -> Row:
        """One arm's mean."""
        m = self.matrix(arm, group, metric)
        return Row(arm, group, metric, *two_way_interval(m), n=m.shape[1], seeds=m.shape[0])

    def difference(self, arm: str, other: str, group: str, metric: str = "pass@1") -> Row:
        """`arm` − `other`, paired over the seeds and problems that both have."""
        seeds = self.seeds(arm, other)
        m = self.matrix(arm, group, metric, seeds) - self.matrix(other, group, metric, seeds)
        return Row(f"{arm} − {other}", group, metric, *two_way_interval(m), n=m.shape[1], seeds=m.shape[0])

    def rows(self) -> list[Row]:
        """Every arm: all metrics by kind, sampled pass@1 by kind and length."""
        return [self.row(arm, group, metric) for arm in self.arms for group, metric in self._wanted()]

    def differences(self, others: Sequence[str] = ("heal", "rft", "teacher")) -> list[Row]:
        """Every arm against each of `others`, for what `rows` lists; nothing against itself."""
        return [self.difference(arm, other, group, metric) for other in others if other in self.arms
                for arm in self.arms if arm != other for group, metric in self._wanted()]

    def _wanted(self) -> list[tuple[str, str]]:
        return [(g, m) for g in self.groups for m in self.metrics if m == "pass@1" or "," not in g]


def verdict(row: Row) -> str:
    """What a paired difference allows one to say: "better", "worse" or "no difference shown"."""
    if row.low > 0:
        return "better"
    return "worse" if row.high < 0 else "no difference shown"
