"""Stages, the loss, and training: what is learnt, what is masked, what stops it, what is resumed."""

import argparse
import copy
import dataclasses
import json
import math
import random
import re
import warnings

import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerFast, TrainingArguments

import heal_ref as heal
from heal_lab.clock_corpus import Dials, example
from heal_ref.config import PaceConfig, SampleConfig
from heal_ref.generation import generate
from heal_ref.model import LM, load_lm
from heal_ref.pace import build_stages, distill, shuffled, updates_of
from heal_ref.records import InputError, Problem
from heal_ref.run.command import execute
from heal_ref.train import (
    IGNORE,
    TrainingError,
    collate,
    encode_example,
    examples_of,
    last_complete_checkpoint,
    parts_of_a_batch,
    read_curve,
    train,
)
from tests.conftest import DATA
from tests.real_tokenizers import real_tokenizer
from tests.test_chat import ALWAYS_THINKS, TEMPLATE, chat_tokenizer


def test_prompt_is_masked_and_end_is_learnt(random_lm):
    row = encode_example(random_lm.tokenizer, "Problem: Start 5; + 3\nSolution:\n", "We start at 5.")
    n = len(random_lm.encode("Problem: Start 5; + 3\nSolution:\n"))
    assert row["labels"][:n] == [IGNORE] * n
    assert row["labels"][n:] == row["input_ids"][n:]
    assert row["labels"][-1] == random_lm.tokenizer.eos_token_id


def test_end_stays_in_the_loss_when_it_doubles_as_padding(random_lm):
    eos = random_lm.tokenizer.eos_token_id
    rows = [encode_example(random_lm.tokenizer, "Hint: ", text) for text in ("5", "5 = 8 = 9")]
    batch = collate(eos)(rows)
    short = len(rows[0]["input_ids"])
    assert batch["labels"][0, short - 1] == eos  # the real end
    assert (batch["labels"][0, short:] == IGNORE).all()  # padding
    assert batch["attention_mask"].sum(1).tolist() == [len(r["input_ids"]) for r in rows]


def test_loss_is_that_of_the_completion_alone_whatever_the_padding(random_lm):
    rows = [encode_example(random_lm.tokenizer, *example(0, i, Dials())) for i in range(6)]
    model = random_lm.model

    def by_hand(row):
        ids = torch.tensor([row["input_ids"]])
        logp = torch.log_softmax(model(input_ids=ids).logits[0, :-1].double(), -1)
        return [-logp[t - 1, i].item() for t, i in enumerate(row["labels"]) if i != IGNORE]

    with torch.no_grad():
        expected = [x for row in rows for x in by_hand(row)]
        loss = model(**collate(random_lm.tokenizer.pad_token_id)(rows)).loss.item()
    assert loss == pytest.approx(sum(expected) / len(expected), abs=1e-4)


def test_changing_the_prompt_token_labels_would_change_the_loss(random_lm):
    """The test above can fail: unmasking the prompt moves the loss."""
    rows = [encode_example(random_lm.tokenizer, *example(0, i, Dials())) for i in range(6)]
    batch = collate(0)(rows)
    with torch.no_grad():
        masked = random_lm.model(**batch).loss.item()
        unmasked = random_lm.model(**{**batch, "labels": batch["input_ids"]}).loss.item()
    assert abs(masked - unmasked) > 1e-3


def _train(lm, folder, **changes):
    data = [encode_example(lm.tokenizer, *example(0, i, Dials())) for i in range(40)]
    settings = {"updates": 12, "batch": 4, "learning_rate": 1e-3, "seed": 0, "save_every": 4} | changes
    return train(lm.model, lm.tokenizer, data, folder=folder, **settings)


def test_training_learns_to_end(random_lm, tmp_path):
    """One sentence, learnt by heart: said, and ended."""
    row = encode_example(random_lm.tokenizer, "Hint: ", "We start at 5.")
    train(random_lm.model, random_lm.tokenizer, [row] * 8, folder=tmp_path, updates=60, batch=8, learning_rate=1e-2)
    said = generate(random_lm, [random_lm.encode("Hint: ")], sampling=SampleConfig(temperature=0.0, max_new_tokens=20), seed=0)[0]
    assert random_lm.decode(said.ids) == "We start at 5."
    assert said.finished


