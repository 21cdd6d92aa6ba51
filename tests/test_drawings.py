"""Drawings of the method: what they say is what they were given, nothing overlaps, all is legible in grey."""

import io
import math
import re
from collections import Counter
from dataclasses import replace
from itertools import combinations

import matplotlib.image
import numpy as np
import pytest
from datasets import Dataset
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba

import heal_lab.__main__ as lab
import heal_ref as heal
from heal_lab.figures import method_example
from heal_ref.config import choices
from heal_ref.drawings import ENTROPY, FILL, HINT, RATIO, SIGNAL, draw_method, draw_repair, draw_stages
from heal_ref.plots import png
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def example():
    return method_example()


@pytest.fixture(scope="module")
def sampled(teacher, task, validation):
    """A repair of a sample, with longer wording than the greedy example."""
    problems = [p for p in validation if p.kind == "frontier"][:4]
    base = heal.sample(teacher, task, problems, n=2, seed=0)
    repaired = heal.repair(teacher, task, base, seed=0)
    return [(next(t for t in base if (t.problem.id, t.index) == (r.problem.id, r.parent)), r) for r in repaired][:6:3]


def stages_of(**held):
    """Stages with so many examples of each source: foundation={"base": 3}."""
    return {name: Dataset.from_dict({"source": [s for s, n in count.items() for _ in range(n)]}) for name, count in held.items()}


def with_steps(t, texts, **changed):
    """The trajectory with other steps, one token each."""
    ends = np.cumsum([len(text) for text in texts]).tolist()
    n = len(texts)
    return replace(t, text="".join(texts), step_ends=ends, steps=[(i, i + 1) for i in range(n)], token_ids=[0] * n,
                   entropy=[0.1 * i for i in range(n)], logprob=[-0.5] * n, **changed)


def texts(figure):
    return [t.get_text() for t in figure.axes[0].texts if t.get_text()]


def luminance(colour):
    """Relative luminance, as the WCAG computes it: what is left of a colour in grey."""
    rgb = np.array(to_rgba(colour)[:3])
    return float(np.where(rgb <= 0.03928, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722])


