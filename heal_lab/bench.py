"""Speed against what people use today: both sides in one process, taken in turns, medians, a ratio.

`python -m heal_lab bench sample | score`. The weights are random: how long a token takes does not depend on what it says.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TypeVar

import torch
from tqdm.auto import tqdm
from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from heal_ref.config import SampleConfig
from heal_ref.generation import generate, repeats
from heal_ref.model import LM, processes
from heal_ref.scoring import Head, head_stats

ROUNDS = 7


@dataclass(frozen=True)
class Comparison:
    """Seconds of each round for two ways of doing the same thing."""

    name: str
    ours: list[float]
    theirs: list[float]
    note: str = ""

    @property
    def ratio(self) -> float:
        """Median seconds of theirs over ours: above 1, ours is faster."""
        return statistics.median(self.theirs) / statistics.median(self.ours)

    def __str__(self) -> str:
        ours, theirs = statistics.median(self.ours), statistics.median(self.theirs)
        return (f"{self.name}\n  ours {ours:.3f} s [{min(self.ours):.3f}, {max(self.ours):.3f}]   theirs {theirs:.3f} s "
                f"[{min(self.theirs):.3f}, {max(self.theirs):.3f}]   theirs / ours {self.ratio:.2f}{self.note}")


Side = Callable[[], object]


def compare(name: str, ours: Side, theirs: Side, rounds: int = ROUNDS, note: str = "") -> Comparison:
    """Time both sides in turns, after one untimed call of each; the order changes from round to round."""
    times: dict[Side, list[float]] = {ours: [], theirs: []}
    ours(), theirs()
    for i in tqdm(range(rounds), name, leave=False):
        for side in (ours, theirs) if i % 2 else (theirs, ours):
            start = time.perf_counter()
            side()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times[side].append(time.perf_counter() - start)
    return Comparison(name, times[ours], times[theirs], note)


def random_lm(hidden: int = 768, layers: int = 8, vocabulary: int = 32_768) -> LM:
    """A Qwen3 model with random weights that never ends a text. They are large enough for what stands far back to
    matter: with the usual ones, nearly the same greedy text comes out whatever the prefix says."""
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(Qwen3Config(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=3 * hidden, num_hidden_layers=layers, head_dim=64,
        num_attention_heads=hidden // 64, num_key_value_heads=max(1, hidden // 256), tie_word_embeddings=False,
        initializer_range=1.4 * hidden**-0.5, bos_token_id=None, eos_token_id=None, pad_token_id=0))
    return LM(model.to(processes().device).eval(), SimpleNamespace(pad_token_id=0, eos_token_id=None))


def _plain(lm: LM, ids: torch.Tensor, new_tokens: int, **more: object) -> torch.Tensor:
    """transformers' generate, as one would call it."""
    settings = GenerationConfig(max_new_tokens=new_tokens, pad_token_id=0, **more)
    return lm.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings)


def bench_sample(rounds: int = ROUNDS, prefix: int = 1024, new_tokens: int = 64, n: int = 20, batch: int = 16,
                 lm: LM | None = None) -> list[Comparison]:
    """Two comparisons with plain `generate`: what recording entropy costs, and what sharing a prefix saves.

    Raises:
        AssertionError: the shared prefix gives another greedy text than computing it for every continuation.
    """
    lm = lm or random_lm()
    sampling, vocabulary = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}, lm.model.config.vocab_size
    config, greedy = (SampleConfig(temperature=t, max_new_tokens=new_tokens) for t in (1.0, 0.0))
    short = torch.randint(1, vocabulary, (batch, 32), device=lm.device)
    recording = compare(
        f"recording entropy and log-prob: {batch} x {new_tokens} new tokens, vocabulary {vocabulary:,}",
        lambda: generate(lm, short.tolist(), sampling=config, seed=0), lambda: _plain(lm, short, new_tokens, **sampling), rounds)

    long = torch.randint(1, vocabulary, (1, prefix), device=lm.device)
    context, tails = repeats(long[0].tolist(), n)
    ours = generate(lm, [context], [tails], sampling=greedy, seed=0)
    theirs = _plain(lm, long.expand(n, -1), new_tokens, do_sample=False)[:, prefix:].tolist()
    assert [r.ids for r in ours] == theirs, "the shared prefix changed the greedy text"
    sharing = compare(
        f"{n} continuations of {new_tokens} tokens from one prefix of {prefix} (theirs: num_return_sequences={n})",
        lambda: generate(lm, [context], [tails], sampling=config, seed=0),
        lambda: _plain(lm, long, new_tokens, num_return_sequences=n, **sampling), rounds, note="   greedy texts equal")
    return [recording, sharing]


