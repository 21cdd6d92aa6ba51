"""Word problems with step truth, and what is measured with them. Nothing here needs a pretrained model."""

import builtins
import importlib.util
import json
import os
import shutil
import sys
from collections import Counter
from dataclasses import replace

import pytest

import heal_ref as heal
from heal_lab import real
from heal_lab import real_students as S
from heal_lab import word_problems as W
from heal_lab.__main__ import main
from heal_lab.compare import Results
from heal_lab.evidence import outcome_counts, read_record
from heal_lab.real_world import World, settings
from heal_ref.model import load_lm
from heal_ref.plots import with_interval
from heal_ref.records import InputError, Problem
from tests.conftest import DATA, ROOT

pytestmark = pytest.mark.skipif(importlib.util.find_spec("reasoning_gym") is None, reason="reasoning-gym is not installed")


def said_in(page):
    """The text of a page of this project, on one line."""
    return " ".join((ROOT / page).read_text(encoding="utf-8").split())


def row_of(entry):
    """The row that an entry of a record's `rows` is made of."""
    return heal.Row(**{k: v for k, v in entry.items() if k != "part"})


@pytest.fixture(scope="module")
def problems():
    return W.make_problems()


@pytest.fixture(scope="module")
def task(problems):
    return W.WordProblems(load_lm(DATA / "chat" / "teacher").tokenizer, problems[1])


# ------------------------------------------------------------------------------------------------ the world


def test_splits_share_no_question_and_unseen_stories_are_of_their_own(problems):
    splits, truth, _ = problems
    asked = [p.question for part in splits.values() for p in part]
    assert len(asked) == len(set(asked)) == len(truth)
    stories = {name: {p.id.split("-")[1] for p in part} for name, part in splits.items()}
    assert stories["train"] == stories["validation"] == stories["heldout"]
    assert not stories["train"] & stories["unseen"]
    assert len(stories["train"]) >= 60
    assert len(stories["unseen"]) >= 15
    for name, part in splits.items():
        counts = [sum(p.id.startswith(f"{name}-{story}-") for p in part) for story in stories[name]]
        assert set(counts) == {W.PER_GENERATOR[name]}
    assert all(truth[p.id] and p.answer.isdigit() and p.kind == name for name, part in splits.items() for p in part)


def test_the_problems_are_the_same_each_time(problems):
    assert W.make_problems() == problems


def test_the_gold_solution_is_genuine_and_one_without_a_result_is_not(problems, task):
    splits, truth, solutions = problems
    for p in splits["train"][::13]:
        solution = solutions[p.id]
        assert W.gold_results(solution)[-1] == float(p.answer)
        assert task.is_genuine(p, [solution])
        result = truth[p.id][0]
        spellings = {f"{result:g}", f"{result:.0f}", f"{result:,.0f}", f"{result:.1f}", f"{result:.2f}"}
        without = [word for word in solution.split() if not spellings & {word.strip("$€£.,()%"), *map(str, W.numbers(word))}]
        assert not task.is_genuine(p, [" ".join(without)])


def test_a_problem_without_truth_has_no_verdict(task):
    assert task.is_genuine(Problem("other", "1 + 1?", "2"), ["1 + 1 = 2"]) is None
    own = task.for_tokenizer(task.tokenizer)
    assert own.truth == task.truth
    assert own.knows_truth


@pytest.mark.parametrize(("text", "found"), [
    ("1,200 and 1{,}300 and 12.5%", [1200, 1300, 12.5]), ("$3.50/kg", [3.5]), ("12,5", [12, 5]), ("1,2345", [1, 2345]), ("no", [])])
def test_numbers(text, found):
    assert W.numbers(text) == found


@pytest.mark.parametrize(("solution", "found"), [
    ("she has 74 + 39 + T = 113 + T = 241", [241]), ("5*$3 = $15.", [15]), ("T = 241 - 144 = 97", [97]), ("2 x 3 = 6 x 2 = 12", [12]),
    ("€0.5*1,000=€500.0 per week", [500])])
def test_results_of_a_gold_solution(solution, found):
    assert W.gold_results(solution) == found


@pytest.mark.parametrize(("solution", "wrong"), [
    ("222 - 137=85", 0), ("222 - 137=86", 1), ("20 boxes * $3 = $60", 0), ("$34.96 + $5 = $39.96", 0), ("12÷5=2", 1),
    ("2(76+35) = 222", 0), ("1 + 2 * 3 = 7", 0), ("1 + 2 * 3 = 9", 1), ("12 - 60/2/3 = 2", 0), ("12 - 60/2/3 = 3", 1), ("5/0 = 1", 1),
    ("T = 3 + 4 = 8", 1)])
