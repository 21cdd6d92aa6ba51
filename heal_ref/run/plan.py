"""What a run will cost before it starts: sequences, tokens, memory, hours.

- Counts are upper bounds: how many problems need help is known only when they have been tried.
- Speed and lengths are measured on the run's own problems, for a minute; the samples are thrown away.
- Memory is counted from the model's configuration, so it can be asked for a model that is not loaded.
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
    """Number of weights, counted on a model that has shapes but no memory."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config).num_parameters()


def cache_bytes(config: PreTrainedConfig, width: int = 2) -> int:
    """Bytes of key-value cache per token; `width` is bytes per number (bf16 2, fp32 4)."""
    heads = config.num_attention_heads
    dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    kept = getattr(config, "num_key_value_heads", None) or heads
    return 2 * config.num_hidden_layers * kept * dim * width


def sampling_bytes(config: PreTrainedConfig, sequences: int, length: int, width: int = 2
                   ) -> dict[str, int]:
    """Bytes for sampling: weights, cache at full length, and one step's logits (four copies)."""
    return {"weights": parameters(config) * width,
            "cache": sequences * length * cache_bytes(config, width),
            "logits": 4 * sequences * config.vocab_size * 4}


def training_bytes(config: PreTrainedConfig, sequences: int, length: int, width: int = 2
                   ) -> dict[str, int]:
    """Bytes for an update of all weights with AdamW: states (weights, gradients and two moments in
    float32: 16 bytes per weight), activations (about 34 numbers per token, layer and hidden unit,
    half of them `width` bytes wide), logits (three copies in float32)."""
    tokens = sequences * length
    return {"states": 16 * parameters(config),
            "activations": 34 * tokens * config.hidden_size * config.num_hidden_layers * width // 2,
            "logits": 3 * tokens * config.vocab_size * 4}


@dataclass(frozen=True)
class Speed:
    """Tokens per second, and mean lengths in tokens (a solution's: the limit if most are cut off)."""

    sampled: float
    scored: float
    learnt: float  # of the student: a third of its scoring speed
    prompt: float
    solution: float
    steps: float = 8.0  # per solution


