"""Repairs of problems of our own, kept with texts. Nothing here needs a pretrained model."""

import json
from dataclasses import replace

from heal_lab.real_examples import as_json, examples, from_json
from heal_lab.real_world import settings
from heal_ref.config import SampleConfig
from heal_ref.gear import breakpoint_of
from heal_ref.model import load_lm
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
