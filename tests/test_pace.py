"""Stages, the loss, and training: what is learnt, what is masked, what stops it, what is resumed."""

import copy
import math

import pytest
import torch

from heal_lab.clock_corpus import Dials, example
from heal_ref.config import PaceConfig, SampleConfig
from heal_ref.generation import generate
from heal_ref.model import LM
from heal_ref.pace import build_stages, check_tokenizers, distill, parts_of_a_batch, read_curve, shuffled, updates_of
from heal_ref.records import InputError
from heal_ref.train import IGNORE, TrainingError, collate, encode_example, last_complete_checkpoint, train


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
    with pytest.raises(TrainingError, match="at update 1, on an unnamed batch"):
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
    assert all(isinstance(row[name], str) for row in stage for name in stage.column_names)
    args = trl.SFTConfig(output_dir="unused", report_to="none", completion_only_loss=True, max_length=None, use_cpu=True)
    trainer = trl.SFTTrainer(random_lm.model, args=args, train_dataset=stage, processing_class=random_lm.tokenizer)
    for theirs, row in zip(trainer.train_dataset, stage, strict=True):
        ours = encode_example(random_lm.tokenizer, row["prompt"], row["completion"])
        assert theirs["input_ids"] == ours["input_ids"]
        batch = trainer.data_collator([theirs])
        assert batch["labels"][0].tolist() == ours["labels"]


def test_stages_are_deterministic(make):
    base = [make("a", f"a|{i}", correct=i % 2 == 0, index=i) for i in range(6)]
    first, second = (build_stages(base, [], [make("b", "b|b", correct=True)]) for _ in range(2))
    assert {k: s.to_list() for k, s in first.items()} == {k: s.to_list() for k, s in second.items()}


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
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1-foundation", "2-guided", "3-repaired"]
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


def test_different_tokenizers_are_refused_at_once(random_lm, teacher):
    check_tokenizers(teacher, random_lm)  # the same one
    other = copy.deepcopy(random_lm)
    other.tokenizer.add_tokens(["more", "words"])
    size = len(teacher.tokenizer)
    with pytest.raises(InputError, match=rf"different tokenizers \({size} and {size + 2} tokens.*two models of one family"):
        check_tokenizers(teacher, other)


def test_a_batch_is_cut_to_what_goes_through_at_once(random_lm):
    config = PaceConfig(batch=12)
    random_lm.max_batch = 512
    assert parts_of_a_batch(config, random_lm) == 1
    random_lm.max_batch = 5
    assert parts_of_a_batch(config, random_lm) == 3  # 4 at once: the largest part of at most 5
    assert parts_of_a_batch(PaceConfig(batch=12, accumulate=6), random_lm) == 6
