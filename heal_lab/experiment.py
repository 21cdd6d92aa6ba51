"""Does HEAL hold, by how much, and against what? Arms × seeds on held-out problems (`heal_lab experiment`).

- All arms start from the same base student and train for the same number of updates. A seed is that of sampling,
  training and data order; arms with the same seed share what they have in common, down to the sampled solutions.
- What the teacher generated and scored is counted for each arm. `rft_matched` samples until it has spent what HEAL spent.
- One folder a seed, shards and stages as in `pipeline.run`; a finished arm is one file. The same command goes on after an
  interruption; commands with different seeds and the same folder may run side by side, and the last one collects.
- The held-out problems choose nothing; learning curves are taken on validation problems.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from datasets import Dataset

from heal_lab.compare import Results
from heal_ref import pace, pure
from heal_ref.config import HealConfig, SampleConfig
from heal_ref.evaluate import is_genuine
from heal_ref.generation import sample
from heal_ref.model import LM, load_lm, processes
from heal_ref.records import InputError, Problem, PureScore, Trajectory, limit_by_kind, write_text
from heal_ref.run.folder import RunFolder, batches, identity, shard_seed
from heal_ref.run.pipeline import Method, provenance
from heal_ref.run.sources import load_problems
from heal_ref.tasks.base import Task

LONG_TOKENS = 160  # length limit of a solution in the evaluation: the longest chains need more than training ones
CURVE_PROBLEMS = 40  # validation problems of each kind on a learning curve


@dataclass(frozen=True)
class Data:
    """What an arm trains on, and what it cost the teacher: tokens generated, and tokens scored by PURE."""

    stages: Mapping[str, Dataset]
    generated: int
    scored: int = 0


def _tokens(*sources: Sequence[Trajectory]) -> int:
    return sum(t.tokens_spent for source in sources for t in source)


class Teaching:
    """Everything that the teacher makes with one seed; made when an arm first asks for it, then kept on disk.

    Args:
        method: GEAR, PURE and sampling for one teacher, with the seed's folder and configuration.
        problems: what the arms may train on.
    """

    def __init__(self, method: Method, problems: Sequence[Problem]):
        self.method, self.problems, self.config = method, problems, method.config

    @cached_property
    def base(self) -> list[Trajectory]:
        return self.method.base(self.problems)

    @cached_property
    def guided(self) -> list[Trajectory]:
        return self.method.guided(self.base)

    @cached_property
    def reference(self) -> list[PureScore]:
        return self.method.scored("4-scores/reference", pure.unaided(self.base))

    @cached_property
    def guided_scores(self) -> list[PureScore]:
        return self.method.scored("4-scores/guided", self.guided)

    def kept(self, scored: Sequence[PureScore]) -> list[Trajectory]:
        """What PURE keeps."""
        return pure.pure_filter(scored, self.config.pure, self.reference)

    def _data(self, repaired: Sequence[Trajectory], keep: Callable[[Any], Any] | None, name: str = "",
              **settings: Any) -> Data:
        """Three stages; `keep` chooses among PURE's scores of helped solutions, without it nothing is filtered."""
        scores = [self.guided_scores, self.method.scored(f"4-scores/repaired{name}", repaired)] if keep else []
        guided, mended = [keep(s) for s in scores] if keep else [self.guided, repaired]
        seen = [*self.reference, *(s for mine in scores for s in mine)] if keep else []
        return Data(pace.build_stages(self.base, guided, mended, replace(self.config.pace, **settings)),
                    _tokens(self.base, self.guided, repaired), sum(len(s.trajectory.token_ids) for s in seen))

    def repaired(self, name: str = "", **gear: Any) -> list[Trajectory]:
        return self.method.repaired(self.base, f"3-repaired{name}", replace(self.config.gear, **gear))

    # ------------------------------------------------------------------------------------------ arms

    def rft(self) -> Data:
        """Rejection sampling: what the teacher solves alone."""
        stages = pace.build_stages(self.base, [], [], self.config.pace)
        return Data({"foundation": stages["foundation"]}, _tokens(self.base))

    def rft_matched(self) -> Data:
        """Rejection sampling until the teacher has spent as many tokens as for HEAL, scored ones counted like generated
        ones. Three times as many solutions of a problem are allowed: as many as HEAL's three stages may hold."""
        heal, samples = self.heal(), list(self.base)
        budget, spent, turn = heal.generated + heal.scored, _tokens(samples), 0
        while spent < budget:
            more = self.method.base(self.problems, f"1-base-more/{turn}", n=1)
            random.Random(f"{self.config.seed}/{turn}").shuffle(more)  # the last round is cut off: not always the same kinds
            for t in more:
                if spent < budget:
                    samples.append(t)
                    spent += t.tokens_spent
            turn += 1
        wider = replace(self.config.pace, per_problem=3 * self.config.pace.per_problem)
        return Data({"foundation": pace.build_stages(samples, [], [], wider)["foundation"]}, spent)

    def star(self) -> Data:
        """STaR's rationalization: one solution with the answer shown for each failed sample, no filter, one stage."""
        m, c = self.method, self.config
        failed = batches([t.problem for t in self.base if not t.correct], c.sample.batch * c.sample.n)
        rationalized = m.folder.shards("2-rationalized", failed, lambda part, seed: sample(
            m.teacher, m.task, part, n=1, seed=seed, sampling=c.sample, guided=True), c.seed)
        stages = pace.build_stages(self.base, rationalized, [], replace(c.pace, guided_below=1.0))
        return Data(pace.shuffled({"guided": stages["guided"]}), _tokens(self.base, rationalized))

    def heal(self) -> Data:
        """GEAR, PURE and PACE."""
        return self._data(self.repaired(), self.kept)

    def heal_no_gear(self) -> Data:
        """No repairs: PACE's third stage trains on what the second one had."""
        return self._data([], self.kept, "-none")

    def heal_no_pure(self) -> Data:
        """No filter: every helped solution whose answer is right."""
        return self._data(self.repaired(), None)

    def heal_no_pace(self) -> Data:
        """HEAL's examples in one shuffled stage."""
        heal = self.heal()
        return replace(heal, stages=pace.shuffled(heal.stages))

    def heal_restarts(self) -> Data:
        """HEAL's examples in each of three stages: PACE's restarts of the learning rate without its order."""
        heal = self.heal()
        return replace(heal, stages=dict.fromkeys(pace.STAGES, pace.shuffled(heal.stages)["all"]))

    def heal_stage_only(self) -> Data:
        """Stages that hold their own data only, none of the stages before: what does the student forget?"""
        return self._data(self.repaired(), self.kept, cumulative=False)

    def heal_random_breakpoint(self) -> Data:
        """GEAR cuts at a random step."""
        return self._data(self.repaired("-random", signal="random"), self.kept, "-random")

    def heal_answer_hint(self) -> Data:
        """GEAR's hint states the answer."""
        return self._data(self.repaired("-answer", hint="answer"), self.kept, "-answer")

    def heal_oracle_filter(self) -> Data:
        """The exact checker in the place of PURE: an upper bound, since nobody has such a checker for real problems."""
        lm, task = self.method.teacher, self.method.task
        return self._data(self.repaired(), lambda scored: [s.trajectory for s in scored if is_genuine(lm, task, s.trajectory)])


