"""Supervised fine-tuning: what a student learns from a row, transformers' Trainer, one stage.

The prompt is masked; the end of the turn stays in the loss, also when it doubles as padding.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, Features, List, Value
from datasets.arrow_writer import ArrowWriter
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Sampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_pt_utils import get_length_grouped_indices
from transformers.trainer_utils import set_seed
from transformers.utils import is_torch_bf16_gpu_available

from heal_ref.config import PaceConfig
from heal_ref.lora import ADAPTER, adapted, import_peft, merged
from heal_ref.memory import lazy_lm, release_memory
from heal_ref.model import LM, load_lm, processes
from heal_ref.records import InputError, Problem, read_json, write_text
from heal_ref.scoring import positions
from heal_ref.tasks.base import Task

IGNORE = -100  # label of a position that is not learnt
FOREIGN = 0.01  # a larger share of rows that a student cannot write is no accident


class TrainingError(InputError):
    """Training cannot continue: the message names the update, the batch, and what to do."""


def encode_example(tokenizer: Any, prompt: str, completion: str | Sequence[int],
                   end: int | None = None) -> dict[str, list[int]]:
    """`input_ids` and `labels` (T each): prompt masked; completion (text or ids) and `end` learnt.

    Without `end`, the id of what ends a turn, the tokenizer's end of text is taken.
    """
    context = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    if isinstance(completion, str):
        completion = tokenizer(completion, add_special_tokens=False)["input_ids"]
    target = [*completion, tokenizer.eos_token_id if end is None else end]
    return {"input_ids": context + target, "labels": [IGNORE] * len(context) + target}


EXAMPLE = Features({"input_ids": List(Value("int32")), "labels": List(Value("int32")),
                    "name": Value("string")})


def data_set(rows: Iterable[Mapping[str, Any]], features: Features, path: Path | None = None
             ) -> Dataset:
    """A data set of these rows; with a `path` they lie in this file, mapped into memory, which the
    first of several processes writes."""
    if path is None:
        whole = list(rows)  # without any, there are columns nevertheless
        columns = {name: [row[name] for row in whole] for name in features}
        return Dataset.from_dict(columns, features=features)
    with processes().main_process_first():
        if processes().is_main_process:
            path.parent.mkdir(parents=True, exist_ok=True)
            with ArrowWriter(features=features, path=str(path), writer_batch_size=64) as writer:
                for row in rows:
                    writer.write(row)
                writer.finalize()
    return Dataset.from_file(str(path))


def examples_of(student: LM, task: Task, stage: Any, thoughts: str = "keep",
                path: Path | None = None) -> Dataset:
    """What the student learns from each row of a stage: `input_ids`, `labels` and `name`; with a
    `path` in a file (`data_set`).

    The prompt is the row's, or the problem in the student's own template if that renders it
    otherwise than `task`. The completion is what was sampled, id by id, if these ids spell it in
    the student's tokenizer, else its text encoded. Rows that the student cannot write, or longer
    than its positions, are left out with a warning; InputError if that is more than 1 in 100, or
    all of them, or if thoughts mean nothing to the student.
    """
    limit, counts = positions(student.config), Counter[str]()
    data = data_set(_examples(student, task, stage, thoughts, counts), EXAMPLE, path)
    unwritten, too_long, tokenizer = counts["unwritten"], counts["too long"], student.tokenizer
    if unwritten > FOREIGN * len(stage):
        raise InputError(f"the student's tokenizer ({len(tokenizer)} tokens) cannot write "
                         f"{unwritten} of {len(stage)} examples: some of their text becomes the "
                         "unknown token or comes back changed; use a student whose tokenizer "
                         "covers it")
    long = f"they are longer than the student's {limit} positions"
    if too_long and not len(data):
        raise InputError(f"no example is left: {long}; sample shorter solutions")
    for count, why in ((unwritten, "the student's tokenizer cannot write them"), (too_long, long)):
        if count:
            warnings.warn(f"{count} of {len(stage)} examples are left out: {why}",
                          RuntimeWarning, stacklevel=3)
    return data


def _examples(student: LM, task: Task, stage: Any, thoughts: str, counts: Counter
              ) -> Iterator[dict[str, Any]]:
    """The examples of `examples_of` one by one; how many rows are left out is added to `counts`."""
    own, tokenizer = task.for_tokenizer(student.tokenizer), student.tokenizer
    limit = positions(student.config)
    for row in stage:
        # 1) The prompt.
        problem = Problem(row["id"], row.get("question") or "", row.get("answer") or "")
        other = own is not task and own.prompt(problem) != task.prompt(problem)
        if other and not problem.question:
            raise InputError(f"row {row['id']!r} has no `question` to put to a student of another "
                             "template; add question and answer, as build_stages does, or make the "
                             "prompts with the student's own task")
        prompt = own.prompt(problem) if other else row["prompt"]
        # 2) The completion; one that is no longer what followed the row's prompt is made a reply.
        text = own.without_thoughts(row["completion"]) if thoughts == "drop" else row["completion"]
        if own.without_thoughts(text) != text and not own.knows_thoughts:
            raise InputError("the completions hold thoughts, which mean nothing to the student's "
                             'template; leave them out with PaceConfig(thoughts="drop")')
        text = own.as_reply(text) if other or text != row["completion"] else text
        ids, sampled = student.encode(text), row.get("token_ids") or []
        written = tokenizer.unk_token_id not in ids and _plain(student.decode(ids)) == _plain(text)
        ids = sampled if student.decode(sampled) == text else ids
        # 3) Both, and the end.
        example = encode_example(tokenizer, prompt, ids, student.end)
        fits = len(example["input_ids"]) <= limit
        if written and fits:
            yield {**example, "name": str(row["id"])}
        counts["unwritten"] += not written
        counts["too long"] += written and not fits


def _plain(text: str) -> str:
    """A text without what tokenizers normalise: composed characters, blanks within a line."""
    lines = unicodedata.normalize("NFKC", text).strip().split("\n")
    return "\n".join("".join(line.split()) for line in lines)


def collate(pad_token_id: int) -> Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]]:
    """A collator that pads on the right, by length: a target that looks like padding stays."""

    def pad(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        ids = [torch.tensor(row["input_ids"]) for row in rows]
        labels = [torch.tensor(row["labels"]) for row in rows]
        mask = [torch.ones_like(row) for row in ids]
        return {"input_ids": pad_sequence(ids, batch_first=True, padding_value=pad_token_id),
                "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORE),
                "attention_mask": pad_sequence(mask, batch_first=True),
                "names": [row.get("name", "an unnamed example") for row in rows]}

    return pad


class _ByLength(Sampler):
    """Examples of similar length together, in an order that follows from seed and epoch alone:
    that of transformers comes from the global random state, which a resumed run does not have."""

    def __init__(self, trainer: Trainer, data: Any):
        self.trainer, self.lengths = trainer, [len(row["input_ids"]) for row in data]

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        args, epoch = self.trainer.args, int(self.trainer.state.epoch or 0)
        order = torch.Generator().manual_seed(1_000_003 * args.seed + epoch)
        update = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        return iter(get_length_grouped_indices(self.lengths, update, generator=order))


class _Trainer(Trainer):
    """Batches by length; stops at a loss that is not finite before it reaches the weights."""

    def get_train_dataloader(self) -> DataLoader:
        data: Any = self.train_dataset
        return self.accelerator.prepare(DataLoader(
            data, batch_size=self.args.train_batch_size, sampler=_ByLength(self, data),
            collate_fn=self.data_collator))

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **more: Any) -> Any:
        names = inputs.pop("names")
        loss: Any = super().compute_loss(model, inputs, *args, **more)
        if not torch.isfinite(loss):
            raise TrainingError(
                f"the loss is not a finite number at update {self.state.global_step + 1}, on the "
                f"batch of {', '.join(map(str, names))}: training stopped. Lower the learning "
                "rate, or look for NaN weights in the starting model.")
        return loss


class _Watch(TrainerCallback):
    """Marks complete checkpoints, reports progress, takes the learning curve."""

    def __init__(self, progress: Any, measure: Callable | None, every: int):
        self.progress, self.measure, self.every = progress, measure, every

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        processes().wait_for_everyone()  # each process writes its part
        if state.is_world_process_zero:
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / "COMPLETE").touch()

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        step, last = state.global_step, state.global_step == state.max_steps
        if self.progress is not None:
            self.progress(step, state.max_steps)
        if self.measure is not None and (last or (self.every and step % self.every == 0)):
            model.eval()
            accuracy = list(self.measure().items())  # a list keeps its order in a checkpoint
            state.log_history.append({"step": step, "accuracy": accuracy})
            model.train()
        if last:  # resumed from a checkpoint at the very end, the Trainer would add an update
            control.should_save = False


def fast_in_bfloat16() -> bool:
    """Whether this CPU multiplies matrices of bfloat16 faster than of float32."""
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


def last_complete_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end; incomplete ones are removed."""
    with processes().main_process_first():
        for path in folder.glob("checkpoint-*"):
            if not (path / "COMPLETE").exists():
                shutil.rmtree(path)
    return max(folder.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]), default=None)