def test_interrupted_training_ends_in_the_same_weights(random_lm, tmp_path):
    whole, cut = copy.deepcopy(random_lm), copy.deepcopy(random_lm)
    _train(whole, tmp_path / "whole")

    def stop(done, total):
        if done == 10:  # two updates after the checkpoint at 8
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _train(cut, tmp_path / "cut", progress=stop)
    assert last_complete_checkpoint(tmp_path / "cut").name == "checkpoint-8"
    broken = tmp_path / "cut" / "checkpoint-11"  # a checkpoint that a kill cut short
    broken.mkdir()
    (broken / "model.safetensors").write_bytes(b"half")
    fresh = copy.deepcopy(random_lm)
    _train(fresh, tmp_path / "cut")
    assert not broken.exists()
    for a, b in zip(whole.model.parameters(), fresh.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_nan_loss_stops_with_a_clear_message(random_lm, tmp_path):
    with torch.no_grad():
        next(random_lm.model.parameters()).fill_(math.nan)
    with pytest.raises(TrainingError, match="at update 1, on the batch of an unnamed example"):
        _train(random_lm, tmp_path, save_every=0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_loss_names_its_batch_before_it_reaches_the_weights(random_lm, tmp_path, bad):
    """One example breaks the loss in the middle of training: the message holds its name, the weights stay finite."""
    data = [{**encode_example(random_lm.tokenizer, *example(0, i, Dials())), "name": f"problem-{i}"} for i in range(40)]
    broken = random_lm.encode("Quick answer: ")[0]
    data[17]["input_ids"] = [broken, *data[17]["input_ids"]]
    data[17]["labels"] = [IGNORE, *data[17]["labels"]]
    forward = random_lm.model.forward

    def poisoned(input_ids=None, **more):
        out = forward(input_ids=input_ids, **more)
        if "labels" in more and (input_ids[:, 0] == broken).any():
            out.loss = out.loss * bad
        return out

    random_lm.model.forward = poisoned
    with pytest.raises(TrainingError, match=r"the loss is not a finite number at update \d+, on the batch of .*problem-17"):
        train(random_lm.model, random_lm.tokenizer, data, folder=tmp_path, updates=20, batch=4, learning_rate=1e-3)
    assert all(torch.isfinite(p).all() for p in random_lm.model.parameters())


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulation_changes_nothing(random_lm, tmp_path, parts):
    """Parts of a batch have different numbers of target tokens: a mean of means would differ."""
    whole, cut = copy.deepcopy(random_lm), copy.deepcopy(random_lm)
    logs = [_train(lm, tmp_path / str(n), batch=8, accumulate=n, save_every=0) for lm, n in ((whole, 1), (cut, parts))]
    assert [row["loss"] for row in logs[0]] == pytest.approx([row["loss"] for row in logs[1]], rel=1e-4)
    for a, b, start in zip(whole.model.parameters(), cut.model.parameters(), random_lm.model.parameters(), strict=True):
        assert (a - b).abs().max() < 0.02 * (a - start).abs().max()
    with pytest.raises(InputError, match="cannot be cut into 3 equal parts"):
        _train(random_lm, tmp_path, batch=8, accumulate=3)


def test_stages(make):
    base = [make("easy", "a|b", correct=True), make("easy", "a|c", correct=True, index=1), make("hard", "x|x"),
            make("hard", "x|y", index=1)]
    guided = [make("hard", "h|h", source="guided", correct=True), make("easy", "h|h", source="guided", correct=True)]
    repaired = [make("hard", text, source="repair", correct=text != "r|2") for text in ("r|1", "r|2", "r|1", "r|3")]
    stages = build_stages(base, guided, repaired, PaceConfig(per_problem=2))
    assert [len(s) for s in stages.values()] == [2, 3, 5]
    assert stages["guided"]["completion"] == ["a|b", "a|c", "h|h"]  # the easy problem needs no guidance
    assert stages["repaired"]["completion"][3:] == ["r|1", "r|3"]  # right ones, none twice
    assert set(stages["repaired"]["prompt"]) == {"P:"}
    alone = build_stages(base, guided, repaired, PaceConfig(per_problem=1, cumulative=False))
    assert [s["completion"] for s in alone.values()] == [["a|b"], ["h|h"], ["r|1"]]


def test_stages_are_plain_text_datasets_in_the_format_of_trl(random_lm, make):
    """TRL's own SFT trainer tokenizes a stage as `encode_example` does: same ids, prompt masked, end learnt."""
    trl = pytest.importorskip("trl")
    rows = [make(str(i), text=example(5, i, Dials(forms={"plain": 1.0}))[1], correct=True, prompt="Hint: ") for i in range(6)]
    stage = build_stages(rows, [], [])["foundation"]
    assert {"prompt", "completion"} <= set(stage.column_names)
    assert all(isinstance(row[name], str) for row in stage for name in stage.column_names if name != "token_ids")
    assert [row["token_ids"] for row in stage] == [t.token_ids for t in rows]
    args = trl.SFTConfig(output_dir="unused", report_to="none", completion_only_loss=True, max_length=None, use_cpu=True)
    trainer = trl.SFTTrainer(random_lm.model, args=args, train_dataset=stage, processing_class=random_lm.tokenizer)
    for theirs, row in zip(trainer.train_dataset, stage, strict=True):
        ours = encode_example(random_lm.tokenizer, row["prompt"], row["completion"])
        assert theirs["input_ids"] == ours["input_ids"]
        batch = trainer.data_collator([theirs])
        assert batch["labels"][0].tolist() == ours["labels"]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama3.1", "gemma3"])
def test_trl_keeps_one_beginning_of_text_if_it_is_given_ids(random_lm, make, family):
    """What `build_stages` advises: of text TRL makes ids with a second BOS, since the prompt holds one already."""
    trl = pytest.importorskip("trl")
    tokenizer = real_tokenizer(family)
    task = heal.ChatMathTask(tokenizer, verify=False)
    stage = build_stages([make("p", text="It is 4.", correct=True, prompt=task.prompt(Problem("p", "2 + 2?", "4")))], [], [])
    rows = stage["foundation"].select_columns(["prompt", "completion"])
    ours = [encode_example(tokenizer, row["prompt"], row["completion"]) for row in rows]
    args = trl.SFTConfig(output_dir="unused", report_to="none", completion_only_loss=True, max_length=None, use_cpu=True)
    for data, beginnings in ((rows, 2), (Dataset.from_list(ours), 1)):
        trainer = trl.SFTTrainer(random_lm.model, args=args, train_dataset=data, processing_class=tokenizer)
        (row,) = trainer.train_dataset
        assert row["input_ids"].count(tokenizer.bos_token_id) == beginnings
    assert row["input_ids"] == ours[0]["input_ids"]
    assert trainer.data_collator([row])["labels"][0].tolist() == ours[0]["labels"]


def test_a_stage_keeps_the_order_of_its_samples(make):
    """First come problems in order of appearance, then their samples; a repeated text counts where it came first."""
    base = [make(p, text, correct=True, index=i) for p, texts in (("b", "xyx"), ("a", "yzz")) for i, text in enumerate(texts)]
    stage = build_stages(base, [], [])["foundation"]
    assert list(zip(stage["id"], stage["completion"], strict=True)) == [("b", "x"), ("b", "y"), ("a", "y"), ("a", "z")]
    one = build_stages(base, [], [], PaceConfig(per_problem=1))["foundation"]
    assert one["completion"][:] == ["x", "y"]
    assert one["question"][:] == ["q", "q"]
    assert one["answer"][:] == ["1", "1"]


def test_shuffled_holds_each_example_once(make):
    base, repaired = [make("a", "a|a", correct=True)], [make("b", "b|b", correct=True, source="repair")]
    (stage,) = shuffled(build_stages(base, [], repaired)).values()
    assert sorted(stage["completion"]) == ["a|a", "b|b"]


def test_updates_are_all_spent(make):
    config = PaceConfig(updates=10, shares=(0.25, 0.25, 0.5))
    full = build_stages([make("a", correct=True)], [], [make("b", correct=True)], config)
    assert updates_of(full, config) == {"foundation": 2, "guided": 2, "repaired": 6}
    no_base = build_stages([], [], [make("b", correct=True)], config)
    assert updates_of(no_base, config) == {"repaired": 10}
    assert updates_of({"foundation": full["foundation"]}, config) == {"foundation": 10}


@pytest.mark.parametrize(("updates", "shares", "sizes", "plan"), [
    (7, (0.5, 0.5, 0), (1, 1, 1), {"foundation": 4, "guided": 3}),  # both round up: there is no -1 left for the third
    (5, (0.5, 0.5, 0), (1, 1, 1), {"foundation": 2, "guided": 3}),  # what is left over is not for a stage without a share
    (10, (0, 0, 1), (1, 1, 0), {"foundation": 5, "guided": 5}),  # no share among the stages with data: equal parts
    (10, (0, 0, 1), (1, 0, 1), {"repaired": 10}),
    (600, (0.2, 0.2, 0.6), (1, 1, 1), {"foundation": 120, "guided": 120, "repaired": 360}),
    (1, (0.2, 0.2, 0.6), (1, 1, 1), {"repaired": 1}),
    (9, (1, 0, 0), (0, 0, 0), {}),
])
def test_updates_follow_the_shares(updates, shares, sizes, plan):
    stages = dict(zip(("foundation", "guided", "repaired"), ([0] * n for n in sizes), strict=True))
    assert updates_of(stages, PaceConfig(updates=updates, shares=shares)) == plan


def test_updates_of_any_shares_are_positive_and_all_spent():
    rng = random.Random(0)
    for _ in range(500):
        cuts = sorted(rng.choice((0.0, 1.0, rng.random())) for _ in range(2))
        config = PaceConfig(updates=rng.randint(1, 30), shares=(cuts[0], cuts[1] - cuts[0], 1 - cuts[1]))
        stages = {name: [0] * rng.randint(0, 2) for name in ("foundation", "guided", "repaired", "more")}
        plan = updates_of(stages, config)
        assert sum(plan.values()) == (config.updates if any(stages.values()) else 0)
        assert all(count > 0 and stages[name] for name, count in plan.items())


def test_distill_refuses_what_cannot_work(random_lm, task, make):
    empty = build_stages([make("a")], [], [])
    with pytest.raises(InputError, match="every stage is empty"):
        distill(random_lm, task, empty)
    foreign = build_stages([make("a", text="zebra", correct=True)], [], [])
    with pytest.raises(InputError, match="cannot write 1 of 1 examples.*unknown token"):
        distill(random_lm, task, foreign, PaceConfig(updates=2))


def test_a_rare_unwritable_example_is_left_out_and_counted(random_lm, task, make, tmp_path):
    rows = [make(str(i), text=example(5, i, Dials(forms={"plain": 1.0}))[1], correct=True, prompt="Hint: ") for i in range(150)]
    stages = build_stages([*rows, make("odd", text="zebra", correct=True)], [], [])
    with pytest.warns(RuntimeWarning, match="1 of 151 examples are left out"):
        distill(random_lm, task, {"foundation": stages["foundation"]}, PaceConfig(updates=2, batch=2), folder=tmp_path)
    assert read_curve(tmp_path)[0]["examples"] == 150


def test_distill_leaves_the_student_alone_and_keeps_finished_stages(random_lm, task, validation, tmp_path, make):
    rows = [make(str(i), text=example(5, i, Dials(forms={"plain": 1.0}))[1], correct=True, prompt="Hint: ") for i in range(8)]
    stages = build_stages(rows[:4], [], rows[4:])
    config = PaceConfig(updates=4, batch=2, shares=(0.5, 0.25, 0.25))
    before = copy.deepcopy(random_lm.model.state_dict())
    done = []
    out = distill(random_lm, task, stages, config, folder=tmp_path, probe=validation[:2],
                  progress=lambda i, n: done.append((i, n)))
    assert isinstance(out, LM)
    assert all(torch.equal(before[k], v) for k, v in random_lm.model.state_dict().items())
    assert done == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1-foundation", "2-guided", "3-repaired", "settings.json"]
    points = [[row["step"] for row in stage["log"] if "accuracy" in row] for stage in read_curve(tmp_path)]
    assert points == [[0, 2], [1], [1]]
    again = distill(random_lm, task, stages, config, folder=tmp_path, progress=lambda i, n: done.append(i))
    assert len(done) == 4  # nothing was trained a second time
    assert all(torch.equal(a, b) for a, b in zip(out.model.parameters(), again.model.parameters(), strict=True))


def test_distill_goes_on_in_the_middle_of_a_stage(random_lm, task, validation, tmp_path, make):
    """Stopped between two checkpoints of the second stage: same student and same curve as without."""
    rows = [make(str(i), text=example(5, i, Dials(forms={"plain": 1.0}))[1], correct=True, prompt="Hint: ") for i in range(12)]
    stages = build_stages(rows[:6], [], rows[6:])
    config = PaceConfig(updates=36, batch=4, shares=(1 / 3, 0, 2 / 3), save_every=10, curve_every=6, warmup=0)

    def run(folder, stop=0):
        done = []

        def progress(i, n):
            done.append(i)
            if i == stop:
                raise KeyboardInterrupt

        return done, distill(random_lm, task, stages, config, folder=folder, probe=validation[:3], progress=progress)

    _, whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", stop=27)
    done, mended = run(tmp_path / "cut")
    assert done[0] == 23  # twelve of the first stage, ten of the second were kept: over three epochs
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), mended.model.parameters(), strict=True))
    assert not list(tmp_path.rglob("checkpoint-*"))
    curve = read_curve(tmp_path / "cut")
    assert curve == read_curve(tmp_path / "whole")
    assert [[row["step"] for row in stage["log"] if "accuracy" in row] for stage in curve] == [[0, 6, 12], [6, 12, 18, 24]]
    assert set(curve[0]["log"][0]["accuracy"]) == {"mastered"}


