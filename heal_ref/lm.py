"""A causal language model with its tokenizer: load, sample, score.

- Contexts are token ids. Whoever cuts a text cuts its ids; nothing is decoded and encoded again.
- Seeds are arguments.
- Device and number of processes are accelerate's business: nothing here is told where it runs.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from heal_ref.config import SampleConfig
from heal_ref.entropy import split_steps
from heal_ref.generation import Rollout, generate, repeats
from heal_ref.records import InputError, Problem, Trajectory
from heal_ref.scoring import token_scores
from heal_ref.tasks import Task


def quiet() -> None:
    """Silence the libraries' own progress bars, warnings and advice; ours still show.

    Example:
        >>> import heal_ref as heal
        >>> from transformers.utils import logging
        >>> heal.quiet()
        >>> logging.is_progress_bar_enabled()
        False
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=UserWarning)


def processes() -> PartialState:
    """accelerate's view of this run: `process_index` of `num_processes`, `device`, barriers. One process by itself, or what
    `accelerate launch` (on CPUs: `torchrun`) started."""
    return PartialState() if torch.accelerator.is_available() else PartialState(cpu=True)


MAX_BATCH = 512  # sequences that are generated or scored at once
LOADING = (OSError, ValueError, KeyError, RuntimeError, SafetensorError)  # what from_pretrained raises for bad files
OutOfMemory = torch.OutOfMemoryError


@dataclass
class LM:
    """A model and its tokenizer. `max_batch`: sequences that go through it at once.

    Example:
        >>> import heal_ref as heal
        >>> lm = heal.load_lm(heal.DATA / "teacher")
        >>> ids = lm.encode("Then compute 5 + 3 = 8.")
        >>> lm.pieces(ids)  # the clock world has a token for each word, number and sign
        ['Then ', 'compute ', '5', ' + ', '3', ' = ', '8', '.']
        >>> lm.decode(ids)
        'Then compute 5 + 3 = 8.'
    """

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


def load_tokenizer(source: str | Path) -> Any:
    """The tokenizer of a model in a folder or on the hub, with a padding token.

    Raises:
        InputError: there is none, it is empty, or it has no end-of-text token.
    """
    _check_folder(str(source))
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(source))
    except LOADING as e:
        raise _unloadable(source, "tokenizer", e) from e
    if tokenizer.vocab_size <= len(tokenizer.all_special_ids):
        raise InputError(f"{source}: the tokenizer cannot be loaded, it has no words; save it beside the model with "
                         "tokenizer.save_pretrained")
    if tokenizer.eos_token_id is None:
        raise InputError(f"{source}: the tokenizer has no end-of-text token; set eos_token")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_lm(source: str | Path, *, dtype: str = "auto", max_batch: int = MAX_BATCH) -> LM:
    """Load a causal LM and its tokenizer from a folder or the hub, onto the device that accelerate picks.

    One process that sees several accelerators spreads the model over them; several processes hold a copy each.

    Args:
        dtype: "auto" for that of the saved weights, or "float32", "bfloat16", ...
        max_batch: sequences that go through the model at once: less, less memory.

    Raises:
        InputError: there is no such model, it is not whole, or it does not fit its tokenizer.

    Example:
        >>> import heal_ref as heal
        >>> teacher, student = heal.load_lm(heal.DATA / "teacher"), heal.load_lm(heal.DATA / "student")
        >>> type(teacher.model).__name__, len(teacher.tokenizer)
        ('Qwen3ForCausalLM', 71)
        >>> teacher.model.num_parameters() > student.model.num_parameters()
        True
    """
    tokenizer, state = load_tokenizer(source), processes()
    spread = {"device_map": "auto"} if state.num_processes == 1 and torch.accelerator.device_count() > 1 else {}
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(str(source), dtype=dtype, output_loading_info=True, **spread)
    except LOADING as e:
        raise _unloadable(source, "model", e) from e
    model, found = loaded
    if found["missing_keys"]:
        raise InputError(f"{source}: the model cannot be loaded, {len(found['missing_keys'])} of its weights are missing "
                         f"(such as {min(found['missing_keys'])}) and would be random; save the whole model")
    if (rows := model.get_input_embeddings().num_embeddings) < len(tokenizer):
        raise InputError(f"{source}: the tokenizer has {len(tokenizer)} tokens, the model only {rows}; they do not belong "
                         "together")
    return LM((model if spread else model.to(state.device)).eval(), tokenizer, max_batch)


def _check_folder(source: str) -> None:
    local = source.startswith((".", "/", "data/", "runs/")) or Path(source).exists()
    if local and not (Path(source) / "config.json").exists():
        raise InputError(f"{source}: no model here (config.json is missing); give a folder written by save_pretrained, "
                         "or run `python -m heal_ref build-pair` to make the tiny pair")


