"""What a run will cost before it starts: sequences, tokens, memory, hours.

- Counts are upper bounds: how many problems need help is known only when they have been tried.
- Speed is measured: the first shard of the run's own problems is sampled for up to a minute, scored, and thrown away.
- Memory is counted from the model's configuration, so it can be asked for a model that nobody has loaded.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import psutil
import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

from heal_ref.config import HealConfig
from heal_ref.generation import generate, repeats
from heal_ref.model import LM
from heal_ref.records import Problem
from heal_ref.scoring import text_stats
from heal_ref.tasks.base import Task

GIB = 2**30


def parameters(config: PreTrainedConfig) -> int:
    """Number of weights of a model with this configuration, counted on a model that has shapes but no memory."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config).num_parameters()


def cache_bytes(config: PreTrainedConfig, width: int = 2) -> int:
    """Bytes of key-value cache for one token of one sequence; `width` bytes a number (2 for bf16, 4 for fp32)."""
    heads = config.num_attention_heads
    dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return 2 * config.num_hidden_layers * (getattr(config, "num_key_value_heads", None) or heads) * dim * width


def sampling_bytes(config: PreTrainedConfig, sequences: int, length: int, width: int = 2) -> dict[str, int]:
    """Bytes for sampling: `weights`, `cache` of all sequences at full length, and the `logits` of one step (raw, float
    and sorted copies: about four times sequences × vocabulary in float32)."""
    return {"weights": parameters(config) * width, "cache": sequences * length * cache_bytes(config, width),
            "logits": 4 * sequences * config.vocab_size * 4}


def training_bytes(config: PreTrainedConfig, sequences: int, length: int, width: int = 2) -> dict[str, int]:
    """Bytes for an update of all weights with AdamW: `states` (weights, gradients, two moments), `activations` (about 34
    numbers of the hidden size for each token and layer, without recomputation), `logits` (three copies in float32)."""
    tokens = sequences * length
    return {"states": 4 * parameters(config) * width,
            "activations": 34 * tokens * config.hidden_size * config.num_hidden_layers * width // 2,
            "logits": 3 * tokens * config.vocab_size * 4}


@dataclass(frozen=True)
class Speed:
    """Measured on the run's own problems. Tokens a second; lengths in tokens."""

    sampled: float
    scored: float
    learnt: float  # of the student: a third of its forward speed, since a gradient costs two more forward passes
    prompt: float  # mean length
    solution: float  # mean length, or the limit where most samples did not end within the minute


def measure(teacher: LM, student: LM, task: Task, problems: Sequence[Problem], config: HealConfig, seconds: float = 60.0
            ) -> Speed:
    """Sample the first shard for at most `seconds` (the first token of a batch always comes), score it, throw it away."""
    prompts = [teacher.encode(task.prompt(p)) for p in problems[: config.sample.batch]]
    prompts = prompts[: max(1, teacher.max_batch // config.sample.n)]
    each = min(config.sample.n, teacher.max_batch)
    began = time.monotonic()
    shared = [repeats(ids, each) for ids in prompts]  # a prompt is computed once, as in the run
    rollouts = generate(teacher, *zip(*shared, strict=True), sampling=config.sample, seed=0, seconds=seconds)
    spent, tokens = time.monotonic() - began, sum(r.tokens_spent for r in rollouts)
    ended = [r.tokens_spent for r in rollouts if r.finished]
    pairs = [(prompts[i // each], r.ids) for i, r in enumerate(rollouts)]
    rates = []
    for lm in (teacher, student):
        began = time.monotonic()
        text_stats(lm, pairs)
        rates.append(sum(len(c) + len(ids) for c, ids in pairs) / (time.monotonic() - began))
    mostly = 2 * len(ended) > len(rollouts)
    return Speed(tokens / spent, rates[0], rates[1] / 3, sum(map(len, prompts)) / len(prompts),
                 sum(ended) / len(ended) if mostly else float(config.sample.max_new_tokens))


@dataclass(frozen=True)
class Stage:
    """One stage of a run, at most."""

    name: str
    sequences: int
    tokens: int
    hours: float


def plan(config: HealConfig, problems: int, heldout: int, speed: Speed, processes: int = 1) -> list[Stage]:
    """The stages of `pipeline.run`, at most, for numbers of problems; hours on as many processes as this one."""
    g, longest = config.gear, speed.prompt + speed.solution
    hints, guided = problems * g.paths * g.hints, problems * config.pace.per_problem
    repairs = hints * g.continuations
    arms = 2 * config.pace.updates * config.pace.batch
    work = (
            ("sample", problems * config.sample.n, speed.solution, speed.sampled),
            ("answer-guided", guided, speed.solution, speed.sampled),
            ("hints", hints, speed.solution, speed.sampled),
            ("repairs", repairs, speed.solution, speed.sampled),
            ("score", guided + repairs + problems, longest, speed.scored),
            ("train two students", arms, longest, speed.learnt),
            ("evaluate four models", 4 * heldout * (config.eval_n + 1), speed.solution, speed.sampled))
    return [Stage(name, count, math.ceil(count * length), count * length / rate / 3600 / processes)
            for name, count, length, rate in work]


def free_bytes(device: torch.device) -> int:
    """Memory that a device has left, in bytes."""
    return psutil.virtual_memory().available if device.type == "cpu" else torch.accelerator.get_memory_info(device)[0]


def plan_text(stages: Sequence[Stage], teacher: LM, student: LM, config: HealConfig, speed: Speed) -> str:
    """The plan for people: a table, memory of both models, what was measured, and a warning if the memory is not there."""
    lines = [f"{'at most':<22}{'sequences':>12}{'tokens':>16}{'hours':>9}"]
    lines += [f"{s.name:<22}{s.sequences:>12,}{s.tokens:>16,}{s.hours:>9.2f}" for s in stages]
    lines.append(f"{'together':<22}{'':>12}{sum(s.tokens for s in stages):>16,}{sum(s.hours for s in stages):>9.2f}")
    length, width = math.ceil(speed.prompt + speed.solution), teacher.model.dtype.itemsize
    at_once = min(teacher.max_batch, config.sample.batch * config.sample.n)
    learnt = min(student.max_batch, config.pace.batch // config.pace.accumulate)
    needs = {"teacher, sampling": sampling_bytes(teacher.model.config, at_once, length, width),
             "student, training": training_bytes(student.model.config, learnt, length, student.model.dtype.itemsize)}
    for name, need in needs.items():
        lines.append(f"memory, {name}: " + ", ".join(f"{k} {v / GIB:.2f} GiB" for k, v in need.items()))
    free, devices = free_bytes(teacher.device), len(set(getattr(teacher.model, "hf_device_map", {"": 0}).values()))
    loaded = sum(needs["teacher, sampling"].values()) - needs["teacher, sampling"]["weights"]  # the weights are there already
    short = [] if max(loaded, sum(needs["student, training"].values())) <= free * devices else [
        f"MORE THAN THERE IS: {free * devices / GIB:.2f} GiB are free; lower --max-batch"]
    measured = (f"measured: {speed.sampled:,.0f} tokens sampled, {speed.scored:,.0f} scored, {speed.learnt:,.0f} learnt "
                f"a second; prompts {speed.prompt:.0f}, solutions {speed.solution:.0f} tokens")
    return "\n".join([*lines, *short, measured])
