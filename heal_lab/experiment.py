"""Does HEAL hold, by how much, and against what? Arms × seeds on held-out problems.

- All arms start from the same base student and train for the same number of updates. A seed is
  that of sampling, training and data order. Held-out problems choose nothing.
- One folder per seed, one file per finished arm. The same command continues after an interruption;
  commands with different seeds may share `out`, and the last one collects.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from heal_lab.arms import ARMS, TRAINED, TeacherData
from heal_lab.compare import Results
from heal_ref import pace
from heal_ref.config import HealConfig, SampleConfig
from heal_ref.evaluate import is_genuine
from heal_ref.generation import sample
from heal_ref.model import LM, load_lm, processes
from heal_ref.records import DATA, InputError, Problem, limit_by_kind, write_text
from heal_ref.run.folder import RunFolder, batches, identity, shard_seed
from heal_ref.run.pipeline import Method, provenance
from heal_ref.run.sources import load_problems
from heal_ref.tasks import ClockTask

LONG_TOKENS = 160  # length limit in the evaluation: the longest chains need more than training ones
CURVE_PROBLEMS = 40  # validation problems of each kind on a learning curve


def problems_of(name: str) -> list[Problem]:
    """One of the shipped problem files of the clock world."""
    return load_problems(DATA / "clock" / f"{name}.jsonl", ClockTask())


def evaluated(limit: int) -> list[Problem]:
    """What every arm is evaluated on: `limit` held-out problems of each kind (0 for all), and a
    third as many long ones."""
    long = limit_by_kind(problems_of("long"), -(-limit // 3))
    return [*limit_by_kind(problems_of("heldout"), limit), *long]


class Trial:
    """One seed on one pair of models: all arms, in one folder."""

    def __init__(self, home: str | Path, pair: Path, config: HealConfig, quiet: bool = False):
        self.config, self.task = config, ClockTask()
        self.teacher, self.student = load_lm(pair / "teacher"), load_lm(pair / "student")
        self.problems = evaluated(config.eval_limit)
        self.probe = limit_by_kind(problems_of("validation"), CURVE_PROBLEMS)
        train = limit_by_kind(problems_of("train"), config.train_limit)
        problems = {"train": train, "validation": self.probe, "held-out": self.problems}
        models = {"teacher": self.teacher, "student": self.student}
        self.folder = RunFolder(home, identity(config, self.task, models, problems), quiet)
        self.made = TeacherData(Method(self.folder, self.teacher, self.task, config), train)

    def file(self, arm: str) -> Path:
        """Where the result of an arm is kept."""
        return self.folder.path / "arms" / f"{arm}.json"

    def result(self, arm: str) -> dict[str, Any]:
        """Train and evaluate one arm, or read what was measured.

        Returns:
            `n` samples per problem; `correct` and `genuine` (how many of them) and `greedy` (0 or
            1) per problem; what `_trained` adds; `minutes`.
        """
        path, began = self.file(arm), time.monotonic()
        if not path.exists():
            about: dict[str, Any] = {}
            if arm in TRAINED:
                lm, about = self._trained(arm)
            else:
                lm = self.student if arm == "student" else self.teacher
            measured = {**self._measured(arm, lm), **about}
            minutes = round((time.monotonic() - began) / 60, 2)
            write_text(path, json.dumps({**measured, "minutes": minutes}) + "\n")
        return json.loads(path.read_text(encoding="utf-8"))

    def _trained(self, arm: str) -> tuple[LM, dict[str, Any]]:
        """The student; teacher tokens, examples, updates and the learning curve."""
        data, c = TRAINED[arm](self.made), self.config
        home = self.folder.path / "5-students" / arm
        with self.folder.bar(f"train {arm}", c.pace.updates, unit="update") as bar:
            lm = pace.distill(self.student, self.task, data.stages, c.pace, c.seed, folder=home,
                              probe=self.probe, progress=lambda done, _: bar.update(done - bar.n))
        curve = pace.read_curve(home)
        return lm, {"generated": data.generated, "scored": data.scored,
                    "examples": {stage["stage"]: stage["examples"] for stage in curve},
                    "updates": sum(stage["updates"] for stage in curve), "curve": curve}

    def _measured(self, arm: str, lm: LM) -> dict[str, Any]:
        """`eval_n` sampled solutions and a greedy one per problem; the same seeds for every arm."""
        n = self.config.eval_n
        sampled = SampleConfig(temperature=1.0, max_new_tokens=LONG_TOKENS)
        greedy = SampleConfig(temperature=0.0, max_new_tokens=LONG_TOKENS)
        out: dict[str, Any] = {"n": n, "correct": [], "genuine": [], "greedy": []}
        parts = batches(self.problems, self.config.sample.batch)
        with self.folder.bar(f"evaluate {arm}", len(parts)) as bar:
            for number, part in enumerate(parts):
                seed = shard_seed(self.config.seed, "6-eval", number)
                tried = sample(lm, self.task, part, n, seed=seed, sampling=sampled)
                for mine in batches(tried, n):  # the samples of one problem
                    out["correct"].append(sum(t.correct for t in mine))
                    out["genuine"].append(sum(is_genuine(lm, self.task, t) for t in mine))
                once = sample(lm, self.task, part, 1, seed=seed, sampling=greedy)
                out["greedy"] += [int(t.correct) for t in once]
                bar.update()
        return out


def experiment(plan: Sequence[tuple[str, Path, int]], out: str | Path,
               config: Callable[[int], HealConfig], arms: Sequence[str] = ARMS, *,
               quiet: bool = False, command: str = "") -> dict[str, Any]:
    """Run what is missing of every (pair's name, its folder, seed) in `plan`; collect the record.

    Args:
        config: the configuration for a seed.
        arms: which arms to run; finished ones of the same seeds are collected too.

    Returns:
        `provenance`, `problems` (`id`, `kind`, `length`: one entry each), `runs`, `rows` (means)
        and `differences` (paired).

    Raises:
        InputError: an unknown arm, a repeated seed, several processes, or a folder that belongs to
            other settings.
    """
    if processes().num_processes > 1:
        raise InputError("an experiment runs in one process; start it once per seed with the same "
                         "--out instead, then once with all --seeds to collect")
    if unknown := [arm for arm in arms if arm not in ARMS]:
        raise InputError(f"there is no arm {', '.join(unknown)}; the arms are {', '.join(ARMS)}")
    if len({seed for *_, seed in plan}) < len(plan):
        raise InputError("a seed is repeated: seeds name the folders, so give each pair its own")
    began, runs = time.monotonic(), []
    for pair, folder, seed in plan:
        trial = Trial(Path(out) / f"seed-{seed}", folder, config(seed), quiet)
        for arm in ARMS:
            if arm in arms or trial.file(arm).exists():
                runs.append({"pair": pair, "seed": seed, "arm": arm, **trial.result(arm)})
    origin = provenance(trial.teacher, command, [seed for *_, seed in plan], began)
    origin["minutes"] = round(sum(run["minutes"] for run in runs), 1)
    about = {name: [getattr(p, name) for p in trial.problems] for name in ("id", "kind", "length")}
    record = {"provenance": origin, "problems": about, "runs": runs}
    return {**record, **summary(record)}


def summary(record: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """`rows` and `differences` of a record: all metrics over all pairs, and for each pair alone
    sampled pass@1 by kind."""
    out: dict[str, list[dict[str, Any]]] = {"rows": [], "differences": []}
    pairs = list(dict.fromkeys(run["pair"] for run in record["runs"]))
    for pair in ["all", *pairs] if len(pairs) > 1 else ["all"]:
        results = Results(record, pair)
        for name, rows in (("rows", results.rows()), ("differences", results.differences())):
            for row in rows:
                if pair == "all" or (row.metric == "pass@1" and "," not in row.kind):
                    out[name].append({"pair": pair, **row.to_dict()})
    return out
