"""Continue texts: transformers' `generate`, with entropy recorded on the way and prefixes computed once.

- Entropy is recorded by a logits processor that runs before any warping and keeps two numbers a token, never the logits.
- Texts that begin alike share the computation of their beginning through the cache.
- The global random state is left as it was found.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, SuppressTokensLogitsProcessor

from heal_ref.config import SampleConfig
from heal_ref.entropy import entropy_and_log_total, split_steps
from heal_ref.model import LM
from heal_ref.records import Problem, Trajectory
from heal_ref.tasks.base import Task


@dataclass(frozen=True)
class Rollout:
    """Newly generated tokens (T, end-of-text left out) with raw entropy (nats) and log-prob of each."""

    ids: list[int]
    entropy: list[float]
    logprob: list[float]
    finished: bool  # the model ended the text itself

    @property
    def tokens_spent(self) -> int:
        return len(self.ids) + self.finished


class _Recorder(LogitsProcessor):
    """Sees the raw scores of each step before any warping; keeps (B,) entropy and log-prob, not (B, V) scores."""

    def __init__(self) -> None:
        self.entropy: list[torch.Tensor] = []
        self.logprob: list[torch.Tensor] = []
        self.last: tuple[torch.Tensor, torch.Tensor] | None = None  # raw scores (B, V) and log Z of the step before

    def settle(self, tokens: torch.Tensor) -> None:
        """The token that was drawn from the last scores is known only one call later."""
        assert self.last is not None, "a token was drawn before any scores were seen"
        scores, log_total = self.last
        self.logprob.append(scores.gather(-1, tokens[:, None]).squeeze(-1) - log_total)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if self.last is not None:
            self.settle(input_ids[:, -1])
        entropy, log_total = entropy_and_log_total(scores)
        self.entropy.append(entropy)
        self.last = scores, log_total  # generate() hands out a copy of the logits, and no warper writes into it
        return scores


def left_pad(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, T) ids padded on the left, and their attention mask."""
    longest = max(map(len, rows))
    ids = torch.tensor([[pad] * (longest - len(r)) + list(r) for r in rows], device=device)
    mask = torch.tensor([[0] * (longest - len(r)) + [1] * len(r) for r in rows], device=device)
    return ids, mask


class Job(NamedTuple):
    """One text to continue: the first `visible` tokens of `context`, then `tail`."""

    context: tuple[int, ...]
    tail: list[int]
    visible: int

    @property
    def text(self) -> list[int]:
        return [*self.context[: self.visible], *self.tail]


def repeats(ids: Sequence[int], n: int) -> tuple[list[int], list[list[int]]]:
    """(context, tails) for `generate` that continue the text `ids` n times: all but its last token is shared."""
    return list(ids[:-1]), [list(ids[-1:])] * n


@torch.no_grad()
def generate(lm: LM, contexts: Sequence[Sequence[int]], tails: Sequence[Sequence[Sequence[int]]] | None = None, *,
             sampling: SampleConfig, seed: int, visible: Sequence[Sequence[int]] | None = None, ends: bool = True,
             seconds: float | None = None) -> list[Rollout]:
    r"""Continue each context (token ids) once; with `tails`, once behind each of its tails.

    Args:
        tails: for each context a list of token-id lists, none of them empty: what differs between its
            continuations. A context is computed once and its tails share it through the cache; for a model whose
            cache cannot be repeated a RuntimeWarning is given and it is computed for each.
        visible: for each tail, how many tokens of its context stand before it; without it, all of them.
        ends: whether the model may end the text before the length limit.
        seconds: stop a batch after so long, wherever it stands; for measuring speed.

    Returns:
        One rollout for each context, or for each of its tails, in order. Temperature 0 is greedy. The same seed
        gives the same rollouts on the same machine; the global random state is not touched.

    Raises:
        FloatingPointError: the model's logits became NaN.

    Example:
        One prompt, computed once, continued by a token behind each of two beginnings:

        >>> import heal_ref as heal
        >>> lm, task = heal.load_lm(heal.DATA / "teacher"), heal.ClockTask()
        >>> prompt = lm.encode(task.prompt(heal.Problem("p", "Start 5; + 3; * 4", "9")))
        >>> first = "We start at 5.\n\nThen compute 5 + 3 = "
        >>> tails = [lm.encode(first), lm.encode(first + "8.\n\nThen compute 8 * 4 = ")]
        >>> one_token = heal.SampleConfig(temperature=0.0, max_new_tokens=1)
        >>> [lm.decode(r.ids) for r in heal.generate(lm, [prompt], [tails], sampling=one_token, seed=0)]
        ['8', '9']
    """
    texts = [tuple(c) for c in contexts]
    tails = tails or [[[]]] * len(texts)
    visible = visible or [[len(c)] * len(mine) for c, mine in zip(texts, tails, strict=True)]
    jobs = [Job(c, list(t), v) for c, mine, seen in zip(texts, tails, visible, strict=True)
            for t, v in zip(mine, seen, strict=True)]
    out: list[Rollout] = []
    with torch.random.fork_rng(devices=[lm.device] if lm.device.type == "cuda" else []):
        torch.manual_seed(seed)
        for start in range(0, len(jobs), lm.max_batch):
            out += _generate_batch(lm, jobs[start : start + lm.max_batch], sampling, ends, seconds)
    return out


