"""Figures: titles are made from what is drawn, nothing is cut off, equal figures are equal bytes."""

import math
import re

import numpy as np
import pytest

import heal_ref as heal
from heal_lab import evidence as E
from heal_lab.arms import FORGED
from heal_lab.compare import Results, verdict
from heal_lab.figures import (
    curve_points,
    difference_lines,
    draw_experiment,
    kind_style,
    mean_lines,
    plot_aligned_entropy,
    plot_arm_curves,
    plot_differences,
    plot_forged,
    plot_intervals,
    plot_pairs,
    plot_roc,
    plot_stages,
    plot_tokens,
    validation_lines,
)
from heal_ref.evaluate import Row, first_wrong_step
from heal_ref.plots import PALETTE, plot_ceiling, plot_filter, plot_reading, png, save, show, show_table, with_interval


def test_tables_of_means_and_differences(results):
    head, line = mean_lines(results, ["heal"], ["frontier", "double"])
    assert head == ("", "frontier", "double")
    assert line == ("HEAL", *(with_interval(results.row("heal", kind)) for kind in head[1:]))
    _, better, unclear = difference_lines(results, [("heal", "rft"), ("heal", "heal_no_pace")], ["frontier"])
    row = results.difference("heal", "rft", "frontier")
    assert better == ("HEAL − rejection sampling", "frontier", f"{row.mean:+.2f} [{row.low:+.2f}, {row.high:+.2f}]", "better")
    assert unclear[3] == "no difference shown"
    head, line = validation_lines(results, ["rft_adaptive"], ["shaky", "frontier"])
    end = [row for row in results.runs["rft_adaptive", 0]["curve"][-1]["log"] if "accuracy" in row][-1]["accuracy"]
    assert (head[1:], line[1:]) == (("shaky", "frontier"), (f"{end['shaky']:.2f}", f"{end['frontier']:.2f}"))


@pytest.fixture(scope="module")
def results():
    return Results(E.read_record("one-pair"))


@pytest.fixture(scope="module")
def failed(teacher, task, validation):
    samples = heal.sample(teacher, task, [p for p in validation if p.kind == "frontier"][:4], n=3, seed=0)
    return [t for t in samples if not t.correct]


def assert_inside(figure):
    """Titles and legends are not cut off at the picture's edge."""
    png(figure)  # lays the figure out
    canvas = figure.get_window_extent()
    texts = [figure._suptitle, *figure.legends, *(axes.title for axes in figure.axes),
             *(axes._left_title for axes in figure.axes), *(axes.get_legend() for axes in figure.axes)]
    for text in texts:
        if text is not None and (not hasattr(text, "get_text") or text.get_text()):
            box = text.get_window_extent()
            assert canvas.x0 <= box.x0, text
            assert box.x1 <= canvas.x1, text


def scored(uncertainty, perplexity, config=None):
    values = heal.pure.step_ratios(np.log(perplexity).tolist(), uncertainty, config or heal.PureConfig())
    return heal.PureScore(None, perplexity, uncertainty, values, score=max(values))


def title(figure):
    return figure.axes[0].get_title(loc="left") or figure.get_suptitle()


def test_reading_says_what_it_shows(teacher, task, failed):
    t = failed[0]
    wrong = first_wrong_step(teacher, task, t)
    figure = plot_reading(teacher.pieces(t.token_ids), t, heal.GearConfig(), wrong)
    k = heal.breakpoint_of(t, heal.GearConfig())
    assert t.problem.question in title(figure)
    assert f"Max rise chooses step {k + 1}; the first wrong step is {wrong + 1}" in title(figure)
    drawn = {text.get_text() for text in figure.axes[0].texts}
    assert {piece.replace("\n", "") for piece in teacher.pieces(t.token_ids)} <= drawn
    marks = {text for text in drawn if re.match("[✂✗]", text)}
    assert marks == ({f"✂✗ {k + 1}"} if k == wrong else {f"✂ {k + 1}", f"✗ {wrong + 1}"})
    narrow = plot_reading(teacher.pieces(t.token_ids), t, heal.GearConfig(signal="surge", window=0.01))
    assert "No step to cut at" in title(narrow)
    assert_inside(figure)


def test_the_largest_entropy_is_the_darkest(teacher, failed):
    t = failed[0]
    figure = plot_reading(teacher.pieces(t.token_ids), t, heal.GearConfig())
    light = [sum(patch.get_facecolor()[:3]) for patch in figure.axes[0].patches]
    assert int(np.argmin(light)) == int(np.argmax(t.entropy))


def test_the_ceiling_names_the_kind_on_which_heal_gains_most():
    rows = []
    for arm, of_all, of_odd in (("teacher", 0.9, 0.1), ("rft", 0.8, 0.2), ("heal", 0.9, 0.7)):
        rows += [Row(arm, "", "pass@1", *[of_all] * 3, n=9), Row(arm, "odd", "pass@1", *[of_odd] * 3, n=9)]
    figure = plot_ceiling(rows)
    assert title(figure) == "Odd problems: teacher 10%, rejection sampling 20%, HEAL 70%"
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["all", "odd"]
    assert title(plot_ceiling([r for r in rows if r.arm != "rft"])) == ""
    assert_inside(figure)


