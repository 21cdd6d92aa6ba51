"""Entropy and log-probability of every token of a text.

`token_stats_simple` is the plain computation. Its logits fill 2.5 GB for 4,096 tokens of 150,000
kinds, so `token_stats` applies the output head to hidden states one tile at a time (some positions,
some vocabulary entries) and keeps four numbers per position.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from heal_ref.entropy import NAN, Ids, PerToken, entropy_and_logprob, left_pad
from heal_ref.records import InputError

ROWS = 1024  # positions in a tile
COLUMNS = {"cpu": 1024}  # vocabulary entries in a tile: 4 MB of float32, which its cache holds
MANY_COLUMNS = 16_384  # on an accelerator, where starting an operation is what costs: 64 MB
PROBE = 8  # tokens on which a head is tried
SCALES = ("logit_scale", "output_multiplier", "lm_head_multiplier")
CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
LOWEST = -1e30  # instead of -inf: 0 · (-1e30) is 0 where 0 · (-inf) is NaN


@dataclass(frozen=True)
class Head:
    """An output head: logits = scale · (W h + b); with a soft cap c, then c · tanh(logits / c)."""

    weight: Float[Tensor, "vocab d"]
    bias: Float[Tensor, " vocab"] | None = None
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden: Float[Tensor, "n d"], out: Float[Tensor, "n k"], start: int = 0
               ) -> Float[Tensor, "n k"]:
        """Logits of the k vocabulary entries from `start` on, written into `out` (float32)."""
        weight = self.weight[start : start + out.shape[1]].T
        if hidden.dtype == out.dtype:
            torch.mm(hidden, weight, out=out)
        else:
            out.copy_(torch.mm(hidden, weight))  # in the model's dtype, as the model does
        if self.bias is not None:
            out.add_(self.bias[start : start + out.shape[1]])
        if self.scale != 1:
            out.mul_(self.scale)
        if self.softcap is not None:
            out.div_(self.softcap).tanh_().mul_(self.softcap)
        return out if self.bias is None else out.clamp_(min=LOWEST)  # only a bias can be -inf


@torch.no_grad()
def head_stats(hidden: Float[Tensor, "n d"], head: Head, targets: Int[Tensor, " n"],
               tile: tuple[int, int] | None = None
               ) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Entropy (nats) of each position's distribution and log-prob of its target, both float32.

    With x = logit − top, top the largest logit so far, a position keeps Z = Σ e^x and M = Σ x e^x;
    when a tile raises top by δ they become e^−δ Z and e^−δ (M − δ Z). At the end H = log Z − M / Z.
    A `tile` is positions × vocabulary entries; two of them are the whole working memory.
    """
    rows, columns = tile or (ROWS, COLUMNS.get(hidden.device.type, MANY_COLUMNS))
    vocab = len(head.weight)
    memory = torch.empty(2, min(rows, len(hidden)), min(columns, vocab), device=hidden.device)
    parts = []
    for h, target in zip(hidden.split(rows), targets.split(rows), strict=True):
        top, total, moment, taken = torch.zeros(4, len(h), device=h.device)
        top.fill_(LOWEST)
        for start in range(0, vocab, columns):
            # 1) the logits of this tile, and the targets' own if they are in it
            x, weight = memory[:, : len(h), : vocab - start]
            head.logits(h, x, start)
            here = target - start
            inside = (here >= 0) & (here < x.shape[1])
            own = x.gather(1, here.clamp(0, x.shape[1] - 1)[:, None])[:, 0]
            taken = torch.where(inside, own, taken)
            # 2) the sums so far under the new top, and this tile's share
            new_top = torch.maximum(top, x.amax(1))
            rise, top = new_top - top, new_top
            torch.exp(x.sub_(top[:, None]), out=weight)
            fade = torch.exp(-rise)
            moment = fade * (moment - rise * total) + x.mul_(weight).sum(1)
            total = fade * total + weight.sum(1)
        taken = taken.masked_fill(taken <= LOWEST, -math.inf)
        parts.append(torch.stack([total.log() - moment / total, taken - top - total.log()]))
    entropy, logprob = torch.cat(parts, 1)
    if torch.isnan(entropy).any():
        raise FloatingPointError(NAN)
    return entropy, logprob


_found: WeakKeyDictionary[Any, tuple[float, float | None] | None] = WeakKeyDictionary()


