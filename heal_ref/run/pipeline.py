"""The whole method as one resumable run.

problems -> base samples -> repairs and answer-guided samples -> PURE scores -> stages -> students
-> evaluation -> report. Everything that is sampled or scored is a set of shards (`folder.py`).
"""

import json
import platform
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset

from heal_ref import gear, pace, pure, records
from heal_ref.config import GearConfig, HealConfig, SampleConfig, doubts
from heal_ref.evaluate import rows_of
from heal_ref.generation import sample
from heal_ref.memory import lazy_lm
from heal_ref.model import LM
from heal_ref.records import Problem, PureScore, Trajectory, light, trajectories_of
from heal_ref.run.folder import RunFolder, batches, identity, rendered
from heal_ref.run.phases import Phases
from heal_ref.run.shards import Records
from heal_ref.run.sources import read_problems, whole
from heal_ref.tasks.base import Task
from heal_ref.train import check_training

PROBE = 40  # held-out problems per kind on the learning curve: shown, never used to choose
COPY = "# The settings of this run, to read and for --config; what counts is config.json.\n"


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
        return (records.limit_by_kind(train.problems, self.config.train_limit),
                records.limit_by_kind(heldout.problems, self.config.eval_limit),
                f"{train.rules}\n{heldout.rules}")


@dataclass
class Method:
    """GEAR, PURE and the sampling around them, for one teacher; each step is a set of shards."""

    folder: RunFolder
    teacher: LM
    task: Task
    config: HealConfig

    def sampled(self, problems: Sequence[Problem], stage: str = "1-base", n: int | None = None,
                sampling: SampleConfig | None = None, guided: bool = False) -> Records:
        """n samples per problem; number and sampling are the configured ones if not given."""
        c, sampling = self.config, sampling or self.config.sample
        return self.folder.shards(stage, batches(problems, c.sample.batch), lambda part, seed: (
            sample(self.teacher, self.task, part, n or c.sample.n, seed=seed, sampling=sampling,
                   guided=guided)), c.seed)

    def guided(self, base: Sequence[Trajectory]) -> Records:
        """Answer-guided samples of the problems that the teacher mostly fails."""
        c, solved = self.config.pace, pace.solved_share(base)
        hard = {t.problem.id: t.problem for t in light(base)
                if solved[t.problem.id] < c.guided_below}
        return self.sampled(list(hard.values()), "2-guided", c.per_problem, guided=True)

    def repaired(self, base: Sequence[Trajectory], stage: str = "3-repaired",
                 config: GearConfig | None = None, cut: gear.Cut | None = None) -> Records:
        """GEAR's repairs by the configured reading or by another one, unusable hints included;
        `cut`: at a step of the caller's."""
        c = self.config
        parts = batches(base, c.sample.batch * c.sample.n)  # whole problems
        return self.folder.shards(stage, parts, lambda part, seed: gear.repair(
            self.teacher, self.task, part, config or c.gear, seed, sampling=c.sample, cut=cut),
            c.seed)

    def scored(self, stage: str, trajectories: Sequence[Trajectory]) -> Records:
        """PURE scores of the correct ones, which must be in shards."""
        c, rows = self.config, [i for i, t in enumerate(light(trajectories)) if t.correct]
        right = records.select(trajectories, rows)
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
    check_training(student, c.pace)
    what = identity(c, task, {"teacher": teacher, "student": student},
                    {"training": train_set, "held-out": heldout})
    folder = RunFolder(out, what, quiet, lambda: rendered(task, train_set[0]))
    write_settings(folder, c)
    folder.log(f"started; {provenance(teacher, command, c.seed, began)}")
    phases.end("start", folder)

    # 2) what the teacher makes, and what PURE keeps of it
    method = Method(folder, teacher, task, c)
    base = method.sampled(train_set)
    phases.end("sample", folder, tokens_of(base))
    guided = method.guided(base)
    phases.end("guided", folder, tokens_of(guided))
    repaired = method.repaired(base)
    phases.end("repair", folder, tokens_of(repaired))
    reference = method.scored("4-scores/reference", pure.unaided(base))
    scored = {name: method.scored(f"4-scores/{name}", made)
              for name, made in (("guided", guided), ("repaired", repaired))}
    read = chain(*(light(trajectories_of(part)) for part in (reference, *scored.values())))
    phases.end("score", folder, sum(len(teacher.encode(t.prompt)) + t.steps[-1][1] for t in read))
    teacher.free()
    kept = {name: pure.pure_filter(s, c.pure, reference) if reference
            else trajectories_of(s) for name, s in scored.items()}
    scratch = folder.path / "5-stages"  # made anew by each launch
    stages = pace.build_stages(base, kept["guided"], kept["repaired"], c.pace, scratch)
    notes = [*doubts(c), *notes_of(base, guided, repaired, reference)]

    # 3) two students; with nothing to learn from, a student stays the base student
    students = {"student": student, "teacher": teacher, "rft": student, "heal": student}
    for arm, data in (("rft", {"foundation": stages["foundation"]}), ("heal", stages)):
        if any(len(stage) for stage in data.values()):
            students[arm] = trained(method, student, arm, data, heldout, phases)
        else:
            notes.append(f"{arm}: there is nothing to train on, so this is the base student")
    folder.state.wait_for_everyone()
    shutil.rmtree(scratch, ignore_errors=True)

    # 4) evaluation, with the settings of sampling and greedily, and report
    own = task.for_tokenizer(student.tokenizer)
    measured = {arm: Method(folder, lm, task if arm == "teacher" else own, c)
                for arm, lm in students.items()}
    rows = rows_of_all(measured, heldout, phases)
    counts = {"train problems": len(train_set), "held-out problems": len(heldout),
              **counts_of(base, guided, repaired), "reference": len(reference),
              "threshold": round(pure.pure_threshold(reference, c.pure), 6) if reference else None,
              **{f"{name} correct": len(s) for name, s in scored.items()},
              **{f"{name} kept": len(k) for name, k in kept.items()},
              **{f"stage {name}": len(data) for name, data in stages.items()}}
    report = {"rows": rows, "notes": notes, "provenance": {
        **provenance(teacher, command, c.seed, began), "evaluation": evaluated(c),
        "config": folder.identity, "counts": counts, "phases": phases.beside_the_plan(folder)}}
    if folder.state.is_main_process:
        records.write_text(folder.path / "report.json",
                           json.dumps(report, indent=1, allow_nan=False) + "\n")
    folder.log("; ".join(["finished: report.json", *notes]))
    return report