def _generate_batch(lm: LM, jobs: Sequence[Job], config: SampleConfig, ends: bool, seconds: float | None) -> list[Rollout]:
    """Continue the text of each job, in one batch."""
    pad, eos = lm.tokenizer.pad_token_id, lm.tokenizer.eos_token_id
    sampling = {"do_sample": True, "temperature": config.temperature, "top_k": 0, "top_p": config.top_p}
    settings = GenerationConfig(max_new_tokens=config.max_new_tokens, pad_token_id=pad, eos_token_id=eos, max_time=seconds,
                                **(sampling if config.temperature > 0 else {"do_sample": False}))
    shared = share_contexts(lm, jobs)
    ids, mask = shared.pop("rows") if shared else left_pad([job.text for job in jobs], pad, lm.device)
    recorder = _Recorder()
    processors = LogitsProcessorList([recorder])
    if not ends:
        processors.append(SuppressTokensLogitsProcessor([eos], str(lm.device)))
    full = lm.model.generate(input_ids=ids, attention_mask=mask, generation_config=settings, logits_processor=processors,
                             **shared)
    new = full[:, ids.shape[1] :]
    recorder.settle(new[:, -1])
    return _cut_rollouts(new, torch.stack(recorder.entropy, 1), torch.stack(recorder.logprob, 1), eos)


def share_contexts(lm: LM, jobs: Sequence[Job]) -> dict[str, Any]:
    """Compute each different context once and repeat its cache for its jobs.

    Returns:
        `rows`: ids and mask (B, C + S), contexts and tails each padded on the left, and `past_key_values`, a cache
        of the first C positions. Empty if no two jobs share a context, or if the cache cannot be repeated.
    """
    different = {c: i for i, c in enumerate(dict.fromkeys(job.context for job in jobs))}
    if len(different) == len(jobs) or () in different or not all(job.tail for job in jobs):
        return {}
    pad, eos = lm.tokenizer.pad_token_id, lm.tokenizer.eos_token_id
    ids, mask = left_pad(list(different), pad, lm.device)
    # One greedy token, thrown away: generate() prepares the inputs as the model wants them and fills the cache.
    cache = lm.model.generate(input_ids=ids, attention_mask=mask, generation_config=GenerationConfig(
        max_new_tokens=1, do_sample=False, pad_token_id=pad, eos_token_id=eos, return_dict_in_generate=True)).past_key_values
    if not _repeatable(cache, jobs):
        warnings.warn(f"the cache of {type(lm.model).__name__} cannot be repeated: every continuation computes its whole "
                      "context again, which gives the same text more slowly", RuntimeWarning, stacklevel=2)
        return {}
    rows = torch.tensor([different[job.context] for job in jobs], device=lm.device)
    cache.batch_select_indices(rows)
    hidden = torch.tensor([len(job.context) - job.visible for job in jobs], device=lm.device)
    from_the_end = torch.arange(ids.shape[1], 0, -1, device=lm.device)
    context_mask = mask[rows] * (from_the_end > hidden[:, None])
    tail, tail_mask = left_pad([job.tail for job in jobs], pad, lm.device)
    return {"rows": (torch.cat([ids[rows], tail], 1), torch.cat([context_mask, tail_mask], 1)), "past_key_values": cache}


