"""Sampling: recorded numbers, padding, seeds, ends of text; loading: clear errors."""

import copy
import json
import math
import pickle
import shutil
import warnings
from collections import Counter
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BloomConfig,
    BloomForCausalLM,
    FalconH1Config,
    FalconH1ForCausalLM,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    TopPLogitsWarper,
)

from heal_ref import generation
from heal_ref.config import SampleConfig
from heal_ref.generation import Draw, Nucleus, generate, repeats, sample, sampled_stats
from heal_ref.model import LM, load_lm
from heal_ref.records import InputError
from heal_ref.run.sources import load_problems
from heal_ref.scoring import text_stats
from heal_ref.tasks import ChatMathTask
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
    "attention beside a state space": (lambda v: FalconH1ForCausalLM(FalconH1Config(
        vocab_size=v, mamba_d_ssm=64, mamba_n_heads=4, mamba_d_head=16, mamba_n_groups=1, mamba_d_state=8, **SMALL)), False, False),
}


def scores_are_recorded_ones(lm, contexts, tails, visible, rollouts):
    """What is sampled elsewhere is scored with the contexts shared: the numbers recorded while sampling."""
    jobs = [(tuple(c), t, v) for c, mine, seen in zip(contexts, tails, visible, strict=True)
            for t, v in zip(mine, seen, strict=True)]
    for rollout, (entropy, logprob) in zip(rollouts, sampled_stats(lm, jobs, [r.ids for r in rollouts]), strict=True):
        assert entropy == pytest.approx(rollout.entropy, abs=1e-4)
        assert logprob == pytest.approx(rollout.logprob, abs=1e-4)


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
        scores_are_recorded_ones(lm, contexts, tails, [[len(c)] * len(words) for c in contexts], together)
    alone = [generate(lm, [c + t], sampling=greedy, seed=0)[0] for c, mine in zip(contexts, tails, strict=True) for t in mine]
    assert [r.ids for r in together] == [r.ids for r in alone]
    for a, b in zip(together, alone, strict=True):
        assert a.entropy == pytest.approx(b.entropy, abs=1e-4)
    assert any("cannot be repeated" in str(w.message) for w in said) != shares[one_length]


@pytest.mark.parametrize("family", FAMILIES)
def test_finished_rows_leave_a_batch(family, teacher, monkeypatch):
    """Rows that end early leave; the texts, entropies and log-probs of the others do not change."""
    contexts = [teacher.encode(f"Problem: Start {n}; + 3\nSolution:\nWe start at ") for n in range(1, 9)]
    tails, greedy = [[teacher.encode("5"), teacher.encode("7.\n\n")] for _ in contexts], SampleConfig(temperature=0.0, max_new_tokens=30)
    for seed in range(20):  # random weights that write different texts
        torch.manual_seed(seed)
        model, rows = FAMILIES[family][0](len(teacher.tokenizer)).eval(), list[int]()
        for p in model.parameters():
            p.data.normal_(0, 0.3 + 0.1 * seed)
        lm = LM(model, teacher.tokenizer)
        free = generate(lm, contexts, tails, sampling=greedy, seed=0)
        often = {token: sum(token in r.ids for r in free) for r in free for token in r.ids}
        end = min(often, key=lambda token: abs(often[token] - len(free) / 2))
        if often[end] < len(free):
            break
    monkeypatch.setattr(LM, "ends", (end,))
    whole = generate(lm, contexts, tails, sampling=greedy, seed=0)
    model.register_forward_pre_hook(lambda _, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True)
    for first, then in ((4, 3), (1, 1), (29, 1)):
        monkeypatch.setattr(generation, "FIRST", first)
        monkeypatch.setattr(generation, "NEXT", then)
        parts = generate(lm, contexts, tails, sampling=greedy, seed=0)
        assert [r.ids for r in parts] == [r.ids for r in whole]
        assert [r.finished for r in parts] == [r.finished for r in whole]
        for a, b in zip(parts, whole, strict=True):
            assert a.entropy == pytest.approx(b.entropy, abs=1e-4)
            assert a.logprob == pytest.approx(b.logprob, abs=1e-4)
    assert len({r.finished for r in whole}) == 2
    assert min(rows) < len(whole)


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
        scores_are_recorded_ones(lm, contexts, [[tail] * 3] * 2, visible, together)
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


