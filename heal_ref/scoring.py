"""Entropy and log-probability of every token of a text, without ever holding its (T, V) logits.

Paper: GEAR "detects critical reasoning breakpoints via entropy dynamics". The entropy is over the full vocabulary, of the
raw distribution; at a vocabulary of 150,000 the logits of a text of 4,096 tokens alone fill 2.5 GB. So:

- The model's body gives hidden states (T, d). The output head turns them into logits one small tile at a time (some
  positions, some vocabulary entries), and running sums over the tiles are all that stays: four numbers a position.
- What a model does to its logits behind the head (scale them, cap them) stands in the code of each family. `find_head`
  tries what the configuration hints at and believes it only if the model's own logits come out on a few tokens.
  A model that passes no trial is scored through its own forward.
- Padding on the left is moved to the right first: a causal model never sees what stands behind a text, so padding
  changes no number, whatever kind of positions the model has.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch

from heal_ref.entropy import NAN, entropy_and_logprob
from heal_ref.model import LM
from heal_ref.records import InputError

ROWS = 1024  # positions in a tile
COLUMNS = {"cpu": 1024}  # vocabulary entries in a tile: 4 MB of float32, which the processor's cache holds
MANY_COLUMNS = 16_384  # the same on an accelerator, where starting an operation is what costs: 64 MB
WHOLE_ROWS = 128  # positions at once where full logits are at hand
PROBE = 8  # tokens on which a head is tried
LOWEST = -1e30  # stands for -inf: 0 · (-1e30) is 0 where 0 · (-inf) is not


@dataclass(frozen=True)
class Head:
    """An output head: logits = scale · (W h + b), and then, with a soft cap c, c · tanh(logits / c).

    weight (V, d) and bias (V) are the model's own tensors, in its dtype.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden: torch.Tensor, out: torch.Tensor, start: int = 0) -> torch.Tensor:
        """Logits of the vocabulary entries from `start` on, written into `out` (n, k), for hidden states (n, d).

        The product is taken in the model's dtype, as the model itself does; all that follows is float32.
        """
        weight = self.weight[start : start + out.shape[1]].T
        if hidden.dtype == out.dtype:
            torch.mm(hidden, weight, out=out)
        else:
            out.copy_(torch.mm(hidden, weight))
        if self.bias is not None:
            out.add_(self.bias[start : start + out.shape[1]])
        if self.scale != 1:
            out.mul_(self.scale)
        if self.softcap is not None:
            out.div_(self.softcap).tanh_().mul_(self.softcap)
        return out if self.bias is None else out.clamp_(min=LOWEST)  # only a bias can be -inf


# ------------------------------------------------------------------------------------ hidden states to numbers


@torch.no_grad()
def head_stats(hidden: torch.Tensor, head: Head, targets: torch.Tensor, tile: tuple[int, int] | None = None
                ) -> tuple[torch.Tensor, torch.Tensor]:
    """Entropy (nats) of each position's distribution and log-probability of its target, tile by tile.

    Args:
        hidden: (N, d) in the head's dtype.
        targets: (N), integer ids.
        tile: positions and vocabulary entries of a tile; two float32 tiles (and in half precision the product
            of one) are the whole working memory.

    Returns:
        (entropy, logprob), both (N) float32.

    Raises:
        FloatingPointError: a distribution is NaN.
    """
    rows, columns = tile or (ROWS, COLUMNS.get(hidden.device.type, MANY_COLUMNS))
    memory = hidden.new_empty((2, min(rows, len(hidden)), min(columns, len(head.weight))), dtype=torch.float32)
    parts = [_block_scores(h, head, t, memory) for h, t in zip(hidden.split(rows), targets.split(rows), strict=True)]
    entropy, logprob = (torch.cat(values) for values in zip(*parts, strict=True))
    if torch.isnan(entropy).any():
        raise FloatingPointError(NAN)
    return entropy, logprob


