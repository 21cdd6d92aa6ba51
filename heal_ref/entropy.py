"""Entropy dynamics: how uncertain a model is, token by token and step by step.

Paper: GEAR "detects critical reasoning breakpoints via entropy dynamics". What is measured is our
reading: the entropy in nats of the raw next-token distribution, averaged over a step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

PerToken = Float[Tensor, "batch pos"]  # a number for each token
Ids = Int[Tensor, "batch pos"]  # token ids, or an attention mask
NAN = "the model's logits are NaN: check its weights and dtype (try float32)"
AGGREGATES: dict[str, Callable[[Sequence[float]], float]] = {
    "mean": lambda values: sum(values) / len(values), "max": max, "first": lambda values: values[0]}


def entropy_and_log_total(logits: Float[Tensor, "*batch vocab"]
                          ) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """Entropy in nats of softmax(logits), and log Z, where log p(v) = logit(v) − log Z.

    H = log Z − Σ_v p(v) · logit(v), relative to the largest logit: one exponential per entry.
    """
    logits = logits.float()
    top = logits.amax(-1, keepdim=True)
    # exp(-200) is 0 in float32, and 0 · (-200) is 0 where 0 · (-inf) is NaN
    below = (logits - top).clamp_(min=-200.0)
    weight = below.exp()
    total = weight.sum(-1)
    entropy = total.log() - weight.mul_(below).sum(-1) / total
    if torch.isnan(entropy).any():
        raise FloatingPointError(NAN)
    return entropy, total.log() + top.squeeze(-1)


def entropy_and_logprob(logits: Float[Tensor, "*batch vocab"], tokens: Int[Tensor, "*batch"]
                        ) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """Entropy in nats of softmax(logits), and the log-probability of `tokens`, both float32.

    The entropy of "entropy dynamics" (paper); over the whole vocabulary is our reading. `-inf`
    counts as probability 0; FloatingPointError for NaN.

    Example:
        >>> import heal_ref as heal, torch
        >>> logits = torch.tensor([[0.0] * 4, [5.0] + [-torch.inf] * 3])
        >>> entropy, logprob = heal.entropy_and_logprob(logits, torch.tensor([2, 0]))
        >>> entropy, logprob
        (tensor([1.3863, 0.0000]), tensor([-1.3863,  0.0000]))
    """
    entropy, log_total = entropy_and_log_total(logits)
    return entropy, logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1).float() - log_total


def left_pad(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Ids, Ids]:
    """Rows as one tensor and its mask: [[5, 6], [8]] -> [[5, 6], [0, 8]] and [[1, 1], [0, 1]]."""
    longest = max(map(len, rows))
    ids = [[pad] * (longest - len(row)) + list(row) for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def split_steps(pieces: Sequence[str], separator: str) -> list[tuple[int, int]]:
    """Token ranges of the steps of a text; a step ends with the token that completes a separator.

    That a step ends at a blank line comes from secondary sources. The half-open ranges cover all
    tokens (`pieces` are their texts); white space belongs to the step after it, at the end to the
    last one.

    Example:
        >>> split_steps(["\\n\\n", "We", " add.", "\\n\\n", "So", " 7."], "\\n\\n")
        [(0, 4), (4, 6)]
    """
    steps: list[tuple[int, int]] = []
    start, text = 0, ""
    for i, piece in enumerate(pieces):
        text += piece
        if separator in text.lstrip():
            steps.append((start, i + 1))
            start, text = i + 1, ""
    if start < len(pieces) and (text.strip() or not steps):
        steps.append((start, len(pieces)))
    elif start < len(pieces):
        steps[-1] = (steps[-1][0], len(pieces))
    return steps


def step_ends(text: str, parts: Sequence[str]) -> list[int]:
    """Where each step ends in `text`, in characters; `parts` are the steps' own texts.

    Decoded alone, a step may lack the blank that it begins with, so each is looked for; white
    space belongs to the step before it.
    """
    ends, end = list[int](), 0
    for part in map(str.strip, parts):
        found = text.find(part, end)
        end = end if found < 0 else found + len(part)
        end = len(text) - len(text[end:].lstrip())
        ends.append(end)
    return [*ends[:-1], len(text)] if ends else []


def step_values(entropy: Sequence[float], steps: Sequence[tuple[int, int]],
                aggregate: str = "mean") -> list[float]:
    """One entropy per step, in nats. How the tokens of a step become one number is our reading.

    Args:
        steps: half-open token ranges, none of them empty.
        aggregate: "mean" over the step's tokens, their "max", or the "first"; else ValueError.

    Example:
        >>> import heal_ref as heal
        >>> heal.step_values([0.25, 0.75, 2.0, 0.0], [(0, 2), (2, 4)])
        [0.5, 1.0]
    """
    if aggregate not in AGGREGATES:
        raise ValueError(f"aggregate {aggregate!r} is none of {', '.join(AGGREGATES)}")
    return [AGGREGATES[aggregate](entropy[start:end]) for start, end in steps]


def surges(step_entropy: Sequence[float], relative: bool = False) -> list[float]:
    """Δ_k = H_k − H_{k−1} for each of K steps, in nats; with `relative`, Δ_k / H_{k−1}.

    No step precedes the first one: its surge is NaN. The paper says "entropy dynamics"; that a
    break shows as a surge comes from secondary sources.

    Example:
        >>> import heal_ref as heal
        >>> heal.surges([0.25, 0.5, 2.0, 1.0])
        [nan, 0.25, 1.5, -1.0]
    """
    out = [math.nan]
    for before, after in zip(step_entropy, step_entropy[1:], strict=False):
        out.append((after - before) / max(before, 1e-6) if relative else after - before)
    return out


def rises(step_entropy: Sequence[float]) -> list[float]:
    """H_k minus the mean of all steps before it, in nats; the first step minus the chain's mean.

    A surge that the first step can have. It differs from `surges` after a step of low entropy,
    where every ordinary step surges, and after a break, which raises the mean.

    Example:
        >>> import heal_ref as heal
        >>> heal.rises([0.5, 0.25, 2.25, 1.0])
        [-0.5, -0.25, 1.875, 0.0]
    """
    out, total = [], 0.0
    for k, h in enumerate(step_entropy):
        usual = total / k if k else sum(step_entropy) / len(step_entropy)
        out.append(h - usual)
        total += h
    return out