def test_a_shared_context_is_scored_once(teacher, monkeypatch):
    context, tails = repeats(teacher.encode(CONTEXTS[1]), 20)
    jobs, new = [(tuple(context), tail, len(context)) for tail in tails], [[7, 8, 9]] * 19 + [[]]
    one = text_stats(teacher, [([*context, *tails[0]], new[0])])[0]
    inner, seen = type(teacher.model.base_model), []
    forward = inner.forward
    monkeypatch.setattr(inner, "forward", lambda self, input_ids=None, **more: (
        seen.append(input_ids.numel()), forward(self, input_ids=input_ids, **more))[1])
    *three, none = sampled_stats(teacher, jobs, new)
    assert seen == [len(context), 20 * 4]
    assert none == ([], [])
    for ours in three:
        assert ours[0] == pytest.approx(one[0], abs=1e-5)
        assert ours[1] == pytest.approx(one[1], abs=1e-5)


@pytest.mark.parametrize("size", [71, 1000, 5000])
@pytest.mark.parametrize("top_p", [1e-4, 0.5, 0.95, 0.999])
@pytest.mark.parametrize("spread", [0.01, 1.0, 5.0, 40.0])
def test_the_nucleus_is_that_of_transformers(size, top_p, spread):
    scores = spread * torch.randn(4, size, generator=torch.Generator().manual_seed(size))
    scores[:, 5:20] = -torch.inf
    ours = Nucleus(top_p, temperature=0.7, first=8)(None, scores) > -torch.inf
    theirs = TopPLogitsWarper(top_p)(None, scores.double() / 0.7) > -torch.inf
    assert torch.equal(ours, theirs)


def test_a_nucleus_of_almost_everything_is_not_cut_by_rounding():
    scores = torch.tensor([[0.0, -50.0, -50.0, -60.0]])
    assert (Nucleus(1 - 1e-9, first=2)(None, scores) > -torch.inf).tolist() == [[True, False, False, False]]


def test_draw_leaves_each_token_as_often_as_it_is_probable():
    scores = torch.randn(1, 30_000, generator=torch.Generator().manual_seed(0))
    scores[:, [7, 70, 29_999]] += 8.0
    scores[:, :3] = scores[:, 5] = -torch.inf
    p = (scores[0].double() / 0.7).softmax(-1)
    torch.manual_seed(0)
    left = torch.cat([Draw(0.7)(None, scores.repeat(500, 1)) for _ in range(8)])
    assert ((left > -torch.inf).sum(1) == 1).all()
    often = torch.bincount(left.argmax(-1), minlength=30_000) / len(left)
    assert often[p == 0].sum() == 0
    for token in (7, 70, 29_999):
        assert abs(often[token] - p[token]) < 4 * (p[token] * (1 - p[token]) / len(left)) ** 0.5
    others = 1 - p[[7, 70, 29_999]].sum()
    assert abs(1 - often[[7, 70, 29_999]].sum() - others) < 4 * (others * (1 - others) / len(left)) ** 0.5 < others


@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_a_large_vocabulary_is_drawn_from_in_the_same_way(teacher, monkeypatch, top_p):
    """The same distribution as by multinomial, the same raw entropies, and nothing outside of the nucleus."""
    context = teacher.encode("Problem: Start 5; # 3\nSolution:\nWe start at 5.\n\nThen compute 5 # 3 = ")
    sampling, drawn = SampleConfig(temperature=1.0, top_p=top_p, max_new_tokens=2), []
    for large in (False, True):
        monkeypatch.setattr("heal_ref.generation.LARGE", 70 if large else 10**6)
        made = generate(teacher, [context] * 1500, sampling=sampling, seed=0)
        drawn.append([Counter(r.ids[0] for r in made), {(r.ids[0], r.entropy[0], r.logprob[0]) for r in made}])
    (counts, raw), (theirs, same) = drawn
    assert abs(sum(e for _, e, _ in raw) / len(raw) - sum(e for _, e, _ in same) / len(same)) < 1e-4
    common = [token for token, count in counts.items() if count >= 60]
    assert len(common) > 3
    assert all(abs(counts[t] - theirs[t]) < 5 * (2 * counts[t]) ** 0.5 for t in common)
    nucleus = Nucleus(top_p)(None, teacher.model(torch.tensor([context])).logits[:, -1].detach())[0] if top_p < 1 else None
    assert nucleus is None or all(nucleus[token] > -torch.inf for token in theirs)


