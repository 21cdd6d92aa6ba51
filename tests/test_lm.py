"""Sampling: recorded numbers, padding, seeds, ends of text; loading: clear errors."""

import json
import shutil

import pytest
import torch

from heal_ref.config import SampleConfig
from heal_ref.lm import generate, load_lm, sample, score
from heal_ref.records import InputError
from tests.conftest import DATA

CONTEXTS = ["Problem: Start 5; + 3\nSolution:\n", "Problem: Start 5; + 3; * 4; # 7; - 6; + 1; * 2\nSolution:\n"]


def test_recorded_numbers_are_those_of_the_raw_distribution(teacher):
    """Warping changes what is sampled, never what is recorded: scoring the text gives the same numbers."""
    contexts = [teacher.encode(c) for c in CONTEXTS] * 8
    rollouts = generate(teacher, contexts, config=SampleConfig(temperature=0.7, top_p=0.8), seed=0)
    scored = score(teacher, [(c, r.ids) for c, r in zip(contexts, rollouts, strict=True)])
    for rollout, (entropy, logprob) in zip(rollouts, scored, strict=True):
        assert rollout.entropy == pytest.approx(entropy, abs=1e-4)
        assert rollout.logprob == pytest.approx(logprob, abs=1e-4)
        assert len(rollout.ids) == len(rollout.entropy) == len(rollout.logprob) > 0


def test_padding_changes_nothing(teacher):
    contexts = [teacher.encode(c) for c in CONTEXTS]
    greedy = SampleConfig(temperature=0.0)
    together = generate(teacher, contexts, config=greedy, seed=0)
    alone = [generate(teacher, [c], config=greedy, seed=0)[0] for c in contexts]
    assert [r.ids for r in together] == [r.ids for r in alone]
    for a, b in zip(together, alone, strict=True):
        assert a.entropy == pytest.approx(b.entropy, abs=1e-4)
    short, long = ([(c, r.ids)] for c, r in zip(contexts, together, strict=True))
    both = score(teacher, short + long)
    assert both[0][1] == pytest.approx(score(teacher, short)[0][1], abs=1e-4)


def test_small_batches_give_the_same_greedy_text(teacher):
    contexts = [teacher.encode(c) for c in CONTEXTS] * 3
    greedy = SampleConfig(temperature=0.0)
    whole = generate(teacher, contexts, config=greedy, seed=0)
    teacher_by_two = type(teacher)(teacher.model, teacher.tokenizer, max_batch=2)
    assert [r.ids for r in generate(teacher_by_two, contexts, config=greedy, seed=0)] == [r.ids for r in whole]


def test_seed_decides_and_global_state_is_left_alone(teacher, task, validation):
    before = torch.random.get_rng_state()
    a = sample(teacher, task, validation[:4], n=3, seed=5)
    assert torch.equal(before, torch.random.get_rng_state())
    assert a == sample(teacher, task, validation[:4], n=3, seed=5)
    assert [t.text for t in a] != [t.text for t in sample(teacher, task, validation[:4], n=3, seed=6)]
    assert [(t.problem.id, t.index) for t in a] == [(p.id, i) for p in validation[:4] for i in range(3)]


def test_length_limit_is_not_an_end(teacher, task, validation):
    cut = sample(teacher, task, validation[:1], n=2, config=SampleConfig(max_new_tokens=5))
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