def train(model: Any, tokenizer: Any, data: Any, *, folder: Path, updates: int, batch: int,
          learning_rate: float, warmup: int = 0, seed: int = 0, accumulate: int = 1,
          save_every: int = 0, checkpointing: bool = False, progress: Any = None,
          measure: Callable | None = None, measure_every: int = 0, save_to: Path | None = None,
          half: bool = False) -> list[dict[str, Any]]:
    """Fine-tune `model` in place; returns the log, lines of `step` with `loss` or `accuracy`.

    Weights and optimizer keep the dtype of `model`; accelerators with bfloat16 compute in it, and
    CPUs with instructions for it if `half`.
    The loss is a mean over an update's target tokens, in however many parts it is computed.

    Args:
        data: a map-style dataset of `{"input_ids", "labels"}`; `name` tells a bad batch.
        folder: for checkpoints, one every `save_every` updates (0: none; in tens, or the first
            loss after a resume is a mean over fewer); the same folder resumes from the last.
        batch: examples per update, over all processes, computed in `accumulate` equal parts.
        checkpointing: keep the activations of layers' inputs only and compute the others again for
            the gradient, which stays the same.
        progress: called as `progress(done, total)` after each update.
        measure: accuracies by kind; every `measure_every` updates (0: never) and after the last.
        save_to: folder for the trained model, whole: with FSDP, `model` is a part in each process.

    TrainingError if the loss becomes NaN or infinite; InputError if the batch has no equal parts.
    """
    parts = accumulate * processes().num_processes
    if batch % parts:
        raise InputError(f"a batch of {batch} cannot be cut into {parts} equal parts (accumulate × "
                         "processes); choose a divisor of the batch")
    # 1) The Trainer, silent and without its own progress bar.
    set_seed(seed)
    on_cpu = processes().device.type == "cpu"
    bf16 = half and fast_in_bfloat16() if on_cpu else is_torch_bf16_gpu_available()
    args = TrainingArguments(
        output_dir=str(folder), use_cpu=on_cpu, bf16=bf16, max_steps=updates, seed=seed,
        data_seed=seed, per_device_train_batch_size=batch // parts,
        gradient_accumulation_steps=accumulate, learning_rate=learning_rate, warmup_steps=warmup,
        lr_scheduler_type="cosine", weight_decay=0.01, adam_beta2=0.98, logging_steps=10,
        logging_nan_inf_filter=False, report_to="none", disable_tqdm=True, log_level="error",
        save_strategy="steps" if save_every else "no", save_steps=max(save_every, 1),
        save_total_limit=2, dataloader_pin_memory=False, remove_unused_columns=False,
        ddp_find_unused_parameters=False, activation_checkpointing=checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False})
    trainer = _Trainer(model=model, args=args, train_dataset=data,
                       data_collator=collate(tokenizer.pad_token_id),
                       callbacks=[_Watch(progress, measure, measure_every)])
    trainer.remove_callback(PrinterCallback)
    # 2) Train, from the last complete checkpoint if there is one.
    checkpoint = last_complete_checkpoint(Path(folder)) if save_every else None
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    model.eval()
    # 3) Save: all processes help to put the weights together.
    if save_to is not None:
        weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
        if processes().is_main_process:
            model.save_pretrained(save_to, state_dict=weights)
    rows: list[dict[str, Any]] = trainer.state.log_history
    return [{"step": row["step"], "accuracy": dict(row["accuracy"])} if "accuracy" in row
            else {"step": row["step"], "loss": row["loss"]}
            for row in rows if "accuracy" in row or "loss" in row]


