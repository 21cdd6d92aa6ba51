"""Breakpoints on hand-made curves; repairs by the shipped teacher; no hint in any target."""

from collections import Counter

import pytest

from heal_ref.config import GearConfig
from heal_ref.evaluate import is_genuine
from heal_ref.gear import choose_paths, find_breakpoint, repair
from heal_ref.lm import sample

CURVE = [0.9, 0.3, 0.4, 1.5, 1.6, 0.2]


@pytest.mark.parametrize(("window", "signal", "expected"), [
    (1.0, "surge", 3),  # 1.5 − 0.4 is the largest rise
    (1.0, "level", 4),  # 1.6 is the highest
    (0.5, "surge", 2),  # ⌈0.5 · 6⌉ = 3 steps: only 0.3 and 0.4 have a surge
    (0.5, "level", 0),
    (0.51, "surge", 3),  # ⌈3.06⌉ = 4 steps
    (1 / 6, "surge", None),  # one step, which has no surge
])
def test_find_breakpoint(window, signal, expected):
    assert find_breakpoint(CURVE, window, signal) == expected


def test_find_breakpoint_without_steps():
    assert find_breakpoint([]) is None
    assert find_breakpoint([1.0]) is None


def test_choose_paths_counts_what_it_passes_over(make):
    base = [make("solved", correct=True), make("solved", index=1), make("short", text="ab"), make("hard"),
            make("hard", index=1), make("hard", index=2), make("nearly", correct=True), make("nearly", index=1)]
    chosen, passed = choose_paths(base, GearConfig(paths=2))
    assert [(t.problem.id, t.index) for t, _ in chosen] == [("hard", 0), ("hard", 1)]
    assert passed == {"problem solved often enough": 2, "no step to cut at": 1, "enough paths of this problem": 1}
    chosen, passed = choose_paths(base, GearConfig(max_correct=1, paths=9))
    assert {t.problem.id for t, _ in chosen} == {"solved", "hard", "nearly"}
    assert passed["trajectory correct already"] == 2


@pytest.fixture(scope="module")
def repaired(teacher, task, validation):
    problems = [p for p in validation if p.kind == "frontier"][:30]
    base = sample(teacher, task, problems, n=4, seed=3)
    counts = Counter()
    config = GearConfig(paths=2, hints=2, continuations=3)
    return base, repair(teacher, task, base, config, seed=4, counts=counts), counts, config


def test_numbers_of_repairs_add_up(repaired):
    base, out, counts, config = repaired
    paths, _ = choose_paths(base, config)
    unreadable = counts["hint unreadable or cut off"]
    assert len(out) == (len(paths) * config.hints - unreadable) * config.continuations
    assert counts["problem solved often enough"] > 0


def test_repair_keeps_prefix_and_leaves_the_hint_out(repaired, teacher):
    base, out, _, _ = repaired
    parents = {(t.problem.id, t.index): t for t in base}
    for t in out:
        parent = parents[t.problem.id, t.parent]
        cut = parent.steps[t.breakpoint][0]
        assert t.kind == "repair"
        assert t.token_ids[:cut] == parent.token_ids[:cut]
        assert t.breakpoint == find_breakpoint(parent.step_entropy)
        assert len(t.entropy) == len(t.logprob) == len(t.token_ids)
        assert "Hint" not in t.text
        assert t.hint not in t.text
        assert t.text == teacher.decode(t.token_ids)
        assert t.prompt == parent.prompt
        assert "Answer" not in t.prompt
        assert t.tokens_spent > len(t.token_ids) - cut


def test_bridge_hint_does_not_state_the_answer_prompt(repaired):
    assert all(t.hint.startswith("this step gives ") for t in repaired[1])


def test_teacher_is_lifted_over_its_ceiling(repaired, teacher, task):
    """Of problems unsolved in all samples, more than half get a repair that is right in every step."""
    base, out, _, _ = repaired
    genuine = {t.problem.id for t in out if is_genuine(teacher, task, t)}
    tried = {t.problem.id for t in out}
    assert len(tried) > 12
    assert len(genuine) > len(tried) / 2


def test_same_seed_same_repairs(repaired, teacher, task):
    base, out, _, config = repaired
    assert repair(teacher, task, base, config, seed=4) == out


def test_answer_hint_states_the_answer(repaired, teacher, task):
    out = repair(teacher, task, repaired[0][:8], GearConfig(hint="answer", paths=1), seed=0)
    assert out
    assert all(t.hint == f"the answer is {t.problem.answer}" and "Hint" not in t.text for t in out)


def test_nothing_to_repair(make, random_lm, task):
    assert repair(random_lm, task, [make(correct=True)]) == []
    assert repair(random_lm, task, []) == []
