"""Adapters and checkpointing: what learns and what stays, what is kept, what is resumed, and what is refused."""

import copy
import json
import sys

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from transformers.models.qwen3.modeling_qwen3 import Qwen3MLP

import heal_ref as heal
from heal_ref.__main__ import main
from heal_ref.config import PaceConfig
from heal_ref.lora import adapted, merged
from heal_ref.model import LM, load_lm
from heal_ref.pace import distill, read_curve
from heal_ref.records import InputError
from tests.conftest import DATA

LORA = PaceConfig(updates=6, batch=4, warmup=0, learning_rate=3e-3, shares=(0.5, 0.5, 0), lora=3, curve_every=2)


def stages(*names):
    rows = [{"id": str(i), "prompt": "Hint: ", "completion": f"We start at {i}."} for i in range(12)]
    return {name: Dataset.from_list(rows) for name in names}


TWO = stages("foundation", "guided")


def weights(lm):
    return {name: p.detach().clone() for name, p in lm.model.named_parameters()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(student, its weights before, the folder of a student of two stages, that student)."""
    student, out = load_lm(DATA / "student"), tmp_path_factory.mktemp("lora") / "heal"
    before, task = weights(student), heal.ClockTask()
    probe = heal.load_problems(DATA / "clock" / "validation.jsonl", task)[:2]
    return student, before, out, distill(student, task, TWO, LORA, folder=out, probe=probe)


def test_the_student_given_stays_as_it_was(trained):
    student, before, _, _ = trained
    assert same(weights(student), before)
    assert all(p.requires_grad for p in student.model.parameters())
    assert not [name for name, _ in student.model.named_modules() if "lora" in name]


def test_each_linear_layer_changes_by_the_rank_and_nothing_else_does(trained):
    _, before, _, lm = trained
    changed = {name: w - before[name] for name, w in weights(lm).items() if not torch.equal(w, before[name])}
    linear = {f"{name}.weight" for name, m in lm.model.named_modules() if isinstance(m, torch.nn.Linear) and name != "lm_head"}
    assert set(changed) == linear
    # two stages trained one adapter: two of their own would make up to rank 6
    assert {torch.linalg.matrix_rank(c.double(), rtol=1e-4).item() for c in changed.values()} == {3}


def test_the_folder_holds_a_whole_student_and_its_adapter(trained):
    student, _, out, lm = trained
    assert type(lm.model) is type(student.model)
    assert lm.model.dtype == torch.float32
    ids = torch.tensor([student.encode("Problem: Start 5; + 3; * 4\nSolution:\n")])
    for stage in ("1-foundation", "2-guided"):
        whole = load_lm(out / stage)
        with_adapter = PeftModel.from_pretrained(copy.deepcopy(student.model), out / stage / "adapter")
        assert torch.allclose(whole.model(ids).logits, with_adapter(ids).logits, atol=1e-4)
        assert not torch.allclose(whole.model(ids).logits, student.model(ids).logits, atol=1e-2)
    assert same(weights(whole), weights(lm))
    assert not list(out.glob("*.training"))
    assert json.loads((out / "settings.json").read_text())["lora"] == 3


def test_the_learning_curve_is_that_of_the_adapter(trained):
    curve = read_curve(trained[2])
    steps = [[row["step"] for row in stage["log"] if "accuracy" in row] for stage in curve]
    assert steps == [[0, 2, 3], [2, 3]]


def test_what_is_finished_is_found_and_other_ranks_are_refused(trained, task):
    student, _, out, lm = trained
    assert same(weights(distill(student, task, TWO, LORA, folder=out)), weights(lm))
    with pytest.raises(InputError, match="lora: 3 in the folder, 2 now"):
        distill(student, task, TWO, PaceConfig(**{**vars(LORA), "lora": 2}), folder=out)


@pytest.mark.parametrize("stop", [3, 5])
def test_killed_in_a_stage_it_ends_in_the_same_weights(trained, task, tmp_path, stop):
    config = PaceConfig(**{**vars(LORA), "save_every": 1})

    class Killed(BaseException):
        pass

    def kill(done, _):
        if done == stop:
            raise Killed

    with pytest.raises(Killed):
        distill(trained[0], task, TWO, config, folder=tmp_path, progress=kill)
    checkpoints = [p for p in tmp_path.glob("*.training/checkpoint-*") if (p / "COMPLETE").exists()]
    assert checkpoints
    assert all((p / "adapter_model.safetensors").exists() and not (p / "model.safetensors").exists() for p in checkpoints)
    lm = distill(trained[0], task, TWO, config, folder=tmp_path)
    assert same(weights(lm), weights(trained[3]))


def test_a_bfloat16_student_keeps_its_weights_and_learns_in_float32():
    """The frozen weights take half the room; adapters and the merged student are float32."""
    student = load_lm(DATA / "chat" / "teacher", dtype="bfloat16")
    model = adapted(student.own_model(), 2, None, seed=0)
    assert {(p.dtype, p.requires_grad) for p in model.parameters()} == {(torch.bfloat16, False), (torch.float32, True)}
    task = heal.ChatMathTask(student.tokenizer, verify=False)
    rows = [{"id": str(i), "prompt": "<|user|>\nHi", "completion": "It is \\boxed{12}."} for i in range(4)]
    data, config = {"all": Dataset.from_list(rows)}, PaceConfig(updates=10, batch=4, warmup=0, learning_rate=3e-3, lora=2)
    pairs = [(student.encode(row["prompt"]), student.encode(row["completion"])) for row in rows[:1]]
    gains = {}
    for save, dtype in (("float32", torch.float32), ("own", torch.bfloat16)):
        lm = distill(student, task, data, PaceConfig(**{**vars(config), "save_dtype": save}))
        assert lm.model.dtype == dtype
        gains[save] = sum(heal.text_stats(lm, pairs)[0][1]) - sum(heal.text_stats(student, pairs)[0][1])
    assert gains["float32"] > 1
    assert gains["own"] == pytest.approx(gains["float32"], rel=0.1)


def test_merging_rounds_once(tmp_path):
    """What is saved in the student's own dtype is the float32 sum, rounded: not a rounded sum of rounded parts."""
    student = load_lm(DATA / "chat" / "teacher", dtype="bfloat16")
    model = adapted(student.own_model(), 2, None, seed=0)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=1e-3)
    model.save_pretrained(tmp_path)
    base = {name: w.clone() for name, w in student.model.state_dict().items()}
    sums = merged(student.own_model(), tmp_path)
    assert sums.dtype == torch.float32
    name = "model.layers.0.self_attn.q_proj"
    layer = model.get_submodule(f"base_model.model.{name}")
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    assert torch.allclose(sums.get_submodule(name).weight, base[f"{name}.weight"].float() + 2 * b @ a, atol=1e-7)
    assert same(base, student.model.state_dict())


