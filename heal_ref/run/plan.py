"""What a run will cost before it starts: sequences, tokens, memory, hours.

Counts are upper bounds: how many problems need help is known only when they have been tried.
Memory is counted from a model's configuration; the model need not be loaded.
"""

import math
import time
from collections.abc import Sequence
from typing import NamedTuple

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


class Speed(NamedTuple):
    """Tokens per second, and mean lengths in tokens."""

    sampled: float
    scored: float
    learnt: float  # by the student: a third of its scoring speed
    prompt: float
    solution: float  # the limit where most samples did not end within the minute
    steps: float = 8.0  # per solution


class Stage(NamedTuple):
    """One stage of a run, at most."""

    name: str
    sequences: int
    tokens: int
    hours: float


def parameters(config: PreTrainedConfig) -> int:
    """Number of weights, counted on a model without memory."""
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
    """Bytes for an AdamW update: states (weights, gradient, two moments in float32: 16 per
    weight), activations (34 numbers per token, layer and hidden unit), logits (three copies)."""
    tokens = sequences * length
    return {"states": 16 * parameters(config),
            "activations": 34 * tokens * config.hidden_size * config.num_hidden_layers * width // 2,
            "logits": 3 * tokens * config.vocab_size * 4}


def measure(teacher: LM, student: LM, task: Task, problems: Sequence[Problem], config: HealConfig,
            seconds: float = 60.0) -> Speed:
    """Sample the first shard for at most `seconds`, but one token at least, and score it."""
    n, most = min(config.sample.n, teacher.max_batch), max(1, teacher.max_batch // config.sample.n)
    prompts = [teacher.encode(task.prompt(p)) for p in problems[: config.sample.batch]][:most]
    contexts, tails = zip(*[repeats(ids, n) for ids in prompts], strict=True)
    began = time.monotonic()
    rollouts = generate(teacher, contexts, tails, sampling=config.sample, seed=0, seconds=seconds)
    sampled = sum(r.tokens_spent for r in rollouts) / (time.monotonic() - began)
    pairs, scored = [(prompts[i // n], r.ids) for i, r in enumerate(rollouts)], []
    for lm in (teacher, student):
        began = time.monotonic()
        text_stats(lm, pairs)
        scored.append(sum(len(c) + len(ids) for c, ids in pairs) / (time.monotonic() - began))
    solution, steps = float(config.sample.max_new_tokens), Speed._field_defaults["steps"]
    ended = [r for r in rollouts if r.finished]
    if 2 * len(ended) > len(rollouts):
        solution = sum(r.tokens_spent for r in ended) / len(ended)
        separators = sum(teacher.decode(r.ids).count(task.separator) for r in ended)
        steps = 1 + separators / len(ended)
    prompt = sum(map(len, prompts)) / len(prompts)
    return Speed(sampled, scored[0], scored[1] / 3, prompt, solution, steps)


def plan(config: HealConfig, problems: int, heldout: int, speed: Speed, processes: int = 1,
         probe: int = 0) -> list[Stage]:
    """The stages of `pipeline.run` on as many processes; `probe` problems on a learning curve."""
    g, pace, length = config.gear, config.pace, speed.solution
    hints, guided = problems * g.paths * g.hints, problems * pace.per_problem
    scored = guided + hints * g.continuations + problems
    demands = {"forced": 1, "rollout": config.pure.rollouts}.get(config.pure.reading, 0)
    points = 4 + (pace.updates // pace.curve_every if pace.curve_every else 0)
    whole = speed.prompt + length
    work = (("sample", problems * config.sample.n, length, speed.sampled),
            ("answer-guided", guided, length, speed.sampled),
            ("hints", hints if g.hint == "bridge" else 0, length, speed.sampled),
            ("repairs", hints * g.continuations, length, speed.sampled),
            ("score", scored, whole, speed.scored),
            ("uncertainty", demands * math.ceil(scored * speed.steps),
             length if config.pure.reading == "rollout" else 1, speed.sampled),
            ("train two students", 2 * pace.updates * pace.batch, whole, speed.learnt),
            ("learning curves", 2 * points * probe, length, speed.sampled),
            ("evaluate four models", 4 * heldout * (config.eval_n + 1), length, speed.sampled))
    return [Stage(name, count, math.ceil(count * size), count * size / rate / 3600 / processes)
            for name, count, size, rate in work if count]


def free_bytes(device: torch.device) -> int:
    """Memory that a device has left, in bytes."""
    if device.type == "cpu":
        return psutil.virtual_memory().available
    return torch.accelerator.get_memory_info(device)[0]


def plan_text(stages: Sequence[Stage], teacher: LM, student: LM, config: HealConfig, speed: Speed
              ) -> str:
    """The plan for people: stages, memory (of the largest batches), and what was measured."""
    total = Stage("total", *(sum(column) for column in list(zip(*stages, strict=True))[1:]))
    lines = [f"{'at most':<22}{'sequences':>12}{'tokens':>16}{'hours':>9}"]
    for name, count, tokens, hours in (*stages, total):
        lines.append(f"{name:<22}{count:>12,}{tokens:>16,}{hours:>9.2f}")
    length = math.ceil(speed.prompt + speed.solution)
    sampled = min(teacher.max_batch, max(s.sequences for s in stages))
    learnt = min(student.max_batch, config.pace.batch // config.pace.accumulate)
    sampling, training = (count(lm.model.config, batch, length, lm.model.dtype.itemsize)
                          for count, lm, batch in ((sampling_bytes, teacher, sampled),
                                                   (training_bytes, student, learnt)))
    for name, need in (("teacher, sampling", sampling), ("student, training", training)):
        parts = ", ".join(f"{k} {v / GIB:.2f} GiB" for k, v in need.items())
        lines.append(f"memory, {name}: {parts}")
    cards = len(set(getattr(teacher.model, "hf_device_map", {"": 0}).values()))
    free = cards * free_bytes(teacher.device)
    loaded = sampling["weights"]
    if max(sum(sampling.values()) - loaded, sum(training.values())) > free:
        lines.append(f"MORE THAN THERE IS: {free / GIB:.2f} GiB are free; lower --max-batch")
    lines.append(f"measured: {speed.sampled:,.0f} tokens sampled, {speed.scored:,.0f} scored, "
                 f"{speed.learnt:,.0f} learnt per second; prompts {speed.prompt:.0f}, solutions "
                 f"{speed.solution:.0f} tokens in {speed.steps:.0f} steps")
    return "\n".join(lines)
