"""Repairs of problems of our own, kept with texts. Nothing here needs a pretrained model."""

import json
from dataclasses import replace

from heal_lab import real_examples
from heal_lab.real_examples import as_json, examples, from_json
from heal_lab.real_world import settings
from heal_ref.config import SampleConfig
from heal_ref.gear import breakpoint_of
from heal_ref.model import load_lm
from heal_ref.records import PureScore
from heal_ref.run.sources import load_problems
from heal_ref.tasks import ChatMathTask
from tests.conftest import DATA


def test_examples_keep_what_was_cut_and_every_repair():
    """With the small chat model, which solves none of these: the chain, its step, and four hints."""
    lm = load_lm(DATA / "chat" / "teacher")
    config = replace(settings(), sample=SampleConfig(n=2, max_new_tokens=40, temperature=1.0))
    task = ChatMathTask(lm.tokenizer)
    problems = load_problems(DATA / "math" / "train.jsonl", task)[:4]
    rows = json.loads(json.dumps(examples(lm, task, problems, config)))
    assert [row["problem"]["id"] for row in rows] == [p.id for p in problems]
    cut = [row for row in rows if "chain" in row]
    assert cut
    for row in cut:
        chain = from_json(row["chain"])
        assert json.loads(json.dumps(as_json(chain))) == row["chain"]
        assert "".join(row["pieces"]) == chain.text
        assert breakpoint_of(chain, config.gear) == row["cut"]
        assert set(row["repairs"]) == {"bridge", "step", "answer", "none"}
        for made in row["repairs"].values():
            assert [from_json(t).breakpoint for t in made] == [row["cut"]] * len(made)
            assert all((t["ratio"] is not None) == t["correct"] for t in made)


def test_each_right_repair_gets_its_own_score(monkeypatch):
    """Of two repairs per problem the second one is called right; its score is its length."""
    def repair(*args, **settings):
        made = real_repair(*args, **settings)
        return [replace(t, correct=i % 2 == 1) for i, t in enumerate(made)]

    def scores(lm, task, made):
        return [PureScore(t, [1.0], [0.0], [float(len(t.token_ids))], 0.0) for t in made if t.correct]

    real_repair = real_examples.repair
    monkeypatch.setattr(real_examples, "repair", repair)
    monkeypatch.setattr(real_examples, "pure_scores", scores)
    lm = load_lm(DATA / "chat" / "teacher")
    task = ChatMathTask(lm.tokenizer)
    config = replace(settings(), sample=SampleConfig(n=2, max_new_tokens=40, temperature=1.0))
    rows = examples(lm, task, load_problems(DATA / "math" / "train.jsonl", task)[:3], config)
    made = [t for row in rows for repairs in row.get("repairs", {}).values() for t in repairs]
    assert sum(t["correct"] for t in made) >= 4
    for t in made:
        assert t["ratio"] == ([float(len(from_json(t).token_ids))] if t["correct"] else None)