def test_sampling_from_a_nucleus_never_leaves_it(teacher):
    """The middle of an unlearnt step is close to uniform over the hours; a narrow nucleus holds one token only."""
    context = teacher.encode("Problem: Start 5; # 3\nSolution:\nWe start at 5.\n\nThen compute 5 # 3 = ")
    narrow, wide = (SampleConfig(temperature=1.0, top_p=p, max_new_tokens=1) for p in (1e-6, 1.0))
    drawn = [{tuple(r.ids) for r in generate(teacher, [context] * 32, sampling=s, seed=0)} for s in (narrow, wide)]
    assert len(drawn[0]) == 1 < len(drawn[1])
    greedy = SampleConfig(temperature=0.0, max_new_tokens=1)
    assert {tuple(r.ids) for r in generate(teacher, [context], sampling=greedy, seed=0)} == drawn[0]


@pytest.mark.parametrize("pad", [None, "7"])
def test_a_step_ends_a_rollout(teacher, task, validation, pad):
    """Also where padding is no end of a text, as in Qwen2.5: a row that is done is padded until the others are."""
    if pad:
        teacher = replace(teacher, tokenizer=copy.deepcopy(teacher.tokenizer))
        teacher.tokenizer.pad_token = pad
        assert teacher.tokenizer.pad_token_id not in teacher.ends
        teacher._pieces[teacher.tokenizer.pad_token_id] = ""  # as special tokens are decoded
    contexts = [teacher.encode(task.prompt(p)) for p in validation[:6]]
    contexts[0] = contexts[0] + teacher.encode("We start at ")  # so that its step is done before the others
    greedy = SampleConfig(temperature=0.0)
    whole = generate(teacher, contexts, sampling=greedy, seed=0)
    first = generate(teacher, contexts, sampling=greedy, seed=0, until="\n\n")
    for w, f in zip(whole, first, strict=True):
        assert w.ids[: len(f.ids)] == f.ids
        assert teacher.decode(f.ids).count("\n\n") == 1
        assert teacher.decode(f.ids).endswith("\n\n")
        assert not f.finished
        assert f.tokens_spent == len(f.ids)
        assert f.entropy == pytest.approx(w.entropy[: len(f.ids)], abs=1e-4)
    never = generate(teacher, contexts[:2], sampling=greedy, seed=0, until="no such text")
    assert [(r.ids, r.finished) for r in never] == [(r.ids, r.finished) for r in whole[:2]]


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


# ---------------------------------------------------------------------------- the model's generation config