def _repeatable(cache: Any, jobs: Sequence[Job]) -> bool:
    """Whether rows of a cache can be picked, as often as wanted. Not those of state-space models; nor of a sliding
    window with something masked between what is visible and what comes next, which would take up room in the window."""
    layers = getattr(cache, "layers", None) or []
    sliding = any(getattr(layer, "is_sliding", False) for layer in layers)
    gapless = len({len(job.tail) for job in jobs}) == 1 and all(job.visible == len(job.context) for job in jobs)
    return bool(layers) and all(hasattr(layer, "batch_select_indices") for layer in layers) and (gapless or not sliding)


def _cut_rollouts(new: torch.Tensor, entropy: torch.Tensor, logprob: torch.Tensor, eos: int) -> list[Rollout]:
    """Rows of (B, T) tensors up to the end-of-text token; what follows it is padding."""
    rows = zip(new.tolist(), entropy.tolist(), logprob.tolist(), strict=True)
    return [Rollout(ids[: (t := ids.index(eos) if eos in ids else len(ids))], [round(x, 6) for x in h[:t]],
                    [round(x, 6) for x in p[:t]], t < len(ids)) for ids, h, p in rows]


# -------------------------------------------------------------------------------------------- sampling


def make_trajectory(lm: LM, task: Task, problem: Problem, source: str, rollout: Rollout, **origin: Any) -> Trajectory:
    """A `Trajectory` from generated tokens: its text, steps, answer and whether that is right.

    No answer counts that the text does not end behind, or that stands in a helped solution which speaks of its help.
    """
    text = lm.decode(rollout.ids)
    tells = source != "base" and task.reveals_help(problem, text)
    answer = task.extract_answer(text) if rollout.finished and not tells else None
    return Trajectory(problem=problem, source=source, prompt=task.prompt(problem), text=text, token_ids=rollout.ids,
                      entropy=rollout.entropy, logprob=rollout.logprob,
                      steps=split_steps(lm.pieces(rollout.ids), task.separator), answer=answer,
                      correct=task.is_correct(problem, answer), finished=rollout.finished,
                      **{"tokens_spent": rollout.tokens_spent, **origin})


def sample(lm: LM, task: Task, problems: Sequence[Problem], n: int | None = None, *,
           seed: int = 0, sampling: SampleConfig | None = None, guided: bool = False) -> list[Trajectory]:
    r"""Sample n solutions of each problem, entropy and log-prob recorded on the way.

    Args:
        n: solutions of each problem; without it, as many as `sampling` says.
        sampling: temperature, nucleus and length limit.
        guided: put the answer into the prompt: the samples of PACE's "answer-guided" (paper) stage, source "guided".

    Returns:
        len(problems) · n trajectories, grouped by problem; `index` counts within a problem. `prompt` is the plain one,
        also with `guided`.

    Raises:
        FloatingPointError: the model's logits became NaN.

    Example:
        >>> import heal_ref as heal
        >>> teacher, task = heal.load_lm(heal.DATA / "teacher"), heal.ClockTask()
        >>> problem = heal.Problem("p", "Start 5; + 3; * 4", "9")
        >>> t, = heal.sample(teacher, task, [problem], n=1, sampling=heal.SampleConfig(temperature=0.0))
        >>> t.text.split("\n\n")
        ['We start at 5.', 'Then compute 5 + 3 = 8.', 'Then compute 8 * 4 = 9.', 'So the answer is \\boxed{9}.']
        >>> t.answer, t.correct
        ('9', True)
        >>> len(heal.sample(teacher, task, [problem], n=4, seed=1))
        4
    """
    sampling = sampling or SampleConfig()
    n = sampling.n if n is None else n
    prompts = [lm.encode(task.guided_prompt(p, p.answer) if guided else task.prompt(p)) for p in problems]
    contexts, tails = zip(*[repeats(ids, n) for ids in prompts], strict=True) if prompts else ((), ())
    rollouts = generate(lm, contexts, tails, sampling=sampling, seed=seed)
    return [make_trajectory(lm, task, problems[i // n], "guided" if guided else "base", r, index=i % n)
            for i, r in enumerate(rollouts)]