def test_the_filter_counts_what_is_drawn():
    config = heal.PureConfig()
    candidates = [scored([0.1, 0.2], [1.2, 1.4]), scored([0.1, 0.3], [1.1, 40.0]), scored([0.5, 0.1], [30.0, 1.0])]
    figure = plot_filter(candidates, [True, False, True], 1.0, config)
    assert title(figure) == "PURE drops 1 of 1 spurious candidates and keeps 1 of 2 genuine ones"
    points = np.concatenate([c.get_offsets() for c in figure.axes[0].collections])
    assert sorted(map(tuple, points)) == [(0.2, 1.4), (0.3, 40.0), (0.5, 30.0)], "the worst step of each"
    for label in (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()):
        assert "worst step" in label
    (x, y) = figure.axes[0].lines[0].get_data()
    assert np.allclose(np.log(y) - x, 1.0), "on the boundary log PPL - U is the threshold"
    assert not plot_filter(candidates, [True] * 3, 1.0, heal.PureConfig(aggregate="mean")).axes[0].lines
    assert_inside(figure)


def test_intervals_show_every_arm_and_the_whole_title():
    record = E.read_record("gear")
    rows = E.repair_rows(record["repair"])
    figure = plot_intervals(rows, "genuine", "Frontier: surge 20, random cut 5, answer hint 8 repairs per 1,000 tokens")
    assert {label.get_text() for label in figure.axes[0].get_yticklabels()} == {r.arm for r in rows}
    assert_inside(figure)


def test_aligned_entropy_takes_the_steps_around_the_wrong_one(teacher, task, failed):
    wrong = [first_wrong_step(teacher, task, t) for t in failed]
    figure = plot_aligned_entropy(failed, wrong, failed)
    drawn = figure.axes[0].lines[0].get_ydata()
    assert drawn[2] == pytest.approx(np.mean([t.step_entropy[w] for t, w in zip(failed, wrong, strict=True)]))
    assert f"→ {drawn[2]:.2f} nats" in title(figure)
    assert_inside(figure)


def test_roc_of_a_perfect_and_of_a_useless_score():
    spurious = [True] * 4 + [False] * 4
    figure = plot_roc({"perfect": [2] * 4 + [1] * 4, "useless": [1, 2, 3, 4] * 2}, spurious, "title")
    perfect, useless = figure.axes[0].lines[:2]
    assert (0.0, 1.0) in set(zip(*perfect.get_data(), strict=True))
    assert np.allclose(*useless.get_data())
    solid, dashed = (line.get_linestyle() for line in figure.axes[0].get_legend().get_lines())
    assert (solid, dashed) == ("-", "--")


def test_stages_are_joined_and_their_kinds_have_fixed_colours():
    first, last = {"frontier": 0.1, "mastered": 0.9}, {"frontier": 0.4, "mastered": 1.0}
    stages = [{"stage": "foundation", "updates": 10, "log": [{"step": 10, "accuracy": first}]},
              {"stage": "repaired", "updates": 30, "log": [{"step": 1}, {"step": 30, "accuracy": last}]}]
    assert [u for u, _ in curve_points(stages)] == [10, 40]
    figure = plot_stages(stages)
    assert title(figure) == "Frontier accuracy through the stages: 10% → 40%"
    assert figure.axes[0].lines[0].get_color() == kind_style("frontier")[0] == PALETTE[2]
    assert kind_style("sums") == ("#000000", "D")
    assert_inside(figure)


def test_the_experiments_figures(results, tmp_path):
    kinds = ("mastered", "shaky", "frontier")
    rows = [results.difference(arm, "rft", kind) for arm in ("star", "heal") for kind in kinds]
    long = "Unfiltered rationalizations are worse than rejection sampling on shaky and frontier"
    assert_inside(plot_differences(rows, long))
    assert_inside(plot_arm_curves(results, ["heal", "heal_no_pace"], kinds, "title"))
    paths = draw_experiment(results, tmp_path)
    assert [p.name for p in paths] == ["ceiling.png", "differences.png"]
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in paths)


@pytest.fixture(scope="module")
def pairs():
    """An invented record of three pairs, two curves of five budgets, two of forged shares, and a control."""
    rng, runs = np.random.default_rng(0), []
    for pair in ("shipped", "pair-1", "pair-2"):
        for arm, share in (("student", 0.04), ("teacher", 0.05), ("rft", 0.2), ("heal_no_gear", 0.4)):
            runs.append(invented(rng, pair, arm, 230_000, share))
        for x in (0.25, 0.5, 1, 2, 4):
            for arm, share in (("heal", 0.5), ("rft_adaptive", 0.4)):
                name = arm if x == 1 else f"{arm}@{x:g}"
                runs.append(invented(rng, pair, name, int(746_000 * x), min(0.95, share * x**0.4)))
        for x in FORGED:
            for arm, share in (("heal", 0.5), ("heal_no_pure", 0.5 - x / 2)):
                runs.append(invented(rng, pair, f"{arm}_forged@{x:g}", 500_000, share))
    return Results({"unit": "pair", "problems": {"kind": ["mastered", "shaky", "frontier"] * 30, "length": [4] * 90}, "runs": runs})