# One value for each field that GenerationConfig knows: one that would change or break a generation, where there is one.
VALUES = {
    "max_length": 3, "max_new_tokens": 2, "min_length": 50, "min_new_tokens": 40, "early_stopping": True, "max_time": 0.001,
    "stop_strings": ["the"], "do_sample": True, "num_beams": 3, "use_mtp": True, "use_cache": False,
    "cache_implementation": "static", "cache_config": {"backend": "quanto"}, "max_cache_len": 4, "temperature": 0.1, "top_k": 2,
    "top_p": 0.3, "min_p": 0.5, "top_h": 0.4, "typical_p": 0.3, "epsilon_cutoff": 0.2, "eta_cutoff": 0.2,
    "repetition_penalty": 1.3, "encoder_repetition_penalty": 1.4, "length_penalty": 2.0, "no_repeat_ngram_size": 2,
    "bad_words_ids": [[5], [6, 7]], "renormalize_logits": True, "forced_bos_token_id": 4, "forced_eos_token_id": 1,
    "remove_invalid_values": True, "exponential_decay_length_penalty": [1, 1.5], "suppress_tokens": [3, 4, 5],
    "begin_suppress_tokens": [6, 7], "sequence_bias": [[[5], 3.0]], "token_healing": True, "guidance_scale": 1.5,
    "watermarking_config": {"greenlist_ratio": 0.25, "bias": 5.0}, "num_return_sequences": 3, "output_attentions": True,
    "output_hidden_states": True, "output_scores": True, "output_logits": True, "return_dict_in_generate": True,
    "bos_token_id": 3, "encoder_no_repeat_ngram_size": 2, "decoder_start_token_id": 3, "is_assistant": True,
    "num_assistant_tokens": 3, "num_assistant_tokens_schedule": "heuristic", "assistant_confidence_threshold": 0.1,
    "prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 2, "assistant_early_exit": 1, "assistant_lookbehind": 3,
    "target_lookbehind": 3, "assistant_ensemble_weight": 0.5, "speculation_type": "mtp", "compile_config": {"fullgraph": True},
    "disable_compile": True, "continuous_batching_config": {}, "low_memory": True, "penalty_alpha": 0.6, "dola_layers": "high",
    "diversity_penalty": 0.5, "num_beam_groups": 3, "constraints": [1], "force_words_ids": [[5]], "prefill_chunk_size": 2,
    "pad_token_id": 5, "transformers_version": "3.0", "custom_generate": "someone/else", "a_field_of_tomorrow": [1, 2]}


@pytest.fixture(scope="session")
def chat():
    lm = load_lm(DATA / "chat" / "teacher")
    return lm, ChatMathTask(lm.tokenizer, verify=False), load_problems(DATA / "chat" / "heldout.jsonl")[:2]


def with_settings(folder, settings):
    """A copy of the chat teacher with another generation_config.json."""
    shutil.copytree(DATA / "chat" / "teacher", folder)
    (folder / "generation_config.json").write_text(settings if isinstance(settings, str) else json.dumps(settings))
    return folder


def test_every_field_of_a_generation_config_is_tried():
    """A field that a newer transformers adds has to be given a value above."""
    fields = {name for name in GenerationConfig().__dict__ if not name.startswith("_")} - {"eos_token_id"}
    assert fields <= set(VALUES), fields - set(VALUES)


@pytest.mark.parametrize("name", [*VALUES, "all of them"])
def test_a_models_generation_config_has_no_effect(tmp_path, chat, name):
    own, task, problems = chat
    settings = {"eos_token_id": [1], **(VALUES if name == "all of them" else {name: VALUES[name]})}
    lm = load_lm(with_settings(tmp_path / "m", settings), dtype="float32")
    sampling = SampleConfig(max_new_tokens=24)
    samples = sample(lm, task, problems, n=3, seed=1, sampling=sampling)
    assert samples == sample(own, task, problems, n=3, seed=1, sampling=sampling)
    scored = text_stats(lm, [(lm.encode(t.prompt), t.token_ids) for t in samples])
    for t, (entropy, logprob) in zip(samples, scored, strict=True):
        assert t.entropy == pytest.approx(entropy, abs=1e-4)
        assert t.logprob == pytest.approx(logprob, abs=1e-4)
    for part in (lm.model, lm.tokenizer):  # what a student is saved as keeps the end ids only
        part.save_pretrained(tmp_path / "student")
    left = json.loads((tmp_path / "student" / "generation_config.json").read_text())
    assert left.keys() <= {"eos_token_id", "pad_token_id", "transformers_version", "_from_model_config"}
    assert load_lm(tmp_path / "student").ends == (1,)


@pytest.mark.parametrize("settings", ["{", "[1]", "7", "", "\0", "[" * 100_000], ids=lambda s: s[:20])
def test_a_malformed_generation_config_is_one_line(tmp_path, settings):
    with pytest.raises(InputError, match="cannot be loaded") as error:
        load_lm(with_settings(tmp_path / "m", settings))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("listed", [10**30, -5, 1.7, float("nan"), True, "1", "</s>", {}, [[1]], [None], [-1, "2", 10**30, 1.0, 10**6]],
                         ids=str)