def test_sums_that_do_not_hold(solution, wrong):
    assert len(W.wrong_sums(solution)) == wrong


def test_generators_with_false_gold_are_left_out():
    made = W.generators()
    assert not W.is_sound(made[75])  # 13 * 0.5 = 6
    assert W.is_sound(made[0])


def test_the_package_stays_as_it_was_and_its_absence_is_one_line(monkeypatch):
    W.generators()
    assert not [name for name in sys.modules if name.startswith("reasoning_gym")]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install --no-deps reasoning-gym"):
        W.generators()


# ------------------------------------------------------------------------------------------------- evidence


@pytest.mark.parametrize(("success", "step"), [
    ([0.5, 0.625, 0.125], 1), ([1.0, 1.0, 1.0], 2), ([0.5, 0.0, 0.0], 0), ([0.125, 0.0], None), ([], None)])
def test_where_a_chain_is_lost(success, step):
    assert real.lost_at(success) == step


def test_rows_of_breaks_by_hand():
    chains = [{"id": "a", "success": [0.5, 0.5, 0.0], "chosen": dict.fromkeys(real.SIGNALS, 1), "tokens": 9},
              {"id": "b", "success": [0.75, 0.0], "chosen": dict.fromkeys(real.SIGNALS), "tokens": 9},
              {"id": "c", "success": [0.0, 0.0], "chosen": dict.fromkeys(real.SIGNALS, 0), "tokens": 9}]
    at = {(r.arm, r.metric): r.mean for r in real.break_rows(chains)}
    assert at["chains", "had success to lose"] == pytest.approx(2 / 3)
    assert at["max rise", "chosen step = break"] == 0.5
    assert at["max rise", "success lost at it"] == 0.25  # 0.5 at a's step, nothing for b
    assert at["random step", "chosen step = break"] == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert at["random step", "success lost at it"] == pytest.approx((0.5 / 3 + 0.75 / 2) / 2)
    assert at["first step", "chosen step = break"] == 0.5
    assert at["last step", "success lost at it"] == 0
    assert at["second step", "chosen step = break"] == 0.5
    assert at["max rise − new sample", "success of what is kept"] == 0  # nothing is lost before a's step 1
    assert at["max rise − random step", "success lost at it"] == pytest.approx(0.25 - (0.5 / 3 + 0.75 / 2) / 2)
    assert at["max rise", "success of what is kept"] == pytest.approx((0.5 + 0.75) / 3)  # b has no step: nothing is kept
    assert at["first step", "success of what is kept"] == pytest.approx((0.5 + 0.75) / 3)  # that of a new sample
    assert at["random step", "success of what is kept"] == pytest.approx((1 / 3 + 0.75 / 2) / 3)


def test_failed_samples_are_one_per_problem_and_hopeful_ones_first(make):
    base = [make("never", text="a|b"), make("never", text="a|b", index=1), replace(make("cut", text="a|b"), finished=False),
            make("once", text="x|y", correct=True), make("once", text="x|z", index=1), make("short", text="a")]
    assert [(t.problem.id, t.index) for t in real.failed_samples(base)] == [("once", 1), ("never", 0)]


def test_rows_of_gear_by_hand():
    count = {"kind": "train", "tokens": 100}
    counts = [{**count, "id": "a", "arm": "step at rise", "attempts": 2, "correct": 1, "genuine": 1, "usable": 1.0},
              {**count, "id": "b", "arm": "step at rise", "attempts": 0, "correct": 0, "genuine": 0, "usable": 0.0},
              {**count, "id": "a", "arm": "sample again, 2 more", "attempts": 4, "correct": 0, "genuine": 0},
              {**count, "id": "b", "arm": "sample again, 2 more", "attempts": 4, "correct": 2, "genuine": 1, "tokens": 300}]
    at = {(r.arm, r.metric): r.mean for r in real.gear_rows(counts)}
    assert at["step at rise", "usable hints"] == 0.5
    assert at["step at rise", "problems with a right one"] == 0.5
    assert at["step at rise", "genuine per 1,000 tokens"] == 5
    assert at["sample again, 2 more", "genuine per 1,000 tokens"] == 2.5
    assert at["step at rise − sample again, 2 more", "genuine per 1,000 tokens"] == 2.5
    assert ("sample again, 2 more", "usable hints") not in at