def find_head(model: Any, ids: Ids) -> Head | None:
    """The head of a causal LM if it reproduces the model's own logits on the first few ids; else
    None, with a RuntimeWarning. Tried once per model."""
    if model not in _found:
        _found[model] = _scale_and_cap(model, ids[:1, :PROBE])
        if _found[model] is None:
            warnings.warn(
                f"the logits of {type(model).__name__} are not just a linear layer, a scale and a "
                "soft cap: the same numbers will need more memory", RuntimeWarning, stacklevel=4)
    linear, way = model.get_output_embeddings(), _found[model]
    return Head(linear.weight, linear.bias, *way) if way else None


def _scale_and_cap(model: Any, ids: Ids) -> tuple[float, float | None] | None:
    """The scale and soft cap, of those that the configuration suggests, that reproduce the model's
    logits to the precision of its dtype. Families differ in what comes after their heads."""
    linear = model.get_output_embeddings()
    if type(linear) is not torch.nn.Linear or linear.weight.is_meta or model.base_model is model:
        return None
    own = model(input_ids=ids, use_cache=False).logits[0].float()
    if torch.isnan(own).any():
        raise FloatingPointError(NAN)
    hidden = model.base_model(input_ids=ids, use_cache=False)[0]
    shape = own.shape[-1], hidden.shape[-1]
    if hidden.dtype != linear.weight.dtype or shape != linear.weight.shape:
        return None
    settings = vars(model.config.get_text_config()).items()
    known = {name: value for name, value in settings if value and isinstance(value, int | float)}
    scaling = known.get("logits_scaling", 1.0)  # Granite divides by it, HyperCLOVA X multiplies
    scales = [known[n] for n in SCALES if n in known] + [1 / scaling, scaling, 1.0]
    caps = [known[n] for n in CAPS if n in known] + [None]
    device, close = linear.weight.device, max(1e-4, 4 * torch.finfo(linear.weight.dtype).eps)
    hidden, own = hidden[0].to(device), own.to(device).clamp_(min=LOWEST)
    for cap, scale in product(caps, scales):
        ours = Head(linear.weight, linear.bias, scale, cap).logits(hidden, torch.empty_like(own))
        if torch.allclose(ours, own, rtol=close, atol=close * own.abs().median().item()):
            return scale, cap
    return None


def positions(config: Any) -> float:
    """The longest text that a model with this configuration can take, in tokens."""
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    return limit if limit and limit > 0 else math.inf


def _check_length(model: Any, length: int) -> None:
    if length > (limit := positions(model.config)):
        raise InputError(
            f"a text has {length:,} tokens, but {type(model).__name__} has {limit:,} "
            "positions; shorten the text, or load a model with a longer context")


@torch.no_grad()
def token_stats(model: Any, input_ids: Ids, attention_mask: Ids | None = None
                ) -> tuple[PerToken, PerToken]:
    """Entropy (nats) and log-prob of every token of a text, for any transformers causal LM.

    Padding (0 in the mask) may be on either side. Entry t is about the raw distribution
    (temperature 1) that predicted token t; NaN for a text's first token and for padding. Float32.

    InputError if a text is longer than the model's positions, FloatingPointError for NaN logits.

    Example:
        >>> import heal_ref as heal, torch
        >>> lm = heal.load_lm(heal.DATA / "teacher")
        >>> ids = torch.tensor([lm.encode("compute 5")], device=lm.device)
        >>> heal.token_stats(lm.model, ids)[0].isnan()  # nothing predicts the first token
        tensor([[ True, False]])
    """
    mask = (torch.ones_like(input_ids) if attention_mask is None else attention_mask).bool()
    stats = torch.full((2, *mask.shape), math.nan, device=mask.device)
    if not (mask.sum(1) > 1).any():
        return stats[0], stats[1]
    # 1) each row begins with its text: [[0, 0, x, y]] -> [[x, y]]. A causal model never sees what
    #    follows a text, so padding changes no number
    texts = [row[inside] for row, inside in zip(input_ids, mask, strict=True)]
    ids = pad_sequence(texts, batch_first=True)
    text = torch.arange(ids.shape[1], device=mask.device) < mask.sum(1, keepdim=True)
    _check_length(model, ids.shape[1])
    # 2) the tokens that a token of the same text precedes
    if head := find_head(model, ids):
        device = head.weight.device  # a model may be spread over several
        hidden = model.base_model(input_ids=ids, attention_mask=text.long(), use_cache=False)[0]
        after = text[:, 1:].to(device)
        found = head_stats(hidden.to(device)[:, :-1][after], head, ids[:, 1:].to(device)[after])
        moved = torch.full((2, *ids.shape), math.nan, device=device)
        moved[:, :, 1:][:, after] = torch.stack(found)
    else:
        moved = torch.stack(token_stats_simple(model, ids, text))
    # 3) back to where they were
    stats[:, mask] = moved.to(mask.device)[:, text]
    return stats[0], stats[1]


