"""Sampling: recorded numbers, padding, seeds, ends of text; loading: clear errors."""

import json
import shutil
import warnings

import pytest
import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from heal_ref.config import SampleConfig
from heal_ref.generation import generate, repeats, sample
from heal_ref.model import LM, load_lm
from heal_ref.records import InputError
from heal_ref.scoring import text_stats
from tests.conftest import DATA

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
         "num_key_value_heads": 2}
CONTEXTS = ["Problem: Start 5; + 3\nSolution:\n", "Problem: Start 5; + 3; * 4; # 7; - 6; + 1; * 2\nSolution:\n"]


def test_recorded_numbers_are_those_of_the_raw_distribution(teacher):
    """Warping changes what is sampled, never what is recorded: scoring the text gives the same numbers."""
    contexts = [teacher.encode(c) for c in CONTEXTS] * 8
    rollouts = generate(teacher, contexts, sampling=SampleConfig(temperature=0.7, top_p=0.8), seed=0)
    scored = text_stats(teacher, [(c, r.ids) for c, r in zip(contexts, rollouts, strict=True)])
    for rollout, (entropy, logprob) in zip(rollouts, scored, strict=True):
        assert rollout.entropy == pytest.approx(entropy, abs=1e-4)
        assert rollout.logprob == pytest.approx(logprob, abs=1e-4)
        assert len(rollout.ids) == len(rollout.entropy) == len(rollout.logprob) > 0


def test_padding_changes_nothing(teacher):
    contexts = [teacher.encode(c) for c in CONTEXTS]
    greedy = SampleConfig(temperature=0.0)
    together = generate(teacher, contexts, sampling=greedy, seed=0)
    alone = [generate(teacher, [c], sampling=greedy, seed=0)[0] for c in contexts]
    assert [r.ids for r in together] == [r.ids for r in alone]
    for a, b in zip(together, alone, strict=True):
        assert a.entropy == pytest.approx(b.entropy, abs=1e-4)
    short, long = ([(c, r.ids)] for c, r in zip(contexts, together, strict=True))
    both = text_stats(teacher, short + long)
    assert both[0][1] == pytest.approx(text_stats(teacher, short)[0][1], abs=1e-4)


def test_small_batches_give_the_same_greedy_text(teacher):
    contexts = [teacher.encode(c) for c in CONTEXTS] * 3
    greedy = SampleConfig(temperature=0.0)
    whole = generate(teacher, contexts, sampling=greedy, seed=0)
    teacher_by_two = type(teacher)(teacher.model, teacher.tokenizer, max_batch=2)
    assert [r.ids for r in generate(teacher_by_two, contexts, sampling=greedy, seed=0)] == [r.ids for r in whole]


FAMILIES = {  # random models: (make it, are tails of different lengths shared, of one length)
    "llama": (lambda v: LlamaForCausalLM(LlamaConfig(vocab_size=v, **SMALL)), True, True),
    "gpt2": (lambda v: GPT2LMHeadModel(GPT2Config(vocab_size=v, n_embd=32, n_layer=2, n_head=2)), True, True),
    "bloom": (lambda v: BloomForCausalLM(BloomConfig(vocab_size=v, hidden_size=32, n_layer=2, n_head=2)), True, True),
    "sliding window": (lambda v: MistralForCausalLM(MistralConfig(vocab_size=v, sliding_window=8, **SMALL)), False, True),
    "state space": (lambda v: MambaForCausalLM(MambaConfig(vocab_size=v, hidden_size=32, num_hidden_layers=2,
                                                           state_size=8)), False, False),
}


