"""Arms get the data that they are named for; trials survive; the recorded experiment holds together and can be made again."""

import json
from dataclasses import replace

import pytest

from heal_lab import experiment as X
from heal_lab.__main__ import main
from heal_ref.config import HealConfig, PaceConfig
from heal_ref.evaluate import is_genuine
from heal_ref.records import limit_by_kind
from heal_ref.run.folder import RunFolder, read_shard
from heal_ref.run.pipeline import Method
from heal_ref.run.sources import load_problems
from tests.conftest import DATA

SMOKE = json.loads((DATA / "results" / "experiment-smoke.json").read_text())


@pytest.fixture(scope="module")
def record():
    return json.loads((DATA / "results" / "experiment.json").read_text())


@pytest.fixture(scope="module")
def teaching(teacher, task, tmp_path_factory):
    config = replace(HealConfig.smoke(seed=3), pace=PaceConfig(updates=6, per_problem=2, shares=(1 / 3, 1 / 3, 1 / 3)))
    method = Method(RunFolder(tmp_path_factory.mktemp("teaching"), {"test": 1}, quiet=True), teacher, task, config)
    return X.Teaching(method, limit_by_kind(load_problems(DATA / "clock" / "train.jsonl", task), 16))


def sources(data):
    return {name: {row["source"] for row in stage} for name, stage in data.stages.items()}


def examples(data):
    return {(row["id"], row["completion"]) for stage in data.stages.values() for row in stage}


def test_arms_hold_what_they_are_named_for(teaching):
    heal = teaching.heal()
    assert sources(heal) == {"foundation": {"base"}, "guided": {"base", "guided"}, "repaired": {"base", "guided", "repair"}}
    assert sources(teaching.rft()) == {"foundation": {"base"}}
    assert sources(teaching.star()) == {"all": {"base", "guided"}}
    assert set().union(*sources(teaching.heal_no_gear()).values()) == {"base", "guided"}
    assert sources(teaching.heal_stage_only()) == {"foundation": {"base"}, "guided": {"guided"}, "repaired": {"repair"}}
    assert examples(teaching.heal_no_pace()) == examples(heal) == examples(teaching.heal_restarts())
    assert len({len(s) for s in teaching.heal_restarts().stages.values()}) == 1
    assert examples(teaching.heal()) < examples(teaching.heal_no_pure()) or examples(heal) != examples(teaching.heal_no_pure())


def test_no_target_ever_stands_under_a_hint_or_an_answer(teaching):
    for arm in X.TRAINED:
        for stage in getattr(teaching, arm)().stages.values():
            assert not [row for row in stage if "Answer:" in row["prompt"] or "Hint" in row["prompt"] + row["completion"]], arm


def test_the_random_arm_cuts_elsewhere_and_the_answer_arm_shows_the_answer(teaching):
    by_surge, by_chance = teaching.repaired(), teaching.repaired("-random", signal="random")
    assert [t.breakpoint for t in by_surge] != [t.breakpoint for t in by_chance]
    told = teaching.repaired("-answer", hint="answer")
    assert all(t.hint == f"the answer is {t.problem.answer}" for t in told)


def test_the_oracle_keeps_what_is_right_in_every_step(teaching, teacher, task):
    guided = [*teaching.guided, *teaching.repaired()]
    right = {(t.problem.id, t.text) for t in guided if is_genuine(teacher, task, t)}
    kept = {(r["id"], r["completion"]) for r in teaching.heal_oracle_filter().stages["repaired"] if r["source"] != "base"}
    assert kept <= right
    assert kept


def test_the_matched_budget_is_spent_and_not_more(teaching):
    heal, matched, rft = teaching.heal(), teaching.rft_matched(), teaching.rft()
    budget = heal.generated + heal.scored
    longest = max(t.tokens_spent for t in teaching.base)
    assert budget <= matched.generated <= budget + longest + 40
    assert matched.generated > rft.generated
    assert len(matched.stages["foundation"]) > len(rft.stages["foundation"])


def test_star_tells_the_answer_once_for_each_failure(teaching):
    failed = [t for t in teaching.base if not t.correct]
    told = teaching.method.folder.path / "2-rationalized"
    teaching.star()
    assert sum(len(read_shard(f)) for f in told.glob("*.jsonl")) == len(failed)


# --------------------------------------------------------------------------------------------- command


def run(out, *more):
    return main(["experiment", "--preset", "smoke", "--limit", "2", "--quiet", "--out", str(out), *more])


