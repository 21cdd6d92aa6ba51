"""Breakpoints on hand-made curves; repairs by the shipped teacher; no hint in any target."""

from collections import Counter
from dataclasses import replace

import pytest

from heal_ref.config import GearConfig, PaceConfig, SampleConfig
from heal_ref.entropy import step_values
from heal_ref.evaluate import is_genuine
from heal_ref.gear import breakpoint_of, choose_paths, find_breakpoint, repair
from heal_ref.generation import generate, sample
from heal_ref.pace import build_stages
from heal_ref.train import encode_example

CURVE = [0.9, 0.3, 0.4, 1.5, 1.6, 0.2]


@pytest.mark.parametrize(("window", "signal", "expected"), [
    (1.0, "surge", 3),  # 1.5 − 0.4 is the largest rise
    (1.0, "level", 4),  # 1.6 is the highest
    (1.0, "relative", 3),  # 1.5 / 0.4 is the largest ratio
    (0.5, "relative", 2),
    (0.5, "surge", 2),  # ⌈0.5 · 6⌉ = 3 steps: only 0.3 and 0.4 have a surge
    (0.5, "level", 0),
    (0.51, "surge", 3),  # ⌈3.06⌉ = 4 steps
    (1.0, "rise", 3),
    (1 / 6, "rise", 0),
    (1 / 6, "surge", None),  # one step, which has no surge
])
def test_find_breakpoint(window, signal, expected):
    assert find_breakpoint(CURVE, window, signal) == expected


@pytest.mark.parametrize(("curve", "expected"), [
    ([2.0, 0.1, 0.3, 0.2], 0),  # the chain breaks where it begins: no other signal of difference can say so
    ([0.2, 0.1, 0.3, 1.5], 3), ([0.1, 0.0, 0.9, 1.1], 2),  # the second of two high steps is less of a rise
    ([0.7], 0)])
def test_a_rise_may_be_the_first_step(curve, expected):
    assert find_breakpoint(curve, signal="rise") == expected


def test_find_breakpoint_without_steps():
    assert find_breakpoint([], signal="rise") is None
    assert find_breakpoint([]) is None
    assert find_breakpoint([1.0]) == 0
    assert find_breakpoint([1.0], signal="surge") is None


def test_find_breakpoint_refuses_an_unknown_signal():
    with pytest.raises(ValueError, match="breakpoint_of"):
        find_breakpoint(CURVE, signal="random")


def test_choose_paths_counts_what_it_passes_over(make):
    base = [make("solved", correct=True), make("solved", index=1), make("short", text="ab"), make("hard"),
            make("hard", index=1), make("hard", index=2), make("nearly", correct=True), make("nearly", index=1)]
    chosen, passed = choose_paths(base, GearConfig(paths=2), breakpoint_by(GearConfig(signal="surge")))
    assert [(t.problem.id, t.index) for t, _ in chosen] == [("hard", 0), ("hard", 1)]
    assert passed == {"problem solved often enough": 4, "no boundary in the window to cut at": 1,
                      "enough paths of this problem": 1}
    chosen, passed = choose_paths(base, GearConfig(max_correct=1, paths=9), breakpoint_by(GearConfig(signal="surge")))
    assert {t.problem.id for t, _ in chosen} == {"solved", "hard", "nearly"}
    assert passed["correct already"] == 2


def breakpoint_by(config):
    return lambda t: breakpoint_of(t, config)


@pytest.fixture(scope="module")
def repaired(teacher, task, validation):
    problems = [p for p in validation if p.kind == "frontier"][:30]
    base = sample(teacher, task, problems, n=4, seed=3)
    counts = Counter()
    config = GearConfig(paths=2, hints=2, continuations=3)
    return base, repair(teacher, task, base, config, seed=4, counts=counts), counts, config


def test_numbers_of_repairs_add_up(repaired):
    base, out, counts, config = repaired
    paths, _ = choose_paths(base, config, breakpoint_by(config))
    unusable = [t for t in out if t.hint is None]
    usable = len(paths) * config.hints - len(unusable)
    assert len(out) - len(unusable) == usable * config.continuations
    assert Counter(t.note for t in unusable) == {
        note: n for note, n in counts.items() if note.startswith("hint")}
    assert counts["problem solved often enough"] > 0