def train_stage(lm: LM, examples: Sequence[Any], folder: Path, config: PaceConfig, updates: int, *,
                seed: int, before: Path | None, base: LM, save_as: torch.dtype | None,
                progress: Any, measure: Callable[[LM], dict[str, float]] | None) -> LM:
    """Train `lm` on one stage, or find it finished; returns the student as `folder` holds it.

    The weights are `lm.own_model()`'s, in float32: a step of 1e-5 is lost in the rounding of
    bfloat16. With a `base` in bfloat16, CPUs that are faster so compute in it. The folder appears
    complete or not at all: weights (in dtype `save_as`, if the configuration says so), tokenizer,
    learning curve (of the first stage, without one `before`, from step 0). With `config.lora` an
    adapter to `base` is trained, on from that of the stage before: it is kept in `folder`/adapter,
    beside the weights into which it is merged.
    """
    work = folder.with_name(f"{folder.name}.training")
    processes().wait_for_everyone()  # all processes look before one of them writes
    if folder.exists():
        shutil.rmtree(work, ignore_errors=True)  # what a kill just after the rename left
    else:
        if config.lora:
            last = None if before is None else before / ADAPTER
            model = adapted(base.own_model(), config.lora, last, seed)
        else:
            model = lm.own_model().float()
        own = LM(model, lm.tokenizer, lm.max_batch)
        log = [{"step": 0, "accuracy": measure(own)}] if measure and before is None else []
        log += train(
            own.model, own.tokenizer, examples, folder=work, updates=updates, batch=config.batch,
            learning_rate=config.learning_rate, warmup=min(config.warmup, updates), seed=seed,
            accumulate=parts_of_a_batch(config, own), save_every=config.save_every,
            checkpointing=config.checkpointing, progress=progress,
            measure=partial(measure, own) if measure else None, measure_every=config.curve_every,
            save_to=work / "done" / (ADAPTER if config.lora else ""),
            half=base.dtype == torch.bfloat16)
        del own, model
        release_memory()  # the Trainer's: weights, gradients and optimizer
        length = sum(len(e["input_ids"]) for e in examples) / len(examples)
        curve = {"stage": folder.name.partition("-")[2], "updates": updates,
                 "examples": len(examples), "tokens": round(updates * config.batch * length),
                 "log": log}
        if processes().is_main_process:
            if config.lora:
                merged(base.own_model(), work / "done" / ADAPTER).save_pretrained(work / "done")
            lm.tokenizer.save_pretrained(work / "done")
            if save_as is not None and config.save_dtype == "own":
                load_lm(work / "done").model.to(save_as).save_pretrained(work / "done")
            write_text(work / "done" / "curve.json", json.dumps(curve) + "\n")
            os.replace(work / "done", folder)
            shutil.rmtree(work)
        processes().wait_for_everyone()
    # With FSDP the model in memory was a part of the student; what was saved is whole.
    return lazy_lm(folder, max_batch=lm.max_batch, tokenizer=lm.tokenizer)