def test_a_batch_is_cut_to_what_goes_through_at_once(random_lm):
    config = PaceConfig(batch=12)
    random_lm.max_batch = 512
    assert parts_of_a_batch(config, random_lm) == 1
    random_lm.max_batch = 5
    assert parts_of_a_batch(config, random_lm) == 3  # 4 at once: the largest part of at most 5
    assert parts_of_a_batch(PaceConfig(batch=12, accumulate=6), random_lm) == 6


def stage_of(lm, n=8, first=0):
    rows = [example(5, i, Dials(forms={"plain": 1.0})) for i in range(first, first + n)]
    return {"foundation": Dataset.from_list([{"id": str(i), "prompt": p, "completion": c} for i, (p, c) in enumerate(rows)])}


@pytest.mark.parametrize(("change", "message"), [
    ({"seed": 1}, "seed: 0 in the folder, 1 now"),
    ({"updates": 3}, "updates: 2 in the folder, 3 now"),
    ({"stages": 1}, "examples: "),
    ({"student": 1}, "student: "),
])
def test_a_folder_of_other_settings_is_refused(random_lm, task, tmp_path, change, message):
    config, stages = PaceConfig(updates=2, batch=2), stage_of(random_lm)
    distill(random_lm, task, stages, config, folder=tmp_path)
    student = copy.deepcopy(random_lm)
    if "student" in change:
        next(student.model.parameters()).data.add_(1e-3)
    with pytest.raises(InputError, match=f"holds students of other settings .{message}.*use another folder"):
        distill(student, task, stage_of(random_lm, first=1) if "stages" in change else stages,
                dataclasses.replace(config, updates=change.get("updates", 2)), change.get("seed", 0), folder=tmp_path)


