"""PURE's evidence: scores by hand, the record follows from its raw numbers and can be made again, the explorer moves."""

import math

import pytest

from heal_lab import evidence_pure as E
from heal_lab.evidence import interleaved, read_record
from heal_lab.stats import auroc, cluster_interval, detected, share_row
from heal_ref.config import PureConfig
from heal_ref.evaluate import interval
from heal_ref.generation import sample
from heal_ref.pure import pure_scores
from heal_ref.records import limit_by_kind
from heal_ref.run.folder import batches
from heal_ref.run.sources import load_problems
from heal_ref.scoring import text_stats
from tests.conftest import DATA

RECORD = read_record("pure")


def test_detected_by_hand():
    genuine, spurious = list(range(20)), [18.5, 19.5, 30]
    flags = [False] * 20 + [True] * 3
    assert detected(genuine + spurious, flags, 0.05) == pytest.approx(2 / 3)  # 19 is the threshold, nothing genuine exceeds it
    assert detected(genuine + spurious, flags, 0.10) == 1.0  # one in ten may be lost: 18 is the threshold
    assert math.isnan(detected([1, 2], [True, True]))


def test_cluster_interval_widens_with_fewer_clusters():
    """200 scores that differ between four problems only: as 200 problems the interval is narrow, as four it is wide."""
    scored = [(str(i), 10 * (i % 4) + i % 3, (i % 4) + i % 3 > 2) for i in range(200)]
    four = [(str(i % 4), s, p) for i, (_, s, p) in enumerate(scored)]
    (mean, low, high), (mean4, low4, high4) = cluster_interval(scored), cluster_interval(four)
    assert mean == mean4 == auroc([s for _, s, _ in scored], [p for _, _, p in scored])
    assert low < mean < high
    assert high4 - low4 > 2 * (high - low)


def test_share_row_by_hand():
    row = share_row("arm", "kind", "share", [("p", True), ("p", True), ("q", False), ("r", True)])
    assert (row.arm, row.kind, row.metric, row.mean, row.n) == ("arm", "kind", "share", 0.75, 4)
    assert (row.low, row.high) == interval([2, 0, 1], [2, 1, 1])[1:]
    assert math.isnan(share_row("", "", "", []).mean)


@pytest.fixture(scope="module")
def guided(teacher, task, validation):
    problems = [p for p in validation if p.kind in ("frontier", "shaky")][::40]
    return [t for t in sample(teacher, task, problems, n=2, seed=0, guided=True) if t.correct]


def test_raw_scores_hold_what_every_score_needs(guided, teacher, task):
    raws = E.raw_scores(teacher, task, "guided", guided, m=2)
    for name, config in (("typicality", PureConfig()), ("forced", PureConfig(reading="forced", aggregate="mean"))):
        package = [s.score for s in pure_scores(teacher, task, guided, config)]
        assert [E.reading(r, config) for r in raws] == pytest.approx(package, rel=0.02, abs=0.02), name
    r, t = raws[0], guided[0]
    (_, plain), = text_stats(teacher, [(teacher.encode(t.prompt), t.token_ids)])
    assert E.BASELINES["total log-likelihood"](r) == pytest.approx(-sum(plain), rel=0.01)
    assert E.BASELINES["length"](r) == len(t.token_ids)
    assert E.BASELINES["likelihood ratio of the hint"](r) == pytest.approx(sum(t.logprob) - sum(plain), rel=0.02, abs=0.02)
    assert len(r["rollout"]) == len(r["forced"]) == len(t.steps)


def test_a_wrong_answer_is_led_to_and_never_genuine(teacher, task, validation):
    problems = [p for p in validation if p.kind in ("mastered", "frontier")][::20]
    led = E.wrongly_guided(teacher, task, problems, seed=0)
    assert len(led) > 5
    truth = {p.id: p for p in problems}
    for t in led:
        assert t.problem == truth[t.problem.id]
        assert t.answer != t.problem.answer
        assert not task.is_genuine(t.problem, [teacher.decode(t.step_ids(k)) for k in range(len(t.steps))])


def test_the_records_rows_follow_from_its_raw_scores():
    rows = {(r["arm"], r["kind"], r["metric"]): r for r in RECORD["rows"]}
    for row in E.filter_rows(RECORD["raw"]) + E.mix_rows(RECORD["raw"]):
        assert row.to_dict() == rows[row.arm, row.kind, row.metric]
    for source in E.HELPED:
        mine = [r for r in RECORD["raw"] if r["source"] == source]
        assert len(mine) >= 1100
        for name, f in {**E.functions(E.READINGS), **E.BASELINES}.items():
            expected = auroc([f(r) for r in mine], [not r["genuine"] for r in mine])
            assert rows[f"{source}: {name}", "all", "AUROC"]["mean"] == pytest.approx(expected)
    assert RECORD["provenance"]["threshold"] == pytest.approx(E.threshold_of(RECORD["raw"], PureConfig()))


@pytest.mark.slow
def test_the_records_intervals_follow_from_its_raw_scores():
    rows = [r.to_dict() for make in (E.detection_rows, E.filter_rows, E.mix_rows) for r in make(RECORD["raw"])]
    assert rows == [pytest.approx(r, abs=1e-9) for r in RECORD["rows"]]


def test_the_floor_saves_the_repairs_of_a_teacher_that_is_certain():
    """0.85 of the genuine ones pass, 0.99 of what passes is genuine; without a floor the threshold is noise."""
    record, shares = read_record("pure-certain"), {}
    repairs = E.groups_of(record["raw"], "repair")["shaky and frontier"]
    genuine = sum(r["genuine"] for r in repairs)
    for floor in (PureConfig().floor, 0.0):
        config = PureConfig(floor=floor)
        limit = E.threshold_of(record["raw"], config)
        passed = [r["genuine"] for r in repairs if E.reading(r, config) <= limit]
        shares[floor] = limit, sum(passed) / genuine, sum(passed) / len(passed)
    (limit, kept, after), (noise, kept_without, _) = shares.values()
    assert limit == record["provenance"]["threshold"] == pytest.approx(2 / 9)
    assert kept >= 0.85
    assert after >= 0.99
    assert (round(kept, 2), round(kept_without, 2), round(noise, 2), genuine) == (0.97, 0.59, 0.01, 37)  # notebook 03, LOG


@pytest.mark.parametrize("number", [12, pytest.param(2, marks=pytest.mark.slow)])
def test_part_of_a_batch_of_the_record_is_made_again(teacher, task, number):
    """The same seed gives the same trajectories and scores; on another machine nearly all of them. Batch 12 is half a one."""
    origin = RECORD["provenance"]
    heldout = limit_by_kind(load_problems(DATA / "clock" / "heldout.jsonl", task), origin["problems"] // 5)
    part = batches(interleaved(heldout), origin["batch"])[number]
    ids = {p.id for p in part}
    mine = E.pure_batch(teacher, task, part, number, origin["seed"], m=0)
    theirs = [r for r in RECORD["raw"] if r["id"] in ids]
    key = lambda r: (r["source"], r["id"], tuple(r["tokens"]), r["genuine"], round(sum(r["log_ppl"]), 1))  # noqa: E731
    same = {key(r) for r in mine} & {key(r) for r in theirs}
    assert len(mine) > 100
    assert len(same) > 0.9 * max(len({key(r) for r in mine}), len({key(r) for r in theirs}))
