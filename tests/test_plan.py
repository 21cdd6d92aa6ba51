"""The plan: counts by hand, memory against real models and real caches, and a dry run that writes nothing."""

import dataclasses
import importlib

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, Qwen3Config, Qwen3ForCausalLM

import heal_ref as heal
from heal_ref.__main__ import main
from heal_ref.config import GearConfig, HealConfig, PureConfig
from heal_ref.lora import adapted
from heal_ref.run.measure import measure
from heal_ref.run.plan import (
    adapter_parameters,
    by_phase,
    cache_bytes,
    memory,
    parameters,
    plan,
    plan_text,
    sampling_bytes,
    scoring_bytes,
    training_bytes,
)
from heal_ref.run.speed import Expected, Speed, Writer, longest
from tests.conftest import DATA

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
    assert all(s.expected == s[1:4] for s in stages.values())  # nothing was measured
    halved = by_name(config, processes=2)
    assert halved["score"].hours == stages["score"].hours / 2


def test_counts_of_other_readings():
    config = HealConfig.paper()
    rollout = by_name(dataclasses.replace(config, pure=PureConfig(reading="rollout", rollouts=3)))["uncertainty"]
    assert rollout.sequences == 3 * 8 * (7 * 30 + 7 * 200 + 7)
    assert rollout.tokens == rollout.sequences * 50
    stated = by_name(dataclasses.replace(config, pure=PureConfig(), gear=GearConfig(hint="answer")))
    assert not {"hints", "uncertainty"} & set(stated)
    stepwise = dataclasses.replace(config, gear=dataclasses.replace(config.gear, hint="step"))
    assert by_name(stepwise)["hints"].sequences == by_name(config)["hints"].sequences


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


def test_each_phase_has_the_memory_of_its_largest_batch(teacher):
    """Settings and max_batch that change a batch change the memory of its phase, and of no other."""
    def needs(lm=teacher, **changes):
        config = dataclasses.replace(HealConfig.tiny(), **changes)
        return memory(plan(config, 100, 10, SPEED), lm, lm, config, SPEED)

    usual = needs()
    assert set(usual) == {"sample", "guided", "repair", "score", "train", "evaluate"}
    assert {phase for phase, need in needs(dataclasses.replace(teacher, max_batch=1)).items() if need != usual[phase]} == set(usual)
    for change, phases in (({"gear": GearConfig(continuations=9)}, {"repair"}), ({"eval_n": 3}, {"evaluate"}),
                           ({"pace": dataclasses.replace(HealConfig.tiny().pace, accumulate=4)}, {"train"})):
        assert {phase for phase, need in needs(**change).items() if need != usual[phase]} == phases, change


def test_a_phase_holds_the_weights_of_one_model(teacher, random_lm):
    needs = memory(plan(HealConfig.tiny(), 9, 9, SPEED), teacher, random_lm, HealConfig.tiny(), SPEED)
    assert needs["sample"]["weights"] == needs["score"]["weights"] == 4 * parameters(teacher.config)
    assert needs["train"]["states"] == 16 * parameters(random_lm.config)
    assert needs["evaluate"]["weights"] == 4 * parameters(teacher.config)  # the larger of the two


