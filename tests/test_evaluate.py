"""pass@k against enumeration, intervals against known cases, AUROC against pairs."""

import itertools
import math

import numpy as np
import pytest

from heal_lab.stats import auroc, share_row
from heal_ref.config import SampleConfig
from heal_ref.evaluate import (
    Row,
    accuracy,
    evaluate,
    first_wrong_step,
    interval,
    is_genuine,
    paired_difference,
    pass_at_k,
    rows_from_report,
    rows_of,
)
from heal_ref.generation import sample


@pytest.mark.parametrize(("n", "c", "k"), [(1, 1, 1), (4, 0, 2), (5, 2, 2), (6, 3, 4), (8, 1, 8), (8, 8, 3)])
def test_pass_at_k_is_the_share_of_subsets_with_a_success(n, c, k):
    subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


@pytest.mark.parametrize(("n", "c", "k"), [(4, 5, 1), (4, 1, 5), (4, 1, 0), (4, -1, 2)])
def test_pass_at_k_refuses_nonsense(n, c, k):
    with pytest.raises(ValueError, match="pass@"):
        pass_at_k(n, c, k)


def test_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = sum(low <= 0.3 <= high for _, low, high in (interval(rng.random(150) < 0.3) for _ in range(200)))
    assert 178 <= hits <= 200  # 95 % of 200, with room for chance


def test_interval_with_weights_is_a_ratio_of_sums():
    mean, low, high = interval([3, 0, 1], [4, 2, 2])
    assert mean == 0.5
    assert low <= mean <= high
    assert all(math.isnan(x) for x in interval([], []))


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_equal_values_have_an_interval_without_width(value):
    """As the docstring says: the bootstrap does not see what is not in the sample."""
    assert interval([value] * 20) == (value, value, value)


def test_clusters_widen_the_interval(make):
    """Eight copies of one outcome are one observation."""
    copies = [make(str(p), correct=p % 2 == 0, index=i) for p in range(40) for i in range(8)]
    row = share_row("", "", "", [(t.problem.id, t.correct) for t in copies])
    assert 0.25 < row.high - row.low < 0.4


def test_auroc_counts_pairs():
    scores, positive = [1.0, 2.0, 2.0, 3.0, 0.0], [False, True, False, True, False]
    pairs = [(a > b) + 0.5 * (a == b) for a, p in zip(scores, positive, strict=True) if p
             for b, q in zip(scores, positive, strict=True) if not q]
    assert auroc(scores, positive) == pytest.approx(sum(pairs) / len(pairs))
    assert math.isnan(auroc([1.0], [True]))


def test_evaluate_reports_every_kind(teacher, task, validation):
    rows = evaluate(teacher, task, validation[::60], n=8, seed=0, arm="teacher")
    assert {r.kind for r in rows} == {p.kind for p in validation}
    assert {r.metric for r in rows} == {"pass@1", "pass@8", "genuine", "pass@1_greedy"}
    for r in rows:
        assert 0 <= r.low <= r.mean <= r.high <= 1
        assert r.n == 5
        assert set(r.rates) == {p.id for p in validation[::60] if p.kind == r.kind}
        assert r.mean == pytest.approx(np.mean(list(r.rates.values())))
    at = {(r.kind, r.metric): r for r in rows}
    for kind, metric in at:
        if metric == "pass@1":
            genuine, right, any_right = (at[kind, m].rates for m in ("genuine", "pass@1", "pass@8"))
            assert all(genuine[p] <= right[p] <= any_right[p] for p in right)


