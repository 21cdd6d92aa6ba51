"""A causal language model with its tokenizer.

- Contexts are token ids. Whoever cuts a text cuts its ids; nothing is decoded and encoded again.
- Seeds are arguments.
- Device and number of processes are accelerate's business: nothing here is told where it runs.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from heal_ref.records import InputError


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
                         "or run `python -m heal_lab build-pair` to make the tiny pair")


def _unloadable(source: str | Path, what: str, error: Exception) -> InputError:
    why = (str(error) or type(error).__name__).splitlines()[0]
    return InputError(f"{source}: the {what} cannot be loaded ({why}); check the path or name, and that all its files are "
                      "whole")
