"""The plan: counts by hand, memory against real models and real caches, and a dry run that writes nothing."""

import dataclasses
import importlib

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from heal_ref.__main__ import main
from heal_ref.config import GearConfig, HealConfig, PureConfig
from heal_ref.run.plan import Speed, cache_bytes, measure, parameters, plan, plan_text, sampling_bytes, training_bytes

SPEED = Speed(sampled=100.0, scored=1000.0, learnt=500.0, prompt=20.0, solution=50.0)


def by_name(config, **more):
    return {s.name: s for s in plan(config, problems=7, heldout=5, speed=SPEED, **more)}


def test_counts_by_hand():
    config = HealConfig.paper()  # 30 samples; 10 paths, 1 hint, 20 continuations
    stages = by_name(config, probe=4)
    assert stages["sample"].sequences == 7 * 30
    assert stages["hints"].sequences == 7 * 10
    assert stages["repairs"].sequences == 7 * 10 * 20
    assert stages["repairs"].tokens == 7 * 200 * 50
    assert stages["repairs"].hours == pytest.approx(7 * 200 * 50 / 100 / 3600)
    assert stages["evaluate four models"].sequences == 4 * 5 * 9
    # two students; a point after every 60 of 5,000 updates (83), one before the first, one after each of three stages
    assert stages["learning curves"].sequences == 2 * (83 + 4) * 4
    # forced: an answer of one token is demanded before each step of what is scored
    scored = 7 * 30 + 7 * 200 + 7
    assert stages["score"].sequences == scored
    assert (stages["uncertainty"].sequences, stages["uncertainty"].tokens) == (8 * scored, 8 * scored)
    halved = by_name(config, processes=2)
    assert halved["score"].hours == stages["score"].hours / 2


def test_counts_of_other_readings():
    config = HealConfig.paper()
    rollout = by_name(dataclasses.replace(config, pure=PureConfig(reading="rollout", rollouts=3)))["uncertainty"]
    assert rollout.sequences == 3 * 8 * (7 * 30 + 7 * 200 + 7)
    assert rollout.tokens == rollout.sequences * 50
    stated = by_name(dataclasses.replace(config, pure=PureConfig(), gear=GearConfig(hint="answer")))
    assert not {"hints", "uncertainty"} & set(stated)


def test_memory_is_that_of_a_real_model(teacher):
    config = teacher.model.config
    assert parameters(config) == teacher.model.num_parameters()
    with torch.no_grad():
        cache = teacher.model(torch.ones(3, 10, dtype=torch.long), use_cache=True).past_key_values
    held = sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))
    assert sampling_bytes(config, 3, 10, width=4)["cache"] == held == 30 * cache_bytes(config, 4)


def test_memory_of_a_big_model_needs_no_memory():
    config = Qwen3Config(
        vocab_size=151936,
        hidden_size=5120,
        intermediate_size=25600,
        num_hidden_layers=64,
        num_attention_heads=64,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=False,
    )
    assert 32e9 < parameters(config) < 33e9
    need = sampling_bytes(config, 32, 32768)
    assert need["weights"] / 2**30 == pytest.approx(61.0, abs=0.5)
    assert need["cache"] == 32 * 32768 * 2 * 64 * 8 * 128 * 2


def test_training_holds_four_copies_of_the_weights(random_lm):
    """Weights, gradients and AdamW's two moments, counted on a real optimizer."""
    model = Qwen3ForCausalLM(random_lm.model.config)
    optimizer = torch.optim.AdamW(model.parameters())
    ids = torch.ones(2, 8, dtype=torch.long)
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    held = sum(2 * p.numel() * 4 for p in model.parameters())
    held += sum(t.numel() * 4 for state in optimizer.state.values() for t in state.values() if t.numel() > 1)
    assert training_bytes(model.config, 2, 8, width=4)["states"] == held
    assert training_bytes(model.config, 2, 8, width=2)["states"] == held  # master weights are float32 in any case


def test_measured_on_the_runs_own_problems(teacher, task, validation):
    config = dataclasses.replace(HealConfig.smoke(), eval_n=1)
    speed = measure(teacher, teacher, task, validation[:8], config)
    assert 30 < speed.solution < 96
    assert 4 < speed.steps < 9
    assert speed.prompt == pytest.approx(sum(len(teacher.encode(task.prompt(p))) for p in validation[:8]) / 8)
    assert min(speed.sampled, speed.scored, speed.learnt) > 0
    cut_off = measure(teacher, teacher, task, validation[:8], config, seconds=0.0)
    assert cut_off.solution == config.sample.max_new_tokens  # nothing ended: the limit is the bound


def test_the_plan_says_when_the_memory_is_not_there(teacher, monkeypatch):
    config, module = HealConfig.tiny(), importlib.import_module("heal_ref.run.plan")
    stages = plan(config, 10, 10, SPEED)
    assert "MORE THAN THERE IS" not in plan_text(stages, teacher, teacher, config, SPEED)
    monkeypatch.setattr(module, "free_bytes", lambda device: 2**20)
    assert "MORE THAN THERE IS: 0.00 GiB are free; lower --max-batch" in plan_text(
        stages, teacher, teacher, config, SPEED
    )
    few = dataclasses.replace(teacher, max_batch=1)
    lines = [
        next(x for x in plan_text(stages, lm, lm, config, SPEED).splitlines() if "sampling: weights" in x)
        for lm in (teacher, few)
    ]
    assert lines[0] != lines[1]


def test_measuring_keeps_to_max_batch(teacher, task, validation, monkeypatch):
    sizes = []
    forward = type(teacher.model).forward

    def watch(self, input_ids=None, **more):
        sizes.append(len(input_ids))
        return forward(self, input_ids=input_ids, **more)

    monkeypatch.setattr(type(teacher.model), "forward", watch)
    measure(dataclasses.replace(teacher, max_batch=3), teacher, task, validation[:8], HealConfig.smoke(), seconds=0.1)
    assert max(sizes) <= 3


def test_a_dry_run_prints_the_plan_and_writes_nothing(tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["run", "--preset", "smoke", "--out", str(out), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "repairs" in said
    assert "memory, teacher, sampling: weights" in said
    assert not out.exists()