def test_rows_of_pure_by_hand():
    raw = {"kind": "train", "entropy": [1.0, 1.0], "forced": [0.5, 0.5], "rollout": [], "tokens": [10, 10], "logprob_with_help": -9.0,
           "informed": -9.0, "solved": 0.25, "numbers": {"count": 4, "total": 2.0, "largest": 1.0, "worst": 0.5}}
    raws = [{**raw, "source": source, "id": str(i), "genuine": i % 2 == 0, "log_ppl": [0.5, 3.0 if i % 2 else 0.6],
             "numbers": {**raw["numbers"], "largest": 1.0 + i % 2}}
            for i in range(20) for source in ("guided", "unaided") if source == "guided" or i % 2 == 0]
    at = {(r.arm, r.kind, r.metric): r.mean for r in real.pure_rows(raws)}
    assert at["typicality, worst", "guided", "AUROC"] == 1.0
    assert at["PMI with the answer", "all helped", "AUROC"] == 1.0
    assert at["length", "guided", "AUROC"] == 0.5
    assert at["numbers alone: typicality, worst", "guided", "AUROC"] == 0.5
    assert at["numbers alone: largest surprise", "guided", "AUROC"] == 1.0
    assert at["filter", "guided", "genuine after"] == 1.0
    assert at["filter", "guided", "genuine kept"] == 1.0
    assert at["filter", "guided", "passed"] == 0.5
    assert at["filter by numbers", "guided", "genuine after"] == 1.0
    assert at["filter by numbers", "guided", "passed"] == 0.5
    halves = [{r.n for r in real.pure_rows(raws) if r.kind == half and r.metric == "AUROC"} for half in ("to choose on", "to test on")]
    assert halves == [{10}, {10}]


def test_the_command_makes_a_record_without_texts_and_goes_on(tmp_path, monkeypatch, capsys):
    chat = str(DATA / "chat" / "teacher")
    command = ["real", "--teacher", chat, "--student", chat, "--out", str(tmp_path / "r"), "--limit", "2", "--seeds", "0", "--quiet",
               "--arms", "student", "--set", "sample.max_new_tokens=12", "--set", "eval_limit=3"]
    monkeypatch.setattr(real, "EXAMPLES", 2)
    assert main([*command, "--parts", "gear", "pure", "breaks", "students"]) == 0
    record = json.loads((tmp_path / "r" / "real.json").read_text())
    assert {row["part"] for row in record["rows"]} >= {"gear", "students"}
    assert main([*command, "--parts", "students", "--arms", "teacher", "teacher"]) == 0
    assert main([*command, "--parts", *real.PLACES, "pure", "examples"]) == 0
    record = json.loads((tmp_path / "r" / "real.json").read_text())
    assert {row["part"] for row in record["rows"]} >= {"gear", "students"}
    hints = {f"{hint} at {place}" for hint in real.HINTS for place in real.PLACES}
    assert {c["arm"] for c in record["gear"]} >= {*hints, real.SAMPLES, real.GUIDED}
    assert {r["arm"] for r in record["rows"]} >= {f"{arm} − sample again, 2 more" for arm in {*hints, real.GUIDED}}
    assert record["provenance"]["problems"] == {"train": 2, "validation": 3, "heldout": 3, "unseen": 3}
    splits, *_ = W.make_problems()
    text = (tmp_path / "r" / "real.json").read_text()
    assert not any(p.question[:40] in text for part in splits.values() for p in part)
    assert len(record["examples"]) == 2
    assert record["students"]["rates"] == {}  # nothing is trained
    assert [run["arm"] for run in record["students"]["runs"]] == ["teacher", "student"]
    assert {row["kind"] for row in record["rows"] if row["part"] == "students"} >= {"all", "heldout", "unseen"}
    monkeypatch.setattr(real, "gear_counts", lambda world: builtins.exit("made again"))
    assert main([*command, "--parts", "gear", "--set", "pace.updates=5", "--set", "eval_n=2"]) == 0  # what training may change
    again = json.loads((tmp_path / "r" / "real.json").read_text())
    assert {**again, "provenance": None} == {**record, "provenance": None}  # what was finished before stays
    assert again["provenance"]["minutes"] >= record["provenance"]["minutes"]
    (tmp_path / "r" / "teacher" / "parts" / "breaks.json").write_text('{"commit": "torn')
    assert main([*command, "--parts", "gear"]) == 2
    assert "breaks.json is not a part of a record; delete it" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "r" / "teacher")  # as the refusal of other settings advises
    monkeypatch.setattr(real, "gear_counts", lambda world: [])
    assert main([*command, "--parts", "gear", "--set", "gear.hint=none"]) == 0
    new = json.loads((tmp_path / "r" / "real.json").read_text())
    assert not {"examples", "students"} & {*new}
    assert new["provenance"]["minutes"] < again["provenance"]["minutes"]


