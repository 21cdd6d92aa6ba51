"""The recorded evidence can be made again; counting by hand; the benchmark runs."""

import json

import pytest

from heal_lab import evidence as E
from heal_lab.bench import bench_sample, random_lm
from heal_ref.config import GearConfig
from heal_ref.records import Problem, limit_by_kind
from heal_ref.run.folder import batches
from heal_ref.run.sources import load_problems
from tests.conftest import DATA

RECORD = E.read_record("gear")


def test_interleaved():
    problems = [Problem(f"{k}{i}", "q", "1", k) for k, n in (("a", 3), ("b", 1)) for i in range(n)]
    assert [p.id for p in E.interleaved(problems)] == ["a0", "b0", "a1", "a2"]
    assert E.interleaved([]) == []


class FirstCharacter:
    """A checker for hand-made trajectories: a step is right unless it begins with x."""

    def check_steps(self, problem, steps):
        return [not s.startswith("x") for s in steps]

    def is_genuine(self, problem, steps):
        return all(self.check_steps(problem, steps))


class Letters:
    def decode(self, ids):
        return "".join(map(chr, ids))


def test_localisation_counted_by_hand(make):
    low, high = [0.1, 0.1], [0.9, 0.9]
    base = [make("p", "a|x|c|", entropy=low + high + low), make("p", "a|x|c|", index=1, entropy=low + low + high),
            make("p", "a|b|c|", index=2), make("p", "a|b|c|", index=3, correct=True)]
    (counts,) = E.localisation_counts(Letters(), FirstCharacter(), base, {"rise": GearConfig()})
    assert counts == {"id": "p", "kind": "", "failed": 2, "rise": 1, E.RANDOM: 0.666667, E.LATER: 1.0}  # of three steps or two
    rows = {r.arm: r for r in E.localisation_rows([counts])}
    assert rows["rise"].mean == rows[E.LATER].mean == 0.5
    assert rows["rise"].n == 2


def test_outcomes_counted_by_hand(make):
    tried = [make("p", "a|b", correct=True), make("p", "a|x", correct=True, index=1), make("p", "a|b", index=2), make("q", "a")]
    counts = E.outcome_counts(Letters(), FirstCharacter(), "arm", tried)
    assert counts[0] == {"id": "p", "kind": "", "arm": "arm", "attempts": 3, "correct": 2, "genuine": 1, "tokens": 12}
    rows = {r.metric: r.mean for r in E.repair_rows(counts)}
    assert rows["correct"] == pytest.approx(2 / 4)
    assert rows["genuine if correct"] == pytest.approx(1 / 2)
    assert rows["problems with a genuine one"] == pytest.approx(1 / 2)
    assert rows["genuine per 1,000 tokens"] == pytest.approx(1000 / 14)


def test_a_repair_without_a_usable_hint_is_no_attempt_but_its_tokens_and_problem_count(make):
    """Of p one hint is usable and one is not; of q none is."""
    tried = [make("p", "a|b", correct=True, source="repair", hint="h"), make("p", "a|", source="repair", note="hint unreadable"),
             make("q", "a|", source="repair", note="hint states the answer")]
    p, q = E.outcome_counts(Letters(), FirstCharacter(), "arm", tried)
    assert p == {"id": "p", "kind": "", "arm": "arm", "attempts": 1, "correct": 1, "genuine": 1, "tokens": 4 + 3}
    assert q == {"id": "q", "kind": "", "arm": "arm", "attempts": 0, "correct": 0, "genuine": 0, "tokens": 3}
    rows = {r.metric: r for r in E.repair_rows([p, q])}
    assert rows["problems with a genuine one"].mean == 0.5
    assert rows["problems with a genuine one"].n == 2
    assert rows["correct"].mean == 1.0
    assert rows["tokens a problem"].mean == 5.0


def test_hint_evidence_counts_what_is_refused(teacher, task, validation, tmp_path):
    problems = [p for p in validation if p.kind in ("mastered", "frontier")][295:335]
    record = E.hint_evidence(teacher, task, problems, seed=0)
    E.write_record(tmp_path / "hint-rule.json", record)
    rows = {(r["arm"], r["kind"], r["metric"]): r for r in json.loads((tmp_path / "hint-rule.json").read_text())["rows"]}
    kinds = {kind for _, kind, _ in rows}
    assert kinds == {"frontier", "unlearnt operator last", "unlearnt operator earlier"}
    accepted, refused = ({kind: rows[arm, kind, "usable hints"]["mean"] for kind in kinds}
                         for arm in (E.ACCEPTED, E.DEFAULT))
    assert refused["unlearnt operator last"] < 0.5 < accepted["unlearnt operator last"]
    assert refused["frontier"] < accepted["frontier"] <= 1
    assert record["provenance"]["problems"] == 35