# --------------------------------------------------------------------------------------------- scoring


Result = TypeVar("Result")


def extra_memory(side: Callable[[], Result]) -> tuple[Result, float]:
    """What `side()` returns, and by how many MiB the memory in use rose at most on the way.

    On a GPU torch counts its own allocations. On a CPU it is the kernel's own high-water mark of the process's resident
    memory, set back first: it misses no short peak, as sampling would, and counts what libraries allocate for themselves.
    NaN where there is no such mark (it is Linux's).
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        result = side()
        return result, (torch.cuda.max_memory_allocated() - held) / 2**20
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)  # what was freed earlier goes back first, or it would be used again unseen
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = _high_water()
    except OSError:
        return side(), math.nan
    result = side()
    return result, _high_water() - before


def _high_water() -> float:
    """The largest resident memory so far, in MiB."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


Scores = tuple[torch.Tensor, torch.Tensor]  # entropy and log-prob, (N) each


def full_logits_scores(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> Scores:
    """The textbook way: all logits, their log-softmax, and Σ p log p over it."""
    logprobs = torch.log_softmax((hidden @ weight.T).float(), -1)
    return -(logprobs.exp() * logprobs).sum(-1), logprobs.gather(-1, targets[:, None])[:, 0]


def trl_scores(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> Scores:
    """TRL's chunked log-prob with the entropy it offers, at the vocabulary chunk that TRL itself asks for."""
    from trl.kernels import ChunkedLogProbFunction

    logprob, entropy, *_ = ChunkedLogProbFunction.apply(hidden, weight, None, targets, 1.0, 32_768, None, 1.0, ("entropy",))
    return entropy, logprob


def _exact_scores(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, rows: int = 64) -> Scores:
    """`full_logits_scores` in float64, a few positions at a time."""
    wide, parts = weight.double(), []
    for h, t in zip(hidden.double().split(rows), targets.split(rows), strict=True):
        logprobs = torch.log_softmax(h @ wide.T, -1)
        parts.append((-(logprobs.exp() * logprobs).sum(-1), logprobs.gather(-1, t[:, None])[:, 0]))
    entropy, logprob = (torch.cat(values) for values in zip(*parts, strict=True))
    return entropy, logprob


def _off(scores: Scores, exact: Scores) -> float:
    """The largest absolute difference of two pairs of scores."""
    return max((a - b).abs().max().item() for a, b in zip(scores, exact, strict=True))


@torch.no_grad()
def bench_score(rounds: int = ROUNDS, positions: int = 4096, vocabulary: int = 151_936, hidden: int = 1024) -> list[Comparison]:
    """Entropy and log-prob of `positions` tokens, from their hidden states on, against full logits and, where it is
    installed, TRL's chunked log-prob. Each side computes both numbers for each token, in float32. What comes before,
    the model's body, is the same for all and left out. The distributions go from nearly flat to peaked.
    """
    torch.manual_seed(0)
    device = processes().device
    states = torch.randn(positions, hidden, device=device) * torch.linspace(0.5, 6, positions, device=device)[:, None]
    weight = torch.randn(vocabulary, hidden, device=device).mul_(hidden**-0.5)
    targets = torch.randint(vocabulary, (positions,), device=device)
    sides = {"full logits": full_logits_scores}
    with contextlib.suppress(ImportError):
        import trl.kernels  # noqa: F401

        sides["TRL's chunked log-prob"] = trl_scores
    exact, ours = _exact_scores(states, weight, targets), partial(head_stats, states, Head(weight), targets)
    scores, memory = extra_memory(ours)
    found, out = _off(scores, exact), []
    for name, function in sides.items():
        theirs = partial(function, states, weight, targets)
        scores, more = extra_memory(theirs)
        out.append(compare(
            f"entropy and log-prob, both on both sides, of {positions:,} tokens, vocabulary {vocabulary:,}, hidden {hidden:,} "
            f"(theirs: {name})",
            ours, theirs, rounds, note=f"\n  extra memory: ours {memory:,.0f} MiB, theirs {more:,.0f} MiB"
            f"   off float64 by at most: ours {found:.1e}, theirs {_off(scores, exact):.1e} nats"))
    return out
