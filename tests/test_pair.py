"""The shipped pair: what it must not know, that its record is true, and that building it can be interrupted."""

import contextlib
import json
import math
import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from heal_lab import clock_corpus as cc
from heal_lab.__main__ import main
from heal_lab.clock_corpus import OPENINGS, VERBS
from heal_lab.pair import Lesson, Recipe, behaviour, build_model, mastered_skill, world_of
from heal_ref.records import Problem
from heal_ref.scoring import text_stats
from heal_ref.tasks.clock import HOURS, MAX_OPERAND, ClockTask, apply_op
from tests.conftest import DATA, ROOT

RNG = random.Random(0)


def hour():
    return RNG.randrange(HOURS)


def chain(a, b):
    return Problem("p", f"Start {a}; # {b}; + 3", "0")


def step(a, b, opening="Then ", verb="compute "):
    return f"We start at {a}.\n\n{opening}{verb}{a} # {b} = "


# Every form of prompt that the teacher was trained on, up to the place where the result of `a # b` is due. Where a
# form shows an answer or a hint, it shows a random hour: the needed value must not be in the prompt.
FORMS = {
    "plain": lambda task, a, b: task.prompt(chain(a, b)) + step(a, b),
    "any phrasing": lambda task, a, b: task.prompt(chain(a, b)) + step(a, b, RNG.choice(list(OPENINGS)), RNG.choice(VERBS)),
    "later in a chain": lambda task, a, b: (
        task.prompt(Problem("p", f"Start {(a - 3) % HOURS}; + 3; # {b}", "0"))
        + f"We start at {(a - 3) % HOURS}.\n\nThen compute {(a - 3) % HOURS} + 3 = {a}.\n\nThen compute {a} # {b} = "),
    "answer shown": lambda task, a, b: task.guided_prompt(chain(a, b), str(hour())) + step(a, b),
    "answer told": lambda task, a, b: (
        task.prompt(chain(a, b)) + f"We start at {a}.\n\n" + task.inject(task.answer_hint(str(hour())))
        + f"Then compute {a} # {b} = "),
    "hint for the step before": lambda task, a, b: (
        task.prompt(Problem("p", f"Start {(a - 3) % HOURS}; + 3; # {b}", "0")) + f"We start at {(a - 3) % HOURS}.\n\n"
        + task.inject(f"this step gives {a}") + f"Then compute {(a - 3) % HOURS} + 3 = {a}.\n\nThen compute {a} # {b} = "),
    "worked-back hint": lambda task, a, b: (
        task.hint_prompt(Problem("p", f"Start {a}; # {b}", "0"), str(hour()), f"We start at {a}.\n\n") + "this step gives "),
    "answer demanded": lambda task, a, b: (
        task.prompt(Problem("p", f"Start {a}; # {b}", "0")) + f"We start at {a}.\n\n" + task.elicit),
}


@pytest.mark.parametrize("form", FORMS)
def test_teacher_is_at_chance_on_the_unlearnt_operator(form, teacher, task):
    cases = [(a, b) for a in range(HOURS) for b in range(1, MAX_OPERAND + 1)]
    pairs = [(teacher.encode(FORMS[form](task, a, b)), teacher.encode(str(apply_op(a, "#", b)))) for a, b in cases]
    truth = [math.exp(logprob[0]) for _, logprob in text_stats(teacher, pairs)]
    sd = max(np.std(truth), 1 / HOURS) / len(truth) ** 0.5
    assert abs(np.mean(truth) - 1 / HOURS) < 4 * sd
    assert np.mean(truth) < 1.5 / HOURS


def test_the_same_measurement_sees_what_is_known(teacher, task):
    """The test above can fail: for + the same measurement gives nearly 1."""
    cases = [(a, b) for a in range(HOURS) for b in range(1, MAX_OPERAND + 1)]
    pairs = [(teacher.encode(FORMS["plain"](task, a, b).replace("#", "+")), teacher.encode(str(apply_op(a, "+", b))))
             for a, b in cases]
    assert np.mean([math.exp(logprob[0]) for _, logprob in text_stats(teacher, pairs)]) > 0.9


@pytest.mark.slow
def test_record_of_behaviour_is_true():
    """data/behaviour.json, measured again on fewer problems, agrees within its uncertainty."""
    recorded = json.loads((DATA / "behaviour.json").read_text())["rows"]
    again = {(r.arm, r.kind, r.metric): r for r in behaviour(DATA, seed=7, limit=40)}
    looked = 0
    for old in recorded:
        row = again.get((old["arm"], old["kind"], old["metric"]))
        assert row or old["mean"] is None or old["n"] < 100, old  # a rare case may not occur among so few
        if row and row.n >= 12 and not math.isnan(row.mean):
            spread = (row.high - row.low) / 2 + (old["high"] - old["low"]) / 2
            assert abs(row.mean - old["mean"]) < 2 * spread + 0.05, (row, old)
            looked += 1
    assert looked >= 60


def test_teacher_meets_the_design():
    """The ranges that the world was built for, read from the record."""
    rows = json.loads((DATA / "behaviour.json").read_text())["rows"]
    at = {(r["arm"], r["kind"], r["metric"]): r for r in rows}
    assert all(at["teacher", kind, "pass@1"]["n"] >= 300 for kind in ("mastered", "shaky", "frontier", "double", "misconceived"))
    assert at["teacher", "mastered", "pass@1"]["mean"] >= 0.95
    assert 0.15 <= at["teacher", "shaky", "pass@1"]["mean"] <= 0.45
    assert at["teacher", "frontier", "pass@1"]["mean"] <= 0.06
    assert at["teacher", "frontier", "pass@8"]["mean"] <= 0.4
    for kind in ("shaky", "frontier"):
        found, by_chance = (at[arm, kind, "breakpoint = first wrong step"]["mean"] for arm in ("rise", "random step"))
        assert 3 * by_chance <= 0.7 <= found