def test_a_folder_of_students_without_settings_is_refused(random_lm, task, tmp_path):
    distill(random_lm, task, stage_of(random_lm), PaceConfig(updates=2, batch=2), folder=tmp_path)
    (tmp_path / "settings.json").unlink()
    with pytest.raises(InputError, match="seed: None in the folder, 0 now"):
        distill(random_lm, task, stage_of(random_lm), PaceConfig(updates=2, batch=2), folder=tmp_path)


@pytest.mark.parametrize("content", ["", '{"seed": 0, "lear', "[1]", "{}", '{"seed": null, "log": 1}', "\udcff", "[" * 9000])
def test_a_damaged_file_of_a_students_folder_is_said_in_one_line(random_lm, task, tmp_path, capsys, content):
    """settings.json and curve.json, empty, cut off or of something else: what, why, what to do, exit code 2."""
    config = PaceConfig(updates=2, batch=2)
    distill(random_lm, task, stage_of(random_lm), config, folder=tmp_path)
    commands = {"curve": lambda *_: read_curve(tmp_path),
                "settings": lambda *_: distill(random_lm, task, stage_of(random_lm), config, folder=tmp_path)}
    parser = argparse.ArgumentParser()
    parser.add_argument("command")
    for name, path, message in (
            ("curve", tmp_path / "1-foundation" / "curve.json", "is not the learning curve of a stage, .*; delete the stage's folder"),
            ("settings", tmp_path / "settings.json", "is not the settings of a student, .*; use another folder, or delete")):
        whole = path.read_bytes()
        path.write_bytes(content.encode(errors="surrogateescape"))
        capsys.readouterr()
        assert execute(parser, commands, [name]) == 2
        assert re.fullmatch(f"{re.escape(str(path))} {message}.*\n", capsys.readouterr().err)
        path.write_bytes(whole)
        assert execute(parser, commands, [name]) == 0


