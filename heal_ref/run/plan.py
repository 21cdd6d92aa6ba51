"""What a run will cost before it starts: sequences, tokens, hours, and the memory of each phase.

*At most* is a bound: every problem needs help and every text is as long as it may be. *Expected* is
what the texts that were sampled in the measured minute say. Memory is counted from a model's
configuration; the model need not be loaded.
"""

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.utils import is_torch_bf16_gpu_available

from heal_ref import gear, pace
from heal_ref.config import HealConfig, SampleConfig
from heal_ref.generation import Rollout, generate, make_trajectory, repeats, sample
from heal_ref.memory import GIB, used_memory
from heal_ref.model import LM, MAX_BATCH, processes
from heal_ref.records import Problem, Trajectory
from heal_ref.scoring import COLUMNS, MANY_COLUMNS, ROWS, text_stats
from heal_ref.tasks.base import Task
from heal_ref.train import collate, encode_example, parts_of_a_batch

SCORED = 256  # trajectories in a shard of scores


class Writer(NamedTuple):
    """How a model writes. A decoding step takes `step` seconds, and `each` for each sequence."""

    each: float
    lengths: tuple[float, ...]  # of sampled texts, in tokens; one that was cut off counts `most`
    most: float  # tokens that a text can have
    step: float = 0.0

    def seconds(self, sequences: float, lengths: Sequence[float], shards: int, at_once: int
                ) -> float:
        """Time to write texts: a batch takes as many steps as the longest of its texts."""
        calls = shards * math.ceil(sequences / shards / at_once)
        rows = sequences / max(calls, 1)
        return calls * longest(lengths, rows) * (self.step + self.each * rows)


class Expected(NamedTuple):
    """What became of the problems that were tried while measuring."""

    guided: float  # share of the problems that the teacher mostly fails
    solved: float  # share of the problems with a correct sample
    paths: float  # wrong trajectories that are repaired, per problem
    kept: float = 0.0  # tokens before the cut
    usable: float = 1.0  # share of the hints
    hints: tuple[float, ...] = ()  # lengths; empty: as those of solutions
    led: tuple[float, ...] = ()  # lengths of answer-guided samples; empty: the same
    right: float = 1.0  # share of those that are correct


class Speed(NamedTuple):
    """Tokens per second, and mean lengths in tokens; all else is measured, or follows from them."""

    sampled: float
    scored: float
    learnt: float  # by the student, forward and backward
    prompt: float
    solution: float  # the limit where most samples did not end within the minute
    steps: float = 8.0  # per solution
    teacher: Writer | None = None
    student: Writer | None = None
    expected: Expected | None = None
    base: int = 0  # bytes of the process without any model


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


def longest(lengths: Sequence[float], rows: float) -> float:
    """The mean length of the longest of so many texts: E max = Σ ℓ_i ((i/m)^rows − ((i−1)/m)^rows)
    over the m lengths in order."""
    m = len(lengths)
    return sum(length * ((i / m) ** rows - ((i - 1) / m) ** rows)
               for i, length in enumerate(sorted(lengths), start=1))


