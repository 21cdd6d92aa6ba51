"""Does it do what it says? GEAR's readings and controls, counted problem by problem against the exact checker.

`python -m heal_lab evidence gear` writes data/results/gear.json: one line of counts for each problem and arm (so
that anyone can compute other intervals), the rows made of them, and where they come from.
Only measuring happens here: the checker's verdicts go into tables and never back into the method.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from heal_ref.config import GearConfig
from heal_ref.evaluate import Row, first_wrong_step, interval, is_genuine
from heal_ref.gear import Cut, breakpoint_of, repair
from heal_ref.generation import sample
from heal_ref.model import LM
from heal_ref.records import Problem, Trajectory, by_problem, write_text
from heal_ref.run.folder import batches, shard_seed
from heal_ref.run.pipeline import provenance

Counts = dict[str, Any]  # of one problem: id, kind and numbers

READINGS = {  # name -> what chooses the step
    **{f"{step} {signal}": GearConfig(step=step, signal=signal)
       for step in ("mean", "max", "first") for signal in ("surge", "level", "relative")},
    **{f"mean surge, window {name}": GearConfig(window=f) for name, f in (("2/3", 2 / 3), ("1/2", 1 / 2), ("1/3", 1 / 3))},
}
RANDOM = "random step"  # every step that a surge could choose, each as likely: its expected hits, not one draw


def interleaved(problems: Sequence[Problem]) -> list[Problem]:
    """The problems with their kinds taken in turns, so that every batch holds all of them."""
    kinds: dict[str, list[Problem]] = {}
    for p in problems:
        kinds.setdefault(p.kind, []).append(p)
    longest = max(map(len, kinds.values()), default=0)
    return [group[i] for i in range(longest) for group in kinds.values() if i < len(group)]


# ----------------------------------------------------------------------------------------- localisation


def localisation_counts(lm: LM, task: Any, base: Sequence[Trajectory],
                        readings: Mapping[str, GearConfig] = READINGS) -> list[Counts]:
    """For each problem: failed trajectories that have a first wrong step, and how many of those each reading hits."""
    out = []
    for samples in by_problem(base).values():
        failed = [(t, w) for t in samples if not t.correct and (w := first_wrong_step(lm, task, t)) is not None]
        if failed:
            hits: dict[str, float] = {name: sum(breakpoint_of(t, c) == w for t, w in failed) for name, c in readings.items()}
            hits[RANDOM] = round(sum((w > 0) / max(len(t.steps) - 1, 1) for t, w in failed), 6)
            out.append({"id": samples[0].problem.id, "kind": samples[0].problem.kind, "failed": len(failed), **hits})
    return out


def localisation_rows(counts: Sequence[Counts]) -> list[Row]:
    """Share of failed trajectories whose breakpoint is the first wrong step, by kind and reading."""
    rows = []
    for kind in dict.fromkeys(c["kind"] for c in counts):
        mine = [c for c in counts if c["kind"] == kind]
        weights = [c["failed"] for c in mine]
        rows += [Row(name, kind, "breakpoint = first wrong step", *interval([c[name] for c in mine], weights), n=sum(weights))
                 for name in mine[0] if name not in ("id", "kind", "failed")]
    return rows


# --------------------------------------------------------------------------------------------- repairs


def oracle_cut(lm: LM, task: Any) -> Cut:
    """Cuts at the first wrong step, by the checker: the upper bound of what any signal can choose."""
    return lambda t: first_wrong_step(lm, task, t)


def repair_arms(lm: LM, task: Any) -> dict[str, tuple[GearConfig, Cut | None]]:
    """Hint by place of cut: name → (settings, cut of its own or None)."""
    oracle = oracle_cut(lm, task)
    arms: dict[str, tuple[GearConfig, Cut | None]] = {}
    for hint in ("bridge", "answer"):
        arms[f"{hint} at surge"] = GearConfig(hint=hint), None
        arms[f"{hint} at max surge"] = GearConfig(hint=hint, step="max"), None
        arms[f"{hint} at level"] = GearConfig(hint=hint, signal="level"), None
        arms[f"{hint} at random step"] = GearConfig(hint=hint, signal="random"), None
        arms[f"{hint} at first wrong step"] = GearConfig(hint=hint), oracle
    return {**arms, "wrong answer at surge": (GearConfig(hint="wrong_answer"), None)}


RESAMPLE = "sample again"  # rejection sampling of the same problems: as many samples as GEAR makes continuations


def outcome_counts(lm: LM, task: Any, arm: str, trajectories: Sequence[Trajectory]) -> list[Counts]:
    """For each problem: attempts, those that end right, those that are right in every step, tokens spent."""
    return [{"id": g[0].problem.id, "kind": g[0].problem.kind, "arm": arm, "attempts": len(g),
             "correct": sum(t.correct for t in g), "genuine": sum(is_genuine(lm, task, t) for t in g),
             "tokens": sum(t.tokens_spent for t in g)} for g in by_problem(trajectories).values()]


def repair_counts(lm: LM, task: Any, base: Sequence[Trajectory], seed: int = 0,
                  arms: Sequence[str] | None = None) -> list[Counts]:
    """What each arm makes of the problems that no sample of `base` solved."""
    known = repair_arms(lm, task)
    out = []
    for arm in arms or [*known, RESAMPLE]:
        if arm == RESAMPLE:
            hard = [g[0].problem for g in by_problem(base).values() if not any(t.correct for t in g)]
            c = GearConfig()
            tried = sample(lm, task, hard, n=c.paths * c.hints * c.continuations, seed=seed)
        else:
            config, cut = known[arm]
            tried = repair(lm, task, base, config, seed, cut=cut)
        out += outcome_counts(lm, task, arm, tried)
    return out


def repair_rows(counts: Sequence[Counts]) -> list[Row]:
    """Shares and yields by kind and arm, with problems as clusters."""
    rows = []
    for arm, kind in dict.fromkeys((c["arm"], c["kind"]) for c in counts):
        mine = [c for c in counts if (c["arm"], c["kind"]) == (arm, kind)]

        def ratio(top: str, bottom: str, scale: float = 1.0, mine: list[Counts] = mine) -> tuple[float, float, float]:
            return interval([scale * c[top] for c in mine], [c[bottom] for c in mine])

        metrics = {"correct": ratio("correct", "attempts"), "genuine": ratio("genuine", "attempts"),
                   "genuine if correct": ratio("genuine", "correct"),
                   "problems with a genuine one": interval([float(c["genuine"] > 0) for c in mine]),
                   "tokens a problem": interval([c["tokens"] for c in mine]),
                   "genuine per 1,000 tokens": ratio("genuine", "tokens", 1000.0)}
        rows += [Row(arm, kind, name, *values, n=len(mine)) for name, values in metrics.items()]
    return rows


# ---------------------------------------------------------------------------------------------- record


RARE = {"mastered": 12}  # kinds that hardly ever fail are sampled so many times as often, to have failures to look at


def gear_batch(lm: LM, task: Any, problems: Sequence[Problem], number: int, n: int, seed: int,
               arms: Sequence[str] | None = None) -> tuple[list[Counts], list[Counts]]:
    """Localisation and repair counts of one batch of problems; its seed follows from its number alone."""
    base = sample(lm, task, problems, n=n, seed=shard_seed(seed, "evidence/base", number))
    localised = localisation_counts(lm, task, [t for t in base if t.problem.kind not in RARE])
    for kind, times in RARE.items():
        rare = [p for p in problems if p.kind == kind]
        localised += localisation_counts(lm, task, sample(lm, task, rare, n=n * times,
                                                          seed=shard_seed(seed, f"evidence/{kind}", number)))
    return localised, repair_counts(lm, task, base, shard_seed(seed, "evidence/repair", number), arms)


def origin(lm: LM, problems: Sequence[Problem], command: str, seed: int, batch: int, began: float) -> dict[str, Any]:
    """The provenance of a record: that of a run, and what decides a batch."""
    return {**provenance(lm, command, seed, began), "problems": len(problems), "batch": batch,
            "threads": torch.get_num_threads()}


def gear_evidence(lm: LM, task: Any, problems: Sequence[Problem], *, n: int = 8, seed: int = 0, batch: int = 100,
                  command: str = "") -> dict[str, Any]:
    """Every reading and arm on these problems: rows, the counts they are made of, provenance."""
    began = time.monotonic()
    localised, repaired = list[Counts](), list[Counts]()
    for number, part in enumerate(tqdm(batches(interleaved(problems), batch), "evidence", unit="batch")):
        a, b = gear_batch(lm, task, part, number, n, seed)
        localised, repaired = localised + a, repaired + b
    rows = localisation_rows(localised) + repair_rows(repaired)
    return {"rows": [r.to_dict() for r in rows],
            "provenance": {**origin(lm, problems, command, seed, batch, began), "n": n},
            "localisation": localised, "repair": repaired}


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """JSON with one row or problem a line, so that a reader and a diff can follow it."""
    def lines(rows: Sequence[Any]) -> str:
        return "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]"

    parts = {key: lines(value) if isinstance(value, list) else json.dumps(value) for key, value in record.items()}
    write_text(path, "{" + ",\n".join(f"{json.dumps(key)}: {text}" for key, text in parts.items()) + "}\n")