def measure(teacher: LM, student: LM, task: Task, problems: Sequence[Problem], config: HealConfig,
            seconds: float = 60.0) -> Speed:
    """Sample the first shard for at most `seconds` (a batch's first token always comes), score it."""
    prompts = [teacher.encode(task.prompt(p)) for p in problems[: config.sample.batch]]
    prompts = prompts[: max(1, teacher.max_batch // config.sample.n)]
    each = min(config.sample.n, teacher.max_batch)
    contexts, tails = zip(*[repeats(ids, each) for ids in prompts], strict=True)
    began = time.monotonic()
    rollouts = generate(teacher, contexts, tails, sampling=config.sample, seed=0, seconds=seconds)
    sampled = sum(r.tokens_spent for r in rollouts) / (time.monotonic() - began)
    ended = [r for r in rollouts if r.finished]
    pairs = [(prompts[i // each], r.ids) for i, r in enumerate(rollouts)]
    rates = []
    for lm in (teacher, student):
        began = time.monotonic()
        text_stats(lm, pairs)
        rates.append(sum(len(c) + len(ids) for c, ids in pairs) / (time.monotonic() - began))
    solution, steps = float(config.sample.max_new_tokens), 8.0
    if 2 * len(ended) > len(rollouts):
        solution = sum(r.tokens_spent for r in ended) / len(ended)
        texts = [teacher.decode(r.ids) for r in ended]
        steps = sum(text.count(task.separator) + 1 for text in texts) / len(texts)
    return Speed(sampled, rates[0], rates[1] / 3, sum(map(len, prompts)) / len(prompts), solution,
                 steps)


@dataclass(frozen=True)
class Stage:
    """One stage of a run, at most."""

    name: str
    sequences: int
    tokens: int
    hours: float


def plan(config: HealConfig, problems: int, heldout: int, speed: Speed, processes: int = 1,
         probe: int = 0) -> list[Stage]:
    """The stages of `pipeline.run`, at most; hours on as many processes as this one. `probe` is the
    number of problems on the learning curve."""
    g, pace, longest = config.gear, config.pace, speed.prompt + speed.solution
    hints, guided = problems * g.paths * g.hints, problems * pace.per_problem
    repairs = hints * g.continuations
    scored = guided + repairs + problems
    steps = math.ceil(scored * speed.steps)
    demands = {"forced": steps, "rollout": steps * config.pure.rollouts}.get(config.pure.reading, 0)
    points = 4 + (pace.updates // pace.curve_every if pace.curve_every else 0)
    work = (("sample", problems * config.sample.n, speed.solution, speed.sampled),
            ("answer-guided", guided, speed.solution, speed.sampled),
            ("hints", hints if g.hint == "bridge" else 0, speed.solution, speed.sampled),
            ("repairs", repairs, speed.solution, speed.sampled),
            ("score", scored, longest, speed.scored),
            ("uncertainty", demands, speed.solution if config.pure.reading == "rollout" else 1,
             speed.sampled),
            ("train two students", 2 * pace.updates * pace.batch, longest, speed.learnt),
            ("learning curves", 2 * points * probe, speed.solution, speed.sampled),
            ("evaluate four models", 4 * heldout * (config.eval_n + 1), speed.solution,
             speed.sampled))
    return [Stage(name, count, math.ceil(count * length), count * length / rate / 3600 / processes)
            for name, count, length, rate in work if count]


def free_bytes(device: torch.device) -> int:
    """Memory that a device has left, in bytes."""
    if device.type == "cpu":
        return psutil.virtual_memory().available
    return torch.accelerator.get_memory_info(device)[0]


def plan_text(stages: Sequence[Stage], teacher: LM, student: LM, config: HealConfig, speed: Speed
              ) -> str:
    """The plan for people: a table, memory of both models, what was measured, and a warning if the
    memory is not there. Repairs fill a batch up to `max_batch`."""
    lines = [f"{'at most':<22}{'sequences':>12}{'tokens':>16}{'hours':>9}"]
    lines += [f"{s.name:<22}{s.sequences:>12,}{s.tokens:>16,}{s.hours:>9.2f}" for s in stages]
    tokens, hours = sum(s.tokens for s in stages), sum(s.hours for s in stages)
    lines.append(f"{'total':<22}{'':>12}{tokens:>16,}{hours:>9.2f}")
    length = math.ceil(speed.prompt + speed.solution)
    sampled = min(teacher.max_batch, max(s.sequences for s in stages))
    learnt = min(student.max_batch, config.pace.batch // config.pace.accumulate)
    needs = {"teacher, sampling": sampling_bytes(teacher.model.config, sampled, length,
                                                 teacher.model.dtype.itemsize),
             "student, training": training_bytes(student.model.config, learnt, length,
                                                 student.model.dtype.itemsize)}
    for name, need in needs.items():
        parts = ", ".join(f"{k} {v / GIB:.2f} GiB" for k, v in need.items())
        lines.append(f"memory, {name}: {parts}")
    spread = len(set(getattr(teacher.model, "hf_device_map", {"": 0}).values()))
    free = free_bytes(teacher.device) * spread
    needs["teacher, sampling"].pop("weights")  # they are loaded already
    if max(sum(need.values()) for need in needs.values()) > free:
        lines.append(f"MORE THAN THERE IS: {free / GIB:.2f} GiB are free; lower --max-batch")
    lines.append(f"measured: {speed.sampled:,.0f} tokens sampled, {speed.scored:,.0f} scored, "
                 f"{speed.learnt:,.0f} learnt per second; prompts {speed.prompt:.0f}, solutions "
                 f"{speed.solution:.0f} tokens in {speed.steps:.0f} steps")
    return "\n".join(lines)