def test_breaks_are_measured_with_and_without_a_restating_step(teacher, task, validation):
    problems = [p for p in validation if p.kind in ("mastered", "frontier")][290:320]
    record = E.break_evidence(teacher, task, problems)
    rows = {(r["arm"], r["kind"]): r for r in record["rows"]}
    assert not [kind for _, kind in rows if "mastered" in kind]
    whole, first = "frontier, not restated", "frontier, not restated, broken in the first step"
    assert rows["max rise", whole]["n"] > rows["max rise", first]["n"] > 0
    assert rows["mean surge", first]["mean"] == 0.0  # no surge can choose the first step
    assert rows["max rise", first]["mean"] > 0.5
    assert rows["max rise", whole]["mean"] > rows["mean surge", whole]["mean"] > rows[E.RANDOM, whole]["mean"]
    assert 0.1 < rows[E.RANDOM, "frontier, restated"]["mean"] < rows[E.RANDOM, whole]["mean"]


def test_the_records_rows_follow_from_its_counts():
    rows = [r.to_dict() for r in E.localisation_rows(RECORD["localisation"]) + E.repair_rows(RECORD["repair"])]
    assert rows == RECORD["rows"]
    failures = {r["kind"]: r["n"] for r in RECORD["rows"] if r["arm"] == "mean surge"}
    assert failures.pop("mastered") > 800  # of 24,000 samples
    assert min(failures.values()) >= 1000


@pytest.mark.parametrize("number", [12, pytest.param(1, marks=pytest.mark.slow)])
def test_a_batch_of_the_record_is_made_again(teacher, task, number):
    """Same seed, same machine: the same counts; on another machine nearly all of them. Batch 12 is half a one."""
    origin = RECORD["provenance"]
    heldout = load_problems(DATA / "clock" / "heldout.jsonl", task)
    heldout = limit_by_kind(heldout, origin["problems"] // 5)
    part = batches(E.interleaved(heldout), origin["batch"])[number]
    ids = {p.id for p in part}
    arms = [E.DEFAULT, "answer at random step"]
    made = E.gear_batch(teacher, task, part, number, origin["seed"], arms)
    for mine, theirs, numbers in (
            (made["localisation"], [c for c in RECORD["localisation"] if c["id"] in ids], ("failed", "max rise", "mean surge")),
            (made["repair"], [c for c in RECORD["repair"] if c["id"] in ids and c["arm"] in arms], ("correct", "genuine"))):
        theirs = {(c["id"], c.get("arm")): c for c in theirs}
        same = [all(c[n] == theirs.get((c["id"], c.get("arm")), c | {n: -1})[n] for n in numbers) for c in mine]
        assert len(mine) > 20
        assert sum(same) / len(same) > 0.95


def test_record_file_is_plain_json(tmp_path):
    record = {"rows": [{"a": 1}, {"a": None}], "provenance": {"seed": 0}, "empty": []}
    E.write_record(tmp_path / "r.json", record)
    assert json.loads((tmp_path / "r.json").read_text()) == record


# ------------------------------------------------------------------------------------ speed


def test_bench_runs_and_its_check_can_fail(monkeypatch):
    lm = random_lm(hidden=64, layers=2, vocabulary=100)
    small = {"rounds": 1, "prefix": 20, "new_tokens": 4, "n": 3, "batch": 2, "lm": lm}
    recording, sharing = bench_sample(**small)
    assert recording.ratio > 0
    assert "greedy texts equal" in str(sharing)
    from heal_lab import bench

    def broken_generate(lm, contexts, tails=None, **more):
        return bench_generate(lm, [c[:-1] for c in contexts], tails, **more)

    bench_generate = bench.generate
    monkeypatch.setattr(bench, "generate", broken_generate)
    with pytest.raises(AssertionError, match="changed the greedy text"):
        bench_sample(**small)