@pytest.mark.parametrize(("options", "said"), [
    (["--limit", "-1"], "--limit -1: a number of training problems"), (["--seeds", "0", "0"], "name each seed once"),
    (["--seeds", "-1"], "HealConfig.seed is -1"), (["--arms", "gold"], "invalid choice: 'gold'"),
    (["--student", str(DATA / "teacher")], "chat template"),
    (["--set", "pace.lora=-1"], "pace.lora is -1")])
def test_bad_input_is_refused_before_anything_is_made(options, said, tmp_path, capsys):
    chat, out = str(DATA / "chat" / "teacher"), tmp_path / "r"
    try:
        code = main(["real", "--teacher", chat, "--student", chat, "--out", str(out), "--quiet", "--limit", "2", *options])
    except SystemExit as e:  # by argparse
        code = e.code
    assert code == 2
    assert said in capsys.readouterr().err
    assert not [*out.glob("teacher/*-*")]  # no samples


def test_a_difference_is_of_the_problems_that_both_have():
    solved = {"a": "pq", "b": "qr", "c": "s"}
    counts = [{"arm": arm, "id": key, "genuine": 1, "tokens": 500} for arm, keys in solved.items() for key in keys]
    assert real.difference(counts, "a", "b").n == 1
    for other in ("c", "none"):
        with pytest.raises(ValueError, match="no problem in common"):
            real.difference(counts, "a", other)


def test_a_verdict_that_could_be_of_two_solutions_is_refused():
    t = {"source": "answer at rise", "id": "p", "tokens": 5}
    raw = {**t, "tokens": [2, 3], "genuine": True}
    assert not real.as_read([raw], [{**t, "reader": False}, {**t, "reader": False}])[0]["genuine"]
    with pytest.raises(ValueError, match="cannot be told apart"):
        real.as_read([raw], [{**t, "reader": False}, {**t, "reader": True}])


def test_no_sequence_at_once_is_refused(capsys):
    chat = str(DATA / "chat" / "teacher")
    assert main(["real", "--teacher", chat, "--student", chat, "--max-batch", "0"]) == 2
    assert "at least one sequence" in capsys.readouterr().err


def test_all_arms_have_the_rate_that_is_best_for_rejection_sampling(tmp_path, monkeypatch):
    class Trial:
        def __init__(self, home, task, teacher, student, problems, config, **_):
            self.rate, self.about = config.pace.learning_rate, (home.name, len(problems["held-out"]), config.seed)

        def result(self, arm):
            asked.append((arm, self.rate, *self.about))
            return {"n": 4, "correct": [2, 4] if self.rate == 1e-4 else [2, 0], "greedy": [0, 1] if self.rate == 2e-4 else [0, 0]}

    asked = []
    lm = heal.load_lm(DATA / "chat" / "teacher")
    world = World.at(tmp_path, lm, settings(), 3, quiet=True)
    monkeypatch.setattr(S, "Trial", Trial)
    students = S.student_runs(world, lm, [0, 1], ["student", "heal"])
    assert students["rates"] == {"5e-05": 0.2, "0.0001": 0.6, "0.0002": 0.3}
    assert [(r["arm"], r["seed"]) for r in students["runs"]] == [("student", 0), ("heal", 0), ("heal", 1)]
    assert asked == [*(("rft", rate, f"rate-{rate:g}", 50, 0) for rate in S.RATES),
                     *((arm, 1e-4, f"seed-{seed}", 100, seed) for seed, arm in ((0, "student"), (0, "heal"), (1, "heal")))]