def test_evaluate_uses_all_of_its_sampling(teacher, task, validation):
    """The n samples and the greedy one are those that `sample` draws with these settings."""
    problems, sampling = validation[::60], SampleConfig(n=3, temperature=0.7, top_p=0.8, max_new_tokens=60)
    drawn = sample(teacher, task, problems, 2, seed=5, sampling=sampling)
    greedy = sample(teacher, task, problems, 1, seed=5, sampling=SampleConfig(temperature=0.0, max_new_tokens=60))
    rows = evaluate(teacher, task, problems, n=2, seed=5, sampling=sampling)
    assert rows == rows_of("model", teacher, task, drawn, greedy)
    assert rows != evaluate(teacher, task, problems, n=2, seed=5, sampling=SampleConfig(max_new_tokens=60))
    cut = evaluate(teacher, task, problems, n=1, sampling=SampleConfig(max_new_tokens=5))
    assert {r.mean for r in cut} == {0.0}


def test_accuracy_is_the_greedy_row(teacher, task, validation):
    problems = validation[::40]
    rows = evaluate(teacher, task, problems, n=1)
    assert accuracy(teacher, task, problems) == {r.kind: r.mean for r in rows if r.metric == "pass@1_greedy"}
    assert set(accuracy(teacher, task, problems, SampleConfig(max_new_tokens=5)).values()) == {0.0}


def test_rates_are_not_written_and_not_compared(teacher, task, validation):
    rows = evaluate(teacher, task, validation[:3], n=2)
    written = {"rows": [r.to_dict() for r in rows]}
    assert "rates" not in written["rows"][0]
    assert rows_from_report(written) == rows
    assert not rows_from_report(written)[0].rates
    assert Row("a", "k", "m", math.nan, math.nan, math.nan, 0).to_dict()["mean"] is None


def test_a_paired_difference_is_over_the_same_problems():
    rng = np.random.default_rng(0)
    hard = rng.random(60)  # problems differ much, the arms little: pairing sees it, two intervals do not
    a, b = (Row.of(arm, "frontier", "pass@1", {str(i): x + d for i, x in enumerate(hard)}) for arm, d in (("a", 0.05), ("b", 0.0)))
    difference = paired_difference(a, b)
    assert (difference.arm, difference.kind, difference.metric, difference.n) == ("a − b", "frontier", "pass@1", 60)
    assert difference.mean == pytest.approx(a.mean - b.mean)
    assert difference.low == pytest.approx(0.05)
    assert a.low < b.high
    assert difference.rates == pytest.approx(dict.fromkeys(a.rates, 0.05))
    noisy = Row.of("c", "frontier", "pass@1", {str(i): float(x > 0.5) for i, x in enumerate(rng.random(60))})
    wide = paired_difference(noisy, b)
    assert (wide.mean, wide.low, wide.high) == interval([noisy.rates[p] - b.rates[p] for p in noisy.rates])


def test_what_has_no_paired_difference_is_refused():
    a = Row.of("a", "frontier", "pass@1", {"p": 1.0, "q": 0.0})
    for other, message in ((Row.of("b", "shaky", "pass@1", a.rates), "frontier.*shaky"),
                           (Row.of("b", "frontier", "genuine", a.rates), "pass@1.*genuine"),
                           (Row.of("b", "frontier", "pass@1", {"p": 1.0, "r": 0.0}), "2 and 2 problems, 1 in common"),
                           (rows_from_report({"rows": [a.to_dict()]})[0], "2 and 0 problems.*read from a file have none")):
        with pytest.raises(ValueError, match=message):
            paired_difference(a, other)


def test_the_first_wrong_step_and_genuine_solutions(teacher, task, validation):
    """Against the checker's verdicts: genuine is right at the end and nowhere wrong before."""
    tried = sample(teacher, task, validation[::10], 2, seed=1)
    assert {(t.correct, first_wrong_step(teacher, task, t) is None) for t in tried} >= {(True, True), (False, False)}
    for t in tried:
        verdicts = task.check_steps(t.problem, [teacher.decode(t.step_ids(k)) for k in range(len(t.steps))])
        wrong = [k for k, right in enumerate(verdicts) if not right]
        assert first_wrong_step(teacher, task, t) == (wrong[0] if wrong else None)
        assert is_genuine(teacher, task, t) == (t.correct and not wrong)