# ------------------------------------------------------------------------------------------- precision


TARGET = "It is \\boxed{12}."


@pytest.fixture(scope="module")
def chat():
    """(folder's tokenizer, its task, a stage of one fixed target): the snippet of a bug report."""
    tokenizer = heal.model.load_tokenizer(DATA / "chat" / "teacher")
    task = heal.ChatMathTask(tokenizer, verify=False)
    problems = heal.load_problems(DATA / "chat" / "train.jsonl", task)[:4]
    rows = [{"id": p.id, "prompt": task.prompt(p), "completion": TARGET} for p in problems]
    return task, {"all": Dataset.from_list(rows)}


def gain(before, after, stages):
    """How much the log-probability of the target rises, and which share of the weights changed."""
    pairs = [(before.encode(row["prompt"]), before.encode(row["completion"])) for row in stages["all"]]
    old, new = (sum(sum(logp) for _, logp in heal.text_stats(lm, pairs)) / len(pairs) for lm in (before, after))
    weights = list(zip(before.model.parameters(), after.model.parameters(), strict=True))
    return new - old, sum((a != b).sum().item() for a, b in weights) / sum(a.numel() for a, _ in weights)


def test_a_student_saved_in_bfloat16_learns_as_well_as_in_float32(chat):
    """A step of 1e-5 is below half a spacing of most bfloat16 weights: they must be trained as float32."""
    task, stages = chat
    config, gains = PaceConfig(updates=40, batch=2, warmup=0, learning_rate=1e-5), {}
    for dtype in ("float32", "bfloat16"):
        student = load_lm(DATA / "chat" / "teacher", dtype=dtype)
        trained = distill(student, task, stages, config)
        assert student.model.dtype == getattr(torch, dtype)
        assert trained.model.dtype == torch.float32
        start = LM(copy.deepcopy(student.model).float(), student.tokenizer)
        gains[dtype], changed = gain(start, trained, stages)
        assert changed > 0.99, dtype
    assert gains["float32"] > 0.1
    assert gains["bfloat16"] >= 0.9 * gains["float32"]


