"""PACE, Progressive Answer-guided Curriculum Evolution: what the student learns from, and in which order.

Paper: "a three-stage distillation strategy that organizes training from foundational alignment to frontier
breakthrough."

- Stage 1, foundation: what the teacher solves alone. Stage 2, guided: problems it mostly fails, solved with the
  answer shown, filtered by PURE. Stage 3, frontier: GEAR's repairs, filtered by PURE.
- Each stage starts from the student that the stage before it left. Data are cumulative by default.
- The student always sees the *plain* prompt: no answer, no hint.
- `train` is transformers' Trainer with a few properties pinned: prompt masked, end of text learnt, a NaN loss
  stops, and a checkpoint counts only once it is complete.
"""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import set_seed

from heal_ref.config import PaceConfig, SampleConfig
from heal_ref.lm import LM, load_lm, sample
from heal_ref.records import InputError, Problem, Trajectory, by_problem, write_text
from heal_ref.tasks import Task

IGNORE = -100  # label of a position that is not learnt


class TrainingError(RuntimeError):
    """Training cannot go on: the message says at which update and why."""


def encode_example(tokenizer: Any, prompt: str, completion: str | Sequence[int]) -> dict[str, list[int]]:
    """`input_ids` and `labels` (both T) of one example: prompt masked, completion and end of text learnt."""
    context = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    if isinstance(completion, str):
        completion = tokenizer(completion, add_special_tokens=False)["input_ids"]
    target = [*completion, tokenizer.eos_token_id]
    return {"input_ids": context + target, "labels": [IGNORE] * len(context) + target}


def collate(pad_token_id: int) -> Any:
    """A collator that pads on the right: ids with `pad_token_id`, labels with -100, mask with 0. By length, so
    that an end-of-text token that doubles as padding stays in the loss."""

    def pad(rows: Sequence[Mapping[str, list[int]]]) -> dict[str, torch.Tensor]:
        longest = max(len(r["input_ids"]) for r in rows)

        def stack(name: str, fill: int) -> torch.Tensor:
            return torch.tensor([list(r[name]) + [fill] * (longest - len(r[name])) for r in rows])

        mask = torch.tensor([[1] * len(r["input_ids"]) + [0] * (longest - len(r["input_ids"])) for r in rows])
        return {"input_ids": stack("input_ids", pad_token_id), "labels": stack("labels", IGNORE), "attention_mask": mask}

    return pad


class _Guard(TrainerCallback):
    """Marks complete checkpoints, stops on a loss that is not a number, feeds our progress bar."""

    def __init__(self, progress: Any = None):
        self.progress = progress

    def on_save(self, args, state, control, **_):
        (Path(args.output_dir) / f"checkpoint-{state.global_step}" / "COMPLETE").touch()

    def on_step_end(self, args, state, control, **_):
        if self.progress is not None:
            self.progress(state.global_step, state.max_steps)

    def on_log(self, args, state, control, logs=None, **_):
        if logs and not math.isfinite(logs.get("loss", 0.0)):
            raise TrainingError(f"the loss is {logs['loss']} at update {state.global_step}: training stopped. "
                                "Lower the learning rate, or look for NaN weights in the starting model.")


