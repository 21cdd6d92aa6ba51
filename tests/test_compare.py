"""Two-way intervals by hand and by simulation; pairing; groups; what a difference allows one to say."""

import numpy as np
import pytest

from heal_lab.compare import Results, groups, values, verdict
from heal_lab.stats import pairs_interval, two_way_interval
from heal_ref.evaluate import Row, interval, pass_at_k

PROBLEMS = {"kind": ["easy", "easy", "hard", "hard"], "length": [3, 7, 4, 6]}


def run(arm, seed, correct, pair="shipped"):
    return {"pair": pair, "seed": seed, "arm": arm, "n": 4, "correct": correct, "genuine": [c // 2 for c in correct],
            "greedy": [int(c > 2) for c in correct]}


RECORD = {"problems": PROBLEMS, "runs": [
    run("rft", 0, [4, 4, 0, 0]), run("rft", 1, [4, 2, 0, 1]), run("rft", 2, [4, 4, 0, 0], "rebuilt"),
    run("heal", 0, [4, 4, 2, 2]), run("heal", 1, [4, 0, 4, 3])]}


def test_a_matrix_without_spread_has_no_interval():
    assert two_way_interval(np.full((5, 20), 0.25)) == pytest.approx((0.25, 0.25, 0.25))


def test_one_seed_gives_the_interval_over_problems():
    x = np.random.default_rng(1).random(200)
    mean, low, high = two_way_interval(x[None])
    one_way = interval(x)
    assert mean == pytest.approx(one_way[0])
    assert (low, high) == pytest.approx(one_way[1:], abs=5e-3)


def test_intervals_cover_the_truth():
    """Seeds and problems both drawn anew: about 95 of 100 intervals hold the true mean, and the one-way interval does not."""
    rng, hits, naive, times = np.random.default_rng(0), 0, 0, 150
    for _ in range(times):
        matrix = 0.3 * rng.normal(size=(7, 1)) + 0.5 * rng.normal(size=(1, 80)) + 0.5 * rng.normal(size=(7, 80))
        low, high = two_way_interval(matrix)[1:]
        hits += low <= 0 <= high
        low, high = interval(matrix.mean(0))[1:]
        naive += low <= 0 <= high
    assert 0.86 < hits / times < 0.99
    assert naive < hits - 0.1 * times


@pytest.mark.parametrize(("pairs", "spread"), [(3, 0.3), (6, 0.3), (6, 0.1)])
def test_intervals_over_few_pairs_cover_the_truth(pairs, spread):
    """About 95 of 100 hold the true mean, or a few more; the plain bootstrap misses it more often where pairs differ."""
    rng, hits, plain, times = np.random.default_rng(1), 0, 0, 150
    for _ in range(times):
        matrix = spread * rng.normal(size=(pairs, 1)) + 0.3 * rng.normal(size=(1, 60)) + 0.3 * rng.normal(size=(pairs, 60))
        mean, low, high = pairs_interval(matrix)
        assert mean == pytest.approx(matrix.mean())
        hits += low <= 0 <= high
        low, high = two_way_interval(matrix)[1:]
        plain += low <= 0 <= high
    assert hits / times > 0.91
    assert hits >= plain + (0.03 * times if spread > 0.2 else 0)


def test_one_pair_has_no_interval_over_pairs():
    x = np.random.default_rng(1).random((1, 50))
    assert pairs_interval(x) == two_way_interval(x)


def test_pairs_are_the_unit_and_their_seeds_are_averaged():
    runs = [run("heal", 0, [4, 4, 2, 2], "a"), run("heal", 1, [4, 4, 4, 4], "a"), run("heal", 0, [4, 4, 0, 0], "b"),
            run("rft", 0, [4, 4, 0, 0], "a"), run("rft", 0, [4, 4, 0, 0], "b")]
    record = {"problems": PROBLEMS, "unit": "pair", "runs": runs}
    results = Results(record)
    assert results.matrix("heal", "hard").tolist() == [[0.75, 0.75], [0, 0]]
    row = results.row("heal", "hard")
    assert (row.mean, row.seeds, results.unit, results.pairs("heal")) == (0.375, 3, "pair", ["a", "b"])
    assert results.difference("heal", "rft", "hard").mean == 0.25  # the second seed of pair a has no other side
    assert (row.low, row.high) == (0, 1)  # a share, although two pairs say next to nothing
    alone = Results(record, "a")
    assert (alone.unit, alone.seeds("heal")) == ("seed", [0, 1])


def test_long_problems_and_unseen_facts_have_groups_of_their_own():
    problems = {"kind": ["easy", "easy, long", "hard", "hard", "hard"], "length": [3, 7, 4, 6, 4],
                "seen": [True, True, True, False, True]}
    named = {name: members.tolist() for name, members in groups(problems).items()}
    assert named == {"easy": [0], "easy, 3-4 operations": [0], "easy, long": [1], "hard": [2, 3, 4], "hard, 3-4 operations": [2, 4],
                     "hard, 5-6 operations": [3], "hard, seen": [2, 4], "hard, unseen": [3]}
    ceiling = Results({"problems": problems, "runs": []}).ceiling_of_recall("hard", hours=10)
    assert (ceiling.mean, ceiling.n) == (pytest.approx((1 + 1 + 0.1) / 3), 3)


def test_groups_leave_long_chains_to_themselves():
    named = {name: members.tolist() for name, members in groups(PROBLEMS).items()}
    assert named == {"easy": [0], "easy, 3-4 operations": [0], "easy, 7-8 operations": [1],
                     "hard": [2, 3], "hard, 3-4 operations": [2], "hard, 5-6 operations": [3]}


def test_values_by_hand():
    mine = RECORD["runs"][1]
    assert values(mine, "pass@1").tolist() == [1, 0.5, 0, 0.25]
    assert values(mine, "pass@4").tolist() == [pass_at_k(4, c, 4) for c in (4, 2, 0, 1)]
    assert values(mine, "genuine").tolist() == [0.5, 0.25, 0, 0]
    assert values(mine, "pass@1_greedy").tolist() == [1, 0, 0, 0]


def test_differences_are_paired_over_common_seeds():
    results = Results(RECORD)
    row = results.difference("heal", "rft", "hard")
    assert row.mean == pytest.approx(((0.5 + 0.5) + (1.0 + 0.5)) / 4)  # seeds 0 and 1; the third one has no heal
    assert (row.arm, row.seeds, row.n) == ("heal − rft", 2, 2)
    assert results.row("rft", "hard").seeds == 3
    assert Results(RECORD, "rebuilt").arms == ["rft"]
    reverse = results.difference("rft", "heal", "hard")
    assert (reverse.low, reverse.high) == pytest.approx((-row.high, -row.low))


def test_every_arm_is_compared_with_every_other_that_matters():
    results = Results(RECORD)
    assert {r.metric for r in results.rows()} == {"pass@1", "pass@1_greedy", "pass@4", "genuine"}  # four samples: no pass@8
    assert {r.arm for r in results.differences(("heal", "rft"))} == {"rft − heal", "heal − rft"}
    assert {r.metric for r in results.rows() if "," in r.kind} == {"pass@1"}


def test_nothing_is_called_better_inside_the_noise():
    said = [verdict(Row("a − b", "k", "pass@1", 0.1, low, high, 9)) for low, high in ((0.01, 0.2), (-0.01, 0.2), (-0.2, -0.1))]
    assert said == ["better", "no difference shown", "worse"]