def test_new_adapters_follow_from_the_seed(random_lm):
    one, two, other = (dict(adapted(random_lm.own_model(), 2, None, seed).named_parameters()) for seed in (1, 1, 2))
    names = [name for name in one if "lora_A" in name]
    assert names
    assert all(torch.equal(one[n], two[n]) and not torch.equal(one[n], other[n]) for n in names)
    ids = torch.tensor([random_lm.encode("Problem: Start 5; + 3\n")])
    assert torch.equal(adapted(random_lm.own_model(), 2, None, 1)(ids).logits, random_lm.model(ids).logits)  # nothing yet


# ---------------------------------------------------------------------------------- checkpointing


@pytest.mark.parametrize("lora", [0, 2])
def test_checkpointing_changes_no_weight(random_lm, task, lora, monkeypatch):
    plain, calls = Qwen3MLP.forward, []
    monkeypatch.setattr(Qwen3MLP, "forward", lambda self, x: calls.append(torch.is_grad_enabled()) or plain(self, x))
    students, counts = [], []
    for checkpointing in (False, True):
        config = PaceConfig(updates=3, batch=4, warmup=0, learning_rate=1e-3, lora=lora, checkpointing=checkpointing)
        calls.clear()
        students.append(weights(distill(random_lm, task, stages("all"), config)))
        counts.append(len(calls))
    assert counts == [6, 12]  # layers × updates; each once more for the gradient
    assert same(*students)
    assert not same(students[0], weights(random_lm))


def test_a_model_that_cannot_is_refused_before_it_trains(random_lm, task, monkeypatch):
    monkeypatch.setattr(type(random_lm.model), "supports_gradient_checkpointing", False)
    with pytest.raises(InputError, match="Qwen3ForCausalLM does not support gradient checkpointing; leave pace.checkpointing out"):
        distill(random_lm, task, stages("all"), PaceConfig(updates=1, checkpointing=True))


# ------------------------------------------------------------------------------------------ refused


def test_without_peft_a_run_says_so_before_it_samples(tmp_path, capsys, monkeypatch, random_lm, task):
    monkeypatch.setitem(sys.modules, "peft", None)
    message = "LoRA needs peft, which is not installed; pip install peft==0.21.2, or leave out --lora (pace.lora)"
    assert main(["demo", "--preset", "smoke", "--lora", "4", "--out", str(tmp_path / "run"), "--quiet"]) == 2
    assert capsys.readouterr().err == f"{message}\n"
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match="LoRA needs peft"):
        distill(random_lm, task, stages("all"), LORA)
    distill(random_lm, task, stages("all"), PaceConfig(updates=1, batch=4))  # nothing else needs it


def test_a_model_without_linear_layers_takes_no_adapter(random_lm):
    class Bare(type(random_lm.model)):
        pass

    model = copy.deepcopy(random_lm.model)
    model.__class__ = Bare
    for name, module in list(model.named_modules()):
        if isinstance(module, torch.nn.Linear):
            parent = model.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], torch.nn.Identity())
    with pytest.raises(InputError, match="Bare takes no adapter .*; leave out --lora"):
        adapted(model, 2, None, 0)


@pytest.mark.slow
def test_a_whole_run_with_adapters(tmp_path, capsys):
    """From the command line; every student is read again as a model."""
    args = ["run", "--preset", "smoke", "--lora", "2", "--set", "pace.checkpointing=true", "--set", "train_limit=4", "--set",
            "eval_limit=4", "--out", str(tmp_path / "run"), "--quiet"]
    assert main(args) == 0
    for folder in (tmp_path / "run" / "5-students").glob("*/*/"):
        assert isinstance(load_lm(folder), LM)
        assert (folder / "adapter" / "adapter_model.safetensors").exists()
    assert main(args) == 0
    assert "HEAL" in capsys.readouterr().out