def last_complete_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end; incomplete ones are removed."""
    best = None
    for path in sorted(folder.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1])):
        if (path / "COMPLETE").exists():
            best = path
        else:
            shutil.rmtree(path)
    return best


def train(model: Any, tokenizer: Any, data: Any, *, folder: Path, updates: int, batch: int, learning_rate: float,
          warmup: int = 0, seed: int = 0, save_every: int = 0, progress: Any = None) -> list[float]:
    """Fine-tune `model` in place for a number of updates; returns the logged losses (one every 10 updates).

    Args:
        data: a map-style dataset of `{"input_ids", "labels"}`.
        folder: where checkpoints go; an interrupted call with the same folder goes on from the last complete one.
        save_every: updates between checkpoints, 0 for none.
        progress: called as `progress(done, total)` after each update.

    Raises:
        TrainingError: the loss became NaN or infinite.
    """
    set_seed(seed)
    args = TrainingArguments(
        output_dir=str(folder), max_steps=updates, per_device_train_batch_size=batch, learning_rate=learning_rate,
        warmup_steps=warmup, lr_scheduler_type="cosine", weight_decay=0.01, adam_beta2=0.98, seed=seed, data_seed=seed,
        logging_steps=10, logging_nan_inf_filter=False, report_to="none", disable_tqdm=True, log_level="error",
        save_strategy="steps" if save_every else "no", save_steps=max(save_every, 1), save_total_limit=2,
        dataloader_pin_memory=False, train_sampling_strategy="group_by_length", remove_unused_columns=False)
    trainer = Trainer(model=model, args=args, train_dataset=data, data_collator=collate(tokenizer.pad_token_id),
                      callbacks=[_Guard(progress)])
    for callback in list(trainer.callback_handler.callbacks):
        if type(callback).__name__ in ("PrinterCallback", "ProgressCallback", "NotebookProgressCallback"):
            trainer.remove_callback(type(callback))
    checkpoint = last_complete_checkpoint(Path(folder)) if save_every else None
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    model.eval()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


# ---------------------------------------------------------------------------------------------- stages

STAGES = ("foundation", "guided", "frontier")


def solved_share(base: Sequence[Trajectory]) -> dict[str, float]:
    """Share of correct samples of each problem, by problem id."""
    return {key: sum(t.correct for t in group) / len(group) for key, group in by_problem(base).items()}


def _capped(trajectories: Sequence[Trajectory], limit: int) -> list[Trajectory]:
    """At most `limit` correct trajectories of each problem, the first ones, no completion twice."""
    out = []
    for group in by_problem([t for t in trajectories if t.correct]).values():
        out += list({t.text: t for t in reversed(group)}.values())[::-1][:limit]
    return out


def build_stages(base: Sequence[Trajectory], hinted: Sequence[Trajectory], repaired: Sequence[Trajectory],
                 config: PaceConfig | None = None) -> dict[str, Dataset]:
    """The three stages, each a `datasets.Dataset` with text columns `prompt` and `completion` (TRL's SFT format).

    Args:
        base: all of the teacher's own samples; the correct ones are the foundation.
        hinted: answer-guided samples that passed PURE; used for problems solved in less than
            `config.guided_below` of the base samples.
        repaired: GEAR's repairs that passed PURE.

    Prompts are plain. With `config.cumulative`, each stage also holds the data of the stages before it.
    """
    config = config or PaceConfig()
    solved = solved_share(base)
    sources = (base, [t for t in hinted if solved.get(t.problem.id, 0.0) < config.guided_below], repaired)
    stages, rows = {}, []
    for name, source in zip(STAGES, sources, strict=True):
        new = [{"prompt": t.prompt, "completion": t.text, "id": t.problem.id, "source": t.kind}
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


def distill(student: LM, task: Task, stages: Mapping[str, Dataset], config: PaceConfig | None = None, seed: int = 0, *,
            folder: str | Path | None = None, probe: Sequence[Problem] = (), progress: Any = None
            ) -> LM:
    """Train a copy of `student` through the stages, each one warm-started by the one before.

    Any mapping of datasets will do: `{"all": stages["foundation"]}` is rejection-sampling fine-tuning.

    Args:
        folder: keep each stage's student there and go on from the last finished one; without it nothing is kept.
        probe: problems on which greedy accuracy is measured after each stage (folder/curve.json).
        progress: called as `progress(done, total)` after each update, over all stages.

    Raises:
        InputError: there is nothing to train on, or the student's tokenizer cannot write the data.
        TrainingError: the loss became NaN or infinite.
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
            if finished.exists():
                shutil.rmtree(f"{finished}.training", ignore_errors=True)  # what a kill just after the rename left
                lm = load_lm(finished, max_batch=student.max_batch)
            else:
                data = [encode_example(lm.tokenizer, row["prompt"], row["completion"]) for row in stages[name]]
                _check_vocabulary(lm.tokenizer, data)
                work = home / f"{finished.name}.training"
                train(lm.model, lm.tokenizer, data, folder=work, updates=updates, batch=config.batch,
                      learning_rate=config.learning_rate, warmup=min(config.warmup, updates), seed=seed + number,
                      progress=progress and (lambda i, _, before=done: progress(before + i, total)))
                _keep(lm, task, probe, name, work, finished)
            done += updates
        return lm


def _keep(lm: LM, task: Task, probe: Sequence[Problem], name: str, work: Path, finished: Path) -> None:
    """Save a stage's student with its accuracy on the probe problems; the folder appears complete or not at all."""
    lm.model.save_pretrained(work / "done")
    lm.tokenizer.save_pretrained(work / "done")
    tried = sample(lm, task, probe, n=1, config=SampleConfig(temperature=0.0)) if probe else []
    curve = {}
    for kind in dict.fromkeys(p.kind for p in probe):
        curve[kind] = float(np.mean([t.correct for t in tried if t.problem.kind == kind]))
    write_text(work / "done" / "curve.json", json.dumps({"stage": name, "greedy accuracy": curve}) + "\n")
    os.replace(work / "done", finished)
    shutil.rmtree(work)


def _check_vocabulary(tokenizer: Any, data: Sequence[Mapping[str, list[int]]]) -> None:
    unknown = tokenizer.unk_token_id
    if unknown is not None and any(unknown in row["input_ids"] for row in data):
        raise InputError(f"the student's tokenizer ({len(tokenizer)} tokens) cannot write the teacher's text: some of it "
                         "becomes the unknown token; use a student whose tokenizer covers the task")
