"""PACE, Progressive Answer-guided Curriculum Evolution: what a student learns, in which order.

1. Foundation: what the teacher solves alone.
2. Guided: problems that it mostly fails, solved with the answer in view, filtered by PURE.
3. Repaired: GEAR's repairs, filtered by PURE.

The student always sees the *plain* prompt: no answer, no hint.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, List, Value, concatenate_datasets

from heal_ref.config import PaceConfig, SampleConfig
from heal_ref.evaluate import accuracy
from heal_ref.model import LM, processes
from heal_ref.records import InputError, Problem, Trajectory, light, select
from heal_ref.tasks.base import Task
from heal_ref.train import (  # noqa: F401
    check_training,
    claim,
    data_set,
    examples_of,
    read_curve,
    train_stage,
)

STAGES = ("foundation", "guided", "repaired")
ROW = Features({**dict.fromkeys(("prompt", "completion", "id", "source", "question", "answer"),
                                Value("string")), "token_ids": List(Value("int32"))})


def solved_share(base: Sequence[Trajectory]) -> dict[str, float]:
    """Share of correct samples, by problem id."""
    tried, right = Counter[str](), Counter[str]()
    for t in light(base):
        tried[t.problem.id] += 1
        right[t.problem.id] += t.correct
    return {key: right[key] / count for key, count in tried.items()}


def chosen(trajectories: Sequence[Trajectory], limit: int) -> list[int]:
    """The numbers of the first `limit` correct trajectories per problem, no completion twice."""
    first: dict[str, dict[bytes, int]] = {}  # problem -> a hash of each completion -> its number
    for i, t in enumerate(light(trajectories)):
        if t.correct:
            text = hashlib.blake2b(t.text.encode(), digest_size=16).digest()
            first.setdefault(t.problem.id, {}).setdefault(text, i)
    return [i for mine in first.values() for i in list(mine.values())[:limit]]


def build_stages(base: Sequence[Trajectory], guided: Sequence[Trajectory],
                 repaired: Sequence[Trajectory], config: PaceConfig | None = None,
                 folder: str | Path | None = None) -> dict[str, Dataset]:
    """The stages "foundation", "guided" and "repaired": data sets with one row per example.

    Paper: "a three-stage distillation strategy that organizes training from foundational alignment
    to frontier breakthrough". What enters which stage is our reading. Columns: `prompt` (plain),
    `completion`, `id`, `question`, `answer`, `source`, `token_ids`. TRL's trainer takes them; give
    it ids (`train.encode_example`) if prompts hold a BOS token, since it adds one to texts.

    Args:
        base: all of the teacher's own samples; the correct ones are the foundation.
        guided: answer-guided samples that passed PURE; used for problems whose base samples are
            correct in less than `config.guided_below`.
        repaired: GEAR's repairs that passed PURE.
        folder: write the examples to files there, which are mapped into memory; without it they
            are in memory.

    Example:
        >>> import heal_ref as heal
        >>> teacher, task = heal.load_lm(heal.DATA / "teacher"), heal.ClockTask()
        >>> base = heal.sample(teacher, task, [heal.Problem("p", "Start 5; + 3; * 4", "9")], n=1)
        >>> list(heal.build_stages(base, [], []))
        ['foundation', 'guided', 'repaired']
    """
    config = config or PaceConfig()
    solved = solved_share(base)
    hard = select(guided, [i for i, t in enumerate(light(guided))
                           if solved.get(t.problem.id, 0.0) < config.guided_below])
    stages: dict[str, Dataset] = {}
    parts: list[Dataset] = []
    for name, source in zip(STAGES, (base, hard, repaired), strict=True):
        new = select(source, chosen(source, config.per_problem))
        rows = ({"prompt": t.prompt, "completion": t.text, "id": t.problem.id, "source": t.source,
                 "question": t.problem.question, "answer": t.problem.answer,
                 "token_ids": t.token_ids} for t in new)
        data = data_set(rows, ROW, Path(folder) / f"{name}.arrow" if folder else None)
        parts = [*parts, data] if config.cumulative else [data]
        stages[name] = concatenate_datasets(parts)
    return stages


def updates_of(stages: Mapping[str, Dataset], config: PaceConfig) -> dict[str, int]:
    """Updates of each stage with data, by its share: `config.updates` in all.

    Equal shares if no such stage has one. A stage of another name has a whole share.
    """
    shares = dict(zip(STAGES, config.shares, strict=True))
    filled = {name: shares.get(name, 1.0) for name, stage in stages.items() if len(stage)}
    weights = {name: w for name, w in filled.items() if w} or dict.fromkeys(filled, 1.0)
    out, left = {}, config.updates
    for name, weight in weights.items():
        out[name] = min(left, round(config.updates * weight / sum(weights.values())))
        left -= out[name]
    if out:
        out[name] += left  # what rounding left over
    return {name: count for name, count in out.items() if count}


def shuffled(stages: Mapping[str, Dataset]) -> dict[str, Dataset]:
    """The control for the order: all examples of the stages, each once, in one stage "all".

    Example:
        >>> import heal_ref as heal
        >>> one = heal.pace.Dataset.from_list([{"id": "p", "source": "base", "completion": "8"}])
        >>> len(heal.shuffled({"foundation": one, "guided": one})["all"])
        1
    """
    rows = {(r["id"], r["source"], r["completion"]): r for s in stages.values() for r in s}
    return {"all": Dataset.from_list(list(rows.values()))}


@contextmanager
def _removed(folder: str | Path | None) -> Iterator[Path | None]:
    """A place beside a student's folder for what it learns, which goes when it has learnt it."""
    beside = Path(f"{folder}.examples") if folder else None
    try:
        yield beside
    finally:
        if beside and processes().is_main_process:
            shutil.rmtree(beside, ignore_errors=True)


