"""Does HEAL hold, by how much, and against what? Pairs × seeds × arms on held-out problems.

- A pair is a teacher and a base student with their problem files (`build-pair`). All arms of a pair
  start from the same student and train for the same number of updates. A seed is that of sampling,
  training and data order. Held-out problems choose nothing.
- One folder per pair and seed, one file per finished arm. The same command continues after an
  interruption. Several commands may share `out`, for different pairs or seeds side by side; a last
  one that names them all makes nothing new and collects.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from heal_lab.arms import ARMS, TRAINED, TeacherData
from heal_lab.compare import LONG, LONGEST_TRAINED, Results
from heal_lab.pair import world_of
from heal_ref import pace
from heal_ref.config import HealConfig
from heal_ref.evaluate import is_genuine
from heal_ref.generation import sample
from heal_ref.model import LM, load_lm, processes
from heal_ref.records import DATA, InputError, Problem, limit_by_kind, source_commit, write_text
from heal_ref.run.folder import RunFolder, batches, identity, shard_seed
from heal_ref.run.pipeline import Method, provenance
from heal_ref.run.sources import load_problems
from heal_ref.tasks import Task
from heal_ref.tasks.clock import MASTERED, Chain

LONG_TOKENS = 160  # length limit in the evaluation: the longest chains need more than training ones
CURVE_PROBLEMS = 40  # validation problems of each kind on a learning curve
Measure = Callable[[LM, Task, Sequence[Problem]], Mapping[str, Sequence[float]]]


def problems_of(name: str, pair: Path = DATA) -> list[Problem]:
    """One of the problem files of a pair, of the shipped one by default."""
    return load_problems(pair / "clock" / f"{name}.jsonl", world_of(pair))


def evaluated(limit: int, pair: Path = DATA) -> list[Problem]:
    """What every arm is evaluated on: `limit` held-out problems of each kind (0 for all), and a
    third as many long ones."""
    long = limit_by_kind(problems_of("long", pair), -(-limit // 3))
    return [*limit_by_kind(problems_of("heldout", pair), limit), *long]


def facts(problem: Problem, hours: int) -> set[tuple[int, str, int]]:
    """The facts `a # b` that a problem needs: true values, of operators that the teacher has not
    mastered."""
    chain = Chain.parse(problem.question, hours)
    steps = zip(chain.values(), chain.ops, strict=False)
    return {(a, op, b) for a, (op, b) in steps if op not in MASTERED}


def about(problems: Sequence[Problem], train: Sequence[Problem], hours: int) -> dict[str, list]:
    """What the record says of each problem. `kind` separates those that are longer than any in
    training; `seen`: every fact that the problem needs occurs in a training problem."""
    known = set[tuple[int, str, int]]().union(*(facts(p, hours) for p in train))
    return {"id": [p.id for p in problems],
            "kind": [p.kind + (LONG if p.length > LONGEST_TRAINED else "") for p in problems],
            "length": [p.length for p in problems],
            "seen": [facts(p, hours) <= known for p in problems]}


class Trial:
    """One seed on one pair of models: all arms, in one folder.

    Args:
        problems: "train", "validation" (for the learning curves), "held-out", and "second" for a
            second round.
        limit: new tokens in the evaluation; without it that of `config.sample`.
        made: what the teacher made, if it is not to be made in this folder.
        measure: what else is measured of a model on these problems, by name: lists of one number
            per problem.
    """

    def __init__(self, home: str | Path, task: Task, teacher: LM, student: LM,
                 problems: Mapping[str, Sequence[Problem]], config: HealConfig, *,
                 quiet: bool = False, limit: int = 0, made: TeacherData | None = None,
                 measure: Measure | None = None):
        self.config, self.task, self.teacher, self.student = config, task, teacher, student
        self.problems, self.probe = problems["held-out"], problems["validation"]
        self.limit, self.measure = limit or config.sample.max_new_tokens, measure
        models = {"teacher": teacher, "student": student}
        self.folder = RunFolder(home, identity(config, task, models, problems), quiet)
        method = Method(self.folder, teacher, task, config)
        self.made = made or TeacherData(method, problems["train"], problems.get("second", ()))

    @classmethod
    def of_pair(cls, home: str | Path, pair: Path, config: HealConfig, quiet: bool = False,
                student: str = "student") -> Self:
        """The trial of a pair that `build-pair` made."""
        problems = {"train": limit_by_kind(problems_of("train", pair), config.train_limit),
                    "validation": limit_by_kind(problems_of("validation", pair), CURVE_PROBLEMS),
                    "held-out": evaluated(config.eval_limit, pair),
                    "second": limit_by_kind(problems_of("second", pair), config.train_limit)}
        return cls(home, world_of(pair), load_lm(pair / "teacher"), load_lm(pair / student),
                   problems, config, quiet=quiet, limit=LONG_TOKENS)

    def file(self, arm: str) -> Path:
        """Where the result of an arm is kept."""
        return self.folder.path / "arms" / f"{arm}.json"

    def result(self, arm: str) -> dict[str, Any]:
        """Train and evaluate one arm, or read what was measured.

        Returns:
            `n` samples per problem; `correct` and `genuine` (how many of them) and `greedy` (0 or
            1) per problem; what `_trained` adds; `commit` of the run; `minutes`.
        """
        path, commit, began = self.file(arm), source_commit(), time.monotonic()
        if not path.exists():
            about: dict[str, Any] = {}
            if arm in TRAINED:
                lm, about = self._trained(arm)
            else:
                lm = self.student if arm == "student" else self.teacher
            measured = {**self._measured(arm, lm), **about}
            measured |= {"commit": commit,
                         "minutes": round((time.monotonic() - began) / 60, 2)}
            write_text(path, json.dumps(measured) + "\n")
        return json.loads(path.read_text(encoding="utf-8"))

    def _trained(self, arm: str) -> tuple[LM, dict[str, Any]]:
        """The student; teacher tokens, examples, updates and the learning curve."""
        data, c = TRAINED[arm](self.made), self.config
        settings = replace(c.pace, shares=data.shares or c.pace.shares)
        home = self.folder.path / "5-students" / arm
        with self.folder.bar(f"train {arm}", c.pace.updates, unit="update") as bar:
            lm = pace.distill(self.student, self.task, data.stages, settings, c.seed, folder=home,
                              probe=self.probe, progress=lambda done, _: bar.update(done - bar.n))
        curve = pace.read_curve(home)
        return lm, {"generated": data.generated, "scored": data.scored,
                    "examples": {stage["stage"]: stage["examples"] for stage in curve},
                    "updates": sum(stage["updates"] for stage in curve), "curve": curve}

    def _measured(self, arm: str, lm: LM) -> dict[str, Any]:
        """`eval_n` sampled solutions and a greedy one per problem; the same seeds for every arm."""
        n, task = self.config.eval_n, self.task.for_tokenizer(lm.tokenizer)
        sampled = replace(self.config.sample, max_new_tokens=self.limit)
        greedy = replace(sampled, temperature=0.0)
        out: dict[str, Any] = {"n": n, "correct": [], "greedy": [], "genuine": []}
        parts = batches(self.problems, self.config.sample.batch)
        with self.folder.bar(f"evaluate {arm}", len(parts)) as bar:
            for number, part in enumerate(parts):
                seed = shard_seed(self.config.seed, "6-eval", number)
                tried = sample(lm, task, part, n, seed=seed, sampling=sampled)
                for mine in batches(tried, n):  # the samples of one problem
                    out["correct"].append(sum(t.correct for t in mine))
                    out["genuine"].append(sum(is_genuine(lm, task, t) for t in mine))
                once = sample(lm, task, part, 1, seed=seed, sampling=greedy)
                out["greedy"] += [int(t.correct) for t in once]
                bar.update()
        return {**out, **(self.measure(lm, task, self.problems) if self.measure else {})}


def experiment(plan: Sequence[tuple[str, Path, int]], out: str | Path,
               config: Callable[[int], HealConfig], arms: Sequence[str] = ARMS, *,
               quiet: bool = False, command: str = "", student: str = "student"
               ) -> dict[str, Any]:
    """Run what is missing of every (pair's name, its folder, seed) in `plan`; collect the record.

    Args:
        config: the configuration for a seed.
        arms: which arms; the record holds these and no others, so that `command` makes it again.
        student: the folder of the base student in a pair; "weak" is one that cannot calculate.

    Returns:
        `provenance` (`commit` is that of the runs); `world`; `pairs` (where each comes from);
        `unit` of the intervals: "pair", or "seed" with one pair; `problems` (`id`, `kind`,
        `length`, `seen`: one entry each); `runs`, `rows` (means) and `differences` (paired).

    Raises:
        InputError: an unknown arm, a repeated run, several processes, pairs of different worlds,
            or a folder that belongs to other settings.
    """
    # 1) what is asked for
    if processes().num_processes > 1:
        raise InputError("an experiment runs in one process; start it once per pair with the same "
                         "--out instead, then once with all --pairs to collect")
    if unknown := [arm for arm in arms if arm not in ARMS]:
        raise InputError(f"there is no arm {', '.join(unknown)}; the arms are {', '.join(ARMS)}")
    if len({(pair, seed) for pair, _, seed in plan}) < len(plan):
        raise InputError("a pair with the same seed is repeated: name each seed once, and give "
                         "each pair a folder of another name")
    pairs = {pair: folder for pair, folder, _ in plan}
    worlds = [vars(world_of(folder)) for folder in pairs.values()]
    asked = [[p.question for name in ("train", "heldout", "long", "second")
              for p in problems_of(name, folder)] for folder in pairs.values()]
    if any(world != worlds[0] for world in worlds) or any(mine != asked[0] for mine in asked):
        raise InputError("the pairs are of different worlds or have other problems, so that no "
                         "mean over them says anything: run one experiment per world")

    # 2) the runs
    began, runs = time.monotonic(), []
    for pair, folder, seed in plan:
        trial = Trial.of_pair(Path(out) / pair / f"seed-{seed}", folder, config(seed), quiet,
                              student)
        runs += [{"pair": pair, "seed": seed, "arm": arm, **trial.result(arm)}
                 for arm in ARMS if arm in arms]

    # 3) the record
    origin = provenance(trial.teacher, command, sorted({seed for *_, seed in plan}), began)
    origin["commit"] = ", ".join(dict.fromkeys(run["commit"] for run in runs))
    origin["minutes"] = round(sum(run["minutes"] for run in runs), 1)
    built = {}
    for pair, folder in pairs.items():
        training = json.loads((folder / "teacher" / "training.json").read_text(encoding="utf-8"))
        built[pair] = {name: training[name] for name in ("seed", "commit")}
    record = {"provenance": origin, "world": worlds[0], "pairs": built, "student": student,
              "unit": "pair" if len(pairs) > 1 else "seed", "runs": runs,
              "problems": about(trial.problems, trial.made.problems, worlds[0]["hours"])}
    return {**record, **summary(record)}


def summary(record: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """`rows` and `differences` of a record: all metrics over all pairs, and for each pair alone
    sampled pass@1 by kind. `unit` and `pairs`: what was resampled, and how many pairs there are.
    Rows of the arm "recall" are the ceiling of recall."""
    out: dict[str, list[dict[str, Any]]] = {"rows": [], "differences": []}
    pairs = list(dict.fromkeys(run["pair"] for run in record["runs"]))
    for pair in ["all", *pairs] if len(pairs) > 1 else ["all"]:
        results = Results(record, pair)
        for name, rows in (("rows", results.rows()), ("differences", results.differences())):
            for row in rows:
                if pair == "all" or (row.metric == "pass@1" and "," not in row.kind):
                    count = len(results.pairs(*row.arm.split(" − ")))
                    out[name].append({"pair": pair, "unit": results.unit, "pairs": count,
                                      **row.to_dict()})
    if "seen" in record["problems"]:
        results = Results(record)
        ceilings = [results.ceiling_of_recall(group, record["world"]["hours"])
                    for group in results.groups if "," not in group or group.endswith("seen")]
        out["rows"] += [{"pair": "all", "unit": "problem", "pairs": 0, **row.to_dict()}
                        for row in ceilings]
    return out
