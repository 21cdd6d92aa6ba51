"""PACE, Progressive Answer-guided Curriculum Evolution: what the student learns from, and in which order.

Paper: "a three-stage distillation strategy that organizes training from foundational alignment to frontier
breakthrough."

- Stage 1, foundation: what the teacher solves alone. Stage 2, guided: problems it mostly fails, solved with the
  answer shown, filtered by PURE. Stage 3, repaired: GEAR's repairs, filtered by PURE.
- Each stage starts from the student that the stage before it left. Data are cumulative by default.
- The student always sees the *plain* prompt: no answer, no hint.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset

from heal_ref.config import PaceConfig
from heal_ref.evaluate import accuracy
from heal_ref.model import LM, load_lm, processes
from heal_ref.records import InputError, Problem, Trajectory, by_problem, write_text
from heal_ref.tasks.base import Task
from heal_ref.train import encode_example, train

STAGES = ("foundation", "guided", "repaired")


def solved_share(base: Sequence[Trajectory]) -> dict[str, float]:
    """Share of correct samples of each problem, by problem id."""
    return {key: sum(t.correct for t in group) / len(group) for key, group in by_problem(base).items()}


def _capped(trajectories: Sequence[Trajectory], limit: int) -> list[Trajectory]:
    """At most `limit` correct trajectories of each problem, no completion twice."""
    out = []
    for group in by_problem([t for t in trajectories if t.correct]).values():
        out += list({t.text: t for t in reversed(group)}.values())[::-1][:limit]
    return out


def build_stages(base: Sequence[Trajectory], guided: Sequence[Trajectory], repaired: Sequence[Trajectory],
                 config: PaceConfig | None = None) -> dict[str, Dataset]:
    """The three stages, each a `datasets.Dataset` with text columns `prompt` and `completion` (TRL's SFT format).

    Paper: "a three-stage distillation strategy that organizes training from foundational alignment to frontier breakthrough".
    What enters which stage is our reading.

    Args:
        base: all of the teacher's own samples; the correct ones are the foundation.
        guided: answer-guided samples that passed PURE; used for problems solved in less than
            `config.guided_below` of the base samples.
        repaired: GEAR's repairs that passed PURE.

    Returns:
        The stages "foundation", "guided" and "repaired", in order, one row an example, with columns `id` (of the problem) and
        `source` (kind of trajectory) as well. Prompts are plain. With `config.cumulative`, each stage also holds the data of
        the stages before it.

    Example:
        >>> import heal_ref as heal
        >>> teacher, task = heal.load_lm(heal.DATA / "teacher"), heal.ClockTask()
        >>> problems = [heal.Problem("easy", "Start 5; + 3; * 4", "9"), heal.Problem("hard", "Start 5; + 3; # 4; * 2", "17")]
        >>> greedy = heal.SampleConfig(temperature=0.0)
        >>> base = heal.sample(teacher, task, problems, n=1, sampling=greedy)
        >>> repaired = heal.repair(teacher, task, base, heal.GearConfig(continuations=1), sampling=greedy)
        >>> stages = heal.build_stages(base, [], repaired)
        >>> {name: stage["id"][:] for name, stage in stages.items()}
        {'foundation': ['easy'], 'guided': ['easy'], 'repaired': ['easy', 'hard']}
        >>> stages["repaired"]["source"][:]
        ['base', 'repair']
    """
    config = config or PaceConfig()
    solved = solved_share(base)
    sources = (base, [t for t in guided if solved.get(t.problem.id, 0.0) < config.guided_below], repaired)
    stages, rows = {}, list[dict[str, str]]()
    for name, source in zip(STAGES, sources, strict=True):
        new = [{"prompt": t.prompt, "completion": t.text, "id": t.problem.id, "source": t.source}
               for t in _capped(source, config.per_problem)]
        rows = rows + new if config.cumulative else new
        stages[name] = Dataset.from_list(rows)
    return stages


def updates_of(stages: Mapping[str, Dataset], config: PaceConfig) -> dict[str, int]:
    """Updates of each stage; the whole of `config.updates` is spent, empty stages get none."""
    names = [name for name in stages if len(stages[name])]
    shares = dict(zip(STAGES, config.shares, strict=True))
    weights = [shares.get(name, 1.0) for name in names]
    out, spent = {}, 0
    for i, name in enumerate(names):
        last = i == len(names) - 1
        out[name] = config.updates - spent if last else round(config.updates * weights[i] / sum(weights))
        spent += out[name]
    return {name: count for name, count in out.items() if count}


def shuffled(stages: Mapping[str, Dataset]) -> dict[str, Dataset]:
    """The control for the order: everything that the stages hold, each example once, in one stage called "all".

    Nothing is sorted or repeated; the trainer draws batches at random.
    """
    rows = {(r["id"], r["source"], r["completion"]): r for stage in stages.values() for r in stage}
    return {"all": Dataset.from_list(list(rows.values()))}


def distill(student: LM, task: Task, stages: Mapping[str, Dataset], config: PaceConfig | None = None, seed: int = 0, *,
            folder: str | Path | None = None, probe: Sequence[Problem] = (), progress: Any = None) -> LM:
    r"""Train a copy of `student` through the stages, each one warm-started by the one before; `student` stays as it was.

    Paper: "organizes training from foundational alignment to frontier breakthrough"; by supervised fine-tuning alone, as the
    paper is "RL-free". Any mapping of datasets will do: `{"all": stages["foundation"]}` is rejection-sampling fine-tuning, and
    `shuffled(stages)` is the same data without an order.

    Args:
        folder: keep each stage's student and its log there, and go on from the last finished stage, or from the last
            checkpoint within one; without it nothing is kept.
        probe: problems on which greedy accuracy by kind is measured before the first update, after every
            `config.curve_every` and at the end of each stage; `read_curve(folder)` reads it.
        progress: called as `progress(done, total)` after each update, over all stages.

    Raises:
        InputError: there is nothing to train on, or the student's tokenizer cannot write the data.
        TrainingError: the loss became NaN or infinite.

    Example:
        >>> import heal_ref as heal
        >>> from datasets import Dataset
        >>> student, task = heal.load_lm(heal.DATA / "student"), heal.ClockTask()
        >>> prompt = task.prompt(heal.Problem("p", "Start 5; + 3; # 4", "20"))
        >>> solution = "We start at 5.\n\nThen compute 5 + 3 = 8.\n\nThen compute 8 # 4 = 20.\n\nSo the answer is \\boxed{20}."
        >>> stages = {"repaired": Dataset.from_list([{"id": "p", "prompt": prompt, "completion": solution}])}
        >>> trained = heal.distill(student, task, stages, heal.PaceConfig(updates=2, batch=4, warmup=0))
        >>> pair = student.encode(prompt), student.encode(solution)
        >>> before, after = (sum(heal.text_stats(lm, [pair])[0][1]) for lm in (student, trained))
        >>> after > before  # two updates on a solution make it more probable
        True
    """
    config = config or PaceConfig()
    plan = updates_of(stages, config)
    if not plan:
        raise InputError("there is nothing to train on: every stage is empty. Did the teacher solve any problem?")
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(folder) if folder else Path(scratch)
        lm, done, total = LM(copy.deepcopy(student.model), student.tokenizer, student.max_batch), 0, sum(plan.values())
        for number, (name, updates) in enumerate(plan.items()):
            finished = home / f"{number + 1}-{name}"
            processes().wait_for_everyone()  # all processes look before one of them writes
            if finished.exists():
                shutil.rmtree(f"{finished}.training", ignore_errors=True)  # what a kill just after the rename left
                lm = load_lm(finished, max_batch=student.max_batch)
            else:
                report = progress and partial(_report, progress, done, total)
                lm = _train_stage(lm, task, stages[name], config, updates, seed + number, finished, probe, report)
            done += updates
        return lm


def _report(progress: Any, before: int, total: int, done: int, _: int) -> None:
    """Progress within a stage as progress over all stages."""
    progress(before + done, total)


def _train_stage(lm: LM, task: Task, stage: Dataset, config: PaceConfig, updates: int, seed: int, finished: Path,
                 probe: Sequence[Problem], progress: Any) -> LM:
    """Train `lm` on one stage; the student that it leaves is in folder `finished`, with its log."""
    data = _writable(lm.tokenizer, [{**encode_example(lm.tokenizer, row["prompt"], row["completion"]), "name": row["id"]}
                                    for row in stage])
    work, (number, name) = finished.with_name(f"{finished.name}.training"), finished.name.split("-", 1)
    measure = partial(accuracy, lm, task, probe) if probe else None
    log: list[dict[str, Any]] = [{"step": 0, "accuracy": measure()}] if measure and number == "1" else []
    log += train(lm.model, lm.tokenizer, data, folder=work, updates=updates, batch=config.batch, seed=seed,
                 learning_rate=config.learning_rate, warmup=min(config.warmup, updates),
                 accumulate=parts_of_a_batch(config, lm), save_every=config.save_every, progress=progress,
                 measure=measure, measure_every=config.curve_every, save_to=work / "done")
    for row in log:  # a resumed log comes back with its keys sorted
        if "accuracy" in row:
            row["accuracy"] = {kind: row["accuracy"][kind] for kind in dict.fromkeys(p.kind for p in probe)}
    curve = {"stage": name, "updates": updates, "examples": len(data), "log": log}
    _keep(lm, curve, work, finished)
    # With FSDP, this process's model is only a part of the student.
    return load_lm(finished, max_batch=lm.max_batch) if processes().num_processes > 1 else lm


def parts_of_a_batch(config: PaceConfig, lm: LM) -> int:
    """In how many parts a batch is computed: as configured, or more where the model takes fewer sequences at once."""
    everyone = processes().num_processes
    return next((n for n in range(config.accumulate, config.batch + 1)
                 if config.batch % (n * everyone) == 0 and config.batch // (n * everyone) <= lm.max_batch), config.accumulate)


def read_curve(folder: str | Path) -> list[dict[str, Any]]:
    """What `distill` kept of each finished stage in `folder`, in order: `stage`, `updates`, `examples` and its `log`, lines
    of `step` (counted within the stage) with `loss` or with `accuracy` by kind."""
    return [json.loads(f.read_text(encoding="utf-8")) for f in sorted(Path(folder).glob("*/curve.json"))]


def _keep(lm: LM, curve: Mapping[str, Any], work: Path, finished: Path) -> None:
    """Add tokenizer and log to a stage's saved student; the folder appears complete or not at all. One process writes."""
    if processes().is_main_process:
        lm.tokenizer.save_pretrained(work / "done")
        write_text(work / "done" / "curve.json", json.dumps(curve) + "\n")
        os.replace(work / "done", finished)
        shutil.rmtree(work)
    processes().wait_for_everyone()


def check_tokenizers(teacher: LM, student: LM) -> None:
    """Stop before any work is done if the two models do not share a tokenizer.

    Raises:
        InputError: with both sizes, the reason and the remedy.
    """
    theirs, ours = (lm.tokenizer.get_vocab() for lm in (teacher, student))
    if theirs != ours:
        strange = len(theirs.keys() - ours.keys())
        raise InputError(
            f"teacher and student have different tokenizers ({len(theirs)} and {len(ours)} tokens; {strange} of the "
            "teacher's are unknown to the student or stand elsewhere): end-of-text, templates and steps would not mean the "
            "same to both. Take two models of one family, or write the stages to files (they are plain text) and train "
            "the student on them by themselves")


def _writable(tokenizer: Any, data: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The examples that the student's tokenizer can write. A teacher at temperature 1 now and then samples what no text
    should hold (two numbers without a space); more than one such example in a hundred is no accident."""
    unknown = tokenizer.unk_token_id
    good = [row for row in data if unknown not in row["input_ids"]]
    lost = len(data) - len(good)
    if lost > 0.01 * len(data):
        raise InputError(f"the student's tokenizer ({len(tokenizer)} tokens) cannot write {lost} of {len(data)} examples: some "
                         "of their text becomes the unknown token; use a student whose tokenizer covers the task")
    if lost:
        warnings.warn(f"{lost} of {len(data)} examples are left out: the student's tokenizer cannot write them",
                      RuntimeWarning, stacklevel=3)
    return good