def test_finished_arms_are_kept_and_the_rest_is_made(tmp_path):
    assert run(tmp_path, "--seeds", "0", "--arms", "student") == 0
    first = tmp_path / "seed-0" / "arms" / "student.json"
    stamp = first.stat().st_mtime_ns
    assert run(tmp_path, "--seeds", "0", "--arms", "teacher") == 0  # the finished one is collected as well
    assert first.stat().st_mtime_ns == stamp
    record = json.loads((tmp_path / "experiment.json").read_text())
    assert [r["arm"] for r in record["runs"]] == ["student", "teacher"]
    assert {r["arm"] for r in record["differences"]} == {"student − teacher"}


@pytest.mark.parametrize(("more", "message"), [
    (["--seeds", "0", "--arms", "magic"], "there is no arm magic; the arms are student"),
    (["--seeds", "0", "0"], "a seed stands twice"),
    (["--seeds"], "no seeds: give --seeds"),
    (["--seeds", "0", "--rebuilt-seeds", "1"], "--rebuilt-seeds without --rebuilt"),
    (["--seeds", "--rebuilt", "nowhere", "--rebuilt-seeds", "1"], "no pair here"),
])
def test_bad_calls_say_what_to_do(tmp_path, capsys, more, message):
    assert run(tmp_path, *more) == 2
    assert message in capsys.readouterr().err


def test_a_folder_belongs_to_one_setting(tmp_path, capsys):
    assert run(tmp_path, "--seeds", "0", "--arms", "student") == 0
    assert run(tmp_path, "--seeds", "0", "--arms", "student", "--limit", "3") == 2
    assert "eval_limit: 2 in the folder, 3 now" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------- record


def test_one_arm_of_one_seed_is_made_again(tmp_path, task):
    """Smoke size: the same data and nearly the same student as in the record, down to single problems."""
    command = SMOKE["provenance"]["command"].split()[3:]
    assert main([*command[: command.index("--out")], "--out", str(tmp_path), "--quiet"]) == 0
    (mine,), (theirs,) = json.loads((tmp_path / "experiment.json").read_text())["runs"], SMOKE["runs"]
    assert mine["updates"] == theirs["updates"]
    assert mine["generated"] == pytest.approx(theirs["generated"], rel=0.02)
    assert mine["examples"] == pytest.approx(theirs["examples"], rel=0.05)
    for name in ("correct", "greedy"):
        same = [a == b for a, b in zip(mine[name], theirs[name], strict=True)]
        assert sum(same) / len(same) > 0.9, name


def test_rows_and_differences_follow_from_the_runs(record):
    again = X.summary(record)
    for name in ("rows", "differences"):
        assert len(again[name]) == len(record[name])
        for mine, theirs in zip(again[name], record[name], strict=True):
            assert mine == pytest.approx(theirs, abs=1e-9)


def test_the_record_is_complete(record):
    runs = {(r["arm"], r["seed"]): r for r in record["runs"]}
    seeds = {seed for _, seed in runs}
    assert len(seeds) >= 5
    assert len({r["seed"] for r in record["runs"] if r["pair"] == "rebuilt"}) >= 2
    more = {"heal_restarts", "heal_stage_only"}  # why PACE does what it does: fewer seeds
    assert {key for key in runs if key[0] not in more} == {(arm, seed) for arm in X.ARMS if arm not in more for seed in seeds}
    assert all(len([s for a, s in runs if a == arm]) >= 2 for arm in more)
    trained = [r for r in runs.values() if r["arm"] in X.TRAINED]
    assert len({r["updates"] for r in trained}) == 1
    for seed in seeds:
        assert runs["rft_matched", seed]["generated"] >= runs["heal", seed]["generated"] + runs["heal", seed]["scored"]
    assert "dirty" not in record["provenance"]["commit"]


def test_the_floors_that_the_readme_speaks_of(record):
    """Lower ends of paired 95 % intervals on held-out problems."""
    results = X.Results(record)
    assert results.difference("heal", "rft", "frontier").low >= 0.25
    assert results.difference("heal", "rft_matched", "frontier").low >= 0.15
    for kind in ("shaky", "frontier", "double"):
        assert results.difference("heal", "teacher", kind).low > 0
    assert results.difference("heal", "rft", "mastered").mean >= -0.01
    assert results.difference("heal", "heal_oracle_filter", "frontier").mean >= -0.10