def test_repair_keeps_prefix_and_leaves_the_hint_out(repaired, teacher):
    base, out, _, _ = repaired
    parents = {(t.problem.id, t.index): t for t in base}
    for t in (t for t in out if t.hint is not None):
        parent = parents[t.problem.id, t.parent]
        cut = parent.steps[t.breakpoint][0]
        assert t.source == "repair"
        assert t.token_ids[:cut] == parent.token_ids[:cut]
        assert t.breakpoint == find_breakpoint(step_values(parent.entropy, parent.steps, "max"))
        assert len(t.entropy) == len(t.logprob) == len(t.token_ids)
        assert "Hint" not in t.text
        assert t.hint not in t.text
        assert t.text == teacher.decode(t.token_ids)
        assert t.prompt == parent.prompt
        assert "Answer" not in t.prompt
        assert t.tokens_spent > len(t.token_ids) - cut


def test_no_bridge_hint_states_the_answer(repaired, teacher, task):
    """Not even where the step that the hint is for is the last one, whose result is the answer."""
    base, out, counts, config = repaired
    assert all(t.hint == f"this step gives {t.hint.split()[-1]}" for t in out if t.hint)
    assert not [t for t in out if t.hint and t.hint.split()[-1] == t.problem.answer]
    assert counts["hint states the answer"] > 0
    allowed = repair(teacher, task, base, replace(config, refuse_answers=False), seed=4)
    assert [t for t in allowed if t.hint.split()[-1] == t.problem.answer]


def test_a_hint_that_cannot_be_used_ends_at_the_cut(repaired, task):
    base, out, _, _ = repaired
    parents = {(t.problem.id, t.index): t for t in base}
    stubs = [t for t in out if t.hint is None]
    assert stubs
    for t in stubs:
        parent = parents[t.problem.id, t.parent]
        assert t.token_ids == parent.token_ids[: parent.steps[t.breakpoint][0]]
        assert (t.answer, t.correct, t.finished) == (None, False, False)
        assert t.note == "hint states the answer"
        assert t.tokens_spent > 0


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


def test_step_aggregates(make):
    t = make(text="ab|cd|ef", entropy=[0.1, 0.1, 0.1, 0.9, 0.2, 0.2, 0.3, 1.0])
    assert step_values(t.entropy, t.steps, "mean") == pytest.approx(t.step_entropy)
    assert step_values(t.entropy, t.steps, "max") == [0.1, 0.9, 1.0]
    assert step_values(t.entropy, t.steps, "first") == [0.1, 0.9, 0.3]
    assert breakpoint_of(t, GearConfig(step="mean", signal="surge")) == 1
    assert breakpoint_of(t, GearConfig(step="max", signal="level")) == 2
    assert breakpoint_of(t, GearConfig(step="first", signal="surge")) == 1
    assert breakpoint_of(t, GearConfig()) == 1  # 0.9 is 0.8 over the step before, 1.0 only 0.5 over the mean of both


def test_random_breakpoints_cover_the_window_evenly(make):
    config = GearConfig(signal="random", window=0.8)  # ⌈0.8 · 5⌉ = 4 steps
    text = "a|b|c|d|e"
    picks = Counter(breakpoint_of(make(text=text, index=i), config, seed=1) for i in range(600))
    assert set(picks) == {0, 1, 2, 3}
    assert min(picks.values()) > 110
    assert breakpoint_of(make(text=text), config, 1) == breakpoint_of(make(text=text), config, 1)
    assert breakpoint_of(make(text="a"), config) == 0


def test_a_cut_of_ones_own(repaired, teacher, task):
    out = repair(teacher, task, repaired[0][:8], GearConfig(paths=1), seed=0, cut=lambda t: 1 if t.index == 1 else None)
    assert out
    assert {(t.parent, t.breakpoint) for t in out} == {(1, 1)}


def test_a_wrong_answer_hint_states_the_wrong_answer_of_its_path(repaired, teacher, task):
    base = repaired[0][:8]
    out = repair(teacher, task, base, GearConfig(hint="wrong_answer", paths=1), seed=0)
    answers = {(t.problem.id, t.index): t.answer for t in base}
    assert out
    assert all(t.hint == f"the answer is {answers[t.problem.id, t.parent]}" for t in out)
    assert all(answers[t.problem.id, t.parent] != t.problem.answer for t in out)