def test_what_is_no_id_of_the_model_ends_nothing(tmp_path, chat, listed):
    own, task, problems = chat
    for valid in ([], [7]):
        both = (listed if isinstance(listed, list) else [listed]) + valid if valid else listed
        lm = load_lm(with_settings(tmp_path / f"m{len(valid)}", {"eos_token_id": both}))
        assert lm.ends == (1, *valid)
        assert type(lm.ends[0]) is int
    many = SampleConfig(max_new_tokens=6)
    assert len(sample(lm, task, problems[:1], n=1, seed=1, sampling=many)) == 1
    generate(lm, [lm.encode("What")], sampling=many, seed=0, ends=False)
    lm.model.save_pretrained(tmp_path / "student")


def test_a_model_that_was_not_loaded_by_us_is_neutral_too(chat):
    own, task, problems = chat
    model = AutoModelForCausalLM.from_pretrained(DATA / "chat" / "teacher")
    model.generation_config = GenerationConfig(repetition_penalty=1.5, num_return_sequences=2, num_beams=2, eos_token_id=[1, 7])
    lm = LM(model, own.tokenizer)
    assert lm.ends == (1, 7)
    t, = sample(lm, task, problems[:1], n=1, seed=1)
    assert t.logprob == pytest.approx(text_stats(lm, [(lm.encode(t.prompt), t.token_ids)])[0][1], abs=1e-4)
    assert LM(model, own.tokenizer).ends == (1, 7)  # also when the same model is taken twice


def test_settings_in_an_old_config_json_have_no_effect(tmp_path, chat):
    """Years ago they were part of config.json, where transformers still finds them."""
    own, task, problems = chat
    folder = with_settings(tmp_path / "m", {})
    (folder / "generation_config.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    old = {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "num_beams": 2, "output_hidden_states": True, "use_cache": False,
           "return_dict": False}
    (folder / "config.json").write_text(json.dumps(config | old))
    lm = load_lm(folder)
    assert lm.ends == (1,)
    assert sample(lm, task, problems, n=2, seed=1) == sample(own, task, problems, n=2, seed=1)
    lm.model.save_pretrained(tmp_path / "student")


# ---------------------------------------------------------------------------------------------- ends of a text


def test_any_of_the_ends_ends_a_text(tmp_path, chat):
    own, task, problems = chat
    assert own.end == own.tokenizer.eos_token_id == 1
    whole, = sample(own, task, problems[:1], n=1, seed=1)
    for listed in ([whole.token_ids[9], 1], whole.token_ids[9], [1, whole.token_ids[12], whole.token_ids[9]]):
        folder = with_settings(tmp_path / f"m{listed}", {"eos_token_id": listed})
        lm = load_lm(folder)
        assert set(lm.ends) == {1, *(listed if isinstance(listed, list) else [listed])}
        t, = sample(lm, task, problems[:1], n=1, seed=1)
        first = min(i for i, token in enumerate(whole.token_ids) if token in lm.ends)
        assert t.finished
        assert t.token_ids == whole.token_ids[:first]
        assert t.tokens_spent == first + 1


def test_no_end_is_allowed_where_none_is_wanted(tmp_path, chat):
    own, task, problems = chat
    lm = load_lm(with_settings(tmp_path / "m", {"eos_token_id": [*range(1, 100), 128_009, -1]}))  # two that it does not have
    for p in lm.model.parameters():
        p.data.zero_()  # every token is as likely
    context, many = lm.encode(task.prompt(problems[0])), SampleConfig(max_new_tokens=200)
    assert generate(lm, [context], sampling=many, seed=0)[0].finished
    forced, = generate(lm, [context], sampling=many, seed=0, ends=False)
    assert not forced.finished
    assert not set(forced.ids) & set(lm.ends)
    assert forced.entropy == pytest.approx([math.log(len(lm.tokenizer))] * 200, abs=1e-4)  # the raw one, with the ends


def test_the_template_says_what_ends_a_turn(chat):
    """Phi-3's way: a turn ends with a token of its own, the text with another."""
    own, _, _ = chat
    tokenizer = copy.deepcopy(own.tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|end|>"]})
    tokenizer.chat_template = ("{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
                               "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}")
    lm = LM(own.model, tokenizer)
    assert lm.end == tokenizer.convert_tokens_to_ids("<|end|>")
    assert set(lm.ends) == {lm.end, tokenizer.eos_token_id}
    tokenizer.chat_template = None
    assert lm.end == tokenizer.eos_token_id


# -------------------------------------------------------------------------------------------------- what is refused


def config_of(folder, **values):
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | values))


