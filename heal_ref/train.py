"""Supervised fine-tuning: transformers' Trainer with a few properties pinned.

- The prompt is masked; the end of text is learnt, also where it doubles as padding.
- A loss that is not a number stops training and names the batch (the Trainer's default hides it).
- A checkpoint counts only once it is complete; training goes on from the last one, in the middle of a stage.
- Gradient accumulation changes nothing but memory: the loss is a mean over the target tokens of a whole update.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_pt_utils import get_length_grouped_indices
from transformers.trainer_utils import set_seed

from heal_ref.model import processes
from heal_ref.records import InputError

IGNORE = -100  # label of a position that is not learnt
Measure = Callable[[], dict[str, float]]  # what a learning curve is made of


class TrainingError(InputError):
    """Training cannot go on: the message says at which update, on which batch, and what to do."""


def encode_example(tokenizer: Any, prompt: str, completion: str | Sequence[int]) -> dict[str, list[int]]:
    """`input_ids` and `labels` (both T) of one example: prompt masked, completion and end of text learnt."""
    context = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    if isinstance(completion, str):
        completion = tokenizer(completion, add_special_tokens=False)["input_ids"]
    target = [*completion, tokenizer.eos_token_id]
    return {"input_ids": context + target, "labels": [IGNORE] * len(context) + target}


def collate(pad_token_id: int) -> Any:
    """A collator that pads on the right: ids with `pad_token_id`, labels with -100, mask with 0. By length, so
    that an end-of-text token that doubles as padding stays in the loss. Examples keep their names, if they have any."""

    def pad(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        longest = max(len(r["input_ids"]) for r in rows)

        def stack(name: str, fill: int) -> torch.Tensor:
            return torch.tensor([list(r[name]) + [fill] * (longest - len(r[name])) for r in rows])

        mask = torch.tensor([[1] * len(r["input_ids"]) + [0] * (longest - len(r["input_ids"])) for r in rows])
        batch = {"input_ids": stack("input_ids", pad_token_id), "labels": stack("labels", IGNORE), "attention_mask": mask}
        return {**batch, "names": [r["name"] for r in rows]} if "name" in rows[0] else batch

    return pad


class _ByLength(Sampler):
    """Examples of similar length together, so that little is padded; another order each epoch. The order follows from seed
    and epoch alone: transformers' own sampler draws it from the global random state, which a resumed run does not have."""

    def __init__(self, trainer: Trainer, data: Any):
        self.trainer, self.lengths = trainer, [len(row["input_ids"]) for row in data]

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        args, epoch = self.trainer.args, int(self.trainer.state.epoch or 0)
        order = torch.Generator().manual_seed(1_000_003 * args.seed + epoch)
        update = args.train_batch_size * args.gradient_accumulation_steps * args.world_size  # examples in one update
        return iter(get_length_grouped_indices(self.lengths, update, generator=order))


class _Trainer(Trainer):
    """Batches by length, and a stop at the first loss that is not a finite number, before it reaches the weights."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler:
        return _ByLength(self, self.train_dataset)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **more: Any) -> Any:
        names = inputs.pop("names", [])
        loss = super().compute_loss(model, inputs, *args, **more)
        if not torch.isfinite(loss[0] if isinstance(loss, tuple) else loss):
            batch = f"on the batch of {', '.join(map(str, names))}" if names else "on an unnamed batch"
            raise TrainingError(f"the loss is not a finite number at update {self.state.global_step + 1}, {batch}: training "
                                "stopped. Lower the learning rate, or look for NaN weights in the starting model.")
        return loss


class _Watch(TrainerCallback):
    """Marks complete checkpoints, feeds our progress bar, takes the learning curve."""

    def __init__(self, progress: Any, measure: Measure | None, every: int):
        self.progress, self.measure, self.every = progress, measure, every

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        processes().wait_for_everyone()  # each process writes its part
        if state.is_world_process_zero:
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / "COMPLETE").touch()

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if self.progress is not None:
            self.progress(state.global_step, state.max_steps)
        due = state.global_step == state.max_steps or (self.every and state.global_step % self.every == 0)
        if self.measure is not None and due:
            model.eval()
            state.log_history.append({"step": state.global_step, "accuracy": self.measure()})  # kept by checkpoints
            model.train()
        if state.global_step == state.max_steps:
            control.should_save = False  # the Trainer, resumed from a checkpoint at the very end, would add an update


def last_complete_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end; incomplete ones are removed."""
    with processes().main_process_first():
        best = None
        for path in sorted(folder.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1])):
            if (path / "COMPLETE").exists():
                best = path
            else:
                shutil.rmtree(path)
        return best


