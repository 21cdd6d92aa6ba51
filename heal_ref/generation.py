"""Continue texts: transformers' `generate`, entropy recorded, shared prefixes computed once."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    SuppressTokensLogitsProcessor,
)
from transformers.cache_utils import DummyLayer, DynamicLayer
from transformers.cache_utils import LinearAttentionCacheLayerMixin as Recurrent

from heal_ref.config import SampleConfig
from heal_ref.entropy import Ids, entropy_and_log_total, left_pad, split_steps, step_ends
from heal_ref.model import LM
from heal_ref.records import Problem, Trajectory
from heal_ref.scoring import continued_stats, of_completions, text_stats, token_stats
from heal_ref.server import Server
from heal_ref.tasks.base import Task

Job = tuple[tuple[int, ...], list[int], int]  # context, tail, how much of the context is visible
PART = 16  # tokens that are asked of a server at a time while its speed is measured
LARGE = 20_000  # tokens; below, multinomial draws, as it did when the clock's records were made
FIRST, NEXT = 160, 32  # new tokens after which finished rows leave a batch, first and from then on


@dataclass(frozen=True)
class Rollout:
    """T newly generated tokens, the end left out, with raw entropy (nats) and log-prob of each."""

    ids: list[int]
    entropy: list[float]
    logprob: list[float]
    finished: bool  # the model ended the text itself
    dropped: int = 0  # tokens sampled beyond what was asked for

    @property
    def tokens_spent(self) -> int:
        return len(self.ids) + self.finished + self.dropped


class _Recorder(LogitsProcessor):
    """Keeps two numbers (batch) per step, never the logits: entropy and log-prob of the raw
    distribution, before temperature and nucleus."""

    def __init__(self) -> None:
        self.entropy: list[Tensor] = []
        self.logprob: list[Tensor] = []
        self.last: tuple[Tensor, Tensor] | None = None  # scores and log Z of the step before

    def __call__(self, input_ids: Ids, scores: Float[Tensor, "batch vocab"]
                 ) -> Float[Tensor, "batch vocab"]:
        self.settle(input_ids[:, -1])
        entropy, log_total = entropy_and_log_total(scores)
        self.entropy.append(entropy)
        self.last = scores, log_total  # generate() hands out a copy, which nothing writes into
        return scores

    def settle(self, tokens: Int[Tensor, " batch"]) -> None:
        """Log-probs of the tokens drawn from the last scores: known only one call later."""
        if self.last is not None:
            scores, log_total = self.last
            self.logprob.append(scores.gather(-1, tokens[:, None]).squeeze(-1) - log_total)


class Nucleus(LogitsProcessor):
    """The most probable tokens that together have probability `top_p` at this temperature; all
    others get −∞. transformers' own sorts the vocabulary, which at 151,936 tokens takes longer than
    the model's forward pass on a CPU; here it is the largest logits only, more if they are too few.
    """

    def __init__(self, top_p: float, temperature: float = 1.0, first: int = 256) -> None:
        self.top_p, self.temperature, self.first = top_p, temperature, first

    def __call__(self, input_ids: Ids, scores: Float[Tensor, "batch vocab"]
                 ) -> Float[Tensor, "batch vocab"]:
        scores = scores / self.temperature
        log_total = scores.logsumexp(-1, keepdim=True)
        count, size = min(self.first, scores.shape[-1]), scores.shape[-1]
        while True:
            largest = scores.topk(count).values
            mass = (largest - log_total).double().exp().cumsum(-1)
            mass = mass / mass[:, -1:] if count == size else mass  # to 1, also after rounding
            reached = mass >= self.top_p
            if count == size or bool(reached[:, -1].all()):
                break
            count = min(8 * count, size)
        needed = (~reached).sum(-1, keepdim=True).clamp(max=count - 1)
        return scores.masked_fill(scores < largest.gather(-1, needed), -torch.inf)


class Draw(LogitsProcessor):
    """Leaves one token: that at which the cumulative probability passes a number drawn per row.
    `multinomial` draws a number per token, of 151,936, which takes a fifth of the time on a CPU."""

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature

    def __call__(self, input_ids: Ids, scores: Float[Tensor, "batch vocab"]
                 ) -> Float[Tensor, "batch vocab"]:
        below = (scores / self.temperature).softmax(-1).cumsum(-1, dtype=torch.double)
        drawn = torch.rand_like(below[:, :1]) * below[:, -1:]
        token = torch.searchsorted(below, drawn, right=True)
        return torch.full_like(scores, -torch.inf).scatter(-1, token, 0.0)


class _Until(StoppingCriteria):
    """A row is done when its new text holds a separator after some text."""

    def __init__(self, lm: LM, start: int, separator: str) -> None:
        self.lm, self.start, self.separator = lm, start, separator

    def __call__(self, input_ids: Ids, scores: Any, **_: Any) -> Tensor:
        texts = [self.lm.decode(row) for row in input_ids[:, self.start :].tolist()]
        done = [self.separator in text.lstrip() for text in texts]
        return torch.tensor(done, device=input_ids.device)


def _first_step(lm: LM, rollout: Rollout, separator: str) -> Rollout:
    """A rollout up to the token that completes a separator after some text."""
    texts = enumerate(accumulate(lm.pieces(rollout.ids)), 1)
    end = next((i for i, text in texts if separator in text.lstrip()), None)
    if end is None:
        return rollout
    dropped = len(rollout.ids) - end + rollout.finished
    return Rollout(rollout.ids[:end], rollout.entropy[:end], rollout.logprob[:end], False, dropped)


def repeats(ids: Sequence[int], n: int) -> tuple[list[int], list[list[int]]]:
    """(context, tails) for `generate` to continue `ids` n times: all but its last id is shared."""
    return list(ids[:-1]), [list(ids[-1:])] * n


@torch.no_grad()
def generate(lm: LM, contexts: Sequence[Sequence[int]],
             tails: Sequence[Sequence[Sequence[int]]] | None = None, *, sampling: SampleConfig,
             seed: int, visible: Sequence[Sequence[int]] | None = None, ends: bool = True,
             seconds: float | None = None, until: str | None = None) -> list[Rollout]:
    r"""Continue each context (token ids) once, or once after each of its tails, which share it
    through the cache. One rollout for each, in order; the same for the same seed and machine.
    With `lm.server`, that samples (`server.py`); entropies and log-probs are still the model's.

    Args:
        visible: for each tail, how many tokens of its context precede it; by default all.
        ends: whether the model may end a text (`lm.ends`) before the length limit.
        seconds: stop a batch after that long; for measuring speed.
        until: a separator; a rollout ends, unfinished, with the token that completes its first step
            (`split_steps`). A server samples on; what is too much is dropped, and counted.

    FloatingPointError if the model's logits become NaN; InputError if a server fails.

    Example:
        >>> import heal_ref as heal
        >>> lm = heal.load_lm(heal.DATA / "teacher")
        >>> one = heal.SampleConfig(temperature=0.0, max_new_tokens=1)
        >>> context = lm.encode("Problem: Start 5; + 3\nSolution:\nWe start at ")
        >>> lm.decode(heal.generate(lm, [context], sampling=one, seed=0)[0].ids)
        '5'
    """
    jobs: list[Job] = []
    for i, context in enumerate(contexts):
        for j, tail in enumerate(tails[i] if tails else [[]]):
            jobs.append((tuple(context), list(tail), visible[i][j] if visible else len(context)))
    if lm.server and jobs:
        served = _served(lm, lm.server, jobs, sampling, seed, ends, seconds)
        return [_first_step(lm, r, until) for r in served] if until else served
    out: list[Rollout] = []
    # transformers draws from the global random state: seed it, and put it back afterwards
    with torch.random.fork_rng(devices=[lm.device] if lm.device.type == "cuda" else []):
        torch.manual_seed(seed)
        for start in range(0, len(jobs), lm.max_batch):
            out += _batch(lm, jobs[start : start + lm.max_batch], sampling, ends, seconds, until)
    return out


def _served(lm: LM, server: Server, jobs: Sequence[Job], sampling: SampleConfig, seed: int,
            ends: bool, seconds: float | None) -> list[Rollout]:
    """Continue the text of each job by the server, then score what it sampled."""
    texts = [[*context[:seen], *tail] for context, tail, seen in jobs]
    new, logprobs = [list[int]() for _ in jobs], [list[float]() for _ in jobs]
    finished, done, most = [False] * len(jobs), 0, sampling.max_new_tokens
    part, began = most if seconds is None else PART, time.monotonic()
    # 1) all tokens at once; or a few more at a time, until the time is over
    while (left := [i for i, ended in enumerate(finished) if not ended]) and done < most and (
            not done or time.monotonic() < began + (seconds or 0)):
        drawn, spare = server.sample(
            [texts[i] + new[i] for i in left], lm.ends, may_end=ends, seed=seed + done,
            max_tokens=min(part, most - done), temperature=sampling.temperature,
            top_p=sampling.top_p)
        for i, (ids, logprob, ended) in zip(left, drawn, strict=True):
            new[i] += ids
            logprobs[i] += logprob
            finished[i] = ended
        done += part
    # 2) entropies and log-probs by the model here, which must be the server's
    probed = text_stats(lm, [(server.probe, ids) for ids, _, _ in spare])
    server.compare([own for _, own in probed], [logprob for _, logprob, _ in spare])
    stats = sampled_stats(lm, jobs, new)
    server.compare([own for _, own in stats], logprobs)
    return [Rollout(ids, [round(x, 6) for x in entropy], [round(x, 6) for x in logprob], ended)
            for ids, (entropy, logprob), ended in zip(new, stats, finished, strict=True)]


def sampled_stats(lm: LM, jobs: Sequence[Job], new: Sequence[list[int]]
                  ) -> list[tuple[list[float], list[float]]]:
    """`text_stats` of the tokens sampled after the text of each job. A context that jobs share is
    computed once."""
    longer = [(context, [*tail, *ids], seen)
              for (context, tail, seen), ids in zip(jobs, new, strict=True)]
    out = list[tuple[list[float], list[float]]]()
    for start in range(0, len(jobs), lm.max_batch):
        batch = slice(start, start + lm.max_batch)
        ids, mask, cache = _inputs(lm, longer[batch])
        stats = (continued_stats if cache else token_stats)(lm.model, ids, mask, *cache.values())
        out += of_completions(stats, new[batch])
    return out


def _batch(lm: LM, jobs: Sequence[Job], sampling: SampleConfig, ends: bool,
           seconds: float | None, until: str | None) -> list[Rollout]:
    """Continue the text of each job, in one batch that its finished rows leave now and then."""
    # 1) only temperature and nucleus shape what is drawn (top_k would be 50 if left open)
    nucleus = sampling.temperature > 0 and sampling.top_p < 1
    stops, most = list(lm.ends), sampling.max_new_tokens
    settings = GenerationConfig(max_time=seconds, pad_token_id=lm.tokenizer.pad_token_id,
                                eos_token_id=stops or None, return_dict_in_generate=True)
    large = lm.model.config.get_text_config().vocab_size > LARGE
    temperature = 1.0 if nucleus else sampling.temperature  # `Nucleus` has both
    processors = list[LogitsProcessor]()
    if not ends:
        processors.append(SuppressTokensLogitsProcessor(stops, str(lm.device)))
    if nucleus:
        processors.append(Nucleus(sampling.top_p, sampling.temperature))
    if temperature and large:
        processors.append(Draw(temperature))
    elif temperature:
        settings.update(do_sample=True, temperature=temperature, top_k=0, top_p=1.0)
    # 2) whole texts, or tails after the cache of their contexts; our recorder sees raw scores
    ids, mask, cache = _inputs(lm, jobs)
    criteria = StoppingCriteriaList([_Until(lm, ids.shape[1], until)] if until else [])
    out, left = [Rollout([], [], [], finished=False)] * len(jobs), list(range(len(jobs)))
    done, part = 0, FIRST if seconds is None else most
    while True:
        recorder = _Recorder()
        settings.max_new_tokens = min(part, most - done)
        made = lm.model.generate(
            input_ids=ids, attention_mask=mask, generation_config=settings,
            logits_processor=LogitsProcessorList([recorder, *processors]),
            stopping_criteria=criteria, **cache)
        new = made.sequences[:, ids.shape[1] :]
        recorder.settle(new[:, -1])
        # 3) each row up to its end; what follows is padding
        numbers = torch.stack([torch.stack(recorder.entropy, 1),
                               torch.stack(recorder.logprob, 1)], 1)
        for i, row, pair in zip(left, new.tolist(), numbers.tolist(), strict=True):
            length = next((t for t, token in enumerate(row) if token in stops), len(row))
            entropy, logprob = ([round(x, 6) for x in values[:length]] for values in pair)
            out[i] = Rollout(out[i].ids + row[:length], out[i].entropy + entropy,
                             out[i].logprob + logprob, finished=length < len(row))
        # 4) the others go on, with their rows of the cache, unless the time is over
        ended = criteria(made.sequences, None).tolist() if until else [False] * len(left)
        rows = [r for r, i in enumerate(left) if not out[i].finished and not ended[r]]
        done, part, left = done + new.shape[1], NEXT, [left[r] for r in rows]
        if not left or done == most or seconds is not None:
            break
        chosen = torch.tensor(rows, device=ids.device)
        ids, mask = made.sequences[chosen], torch.cat([mask, torch.ones_like(new)], 1)[chosen]
        if _repeatable(made.get("past_key_values"), gapless=True):
            made.past_key_values.batch_select_indices(chosen)
            cache = {"past_key_values": made.past_key_values}
        else:  # computed again, once
            cache, part = {}, most
    # a row that is done is padded, so that nothing was sampled beyond its step
    return [replace(_first_step(lm, r, until), dropped=0) if until else r for r in out]


def _inputs(lm: LM, jobs: Sequence[Job]) -> tuple[Ids, Ids, dict[str, Any]]:
    """Ids and mask of all texts, and the cache of their contexts if they share any."""
    pad, device = lm.tokenizer.pad_token_id, lm.device
    contexts, tails, visible = zip(*jobs, strict=True)
    place = {context: i for i, context in enumerate(dict.fromkeys(contexts))}
    if len(place) < len(jobs) and () not in place and all(tails):
        # 1) prefill each context once. The one greedy token is thrown away: generate() prepares
        #    the inputs as this model wants them, and fills the cache that we keep
        ids, mask = left_pad(list(place), pad, device)
        once = GenerationConfig(max_new_tokens=1, pad_token_id=pad, return_dict_in_generate=True)
        filled = lm.model.generate(input_ids=ids, attention_mask=mask, generation_config=once)
        cache = filled.past_key_values
        hidden = [len(context) - seen for context, seen in zip(contexts, visible, strict=True)]
        if _repeatable(cache, gapless=not any(hidden) and len(set(map(len, tails))) == 1):
            # 2) repeat the cache's row of a context for each of its continuations
            rows = torch.tensor([place[context] for context in contexts], device=device)
            cache.batch_select_indices(rows)
            # 3) mask what is not visible at the end of a context; the tails come after it
            from_the_end = torch.arange(ids.shape[1], 0, -1, device=device)
            seen = mask[rows] * (from_the_end > torch.tensor(hidden, device=device)[:, None])
            tail, tail_mask = left_pad(tails, pad, device)
            return (torch.cat([ids[rows], tail], 1), torch.cat([seen, tail_mask], 1),
                    {"past_key_values": cache})
        warnings.warn(f"the cache of {type(lm.model).__name__} cannot be repeated: a context is "
                      "computed for each continuation: slower", RuntimeWarning, stacklevel=5)
    texts = [[*context[:seen], *tail] for context, tail, seen in jobs]
    return *left_pad(texts, pad, device), {}


def _repeatable(cache: Any, gapless: bool) -> bool:
    """Whether a cache's rows can be repeated: not with recurrent states; nor with a sliding window
    in which masked positions between what is visible and what comes next would take up room."""
    layers = getattr(cache, "layers", [])
    return bool(layers) and (gapless or not any(cache.is_sliding)) and all(
        isinstance(layer, DynamicLayer | DummyLayer) and not isinstance(layer, Recurrent)
        for layer in layers)


def make_trajectory(lm: LM, task: Task, problem: Problem, source: str, rollout: Rollout,
                    **origin: Any) -> Trajectory:
    """A `Trajectory` from generated tokens. Its answer counts only if generation finished, and not
    if a helped solution mentions its help."""
    text, steps = lm.decode(rollout.ids), split_steps(lm.pieces(rollout.ids), task.separator)
    tells = source != "base" and task.reveals_help(problem, text)
    answer = task.extract_answer(text) if rollout.finished and not tells else None
    return Trajectory(
        problem=problem, source=source, prompt=task.prompt(problem), text=text,
        token_ids=rollout.ids, entropy=rollout.entropy, logprob=rollout.logprob,
        steps=steps, answer=answer, correct=bool(task.is_correct(problem, answer)),
        finished=rollout.finished,
        step_ends=step_ends(text, [lm.decode(rollout.ids[a:b]) for a, b in steps]),
        **{"tokens_spent": rollout.tokens_spent, **origin})


def sample(lm: LM, task: Task, problems: Sequence[Problem], n: int | None = None, *, seed: int = 0,
           sampling: SampleConfig | None = None, guided: bool = False) -> list[Trajectory]:
    """Sample n solutions of each problem (default: `sampling.n`), entropy recorded on the way.

    With `guided`, the answer is in the prompt: for the "answer-guided" (paper) stage of PACE.
    Trajectories are grouped by problem, with source "base" or "guided" and the plain `prompt`.

    Example:
        >>> import heal_ref as heal
        >>> teacher, task = heal.load_lm(heal.DATA / "teacher"), heal.ClockTask()
        >>> t, = heal.sample(teacher, task, [heal.Problem("p", "Start 5; + 3; * 4", "9")], n=1)
        >>> t.answer, t.correct, len(t.steps)
        ('9', True, 4)
    """
    sampling = sampling or SampleConfig()
    n = sampling.n if n is None else n
    prompts = [task.guided_prompt(p, p.answer) if guided else task.prompt(p) for p in problems]
    shared = [repeats(lm.encode(prompt), n) for prompt in prompts]
    rollouts = generate(lm, [context for context, _ in shared], [tails for _, tails in shared],
                        sampling=sampling, seed=seed)
    return [make_trajectory(lm, task, problems[i // n], "guided" if guided else "base", rollout,
                            index=i % n) for i, rollout in enumerate(rollouts)]
