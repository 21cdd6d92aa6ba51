"""Scores of whole texts: every family against float64, heads that cannot be split, padding, memory, and the benchmark."""

import copy
import math
import warnings
from types import SimpleNamespace

import pytest
import torch
import transformers as T
from torch.utils._python_dispatch import TorchDispatchMode

from heal_lab import bench
from heal_ref import scoring
from heal_ref.entropy import entropy_and_logprob
from heal_ref.records import InputError
from heal_ref.scoring import Head, head_stats, token_stats, token_stats_simple

SIZES = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
         "num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 0, "max_position_embeddings": 32}
GPT2 = {"vocab_size": 50, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 32}
PHI = {k: v for k, v in SIZES.items() if k != "head_dim"}
FAMILIES = {  # how to build it, and the (scale, softcap) that is to be found
    "qwen3 tied": (lambda: T.Qwen3ForCausalLM(T.Qwen3Config(**SIZES, tie_word_embeddings=True)), (1, None)),
    "qwen3 untied": (lambda: T.Qwen3ForCausalLM(T.Qwen3Config(**SIZES, tie_word_embeddings=False)), (1, None)),
    "llama": (lambda: T.LlamaForCausalLM(T.LlamaConfig(**SIZES)), (1, None)),
    "mistral": (lambda: T.MistralForCausalLM(T.MistralConfig(**SIZES, sliding_window=4)), (1, None)),
    "gemma2": (lambda: T.Gemma2ForCausalLM(T.Gemma2Config(**SIZES, final_logit_softcapping=2.0)), (1, 2.0)),
    "gemma3": (lambda: T.Gemma3ForCausalLM(T.Gemma3TextConfig(**SIZES)), (1, None)),
    "gemma3 capped": (lambda: T.Gemma3ForCausalLM(T.Gemma3TextConfig(**SIZES, final_logit_softcapping=3.0)), (1, 3.0)),
    "gpt2": (lambda: T.GPT2LMHeadModel(T.GPT2Config(**GPT2)), (1, None)),
    "phi3": (lambda: T.Phi3ForCausalLM(T.Phi3Config(**SIZES)), (1, None)),
    "phi, a head with a bias": (lambda: T.PhiForCausalLM(T.PhiConfig(**PHI)), (1, None)),
    "granite divides": (lambda: T.GraniteForCausalLM(T.GraniteConfig(**SIZES, logits_scaling=4.0)), (0.25, None)),
    "hyperclova x multiplies by what granite divides by":
        (lambda: T.HyperCLOVAXForCausalLM(T.HyperCLOVAXConfig(**SIZES, logits_scaling=4.0)), (4.0, None)),
    "cohere multiplies": (lambda: T.CohereForCausalLM(T.CohereConfig(**SIZES, logit_scale=0.25)), (0.25, None)),
}


def build(name):
    """A model of a family with weights that are large enough for a wrong scale or cap to show."""
    torch.manual_seed(0)
    model = FAMILIES[name][0]().eval()
    for parameter in model.parameters():
        if parameter.dim() > 1 or parameter is getattr(model.get_output_embeddings(), "bias", None):
            parameter.data.normal_(0, 0.3)
    return model


def texts(lengths=(11, 7, 2), left=False):
    """Ids and mask (3, 11) of texts of these lengths, padded on one side."""
    ids = torch.randint(1, 50, (len(lengths), 11), generator=torch.Generator().manual_seed(1))
    mask = torch.zeros_like(ids)
    for row, n in enumerate(lengths):
        mask[row, :n] = 1
    if left:
        for row, n in enumerate(lengths):
            ids[row], mask[row] = ids[row].roll(-n), mask[row].roll(-n)
    return ids, mask


def exact(model, ids, mask):
    """What token_stats should give, from the model's own logits in float64, one unpadded text at a time."""
    model, out = copy.deepcopy(model).double(), torch.full((2, *ids.shape), math.nan, dtype=torch.float64)
    for row in range(len(ids)):
        at = mask[row].nonzero()[:, 0]
        with torch.no_grad():
            reference = torch.log_softmax(model(input_ids=ids[row, at][None]).logits[0, :-1], -1)
        out[0, row, at[1:]] = -(reference.exp() * reference).sum(-1)
        out[1, row, at[1:]] = reference.gather(-1, ids[row, at[1:], None])[:, 0]
    return out


def assert_close(scores, expected, within=1e-4):
    scores = torch.stack(scores)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores.double(), expected, rtol=0, atol=within, equal_nan=True)