def train(model: Any, tokenizer: Any, data: Any, *, folder: Path, updates: int, batch: int, learning_rate: float,
          warmup: int = 0, seed: int = 0, accumulate: int = 1, save_every: int = 0, progress: Any = None,
          measure: Measure | None = None, measure_every: int = 0, save_to: Path | None = None) -> list[dict[str, Any]]:
    """Fine-tune `model` in place for a number of updates; returns the log.

    Args:
        data: a map-style dataset of `{"input_ids", "labels"}`, with `name` if a bad batch should be named.
        folder: where checkpoints go; an interrupted call with the same folder goes on from the last complete one.
        batch: examples in one update, over all processes.
        accumulate: parts that an update's batch is computed in: less memory, same gradient.
        save_every: updates between checkpoints, 0 for none; a multiple of 10, or the first loss logged after a resume is a
            mean over fewer updates.
        progress: called as `progress(done, total)` after each update.
        measure: called after every `measure_every` updates (0: none between) and after the last one; by all processes.
        save_to: folder for the trained model, whole: with FSDP each process holds only a part of it, also in `model`.

    Returns:
        Lines `{"step": 10, "loss": ...}` (every 10 updates) and `{"step": 60, "accuracy": what measure returned}`.

    Raises:
        TrainingError: the loss became NaN or infinite.
        InputError: the batch cannot be cut into `accumulate` equal parts for each process.
    """
    parts = accumulate * processes().num_processes
    if batch % parts:
        raise InputError(f"a batch of {batch} cannot be cut into {parts} equal parts (accumulate × "
                         "processes); choose a divisor of the batch")
    set_seed(seed)
    args = TrainingArguments(
        output_dir=str(folder), use_cpu=processes().device.type == "cpu", max_steps=updates, seed=seed, data_seed=seed,
        per_device_train_batch_size=batch // parts, gradient_accumulation_steps=accumulate, learning_rate=learning_rate,
        warmup_steps=warmup, lr_scheduler_type="cosine", weight_decay=0.01, adam_beta2=0.98, logging_steps=10,
        logging_nan_inf_filter=False, report_to="none", disable_tqdm=True, log_level="error",
        save_strategy="steps" if save_every else "no", save_steps=max(save_every, 1), save_total_limit=2,
        dataloader_pin_memory=False, remove_unused_columns=False, ddp_find_unused_parameters=False)
    trainer = _Trainer(model=model, args=args, train_dataset=data, data_collator=collate(tokenizer.pad_token_id),
                       callbacks=[_Watch(progress, measure, measure_every)])
    for callback in list(trainer.callback_handler.callbacks):
        if type(callback).__name__ in ("PrinterCallback", "ProgressCallback", "NotebookProgressCallback"):
            trainer.remove_callback(type(callback))
    checkpoint = last_complete_checkpoint(Path(folder)) if save_every else None
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    model.eval()
    if save_to is not None:
        weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)  # all processes help to put it together
        if processes().is_main_process:
            model.save_pretrained(save_to, state_dict=weights)
    return [{name: row[name] for name in ("step", "loss", "accuracy") if name in row}
            for row in trainer.state.log_history if "loss" in row or "accuracy" in row]
