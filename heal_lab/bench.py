"""Speed against standard implementations: both sides in one process, in turn; medians, a ratio."""

import ctypes
import gc
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM, TopPLogitsWarper

from heal_ref.config import SampleConfig
from heal_ref.generation import Draw, Nucleus, generate, repeats
from heal_ref.model import LM, load_lm, processes
from heal_ref.scoring import Head, head_stats

WORDS = "Tom has 3 bags of nuts; each bag holds 12 nuts. He eats 5 of them, so how many are left?"
Side = Callable[[], Any]  # one way of doing it
Rows = Float[Tensor, "rows d"]  # hidden states, one per position; weights, one per token id
Stats = tuple[Float[Tensor, " pos"], Float[Tensor, " pos"]]  # entropy and log-prob


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
        return median(self.theirs) / median(self.ours)

    def __str__(self) -> str:
        both = self.ours, self.theirs
        ours, theirs = (f"{median(x):.3f} s [{min(x):.3f}, {max(x):.3f}]" for x in both)
        times = f"ours {ours}   theirs {theirs}   theirs / ours {self.ratio:.2f}"
        return f"{self.name}\n  {times}{self.note}"


def compare(name: str, ours: Side, theirs: Side, rounds: int, note: str = "") -> Comparison:
    """Time both sides in turn, after one untimed call of each; the order alternates."""
    times: dict[Side, list[float]] = {ours: [], theirs: []}
    ours(), theirs()
    for i in range(rounds):
        for side in (ours, theirs) if i % 2 else (theirs, ours):
            start = time.perf_counter()
            side()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times[side].append(time.perf_counter() - start)
    return Comparison(name, times[ours], times[theirs], note)


