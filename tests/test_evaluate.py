"""pass@k against enumeration, intervals against known cases, AUROC against pairs."""

import itertools
import math

import numpy as np
import pytest

from heal_lab.scores import auroc, share
from heal_ref.evaluate import evaluate, interval, pass_at_k


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


def test_clusters_widen_the_interval(make):
    """Eight copies of one outcome are one observation."""
    copies = [make(str(p), correct=p % 2 == 0, index=i) for p in range(40) for i in range(8)]
    _, low, high = share(copies, lambda t: t.correct)
    assert 0.25 < high - low < 0.4


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
    at = {(r.kind, r.metric): r.mean for r in rows}
    assert all(at[k, "genuine"] <= at[k, "pass@1"] <= at[k, "pass@8"] for k, m in at if m == "pass@1")