def contrast(one, other):
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def assert_readable(figure):
    """1,000 pixels wide; texts lie on the page, in their boxes, apart from one another, and contrast with what is below."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    page, renderer = figure.bbox, canvas.get_renderer()
    assert page.width == 1000
    boxes = [(t, t.get_window_extent(renderer)) for t in figure.axes[0].texts if t.get_text()]
    filled = [(p.get_facecolor(), p.get_window_extent(renderer)) for p in figure.axes[0].patches if p.get_facecolor()[3]]
    for t, box in boxes:
        assert page.x0 <= box.x0 < box.x1 <= page.x1, t
        assert page.y0 <= box.y0 < box.y1 <= page.y1, t
        assert t.get_fontsize() >= 9
        below = [(fill, around) for fill, around in filled if around.overlaps(box)]
        for _, around in below:  # a text is within its box, and touches no other one
            assert around.x0 <= box.x0 < box.x1 <= around.x1, t
            assert around.y0 <= (box.y0 + box.y1) / 2 <= around.y1, t
        assert contrast(t.get_color(), below[-1][0] if below else "white") >= 4.5, t
    for (t, box), (other, its) in combinations(boxes, 2):
        width = min(box.x1, its.x1) - max(box.x0, its.x0)
        height = min(box.y1, its.y1) - max(box.y0, its.y0)
        assert min(width, height) <= 1, f"{t.get_text()!r} and {other.get_text()!r} overlap"


# ---------------------------------------------------------------- the committed picture


def differing(one, other):
    """Pixels that differ by more than what a renderer may round differently."""
    pictures = [matplotlib.image.imread(io.BytesIO(content))[..., :3] for content in (one, other)]
    assert pictures[0].shape == pictures[1].shape
    return int((np.abs(pictures[0] - pictures[1]).max(-1) > 0.25).sum())


def test_the_committed_picture_is_what_the_code_draws(example):
    committed = (ROOT / "docs" / "method.png").read_bytes()
    assert differing(committed, png(draw_method(**example))) <= 5
    assert differing(committed, png(draw_method(**{**example, "limit": example["limit"] + 0.01}))) > 5


def test_the_command_draws_it_and_says_where(example, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(lab, "method_example", lambda: example)
    assert lab.main(["draw", "--out", str(tmp_path / "new")]) == 0
    assert str(tmp_path / "new" / "method.png") in capsys.readouterr().out
    assert (tmp_path / "new" / "method.png").read_bytes() == png(draw_method(**example))
    (tmp_path / "file").write_text("")
    assert lab.main(["draw", "--out", str(tmp_path / "file")]) == 2
    error = capsys.readouterr().err
    assert str(tmp_path / "file") in error
    assert error.count("\n") == 1


def test_the_example_shows_a_repair_that_passes_and_a_shortcut_that_does_not(example):
    assert not example["wrong"].correct
    assert example["repaired"].correct
    verdicts = {s.trajectory.source: s.score <= example["limit"] for s in example["scored"]}
    assert verdicts == {"repair": True, "guided": False}


# ---------------------------------------------------------------- what it says


def test_every_number_is_an_argument(example):
    """Other arguments, other numbers; there is none that is in no argument."""
    wrong, repaired = (replace(example[name], entropy=[h / 2 + 0.1 for h in example[name].entropy]) for name in ("wrong", "repaired"))
    scored = [replace(s, ratio=[r + 0.07 for r in s.ratio], score=s.score + 0.07) for s in example["scored"]]
    held = {"foundation": {"base": 1234}, "guided": {"base": 1234, "guided": 321}, "repaired": {"base": 1234, "guided": 321, "repair": 55}}
    pace = heal.PaceConfig(updates=800, shares=(0.5, 0.125, 0.375))
    config, limit = heal.HealConfig(pace=pace), 0.43
    drawn = [draw_method(wrong, repaired, scored, limit, stages_of(**held), config), draw_repair(wrong, repaired),
             draw_stages(stages_of(**held), pace)]
    entropy = heal.step_values(wrong.entropy, wrong.steps, "max")
    expected = [
        {f"{h:.2f}" for h in entropy} | {"0.43"} | {f"{s.score:.2f}" for s in scored},
        {f"{h:.2f}" for h in entropy} | {f"{abs(r):.2f}" for r in heal.rises(entropy)} | {str(repaired.breakpoint + 1)},
        {"1,234", "1,555", "1,610"}]
    learnt = {"1,234", "321", "55", "400", "100", "300", "50", "12", "38"}  # shares are rounded: 12.5, 37.5
    expected[0] |= learnt
    expected[2] |= learnt
    quoted = {wrong.problem.question, wrong.problem.answer, wrong.answer, repaired.hint, *wrong.step_texts, *repaired.step_texts}
    counted = {str(i) for i in range(1, 9)}  # of steps, and of the parts of the page
    for figure, numbers in zip(drawn, expected, strict=True):
        words = re.sub(r"\$[^$]*\$", "", "\n".join(texts(figure)))  # without formulas
        for text in sorted((" ".join(q.split()) for q in quoted), key=len, reverse=True):
            words = re.sub(rf"(?<![\d.,]){re.escape(text)}(?![\d.,]\d)", "", words)
        found = set(re.findall(r"\d+(?:[.,]\d+)*", words))
        assert numbers <= found
        assert found - numbers <= counted


def test_a_repair_is_told_in_its_four_moves(sampled):
    for wrong, r in sampled:
        figure = draw_repair(wrong, r)
        said = texts(figure)
        for move in ("1 Entropy", "✂ 2 Cut", "3 Hint", "4 Continuation"):
            assert any(text.startswith(move) for text in said), move
        for t in (wrong, r):
            for step in t.step_texts:
                assert " ".join(step.split()) in said
        assert said.count(f"hint: {r.hint}" if r.hint else f"no hint: {r.note}") == 2
        assert said[0] == (f"Cut before its step {r.breakpoint + 1} and hinted, the chain ends in "
                           f"{r.answer or 'no answer'} ({'right' if r.correct else 'wrong'})")
        bars = [(p.get_width(), bool(p.get_hatch())) for p in figure.axes[0].patches if p.get_height() == 0.6]
        k = len(wrong.steps)
        assert len(bars) == 2 * k, "entropies and rises"
        assert [step for step, (_, hatched) in enumerate(bars[:k]) if hatched] == [r.breakpoint]
        assert int(np.argmax([width for width, _ in bars[k:]])) == r.breakpoint
        assert "✂ 2 Cut: largest rise" in said


def test_the_cut_is_the_repairs_own(example):
    """With another reading than the one that cut, the drawing does not call the step the largest."""
    wrong, repaired = example["wrong"], example["repaired"]
    assert "✂ 2 Cut: largest surge" in texts(draw_repair(wrong, repaired, heal.GearConfig(signal="surge")))
    other = replace(repaired, breakpoint=1)
    assert "✂ 2 Cut: before step 2" in texts(draw_repair(wrong, other))
    assert "✂ 2 Cut: before step 3" in texts(draw_repair(wrong, repaired, heal.GearConfig(signal="random")))


def test_the_formulas_have_a_word_for_every_setting_and_are_what_is_computed(example):
    for known, config, name in ((SIGNAL, heal.GearConfig, "signal"), (ENTROPY, heal.GearConfig, "step"),
                                (HINT, heal.GearConfig, "hint"), (RATIO, heal.PureConfig, "reading")):
        assert set(known) == set(choices(config, name))
    h = [0.5, 0.25, 2.0, 0.75, 1.5]
    for signal in ("rise", "surge", "relative", "level"):
        values = [-math.inf if math.isnan(v) else v for v in SIGNAL[signal][1](h)]
        assert int(np.argmax(values)) == heal.find_breakpoint(h, signal=signal)
    assert SIGNAL["rise"][1](h)[3] == pytest.approx(h[3] - sum(h[:3]) / 3)  # H_k − 1/(k−1) Σ_{j<k} H_j, k = 4
    assert SIGNAL["surge"][1](h)[3] == pytest.approx(h[3] - h[2])
    assert SIGNAL["relative"][1](h)[3] == pytest.approx((h[3] - h[2]) / h[2])
    for s in example["scored"]:  # log r_k = log PPL(s_k) − H_k
        assert s.ratio == pytest.approx([math.log(p) - u for p, u in zip(s.perplexity, s.uncertainty, strict=True)], abs=1e-5)


def test_the_stages_are_as_tall_as_they_are_full():
    held = {"foundation": {"base": 40}, "guided": {"base": 40, "guided": 10}, "repaired": {"base": 40, "guided": 10, "repair": 20}}
    figure = draw_stages(stages_of(**held))
    assert texts(figure)[0] == "Each stage holds the ones before it: 40 → 50 → 70 examples"
    boxes = {(round(p.get_x()), p.get_facecolor()): p.get_height() for p in figure.axes[0].patches if p.get_facecolor()[3]}
    assert len(boxes) == 6, "a box for each source in each stage"
    base, guided, repaired = (max(h for (_, c), h in boxes.items() if c == to_rgba(FILL[s])) for s in ("base", "guided", "repair"))
    assert base - repaired == pytest.approx(2 * (repaired - guided))
    apart = stages_of(foundation={"base": 40}, guided={"guided": 10}, repaired={"repair": 20})
    alone = draw_stages(apart, heal.PaceConfig(cumulative=False))
    assert texts(alone)[0] == "Stages: 40 → 10 → 20 examples"
    none_guided = stages_of(foundation={"base": 4}, guided={"base": 4}, repaired={"base": 4, "repair": 1})
    said = texts(draw_stages(none_guided, heal.PaceConfig(updates=10)))
    assert Counter(said)["4 unaided"] == 3
    assert "0 guided" not in said, "what a stage does not hold has no box"


# ---------------------------------------------------------------- legible


def test_the_page_is_readable(example):
    assert_readable(draw_method(**example))
    assert_readable(draw_repair(example["wrong"], example["repaired"]))
    assert_readable(draw_stages(example["stages"]))


READINGS = [(name, value) for name in ("signal", "step", "hint") for value in choices(heal.GearConfig, name)]


@pytest.mark.parametrize(("name", "value"), READINGS)
def test_every_reading_is_readable(example, name, value):
    assert_readable(draw_repair(example["wrong"], example["repaired"], heal.GearConfig(**{name: value})))


def test_samples_and_other_readings_are_readable(example, sampled):
    for wrong, repaired in sampled:
        assert_readable(draw_repair(wrong, repaired))
    config = heal.HealConfig(gear=heal.GearConfig(signal="random", hint="wrong_answer"), pure=heal.PureConfig(reading="forced"))
    assert_readable(draw_method(**{**example, "config": config}))


LONG = "So the price of $3 apples and $4 pears is \\frac{1}{2} of what she had, _which_ we know\nfrom the line above. " * 2


@pytest.mark.parametrize(("steps", "k", "new", "limit"), [(1, 0, 1, 0.2), (9, 0, 9, math.inf), (9, 8, 12, 0.2)])
def test_long_chains_and_texts_are_cut_to_what_is_readable(example, steps, k, new, limit):
    problem = replace(example["wrong"].problem, question=LONG, answer="\\frac{123456789}{1234567}")
    wrong = with_steps(example["wrong"], [LONG] * steps, problem=problem, answer="$12")
    repaired = with_steps(example["repaired"], [LONG] * new, problem=problem, answer="$3 or $4, whichever is less", hint=LONG, breakpoint=k)
    unusable = with_steps(repaired, [LONG] * k, hint=None, note="hint states the answer", answer=None, correct=False)
    scored = [heal.PureScore(t, [1.5] * new, [0.5] * new, [0.1 * i - 0.3 for i in range(new)], 0.1 * new) for t in (repaired, repaired)]
    first, more = {"base": 12_345}, {"base": 12_345, "guided": 1}
    stages = stages_of(foundation=first, guided=more, repaired={**more, "repair": 1})
    for r in (repaired, unusable):
        assert_readable(draw_repair(wrong, r))
    assert_readable(draw_method(wrong, repaired, scored, limit, stages))
    assert_readable(draw_method(wrong, replace(unusable, note="", hint=""), scored, limit, stages))
    assert any(text.endswith("…") for text in texts(draw_repair(wrong, repaired)))
    assert_readable(draw_stages(stages))


def test_few_and_no_stages_are_readable(example):
    for held in ({"all": {"base": 3, "guided": 2, "repair": 1}}, {"foundation": {}, "guided": {}, "repaired": {"repair": 2}}, {}):
        assert_readable(draw_stages(stages_of(**held)))
        assert_readable(draw_method(**{**example, "stages": stages_of(**held), "scored": [], "limit": math.inf}))


@pytest.mark.parametrize("together", [("kept", "broken", "new"), ("dropped", "broken", "new"), ("base", "guided", "repair")])
def test_fills_that_stand_together_differ_in_grey(together):
    for one, other in combinations(together, 2):
        assert contrast(FILL[one], FILL[other]) >= 1.4, (one, other)


# ---------------------------------------------------------------- bad input


def test_what_is_no_repair_is_refused_with_a_reason(example):
    wrong, repaired = example["wrong"], example["repaired"]
    other = replace(wrong, problem=replace(wrong.problem, id="other"))
    for t, r in ((wrong, wrong), (replace(wrong, index=7), repaired), (other, repaired)):
        for draw in (draw_repair, lambda t, r: draw_method(**{**example, "wrong": t, "repaired": r})):
            with pytest.raises(heal.InputError, match=r"is no repair of sample \d of problem .*: draw what `repair` made, with") as error:
                draw(t, r)
            assert "\n" not in str(error.value)