def test_surprises_are_of_the_results_and_of_all_tokens():
    lm = heal.load_lm(DATA / "chat" / "teacher")
    task = heal.ChatMathTask(lm.tokenizer, verify=False)
    problems = [Problem("p", "Add 3 and 4, then multiply the sum by 5.", "35"), Problem("q", "Add 1 and 1.", "2")]
    references = {"p": "3 + 4 = 7. 7 * 5 = $35\n", "q": "1 + 1 = 2"}
    found = S.surprises(references, lm, task, problems)
    for i, p in enumerate(problems):
        text = references[p.id].strip()
        (_, logprob), = heal.text_stats(lm, [(lm.encode(task.prompt(p)), lm.encode(text))])
        assert found["nats per solution"][i] == pytest.approx(-sum(logprob), abs=2e-3)
        pieces, at, digits = lm.pieces(lm.encode(text)), 0, []
        for piece in pieces:
            digits.append(at in (7, 20, 21))
            at += len(piece)
        assert at == len(text)
        mean = -sum(x for x, mine in zip(logprob, digits, strict=True) if mine) / (2 - i)
        assert found["nats per result"][i] == pytest.approx(mean, abs=2e-3)


def test_no_surprise_of_texts_longer_than_the_context():
    lm = heal.load_lm(DATA / "chat" / "teacher")
    task, problem = heal.ChatMathTask(lm.tokenizer, verify=False), Problem("p", "Add 1 and 1.", "2")
    assert S.surprises({"p": "1 + 1 = 2. " * 100}, lm, task, [problem]) == {}
    run = {"pair": "real", "arm": "heal", "seed": 0, "n": 1, "correct": [0]}
    results = Results({"unit": "seed", "runs": [run], "problems": {"id": ["p"], "kind": ["all"], "length": [1]}})
    assert S.surprise_rows(results, {}) == []


def test_surprise_rows_compare_an_untrained_model_with_each_seed():
    def run(arm, seed, *nats):
        return {"pair": "real", "arm": arm, "seed": seed, "n": 1, "correct": [0, 0], **dict.fromkeys(S.SURPRISES, nats)}

    runs = [run("student", 0, 3, 5), run("heal", 0, 1, 2), run("heal", 1, 2, 3), run("rft", 1, 4, 4)]
    results = Results({"unit": "seed", "runs": runs, "problems": {"id": ["p", "q"], "kind": ["all"] * 2, "length": [1, 1]}})
    rows = {r.arm: (r.mean, r.n, r.seeds) for r in S.surprise_rows(results, dict.fromkeys(S.SURPRISES, [1, 0]))
            if r.metric == "nats per result"}
    assert rows == {"the teacher itself": (0.5, 2, 1), "student": (4, 2, 1), "heal": (2, 2, 2), "rft": (4, 2, 1),
                    "student − heal": (2, 2, 2), "heal − student": (-2, 2, 2), "rft − heal": (1.5, 2, 1), "rft − student": (0, 2, 1)}


def test_what_students_learn_from_is_counted_by_problem_and_arm(tmp_path, monkeypatch):
    def rows(*texts):
        return [{"id": key, "completion": text, "source": source, "token_ids": [1] * len(text)} for key, text, source in texts]

    world = World.at(tmp_path, heal.load_lm(DATA / "chat" / "teacher"), settings(), 3, quiet=True)
    p, q, _ = world.splits["train"]
    right = "so ".join(f"{r:g} " for r in world.task.truth[p.id])
    data = {"rft": rows((p.id, right, "base")), "heal": rows((p.id, right, "base"), (p.id, right, "base"), (q.id, "none", "repair"))}
    monkeypatch.setattr(S, "TRAINED", {arm: lambda made, arm=arm: real_arm(arm) for arm in data})

    def real_arm(arm):
        return type("ArmData", (), {"stages": {"first": [], "last": data[arm]}})

    examples = S.taught(world, ["student", "rft", "heal"])
    assert examples == [
        {"id": p.id, "source": "base", "tokens": len(right), "genuine": True, "rows": {"rft": 1, "heal": 2}},
        {"id": q.id, "source": "repair", "tokens": 4, "genuine": False, "rows": {"heal": 1}}]
    found = {(row.arm, row.metric): row.mean for row in S.taught_rows(examples, 4, ["rft", "heal", "star"])}
    names = ("problems with an example", "problems with a genuine example", "genuine examples")
    assert [found["rft", name] for name in names] == [1 / 4, 1 / 4, 1]
    assert [found["heal", name] for name in names] == pytest.approx([1 / 2, 1 / 4, 2 / 3])
    assert [found["rft − heal", name] for name in names] == pytest.approx([-1 / 4, 0, 1 / 3])
    assert [found.get(("star", name)) for name in names] == [0, 0, None]  # an arm without examples
    assert found["star − heal", names[0]] == -1 / 2
    assert S.taught_rows([], 4, []) == []