TRAINED = ("rft", "heal", "rft_matched", "star", "heal_no_gear", "heal_no_pure", "heal_no_pace", "heal_random_breakpoint",
           "heal_answer_hint", "heal_oracle_filter", "heal_restarts", "heal_stage_only")
ARMS = ("student", "teacher", *TRAINED)


# ------------------------------------------------------------------------------------------------- trials


@dataclass(frozen=True)
class Material:
    """The problem files of an experiment."""

    train: str
    validation: str
    heldout: str
    long: str


class Trial:
    """One seed on one pair: all arms, in one folder."""

    def __init__(self, folder: RunFolder, pair: Path, task: Task, config: HealConfig, material: Material):
        self.folder, self.task, self.config = folder, task, config
        self.teacher, self.student = load_lm(pair / "teacher"), load_lm(pair / "student")
        self.teaching = Teaching(Method(folder, self.teacher, task, config),
                                 limit_by_kind(load_problems(material.train, task), config.train_limit))
        self.probe = limit_by_kind(load_problems(material.validation, task), CURVE_PROBLEMS)
        self.problems = exam(material, task, config.eval_limit)

    def file(self, arm: str) -> Path:
        """Where the result of an arm is kept."""
        return self.folder.path / "arms" / f"{arm}.json"

    def has(self, arm: str) -> bool:
        """Whether an arm is finished."""
        return self.file(arm).exists()

    def result(self, arm: str) -> dict[str, Any]:
        """Train and evaluate one arm, or read what was measured.

        Returns:
            `n` samples a problem, `correct` and `genuine` (how many of them, one number a problem), `greedy` (0 or 1),
            teacher tokens generated and scored, examples, updates, minutes, and the learning curve.
        """
        path = self.file(arm)
        if not path.exists():
            began = time.monotonic()
            lm, about = self._trained(arm) if arm in TRAINED else ({"student": self.student, "teacher": self.teacher}[arm], {})
            measured = self._measure(arm, lm)
            write_text(path, json.dumps({**measured, **about, "minutes": round((time.monotonic() - began) / 60, 2)}) + "\n")
        return json.loads(path.read_text(encoding="utf-8"))

    def _trained(self, arm: str) -> tuple[LM, dict[str, Any]]:
        data, c = getattr(self.teaching, arm)(), self.config
        home = self.folder.path / "5-students" / arm
        with self.folder.bar(f"train {arm}", c.pace.updates, unit="update") as bar:
            lm = pace.distill(self.student, self.task, data.stages, c.pace, c.seed, folder=home, probe=self.probe,
                              progress=lambda done, _: bar.update(done - bar.n))
        curve = pace.read_curve(home)
        return lm, {"generated": data.generated, "scored": data.scored, "examples": {s["stage"]: s["examples"] for s in curve},
                    "updates": sum(s["updates"] for s in curve), "curve": curve}

    def _measure(self, arm: str, lm: LM) -> dict[str, Any]:
        """Eight (`eval_n`) sampled solutions and a greedy one of each problem; the same seeds for every arm."""
        out: dict[str, Any] = {"n": self.config.eval_n, "correct": [], "genuine": [], "greedy": []}
        parts = batches(self.problems, self.config.sample.batch)
        with self.folder.bar(f"evaluate {arm}", len(parts)) as bar:
            for number, part in enumerate(parts):
                tried, greedy = (sample(lm, self.task, part, n=n, seed=shard_seed(self.config.seed, "6-eval", number),
                                        sampling=SampleConfig(temperature=temperature, max_new_tokens=LONG_TOKENS))
                                 for n, temperature in ((out["n"], 1.0), (1, 0.0)))
                for i in range(len(part)):
                    mine = tried[i * out["n"] : (i + 1) * out["n"]]
                    out["correct"].append(sum(t.correct for t in mine))
                    out["genuine"].append(sum(is_genuine(lm, self.task, t) for t in mine))
                out["greedy"] += [int(t.correct) for t in greedy]
                bar.update()
        return out