def quantised(method, **more):
    return lambda f: config_of(f, quantization_config={"quant_method": method, **more})


def custom_code(folder):
    auto = {"AutoConfig": "code.NewConfig", "AutoModelForCausalLM": "code.NewModel", "AutoTokenizer": ["code.New", None]}
    config_of(folder, auto_map=auto, model_type="new_model", architectures=["NewModel"])
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"auto_map": auto, "tokenizer_class": "New"}))
    (folder / "code.py").write_text("raise SystemExit('this code ran')")


def pickled(content):
    def change(folder):
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").write_bytes(content)

    return change


def write(name, content):
    return lambda f: (f / name).write_bytes(content.encode() if isinstance(content, str) else content)


def tensors(change):
    def spoil(folder):
        kept = load_file(folder / "model.safetensors")
        change(kept)
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})

    return spoil


def lower(folder):
    config = json.loads((folder / "config.json").read_text())
    config_of(folder, num_hidden_layers=config["num_hidden_layers"] - 1, layer_types=None)


BAD = {  # how a folder is spoilt -> what the message must hold
    "an adapter": (lambda f: (write("adapter_config.json", "{}")(f), write("adapter_model.safetensors", "x")(f)), "merge"),
    "an adapter's weights only": (write("adapter_model.bin", "x"), "merge"),
    "an adapter without its base": (lambda f: ((f / "config.json").unlink(), write("adapter_config.json", "{}")(f)), "merge"),
    "an mlx adapter": (write("adapters.npz", "x"), "merge"),
    "lora weights": (write("pytorch_lora_weights.safetensors", "x"), "merge"),
    "gptq": (quantised("gptq", bits=4), "not quantised"),
    "awq": (quantised("awq", bits=4, group_size=128, zero_point=True), "not quantised"),
    "bitsandbytes": (quantised("bitsandbytes", load_in_4bit=True), "cannot be loaded"),
    "compressed-tensors": (quantised("compressed-tensors", format="pack-quantized"), "cannot be loaded"),
    "quanto": (quantised("quanto", weights="int8"), "cannot be loaded"),
    "a method of tomorrow": (quantised("new"), "quantised"),
    "no method": (lambda f: config_of(f, quantization_config={"bits": 4}), "cannot be loaded"),
    "quantised text": (lambda f: config_of(f, quantization_config="4bit"), "cannot be loaded"),
    "a layer less in config.json": (lower, "config.json has no place for some of its weights (such as model.layers."),
    "lora within the weights": (tensors(lambda t: t.update({"base_model.model.x.lora_A.weight": torch.zeros(2, 2)})), "x.lora_A.weight"),
    "a bias that the layers lack": (tensors(lambda t: t.update({"model.layers.0.mlp.up_proj.bias": torch.zeros(2)})), "up_proj.bias"),
    "custom code": (custom_code, "code of its own"),
    "config is a list": (write("config.json", "[]"), "cannot be loaded"),
    "config is empty": (write("config.json", ""), "cannot be loaded"),
    "config is a number": (write("config.json", "7"), "cannot be loaded"),
    "config is deep": (write("config.json", "[" * 100_000), "cannot be loaded"),
    "config is not utf-8": (write("config.json", b"\xff\xfe\x00"), "cannot be loaded"),
    "config without a type": (lambda f: config_of(f, model_type=None), "cannot be loaded"),
    "config with words for numbers": (lambda f: config_of(f, hidden_size="large"), "cannot be loaded"),
    "config with no layers": (lambda f: config_of(f, num_hidden_layers=-1, layer_types=None), "cannot be loaded"),
    "no heads": (lambda f: config_of(f, num_attention_heads=0), "cannot be loaded"),
    "an unknown activation": (lambda f: config_of(f, hidden_act="snake"), "cannot be loaded"),
    "an unknown dtype": (lambda f: config_of(f, dtype="float7"), "cannot be loaded"),
    "a picture model": (lambda f: config_of(f, model_type="vit", architectures=["ViTModel"]), "cannot be loaded"),
    "a pickle that is text": (pickled(b"weights"), "cannot be loaded"),
    "an empty pickle": (pickled(b""), "cannot be loaded"),
    "a pickle that runs code": (pickled(pickle.dumps(print)), "cannot be loaded"),
    "empty weights": (write("model.safetensors", b""), "cannot be loaded"),
    "a false header": (write("model.safetensors", b"\xff" * 64), "cannot be loaded"),
    "an index without parts": (lambda f: ((f / "model.safetensors").unlink(), write(
        "model.safetensors.index.json", '{"metadata": {}, "weight_map": {"a": "model-1.safetensors"}}')(f)), "cannot be loaded"),
    "an index that is text": (lambda f: ((f / "model.safetensors").unlink(), write("model.safetensors.index.json", "[")(f)),
                              "cannot be loaded"),
    "tokenizer is a list": (write("tokenizer.json", "[]"), "cannot be loaded"),
    "tokenizer without a model": (write("tokenizer.json", "{}"), "cannot be loaded"),
    "tokenizer of another kind": (write("tokenizer.json", '{"model": {"type": "Sentence"}}'), "cannot be loaded"),
    "tokenizer config is a list": (write("tokenizer_config.json", "[]"), "cannot be loaded"),
    "tokenizer config is deep": (write("tokenizer_config.json", "[" * 100_000), "cannot be loaded"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_folder_that_cannot_be_read_is_one_line(tmp_path, monkeypatch, name):
    change, message = BAD[name]
    folder = tmp_path / "m"
    shutil.copytree(DATA / "chat" / "teacher", folder)
    change(folder)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    with pytest.raises(InputError) as error:
        load_lm(folder)
    said = str(error.value)
    assert message in said
    assert "\n" not in said
    assert len(said) < 800


def test_what_transformers_ignores_and_null_for_quantisation_stay_fine(tmp_path, chat):
    folder = tmp_path / "m"
    shutil.copytree(DATA / "chat" / "teacher", folder)
    tensors(lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(2), "vision.x": torch.zeros(2)}))(folder)
    config_of(folder, quantization_config=None)
    assert torch.equal(load_lm(folder).model.lm_head.weight, chat[0].model.lm_head.weight)


