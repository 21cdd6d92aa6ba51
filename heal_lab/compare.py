"""Arms against arms, over pairs and problems: means, paired differences, 95 % intervals.

One arm and one kind give a matrix (S, P): a row per pair of models, its seeds averaged, and a
column per problem. With one pair the rows are its seeds. Other arms have the same rows and
problems, so differences are paired in both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from heal_lab.stats import pairs_interval, two_way_interval
from heal_ref.evaluate import Row, interval, pass_at_k

Run = Mapping[str, Any]  # one arm with one seed: see `experiment.Trial.result`
LENGTHS = {"3-4 operations": (3, 4), "5-6 operations": (5, 6), "7-8 operations": (7, 8)}
LONGEST_TRAINED, LONG = 6, ", long"  # operations; what is added to the kind of a longer problem
SAMPLES = {"pass@1": 1, "pass@1_greedy": 1, "pass@4": 4, "pass@8": 8, "genuine": 1}  # needed


def values(run: Run, metric: str) -> np.ndarray:
    """One number per problem (P) of one run: share of samples, pass@k, greedy 0 or 1, or what else
    was measured under this name."""
    if metric == "pass@1_greedy":
        return np.array(run["greedy"], dtype=float)
    n = run["n"]
    if metric not in SAMPLES:
        return np.array(run[metric], dtype=float)
    if metric == "genuine":
        return np.array(run["genuine"]) / n
    return np.array([pass_at_k(n, c, SAMPLES[metric]) for c in range(n + 1)])[run["correct"]]


def groups(problems: Mapping[str, Sequence[Any]]) -> dict[str, np.ndarray]:
    """Name → indices of its problems; no empty groups.

    Each kind; each kind at one range of lengths; and its problems that need only facts that a
    training problem holds ("seen"), or others as well ("unseen"), where it has both. In records of
    before kinds were named so, long problems have the kind of the others, and are left out of it.
    """
    kinds, lengths = np.array(problems["kind"]), np.array(problems["length"])
    seen = np.array(problems.get("seen", np.ones(len(kinds))), dtype=bool)
    out = {}
    for kind in dict.fromkeys(problems["kind"]):
        mine = kinds == kind
        if kind.endswith(LONG):
            out[kind] = np.flatnonzero(mine)
            continue
        out[kind] = np.flatnonzero(mine & (lengths <= LONGEST_TRAINED))
        for name, (low, high) in LENGTHS.items():
            out[f"{kind}, {name}"] = np.flatnonzero(mine & (lengths >= low) & (lengths <= high))
        if not seen[mine].all() and seen[mine].any():
            out[f"{kind}, seen"] = np.flatnonzero(mine & seen)
            out[f"{kind}, unseen"] = np.flatnonzero(mine & ~seen)
    return {name: members for name, members in out.items() if len(members)}


class Results:
    """The runs of an experiment's record as matrices; `pair`: only those with these models.

    `unit` is what the rows of a matrix are, and what is resampled beside problems: "pair", or
    "seed" (one pair; or a record of before pairs were the unit, whose seeds are all different).
    The key of a run is its seed, or (pair, seed) if pairs are the unit.
    """

    def __init__(self, record: Mapping[str, Any], pair: str = "all"):
        self.problems, self.groups = record["problems"], groups(record["problems"])
        self.unit = record.get("unit", "seed") if pair == "all" else "seed"
        self.runs = {(r["arm"], (r["pair"], r["seed"]) if self.unit == "pair" else r["seed"]): r
                     for r in record["runs"] if pair in ("all", r["pair"])}
        self.arms = list(dict.fromkeys(arm for arm, _ in self.runs))
        most = max((run["n"] for run in self.runs.values()), default=0)
        self.metrics = [metric for metric, needed in SAMPLES.items() if needed <= most]

    def seeds(self, *arms: str) -> list[Any]:
        """The keys of the runs that all of these arms have."""
        return sorted(set.intersection(*({s for a, s in self.runs if a == arm} for arm in arms)))

    def pairs(self, *arms: str) -> list[str]:
        """The pairs that all of these arms were run with."""
        return list(dict.fromkeys(self.runs[arms[0], s]["pair"] for s in self.seeds(*arms)))

    def tokens(self, arm: str) -> float:
        """Teacher tokens of an arm, generated and scored, mean over its runs."""
        runs = [self.runs[arm, seed] for seed in self.seeds(arm)]
        return float(np.mean([run["generated"] + run["scored"] for run in runs]))

    def matrix(self, arm: str, group: str, metric: str = "pass@1",
               seeds: Sequence[Any] | None = None) -> np.ndarray:
        """(S, P): one row per seed, or per pair with its seeds averaged; one column per problem of
        the group."""
        seeds, members = self.seeds(arm) if seeds is None else seeds, self.groups[group]
        rows: dict[Any, list[np.ndarray]] = {}
        for seed in seeds:
            unit = seed[0] if self.unit == "pair" else seed
            rows.setdefault(unit, []).append(values(self.runs[arm, seed], metric)[members])
        return np.array([np.mean(mine, axis=0) for mine in rows.values()])

    def row(self, arm: str, group: str, metric: str = "pass@1") -> Row:
        """The mean of one arm, a share, so that its interval ends at 0 and 1; `seeds` counts its
        runs."""
        row = self._row(arm, group, metric, self.matrix(arm, group, metric), self.seeds(arm))
        return replace(row, low=max(row.low, 0.0), high=min(row.high, 1.0))

    def difference(self, arm: str, other: str, group: str, metric: str = "pass@1") -> Row:
        """`arm` − `other`, paired over the pairs, seeds and problems that both have."""
        seeds = self.seeds(arm, other)
        mine, theirs = (self.matrix(name, group, metric, seeds) for name in (arm, other))
        return self._row(f"{arm} − {other}", group, metric, mine - theirs, seeds)

    def _row(self, arm: str, group: str, metric: str, m: np.ndarray, seeds: Sequence[Any]) -> Row:
        of = pairs_interval if self.unit == "pair" else two_way_interval
        return Row(arm, group, metric, *of(m), n=m.shape[1], seeds=len(seeds))

    def ceiling_of_recall(self, group: str, hours: int) -> Row:
        """pass@1 of a student that recalls every fact of the training problems and guesses every
        other one of `hours` results; interval over problems."""
        seen = np.array(self.problems["seen"])[self.groups[group]]
        solved = np.where(seen, 1.0, 1 / hours)
        return Row("recall", group, "pass@1", *interval(list(solved)), n=len(seen))

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