def exam(material: Material, task: Task, limit: int) -> list[Problem]:
    """What every arm is evaluated on: `limit` held-out problems of each kind (0 for all), and a third as many long ones."""
    return [*limit_by_kind(load_problems(material.heldout, task), limit),
            *limit_by_kind(load_problems(material.long, task), -(-limit // 3))]


def experiment(plan: Sequence[tuple[str, Path, int]], out: str | Path, material: Material, task: Task,
               config: Callable[[int], HealConfig], arms: Sequence[str] = ARMS, *, quiet: bool = False,
               command: str = "") -> dict[str, Any]:
    """Run what is missing of every (pair's name, pair's folder, seed) in `plan`, and collect the record.

    Args:
        config: the configuration for a seed.
        arms: which arms to run; what a seed has finished of the others is collected too.

    Returns:
        `provenance`, `problems` (`kind` and `length`, one entry each), `rows` (means), `differences` (paired), `runs`.

    Raises:
        InputError: there is no such arm, a seed stands twice, the folder of a seed belongs to other settings, or this is
            one of several processes.
    """
    if processes().num_processes > 1:
        raise InputError("an experiment runs in one process; to use more, start the command several times with other --seeds "
                         "and the same --out, and once more with all of them to collect")
    if unknown := [a for a in arms if a not in ARMS]:
        raise InputError(f"there is no arm {', '.join(unknown)}; the arms are {', '.join(ARMS)}")
    if len({seed for *_, seed in plan}) < len(plan):
        raise InputError("a seed stands twice: seeds name the folders, so give each pair seeds of its own")
    began, runs = time.monotonic(), []
    for pair, folder, seed in plan:
        c = config(seed)
        models = {name: load_lm(folder / name) for name in ("teacher", "student")}
        problems = {name: load_problems(path, task) for name, path in vars(material).items()}
        what = identity(c, task, models, problems)
        trial = Trial(RunFolder(Path(out) / f"seed-{seed}", what, quiet), folder, task, c, material)
        runs += [{"pair": pair, "seed": seed, "arm": arm, **trial.result(arm)} for arm in ARMS if arm in arms or trial.has(arm)]
    tested = exam(material, task, config(0).eval_limit)
    record = {"problems": {"kind": [p.kind for p in tested], "length": [p.length for p in tested]}, "runs": runs}
    origin = provenance(trial.teacher, command, [seed for *_, seed in plan], began)
    return {"provenance": {**origin, "minutes": round(sum(r["minutes"] for r in runs), 1)}, **record, **summary(record)}


def summary(record: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """`rows` and `differences` of a record: over all pairs, and (sampled pass@1 by kind only) for each pair by itself."""
    out: dict[str, list[dict[str, Any]]] = {"rows": [], "differences": []}
    pairs = list(dict.fromkeys(r["pair"] for r in record["runs"]))
    for pair in ["all", *pairs] if len(pairs) > 1 else ["all"]:
        results = Results(record, pair)
        for name, rows in (("rows", results.rows()), ("differences", results.differences())):
            out[name] += [{"pair": pair, **r.to_dict()} for r in rows
                          if r.metric == "pass@1" and "," not in r.kind or pair == "all"]
    return out