@pytest.mark.parametrize(("content", "message"), [(b"", "cannot be loaded"), (b"GGUF", "cannot be loaded"),
                                                  (b"GGUF" + b"\xff" * 200, "cannot be loaded"), (None, "cannot be loaded")])
def test_a_gguf_file_that_cannot_be_read_is_one_line(tmp_path, content, message):
    if content is not None:
        (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        load_lm(tmp_path / "m.gguf")
    assert "\n" not in str(error.value)


def test_gguf_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    def missing(*args, **more):
        raise ImportError("Please install torch and gguf>=0.10.0 to load a GGUF checkpoint in PyTorch.")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", missing)
    with pytest.raises(InputError, match=r"install torch and gguf>=0.10.0 .*; install what is missing"):
        load_lm(tmp_path / "m.gguf")


def test_a_full_memory_is_not_a_bad_folder(monkeypatch):
    def full(*args, **more):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", full)
    with pytest.raises(torch.OutOfMemoryError):
        load_lm(DATA / "student")


def test_a_dtype_by_name():
    assert load_lm(DATA / "student", dtype="bfloat16").model.dtype == torch.bfloat16
    assert load_lm(DATA / "student").model.dtype == torch.float32
    for name in ("fp32", "int8", "", None):
        with pytest.raises(InputError, match="must be one of auto, float32"):
            load_lm(DATA / "student", dtype=name)


def test_load_errors_say_what_to_do(tmp_path):
    with pytest.raises(InputError, match="build-pair"):
        load_lm(tmp_path)
    shutil.copytree(DATA / "teacher", tmp_path / "m")
    config = json.loads((tmp_path / "m" / "tokenizer_config.json").read_text())
    config.pop("eos_token")
    (tmp_path / "m" / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="end-of-text"):
        load_lm(tmp_path / "m")