def test_forward_passes_in_bfloat16_learn_as_well(random_lm, task, monkeypatch):
    """What an accelerator does, on CPUs: autocast around float32 weights. The student is handed out without it."""
    stages, config = {"all": stage_of(random_lm)["foundation"]}, PaceConfig(updates=20, batch=4, warmup=0, learning_rate=1e-4)
    full, _ = gain(random_lm, distill(random_lm, task, stages, config), stages)
    monkeypatch.setattr("heal_ref.train.TrainingArguments", lambda **more: TrainingArguments(**{**more, "bf16": True}))
    trained = distill(random_lm, task, stages, config)
    half, changed = gain(random_lm, trained, stages)
    assert changed > 0.9
    assert half >= 0.9 * full > 0
    assert half != full  # it was another computation
    assert "forward" not in vars(trained.model)


@pytest.mark.parametrize(("dtype", "found", "half"), [
    (torch.bfloat16, {"avx512_bf16": True}, True), (torch.bfloat16, {"avx512_bf16": False, "amx_bf16": True}, True),
    (torch.bfloat16, {"avx512_bf16": False}, False), (torch.bfloat16, {}, False), (torch.float32, {"avx512_bf16": True}, False)])
def test_a_bfloat16_student_is_computed_with_so_where_that_is_faster(random_lm, task, monkeypatch, dtype, found, half):
    made, stages = [], {name: stage_of(random_lm)["foundation"] for name in ("foundation", "guided")}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    monkeypatch.setattr("heal_ref.train.TrainingArguments", lambda **more: made.append(more["bf16"]) or TrainingArguments(**more))
    student = LM(random_lm.model.to(dtype), random_lm.tokenizer)
    distill(student, task, stages, PaceConfig(updates=2, batch=2, shares=(0.5, 0.5, 0)))
    assert made == [half, half]  # the second stage begins with float32 weights


@pytest.mark.parametrize(("save", "kept"), [("float32", torch.float32), ("own", torch.bfloat16)])
def test_the_last_student_is_saved_in_the_dtype_that_is_asked_for(random_lm, task, tmp_path, save, kept):
    student = LM(random_lm.model.to(torch.bfloat16), random_lm.tokenizer)
    stages = {name: stage_of(random_lm)["foundation"] for name in ("foundation", "guided")}
    config = PaceConfig(updates=4, batch=2, shares=(0.5, 0.5, 0), save_dtype=save)
    trained = distill(student, task, stages, config, folder=tmp_path)
    assert trained.model.dtype == kept
    assert load_lm(tmp_path / "1-foundation").model.dtype == torch.float32  # what comes after it must not change
    assert load_lm(tmp_path / "2-guided").model.dtype == kept
    assert json.loads((tmp_path / "2-guided" / "config.json").read_text())["dtype"] == str(kept).split(".")[1]
    again = distill(student, task, stages, config, folder=tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(trained.model.parameters(), again.model.parameters(), strict=True))


# -------------------------------------------------------------------------------------- what is learnt


def learnt(lm, row):
    return [i for i in row["labels"] if i != IGNORE]


def test_what_is_learnt_is_what_was_sampled(random_lm, task, make):
    """Id by id, also where the tokenizer would write the same text in another way."""
    ids = [*random_lm.encode("We start at "), *random_lm.encode("1"), *random_lm.encode("2"), *random_lm.encode(".")]
    t = dataclasses.replace(make("p", random_lm.decode(ids), correct=True, prompt="Hint: "), token_ids=ids)
    assert random_lm.encode(t.text) != ids
    (row,) = examples_of(random_lm, task, build_stages([t], [], [])["foundation"])
    assert row["input_ids"] == [*random_lm.encode("Hint: "), *ids, random_lm.end]
    assert learnt(random_lm, row) == [*ids, random_lm.end]
    assert row["name"] == "p"