@pytest.mark.parametrize("one_length", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_shared_prefix_gives_the_same_greedy_text(family, one_length, teacher):
    """Contexts and tails of different lengths, in one batch, against every context computed on its own."""
    torch.manual_seed(0)
    make, *shares = FAMILIES[family]
    model = make(len(teacher.tokenizer)).eval()
    for p in model.parameters():
        p.data.normal_(0, 0.3)
    lm = LM(model, teacher.tokenizer)
    contexts = [lm.encode(c) for c in CONTEXTS]
    words = ["Then compute 3 + ", "Now take 3 + "] if one_length else ["We start at 5.\n\n", "Then ", "Now take 3 + 4 ="]
    tails = [[lm.encode(w) for w in words] for _ in contexts]
    greedy = SampleConfig(temperature=0.0, max_new_tokens=12)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        together = generate(lm, contexts, tails, sampling=greedy, seed=0)
    alone = [generate(lm, [c + t], sampling=greedy, seed=0)[0] for c, mine in zip(contexts, tails, strict=True) for t in mine]
    assert [r.ids for r in together] == [r.ids for r in alone]
    for a, b in zip(together, alone, strict=True):
        assert a.entropy == pytest.approx(b.entropy, abs=1e-4)
    assert any("cannot be repeated" in str(w.message) for w in said) != shares[one_length]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_context_seen_in_part(family, teacher):
    """Tails behind the first few tokens of a context, through one cache, against those texts on their own."""
    torch.manual_seed(1)
    model = FAMILIES[family][0](len(teacher.tokenizer)).eval()
    for p in model.parameters():
        p.data.normal_(0, 0.3)
    lm = LM(model, teacher.tokenizer)
    contexts = [lm.encode(c) for c in CONTEXTS]
    tail, visible = lm.encode("Then take "), [[3, 6, len(c)] for c in contexts]
    greedy = SampleConfig(temperature=0.0, max_new_tokens=6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        together = generate(lm, contexts, [[tail] * 3] * 2, sampling=greedy, seed=0, visible=visible)
    alone = generate(lm, [c[:v] + tail for c, seen in zip(contexts, visible, strict=True) for v in seen], sampling=greedy, seed=0)
    assert [r.ids for r in together] == [r.ids for r in alone]
    for a, b in zip(together, alone, strict=True):
        assert a.entropy == pytest.approx(b.entropy, abs=1e-4)


def test_a_context_is_computed_once(teacher, monkeypatch):
    seen = []
    forward = type(teacher.model).forward

    def watch(self, input_ids=None, **more):
        seen.append(input_ids.numel())
        return forward(self, input_ids=input_ids, **more)

    monkeypatch.setattr(type(teacher.model), "forward", watch)
    context = teacher.encode(CONTEXTS[1])
    generate(teacher, *zip(repeats(context, 20), strict=True), sampling=SampleConfig(max_new_tokens=3), seed=0)
    assert seen == [len(context) - 1, 20, 20, 20]


def test_seed_decides_and_global_state_is_left_alone(teacher, task, validation):
    before = torch.random.get_rng_state()
    a = sample(teacher, task, validation[:4], n=3, seed=5)
    assert torch.equal(before, torch.random.get_rng_state())
    assert a == sample(teacher, task, validation[:4], n=3, seed=5)
    assert [t.text for t in a] != [t.text for t in sample(teacher, task, validation[:4], n=3, seed=6)]
    assert [(t.problem.id, t.index) for t in a] == [(p.id, i) for p in validation[:4] for i in range(3)]


def test_length_limit_is_not_an_end(teacher, task, validation):
    cut = sample(teacher, task, validation[:1], n=2, sampling=SampleConfig(max_new_tokens=5))
    assert all(not t.finished and t.answer is None and not t.correct and len(t.token_ids) == 5 for t in cut)
    whole = sample(teacher, task, validation[:1], n=2)
    assert all(t.finished and teacher.tokenizer.eos_token_id not in t.token_ids for t in whole)
    assert all(t.tokens_spent == len(t.token_ids) + 1 for t in whole)


def test_load_errors_say_what_to_do(tmp_path):
    with pytest.raises(InputError, match="build-pair"):
        load_lm(tmp_path)
    shutil.copytree(DATA / "teacher", tmp_path / "m")
    config = json.loads((tmp_path / "m" / "tokenizer_config.json").read_text())
    config.pop("eos_token")
    (tmp_path / "m" / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="end-of-text"):
        load_lm(tmp_path / "m")