def test_the_rows_of_the_students_record_are_made_of_its_numbers():
    record = read_record("real-students")
    made = S.student_rows(record["students"], record["provenance"]["problems"]["train"])
    rows = [{"part": "students", **row.to_dict()} for row in made]
    assert record["rows"] == json.loads(json.dumps(rows))
    text = json.dumps(record)
    splits, *_ = W.make_problems()
    assert not any(p.question[:40] in text for part in splits.values() for p in part)


def test_what_is_said_of_students_is_in_their_record():
    record, verdicts = read_record("real-students"), read_record("real-truth")["taught"]
    students, runs = record["students"], record["students"]["runs"]
    judged = [{**e, "genuine": v["reader"]} for e, v in zip(students["taught"], verdicts, strict=True)]
    assert all(e[key] == v[key] for e, v in zip(students["taught"], verdicts, strict=True) for key in ("id", "source", "tokens"))
    rows = {(r.arm, r.metric): r for r in S.taught_rows(judged, record["provenance"]["problems"]["train"], S.ARMS[1:])}
    texts = {name: said_in(name) for name in ("PAPER.md", "LOG.md", "README.md")}
    sound = "problems with a genuine example"
    for name in ("PAPER.md", "LOG.md"):
        assert with_interval(rows["rft_adaptive − heal", sound], "+") in texts[name]
        assert with_interval(rows["heal_no_pure − heal", sound], "+") in texts[name]
    assert with_interval(rows["rft_adaptive − heal", "problems with an example"], "+") in texts["PAPER.md"]
    assert with_interval(rows["heal_no_pure", "genuine examples"]) in texts["PAPER.md"]
    ours, theirs = (f"{rows[arm, sound].mean:.2f}" for arm in ("heal", "rft_adaptive"))
    assert f"a sound example for {ours} of the training problems, continued sampling for {theirs}" in texts["README.md"]
    sources = Counter(e["source"] for e in students["taught"] if "heal" in e["rows"])
    assert f"{sources['base']} unaided, {sources['guided']} guided and {sources['repair']} repaired" in texts["PAPER.md"]
    tokens = [run["generated"] + run["scored"] for run in runs if run["arm"] in ("heal", "rft_adaptive")]
    assert max(tokens) < 1.01 * min(tokens)  # the sampler stops at the sample that reaches HEAL's
    assert all(len(run["greedy"]) == 100 and run["n"] == 2 for run in runs)
    assert max(sum(run["correct"]) for run in runs) == 2
    assert {arm: sum(run["arm"] == arm for run in runs) for arm in S.ARMS} == {arm: 1 if arm == "student" else 3 for arm in S.ARMS}
    held = {(r["arm"], r["metric"]): row_of(r) for r in record["rows"] if r["kind"] == "all"}
    for key in (("rft_adaptive − heal", "nats per result"), ("rft_adaptive − heal", "nats per solution")):
        assert with_interval(held[key], "+") in texts["PAPER.md"]
        assert with_interval(held[key], "+") in texts["LOG.md"]
    more = (("student − heal", "nats per result"), ("heal_no_pure − heal", "nats per solution"), ("student − heal", "nats per solution"))
    for key in more:
        assert with_interval(held[key], "+") in texts["PAPER.md"]


def test_pass_at_8_is_made_of_its_runs_and_said():
    record = read_record("real-pass8")
    results = Results(record["students"])
    results.groups = {"all": range(100), **results.groups}
    made = [*results.rows(), *results.differences(("heal",))]
    assert record["rows"] == json.loads(json.dumps([{"part": "students", **row.to_dict()} for row in made]))
    assert record["students"]["problems"] == read_record("real-students")["students"]["problems"]
    rows = {r.arm: r for r in made if (r.kind, r.metric) == ("all", "pass@8")}
    texts = {name: said_in(name) for name in ("PAPER.md", "LOG.md")}
    for arm, label in {"student": "base", "heal": "HEAL", "rft_adaptive": "adaptive"}.items():
        assert f"{label} {with_interval(rows[arm])}" in texts["PAPER.md"]
        assert f"{label} {rows[arm].mean:.2f}" in texts["LOG.md"]


