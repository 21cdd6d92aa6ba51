"""Arms against arms, over seeds and problems: means, paired differences, 95 % intervals.

One arm and one kind give a matrix (S, P): a row per seed, a column per problem. Other arms have
the same seeds and problems, so differences are paired in both.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from heal_lab.stats import two_way_interval
from heal_ref.evaluate import Row, pass_at_k

Run = Mapping[str, Any]  # one arm with one seed: see `experiment.Trial.result`
LENGTHS = {"3-4 operations": (3, 4), "5-6 operations": (5, 6), "7-8 operations": (7, 8)}
LONGEST_TRAINED = 6
SAMPLES = {"pass@1": 1, "pass@1_greedy": 1, "pass@4": 4, "pass@8": 8, "genuine": 1}  # needed


def values(run: Run, metric: str) -> np.ndarray:
    """One number per problem (P) of one run: share of samples, pass@k, or greedy 0 or 1."""
    if metric == "pass@1_greedy":
        return np.array(run["greedy"], dtype=float)
    n = run["n"]
    if metric == "genuine":
        return np.array(run["genuine"]) / n
    return np.array([pass_at_k(n, c, SAMPLES[metric]) for c in range(n + 1)])[run["correct"]]


def groups(problems: Mapping[str, Sequence[Any]]) -> dict[str, np.ndarray]:
    """Name → indices of its problems: each kind at the lengths that the pair was trained on, and
    each kind at one range of lengths; no empty groups."""
    kinds, lengths = np.array(problems["kind"]), np.array(problems["length"])
    out = {}
    for kind in dict.fromkeys(problems["kind"]):
        out[kind] = np.flatnonzero((kinds == kind) & (lengths <= LONGEST_TRAINED))
        for name, (low, high) in LENGTHS.items():
            within = (kinds == kind) & (lengths >= low) & (lengths <= high)
            out[f"{kind}, {name}"] = np.flatnonzero(within)
    return {name: members for name, members in out.items() if len(members)}


class Results:
    """The runs of an experiment's record as matrices; `pair`: only those with these models."""

    def __init__(self, record: Mapping[str, Any], pair: str = "all"):
        self.groups = groups(record["problems"])
        self.runs = {(r["arm"], r["seed"]): r for r in record["runs"] if pair in ("all", r["pair"])}
        self.arms = list(dict.fromkeys(arm for arm, _ in self.runs))
        most = max((run["n"] for run in self.runs.values()), default=0)
        self.metrics = [metric for metric, needed in SAMPLES.items() if needed <= most]

    def seeds(self, *arms: str) -> list[int]:
        """The seeds that all of these arms were run with."""
        return sorted(set.intersection(*({s for a, s in self.runs if a == arm} for arm in arms)))

    def matrix(self, arm: str, group: str, metric: str = "pass@1",
               seeds: Sequence[int] | None = None) -> np.ndarray:
        """(S, P): one row per seed, one column per problem of the group."""
        seeds, members = self.seeds(arm) if seeds is None else seeds, self.groups[group]
        return np.array([values(self.runs[arm, seed], metric)[members] for seed in seeds])

    def row(self, arm: str, group: str, metric: str = "pass@1") -> Row:
        """The mean of one arm."""
        return self._row(arm, group, metric, self.matrix(arm, group, metric))

    def difference(self, arm: str, other: str, group: str, metric: str = "pass@1") -> Row:
        """`arm` − `other`, paired over the seeds and problems that both have."""
        seeds = self.seeds(arm, other)
        mine, theirs = (self.matrix(name, group, metric, seeds) for name in (arm, other))
        return self._row(f"{arm} − {other}", group, metric, mine - theirs)

    def _row(self, arm: str, group: str, metric: str, m: np.ndarray) -> Row:
        return Row(arm, group, metric, *two_way_interval(m), n=m.shape[1], seeds=m.shape[0])

    def rows(self) -> list[Row]:
        """Every arm: all metrics by kind, sampled pass@1 by kind and length."""
        return [self.row(arm, *what) for arm in self.arms for what in self._wanted()]

    def differences(self, others: Sequence[str] = ("heal", "rft", "teacher")) -> list[Row]:
        """Every other arm minus each of `others`, for what `rows` lists."""
        return [self.difference(arm, other, *what) for other in others if other in self.arms
                for arm in self.arms if arm != other for what in self._wanted()]

    def _wanted(self) -> list[tuple[str, str]]:
        return [(group, metric) for group in self.groups for metric in self.metrics
                if metric == "pass@1" or "," not in group]


def verdict(row: Row) -> str:
    """What a paired difference allows one to say: better or worse only if it excludes 0."""
    if row.low > 0:
        return "better"
    return "worse" if row.high < 0 else "no difference shown"
