"""The whole method as one resumable run.

problems -> base samples -> repairs and answer-guided samples -> PURE scores -> stages -> students
-> evaluation -> report. Everything that is sampled or scored is a set of shards (`folder.py`).
"""

import json
import platform
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import transformers

from heal_ref import gear, pace, pure, records
from heal_ref.config import GearConfig, HealConfig, SampleConfig
from heal_ref.evaluate import rows_of
from heal_ref.generation import sample
from heal_ref.memory import lazy_lm
from heal_ref.model import LM
from heal_ref.records import Problem, PureScore, Trajectory, by_problem, limit_by_kind
from heal_ref.run.folder import RunFolder, batches, identity, rendered
from heal_ref.run.phases import Phases
from heal_ref.run.sources import read_problems, whole
from heal_ref.tasks.base import Task

PROBE = 40  # held-out problems per kind on the learning curve: shown, never used to choose


@dataclass(frozen=True)
class RunSpec:
    """What a run is made of: models, sources of problems and how they are read, settings."""

    teacher: str
    student: str
    train: str
    heldout: str
    config: HealConfig
    columns: Mapping[str, str] = field(default_factory=dict)
    split: str = "train"
    heldout_split: str = "train"
    name: str | None = None

    def read(self, task: Task) -> tuple[list[Problem], list[Problem], str]:
        """Training and held-out problems as the sources are now, and how answers were read;
        InputError with one line for each mistake."""
        train = read_problems(self.train, task, self.columns, self.split, self.name)
        heldout = read_problems(self.heldout, task, self.columns, self.heldout_split, self.name)
        whole(train, heldout)
        return (limit_by_kind(train.problems, self.config.train_limit),
                limit_by_kind(heldout.problems, self.config.eval_limit),
                f"{train.rules}\n{heldout.rules}")


@dataclass
class Method:
    """GEAR, PURE and the sampling around them, for one teacher; each step is a set of shards."""

    folder: RunFolder
    teacher: LM
    task: Task
    config: HealConfig

    def sampled(self, problems: Sequence[Problem], stage: str = "1-base", n: int | None = None,
                sampling: SampleConfig | None = None, guided: bool = False) -> list[Trajectory]:
        """n samples per problem; number and sampling are the configured ones if not given."""
        c, sampling = self.config, sampling or self.config.sample
        return self.folder.shards(stage, batches(problems, c.sample.batch), lambda part, seed: (
            sample(self.teacher, self.task, part, n or c.sample.n, seed=seed, sampling=sampling,
                   guided=guided)), c.seed)

    def guided(self, base: Sequence[Trajectory]) -> list[Trajectory]:
        """Answer-guided samples of the problems that the teacher mostly fails."""
        c, solved = self.config.pace, pace.solved_share(base)
        hard = [g[0].problem for key, g in by_problem(base).items() if solved[key] < c.guided_below]
        return self.sampled(hard, "2-guided", c.per_problem, guided=True)

    def repaired(self, base: Sequence[Trajectory], stage: str = "3-repaired",
                 config: GearConfig | None = None, cut: gear.Cut | None = None
                 ) -> list[Trajectory]:
        """GEAR's repairs by the configured reading or by another one, unusable hints included;
        `cut`: at a step of the caller's."""
        c = self.config
        parts = batches(base, c.sample.batch * c.sample.n)  # whole problems
        return self.folder.shards(stage, parts, lambda part, seed: gear.repair(
            self.teacher, self.task, part, config or c.gear, seed, sampling=c.sample, cut=cut),
            c.seed)

    def scored(self, stage: str, trajectories: Sequence[Trajectory]) -> list[PureScore]:
        """PURE scores of the correct ones."""
        c, right = self.config, [t for t in trajectories if t.correct]
        return self.folder.shards(stage, batches(right, 256), lambda part, seed: pure.pure_scores(
            self.teacher, self.task, part, c.pure, seed, sampling=c.sample), c.seed)