def test_what_is_said_of_hints_is_in_their_record():
    counts, read, again = read_record("real-hints")["gear"], read_record("real-truth")["hints"], "sample again, 2 more"
    ids = {c["id"] for c in counts if c["arm"] == again}
    assert len(ids) == 96
    for arm in dict.fromkeys(c["arm"] for c in counts):
        mine = [c for c in counts if c["arm"] == arm]
        all_read = Counter(t["id"] for t in read if t["source"] == arm)
        assert {c["id"]: c["correct"] for c in mine if c["correct"]} == all_read
        assert {c["id"] for c in mine} == ids
    here, second = real.counted_as_read(counts, read), [t for t in read_record("real-truth")["rows"] if t["run"] == 2]
    both = real.counted_as_read(read_record("real")["gear"], second) + here
    texts = {name: said_in(name) for name in ("PAPER.md", "LOG.md", "README.md")}
    ratio = real.times(both, "answer at rise", again)
    for text in texts.values():
        assert f"{ratio.mean:.1f} [{ratio.low:.1f}, {ratio.high:.1f}]" in text
    for name in ("PAPER.md", "LOG.md"):
        said = [(here, f"answer at {place}") for place in real.PLACES]
        for some, arm in [*said, (both, "answer at rise"), (here, "bridge at rise")]:
            assert with_interval(real.difference(some, arm, again), "+") in texts[name]
        for gap in (real.difference(here, "answer at rise", "answer at random"),
                    real.difference(counts, "answer at rise", "answer at random", lambda c: c["correct"])):
            assert with_interval(gap, "+") in texts[name]
    for arm in dict.fromkeys(c["arm"] for c in counts if c["arm"] != again):
        hint, place = arm.split(" at ")
        assert (real.difference(here, arm, again).low > 0) == (hint == "answer" and place != "rise")  # "at no place more"
        if place != "random":
            assert real.difference(here, arm, f"{hint} at random").low <= 0
            assert real.difference(counts, arm, f"{hint} at random").low <= 0


def test_difference_adds_up_the_runs_of_a_problem():
    counts = [{"arm": arm, "id": key, "genuine": n, "correct": 2 * n, "tokens": 100}
              for arm, key, n in (("a", "p", 1), ("b", "q", 0), ("a", "q", 2), ("b", "p", 1), ("a", "p", 0), ("b", "p", 1))]
    assert real.difference(counts, "a", "b").mean == pytest.approx(1000 * (3 / 300 - 2 / 300))
    assert real.difference(counts, "a", "b", lambda c: c["correct"]).mean == pytest.approx(1000 * 2 / 300)
    assert real.difference(counts, "a", "b").n == 2
    assert real.times(counts, "a", "b").mean == pytest.approx((3 / 300) / (2 / 300))


