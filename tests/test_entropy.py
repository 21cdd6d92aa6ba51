"""Entropy and log-prob against hand computation; steps and surges."""

import math

import pytest
import torch

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


@pytest.mark.parametrize(("pieces", "expected"), [
    (["a", "\n\n", "b", "\n\n"], [(0, 2), (2, 4)]),
    (["a.\n\n", "b"], [(0, 1), (1, 2)]),  # a token that holds more than the separator
    (["a", "\n", "\n", "b"], [(0, 3), (3, 4)]),  # a separator in two tokens
    (["a", "\n\n", "\n", "b"], [(0, 2), (2, 4)]),  # more blank lines belong to what follows
    (["a", "\n\n", " "], [(0, 3)]),  # a rest of white space belongs to what came before
    (["\n\n", "a"], [(0, 2)]),
    (["\n\n", "a", "b", "\n\n", "c"], [(0, 4), (4, 5)]),  # a blank line before the first word ends nothing
    (["a", "\n\n", "\n\n", "b", "c", " \n\n", "d"], [(0, 2), (2, 6), (6, 7)]),
    (["a"], [(0, 1)]),
    ([], []),
])
def test_split_steps(pieces, expected):
    steps = E.split_steps(pieces, "\n\n")
    assert steps == expected
    assert [i for a, b in steps for i in range(a, b)] == list(range(len(pieces)))  # every token, once


def test_rises():
    assert E.rises([0.5, 0.1, 0.6]) == pytest.approx([0.5 - 0.4, 0.1 - 0.5, 0.6 - 0.3])
    assert E.rises([]) == []


def test_first_step_has_no_surge():
    surges = E.surges([0.2, 0.5, 0.1])
    assert math.isnan(surges[0])
    assert surges[1:] == pytest.approx([0.3, -0.4])
