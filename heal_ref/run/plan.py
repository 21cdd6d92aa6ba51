"""What a run will cost before it starts: sequences, tokens, hours, and the memory of each phase.

*At most* is a bound: every problem needs help and every text is as long as it may be. *Expected* is
what the texts of the measured minute say (`measure.py`). Memory is counted from a model's
configuration; the model need not be loaded.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.pytorch_utils import Conv1D

from heal_ref.config import HealConfig
from heal_ref.gear import WRITTEN
from heal_ref.memory import GIB, in_memory
from heal_ref.model import LM, MAX_BATCH, processes
from heal_ref.run.speed import Expected, Speed, Writer
from heal_ref.scoring import COLUMNS, MANY_COLUMNS, ROWS
from heal_ref.train import parts_of_a_batch

SCORED = 256  # trajectories in a shard of scores


class Work(NamedTuple):
    """An amount of work."""

    sequences: int
    tokens: int
    hours: float


class Stage(NamedTuple):
    """One stage of a run: at most, and as expected; its phase (`phases.PHASES`), and how many of
    its sequences come together at most, before they are cut into batches."""

    name: str
    sequences: int
    tokens: int
    hours: float
    expected: Work
    phase: str
    rows: int


def parameters(config: PreTrainedConfig) -> int:
    """Number of weights, counted on a model without memory."""
    return _outline(config).num_parameters()


def adapter_parameters(config: PreTrainedConfig, rank: int) -> int:
    """Number of weights in adapters of this rank (`lora.py`): A and B of each linear layer."""
    model = _outline(config)
    layers = {m for m in model.modules() if isinstance(m, torch.nn.Linear | Conv1D)}
    return rank * sum(sum(m.weight.shape) for m in layers - {model.get_output_embeddings()})


def _outline(config: PreTrainedConfig) -> Any:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def cache_bytes(config: PreTrainedConfig, width: int = 2) -> int:
    """Bytes of key-value cache per token; `width` is bytes per number (bf16 2, fp32 4)."""
    _, kept, dim = _heads(config)
    return 2 * config.num_hidden_layers * kept * dim * width


def _heads(config: PreTrainedConfig) -> tuple[int, int, int]:
    """Heads, key-value heads, and numbers in a head."""
    heads = config.num_attention_heads
    kept = getattr(config, "num_key_value_heads", None) or heads
    return heads, kept, getattr(config, "head_dim", None) or config.hidden_size // heads


def sampling_bytes(config: PreTrainedConfig, sequences: int, length: int, width: int = 2
                   ) -> dict[str, int]:
    """Bytes for sampling: weights, cache at full length, and one step's logits (four copies)."""
    return {"weights": parameters(config) * width,
            "cache": sequences * length * cache_bytes(config, width),
            "logits": 4 * sequences * config.vocab_size * 4}


def scoring_bytes(config: PreTrainedConfig, sequences: int, length: int, width: int = 2
                  ) -> dict[str, int]:
    """Bytes for scoring: weights, one layer's activations (and its input), the mask of attention,
    and a tile of logits."""
    _, inner, per_layer = _numbers(config)
    columns = COLUMNS.get(processes().device.type, MANY_COLUMNS)
    return {"weights": parameters(config) * width,
            "activations": sequences * length * (per_layer - inner) * width,
            "mask": sequences * length**2,
            "tile": 2 * min(ROWS, sequences * length) * min(columns, config.vocab_size) * 4}


def training_bytes(config: PreTrainedConfig, sequences: int, length: int, width: int = 2, *,
                   lora: int = 0, frozen: int = 4, checkpointing: bool = False) -> dict[str, int]:
    """Bytes for an AdamW update: states, activations that are kept for the gradient, logits (three
    copies). A weight that learns needs 16 (itself, gradient and two moments, in float32). With
    adapters of rank `lora` these learn, and the model's weights need `frozen` bytes each. With
    gradient checkpointing one layer's activations are kept, and each layer's input."""
    weights, tokens, layers = parameters(config), sequences * length, config.num_hidden_layers
    hidden, _, per_layer = _numbers(config)
    kept = per_layer + layers * hidden if checkpointing else layers * per_layer
    states = 16 * adapter_parameters(config, lora) + frozen * weights if lora else 16 * weights
    return {"states": states, "activations": tokens * kept * width,
            "logits": 3 * tokens * config.vocab_size * 4}


def _numbers(config: PreTrainedConfig) -> tuple[int, int, int]:
    """Hidden size, feed-forward size, and how many numbers per token a layer keeps for its
    gradient: two norms (three each), queries and output, keys and values, four feed-forward."""
    hidden, (heads, kept, dim) = config.hidden_size, _heads(config)
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    return hidden, inner, 6 * hidden + 2 * dim * (heads + kept) + 4 * inner