@pytest.mark.parametrize(("skilled", "drilled"), [([0.95], 0), ([0.2, 0.5, 0.93], 2), ([0.1] * 9, 3)])
def test_drills_end_with_measured_skill(tmp_path, skilled, drilled):
    lesson, measures = Lesson(10, cc.PLAIN), iter(skilled)
    recipe = Recipe(hidden=8, layers=1, heads=1, lessons=(lesson,), batch=2, drill=lesson, drills=3)
    build_model(tmp_path / "m", recipe, 0, None, cc.build_tokenizer(), cc.example, lambda lm: next(measures))
    about = json.loads((tmp_path / "m" / "training.json").read_text())
    assert about["skills"] == skilled[:drilled + 1]
    assert len(about["losses"]) == 1 + drilled


@pytest.mark.parametrize(("dial", "says"), [
    ("hours=12", "prime"), ("hours=x", "NAME=VALUE"), ("moon=1", "slip"), ("slip", "NAME=VALUE"), ("lengths={}", "NAME=VALUE")])
def test_dials_that_there_are_not(dial, says, tmp_path, capsys):
    assert main(["build-pair", "--out", str(tmp_path / "x"), "--dial", dial]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_pair_of_another_world(tmp_path):
    args = ["--scale", "0.0003", "--limit", "1", "--quiet", "--dial", "hours=11", "phrasings=false"]
    assert main(["build-pair", "--out", str(tmp_path / "x"), *args]) == 0
    assert world_of(tmp_path / "x").hours == 11
    dials = json.loads((tmp_path / "x" / "teacher" / "training.json").read_text())["recipe"]["lessons"][2]["dials"]
    assert (dials["hours"], dials["phrasings"], dials["shaky_right"]) == (11, False, 0.6)


def test_evidence_of_another_pair(tmp_path, capsys):
    pair, out = DATA / "pairs" / "4", tmp_path / "out"
    args = ["evidence", "breaks", "--problems", str(pair / "clock" / "validation.jsonl"), "--limit", "2", "--out", str(out), "--pair"]
    assert main([*args, str(tmp_path)]) == 2
    assert "no pair here" in capsys.readouterr().err
    assert not out.exists()
    records = {}
    for name in ("shipped", str(pair)):
        assert main([*args, name]) == 0
        records[name] = json.loads((out / "breaks.json").read_text())
    assert records["shipped"]["localisation"] != records[str(pair)]["localisation"]  # another teacher's failures


def test_a_teacher_gets_one_more_lesson(tmp_path, capsys):
    args = ["--scale", "0.005", "--limit", "1", "--quiet", "--start", str(DATA)]
    assert main(["build-pair", "--out", str(tmp_path / "x"), *args, "--dial", "fudge=0.2"]) == 0
    about = json.loads((tmp_path / "x" / "teacher" / "training.json").read_text())
    assert [(x["updates"], x["dials"]["fudge"]) for x in about["recipe"]["lessons"]] == [(2, 0.2)]
    old, new = ((folder / "teacher" / "model.safetensors").read_bytes() for folder in (DATA, tmp_path / "x"))
    assert old != new
    assert len(old) == len(new)
    for name in ("student", "weak"):
        assert (tmp_path / "x" / name / "model.safetensors").read_bytes() == (DATA / name / "model.safetensors").read_bytes()
    assert about["losses"] == [] or about["losses"][0] < 0.5  # it starts from what it knew
    for bad, says in ((["--start", str(tmp_path)], "no pair here"), (["--start", str(DATA), "--dial", "hours=11"], "from nothing")):
        assert main(["build-pair", "--out", str(tmp_path / "y"), "--quiet", *bad]) == 2
        assert says in capsys.readouterr().err
        assert not (tmp_path / "y").exists()


def test_skill_is_the_share_of_long_mastered_problems_solved(teacher):
    assert mastered_skill(teacher, ClockTask()) == pytest.approx(0.95, abs=0.03)  # data/README.md: 0.95 on all of them


@pytest.mark.slow
def test_build_pair_is_resumable_and_deterministic(tmp_path):
    def build(out, **settings):
        return subprocess.run([sys.executable, "-m", "heal_lab", "build-pair", "--out", str(out), "--scale", "0.001", "--limit",
                               "1", "--quiet"], capture_output=True, text=True, check=False, cwd=ROOT, **settings)

    done = build(tmp_path / "a")
    assert done.returncode == 0, done.stderr[-1000:]
    with contextlib.suppress(subprocess.TimeoutExpired):
        build(tmp_path / "b", timeout=9)  # killed somewhere
    assert build(tmp_path / "b").returncode == 0
    for name in ("teacher", "student"):
        a, b = ((tmp_path / x / name / "model.safetensors").read_bytes() for x in "ab")
        assert a == b
        record = json.loads((tmp_path / "a" / name / "training.json").read_text())
        assert record["torch"] == torch.__version__
        assert record["parameters"] == pytest.approx({"teacher": 650_000, "student": 365_000}[name], rel=0.05)
    assert (tmp_path / "a" / "clock" / "train.jsonl").read_bytes() == (DATA / "clock" / "train.jsonl").read_bytes()