@pytest.fixture
def no_fallback():
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        yield


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("name", FAMILIES)
def test_families_equal_full_logits_in_float64(name, left, monkeypatch, no_fallback):
    monkeypatch.setattr(scoring, "ROWS", 5)
    monkeypatch.setitem(scoring.COLUMNS, "cpu", 16)  # several tiles each way, the last ones cut
    model, (ids, mask) = build(name), texts(left=left)
    scores = token_stats(model, ids, mask)
    assert scoring._found[model] == FAMILIES[name][1]
    assert_close(scores, exact(model, ids, mask))
    assert torch.equal(scores[0].isnan(), scores[1].isnan())
    assert scores[0].isnan().sum() == 33 - (10 + 6 + 1)  # a first token has no score, and padding has none


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_plain_way_gives_the_same(name, left, no_fallback):
    model, (ids, mask) = build(name), texts(left=left)
    plain, expected = token_stats_simple(model, ids, mask), exact(model, ids, mask)
    assert_close(plain, expected)
    for a, b in zip(plain, token_stats(model, ids, mask), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-5, equal_nan=True)
    whole = torch.ones_like(ids)
    assert_close(token_stats_simple(model, ids), exact(model, ids, whole))


def test_padding_changes_no_number_at_all():
    model = build("gpt2")
    (ids, mask), (left_ids, left_mask) = texts(), texts(left=True)
    right, left = token_stats(model, ids, mask), token_stats(model, left_ids, left_mask)
    more = torch.zeros(3, 40).long()  # more columns than the model has positions; the texts are as short as before
    wide = token_stats(model, torch.cat([ids, more], 1), torch.cat([mask, more], 1))
    for a, b, c in zip(right, left, wide, strict=True):
        assert torch.equal(a[mask.bool()].nan_to_num(), b[left_mask.bool()].nan_to_num())
        assert torch.equal(a.nan_to_num(), c[:, :11].nan_to_num())


def test_without_a_mask_everything_is_text():
    model, (ids, _) = build("llama"), texts()
    assert_close(token_stats(model, ids), exact(model, ids, torch.ones_like(ids)))


@pytest.mark.parametrize("name", ["qwen3 untied", "gemma2", "cohere multiplies", "phi, a head with a bias"])
def test_half_precision_weights_are_summed_in_float32(name, no_fallback):
    model, (ids, mask) = build(name).bfloat16(), texts()
    entropy, logprob = token_stats(model, ids, mask)
    with torch.no_grad():
        own = entropy_and_logprob(model(input_ids=ids, attention_mask=mask).logits[:, :-1], ids[:, 1:])
    keep = mask[:, 1:].bool()
    for ours, theirs in zip((entropy, logprob), own, strict=True):  # apart by the roundings that the model does behind its head
        assert (ours[:, 1:] - theirs)[keep].abs().max() < 0.05
    assert scoring._found[model] == FAMILIES[name][1]


# ------------------------------------------------------------------------------------------ heads that cannot be split


class Mixed(T.Qwen3ForCausalLM):
    """Adds a square of the logits, which no configuration mentions."""

    def forward(self, *args, **more):
        out = super().forward(*args, **more)
        out.logits = out.logits + 0.1 * out.logits**2
        return out


class Undeclared(T.Qwen3ForCausalLM):
    """Multiplies the logits, which no configuration mentions."""

    def forward(self, *args, **more):
        out = super().forward(*args, **more)
        out.logits = 1.01 * out.logits
        return out


class TwoLayers(T.Qwen3ForCausalLM):
    """A head that is no linear layer."""

    def __init__(self, config):
        super().__init__(config)
        self.lm_head = torch.nn.Sequential(torch.nn.Linear(32, 8), torch.nn.Tanh(), torch.nn.Linear(8, 50))


class NormBehind(T.Qwen3ForCausalLM):
    """Does more to the hidden states before its head, and shortens the vocabulary behind it."""

    def forward(self, input_ids, attention_mask=None, **more):
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask, **more).last_hidden_state
        return SimpleNamespace(logits=self.lm_head(hidden.tanh())[..., :-1])


@pytest.mark.parametrize("kind", [Mixed, Undeclared, TwoLayers, NormBehind])
def test_other_heads_fall_back_to_the_models_own_forward(kind):
    torch.manual_seed(0)
    model, (ids, mask) = kind(T.Qwen3Config(**SIZES, initializer_range=0.3)).eval(), texts(left=True)
    ids = ids.clamp(max=48)
    with pytest.warns(RuntimeWarning, match=f"logits of {kind.__name__} are not just a linear layer"):
        assert_close(token_stats(model, ids, mask), exact(model, ids, mask))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        token_stats(model, ids, mask)


# --------------------------------------------------------------------------------------------------------- the sums