def _block_scores(hidden: torch.Tensor, head: Head, targets: torch.Tensor, memory: torch.Tensor
                  ) -> tuple[torch.Tensor, torch.Tensor]:
    """`head_stats` of as many positions as the two tiles in `memory` hold.

    With x = logit − top, about the largest logit so far, a position keeps Z = Σ e^x and M = Σ x e^x. Then
    log Z + top is the log of softmax's denominator, and H = log Z − M / Z. When a tile raises top by δ, what was
    summed before becomes e^−δ Z and e^−δ (M − δ Z). One exponential a vocabulary entry serves both sums.
    """
    top, total, moment, taken = hidden.new_zeros((4, len(hidden)), dtype=torch.float32)
    top.fill_(LOWEST)
    for start in range(0, len(head.weight), memory.shape[2]):
        x, weight = memory[:, : len(hidden), : len(head.weight) - start]
        head.logits(hidden, x, start)
        here = targets - start
        inside = (here >= 0) & (here < x.shape[1])
        taken = torch.where(inside, x.gather(1, here.clamp(0, x.shape[1] - 1)[:, None])[:, 0], taken)

        new_top = torch.maximum(top, x.amax(1))
        rise, top = new_top - top, new_top
        torch.exp(x.sub_(top[:, None]), out=weight)
        fade = torch.exp(-rise)
        moment = fade * (moment - rise * total) + x.mul_(weight).sum(1)
        total = fade * total + weight.sum(1)
    taken = taken.masked_fill(taken <= LOWEST, -math.inf)
    return total.log() - moment / total, taken - top - total.log()


# ------------------------------------------------------------------------------------------ finding the head

_found: WeakKeyDictionary[Any, tuple[float, float | None] | None] = WeakKeyDictionary()  # model: (scale, softcap)


