"""The explorers: text and picture follow the controls, the hint is not in the result, errors say what to do."""

import base64
import html
import re
from dataclasses import replace

import pytest

import heal_ref as heal
from heal_ref.evaluate import first_wrong_step, step_texts
from heal_ref.pure import unaided
from heal_ref.records import InputError
from heal_ref.widgets import STAGES


@pytest.fixture(scope="module")
def story(teacher, task, validation):
    """Samples, their repairs (right, wrong, and right with a wrong step inside), and scores for the threshold."""
    problems = [p for kind in ("frontier", "double") for p in [p for p in validation if p.kind == kind][:6]]
    base = heal.sample(teacher, task, problems, n=4, seed=0)
    return base, heal.repair(teacher, task, base, seed=1), heal.pure_scores(teacher, task, unaided(base))


def parts(explorer):
    """Controls in a list, text, picture."""
    box, text, picture = explorer.children
    return box.children, text, picture


def shown(text):
    """The widget's text without its markup."""
    return html.unescape(re.sub(r"<[^>]+>", "", text.value))


def first(repaired, holds):
    return next(i for i, r in enumerate(repaired) if holds(r))


def test_the_stages_build_up(teacher, task, story):
    base, repaired, _ = story
    (pick, stage), text, picture = parts(heal.explore_repair(teacher, task, *story))
    pick.value = i = first(repaired, lambda r: r.correct and first_wrong_step(teacher, task, r) is None)
    r = repaired[i]
    t = next(t for t in base if (t.problem.id, t.index) == (r.problem.id, r.parent))
    seen = []
    for number, _ in enumerate(STAGES):
        stage.index = number
        seen.append((shown(text), text.value, picture.value))
        assert STAGES[number] in seen[-1][0]
    assert len({said for said, _, _ in seen}) == 7
    broken, entropy, cut, hint, whole, pure, checked = [said for said, _, _ in seen]
    assert f"It ends in {t.answer}; the right answer is {r.problem.answer}" in broken
    highest = heal.step_values(t.entropy, t.steps, "max")[r.breakpoint]
    assert f"{highest:.2f}" in entropy
    assert f"chooses step {r.breakpoint + 1}" in entropy
    assert seen[2][1].count("<s>") == cut.count(" dropped ") == len(t.steps) - r.breakpoint
    assert r.hint in hint
    assert "not part of the result" in hint
    for said in (whole, pure, checked):
        assert r.hint not in said
        assert all(step.strip() in said for step in step_texts(teacher, r))
    assert whole.count(" new ") == len(r.steps) - r.breakpoint
    (scored,) = heal.pure_scores(teacher, task, [r])
    assert f"is {scored.score:.3f}" in pure
    assert "Every step is right." in checked
    assert seen[1][2] == seen[3][2] != seen[4][2], "the broken one's picture up to the hint, then the repaired one's"


def test_readers_who_run_nothing_see_a_picture(teacher, task, story, broken):
    _, repaired, reference = story
    explorers = (heal.explore_entropy(teacher, task, broken), heal.explore_repair(teacher, task, *story),
                 heal.explore_pure(teacher, task, heal.pure_scores(teacher, task, repaired), reference))
    for explorer in explorers:
        bundle = explorer._repr_mimebundle_()
        assert base64.b64decode(bundle["image/png"]).startswith(b"\x89PNG")
        assert bundle["text/plain"].startswith("An explorer: run this cell")
        assert "application/vnd.jupyter.widget-view+json" in bundle


def test_the_picture_waits_for_the_first_guess(teacher, task, story):
    (_, stage), _, picture = parts(heal.explore_repair(teacher, task, *story))
    assert (picture.value, picture.layout.display) == (b"", "none")
    stage.index = 1
    assert picture.value
    assert picture.layout.display is None


def test_what_pure_and_the_checker_say_of_a_bad_repair(teacher, task, story):
    _, repaired, _ = story
    (pick, stage), text, picture = parts(heal.explore_repair(teacher, task, *story))
    pick.value = first(repaired, lambda r: not r.correct)
    stage.index = 5
    assert "Not scored: its answer is wrong." in shown(text)
    pick.value = i = first(repaired, lambda r: r.correct and first_wrong_step(teacher, task, r) is not None)
    without_truth = picture.value
    stage.index = 6
    assert f"Step {first_wrong_step(teacher, task, repaired[i]) + 1} is the first wrong step." in shown(text)
    assert picture.value != without_truth, "only the last picture marks the wrong step"


def test_the_threshold_decides(teacher, task, story):
    base, repaired, reference = story
    right = [r for r in repaired if r.correct]
    for score, verdict in ((9.0, "kept"), (-9.0, "dropped")):
        explorer = heal.explore_repair(teacher, task, base, right, [replace(reference[0], score=score)],
                                       pure=heal.PureConfig(floor=0.0))
        (_, stage), text, _ = parts(explorer)
        stage.index = 5
        assert shown(text).endswith(f": {verdict}.")


