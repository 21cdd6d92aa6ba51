"""Measured in about a minute: how fast teacher and student are, what becomes of some problems."""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers.utils import is_torch_bf16_gpu_available

from heal_ref import gear, pace
from heal_ref.config import HealConfig, SampleConfig
from heal_ref.generation import Rollout, generate, make_trajectory, repeats, sample
from heal_ref.memory import in_memory, used_memory
from heal_ref.model import LM, processes
from heal_ref.records import Problem, Trajectory
from heal_ref.run.speed import Expected, Speed, Writer
from heal_ref.scoring import text_stats
from heal_ref.tasks.base import Task
from heal_ref.train import collate, encode_example, parts_of_a_batch


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
    loaded = sum(model.get_memory_footprint() for model in in_memory(teacher, student))
    return Speed(1 / (writer.each + writer.step / len(rollouts)), scored, learnt,
                 sum(map(len, prompts)) / len(prompts), solution, steps, writer, its, expected,
                 max(0, used_memory() - loaded))


def _writer(lm: LM, prompts: Sequence[list[int]], n: int, sampling: SampleConfig, seconds: float
            ) -> tuple[Writer, list[Rollout]]:
    """How `lm` writes n texts of each prompt, and as many such texts as there is time for."""
    began, most = time.monotonic(), sampling.max_new_tokens
    many = min(max(1, lm.max_batch // n), len(prompts))  # prompts in a full batch

    def write(texts: Sequence[list[int]], n: int, tokens: int, limit: float
              ) -> tuple[list[Rollout], float, int]:
        contexts, tails = zip(*[repeats(ids, n) for ids in texts], strict=True)
        start, short = time.monotonic(), replace(sampling, max_new_tokens=tokens)
        out = generate(lm, contexts, tails, sampling=short, seed=0, seconds=limit)
        return out, time.monotonic() - start, max(r.tokens_spent for r in out)

    # 1) seconds per decoding step, of a full batch and of a quarter: step + each * rows. All rows
    #    continue one prompt, so that hardly any time is spent on reading
    write(prompts[:1], n, 1, seconds)  # what is done once only is not measured
    at = {}
    for rows in dict.fromkeys(n * count for count in (max(1, many // 4), many)):
        _, first, _ = write(prompts[:1], rows, 1, seconds / 8)
        _, took, steps = write(prompts[:1], rows, min(most, 17), seconds / 8)
        at[rows] = (took - first) / (steps - 1) if steps > 1 and took > first else took / steps
    (few, fast), (full, slow) = min(at.items()), max(at.items())
    each = max(0.0, slow - fast) / (full - few) if full > few else 0.0
    step = max(0.0, fast - each * few)
    # 2) whole texts: of as many prompts as there is time for
    left, count = seconds - (time.monotonic() - began), many
    while count > 1 and most * (step + each * n * count) > left:
        count = (count + 1) // 2
    rollouts, took, steps = write(prompts[:count], n, most, max(left, 0.0))
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
    count = affordable(seconds) // c.gear.hints if c.gear.hint in gear.WRITTEN else 0
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