def distill(student: LM, task: Task, stages: Mapping[str, Dataset],
            config: PaceConfig | None = None, seed: int = 0, *, folder: str | Path | None = None,
            probe: Sequence[Problem] = (), sampling: SampleConfig | None = None,
            progress: Any = None) -> LM:
    """Train `student` through the stages, each starting from what the last one left.

    A student that was loaded stays as it is: a copy is trained. One that loads itself
    (`memory.lazy_lm`) is trained itself, so that its weights are in memory once.

    Paper: "organizes training from foundational alignment to frontier breakthrough"; "RL-free", so
    by supervised fine-tuning alone; of {"all": stages["foundation"]} it is rejection-sampling
    fine-tuning. The student may have another tokenizer and template (`train.examples_of`).

    Args:
        task: the one that made the prompts of the stages.
        folder: keep each stage's student there and resume from it; several processes need one. The
            result loads its weights from there when they are first used.
        probe: problems whose greedy accuracy is the learning curve (`read_curve`), measured first,
            every `config.curve_every` updates and after each stage, at `sampling`'s length.
        progress: called as `progress(done, total)` after each update, over all stages.

    With `config.lora` adapters are trained (`heal_ref.lora`), and the student that comes back has
    them merged. InputError if there is nothing to train on, the stages are not for this student, or
    the folder holds others; its subclass `train.TrainingError` if the loss becomes NaN or infinite.

    Example:
        >>> import heal_ref as heal
        >>> student, task = heal.load_lm(heal.DATA / "student"), heal.ClockTask()
        >>> row = {"id": "p", "prompt": "Hint: ", "completion": "We start at 5."}
        >>> stages = {"all": heal.pace.Dataset.from_list([row])}
        >>> heal.distill(student, task, stages, heal.PaceConfig(updates=2, batch=4)).model.dtype
        torch.float32
    """
    config = config or PaceConfig()
    check_training(student, config)
    plan = updates_of(stages, config)
    if not plan:
        raise InputError("there is nothing to train on: every stage is empty, since no solution in "
                         "them is correct or none passed PURE; sample more, or easier problems")
    lm, own, done = student, task.for_tokenizer(student.tokenizer), 0
    before: Path | None = None

    def report(step: int, _: int) -> None:
        if progress is not None:
            progress(done + step, config.updates)

    def measure(lm: LM) -> dict[str, float]:
        return accuracy(lm, own, probe, sampling)

    with tempfile.TemporaryDirectory() as scratch, _removed(folder) as beside:
        # 1) What the student learns in all stages, so that faults show at once.
        data = {name: examples_of(student, task, stages[name], config.thoughts,
                                  beside and beside / f"{name}.arrow") for name in plan}
        # 2) One stage after the other.
        home = Path(folder or scratch)
        claim(home, student, data, config, seed)
        for number, (name, updates) in enumerate(plan.items(), start=1):
            lm = train_stage(lm, data[name], home / f"{number}-{name}", config, updates,
                             seed=seed + number - 1, before=before, base=student, progress=report,
                             measure=measure if probe else None,
                             save_as=student.dtype if number == len(plan) else None)
            done, before = done + updates, home / f"{number}-{name}"
        if folder is None:
            lm = lm.alone()  # loaded, before the folder is gone
    return lm