def check_training(student: LM, config: PaceConfig) -> None:
    """InputError if this student cannot be trained so; better asked before hours of sampling."""
    if config.lora:
        import_peft()
    if config.checkpointing and not student.model.supports_gradient_checkpointing:
        raise InputError(f"{type(student.model).__name__} does not support gradient checkpointing; "
                         "leave pace.checkpointing out")


def parts_of_a_batch(config: PaceConfig, lm: LM) -> int:
    """In how many parts a batch is computed: `accumulate`, or more if `lm` takes fewer at once."""
    for parts in range(config.accumulate, config.batch + 1):
        size, rest = divmod(config.batch, parts * processes().num_processes)
        if not rest and size <= lm.max_batch:
            return parts
    return config.accumulate


def read_curve(folder: str | Path) -> list[dict[str, Any]]:
    """What `distill` kept of each finished stage, in order: `stage`, `updates`, `examples`,
    `tokens` (that were learnt from, prompts included), and its `log`: lines of `step` (within
    the stage) with `loss`, or with `accuracy` by kind."""
    what = ("the learning curve of a stage, so nothing says how it was trained; delete the stage's "
            "folder and start the same command again, which trains it again")
    return [read_json(file, what, stage=str, updates=int, examples=int, log=list)
            for file in sorted(Path(folder).glob("*/curve.json"))]


def claim(home: Path, student: LM, data: Mapping[str, Any], config: PaceConfig, seed: int) -> None:
    """Make `home` the folder of one student, data and settings; InputError if it is of others."""
    learnt = hashlib.sha256()
    for name, examples in data.items():
        for example in examples:
            learnt.update(json.dumps([name, example]).encode())
    settings = {**json.loads(json.dumps(asdict(config))), "seed": seed,
                "student": student.fingerprint, "examples": learnt.hexdigest()[:16]}
    path = home / "settings.json"
    with processes().main_process_first():
        if not path.exists() and not list(home.glob("*/curve.json")):
            write_text(path, json.dumps(settings, indent=1) + "\n")
        old = read_json(path, "the settings of a student, so nothing says what it learnt; use "
                        "another folder, or delete this one", seed=int) if path.exists() else {}
    if changed := [f"{key}: {old.get(key)!r} in the folder, {value!r} now"
                   for key, value in settings.items() if old.get(key) != value]:
        raise InputError(f"{home} holds students of other settings ({'; '.join(changed)}); use "
                         "another folder, or delete it")