def test_ids_that_spell_something_else_are_not_learnt(random_lm, task, make):
    """Those of another tokenizer: what counts then is the text."""
    t = make("p", "We start at 5.", correct=True, prompt="Hint: ")  # its ids are characters'
    (row,) = examples_of(random_lm, task, build_stages([t], [], [])["foundation"])
    assert learnt(random_lm, row) == [*random_lm.encode("We start at 5."), random_lm.end]


def test_an_unknown_token_that_is_also_the_end_is_no_fault(random_lm, task, make):
    random_lm.tokenizer.unk_token = random_lm.tokenizer.eos_token
    t = make("p", "We start at 5.", correct=True, prompt="Hint: ")
    (row,) = examples_of(random_lm, task, build_stages([t], [], [])["foundation"])
    assert row["input_ids"][-1] == random_lm.end == random_lm.tokenizer.unk_token_id


def test_what_is_longer_than_the_students_positions_is_left_out(random_lm, task, make):
    random_lm.model.config.max_position_embeddings = 12
    short, long = (make(p, text, correct=True, prompt="Hint: ") for p, text in
                   (("short", "We start at 5."), ("long", "We start at 5.\n\nThen compute 5 + 3 = 8.")))
    with pytest.warns(RuntimeWarning, match="1 of 2 examples are left out: they are longer than the student's 12 positions"):
        rows = examples_of(random_lm, task, build_stages([short, long], [], [])["foundation"])
    assert [row["name"] for row in rows] == ["short"]
    with pytest.raises(InputError, match="no example is left: they are longer than the student's 12 positions; sample shorter"):
        examples_of(random_lm, task, build_stages([long], [], [])["foundation"])


def test_a_tokenizer_that_changes_the_text_cannot_write_it(random_lm, task, make):
    """Without an unknown token, too: this one has no capitals."""
    backend = copy.deepcopy(random_lm.tokenizer).backend_tokenizer
    from tokenizers import normalizers

    backend.normalizer = normalizers.Lowercase()
    words = {"tokenizer_object": backend, "eos_token": "<eos>", "pad_token": "<eos>"}
    student = LM(random_lm.model, PreTrainedTokenizerFast(**words))
    stage = build_stages([make("p", "a B", correct=True)], [], [])["foundation"]
    with pytest.raises(InputError, match="cannot write 1 of 1 examples.*comes back changed"):
        examples_of(student, task, stage)


class Chat(heal.Task):
    """A task with two templates and thoughts, on the clock world's words."""

    def __init__(self, begin="Hint: ", knows=True):
        self.begin, self.knows_thoughts = begin, knows

    def for_tokenizer(self, tokenizer):
        return Chat("Problem: ", knows=tokenizer.name_or_path != "thoughtless") if tokenizer.name_or_path else self

    def prompt(self, problem):
        return self.begin + problem.question

    def without_thoughts(self, text):
        return text.replace("5", "7")


def test_a_student_with_another_template_sees_the_problem_through_it(random_lm, make):
    t = make("p", "We start at 5.", correct=True, prompt="Hint: ")
    t = dataclasses.replace(t, problem=Problem("p", "Start 5", "1"))
    stage = build_stages([t], [], [])["foundation"]
    (same,) = examples_of(random_lm, Chat(), stage)
    assert random_lm.decode(same["input_ids"]) == "Hint: We start at 5."  # the row's prompt, as it was sampled from
    random_lm.tokenizer.name_or_path = "other"
    (other,) = examples_of(random_lm, Chat(), stage)
    assert random_lm.decode(other["input_ids"]) == "Problem: Start 5We start at 5."
    bare = stage.select_columns(["id", "prompt", "completion"])
    with pytest.raises(InputError, match="row 'p' has no `question`.*add question and answer, as build_stages does"):
        examples_of(random_lm, Chat(), bare)


def test_thoughts_that_mean_nothing_to_the_student_are_refused_or_left_out(random_lm, make):
    stage = build_stages([make("p", "We start at 5.", correct=True, prompt="Hint: ")], [], [])
    random_lm.tokenizer.name_or_path = "thoughtless"
    stage["foundation"] = stage["foundation"].map(lambda row: {"question": "Start 3"})
    with pytest.raises(InputError, match=r'thoughts.*PaceConfig\(thoughts="drop"\)'):
        distill(random_lm, Chat(), {"foundation": stage["foundation"]}, PaceConfig(updates=1))
    (row,) = examples_of(random_lm, Chat(), stage["foundation"], thoughts="drop")
    assert random_lm.decode(learnt(random_lm, row)[:-1]) == "We start at 7."
    random_lm.tokenizer.name_or_path = "other"
    (row,) = examples_of(random_lm, Chat(), stage["foundation"])
    assert random_lm.decode(learnt(random_lm, row)[:-1]) == "We start at 5."