def invented(rng, pair, arm, tokens, share):
    right = rng.binomial(8, min(0.99, share + rng.normal() * 0.05 + 0.05), size=90).tolist()
    return {"pair": pair, "seed": 0, "arm": arm, "n": 8, "correct": right, "genuine": right, "greedy": [int(c > 4) for c in right],
            "generated": tokens, "scored": 0}


def test_two_curves_over_teacher_tokens(pairs):
    figure = plot_tokens(pairs, "frontier")
    at = {x: verdict(pairs.difference(f"heal{x}", f"rft_adaptive{x}", "frontier")) for x in ("@0.25", "@0.5", "", "@2", "@4")}
    for what in set(at.values()):
        spent = ", ".join(f"{pairs.tokens(f'heal{x}') / 1000:,.0f}" for x, said in at.items() if said == what)
        assert f"{what} at {spent}" in title(figure)
    heal, adaptive = (container[0] for container in figure.axes[0].containers)
    assert [len(line.get_xdata()) for line in (heal, adaptive)] == [5, 5]
    assert list(heal.get_ydata()) == [pairs.row(arm, "frontier").mean for arm in ("heal@0.25", "heal@0.5", "heal", "heal@2", "heal@4")]
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["186", "373", "746", "1,492", "2,984"]  # HEAL's, no control's
    assert (heal.get_linestyle(), heal.get_marker()) != (adaptive.get_linestyle(), adaptive.get_marker())  # readable in grey
    assert_inside(figure)


def test_two_curves_over_the_forged_share(pairs):
    figure = plot_forged(pairs, "frontier")
    arms = {name: [f"{name}_forged@{x:g}" for x in FORGED] for name in ("heal", "heal_no_pure")}
    gaps = [pairs.difference(*both, "frontier") for both in zip(*arms.values(), strict=True)]
    at = {f"{x:.0%}": verdict(gap) for x, gap in zip(FORGED, gaps, strict=True)}
    assert at["0%"] == "no difference shown" != at["70%"]
    assert "without PURE, 3 pairs:" in title(figure)
    for what in set(at.values()):
        assert f"{what} at {', '.join(x for x, said in at.items() if said == what)}" in title(figure)
    for container, names in zip(figure.axes[0].containers, arms.values(), strict=True):
        assert list(container[0].get_ydata()) == [pairs.row(name, "frontier").mean for name in names]
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == list(at)
    assert_inside(figure)


def test_a_dot_per_pair_per_arm(pairs):
    arms = ["student", "rft", "rft_adaptive", "heal"]
    figure = plot_pairs(pairs, arms, "frontier")
    dots = [line for line in figure.axes[0].lines if line.get_marker() in "os^"]
    assert len(dots) == 3 * len(arms)
    assert len({line.get_marker() for line in dots}) == 3
    assert sorted(float(line.get_xdata()[0]) for line in dots[-3:]) == sorted(pairs.matrix("heal", "frontier").mean(1))
    assert "3 pairs" in figure._suptitle.get_text()
    assert_inside(figure)


def test_an_experiment_of_pairs_has_all_four_figures(pairs, tmp_path):
    assert [p.stem for p in draw_experiment(pairs, tmp_path)] == ["ceiling", "differences", "tokens", "pairs"]


def test_the_same_figure_is_the_same_file(results, tmp_path):
    rows = [results.row(arm, kind) for arm in ("teacher", "heal") for kind in ("shaky", "frontier")]
    save(plot_ceiling(rows), tmp_path / "new" / "a.png")
    assert (tmp_path / "new" / "a.png").read_bytes() == png(plot_ceiling(rows))


def test_a_table_for_notebooks():
    row, nothing = Row("a", "k", "m", 0.5, 0.25, 1.0, 3), Row("a", "k", "m", math.nan, math.nan, math.nan, 0)
    lines = [("", "a | b"), ("x", with_interval(row)), ("y", with_interval(nothing))]
    assert show_table(lines).data.splitlines() == [
        r"|  | a \| b |", "| --- | --- |", "| x | 0.50\u00a0[0.25,\u00a01.00] |", "| y | – |"]


def test_a_picture_for_notebooks_is_small(results):
    figure = plot_ceiling([Row("heal", kind, "pass@1", 0.5, 0.4, 0.6, 9) for kind in ("shaky", "frontier")])
    picture = show(figure).data
    assert picture.startswith(b"\x89PNG")
    assert len(picture) < 0.7 * len(png(figure))