def plan(config: HealConfig, problems: int, heldout: int, speed: Speed, processes: int = 1,
         probe: int = 0, max_batch: int = MAX_BATCH) -> list[Stage]:
    """The stages of `pipeline.run` on as many processes; `probe` problems on a learning curve."""
    # 1) how the two write, and what became of the problems that were tried
    c, g, per = config, config.gear, config.sample.batch
    teacher = speed.teacher or Writer(1 / speed.sampled, (speed.solution,), speed.solution)
    student = speed.student or teacher
    e = speed.expected or Expected(1.0, 1.0, g.paths)
    written, pure = g.hint in WRITTEN, c.pure.reading
    parts, held = math.ceil(problems / per), math.ceil(heldout / per)
    most, new = teacher.most, teacher.lengths
    rest = tuple(max(1.0, length - e.kept) for length in new)  # of a text, after its cut
    # 2) sequences at most, and expected
    guided, repairs = problems * c.pace.per_problem, problems * g.paths * g.hints * g.continuations
    wanted = problems * e.paths * g.hints
    mended = wanted * e.usable * g.continuations
    scored = guided + repairs + problems
    right = guided * e.guided * e.right + mended + problems * e.solved  # as if all repairs were
    trained = (e.solved > 0) + (right > 0)  # students that have something to learn from
    demands = {"forced": 1, "rollout": c.pure.rollouts}.get(pure, 0)
    answers = (most, new) if pure == "rollout" else (1, (1.0,))
    points = 4 + (c.pace.updates // c.pace.curve_every if c.pace.curve_every else 0)
    stages: list[Stage] = []

    def add(name: str, phase: str, rows: int, *work: tuple[float, float, float, float, float,
                                                           float]) -> None:
        """Add up parts: sequences, tokens and seconds at most, and the same as expected."""
        total = [sum(column) for column in zip(*work, strict=True)]
        at_most, expected = (Work(math.ceil(count), math.ceil(tokens), seconds / 3600 / processes)
                             for count, tokens, seconds in (total[:3], total[3:]))
        if at_most.sequences:
            stages.append(Stage(name, *at_most, expected, phase, min(rows, at_most.sequences)))

    def writes(writer: Writer, shards: int, bound: float, count: float, lengths: Sequence[float],
               limit: float = most, prefill: float = 0.0
               ) -> tuple[float, float, float, float, float, float]:
        return (bound, bound * limit,
                writer.seconds(bound, (limit,), shards, max_batch) + bound * prefill,
                count, count * float(np.mean(lengths)),
                writer.seconds(count, lengths, shards, max_batch) + count * prefill)

    def reads(rate: float, bound: float, count: float
              ) -> tuple[float, float, float, float, float, float]:
        long, mean = speed.prompt + most, speed.prompt + float(np.mean(new))
        return bound, bound * long, bound * long / rate, count, count * mean, count * mean / rate

    # 3) the stages. What a sample reads is part of its measured steps; a repair reads more
    cut = (speed.prompt + e.kept) / speed.scored if speed.teacher else 0.0  # seconds per path
    add("sample", "sample", per * c.sample.n,
        writes(teacher, parts, problems * c.sample.n, problems * c.sample.n, new))
    add("answer-guided", "guided", per * c.pace.per_problem,
        writes(teacher, parts, guided, guided * e.guided, e.led or new))
    add("hints", "repair", per * g.paths * g.hints,
        writes(teacher, parts, written * problems * g.paths * g.hints, written * wanted,
               e.hints or new, prefill=cut / g.hints))
    add("repairs", "repair", per * g.paths * g.hints * g.continuations,
        writes(teacher, parts, repairs, mended, rest,
               prefill=cut / (g.hints * g.continuations)))
    add("score", "score", SCORED, reads(speed.scored, scored, right))
    add("uncertainty", "score", max_batch, writes(
        teacher, math.ceil(scored / SCORED), demands * math.ceil(scored * speed.steps),
        demands * right * speed.steps, answers[1], answers[0]))
    learnt = 2 * c.pace.updates * c.pace.batch
    add("train two students", "train", c.pace.batch,
        reads(speed.learnt, learnt, learnt * trained / 2))
    add("learning curves", "train", probe,
        writes(student, 2 * points, 2 * points * probe, trained * points * probe, new))
    add("evaluate four models", "evaluate", per * c.eval_n, *(
        writes(writer, held, heldout * n, share * heldout * n, lengths) for n in (c.eval_n, 1)
        for writer, lengths, share in (
            (student, student.lengths, 1.0), (teacher, new, 1.0),
            (student, new, trained / 2), (student, new, trained / 2))))
    return stages


def memory(stages: Sequence[Stage], teacher: LM, student: LM, config: HealConfig, speed: Speed,
           expected: bool = False) -> dict[str, dict[str, int]]:
    """Bytes of the largest batch of each phase, by what they are for; `base` is the process. At
    most, or with as many sequences as `expected`."""
    kept = speed.expected.kept if speed.expected else speed.solution
    most = speed.teacher.most if speed.teacher else speed.solution
    length, whole = (math.ceil(speed.prompt + n) for n in (most, most + kept))  # repairs are longer
    out: dict[str, dict[str, int]] = {}
    for s in stages:
        for lm in {"train": (student,), "evaluate": (teacher, student)}.get(s.phase, (teacher,)):
            share = s.expected.sequences / s.sequences if expected else 1.0
            width, rows = lm.dtype.itemsize, min(math.ceil(s.rows * share), lm.max_batch)
            training = partial(training_bytes, lm.config, lora=config.pace.lora,
                               frozen=2 if lm.dtype == torch.bfloat16 else 4,
                               checkpointing=config.pace.checkpointing)
            if s.name == "score":
                need = scoring_bytes(lm.config, rows, whole, width)
            elif s.name == "train two students":
                rows //= parts_of_a_batch(config.pace, lm)
                need = training(max(1, rows), whole, width if lm.device.type != "cpu" else 4)
            else:
                need = sampling_bytes(lm.config, rows, whole if s.phase == "repair" else length,
                                      width if s.phase != "train" else 4)
            need = {"base": speed.base, **need}
            if s.name == "learning curves":  # gradients and moments stay
                need["weights"] = training(0, 0)["states"]
            out[s.phase] = max(out.get(s.phase, {}), need, key=lambda parts: sum(parts.values()))
    return out


def free_bytes(device: torch.device) -> int:
    """Memory that a device has left, in bytes."""
    if device.type == "cpu":
        return psutil.virtual_memory().available
    return torch.accelerator.get_memory_info(device)[0]


def plan_text(stages: Sequence[Stage], teacher: LM, student: LM, config: HealConfig, speed: Speed
              ) -> str:
    """The plan for people: stages, memory of each phase, and what was measured."""
    works = [(s.name, Work(*s[1:4]), s.expected) for s in stages]
    total = [Work(*map(sum, zip(*column, strict=True)))  # type: ignore[arg-type]
             for column in list(zip(*works, strict=True))[1:]]
    lines = [f"{'':<22}{'at most':>37}{'expected':>37}",
             f"{'':<22}" + 2 * f"{'sequences':>12}{'tokens':>16}{'hours':>9}"]
    for name, *both in (*works, ("total", *total)):
        lines.append(f"{name:<22}" + "".join(f"{count:>12,}{tokens:>16,}{hours:>9.2f}"
                                             for count, tokens, hours in both))
    needs, fewer = (memory(stages, teacher, student, config, speed, e) for e in (False, True))
    for phase, need in needs.items():
        parts = ", ".join(f"{k} {v / GIB:.2f}" for k, v in need.items() if v)
        lines.append(f"memory, {phase}: at most {sum(need.values()) / GIB:.2f} GiB ({parts}), "
                     f"expected {sum(fewer[phase].values()) / GIB:.2f}")
    held = in_memory(teacher, student)
    cards = len(set(getattr(held[0] if held else None, "hf_device_map", {"": 0}).values()))
    free = cards * free_bytes(teacher.device) + speed.base
    free += sum(model.get_memory_footprint() for model in held)
    if max(sum(need.values()) for need in needs.values()) > free:
        lines.append(f"MORE THAN THERE IS: {free / GIB:.2f} GiB are free; lower --max-batch")
    lines.append(f"measured: {speed.sampled:,.0f} tokens sampled, {speed.scored:,.0f} scored, "
                 f"{speed.learnt:,.0f} learnt per second; prompts {speed.prompt:.0f}, solutions "
                 f"{speed.solution:.0f} tokens in {speed.steps:.0f} steps")
    return "\n".join(lines)


def by_phase(stages: Sequence[Stage], needs: Mapping[str, Mapping[str, int]]
             ) -> dict[str, dict[str, float]]:
    """What `phases` puts beside what it measured: tokens and minutes by phase, at most and
    expected, and GiB. Tokens of the learning curves are not counted there, so not here."""
    out: dict[str, dict[str, float]] = {}
    for phase, need in needs.items():
        mine = [s for s in stages if s.phase == phase]
        told = [s for s in mine if s.name != "learning curves"]
        out[phase] = {"tokens": sum(s.expected.tokens for s in told),
                      "minutes": round(sum(60 * s.expected.hours for s in mine), 2),
                      "GiB": round(sum(need.values()) / GIB, 3),
                      "tokens at most": sum(s.tokens for s in told),
                      "minutes at most": round(sum(60 * s.hours for s in mine), 2)}
    return out