def test_activations_are_those_that_autograd_keeps(teacher):
    """Bytes of all tensors that a forward pass saves for its gradient, apart from the weights."""
    model, held = teacher.model, {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in weights:
            held[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    ids = torch.ones(4, 64, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        model(input_ids=ids, labels=ids)
    saved = sum(t.untyped_storage().nbytes() for t in held.values())
    need = training_bytes(model.config, 4, 64, width=4)
    assert need["activations"] + need["logits"] / 3 == pytest.approx(saved, rel=0.25)
    less = training_bytes(model.config, 4, 64, width=4, checkpointing=True, lora=2)
    assert less["activations"] < need["activations"] / 2


def test_adapters_are_counted_and_planned(teacher):
    """As peft makes them; with them, and with gradient checkpointing, training alone needs less."""
    for config in (teacher.config, GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=50)):
        model = adapted(AutoModelForCausalLM.from_config(config), 3, None, seed=0)
        learnt = sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert learnt == adapter_parameters(config, 3) > 0
    tiny = HealConfig.tiny()
    whole, parts = (memory(plan(config, 9, 9, SPEED, probe=2), teacher, teacher, config, SPEED) for config in (
        tiny, dataclasses.replace(tiny, pace=dataclasses.replace(tiny.pace, lora=3, checkpointing=True))))
    assert parts["train"]["states"] == 4 * parameters(teacher.config) + 16 * adapter_parameters(teacher.config, 3)
    assert parts["train"]["activations"] < whole["train"]["activations"]
    assert {phase for phase in whole if whole[phase] != parts[phase]} == {"train"}


def test_scoring_needs_a_layer_and_a_tile_whatever_the_vocabulary():
    big, small = (Qwen3Config(hidden_size=64, num_hidden_layers=2, vocab_size=size) for size in (9_000, 150_000))
    assert scoring_bytes(big, 8, 500)["tile"] == scoring_bytes(small, 8, 500)["tile"]


def test_the_longest_of_many_texts():
    assert longest([5.0], 7) == 5
    assert longest([1.0, 3.0], 1) == 2
    assert longest([1.0, 3.0], 2) == 0.25 * 1 + 0.75 * 3
    assert longest([1.0, 3.0], 99) == pytest.approx(3)


def test_expected_work_by_hand():
    """What was measured decides; the bound stays. A batch takes as many steps as its longest text."""
    config = dataclasses.replace(HealConfig.tiny(), gear=GearConfig(paths=2, hints=1, continuations=3))
    speed = SPEED._replace(teacher=Writer(each=0.01, step=0.5, lengths=(20.0, 40.0), most=96),
                           student=Writer(each=0.001, step=0.1, lengths=(96.0,), most=96),
                           expected=Expected(guided=0.5, solved=0.75, paths=1.0, kept=10.0, usable=0.5, hints=(8.0,),
                                             led=(50.0,), right=0.25))
    stages = {s.name: s for s in plan(config, problems=8, heldout=5, speed=speed)}
    sample, hints, repairs = stages["sample"], stages["hints"], stages["repairs"]
    assert (sample.sequences, sample.tokens) == (32, 32 * 96)
    assert (sample.expected.sequences, sample.expected.tokens) == (32, 32 * 30)
    assert sample.expected.hours == pytest.approx(40 * (0.5 + 0.01 * 32) / 3600, rel=1e-3)
    assert stages["answer-guided"].expected.sequences == stages["answer-guided"].sequences / 2
    assert stages["answer-guided"].expected.tokens == 50 * stages["answer-guided"].expected.sequences
    assert stages["score"].expected.sequences == 0.5 * 0.25 * stages["answer-guided"].sequences + 12 + 6
    assert (hints.expected.sequences, hints.expected.tokens) == (8, 64)
    assert (repairs.sequences, repairs.expected.sequences, repairs.expected.tokens) == (48, 12, 12 * 20)
    for s in stages.values():
        assert s.expected.sequences <= s.sequences
        assert s.expected.tokens <= s.tokens
        assert s.expected.hours <= s.hours * (1 + 1e-9)
    phases = by_phase(list(stages.values()), {"repair": {"weights": 2**30}})
    assert phases["repair"]["tokens"] == 64 + 240
    assert phases["repair"]["GiB"] == 1


def test_what_is_expected_is_what_was_sampled(teacher, task, validation):
    """On problems that the teacher always solves, nothing is guided or repaired; the bound remains."""
    config = dataclasses.replace(HealConfig.smoke(), eval_n=1)
    mastered = [p for p in validation if p.kind == "mastered"][:8]
    speed = measure(teacher, teacher, task, mastered, config)
    assert speed.expected.guided == speed.expected.paths == 0
    assert speed.expected.solved == 1
    stages = {s.name: s for s in plan(config, 8, 8, speed)}
    assert stages["repairs"].expected.sequences == 0 < stages["repairs"].sequences
    frontier = [p for p in validation if p.kind == "frontier"][:8]
    speed = measure(teacher, teacher, task, frontier, config)
    assert speed.expected.paths > 0.5
    assert 0 < speed.expected.kept < 96
    assert len(speed.expected.hints) >= 1
    assert len(speed.expected.led) >= 1
    assert 0 <= speed.expected.right <= 1


def test_a_student_of_another_tokenizer_is_measured_in_its_own(teacher, task, validation):
    """The teacher's ids mean nothing to it, and may be more than it has."""
    many = heal.load_lm(DATA / "chat" / "teacher")  # 1,002 tokens; the student has 71
    config = dataclasses.replace(HealConfig.smoke(), sample=heal.SampleConfig(n=1, max_new_tokens=4))
    assert len(many.tokenizer) > teacher.config.vocab_size
    assert measure(many, teacher, task, validation[:4], config, seconds=0.5).learnt > 0


def test_measuring_keeps_to_max_batch(teacher, task, validation, monkeypatch):
    sizes = []
    forward = type(teacher.model).forward

    def watch(self, input_ids=None, **more):
        sizes.append(len(input_ids))
        return forward(self, input_ids=input_ids, **more)

    monkeypatch.setattr(type(teacher.model), "forward", watch)
    few = dataclasses.replace(teacher, max_batch=3)
    measure(few, few, task, validation[:8], HealConfig.smoke(), seconds=0.1)
    assert max(sizes) <= 3


def test_a_dry_run_prints_the_plan_and_writes_nothing(tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["run", "--preset", "smoke", "--out", str(out), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "repairs" in said
    assert "memory, train: " in said
    assert not out.exists()