@torch.no_grad()
def token_stats_simple(model: Any, input_ids: Ids, attention_mask: Ids | None = None
                       ) -> tuple[PerToken, PerToken]:
    """What `token_stats` computes, from the full logits of one text at a time."""
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    entropy, logprob = torch.full((2, *input_ids.shape), math.nan, device=input_ids.device)
    for row, ids in enumerate(input_ids):
        at = mask[row].nonzero()[:, 0]  # the positions of the text
        if len(at) > 1:
            logits = model(input_ids=ids[at][None], use_cache=False).logits[0, :-1]
            h, p = entropy_and_logprob(logits, ids[at[1:]].to(logits.device))
            entropy[row, at[1:]], logprob[row, at[1:]] = h.to(ids.device), p.to(ids.device)
    return entropy, logprob


@torch.no_grad()
def continued_stats(model: Any, input_ids: Ids, attention_mask: Ids, cache: Any
                    ) -> tuple[PerToken, PerToken]:
    """What `token_stats` computes, for the tokens after those that `cache` (of transformers) holds
    already; NaN for the first of them and for padding. The cache grows. Errors as there."""
    known, position = cache.get_seq_length(), (attention_mask.cumsum(1) - 1).clamp(min=0)
    _check_length(model, int(position.max()) + 1)
    ids, inside = input_ids[:, known:], attention_mask[:, known:].bool()
    inputs = {"input_ids": ids, "attention_mask": attention_mask, "past_key_values": cache}
    if "position_ids" in inspect.signature(model.forward).parameters:  # else the mask tells them
        inputs["position_ids"] = position[:, known:]
    after = inside[:, 1:] & inside[:, :-1]
    stats = torch.full((2, *ids.shape), math.nan, device=ids.device)
    if head := find_head(model, input_ids):
        hidden = model.base_model(**inputs)[0][:, :-1]
        device = head.weight.device
        found = head_stats(hidden.to(device)[after.to(device)], head, ids[:, 1:][after].to(device))
    else:
        logits = model(**inputs).logits[:, :-1].to(ids.device)
        found = entropy_and_logprob(logits[after], ids[:, 1:][after])
    stats[:, :, 1:][:, after] = torch.stack(found).to(ids.device)
    return stats[0], stats[1]


def text_stats(lm: Any, pairs: Iterable[tuple[Sequence[int], Sequence[int]]]
               ) -> list[tuple[list[float], list[float]]]:
    """Entropy (nats) and log-prob, by `lm` (an `LM`), of each token of a completion after its
    context, for pairs of both (token ids); NaN for a first token after an empty context. Errors as
    in `token_stats`.

    Example:
        >>> import heal_ref as heal
        >>> lm = heal.load_lm(heal.DATA / "teacher")
        >>> (entropy, logprob), = heal.text_stats(lm, [(lm.encode("5 + 3 = "), lm.encode("8"))])
        >>> len(entropy), len(logprob)
        (1, 1)
    """
    pairs, out = list(pairs), list[tuple[list[float], list[float]]]()
    for start in range(0, len(pairs), lm.max_batch):
        batch = pairs[start : start + lm.max_batch]
        texts = [[*context, *completion] for context, completion in batch]
        stats = token_stats(lm.model, *left_pad(texts, lm.tokenizer.pad_token_id, lm.device))
        out += of_completions(stats, [completion for _, completion in batch])
    return out


def of_completions(stats: tuple[PerToken, PerToken], completions: Sequence[Sequence[int]]
                   ) -> list[tuple[list[float], list[float]]]:
    """The two numbers of each token of a completion, which ends where its row ends."""
    rows = zip(completions, *(s.tolist() for s in stats), strict=True)
    return [(h[len(h) - len(ids) :], p[len(p) - len(ids) :]) for ids, h, p in rows]
