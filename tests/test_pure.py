"""Ratios by hand, threshold, and that the filter cannot see the truth."""

import dataclasses
import math

import numpy as np
import pytest

from heal_lab.stats import auroc
from heal_ref.config import GearConfig, PureConfig
from heal_ref.evaluate import is_genuine
from heal_ref.gear import repair
from heal_ref.generation import sample
from heal_ref.pure import (
    aggregate,
    answer_uncertainty,
    pure_filter,
    pure_scores,
    pure_threshold,
    rescored,
    rollout_uncertainty,
    unaided,
)
from heal_ref.records import PureScore
from heal_ref.scoring import text_stats


class NoChecker:
    """A task whose checker must not be touched."""

    def __init__(self, task):
        self.task = task

    def __getattr__(self, name):
        assert name not in ("check_steps", "is_genuine"), "the method asked for the truth"
        return getattr(self.task, name)


@pytest.mark.parametrize(("kind", "expected"), [("worst", 5.0), ("worst_share", 4.5), ("mean", 2.8)])
def test_aggregate(kind, expected):
    assert aggregate([1.0, 5.0, 2.0, 4.0, 2.0], PureConfig(aggregate=kind, lam=0.4)) == pytest.approx(expected)


def test_threshold_and_filter(make):
    scored = [PureScore(make(str(i), correct=True), [], [], [], float(i)) for i in range(11)]
    config = PureConfig(keep_quantile=0.9, floor=0.0)
    assert pure_threshold(scored, config) == 9.0
    assert [t.problem.id for t in pure_filter(scored, config)] == [str(i) for i in range(10)]
    assert [t.problem.id for t in pure_filter(scored, config, reference=scored[:2])] == ["0"]
    assert len(pure_filter(scored, config, reference=[])) == 11  # nothing to calibrate on: nothing is dropped


def test_a_teacher_that_is_certain_sets_no_threshold_of_float_noise(make):
    """Two steps of two tokens: 2 nats a step are 1 nat a token."""
    certain = [PureScore(make(str(i), "ab|cd", correct=True), [], [], [], -6e-5) for i in range(9)]
    steps = [end - start for start, end in certain[0].trajectory.steps]
    assert pure_threshold(certain, PureConfig()) == pytest.approx(2 / np.median(steps))
    assert pure_threshold(certain, PureConfig(floor=0.5)) == pytest.approx(0.5 / np.median(steps))
    assert pure_threshold(certain, PureConfig(floor=0.0)) == 0.0
    assert pure_threshold(certain, PureConfig(reading="forced")) == -6e-5  # no nats
    genuine = PureScore(make("g", "ab|cd", correct=True), [], [], [], 0.01)
    assert pure_filter([genuine], PureConfig(), certain) == [genuine.trajectory]


def test_easy_problems_are_left_out_of_the_reference(make):
    def samples(name, right, of=4):
        return [make(name, "a|b", correct=i < right, index=i) for i in range(of)]

    base = [t for i in range(40) for t in samples(f"easy-{i}", 4)]
    base += [t for i in range(10) for t in samples(f"half-{i}", 2)] + [t for i in range(5) for t in samples(f"hard-{i}", 1)]
    base += samples("unsolved", 0)
    assert [t.index for t in unaided(base)] == [0] * 55
    assert {t.problem.id[:4] for t in unaided(base, seldom=0.5, least=15)} == {"half", "hard"}
    assert len(unaided(base, seldom=0.25, least=1)) == 5
    assert len(unaided(base, seldom=0.25, least=6)) == 15  # the next most seldom solved are all of the half-solved
    assert len(unaided(base, seldom=0.0, least=99)) == 55
    assert unaided(samples("unsolved", 0)) == []


@pytest.fixture(scope="module")
def candidates(teacher, task, validation):
    problems = [p for p in validation if p.kind in ("frontier", "shaky")][::12]
    guided = sample(teacher, task, problems, n=4, seed=0, guided=True)
    base = sample(teacher, task, problems, n=4, seed=1)
    return base, guided, repair(teacher, task, base, GearConfig(), seed=2)


def test_ratio_by_hand(candidates, teacher, task):
    """PPL / (U + ε) of one trajectory, step by step, from separate calls."""
    t = next(t for t in candidates[1] if t.correct)
    config = PureConfig(reading="forced", epsilon=0.25)
    scored = pure_scores(teacher, task, [t], config)[0]
    prompt = teacher.encode(t.prompt)
    logprob = text_stats(teacher, [(prompt, t.token_ids)])[0][1]
    for k, (a, b) in enumerate(t.steps):
        perplexity = math.exp(-sum(logprob[a:b]) / (b - a))
        context = prompt + t.token_ids[:a] + teacher.encode(task.elicit)
        uncertainty = text_stats(teacher, [(context, [5])])[0][0][0]
        assert scored.perplexity[k] == pytest.approx(perplexity, rel=1e-4)
        assert scored.uncertainty[k] == pytest.approx(uncertainty, abs=1e-4)
        assert scored.ratio[k] == pytest.approx(perplexity / (uncertainty + 0.25), rel=1e-4)
    assert scored.score == max(scored.ratio)