def test_without_a_hint_the_kept_steps_are_continued_and_nothing_else(repaired, teacher, task):
    """Greedily, the continuation is what the teacher itself writes after the prompt and the kept steps."""
    base, greedy = repaired[0][:40], SampleConfig(temperature=0.0)
    out = repair(teacher, task, base, GearConfig(hint="none", paths=1, hints=2), seed=0, sampling=greedy)
    parents = {(t.problem.id, t.index): t for t in base}
    assert out
    for t in out:
        cut = parents[t.problem.id, t.parent].steps[t.breakpoint][0]
        kept = parents[t.problem.id, t.parent].token_ids[:cut]
        (alone,) = generate(teacher, [teacher.encode(t.prompt) + kept], sampling=greedy, seed=0)
        assert t.token_ids == kept + alone.ids
        assert (t.hint, t.note, t.tokens_spent) == ("", "", alone.tokens_spent)
    assert len(out) == 4 * len({t.problem.id for t in out})  # two empty hints, two continuations of each


def test_every_token_is_charged_to_the_problem_that_it_was_spent_on(repaired, teacher, task):
    base, spent = repaired[0], []

    class Watched(type(task)):
        """Every third hint is unreadable; what the teacher wrote is noted in order."""

        def read_hint(self, text, answer):
            spent.append(len(teacher.encode(text)) + 1)
            return None if len(spent) % 3 == 0 else super().read_hint(text, answer)

    config, counts = GearConfig(paths=2, hints=3, continuations=2), Counter()
    out = repair(teacher, Watched(), base, config, seed=0, counts=counts)
    paths, _ = choose_paths(base, config, breakpoint_by(config))
    cuts = {(t.problem.id, t.index): t.steps for t in base}
    cost = Counter()
    for t in out:  # what was generated after the cut is the continuation, the rest is the hint's
        cut = cuts[t.problem.id, t.parent][t.breakpoint][0]
        cost[t.problem.id, t.parent] += t.tokens_spent - (len(t.token_ids) - cut + t.finished)
    assert counts["hint unreadable"] == len(spent) // 3
    assert len(spent) % 3 == 0, "the last hint is one of those that cannot be used"
    assert cost == {(t.problem.id, t.index): sum(spent[3 * i : 3 * i + 3]) for i, (t, _) in enumerate(paths)}


def test_a_hint_cut_off_by_the_length_limit_is_counted(repaired, teacher, task):
    counts = Counter()
    short = SampleConfig(max_new_tokens=2)
    out = repair(teacher, task, repaired[0], GearConfig(paths=1), seed=0, sampling=short, counts=counts)
    assert {t.note for t in out} == {"hint cut off by the length limit"}
    assert counts["hint cut off by the length limit"] == len(out) > 0
    assert sum(t.tokens_spent for t in out) == 2 * len(out)


def test_no_hint_token_reaches_the_student(repaired, teacher, task):
    """From repair to the ids that the loss sees: neither hint nor answer prompt is there."""
    stages = build_stages(repaired[0], [], [t for t in repaired[1] if t.correct], PaceConfig(per_problem=99))
    words = ("Hint: ", "this step gives ", "the answer is ", "\nAnswer: ", "Working back: ", "undo", "Quick answer: ")
    forbidden = {teacher.tokenizer.convert_tokens_to_ids(w) for w in words}
    assert teacher.tokenizer.unk_token_id not in forbidden
    rows = [row for row in stages["repaired"] if row["source"] == "repair"]
    assert len(rows) > 20
    for row in rows:
        assert not forbidden & set(encode_example(teacher.tokenizer, row["prompt"], row["completion"])["input_ids"])


def test_nothing_to_repair(make, random_lm, task):
    assert repair(random_lm, task, [make(correct=True)]) == []
    assert repair(random_lm, task, []) == []


# -------------------------------------------------------------------------------------------- hindsight steps


@pytest.fixture(scope="module")
def failed(teacher, task, validation):
    hard = [p for p in validation if p.kind == "frontier"][:24]
    return sample(teacher, task, hard, 2, seed=4)


def test_a_hindsight_step_stays_in_the_solution(teacher, task, failed):
    config = GearConfig(hint="step", refuse_answers=False, continuations=2)
    tried = repair(teacher, task, failed, config, seed=5)
    base = {(t.problem.id, t.index): t for t in failed}
    done = [t for t in tried if t.hint is not None]
    assert len(done) > 20
    for t in done:
        parent = base[t.problem.id, t.parent]
        kept = parent.token_ids[: parent.steps[t.breakpoint][0]]
        written = teacher.encode(t.hint)
        assert t.token_ids[: len(kept) + len(written)] == kept + written
        assert t.hint.endswith("\n\n")
        assert t.step_texts[t.breakpoint] == t.hint
        assert len(t.entropy) == len(t.logprob) == len(t.token_ids)
        assert t.prompt == task.prompt(t.problem)  # the student never sees the answer
    costs = {(t.problem.id, t.parent): 0 for t in done}
    for t in done:  # the first continuation of a step also pays for it
        costs[t.problem.id, t.parent] += t.tokens_spent
    cut = {key: base[key] for key in costs}
    made = sum(len(t.token_ids) - base[t.problem.id, t.parent].steps[t.breakpoint][0] + t.finished for t in done)
    steps = sum(len(teacher.encode(t.hint)) for t in done)
    assert sum(costs.values()) == made - steps + steps // 2
    assert len(cut) == len(done) // 2