@pytest.mark.parametrize("tile", [(1, 1), (3, 7), (100, 1000)])
@pytest.mark.parametrize("size", [0.0, 1.0, 100.0, 1e4])
def test_tiles_and_the_size_of_logits_do_not_matter(tile, size):
    torch.manual_seed(0)
    logits = (size * torch.randn(8, 40)).sort(-1).values  # the largest comes last: every tile raises the top
    logits[4:] = logits[4:].flip(-1)
    targets = torch.randint(40, (8,))
    ours = head_stats(torch.eye(8), Head(logits.T.contiguous()), targets, tile)
    reference = torch.log_softmax(logits.double(), -1)
    taken = reference.gather(1, targets[:, None])[:, 0]
    for a, b in zip(ours, (-(reference.exp() * reference).sum(-1), taken), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("scale", [0.125, 1.0, 8.0])
@pytest.mark.parametrize("forbidden", [range(5), range(5, 20), [19], range(19)])
def test_minus_infinity_counts_as_probability_zero(forbidden, scale):
    torch.manual_seed(0)
    hidden, weight, bias, targets = torch.randn(6, 4), torch.randn(20, 4), torch.zeros(20), torch.tensor([0, 4, 5, 18, 19, 7])
    bias[list(forbidden)] = -math.inf
    expected = entropy_and_logprob(scale * (hidden @ weight.T + bias), targets)
    ours = head_stats(hidden, Head(weight, bias, scale), targets, (4, 5))
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-6)


def test_half_precision_logits_are_upcast_before_they_are_summed():
    torch.manual_seed(0)
    hidden, weight = torch.randint(-3, 4, (6, 16)).bfloat16() / 4, torch.randint(-8, 9, (300, 16)).bfloat16() / 8
    logits, targets = hidden @ weight.T, torch.randint(300, (6,))  # sums of eighths are exact, whatever their order
    reference = torch.log_softmax(logits.double(), -1)
    entropy = -(reference.exp() * reference).sum(-1)
    assert (head_stats(hidden, Head(weight), targets, (4, 64))[0] - entropy).abs().max() < 1e-5
    in_half = torch.log_softmax(logits, -1)
    assert (-(in_half.exp() * in_half).sum(-1) - entropy).abs().max() > 1e-3


def test_equals_trl_where_it_is_installed():
    pytest.importorskip("trl.kernels")
    torch.manual_seed(0)
    hidden, weight, targets = torch.randn(30, 16), torch.randn(500, 16), torch.randint(500, (30,))
    ours, theirs = head_stats(hidden, Head(weight), targets, (8, 64)), bench.trl_scores(hidden, weight, targets)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-5)


class LargestTensor(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that an operation returned."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else [out]:
            self.elements = max(self.elements, x.numel() if isinstance(x, torch.Tensor) else 0)
        return out


def test_full_logits_never_exist():
    vocabulary, length = 6000, 400
    config = T.LlamaConfig(**{**SIZES, "vocab_size": vocabulary, "max_position_embeddings": length})
    model, ids = T.LlamaForCausalLM(config).eval(), torch.randint(1, vocabulary, (1, length))
    with LargestTensor() as ours:
        token_stats(model, ids)
    with LargestTensor() as theirs, torch.no_grad():
        model(input_ids=ids)
    assert theirs.elements == length * vocabulary
    assert ours.elements <= 2 * length * scoring.COLUMNS["cpu"]  # the two tiles


# ------------------------------------------------------------------------------------------------------ what is refused


def test_a_text_beyond_the_models_positions_is_refused():
    model = build("gpt2")
    assert token_stats(model, torch.ones(1, 32).long())[0].shape == (1, 32)
    with pytest.raises(InputError, match=r"33 tokens, but GPT2LMHeadModel has 32 positions.* shorten the text"):
        token_stats(model, torch.ones(1, 33).long())


@pytest.mark.parametrize("when", ["before the first text", "after it"])
def test_nan_is_named(when):
    model, (ids, mask) = build("llama"), texts()
    if when == "after it":
        token_stats(model, ids, mask)
    model.lm_head.weight.data[7] = math.nan
    with pytest.raises(FloatingPointError, match="logits are NaN"):
        token_stats(model, ids, mask)


@pytest.mark.parametrize("shape", [(2, 1), (2, 0), (0, 3)])
def test_where_no_token_follows_another_there_is_nothing_to_score(shape):
    for scores in token_stats(build("llama"), torch.ones(shape).long()):
        assert scores.shape == shape
        assert scores.isnan().all()


def test_padding_alone_is_nothing_to_score():
    ids, mask = texts((11, 1, 0))
    entropy, _ = token_stats(build("llama"), ids, mask)
    assert entropy[1:].isnan().all()
    assert not entropy[0, 1:].isnan().any()


# ------------------------------------------------------------------------------------------------------- the benchmark


def test_bench_score_compares_time_memory_and_accuracy():
    comparisons = bench.bench_score(rounds=1, positions=64, vocabulary=3000, hidden=16)
    assert "full logits" in comparisons[0].name
    for comparison in comparisons:
        assert len(comparison.ours) == len(comparison.theirs) == 1
        assert "extra memory: ours" in str(comparison)
        assert float(str(comparison).split("by at most ")[1].split()[0]) < 1e-4


def test_extra_memory_is_what_a_side_needs_on_the_way():
    result, rise = bench.extra_memory(lambda: float(torch.ones(40 * 2**18).sum()))  # 40 MiB, freed again
    assert result == 40 * 2**18
    assert math.isnan(rise) or 39 < rise < 60
