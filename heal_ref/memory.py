"""Models that are in memory only while a phase needs them, and the peak of that memory."""

from __future__ import annotations

import contextlib
import ctypes
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate.utils.memory import clear_device_cache

from heal_ref.model import LM, MAX_BATCH, load_lm, load_tokenizer

GIB = 2**30
REMEMBERED = ("config", "device", "dtype", "ends", "fingerprint", "weights")  # all small


def _remembered(name: str) -> Any:
    def get(lm: LazyLM) -> Any:
        if not lm.known:
            lm.known = {key: getattr(lm.alone(), key) for key in REMEMBERED}
        return lm.known[name]

    return property(get)


class LazyLM(LM):
    """An LM whose weights are in memory from their first use until `free`, and after that again.

    Its tokenizer is always there, and so is what is small, once the model was loaded.
    """

    def __init__(self, load: Callable[[], LM], tokenizer: Any, max_batch: int = MAX_BATCH,
                 served: bool = False) -> None:
        self.load, self.tokenizer, self.max_batch, self.served = load, tokenizer, max_batch, served
        self._pieces, self.known = {}, dict[str, Any]()

    config, device, dtype, ends, fingerprint, weights = map(_remembered, REMEMBERED)

    def __getattr__(self, name: str) -> Any:
        if name != "model":  # this is asked only for what is not there
            raise AttributeError(f"a LazyLM has no {name}")
        lm = self.load()
        self.model, self.connected = lm.model, lm.server
        return self.model

    def load_now(self) -> None:
        """Load the weights, and connect to the server, before they are needed."""
        assert self.model is not None

    @property
    def server(self) -> Any:  # type: ignore[override]
        """What samples in the model's place: it is compared with the model when that is loaded."""
        return self.connected if self.served and self.model is not None else None

    def own_model(self) -> Any:
        """The model itself: the next use loads another one."""
        model = self.model
        del self.model
        return model

    def free(self) -> None:
        """Let go of the weights."""
        vars(self).pop("model", None)
        release_memory()


def lazy_lm(source: str | Path, *, dtype: str = "auto", max_batch: int = MAX_BATCH,
            server: str | None = None, tokenizer: Any = None) -> LazyLM:
    """`load_lm` of the same arguments, when the weights are needed; `tokenizer` instead of its own.

    InputError if the tokenizer cannot be loaded; a model that cannot be loaded is found later.
    """
    load = partial(load_lm, source, dtype=dtype, max_batch=max_batch, server=server)
    tokenizer = load_tokenizer(source) if tokenizer is None else tokenizer
    return LazyLM(load, tokenizer, max_batch, served=server is not None)


def release_memory() -> None:
    """Give back to the system what nothing uses: models in reference cycles (a Trainer's), the
    accelerator's cache, and the C library's free heap, which it may keep for good."""
    clear_device_cache(garbage_collection=True)
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


def in_memory(*lms: LM) -> list[Any]:
    """The models of these that are loaded now, each once."""
    return list({id(lm.model): lm.model for lm in lms if "model" in vars(lm)}.values())


def used_memory() -> int:
    """Bytes that are in use now: of all accelerators, or of this process (resident)."""
    if torch.accelerator.is_available():
        return sum(map(torch.accelerator.memory_allocated, _devices()))
    return psutil.Process().memory_info().rss


def peak_memory() -> int:
    """The most bytes that were in use since `reset_peak`. Without an accelerator only Linux tells:
    elsewhere it is what is in use now."""
    if torch.accelerator.is_available():
        return sum(map(torch.accelerator.max_memory_allocated, _devices()))
    with contextlib.suppress(OSError):
        found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
        return 1024 * int(found[1]) if found else used_memory()
    return used_memory()


def reset_peak() -> None:
    """Forget the peak so far; where that is not allowed, it is the peak since the start."""
    if torch.accelerator.is_available():
        for device in _devices():
            torch.accelerator.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: VmHWM starts again


def _devices() -> range:
    return range(torch.accelerator.device_count())
