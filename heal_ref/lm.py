"""A causal language model with its tokenizer: load, sample, continue, score.

- Generation is transformers' `generate`. Entropy is recorded by a logits processor that runs before any warping
  and keeps two numbers a token, never the logits.
- Contexts are token ids. Whoever cuts a text cuts its ids; nothing is decoded and encoded again.
- Seeds are arguments: the global random state is left as it was found.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import PartialState
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    SuppressTokensLogitsProcessor,
)
from transformers.utils import logging

from heal_ref.config import SampleConfig
from heal_ref.entropy import entropy_and_log_total, split_steps
from heal_ref.records import InputError, Problem, Trajectory
from heal_ref.scoring import token_scores
from heal_ref.tasks import Task


def quiet() -> None:
    """Silence the libraries' own progress bars, warnings and advice; ours still show."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=UserWarning)


def processes() -> PartialState:
    """accelerate's view of this run: `process_index` of `num_processes`, `device`, barriers. One process by itself, or what
    `accelerate launch` (on CPUs: `torchrun`) started."""
    return PartialState() if torch.accelerator.is_available() else PartialState(cpu=True)


MAX_BATCH = 512  # sequences that are generated or scored at once


@dataclass
class LM:
    """A model and its tokenizer. `max_batch`: sequences that go through it at once."""

    model: Any
    tokenizer: Any
    max_batch: int = MAX_BATCH
    _pieces: dict[int, str] = field(default_factory=dict, repr=False)

    @property
    def device(self) -> torch.device:
        return self.model.device

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, no special tokens added."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids."""
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The text of each token on its own."""
        return [self._pieces.get(i) or self._pieces.setdefault(i, self.decode([i])) for i in ids]


def load_lm(source: str | Path, *, dtype: str = "auto", max_batch: int = MAX_BATCH) -> LM:
    """Load a causal LM and its tokenizer from a folder or the hub, onto the device that accelerate picks.

    Raises:
        InputError: there is no such model, it is not whole, or it does not fit its tokenizer.
    """
    source = str(source)
    local = source.startswith((".", "/", "data/", "runs/")) or Path(source).exists()
    if local and not (Path(source) / "config.json").exists():
        raise InputError(f"{source}: no model here (config.json is missing); give a folder written by save_pretrained, "
                         "or run `python -m heal_ref build-pair` to make the tiny pair")
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        model, found = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, output_loading_info=True)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as e:
        why = (str(e) or type(e).__name__).splitlines()[0]
        raise InputError(f"{source}: the model cannot be loaded ({why}); check the path or name, and that all its files are "
                         "whole") from e
    if found["missing_keys"]:
        raise InputError(f"{source}: the model cannot be loaded, {len(found['missing_keys'])} of its weights are missing "
                         f"(such as {min(found['missing_keys'])}) and would be random; save the whole model")
    if tokenizer.vocab_size <= len(tokenizer.all_special_ids):
        raise InputError(f"{source}: the tokenizer cannot be loaded, it has no words; save it beside the model with "
                         "tokenizer.save_pretrained")
    if model.get_input_embeddings().num_embeddings < len(tokenizer):
        raise InputError(f"{source}: the tokenizer has {len(tokenizer)} tokens, the model only "
                         f"{model.get_input_embeddings().num_embeddings}; they do not belong together")
    if tokenizer.eos_token_id is None:
        raise InputError(f"{source}: the tokenizer has no end-of-text token; set eos_token")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return LM(model.to(processes().device).eval(), tokenizer, max_batch)


# ------------------------------------------------------------------------------------------ generation


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
             config: SampleConfig, seed: int, visible: Sequence[Sequence[int]] | None = None, ends: bool = True,
             seconds: float | None = None) -> list[Rollout]:
    """Continue each context (token ids) once; with `tails`, once behind each of its tails.

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
    """
    contexts = [tuple(c) for c in contexts]
    tails = tails or [[[]]] * len(contexts)
    visible = visible or [[len(c)] * len(mine) for c, mine in zip(contexts, tails, strict=True)]
    jobs = [Job(c, list(t), v) for c, mine, seen in zip(contexts, tails, visible, strict=True)
            for t, v in zip(mine, seen, strict=True)]
    out: list[Rollout] = []
    with torch.random.fork_rng(devices=[lm.device] if lm.device.type == "cuda" else []):
        torch.manual_seed(seed)
        for start in range(0, len(jobs), lm.max_batch):
            out += _generate_batch(lm, jobs[start : start + lm.max_batch], config, ends, seconds)
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
    processors = [recorder] if ends else [recorder, SuppressTokensLogitsProcessor([eos], lm.device)]
    full = lm.model.generate(input_ids=ids, attention_mask=mask, generation_config=settings,
                             logits_processor=LogitsProcessorList(processors), **shared)
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


def make_trajectory(lm: LM, task: Task, problem: Problem, kind: str, rollout: Rollout, **origin: Any) -> Trajectory:
    """A `Trajectory` from generated tokens: its text, steps, answer and whether that is right."""
    text = lm.decode(rollout.ids)
    answer = task.extract_answer(text) if rollout.finished else None
    return Trajectory(problem=problem, kind=kind, prompt=task.prompt(problem), text=text, token_ids=rollout.ids,
                      entropy=rollout.entropy, logprob=rollout.logprob,
                      steps=split_steps(lm.pieces(rollout.ids), task.separator), answer=answer,
                      correct=task.is_correct(problem, answer), finished=rollout.finished,
                      **{"tokens_spent": rollout.tokens_spent, **origin})


def sample(lm: LM, task: Task, problems: Sequence[Problem], n: int = 8, seed: int = 0, *,
           config: SampleConfig | None = None, show_answer: bool = False) -> list[Trajectory]:
    """Sample n solutions of each problem, entropy and log-prob recorded on the way.

    Args:
        config: temperature, nucleus and length limit; its `n` is overruled by the argument.
        show_answer: put the answer into the prompt (PACE's answer-guided samples, kind "hint").

    Returns:
        len(problems) · n trajectories, grouped by problem; `index` counts within a problem.
    """
    config = config or SampleConfig()
    prompts = [lm.encode(task.answer_prompt(p, p.answer) if show_answer else task.prompt(p)) for p in problems]
    contexts, tails = zip(*[repeats(ids, n) for ids in prompts], strict=True) if prompts else ((), ())
    rollouts = generate(lm, contexts, tails, config=config, seed=seed)
    return [make_trajectory(lm, task, problems[i // n], "hint" if show_answer else "base", r, index=i % n)
            for i, r in enumerate(rollouts)]


# --------------------------------------------------------------------------------------------- scoring


def score(lm: LM, pairs: Iterable[tuple[Sequence[int], Sequence[int]]]) -> list[tuple[list[float], list[float]]]:
    """Entropy (nats) and log-prob of each token of `completion` after `context`, for (context, completion) pairs."""
    pairs, out = list(pairs), []
    for start in range(0, len(pairs), lm.max_batch):
        part = pairs[start : start + lm.max_batch]
        longest = max(len(c) + len(t) for c, t in part)
        rows = [[*c, *t] for c, t in part]
        ids = torch.tensor([r + [lm.tokenizer.pad_token_id] * (longest - len(r)) for r in rows], device=lm.device)
        mask = torch.tensor([[1] * len(r) + [0] * (longest - len(r)) for r in rows], device=lm.device)
        entropy, logprob = token_scores(lm.model, ids, mask)
        for (c, t), h, p in zip(part, entropy.tolist(), logprob.tolist(), strict=True):
            out.append((h[len(c) : len(c) + len(t)], p[len(c) : len(c) + len(t)]))
    return out