def _candidates(config: Any) -> Iterator[tuple[float, float | None]]:
    """(scale, softcap) pairs that a configuration hints at, the likeliest first, no scale and no cap last."""
    def named(*names: str) -> list[float]:
        values = [getattr(config, name, None) for name in names]
        return [float(v) for v in values if v and isinstance(v, int | float)]

    divisors = named("logits_scaling")  # Granite divides by it, HyperCLOVA X multiplies
    scales = named("logit_scale", "output_multiplier", "lm_head_multiplier") + [1 / d for d in divisors] + divisors
    caps = named("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
    return ((scale, cap) for cap in [*caps, None] for scale in [*scales, 1.0])


def find_head(model: Any, ids: torch.Tensor) -> Head | None:
    """The head of a causal LM, if applying it to the body's hidden states gives the model's own logits.

    Tried once a model, on the first few tokens of `ids` (B, T).

    Returns:
        None, with a RuntimeWarning the first time, if the head is no plain linear layer or no candidate agrees.

    Raises:
        FloatingPointError: the model's logits are NaN.
    """
    linear, body = model.get_output_embeddings(), model.base_model
    fusable = type(linear) is torch.nn.Linear and not linear.weight.is_meta and body is not model
    if model not in _found:
        _found[model] = _try_candidates(model, linear, ids[:1, :PROBE]) if fusable else None
        if _found[model] is None:
            warnings.warn(f"the logits of {type(model).__name__} are not just a linear layer, a scale and a soft cap behind "
                          "its hidden states: it is scored through its own forward, text by text, which gives the same "
                          "numbers and needs memory for all logits of a text", RuntimeWarning, stacklevel=5)
    way = _found[model]
    return Head(linear.weight, linear.bias, *way) if fusable and way else None


def _try_candidates(model: Any, linear: torch.nn.Linear, ids: torch.Tensor) -> tuple[float, float | None] | None:
    """The first candidate whose logits equal the model's own on `ids` (1, n), to a few times the dtype's precision."""
    own = model(input_ids=ids, use_cache=False).logits[0].float()
    if torch.isnan(own).any():
        raise FloatingPointError(NAN)
    hidden = getattr(model.base_model(input_ids=ids, use_cache=False), "last_hidden_state", None)
    if (hidden is None or hidden.dtype != linear.weight.dtype
            or (hidden.shape[-1], own.shape[-1]) != (linear.in_features, linear.out_features)):
        return None
    hidden, own = hidden[0].to(linear.weight.device), own.to(linear.weight.device).clamp_(min=LOWEST)
    close = max(1e-4, 4 * torch.finfo(linear.weight.dtype).eps)
    for way in _candidates(model.config.get_text_config()):
        ours = Head(linear.weight, linear.bias, *way).logits(hidden, torch.empty_like(own))
        if torch.allclose(ours, own, rtol=close, atol=close * own.abs().median().item()):
            return way
    return None


# ----------------------------------------------------------------------------------------------- whole texts


@torch.no_grad()
def token_stats(model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
                 ) -> tuple[torch.Tensor, torch.Tensor]:
    """Entropy (nats) and log-probability of every token of a text, for any causal LM.

    Args:
        model: a transformers causal LM.
        input_ids: (B, T).
        attention_mask: (B, T), 1 for text; padding may stand on either side.

    Returns:
        (entropy, logprob), both (B, T) float32: entry t is about the distribution (raw, at temperature 1) that
        predicted token t from the tokens before it. A text's first token has none and is NaN, like all padding.

    Raises:
        InputError: a text is longer than the model's positions.
        FloatingPointError: the model's logits are NaN.

    Example:
        >>> import heal_ref as heal
        >>> import torch
        >>> lm = heal.load_lm(heal.DATA / "teacher")
        >>> ids = torch.tensor([lm.encode("Then compute 5 + 3 = 8.")], device=lm.device)
        >>> entropy, logprob = heal.token_stats(lm.model, ids)
        >>> entropy.shape == logprob.shape == ids.shape
        True
        >>> entropy[0].isnan().tolist()  # nothing predicted the first token
        [True, False, False, False, False, False, False, False]
    """
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.long()
    scores = torch.full((2, *input_ids.shape), math.nan, device=input_ids.device)
    if not (mask[:, :-1] & mask[:, 1:]).any():
        return scores[0], scores[1]
    order = _text_first(mask)
    mask, ids = mask.gather(1, order), input_ids.gather(1, order)
    _check_length(model, mask.shape[1])
    follows = (mask[:, :-1] & mask[:, 1:]).bool()  # a token of the text, and the next one too
    values = torch.full((2, *ids.shape), math.nan, device=ids.device)
    values[:, :, 1:][:, follows] = torch.stack(_scores_of_texts(model, ids, mask, follows)).to(ids.device)
    scores.scatter_(2, order.expand(2, -1, -1), values)
    return scores[0], scores[1]


def _text_first(mask: torch.Tensor) -> torch.Tensor:
    """(B, longest) columns of `mask` (B, T), each row turned round so that its text begins at once."""
    columns = torch.arange(mask.shape[1], device=mask.device)
    order = (columns + mask.argmax(1, keepdim=True)) % mask.shape[1]
    longest = ((columns + 1) * mask.gather(1, order)).max()
    return order[:, :longest]


def _check_length(model: Any, length: int) -> None:
    """Refuse texts of `length` tokens if the model has fewer positions."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit and 0 < limit < length:
        raise InputError(f"a text has {length:,} tokens, but {type(model).__name__} has {limit:,} positions "
                         "(max_position_embeddings): it was not trained for what lies beyond, and its numbers there mean "
                         "nothing; shorten the text, or load a model with a longer context")


def _scores_of_texts(model: Any, ids: torch.Tensor, mask: torch.Tensor, follows: torch.Tensor
                     ) -> tuple[torch.Tensor, torch.Tensor]:
    """(entropy, logprob), both (N), of the N tokens behind the positions that `follows` (B, T − 1) marks, in order."""
    head = find_head(model, ids)
    if head is not None:
        device = head.weight.device  # a model may be spread over several
        hidden = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state.to(device)
        return head_stats(hidden[:, :-1][follows.to(device)], head, ids[:, 1:][follows].to(device))
    parts = []
    for row, own_mask, wanted in zip(ids, mask, follows, strict=True):
        logits = model(input_ids=row[None], attention_mask=own_mask[None], use_cache=False).logits[0]
        for some in wanted.nonzero()[:, 0].split(WHOLE_ROWS):
            parts.append(entropy_and_logprob(logits[some], row[some + 1].to(logits.device)))
    entropy, logprob = (torch.cat(values) for values in zip(*parts, strict=True))
    return entropy, logprob


# --------------------------------------------------------------------------------------------- scoring


def text_stats(lm: LM, pairs: Iterable[tuple[Sequence[int], Sequence[int]]]) -> list[tuple[list[float], list[float]]]:
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
        >>> [round(math.exp(logprob[0]), 2) for entropy, logprob in heal.text_stats(lm, pairs)]
        [1.0, 0.0]
    """
    pairs, out = list(pairs), []
    for start in range(0, len(pairs), lm.max_batch):
        part = pairs[start : start + lm.max_batch]
        longest = max(len(c) + len(t) for c, t in part)
        rows = [[*c, *t] for c, t in part]
        ids = torch.tensor([r + [lm.tokenizer.pad_token_id] * (longest - len(r)) for r in rows], device=lm.device)
        mask = torch.tensor([[1] * len(r) + [0] * (longest - len(r)) for r in rows], device=lm.device)
        entropy, logprob = token_stats(lm.model, ids, mask)
        for (c, t), h, p in zip(part, entropy.tolist(), logprob.tolist(), strict=True):
            out.append((h[len(c) : len(c) + len(t)], p[len(c) : len(c) + len(t)]))
    return out