def test_typicality_is_surprise_beyond_own_entropy(candidates, teacher, task):
    t = next(t for t in candidates[1] if t.correct)
    s = pure_scores(teacher, task, [t], PureConfig(reading="typicality"))[0]
    assert s.ratio == pytest.approx([math.log(p) - u for p, u in zip(s.perplexity, s.uncertainty, strict=True)], abs=1e-4)


def test_numbers_alone_are_the_most_surprising_token_with_a_digit(candidates, teacher, task):
    right = [t for t in candidates[1] if t.correct]
    worded = dataclasses.replace(right[0], steps=[(0, 1), *[(max(a, 1), b) for a, b in right[0].steps]])  # a step of one word
    for t, s in zip([*right, worded], pure_scores(teacher, task, [*right, worded], PureConfig(reading="numbers")), strict=True):
        _, logprob = text_stats(teacher, [(teacher.encode(t.prompt), t.token_ids)])[0]
        for (a, b), r in zip(t.steps, s.ratio, strict=True):
            surprise = [-logprob[i] for i in range(a, b) if any(c.isdigit() for c in teacher.decode([t.token_ids[i]]))]
            assert r == pytest.approx(max(surprise, default=0.0), abs=1e-4)
        assert s.score == max(s.ratio)
        assert set(s.uncertainty) == {0.0}
    assert s.ratio[0] == 0.0
    again = rescored([s], PureConfig(reading="numbers", aggregate="mean"))[0]
    assert again.score == pytest.approx(np.mean(s.ratio), abs=1e-4)


def test_only_right_answers_are_scored_and_the_truth_is_never_asked_for(candidates, teacher, task):
    base, guided, repaired = candidates
    blind = NoChecker(task)
    scored = pure_scores(teacher, blind, guided)
    assert [s.trajectory for s in scored] == [t for t in guided if t.correct]
    pure_filter(scored, reference=pure_scores(teacher, blind, base))
    assert repair(teacher, blind, base, GearConfig(), seed=2) == repaired


def test_answer_gets_more_certain_along_a_right_solution(candidates, teacher, task):
    right = [t for t in candidates[0] if t.correct and t.problem.kind == "shaky"]
    uncertainty = answer_uncertainty(teacher, task, right)
    assert np.mean([u[-1] for u in uncertainty]) < 0.5 < np.mean([u[0] for u in uncertainty])


def test_filter_raises_the_genuine_share(candidates, teacher, task):
    base, guided, _ = candidates
    scored = pure_scores(teacher, task, guided)
    genuine = [is_genuine(teacher, task, s.trajectory) for s in scored]
    assert auroc([s.score for s in scored], [not g for g in genuine]) > 0.7
    kept = pure_filter(scored, reference=pure_scores(teacher, task, base))
    after = [is_genuine(teacher, task, t) for t in kept]
    assert sum(after) / len(after) > sum(genuine) / len(genuine) + 0.1


def test_hint_in_the_past_does_not_matter(candidates, teacher, task):
    """Scores depend on the text alone, not on how it came about."""
    t = next(t for t in candidates[2] if t.correct)
    other = dataclasses.replace(t, source="base", hint=None, entropy=[0.0] * len(t.token_ids))
    a, b = pure_scores(teacher, task, [t, other])
    assert a.ratio == b.ratio


def test_rollout_uncertainty_counts_answers(make, random_lm, task, monkeypatch):
    """Entropy of the empirical distribution of answers, unfinished texts counted as an answer of their own."""
    from heal_ref import pure
    from heal_ref.generation import Rollout

    ids = {w: random_lm.encode(f"So the answer is \\boxed{{{w}}}.") for w in (3, 4)}
    ends = [Rollout(ids[3], [], [], True)] * 2 + [Rollout(ids[4], [], [], True), Rollout([], [], [], False)]
    monkeypatch.setattr(pure, "generate", lambda *a, **k: ends)
    t = make(text="x", correct=True)
    t = dataclasses.replace(t, token_ids=random_lm.encode("We start at 3.\n\n"), steps=[(0, 4)], prompt="Problem: Start 3")
    (u,) = pure.rollout_uncertainty(random_lm, task, [t], m=4)[0]
    assert u == pytest.approx(-(0.5 * math.log(0.5) + 2 * 0.25 * math.log(0.25)))


def test_rollout_uncertainty_of_the_teacher(candidates, teacher, task):
    """Open before the shaky step, settled behind the last operation; the same seed gives the same numbers."""
    right = [t for t in candidates[0] if t.correct and t.problem.kind == "shaky"][:12]
    u = rollout_uncertainty(teacher, task, right, m=4, seed=0)
    assert [len(row) for row in u] == [len(t.steps) for t in right]
    assert np.mean([row[0] for row in u]) > np.mean([row[-1] for row in u]) + 0.3
    assert all(0 <= x <= math.log(4) + 1e-9 for row in u for x in row)
    assert u == rollout_uncertainty(teacher, task, right, m=4, seed=0)


def test_rescored_is_scoring_again(candidates, teacher, task):
    good = [t for t in candidates[1] if t.correct][:6]
    first = pure_scores(teacher, task, good, PureConfig(reading="forced", epsilon=0.1))
    other = PureConfig(reading="forced", epsilon=2.0, aggregate="mean")
    for a, b in zip(rescored(first, other), pure_scores(teacher, task, good, other), strict=True):
        assert a.ratio == pytest.approx(b.ratio, abs=1e-4)
        assert a.score == pytest.approx(b.score, abs=1e-4)