def test_a_repair_without_a_usable_hint_says_why(teacher, task, story):
    base, repaired, reference = story
    whole = next(r for r in repaired if r.breakpoint)
    note = "hint cut off by the length limit"
    for cut in (whole.breakpoint, 0):  # at 0 nothing is kept
        end = whole.steps[cut][0]
        stub = replace(whole, breakpoint=cut, steps=whole.steps[:cut], token_ids=whole.token_ids[:end],
                       entropy=whole.entropy[:end], hint=None, note=note, answer=None, correct=False)
        (pick, stage), text, picture = parts(heal.explore_repair(teacher, task, base, [stub], reference))
        assert f"({note})" in pick.options[0][0]
        stage.index = 3
        assert f"No usable hint was written: {note}." in shown(text)
        for number in range(7):
            stage.index = number
            assert (number == 0) == (picture.value == b"")


def test_another_reading_than_the_one_that_cut(teacher, task, story):
    explorer = heal.explore_repair(teacher, task, *story, gear=heal.GearConfig(signal="surge", window=0.01))
    (_, stage), text, _ = parts(explorer)
    stage.index = 1
    assert "finds no step to cut at" in shown(text)
    stage.index = 2
    assert "Cut before step" in shown(text)


def test_without_a_checker_and_with_markup_in_the_text(teacher, task, story):
    class Unchecked(heal.Task):
        inject, extract_answer = task.inject, task.extract_answer

    base, repaired, reference = story
    angry = replace(next(r for r in repaired if not r.correct), hint="x < 3 & y > 4")
    (_, stage), text, _ = parts(heal.explore_repair(teacher, Unchecked(), base, [angry], reference))
    stage.index = 3
    assert "x &lt; 3 &amp; y &gt; 4" in text.value
    stage.index = 6
    assert "No checker is known" in shown(text)


def test_errors_say_what_to_do(teacher, task, story):
    base, repaired, reference = story
    for given, message in ((([], repaired, reference), "base is empty; use sample"),
                           ((base, [], reference), "repaired is empty; use repair"),
                           ((base, repaired, []), "reference is empty; use pure_scores of correct unaided"),
                           ((base[-4:], repaired, reference),
                            "repair 1 starts from sample .*not in base; give the same samples")):
        with pytest.raises(InputError, match=message):
            heal.explore_repair(teacher, task, *given)


# ------------------------------------------------------------------------------------ entropy and PURE


@pytest.fixture(scope="module")
def broken(story):
    return [t for t in story[0] if not t.correct and t.problem.kind == "frontier"][:9]


def test_entropy_picture_and_verdict_move_together(teacher, task, broken):
    (pick, step, signal, window), verdict, picture = parts(heal.explore_entropy(teacher, task, broken))
    seen = {picture.value}
    for control, value in ((pick, 1), (window, 0.3), (step, "mean"), (signal, "level")):
        control.value = value
        assert picture.value not in seen, f"{control.description} changed nothing"
        seen.add(picture.value)
        wrong = [first_wrong_step(teacher, task, t) for t in broken]
        config = heal.GearConfig(step=step.value, signal=signal.value, window=window.value)
        hits = [heal.breakpoint_of(t, config) == w for t, w in zip(broken, wrong, strict=True)]
        assert shown(verdict).startswith("hit" if hits[pick.value] else "miss")
        assert f"of {sum(hits)} in {len(broken)} trajectories" in shown(verdict)
    with pytest.raises(InputError, match="trajectories is empty"):
        heal.explore_entropy(teacher, task, [])


def test_entropy_without_a_checker(teacher, broken):
    assert "no wrong step here" in heal.explore_entropy(teacher, heal.Task(), broken).children[1].value


def test_pure_picture_counts_and_example(teacher, task, story):
    config = heal.PureConfig(reading="forced", epsilon=1.0)
    scored = heal.pure_scores(teacher, task, [r for r in story[1] if r.correct][:12], config)
    (keep, how, lam, epsilon, example), text, picture = parts(
        heal.explore_pure(teacher, task, scored, scored, config))
    for control, value in ((keep, 0.6), (epsilon, 0.1), (how, "worst_share"), (lam, 0.9)):
        before = (picture.value, text.value)
        control.value = value
        assert (picture.value, text.value) != before, control.description
    before = text.value, picture.value
    example.value = 1
    assert text.value != before[0]
    assert picture.value == before[1]
    assert all(step.strip() in shown(text) for step in step_texts(teacher, scored[1].trajectory))
    with pytest.raises(InputError, match="reference is empty"):
        heal.explore_pure(teacher, task, scored, [])