@pytest.mark.parametrize(("teacher", "student", "kept", "left"), [
    (TEMPLATE, TEMPLATE, "<think>\n2, 4.\n</think>\n\nIt is \\boxed{4}.", "It is \\boxed{4}."),
    (ALWAYS_THINKS, ALWAYS_THINKS, "2, 4.\n</think>\n\nIt is \\boxed{4}.", "</think>\n\nIt is \\boxed{4}."),
    (TEMPLATE, ALWAYS_THINKS, "2, 4.\n</think>\n\nIt is \\boxed{4}.", "</think>\n\nIt is \\boxed{4}."),
    (ALWAYS_THINKS, TEMPLATE, "<think>\n2, 4.\n</think>\n\nIt is \\boxed{4}.", "It is \\boxed{4}.")],
    ids=["none opens", "both open", "the student's opens", "the teacher's opens"])
def test_a_reply_without_its_thoughts_still_follows_the_students_prompt(random_lm, make, teacher, student, kept, left):
    """Where the prompt has opened a block, the reply closes it: a final answer within a block would count for nothing."""
    task = heal.ChatMathTask(chat_tokenizer(teacher, vocabulary=400), verify=False)
    lm, problem = LM(random_lm.model, chat_tokenizer(student, vocabulary=400)), Problem("p", "2 + 2?", "4")
    lm.model.config.max_position_embeddings = 4096
    sampled = ("" if task.opened else "<think>\n") + "2, 4.\n</think>\n\nIt is \\boxed{4}."
    t = dataclasses.replace(make("p", sampled, correct=True, prompt=task.prompt(problem)), problem=problem)
    own = task.for_tokenizer(lm.tokenizer)
    for thoughts, reply in (("keep", kept), ("drop", left)):
        (row,) = examples_of(lm, task, build_stages([t], [], [])["foundation"], thoughts)
        masked = row["labels"].count(IGNORE)
        assert lm.tokenizer.decode(row["input_ids"][:masked]) == own.prompt(problem)
        assert lm.tokenizer.decode(learnt(lm, row)[:-1]) == reply
        assert own.extract_answer(reply) == "4"


@pytest.mark.slow
@pytest.mark.parametrize(("teacher", "student"), [
    ("qwen3", "smollm2"), ("deepseek_r1", "qwen3"), ("qwen3", "deepseek_r1"), ("llama3.1", "phi3"), ("gemma3", "llama3.1"),
    ("smollm2", "inst"), ("phi3", "gemma3"), ("inst", "qwen2.5"),
])
def test_a_student_of_another_family_learns_text_in_its_own_turn(teacher, student, random_lm, make):
    """Its own prompt once, the teacher's text, its own end of turn; nothing of the teacher's template."""
    task = heal.ChatMathTask(real_tokenizer(teacher), verify=False)
    lm, problem = LM(random_lm.model, real_tokenizer(student)), Problem("p", "What is 6 * 7?", "42")
    lm.model.config.max_position_embeddings = 4096
    text = "Six sevens: 6 × 7.\n\n    That is \\(42\\).\n\nSo it is \\boxed{42}."
    sampled = f"Let me see.\n</think>\n\n{text}" if task.opened else text
    t = dataclasses.replace(make("p", sampled, correct=True, prompt=task.prompt(problem)), problem=problem,
                            token_ids=task.tokenizer(sampled, add_special_tokens=False)["input_ids"])
    own = task.for_tokenizer(lm.tokenizer)
    with warnings.catch_warnings(action="error"):
        (row,) = examples_of(lm, task, build_stages([t], [], [])["foundation"])
    masked = row["labels"].count(IGNORE)
    assert row["input_ids"][:masked] == lm.encode(own.prompt(problem))
    target = lm.tokenizer.decode(row["labels"][masked:-1])
    opened = {"deepseek_r1": f"<think>\n{sampled}"}.get(teacher, text)  # its prompts have opened the thoughts
    assert target.strip() == (f"</think>\n\n{text}" if own.opened else opened)
    assert own.extract_answer(target) == "42"
    assert row["labels"][-1] == heal.template.turn_end(lm.tokenizer)
    (same,) = examples_of(LM(random_lm.model, task.tokenizer), task, build_stages([t], [], [])["foundation"])
    assert same["input_ids"][:-1] == task.tokenizer(t.prompt, add_special_tokens=False)["input_ids"] + t.token_ids
