"""Low-rank adapters (LoRA) by peft: trained in place of all weights, where memory is short.

The student's weights stay as they are; beside each of its linear layers, the output layer excepted,
an adapter learns a change of rank r: W + 2·B·A, with A (r, in) random and B (out, r) 0 at first.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers.trainer_utils import set_seed

from heal_ref.records import InputError

ADAPTER = "adapter"  # folder of an adapter's files, within that of the student


def import_peft() -> Any:
    """The module peft; InputError if it is not installed."""
    try:
        import peft
    except ImportError as e:
        raise InputError("LoRA needs peft, which is not installed; pip install peft==0.21.2, or "
                         "leave out --lora (pace.lora)") from e
    return peft


def adapted(model: Any, rank: int, adapter: Path | None, seed: int) -> Any:
    """`model` with adapters that learn: those in the folder `adapter`, or new ones.

    It keeps bfloat16 weights, since none of them changes; adapters are float32. Their scale
    is alpha / rank = 2, as in TRL's defaults (32 / 16), without dropout, so that a run that is
    resumed learns the same.
    """
    peft, base = import_peft(), model
    sharded = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"  # wants one dtype
    if base.dtype != torch.bfloat16 or sharded:
        base = base.float()
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # peft's, of its calls
        if adapter is not None:
            return peft.PeftModel.from_pretrained(base, adapter, is_trainable=True)
        set_seed(seed)
        try:
            return peft.get_peft_model(base, peft.LoraConfig(
                task_type="CAUSAL_LM", r=rank, lora_alpha=2 * rank, target_modules="all-linear"))
        except ValueError as e:
            raise InputError(f"{type(model).__name__} takes no adapter ({e}); leave out "
                             "--lora") from e


def merged(model: Any, adapter: Path) -> Any:
    """`model`, in float32, with the adapters in the folder `adapter` added to it."""
    peft, base = import_peft(), model.float()
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        return peft.PeftModel.from_pretrained(base, adapter).merge_and_unload()