def test_a_step_is_written_with_the_answer_in_view_and_continued_without(teacher, task, failed, monkeypatch):
    import heal_ref.gear as gear
    seen = []
    real = gear.generate
    monkeypatch.setattr(gear, "generate", lambda lm, contexts, *a, **k: seen.append((contexts, k)) or real(lm, contexts, *a, **k))
    repair(teacher, task, failed[:2], GearConfig(hint="step", paths=1, refuse_answers=False))
    (asked, how), (continued, _) = seen
    problem = failed[0].problem
    assert teacher.decode(asked[0]).startswith(task.guided_prompt(problem, problem.answer))
    assert how["until"] == task.separator
    assert teacher.decode(continued[0]).startswith(task.prompt(problem))


@pytest.mark.parametrize(("text", "finished", "refuse", "note"), [
    ("Then compute 8 # 4 = 20.\n\n", False, True, ""),
    ("Then compute 8 # 4 = 17.\n\n", False, True, "step states the answer"),
    ("Then compute 8 # 4 = 17.\n\n", False, False, ""),
    ("Then compute 8 # 4 = 20.", False, True, "step cut off by the length limit"),
    ("\n\nThen compute 8 # 4 = 20.", False, True, "step cut off by the length limit"),
    ("\n\nThen compute 8 # 4 = 20.\n\n", False, True, ""),
    ("Then compute 8 # 4 = 20.", True, True, "step ends the solution"),
    ("So the answer is \\boxed{17}.\n\n", False, False, "step ends the solution"),
    ("\n\n", False, True, "step empty, or mentions its help")])
def test_which_steps_can_be_used(teacher, task, make, text, finished, refuse, note):
    from heal_ref.gear import _read_step
    from heal_ref.generation import Rollout
    from heal_ref.records import Problem
    t = replace(make("p"), problem=Problem("p", "Start 5; + 3; # 4; * 2", "17"))
    ids = teacher.encode(text)
    hint = _read_step(teacher, task, t, Rollout(ids, [0.0] * len(ids), [0.0] * len(ids), finished),
                      GearConfig(hint="step", refuse_answers=refuse))
    assert hint.note == note
    assert (hint.text is None) == bool(note)
    assert hint.tokens_spent == len(ids) + finished


@pytest.mark.parametrize(("text", "thinks", "note"), [
    ("undo * 2 from 17: 20, this step gives 20.\n\n", False, ""),
    ("undo * 2 from 17: 20, this step gives 20.\n\n", True, "hint cut off by the length limit"),
    ("undo * 2 from 17: 20, this step gives 20.", False, "hint cut off by the length limit"),
    ("\n\nundo * 2 from 17: 20, this step gives 20.", False, "hint cut off by the length limit")])
def test_an_unfinished_hint_is_whole_at_its_first_separator_if_the_model_does_not_think(teacher, task, make, text, thinks, note):
    from heal_ref.gear import _read_hint
    from heal_ref.generation import Rollout
    from heal_ref.records import Problem

    class Plain(type(task)):
        knows_thoughts = thinks

    t = replace(make("p"), problem=Problem("p", "Start 5; + 3; # 4; * 2", "17"))
    ids = teacher.encode(text)
    hint = _read_hint(teacher, Plain(), t, Rollout(ids, [0.0] * len(ids), [0.0] * len(ids), False), GearConfig())
    assert hint.note == note
    assert hint.text == (None if note else "this step gives 20")


def test_only_a_model_without_thoughts_is_stopped_after_a_hint(teacher, task, failed, monkeypatch):
    import heal_ref.gear as gear
    seen, real = [], gear.generate
    monkeypatch.setattr(gear, "generate", lambda *a, **k: seen.append(k) or real(*a, **k))
    for thinks in (True, False):
        plain = type("Plain", (type(task),), {"knows_thoughts": thinks})()
        gear.write_hints(teacher, plain, [(failed[0], 1)], GearConfig(), SampleConfig(max_new_tokens=8), 0)
    assert [k["until"] for k in seen] == [None, task.separator]
