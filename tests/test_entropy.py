"""Entropy and log-prob against hand computation and against full logits in float64."""

import math

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel, Qwen3Config, Qwen3ForCausalLM

from heal_ref import entropy as E


def test_three_token_vocabulary_by_hand():
    logits = torch.log(torch.tensor([[1.0, 2.0, 1.0], [1.0, 1.0, 1.0]])) + 7.0  # a constant shift changes nothing
    entropy, logprob = E.entropy_and_logprob(logits, torch.tensor([1, 2]))
    assert entropy.tolist() == pytest.approx([0.25 * math.log(4) * 2 + 0.5 * math.log(2), math.log(3)], abs=1e-6)
    assert logprob.tolist() == pytest.approx([math.log(0.5), math.log(1 / 3)], abs=1e-6)


def test_minus_infinity_counts_as_probability_zero():
    entropy, logprob = E.entropy_and_logprob(torch.tensor([0.0, 0.0, -math.inf]), torch.tensor(2))
    assert entropy.item() == pytest.approx(math.log(2), abs=1e-6)
    assert logprob.item() == -math.inf


def test_nan_logits_are_named():
    with pytest.raises(FloatingPointError, match="NaN"):
        E.entropy_and_logprob(torch.tensor([0.0, math.nan]), torch.tensor(0))


SMALL = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
         "num_key_value_heads": 2, "head_dim": 16}
MODELS = {
    "qwen3 tied": lambda: Qwen3ForCausalLM(Qwen3Config(**SMALL, tie_word_embeddings=True)),
    "qwen3 untied": lambda: Qwen3ForCausalLM(Qwen3Config(**SMALL, tie_word_embeddings=False)),
    "gemma2 soft-capped": lambda: Gemma2ForCausalLM(Gemma2Config(**SMALL, final_logit_softcapping=2.0)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=2)),
}


@pytest.mark.parametrize("name", MODELS)
def test_token_scores_equal_full_logits_in_float64(name, monkeypatch):
    monkeypatch.setattr(E, "CHUNK", 5)  # several chunks, the last one short
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    ids = torch.randint(1, 50, (3, 11))
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    entropy, logprob = E.token_scores(model, ids, mask)
    with torch.no_grad():
        reference = torch.log_softmax(model(input_ids=ids, attention_mask=mask).logits.double(), -1)[:, :-1]
    expected = -(reference.exp() * reference).sum(-1)
    assert entropy.shape == logprob.shape == ids.shape
    assert torch.isnan(entropy[:, 0]).all()
    keep = mask[:, 1:].bool()
    assert (entropy[:, 1:].double() - expected)[keep].abs().max() < 1e-4
    taken = reference.gather(-1, ids[:, 1:, None]).squeeze(-1)
    assert (logprob[:, 1:].double() - taken)[keep].abs().max() < 1e-4


@pytest.mark.parametrize(("pieces", "expected"), [
    (["a", "\n\n", "b", "\n\n"], [(0, 2), (2, 4)]),
    (["a.\n\n", "b"], [(0, 1), (1, 2)]),  # a token that holds more than the separator
    (["a", "\n", "\n", "b"], [(0, 3), (3, 4)]),  # a separator in two tokens
    (["a", "\n\n", "\n", "b"], [(0, 2), (2, 4)]),  # more blank lines belong to what follows
    (["a", "\n\n", " "], [(0, 3)]),  # a rest of white space belongs to what came before
    (["\n\n", "a"], [(0, 2)]),
    (["a"], [(0, 1)]),
    ([], []),
])
def test_split_steps(pieces, expected):
    steps = E.split_steps(pieces, "\n\n")
    assert steps == expected
    assert [i for a, b in steps for i in range(a, b)] == list(range(len(pieces)))  # every token, once


def test_first_step_has_no_surge():
    surges = E.surges([0.2, 0.5, 0.1])
    assert math.isnan(surges[0])
    assert surges[1:] == pytest.approx([0.3, -0.4])
