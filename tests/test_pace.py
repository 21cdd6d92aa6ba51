"""Stages, the loss, and training: what is learnt, what is masked, what stops it, what is resumed."""

import copy
import math

import pytest
import torch

from heal_ref.config import PaceConfig, SampleConfig
from heal_ref.lm import LM, generate
from heal_ref.pace import build_stages, distill, updates_of
from heal_ref.records import InputError
from heal_ref.tasks.clock_corpus import Dials, example
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
    said = generate(random_lm, [random_lm.encode("Hint: ")], config=SampleConfig(temperature=0.0, max_new_tokens=20), seed=0)[0]
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
    with pytest.raises(TrainingError, match="at update"):
        _train(random_lm, tmp_path, save_every=0)


def test_stages(make):
    base = [make("easy", "a|b", correct=True), make("easy", "a|c", correct=True, index=1), make("hard", "x|x"),
            make("hard", "x|y", index=1)]
    hinted = [make("hard", "h|h", kind="hint", correct=True), make("easy", "h|h", kind="hint", correct=True)]
    repaired = [make("hard", text, kind="repair", correct=text != "r|2") for text in ("r|1", "r|2", "r|1", "r|3")]
    stages = build_stages(base, hinted, repaired, PaceConfig(per_problem=2))
    assert [len(s) for s in stages.values()] == [2, 3, 5]
    assert stages["guided"]["completion"] == ["a|b", "a|c", "h|h"]  # the easy problem needs no guidance
    assert stages["frontier"]["completion"][3:] == ["r|1", "r|3"]  # right ones, none twice
    assert set(stages["frontier"]["prompt"]) == {"P:"}
    alone = build_stages(base, hinted, repaired, PaceConfig(per_problem=1, cumulative=False))
    assert [s["completion"] for s in alone.values()] == [["a|b"], ["h|h"], ["r|1"]]


def test_updates_are_all_spent(make):
    config = PaceConfig(updates=10, shares=(0.25, 0.25, 0.5))
    full = build_stages([make("a", correct=True)], [], [make("b", correct=True)], config)
    assert updates_of(full, config) == {"foundation": 2, "guided": 2, "frontier": 6}
    no_base = build_stages([], [], [make("b", correct=True)], config)
    assert updates_of(no_base, config) == {"frontier": 10}
    assert updates_of({"foundation": full["foundation"]}, config) == {"foundation": 10}


def test_distill_refuses_what_cannot_work(random_lm, task, make):
    empty = build_stages([make("a")], [], [])
    with pytest.raises(InputError, match="every stage is empty"):
        distill(random_lm, task, empty)
    foreign = build_stages([make("a", text="zebra", correct=True)], [], [])
    with pytest.raises(InputError, match="unknown token"):
        distill(random_lm, task, foreign, PaceConfig(updates=2))


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
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1-foundation", "2-guided", "3-frontier"]
    again = distill(random_lm, task, stages, config, folder=tmp_path, progress=lambda i, n: done.append(i))
    assert len(done) == 4  # nothing was trained a second time
    assert all(torch.equal(a, b) for a, b in zip(out.model.parameters(), again.model.parameters(), strict=True))
