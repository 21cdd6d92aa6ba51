"""Entropy dynamics: how uncertain a model is, token by token and step by step.

Paper: GEAR "detects critical reasoning breakpoints via entropy dynamics". What exactly is measured is our
reading: full-vocabulary entropy in nats of the raw next-token distribution, averaged over a step.

- `entropy_and_log_total` is the formula, used while sampling; `scoring.token_stats` is the same sum, tile by tile.
- `split_steps`, `step_values` and `surges` go from tokens to steps and from one step to the next.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

NAN = "the model's logits are NaN: check its weights and dtype (try float32)"


def entropy_and_log_total(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Entropy in nats of softmax(logits), and log Z, the logarithm of its denominator: log p(v) = logit(v) − log Z.

    H = log Z − Σ_v p(v) · logit(v), computed about the largest logit, with one exponential a vocabulary entry.

    Args:
        logits: (..., V), raw; `-inf` entries count as probability 0.

    Returns:
        (entropy, log Z), both (...) in float32.

    Raises:
        FloatingPointError: a distribution is NaN.
    """
    logits = logits.float()
    top = logits.amax(-1, keepdim=True)
    below = (logits - top).clamp_(min=-200.0)  # exp(-200) is 0 in float32, and 0 · (-200) is 0 where 0 · (-inf) is not
    weight = below.exp()
    total = weight.sum(-1)
    entropy = total.log() - weight.mul_(below).sum(-1) / total
    if torch.isnan(entropy).any():
        raise FloatingPointError(NAN)
    return entropy, total.log() + top.squeeze(-1)


def entropy_and_logprob(logits: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Entropy in nats of softmax(logits), and the log-probability of `tokens` under it.

    The entropy of "entropy dynamics" (paper); over the whole vocabulary is our reading.

    Args:
        logits: (..., V), raw; `-inf` entries count as probability 0.
        tokens: (...), integer ids.

    Returns:
        (entropy, logprob), both (...) in float32.

    Raises:
        FloatingPointError: a distribution is NaN.

    Example:
        No idea among four tokens is an entropy of log 4; no doubt at all is an entropy of 0.

        >>> import heal_ref as heal
        >>> import torch
        >>> logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [5.0, -torch.inf, -torch.inf, -torch.inf]])
        >>> entropy, logprob = heal.entropy_and_logprob(logits, torch.tensor([2, 0]))
        >>> entropy
        tensor([1.3863, 0.0000])
        >>> logprob
        tensor([-1.3863,  0.0000])
    """
    entropy, log_total = entropy_and_log_total(logits)
    return entropy, logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1).float() - log_total


def split_steps(pieces: Sequence[str], separator: str) -> list[tuple[int, int]]:
    """Token ranges of the steps of a text: a step ends with the token that completes a separator.

    Args:
        pieces: the text of each token (T).
        separator: for example a blank line, as second-hand summaries say of the paper.

    Returns:
        K half-open ranges that cover all T tokens; a rest of white space belongs to the step before it.
    """
    steps, start, text = [], 0, ""
    for i, piece in enumerate(pieces):
        text += piece
        if separator in text and text.strip():
            steps.append((start, i + 1))
            start, text = i + 1, ""
    if start < len(pieces):
        if text.strip() or not steps:
            steps.append((start, len(pieces)))
        else:
            steps[-1] = (steps[-1][0], len(pieces))
    return steps


def step_values(entropy: Sequence[float], steps: Sequence[tuple[int, int]], aggregate: str = "mean") -> list[float]:
    """One entropy a step, in nats, from T token entropies and K token ranges. How a step gets one number is our reading.

    Args:
        entropy: T token entropies in nats.
        steps: K half-open token ranges, none of them empty.
        aggregate: "mean" over the step's tokens (the default everywhere), their "max", or its "first" token.

    Returns:
        K numbers in nats.

    Raises:
        ValueError: there is no such aggregate.

    Example:
        >>> import heal_ref as heal
        >>> entropy, steps = [0.25, 0.75, 2.0, 0.0], [(0, 2), (2, 4)]
        >>> heal.step_values(entropy, steps)
        [0.5, 1.0]
        >>> heal.step_values(entropy, steps, "max")
        [0.75, 2.0]
    """
    pick: dict[str, Callable[[Sequence[float]], float]] = {
        "mean": lambda h: sum(h) / len(h), "max": max, "first": lambda h: h[0]}
    if aggregate not in pick:
        raise ValueError(f"aggregate {aggregate!r} is none of {', '.join(pick)}")
    return [pick[aggregate](entropy[a:b]) for a, b in steps]


def surges(step_entropy: Sequence[float], relative: bool = False) -> list[float]:
    """Δ_k = H_k − H_{k−1} for each of K steps, in nats; with `relative`, Δ_k / H_{k−1}, a pure number.

    The first step has no step before it: its surge is NaN. That a break shows as a surge is hearsay; the paper says "entropy
    dynamics".

    Example:
        >>> import heal_ref as heal
        >>> heal.surges([0.25, 0.5, 2.0, 1.0])
        [nan, 0.25, 1.5, -1.0]
        >>> heal.surges([0.25, 0.5, 2.0, 1.0], relative=True)
        [nan, 1.0, 3.0, -0.5]
    """
    pairs = zip(step_entropy, step_entropy[1:], strict=False)
    return [math.nan] + [(b - a) / max(a, 1e-6) if relative else b - a for a, b in pairs]