def test_paper_and_log_say_what_the_records_say():
    runs, truth = {1: read_record("real-first"), 2: read_record("real")}, read_record("real-truth")["rows"]
    at = {(r["arm"], r["metric"]): row_of(r) for r in runs[2]["rows"] if r["part"] == "gear"}
    counts = [{**c, "run": run} for run, record in runs.items() for c in record["gear"]]
    sound = Counter((t["run"], t["source"], t["id"]) for t in truth if t["reader"])
    again, second = "sample again, 2 more", [c for c in counts if c["run"] == 2]

    def reader(arm, other, some):
        return with_interval(real.difference(some, arm, other, lambda c: sound[c["run"], c["arm"], c["id"]]), "+")

    paper, log = (said_in(name) for name in ("PAPER.md", "LOG.md"))
    both = (reader("answer at rise", again, second), reader("answer at rise", real.GUIDED, second), reader("step at rise", again, counts),
            with_interval(real.difference(counts, "step at rise", again), "+"))
    for said in (*both, reader("none at rise", again, second), with_interval(at["step at rise", "usable hints"]),
                 with_interval(at["answer at rise", "problems with a right one"])):
        assert said in paper, said
    for said in both:
        assert said in log, said
    judged = real.as_read(runs[2]["pure"], [t for t in truth if t["run"] == 2])
    pure = {(r.arm, r.kind): with_interval(r) for r in real.pure_rows(judged) if r.metric == "AUROC"}
    for name in ("typicality, worst", "total log-likelihood", "numbers alone: total log-likelihood"):
        assert pure[name, "all helped"] in paper
        assert pure[name, "all helped"] in log
    assert pure["numbers alone: total log-likelihood", "guided"] in paper
    third = read_record("real-breaks")
    new = {(r.arm, r.metric): with_interval(r) for r in real.pure_rows(real.as_read(third["pure"], [t for t in truth if t["run"] == 3]))
           if r.kind == "all helped"}
    ruled = {r["arm"]: row_of(r) for r in third["rows"]
             if (r["part"], r["kind"], r["metric"]) == ("pure", "all helped", "AUROC")}
    for name in ("typicality, worst", "numbers alone: total log-likelihood"):
        assert new[name, "AUROC"] in paper
        assert new[name, "AUROC"] in log
        assert with_interval(ruled[name]) in paper
    assert f"by the rule {ruled['numbers alone: total log-likelihood'].mean:.2f}" in log
    of_repairs = {r.arm: r for r in real.pure_rows(judged) if (r.kind, r.metric) == ("answer at rise", "AUROC")}
    readme = said_in("README.md")
    default, numbers = (of_repairs[name] for name in ("typicality, worst", "numbers alone: total log-likelihood"))
    assert f"(AUROC {default.mean:.2f}); the surprise of their numbers finds more ({numbers.mean:.2f};" in readme
    assert with_interval(default) in paper
    assert with_interval(numbers) in paper
    for metric in ("genuine before", "genuine after"):
        assert new["filter by numbers", metric] in paper
        assert new["filter by numbers", metric] in log
    lost = {(r.arm, r.metric): r for r in real.break_rows(third["breaks"])}
    for arm, metric in (("max rise − random step", "success lost at it"), ("second step − random step", "success lost at it"),
                        ("max rise − new sample", "success of what is kept")):
        assert with_interval(lost[arm, metric], "+") in paper
        assert with_interval(lost[arm, metric], "+") in log
    made = [r["mean"] for r in third["rows"] if r["part"] == "breaks"]
    assert made == pytest.approx([r.mean for r in lost.values()])
    read = [t["reader"] for t in truth if (t["run"], t["source"]) == (2, "answer at rise")]
    agreed = f"agree on {sum(t['rule'] == t['reader'] for t in truth)} of {len(truth)}"
    assert agreed in paper
    assert f"{read.count(False)} of its {len(read)} right repairs" in paper


@pytest.mark.slow
def test_a_slice_of_the_record_is_made_again(tmp_path):
    """The samples of the first 24 problems: nine minutes on one thread. Another processor draws other samples of the same
    model, so that sums are compared."""
    source = os.environ.get("HEAL_REAL_TEACHER")
    if not source:
        pytest.skip("HEAL_REAL_TEACHER does not name the folder of the record's teacher")
    record = read_record("real")
    lm = load_lm(source)
    world = World.at(tmp_path, lm, settings(), record["provenance"]["problems"]["train"], quiet=True)
    some = world.splits["train"][:24]
    made = outcome_counts(lm, world.task, real.SAMPLES, world.method.sampled(some))
    theirs = {c["id"]: c for c in record["gear"] if c["arm"] == real.SAMPLES}
    assert [c["id"] for c in made] == list(theirs)[: len(some)]
    sums = {name: (sum(c[name] for c in made), sum(theirs[c["id"]][name] for c in made)) for name in ("attempts", "correct", "tokens")}
    assert sums["attempts"][0] == sums["attempts"][1]
    assert abs(sums["correct"][0] - sums["correct"][1]) <= 8
    assert sums["tokens"][0] == pytest.approx(sums["tokens"][1], rel=0.15)


@pytest.mark.slow
def test_the_surprise_of_the_base_student_is_measured_again():
    """Of the first 12 held-out problems. Nothing is sampled, so that only rounding in bfloat16 differs."""
    source = os.environ.get("HEAL_REAL_STUDENT")
    if not source:
        pytest.skip("HEAL_REAL_STUDENT does not name the folder of the record's student")
    lm, (splits, _, references) = load_lm(source), W.make_problems()
    students = read_record("real-students")["students"]
    problems = {p.id: p for part in splits.values() for p in part}
    task = heal.ChatMathTask(lm.tokenizer, verify=False)
    made = S.surprises(references, lm, task, [problems[key] for key in students["problems"]["id"][:12]])
    base = next(run for run in students["runs"] if run["arm"] == "student")
    for metric, nats in made.items():
        assert sum(nats) == pytest.approx(sum(base[metric][:12]), rel=0.02)