def write_settings(folder: RunFolder, config: HealConfig) -> None:
    """The folder's settings.toml."""
    copy, text = folder.path / "settings.toml", COPY + config.to_toml()
    if folder.state.is_main_process and not (copy.exists() and copy.read_bytes() == text.encode()):
        records.write_text(copy, text)


def trained(method: Method, student: LM, arm: str, stages: Mapping[str, Dataset],
            heldout: Sequence[Problem], phases: Phases) -> LM:
    """The student of an arm, with a learning curve on the first held-out problems."""
    c, folder = method.config, method.folder
    home = folder.path / "5-students" / arm
    with folder.bar(f"5-students/{arm}", c.pace.updates, unit="update") as bar:
        lm = pace.distill(student, method.task, stages, c.pace, c.seed, folder=home,
                          probe=records.limit_by_kind(heldout, PROBE), sampling=c.sample,
                          progress=lambda done, _: bar.update(done - bar.n))
    phases.end("train", folder, sum(stage.get("tokens", 0) for stage in pace.read_curve(home)))
    return lm


def rows_of_all(arms: Mapping[str, Method], heldout: Sequence[Problem], phases: Phases
                ) -> list[dict[str, Any]]:
    """The rows of all arms, the base student first; an arm that is still that student has its."""
    rows: list[dict[str, Any]] = []
    base = arms["student"].teacher
    for arm, its in arms.items():
        lm, c = its.teacher, its.config
        if arm != "student" and lm is base:
            rows += [row | {"arm": arm} for row in rows if row["arm"] == "student"]
            continue
        many = its.sampled(heldout, f"6-eval/{arm}", c.eval_n)
        greedy = its.sampled(heldout, f"6-eval/{arm}-greedy", 1,
                             replace(c.sample, temperature=0.0))
        rows += [row.to_dict() for row in rows_of(arm, lm, its.task, many, greedy)]
        phases.end("evaluate", its.folder, tokens_of(many) + tokens_of(greedy))
        lm.free()
    return rows


def evaluated(config: HealConfig) -> str:
    """How the rows of a report are sampled."""
    c = config.sample
    return (f"{config.eval_n} samples per problem at temperature {c.temperature:g} and top_p "
            f"{c.top_p:g}, pass@1_greedy one at temperature 0; at most {c.max_new_tokens} tokens")


def tokens_of(trajectories: Sequence[Trajectory]) -> int:
    """What they cost: all generated tokens, ends of turns and hints included."""
    return sum(t.tokens_spent for t in light(trajectories))


def notes_of(base: Sequence[Trajectory], guided: Sequence[Trajectory],
             repaired: Sequence[Trajectory], reference: Sequence[PureScore]) -> list[str]:
    """What a reader of the results must know: parts of the method that had nothing to do."""
    notes = []
    if not any(t.correct for t in light(base)):
        notes.append("the teacher solved no training problem by itself")
    if not reference:
        notes.append("PURE is off: without an unaided correct solution there is no threshold, so "
                     "nothing was filtered")
    if not guided and not repaired:
        notes.append("the teacher solved every training problem often enough: nothing was guided "
                     "or repaired")
    elif all(t.hint is None for t in light(repaired)):
        notes.append("GEAR repaired nothing")
    return notes


def counts_of(base: Sequence[Trajectory], guided: Sequence[Trajectory],
              repaired: Sequence[Trajectory]) -> dict[str, int]:
    """How many trajectories there are, what became of GEAR's hints, and the tokens of all that."""
    base, guided, repaired = light(base), light(guided), light(repaired)
    unusable = Counter(t.note for t in repaired if t.hint is None)
    return {"base": len(base), "base correct": sum(t.correct for t in base), "guided": len(guided),
            "repaired": len(repaired) - unusable.total(),
            "paths repaired": len({(t.problem.id, t.parent) for t in repaired}),
            "hints unusable": unusable.total(),
            **{f"hints unusable: {why}": count for why, count in sorted(unusable.items())},
            "teacher tokens": sum(map(tokens_of, (base, guided, repaired)))}


def provenance(lm: LM, command: str, seed: int | list[int], began: float) -> dict[str, Any]:
    """Where a result comes from; `began` is what time.monotonic() said at the start."""
    return {"command": command, "commit": records.source_commit(), "seed": seed,
            "torch": torch.__version__, "transformers": transformers.__version__,
            "device": str(lm.device), "machine": platform.machine(),
            "minutes": round((time.monotonic() - began) / 60, 2)}
