"""GEAR ablations, scored by the step checker: which reading finds the first wrong step, what each
hint at each place repairs, and what it changes to refuse hints that state the answer.

Records hold counts per problem and arm (for other intervals), the rows made of them, provenance.
The checker's verdicts go into tables and never back into the method.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from heal_ref.config import GearConfig
from heal_ref.evaluate import Row, first_wrong_step, interval, is_genuine
from heal_ref.gear import Cut, breakpoint_of, repair
from heal_ref.generation import sample
from heal_ref.model import LM
from heal_ref.records import DATA, Problem, Trajectory, by_problem, read_json, write_text
from heal_ref.run.folder import batches, shard_seed
from heal_ref.run.pipeline import provenance
from heal_ref.tasks.base import Task
from heal_ref.tasks.clock import UNLEARNT, Chain, ClockTask

Counts = dict[str, Any]  # of one problem: id, kind and numbers

READINGS = {  # name -> what chooses the step
    **{f"{step} {signal}": GearConfig(step=step, signal=signal)
       for step in ("mean", "max", "first") for signal in ("rise", "surge", "level", "relative")},
    **{f"mean surge, window {name}": GearConfig(step="mean", signal="surge", window=share)
       for name, share in (("2/3", 2 / 3), ("1/2", 1 / 2), ("1/3", 1 / 3))}}
BREAKS = {f"{step} {signal}": GearConfig(step=step, signal=signal)
          for step in ("mean", "max") for signal in ("surge", "level", "rise")}
RANDOM = "random step"  # expected hits of a step drawn from all of them
LATER = "random later step"  # of one drawn from those that a surge could choose: not the first
DEFAULT, ACCEPTED = "bridge at rise", "bridge at rise, answers accepted"
RESAMPLE = "sample again"  # rejection sampling: as many samples as GEAR makes continuations
RARE = {"mastered": 12}  # this kind hardly ever fails, so it is sampled 12 times as often
BATCH = 100  # problems


def interleaved(problems: Sequence[Problem]) -> list[Problem]:
    """The problems with their kinds in turn, so that every batch holds all of them."""
    kinds: dict[str, list[Problem]] = {}
    for p in problems:
        kinds.setdefault(p.kind, []).append(p)
    longest = max(map(len, kinds.values()), default=0)
    return [group[i] for i in range(longest) for group in kinds.values() if i < len(group)]


def failures(lm: LM, task: Task, base: Sequence[Trajectory]) -> list[tuple[Trajectory, int]]:
    """The failed trajectories that have a first wrong step, with it."""
    wrong = [(t, first_wrong_step(lm, task, t)) for t in base if not t.correct]
    return [(t, k) for t, k in wrong if k is not None]


def hit_counts(failed: Sequence[tuple[Trajectory, int]], readings: Mapping[str, GearConfig]
               ) -> list[Counts]:
    """Per problem: failed trajectories, how many each reading hits, and how many a random step
    would hit on average."""
    problems: dict[str, list[tuple[Trajectory, int]]] = {}
    for t, k in failed:
        problems.setdefault(t.problem.id, []).append((t, k))
    out = []
    for mine in problems.values():
        hits = {name: sum(breakpoint_of(t, config) == k for t, k in mine)
                for name, config in readings.items()}
        any_step = sum(1 / len(t.steps) for t, k in mine)
        later = sum((k > 0) / max(len(t.steps) - 1, 1) for t, k in mine)
        problem = mine[0][0].problem
        out.append({"id": problem.id, "kind": problem.kind, "failed": len(mine), **hits,
                    RANDOM: round(any_step, 6), LATER: round(later, 6)})
    return out


def localisation_counts(lm: LM, task: Task, base: Sequence[Trajectory],
                        readings: Mapping[str, GearConfig] = READINGS) -> list[Counts]:
    """`hit_counts` of the failed samples."""
    return hit_counts(failures(lm, task, base), readings)


def break_evidence(lm: LM, task: ClockTask, problems: Sequence[Problem], *, seed: int = 0,
                   command: str = "") -> dict[str, Any]:
    """`evidence breaks`: which reading finds the first wrong step where that can be the very first
    one, as it can without the step that restates the start, and where it cannot."""
    worlds = {"restated": task, "not restated": ClockTask(task.hours, restates=False)}

    def measure(part: Sequence[Problem], number: int) -> dict[str, list[Counts]]:
        found = []
        for name, world in worlds.items():
            base = sample(lm, world, part, 8, seed=shard_seed(seed, f"evidence/{name}", number))
            failed = failures(lm, world, base)
            for where, mine in (("", failed), (", broken in the first step",
                                               [(t, k) for t, k in failed if k == 0])):
                for c in hit_counts(mine, BREAKS):
                    found.append({**c, "kind": f"{c['kind']}, {name}{where}"})
        return {"localisation": found}

    hard = [p for p in problems if p.kind != "mastered"]  # these hardly ever fail
    return collect(lm, hard, seed, command, measure,
                   lambda localisation: localisation_rows(localisation), n=8)


def localisation_rows(counts: Sequence[Counts]) -> list[Row]:
    """Share of failed trajectories whose breakpoint is the first wrong step, by kind, reading."""
    rows, metric = [], "breakpoint = first wrong step"
    for kind in dict.fromkeys(c["kind"] for c in counts):
        mine = [c for c in counts if c["kind"] == kind]
        failed = [c["failed"] for c in mine]
        for name in list(mine[0])[3:]:  # after id, kind and failed
            hits = interval([c[name] for c in mine], failed)
            rows.append(Row(name, kind, metric, *hits, n=sum(failed)))
    return rows


def repair_arms(lm: LM, task: Task) -> dict[str, tuple[GearConfig, Cut | None]]:
    """Name → (settings, a cut of its own or None), for each hint at each place of cut."""
    arms: dict[str, tuple[GearConfig, Cut | None]] = {}
    for hint in ("bridge", "answer"):
        config = GearConfig(hint=hint)
        arms[f"{hint} at rise"] = config, None
        arms[f"{hint} at mean surge"] = replace(config, step="mean", signal="surge"), None
        arms[f"{hint} at level"] = replace(config, signal="level"), None
        arms[f"{hint} at random step"] = replace(config, signal="random"), None
        # An upper bound for every signal: the checker chooses.
        arms[f"{hint} at first wrong step"] = config, lambda t: first_wrong_step(lm, task, t)
    return {**arms, "wrong answer at rise": (GearConfig(hint="wrong_answer"), None),
            "no hint at rise": (GearConfig(hint="none"), None),
            ACCEPTED: (GearConfig(refuse_answers=False), None)}


def outcome_counts(lm: LM, task: Task, arm: str, tried: Sequence[Trajectory]) -> list[Counts]:
    """Per problem: attempts, those that end right, those right in every step, tokens spent.

    A repair without a usable hint is no attempt, but its tokens and its problem count.
    """
    out = []
    for group in by_problem(tried).values():
        attempts = [t for t in group if t.source != "repair" or t.hint is not None]
        out.append({"id": group[0].problem.id, "kind": group[0].problem.kind, "arm": arm,
                    "attempts": len(attempts), "correct": sum(t.correct for t in attempts),
                    "genuine": sum(is_genuine(lm, task, t) for t in attempts),
                    "tokens": sum(t.tokens_spent for t in group)})
    return out


def repair_counts(lm: LM, task: Task, base: Sequence[Trajectory], seed: int = 0,
                  arms: Sequence[str] | None = None) -> list[Counts]:
    """What each arm makes of the problems that no sample of `base` solved."""
    known, out, c = repair_arms(lm, task), list[Counts](), GearConfig()
    for arm in arms or [*known, RESAMPLE]:
        if arm == RESAMPLE:
            groups = by_problem(base).values()
            hard = [group[0].problem for group in groups if not any(t.correct for t in group)]
            tried = sample(lm, task, hard, c.paths * c.hints * c.continuations, seed=seed)
        else:
            config, cut = known[arm]
            tried = repair(lm, task, base, config, seed, cut=cut)
        out += outcome_counts(lm, task, arm, tried)
    return out


def repair_rows(counts: Sequence[Counts]) -> list[Row]:
    """Shares and yields by arm and kind, with problems as clusters."""
    rows = []
    for arm, kind in dict.fromkeys((c["arm"], c["kind"]) for c in counts):
        mine = [c for c in counts if (c["arm"], c["kind"]) == (arm, kind)]
        attempts, correct, genuine, tokens = (
            [c[name] for c in mine] for name in ("attempts", "correct", "genuine", "tokens"))
        metrics = {"correct": interval(correct, attempts),
                   "genuine": interval(genuine, attempts),
                   "genuine if correct": interval(genuine, correct),
                   "problems with a genuine one": interval([float(g > 0) for g in genuine]),
                   "tokens a problem": interval(tokens),
                   "genuine per 1,000 tokens": interval([1000.0 * g for g in genuine], tokens)}
        rows += [Row(arm, kind, name, *value, n=len(mine)) for name, value in metrics.items()]
    return rows


def reach_rows(counts: Sequence[Counts]) -> list[Row]:
    """By arm and kind: the share of usable hints, where it was counted (`usable`, a share per
    problem), and of problems with a right repair."""
    rows = []
    for arm, kind in dict.fromkeys((c["arm"], c["kind"]) for c in counts):
        mine = [c for c in counts if (c["arm"], c["kind"]) == (arm, kind)]
        if "usable" in mine[0]:
            usable = interval([c["usable"] for c in mine])
            rows.append(Row(arm, kind, "usable hints", *usable, n=len(mine)))
        solved = interval([float(c["correct"] > 0) for c in mine])
        rows.append(Row(arm, kind, "problems with a right one", *solved, n=len(mine)))
    return rows


def collect(lm: LM, problems: Sequence[Problem], seed: int, command: str,
            measure: Callable[[Sequence[Problem], int], dict[str, list[Counts]]],
            rows_of: Callable[..., list[Row]], **about: Any) -> dict[str, Any]:
    """A record: rows, provenance, and the lists that `measure` gives for each numbered batch."""
    began, lists = time.monotonic(), dict[str, list[Counts]]()
    parts = batches(interleaved(problems), BATCH)
    for number, part in enumerate(tqdm(parts, "evidence", unit="batch")):
        for name, counts in measure(part, number).items():
            lists.setdefault(name, []).extend(counts)
    rows = [row.to_dict() for row in rows_of(**lists)]
    origin = {**provenance(lm, command, seed, began), "problems": len(problems), "batch": BATCH,
              "threads": torch.get_num_threads(), **about}
    return {"rows": rows, "provenance": origin, **lists}


def gear_batch(lm: LM, task: Task, problems: Sequence[Problem], number: int, seed: int,
               arms: Sequence[str] | None = None) -> dict[str, list[Counts]]:
    """Localisation and repair counts of one batch; its seed follows from its number alone."""
    base = sample(lm, task, problems, 8, seed=shard_seed(seed, "evidence/base", number))
    found = localisation_counts(lm, task, [t for t in base if t.problem.kind not in RARE])
    for kind, times in RARE.items():
        rare = [p for p in problems if p.kind == kind]
        own = shard_seed(seed, f"evidence/{kind}", number)
        found += localisation_counts(lm, task, sample(lm, task, rare, 8 * times, seed=own))
    own = shard_seed(seed, "evidence/repair", number)
    return {"localisation": found, "repair": repair_counts(lm, task, base, own, arms)}


def gear_evidence(lm: LM, task: Task, problems: Sequence[Problem], *, seed: int = 0,
                  command: str = "") -> dict[str, Any]:
    """`evidence gear`: every reading, and every arm."""
    def rows_of(localisation: Sequence[Counts], repair: Sequence[Counts]) -> list[Row]:
        return localisation_rows(localisation) + repair_rows(repair)

    return collect(lm, problems, seed, command,
                   lambda part, number: gear_batch(lm, task, part, number, seed), rows_of, n=8)


def hint_evidence(lm: LM, task: Task, problems: Sequence[Problem], *, seed: int = 0,
                  command: str = "") -> dict[str, Any]:
    """`evidence hints`: refusing against accepting hints that state the answer, as they do at the
    last operation, on frontier problems; rows are by whether the unlearnt operator is the last."""
    def measure(part: Sequence[Problem], number: int) -> dict[str, list[Counts]]:
        base = sample(lm, task, part, 8, seed=shard_seed(seed, "evidence/base", number))
        own = shard_seed(seed, "evidence/repair", number)
        counts = repair_counts(lm, task, base, own, [DEFAULT, ACCEPTED])
        where = {p.id: Chain.parse(p.question).ops[-1][0] == UNLEARNT for p in part}
        kinds = {True: "unlearnt operator last", False: "unlearnt operator earlier"}
        return {"repair": [{**c, "kind": kinds[where[c["id"]]]} for c in counts]}

    def rows_of(repair: Sequence[Counts]) -> list[Row]:
        counts = [*({**c, "kind": "frontier"} for c in repair), *repair]
        most = 6  # three paths, two continuations of each
        return repair_rows(counts) + reach_rows(
            [{**c, "usable": c["attempts"] / most} for c in counts])

    frontier = [p for p in problems if p.kind == "frontier"]
    return collect(lm, frontier, seed, command, measure, rows_of, n=8)


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """JSON with one row or problem per line, so that a reader and a diff can follow it."""
    parts = []
    for key, value in record.items():
        text = json.dumps(value)
        if isinstance(value, list):
            text = "[\n" + ",\n".join(json.dumps(row) for row in value) + "\n]"
        parts.append(f"{json.dumps(key)}: {text}")
    write_text(path, "{" + ",\n".join(parts) + "}\n")


def read_record(name: str) -> dict[str, Any]:
    """The record `data/results/name.json`; FileNotFoundError if there is none.

    Example:
        >>> from heal_lab.evidence import read_record
        >>> read_record("gear")["provenance"]["problems"]
        1250
    """
    return read_json(DATA / "results" / f"{name}.json", "a record")