def run(spec: RunSpec, out: str | Path, task: Task, *, lms: Sequence[LM] = (), quiet: bool = False,
        command: str = "") -> dict[str, Any]:
    """Run the whole method in folder `out`, or what is left of it.

    A model is in memory only while a phase has work for it: the teacher while it samples and
    scores, a student while it is trained, each of the four while it is evaluated.

    Args:
        lms: teacher and student, if they are loaded already: these stay in memory, unless they
            are of `memory.lazy_lm`.

    Returns:
        The report, also in `out`/report.json: `rows`, `notes` and `provenance`.
    """
    # 1) what the run is made of, and its folder
    phases, began, c = Phases(), time.monotonic(), spec.config
    train_set, heldout, _ = spec.read(task)
    teacher, student = lms or (lazy_lm(spec.teacher), lazy_lm(spec.student))
    what = identity(c, task, {"teacher": teacher, "student": student},
                    {"training": train_set, "held-out": heldout})
    folder = RunFolder(out, what, quiet, lambda: rendered(task, train_set[0]))
    folder.log(f"started; {provenance(teacher, command, c.seed, began)}")
    phases.end("start", folder)

    # 2) what the teacher makes, and what PURE keeps of it
    method = Method(folder, teacher, task, c)
    base = method.sampled(train_set)
    phases.end("sample", folder, sum(t.tokens_spent for t in base))
    guided = method.guided(base)
    phases.end("guided", folder, sum(t.tokens_spent for t in guided))
    repaired = method.repaired(base)
    phases.end("repair", folder, sum(t.tokens_spent for t in repaired))
    reference = method.scored("4-scores/reference", pure.unaided(base))
    scored = {name: method.scored(f"4-scores/{name}", made)
              for name, made in (("guided", guided), ("repaired", repaired))}
    read = [s.trajectory for part in (reference, *scored.values()) for s in part]
    phases.end("score", folder, sum(len(teacher.encode(t.prompt)) + len(t.token_ids) for t in read))
    teacher.free()
    kept = {name: pure.pure_filter(s, c.pure, reference) if reference
            else [one.trajectory for one in s] for name, s in scored.items()}
    stages = pace.build_stages(base, kept["guided"], kept["repaired"], c.pace)
    notes = notes_of(base, guided, repaired, reference)

    # 3) two students; with nothing to learn from, a student stays the base student
    students = {"student": student, "teacher": teacher, "rft": student, "heal": student}
    own_task = task.for_tokenizer(student.tokenizer)
    for arm, data in (("rft", {"foundation": stages["foundation"]}), ("heal", stages)):
        if not any(len(stage) for stage in data.values()):
            notes.append(f"{arm}: there is nothing to train on, so this is the base student")
            continue
        home = folder.path / "5-students" / arm
        with folder.bar(f"5-students/{arm}", c.pace.updates, unit="update") as bar:
            students[arm] = pace.distill(
                student, task, data, c.pace, c.seed, folder=home,
                probe=limit_by_kind(heldout, PROBE), sampling=c.sample,
                progress=lambda done, _, bar=bar: bar.update(done - bar.n))
        phases.end("train", folder, sum(stage.get("tokens", 0) for stage in pace.read_curve(home)))

    # 4) evaluation and report
    tasks = {arm: task if arm == "teacher" else own_task for arm in students}
    rows = evaluated(folder, c, students, tasks, heldout, phases)
    counts = {"train problems": len(train_set), "held-out problems": len(heldout),
              **counts_of(base, guided, repaired), "reference": len(reference),
              "threshold": round(pure.pure_threshold(reference, c.pure), 6) if reference else None,
              **{f"{name} correct": len(s) for name, s in scored.items()},
              **{f"{name} kept": len(k) for name, k in kept.items()},
              **{f"stage {name}": len(data) for name, data in stages.items()}}
    report = {"rows": rows, "notes": notes, "provenance": {
        **provenance(teacher, command, c.seed, began), "config": folder.identity, "counts": counts,
        "phases": phases.beside_the_plan(folder)}}
    if folder.state.is_main_process:
        records.write_text(folder.path / "report.json",
                           json.dumps(report, indent=1, allow_nan=False) + "\n")
    folder.log("; ".join(["finished: report.json", *notes]))
    return report


def evaluated(folder: RunFolder, c: HealConfig, lms: Mapping[str, LM], tasks: Mapping[str, Task],
              problems: Sequence[Problem], phases: Phases) -> list[dict[str, Any]]:
    """The rows of each arm, at temperature 1 and greedily; its model is in memory meanwhile."""
    rows: list[dict[str, Any]] = []
    once = SampleConfig(max_new_tokens=c.sample.max_new_tokens)
    for arm, lm in lms.items():
        if arm != "student" and lm is lms["student"]:  # untrained, so measured already
            rows += [row | {"arm": arm} for row in rows if row["arm"] == "student"]
            continue
        its = Method(folder, lm, tasks[arm], c)
        many = its.sampled(problems, f"6-eval/{arm}", c.eval_n, once)
        greedy = its.sampled(problems, f"6-eval/{arm}-greedy", 1, replace(once, temperature=0.0))
        rows += [row.to_dict() for row in rows_of(arm, lm, its.task, many, greedy)]
        phases.end("evaluate", folder, sum(t.tokens_spent for t in (*many, *greedy)))
        lm.free()
    return rows


def notes_of(base: Sequence[Trajectory], guided: Sequence[Trajectory],
             repaired: Sequence[Trajectory], reference: Sequence[PureScore]) -> list[str]:
    """What a reader of the results must know: parts of the method that had nothing to do."""
    notes = []
    if not any(t.correct for t in base):
        notes.append("the teacher solved no training problem by itself")
    if not reference:
        notes.append("PURE is off: without an unaided correct solution there is no threshold, so "
                     "nothing was filtered")
    if not guided and not repaired:
        notes.append("the teacher solved every training problem often enough: nothing was guided "
                     "or repaired")
    elif all(t.hint is None for t in repaired):
        notes.append("GEAR repaired nothing")
    return notes


def counts_of(base: Sequence[Trajectory], guided: Sequence[Trajectory],
              repaired: Sequence[Trajectory]) -> dict[str, int]:
    """How many trajectories there are, what became of GEAR's hints, and the tokens of all that."""
    unusable = Counter(t.note for t in repaired if t.hint is None)
    return {"base": len(base), "base correct": sum(t.correct for t in base), "guided": len(guided),
            "repaired": sum(t.hint is not None for t in repaired),
            "paths repaired": len({(t.problem.id, t.parent) for t in repaired}),
            "hints unusable": unusable.total(),
            **{f"hints unusable: {why}": count for why, count in sorted(unusable.items())},
            "teacher tokens": sum(t.tokens_spent for t in [*base, *guided, *repaired])}


def provenance(lm: LM, command: str, seed: int | list[int], began: float) -> dict[str, Any]:
    """Where a result comes from; `began` is what time.monotonic() said at the start."""
    return {"command": command, "commit": records.source_commit(), "seed": seed,
            "torch": torch.__version__, "transformers": transformers.__version__,
            "device": str(lm.device), "machine": platform.machine(),
            "minutes": round((time.monotonic() - began) / 60, 2)}