def _unloadable(source: str | Path, what: str, error: Exception) -> InputError:
    why = (str(error) or type(error).__name__).splitlines()[0]
    return InputError(f"{source}: the {what} cannot be loaded ({why}); check the path or name, and that all its files are "
                      "whole")


# -------------------------------------------------------------------------------------------- sampling


def make_trajectory(lm: LM, task: Task, problem: Problem, kind: str, rollout: Rollout, **origin: Any) -> Trajectory:
    """A `Trajectory` from generated tokens: its text, steps, answer and whether that is right.

    No answer counts that the text does not end behind, or that stands in a helped solution which speaks of its help.
    """
    text = lm.decode(rollout.ids)
    tells = kind != "base" and hasattr(task, "reveals_help") and task.reveals_help(text)
    answer = task.extract_answer(text) if rollout.finished and not tells else None
    return Trajectory(problem=problem, kind=kind, prompt=task.prompt(problem), text=text, token_ids=rollout.ids,
                      entropy=rollout.entropy, logprob=rollout.logprob,
                      steps=split_steps(lm.pieces(rollout.ids), task.separator), answer=answer,
                      correct=task.is_correct(problem, answer), finished=rollout.finished,
                      **{"tokens_spent": rollout.tokens_spent, **origin})


def sample(lm: LM, task: Task, problems: Sequence[Problem], n: int = 8, seed: int = 0, *,
           config: SampleConfig | None = None, show_answer: bool = False) -> list[Trajectory]:
    r"""Sample n solutions of each problem, entropy and log-prob recorded on the way.

    Args:
        config: temperature, nucleus and length limit; its `n` is overruled by the argument.
        show_answer: put the answer into the prompt: the samples of PACE's "answer-guided" (paper) stage, kind "hint".

    Returns:
        len(problems) · n trajectories, grouped by problem; `index` counts within a problem. `prompt` is the plain one,
        also with `show_answer`.

    Raises:
        FloatingPointError: the model's logits became NaN.

    Example:
        >>> import heal_ref as heal
        >>> teacher, task = heal.load_lm(heal.DATA / "teacher"), heal.ClockTask()
        >>> problem = heal.Problem("p", "Start 5; + 3; * 4", "9")
        >>> t, = heal.sample(teacher, task, [problem], n=1, config=heal.SampleConfig(temperature=0.0))
        >>> t.text.split("\n\n")
        ['We start at 5.', 'Then compute 5 + 3 = 8.', 'Then compute 8 * 4 = 9.', 'So the answer is \\boxed{9}.']
        >>> t.answer, t.correct
        ('9', True)
        >>> len(heal.sample(teacher, task, [problem], n=4, seed=1))
        4
    """
    config = config or SampleConfig()
    prompts = [lm.encode(task.answer_prompt(p, p.answer) if show_answer else task.prompt(p)) for p in problems]
    contexts, tails = zip(*[repeats(ids, n) for ids in prompts], strict=True) if prompts else ((), ())
    rollouts = generate(lm, contexts, tails, config=config, seed=seed)
    return [make_trajectory(lm, task, problems[i // n], "hint" if show_answer else "base", r, index=i % n)
            for i, r in enumerate(rollouts)]


# --------------------------------------------------------------------------------------------- scoring


def score(lm: LM, pairs: Iterable[tuple[Sequence[int], Sequence[int]]]) -> list[tuple[list[float], list[float]]]:
    r"""Entropy (nats) and log-prob of each token of `completion` after `context`, for (context, completion) pairs.

    Args:
        pairs: token ids. Behind an empty context nothing predicts the first token: its two numbers are NaN.

    Returns:
        (entropy, logprob) for each pair, each as long as its completion.

    Raises:
        InputError: a text is longer than the model's positions.
        FloatingPointError: the model's logits are NaN.

    Example:
        How probable does the teacher find 5 + 3 = 8, and how probable 5 + 3 = 9?

        >>> import heal_ref as heal
        >>> import math
        >>> lm, task = heal.load_lm(heal.DATA / "teacher"), heal.ClockTask()
        >>> prompt = task.prompt(heal.Problem("p", "Start 5; + 3; * 4", "9"))
        >>> context = lm.encode(prompt + "We start at 5.\n\nThen compute 5 + 3 = ")
        >>> pairs = [(context, lm.encode(result)) for result in ("8", "9")]
        >>> [round(math.exp(logprob[0]), 2) for entropy, logprob in heal.score(lm, pairs)]
        [1.0, 0.0]
    """
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