def parameters(config: PreTrainedConfig) -> int:
    """Number of weights, counted on a model without memory."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config).num_parameters()


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
                   learnt: int | None = None, checkpointing: bool = False) -> dict[str, int]:
    """Bytes for an AdamW update: states (weights and, of those that are `learnt`, gradient and two
    moments, in float32: 16 per weight), activations that are kept for the gradient, logits (three
    copies). With gradient checkpointing, one layer's activations and each layer's input."""
    weights, tokens = parameters(config), sequences * length
    hidden, _, per_layer = _numbers(config)
    layers = config.num_hidden_layers
    kept = per_layer + layers * hidden if checkpointing else layers * per_layer
    return {"states": 4 * weights + 12 * (weights if learnt is None else learnt),
            "activations": tokens * kept * width,
            "logits": 3 * tokens * config.vocab_size * 4}


def _numbers(config: PreTrainedConfig) -> tuple[int, int, int]:
    """Hidden size, feed-forward size, and how many numbers per token a layer keeps for its
    gradient: two norms (three each), queries and output, keys and values, four feed-forward."""
    hidden, (heads, kept, dim) = config.hidden_size, _heads(config)
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    return hidden, inner, 6 * hidden + 2 * dim * (heads + kept) + 4 * inner


def measure(teacher: LM, student: LM, task: Task, problems: Sequence[Problem], config: HealConfig,
            seconds: float = 60.0) -> Speed:
    """Sample, score and learn from some of the problems for about `seconds`, one token at least.

    Teacher and student are in memory one after the other, if they are of `memory.lazy_lm`.
    """
    # 1) the teacher: solutions of some problems, and hints where they are wrong
    began, c = time.monotonic(), config
    some = random.Random(0).sample(list(problems), min(len(problems), c.sample.batch))
    prompts, n = [teacher.encode(task.prompt(p)) for p in some], min(c.sample.n, teacher.max_batch)
    writer, rollouts = _writer(teacher, prompts, n, c.sample, 0.5 * seconds)
    base = [make_trajectory(teacher, task, some[i // n], "base", r, index=i % n)
            for i, r in enumerate(rollouts)]
    expected = None
    if all(r.finished or len(r.ids) == writer.most for r in rollouts):  # not cut off by the time
        left = 0.7 * seconds - (time.monotonic() - began)
        expected = _expected(teacher, task, base, c, writer, left)
    # 2) scoring
    pairs = [(prompts[i // n], r.ids) for i, r in enumerate(rollouts)]
    scored = _rate(lambda some: text_stats(teacher, some), pairs,
                   [len(context) + len(ids) for context, ids in pairs], 0.05 * seconds)
    teacher.free()
    # 3) the student: its own solutions, and what it costs to learn the teacher's
    own = task.for_tokenizer(student.tokenizer)
    asked = [student.encode(own.prompt(p)) for p in some]
    once = SampleConfig(max_new_tokens=c.sample.max_new_tokens)
    its, _ = _writer(student, asked, min(c.eval_n, student.max_batch), once, 0.2 * seconds)
    learnt = _learning(student, own, base, c, 0.05 * seconds)
    student.free()
    # 4) means
    solution, steps = float(c.sample.max_new_tokens), Speed._field_defaults["steps"]
    ended = [r for r in rollouts if r.finished]
    if 2 * len(ended) > len(rollouts):
        solution = sum(r.tokens_spent for r in ended) / len(ended)
        separators = sum(teacher.decode(r.ids).count(task.separator) for r in ended)
        steps = 1 + separators / len(ended)
    loaded = sum(model.get_memory_footprint() for model in _in_memory(teacher, student))
    base_memory = used_memory() - loaded
    return Speed(1 / (writer.each + writer.step / len(rollouts)), scored, learnt,
                 sum(map(len, prompts)) / len(prompts), solution, steps, writer, its, expected,
                 max(0, base_memory))


def _in_memory(*lms: LM) -> list[Any]:
    """The models of these that are loaded now, each once."""
    return list({id(lm.model): lm.model for lm in lms if "model" in vars(lm)}.values())


def _writer(lm: LM, prompts: Sequence[list[int]], n: int, sampling: SampleConfig, seconds: float
            ) -> tuple[Writer, list[Rollout]]:
    """How `lm` writes n texts of each prompt, and as many such texts as there is time for."""
    began, most, many = time.monotonic(), sampling.max_new_tokens, max(1, lm.max_batch // n)

    def write(count: int, tokens: int, limit: float) -> tuple[list[Rollout], float, int]:
        contexts, tails = zip(*[repeats(ids, n) for ids in prompts[:count]], strict=True)
        start, short = time.monotonic(), replace(sampling, max_new_tokens=tokens)
        out = generate(lm, contexts, tails, sampling=short, seed=0, seconds=limit)
        return out, time.monotonic() - start, max(r.tokens_spent for r in out)

    # 1) seconds per decoding step, of a full batch and of a quarter: step + each * rows
    many = min(many, len(prompts))
    write(1, 1, seconds)  # what is done once only is not measured
    at = {}
    for count in dict.fromkeys((max(1, many // 4), many)):
        _, first, _ = write(count, 1, seconds / 8)
        _, took, steps = write(count, min(most, 5), seconds / 8)
        at[n * count] = (took - first) / (steps - 1) if steps > 1 and took > first else took / steps
    (few, fast), (full, slow) = min(at.items()), max(at.items())
    each = max(0.0, slow - fast) / (full - few) if full > few else 0.0
    step = max(0.0, fast - each * few)
    # 2) whole texts: of as many prompts as there is time for
    left, count = seconds - (time.monotonic() - began), many
    while count > 1 and most * (step + each * n * count) > left:
        count = (count + 1) // 2
    rollouts, took, steps = write(count, most, max(left, 0.0))
    if steps > 8:  # later steps are slower: they read more
        scale = took / steps / (step + each * len(rollouts))
        step, each = scale * step, scale * each
    ended = [float(r.tokens_spent if r.finished else most) for r in rollouts]
    return Writer(each, tuple(ended), most, step), rollouts


def _expected(lm: LM, task: Task, base: Sequence[Trajectory], config: HealConfig, writer: Writer,
              seconds: float) -> Expected:
    """What the samples of some problems say of the others, and the answer-guided samples and hints
    of these that there is time for."""
    began, c = time.monotonic(), config

    def affordable(until: float) -> int:
        left = until - (time.monotonic() - began)
        return int(max(0.0, (left / writer.most - writer.step) / max(writer.each, 1e-9)))

    # 1) problems and paths
    solved, problems = pace.solved_share(base), {t.problem.id: t.problem for t in base}
    hard = [problems[key] for key, share in solved.items() if share < c.pace.guided_below]
    paths, _ = gear.choose_paths(base, c.gear, lambda t: gear.breakpoint_of(t, c.gear, c.seed))
    kept = sum(t.steps[k][0] for t, k in paths) / max(1, len(paths))
    found = Expected(len(hard) / len(solved), sum(s > 0 for s in solved.values()) / len(solved),
                     len(paths) / len(solved), kept)
    # 2) one answer-guided sample each, for half of the time
    if some := hard[: affordable(seconds / 2)]:
        led = sample(lm, task, some, 1, seed=c.seed, sampling=c.sample, guided=True)
        found = found._replace(led=tuple(float(t.tokens_spent) for t in led),
                               right=sum(t.correct for t in led) / len(led))
    # 3) hints, for the rest
    count = affordable(seconds) // c.gear.hints if c.gear.hint == "bridge" else 0
    if cut := paths[:count]:
        written = gear.write_hints(lm, task, cut, c.gear, c.sample, c.seed)
        hints = [hint for mine in written for hint in mine]
        found = found._replace(hints=tuple(float(h.tokens_spent) for h in hints),
                               usable=sum(h.text is not None for h in hints) / len(hints))
    return found


def _learning(student: LM, task: Task, solutions: Sequence[Trajectory], config: HealConfig,
              seconds: float) -> float:
    """Tokens per second, forward and backward, in float32 as `train` does it."""
    examples = [encode_example(student.tokenizer, task.prompt(t.problem), t.text, student.end)
                for t in solutions]
    parts = parts_of_a_batch(config.pace, student) * processes().num_processes
    pad, device = collate(student.tokenizer.pad_token_id), student.device
    model = student.own_model().float()
    half = device.type != "cpu" and is_torch_bf16_gpu_available()

    def learn(rows: Sequence[dict[str, list[int]]]) -> None:
        inputs = {k: v.to(device) for k, v in pad(rows).items() if k != "names"}
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            loss = model(**inputs).loss
        loss.backward()
        loss.item()  # an accelerator has finished only now

    return _rate(learn, examples[: max(1, config.pace.batch // parts)],
                 [len(e["input_ids"]) for e in examples], seconds)


def _rate(work: Callable[[Sequence[Any]], Any], texts: Sequence[Any], lengths: Sequence[int],
          seconds: float) -> float:
    """Tokens per second of `work`: on one text, and on twice as many while there is time."""
    count = 1
    while True:
        began = time.monotonic()
        work(texts[:count])
        took = time.monotonic() - began
        if count >= len(texts) or 3 * took > seconds:
            return sum(lengths[:count]) / took
        count = min(2 * count, len(texts))


def plan(config: HealConfig, problems: int, heldout: int, speed: Speed, processes: int = 1,
         probe: int = 0, max_batch: int = MAX_BATCH) -> list[Stage]:
    """The stages of `pipeline.run` on as many processes; `probe` problems on a learning curve."""
    # 1) how the two write, and what became of the problems that were tried
    c, g, per = config, config.gear, config.sample.batch
    teacher = speed.teacher or Writer(1 / speed.sampled, (speed.solution,), speed.solution)
    student = speed.student or teacher
    e = speed.expected or Expected(1.0, 1.0, g.paths)
    bridge, pure = g.hint == "bridge", c.pure.reading
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
        writes(teacher, parts, bridge * problems * g.paths * g.hints, bridge * wanted,
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
            if s.name == "score":
                need = scoring_bytes(lm.config, rows, whole, width)
            elif s.name == "train two students":
                rows //= parts_of_a_batch(config.pace, lm)
                need = training_bytes(lm.config, max(1, rows), whole,
                                      width if lm.device.type != "cpu" else 4)
            else:
                need = sampling_bytes(lm.config, rows, whole if s.phase == "repair" else length,
                                      width if s.phase != "train" else 4)
            need = {"base": speed.base, **need}
            if s.name == "learning curves":
                need["weights"] *= 4  # gradients and moments stay
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
    held = _in_memory(teacher, student)
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