def random_lm(hidden: int = 768, layers: int = 8, vocabulary: int = 32_768) -> LM:
    """A model that never ends a text; time does not depend on its random weights. They are large:
    with usual ones the greedy text hardly depends on the prefix, and a wrong one goes unnoticed."""
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(Qwen3Config(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=3 * hidden, head_dim=64,
        num_hidden_layers=layers, num_attention_heads=hidden // 64, tie_word_embeddings=False,
        num_key_value_heads=max(1, hidden // 256), initializer_range=1.4 * hidden**-0.5,
        bos_token_id=None, eos_token_id=None, pad_token_id=0))
    tokenizer = SimpleNamespace(pad_token_id=0, eos_token_id=None)
    return LM(model.to(processes().device).eval(), tokenizer)


def bench_sample(rounds: int = 7, prefix: int = 1024, new_tokens: int = 64, n: int = 20,
                 batch: int = 16, lm: LM | None = None) -> list[Comparison]:
    """What recording entropy costs, and what sharing a prefix saves, against plain `generate`."""
    lm = lm or random_lm()
    config, greedy = (SampleConfig(temperature=t, max_new_tokens=new_tokens) for t in (1.0, 0.0))
    vocabulary, drawn = lm.model.config.vocab_size, {"do_sample": True, "top_k": 0, "top_p": 1.0}

    def plain(ids: Int[Tensor, "batch pos"], **more: Any) -> Int[Tensor, "batch pos"]:
        settings = GenerationConfig(max_new_tokens=new_tokens, pad_token_id=0, **more)
        return lm.model.generate(ids, settings, attention_mask=torch.ones_like(ids))

    short = torch.randint(1, vocabulary, (batch, 32), device=lm.device)
    recording = compare(
        f"entropy and log-prob recorded: {batch} x {new_tokens} tokens, vocabulary {vocabulary:,}",
        lambda: generate(lm, short.tolist(), sampling=config, seed=0),
        lambda: plain(short, **drawn), rounds)
    long = torch.randint(1, vocabulary, (1, prefix), device=lm.device)
    context, tails = repeats(long[0].tolist(), n)
    shared = generate(lm, [context], [tails], sampling=greedy, seed=0)
    alone = plain(long.expand(n, -1), do_sample=False)[:, prefix:].tolist()
    assert [r.ids for r in shared] == alone, "the shared prefix changed the greedy text"
    return [recording, compare(
        f"{n} continuations of {new_tokens} tokens from one prefix of {prefix}",
        lambda: generate(lm, [context], [tails], sampling=config, seed=0),
        lambda: plain(long, num_return_sequences=n, **drawn), rounds, "   greedy texts equal")]


def bench_nucleus(rounds: int = 7, batch: int = 64, hidden: int = 768, vocabulary: int = 151_936,
                  top_p: float = 0.95) -> list[Comparison]:
    """Ours against the warper of transformers, and `Draw` against `multinomial`; the note says what
    a decoding step costs besides.

    Logits are those of a random head, scaled to an entropy of a few nats. The forward pass is that
    of a random model, smaller than Qwen2.5-0.5B, for one token per row.
    """
    lm = random_lm(hidden, 24, vocabulary)
    scores = 2.5 * torch.randn(batch, vocabulary, device=lm.device)
    scores[:, :20] += 12.0
    ids = torch.zeros(batch, 1, dtype=torch.long, device=lm.device)
    ours, theirs = Nucleus(top_p), TopPLogitsWarper(top_p)
    result = compare(f"nucleus {top_p:g} of {batch} x {vocabulary:,} logits",
                     lambda: ours(ids, scores), lambda: theirs(ids, scores), rounds)
    with torch.no_grad():
        step = compare("forward step", lambda: lm.model(ids), lambda: ours(ids, scores), rounds)
    seconds = f"{median(step.ours):.3f} s"
    draw = Draw(temperature=1.0)
    return [replace(result, note=f"\n  ours takes {step.ratio:.2f} of a forward pass ({seconds})"),
            compare(f"one token of {batch} x {vocabulary:,} logits",
                    lambda: draw(ids, scores).argmax(-1),
                    lambda: torch.multinomial(scores.softmax(-1), 1), rounds)]


def bench_server(url: str, folder: str, rounds: int = 7, prefix: int = 300, new_tokens: int = 64,
                 n: int = 20) -> list[Comparison]:
    """n continuations of a prefix by a server, with and without the scoring of what it sampled,
    against `generate`. Each call has a prefix of its own, so that no side finds it in a cache."""
    served, draw = load_lm(folder, server=url), random.Random(0)
    here, server, words = served.alone(), served.server, served.encode(WORDS)
    config, greedy = (SampleConfig(temperature=t, max_new_tokens=new_tokens) for t in (1.0, 0.0))

    def new_prefix() -> list[int]:
        return draw.choices(words, k=prefix)

    def continued(lm: LM) -> Any:
        context, tails = repeats(new_prefix(), n)
        return generate(lm, [context], [tails], sampling=config, seed=0, ends=False)

    assert server is not None
    some = [new_prefix()]
    a, b = (generate(lm, some, sampling=greedy, seed=0, ends=False)[0].ids for lm in (here, served))
    note = f"   greedy texts {'equal' if a == b else 'differ'}; tokens per second: "
    sides: dict[str, Side] = {
        "sampled and scored": partial(continued, served),
        "sampled only": lambda: server.sample([new_prefix()] * n, served.ends, may_end=False,
                                              max_tokens=new_tokens)}
    out, what = list[Comparison](), f"{n} x {new_tokens} tokens after one prefix of {prefix}"
    for name, side in sides.items():
        c = compare(f"{what}, {name} by a server (theirs: generate)", side,
                    partial(continued, here), rounds)
        speeds = " and ".join(f"{n * new_tokens / median(x):,.0f}" for x in (c.ours, c.theirs))
        out.append(replace(c, note=note + speeds))
    return out


def extra_memory(side: Side) -> tuple[Any, float]:
    """What `side()` returns, and by how many MiB the process's memory rose at most (Linux only:
    by the kernel's high-water mark, which misses no short peak; else NaN; on a GPU by torch)."""
    def mark() -> float:
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        return side(), (torch.cuda.max_memory_allocated() - held) / 2**20
    try:
        ctypes.CDLL(None).malloc_trim(0)  # return freed memory first, or its reuse stays unseen
        Path("/proc/self/clear_refs").write_text("5")  # resets the mark
        before = mark()
    except (AttributeError, OSError):
        return side(), math.nan
    return side(), mark() - before


def full_logits_scores(hidden: Rows, weight: Rows, targets: Int[Tensor, " pos"]) -> Stats:
    """The textbook way: all logits, their log-softmax, and Σ p log p over it."""
    logprobs = torch.log_softmax(hidden @ weight.T, -1)
    return -(logprobs.exp() * logprobs).sum(-1), logprobs.gather(-1, targets[:, None])[:, 0]


def trl_scores(hidden: Rows, weight: Rows, targets: Int[Tensor, " pos"]) -> Stats:
    """TRL's chunked log-prob and entropy, at the vocabulary chunk that TRL itself asks for."""
    from trl.kernels import ChunkedLogProbFunction

    logprob, entropy, *_ = ChunkedLogProbFunction.apply(
        hidden, weight, None, targets, 1.0, 32_768, None, 1.0, ("entropy",))
    return entropy, logprob


@torch.no_grad()
def bench_score(rounds: int = 7, positions: int = 4096, vocabulary: int = 151_936,
                hidden: int = 1024) -> list[Comparison]:
    """Entropy and log-prob of `positions` tokens from their hidden states, in float32, against
    full logits and, where it is installed, TRL. The distributions go from nearly flat to peaked."""
    torch.manual_seed(0)
    scale, device = torch.linspace(0.5, 6, positions)[:, None], processes().device
    states = (torch.randn(positions, hidden) * scale).to(device)
    weight = (torch.randn(vocabulary, hidden) * hidden**-0.5).to(device)
    targets = torch.randint(vocabulary, (positions,), device=device)
    wide, parts = weight.double(), torch.arange(positions, device=device).split(64)
    exact = [full_logits_scores(states[p].double(), wide, targets[p]) for p in parts]
    entropy, logprob = (torch.cat(x) for x in zip(*exact, strict=True))
    del wide

    def off(found: Stats) -> float:
        """The largest absolute difference from full logits in float64."""
        return max(float((found[0] - entropy).abs().max()), float((found[1] - logprob).abs().max()))

    sides = {"ours": partial(head_stats, states, Head(weight), targets),
             "full logits": partial(full_logits_scores, states, weight, targets)}
    if find_spec("trl"):
        sides["TRL's chunked log-prob"] = partial(trl_scores, states, weight, targets)
    notes = {}
    for name, side in sides.items():
        found, memory = extra_memory(side)
        notes[name] = f"{memory:,.0f} MiB, off float64 by at most {off(found):.1e} nats"
    ours, mine = sides.pop("ours"), notes.pop("ours")
    what = f"entropy and log-prob of {positions:,} x {hidden:,}, vocabulary {vocabulary:,}"
    return [compare(f"{what} (theirs: {name})", ours, theirs, rounds,
                    f"\n  extra memory: ours {mine}; theirs {notes[name]}")
            for name, theirs in sides.items()]
