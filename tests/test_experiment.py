"""Arms get the data that they are named for; trials survive; the recorded experiment holds together and can be made again."""

import itertools
import json
import shutil
from collections import Counter
from dataclasses import replace

import pytest

from heal_lab import arms as A
from heal_lab import experiment as X
from heal_lab.__main__ import main
from heal_lab.compare import Results
from heal_lab.evidence import read_record
from heal_ref.config import HealConfig, PaceConfig
from heal_ref.evaluate import is_genuine
from heal_ref.records import InputError, Problem, limit_by_kind
from heal_ref.run.folder import RunFolder
from heal_ref.run.pipeline import Method
from heal_ref.run.shards import read_shard
from heal_ref.run.sources import load_problems
from heal_ref.tasks import ClockTask
from tests.conftest import DATA

SMOKE = read_record("experiment-smoke")


@pytest.fixture(scope="module", params=["experiment", "one-pair", "tokens"])
def record(request):
    return read_record(request.param)


@pytest.fixture(scope="module")
def made(teacher, task, tmp_path_factory):
    config = replace(HealConfig.smoke(seed=3), pace=PaceConfig(updates=6, per_problem=2, shares=(1 / 3, 1 / 3, 1 / 3)))
    method = Method(RunFolder(tmp_path_factory.mktemp("made"), {"test": 1}, quiet=True), teacher, task, config)
    train, second = (load_problems(DATA / "clock" / f"{name}.jsonl", task) for name in ("train", "second"))
    return A.TeacherData(method, limit_by_kind(train, 16), limit_by_kind(second, 6))


@pytest.fixture(scope="module")
def data(made):
    """What each arm trains on, by name; other budgets and the second round have tests of their own."""
    return {name: arm(made) for name, arm in A.TRAINED.items() if "@" not in name and name != "second_round"}


def sources(arm):
    return {name: {row["source"] for row in stage} for name, stage in arm.stages.items()}


def examples(arm):
    return {(row["id"], row["completion"]) for stage in arm.stages.values() for row in stage}


def test_arms_hold_what_they_are_named_for(data):
    assert sources(data["heal"]) == {
        "foundation": {"base"}, "guided": {"base", "guided"}, "repaired": {"base", "guided", "repair"}}
    assert sources(data["rft"]) == {"foundation": {"base"}}
    assert sources(data["star"]) == {"all": {"base", "guided"}}
    assert set().union(*sources(data["heal_no_gear"]).values()) == {"base", "guided"}
    assert sources(data["heal_stage_only"]) == {"foundation": {"base"}, "guided": {"guided"}, "repaired": {"repair"}}
    assert examples(data["heal_no_pace"]) == examples(data["heal"]) == examples(data["heal_restarts"])
    assert len({len(stage) for stage in data["heal_restarts"].stages.values()}) == 1
    for name in ("repairs", "repairs_unfiltered"):
        assert set().union(*sources(data[name]).values()) == {"base", "repair"}
    assert set().union(*sources(data["guided_unfiltered"]).values()) == {"base", "guided"}


def test_the_factorial_crosses_what_is_added_with_the_filter(data):
    assert set(A.FACTORIAL) == {(part, kept) for part in ("repairs", "guided", "both") for kept in ("PURE", "none")}
    for part in ("repairs", "guided", "both"):
        filtered, whole = (data[A.FACTORIAL[part, kept]] for kept in ("PURE", "none"))
        assert filtered.generated == whole.generated
        assert filtered.scored > whole.scored == 0
        assert examples(filtered) != examples(whole)


def test_equal_exposures(data):
    arm, plain = data["heal_equal"], data["heal_no_pace"].stages["all"]
    rows = Counter((r["id"], r["source"], r["completion"]) for stage in arm.stages.values() for r in stage)
    assert rows.keys() == {(r["id"], r["source"], r["completion"]) for r in plain}
    assert min(rows.values()) == 6
    assert sum(rows.values()) < 6.2 * len(rows)  # a text may have been sampled twice
    assert arm.shares == pytest.approx([len(stage) / sum(rows.values()) for stage in arm.stages.values()])
    assert sources(arm) == sources(data["heal"])


def test_a_second_round_adds_new_problems_that_heals_student_solves(made, data, teacher):
    with pytest.raises(InputError, match="run the arm heal, too"):
        A.second_round(made)
    home = made.method.folder.path / "5-students" / "heal" / "3-repaired"
    home.mkdir(parents=True)
    teacher.model.save_pretrained(home)  # a stand-in for the student
    teacher.tokenizer.save_pretrained(home)
    (home / "curve.json").write_text("{}")
    first, second = {p.id for p in made.problems}, {p.id for p in made.second}
    for arm in (A.second_round(made), data["second_round_teacher"]):
        ids = set(arm.stages["all"]["id"])
        assert ids <= first | second
        assert ids & second
        assert examples(data["heal"]) <= examples(arm)
        assert arm.tokens > data["heal"].tokens
    assert (made.method.folder.path / "second-student").is_dir()


def test_without_pure_what_the_filter_drops_is_trained_on(made, data):
    """The filter drops some right helped solutions; without it all are eligible, at most `per_problem` of each problem."""
    helped = [t for t in [*made.guided, *made.repaired()] if t.correct]
    scores = [*made.guided_scores, *made.method.scored("4-scores/repaired", made.repaired())]
    passed = {(t.problem.id, t.text) for t in made.pure(scores)}
    dropped = {(t.problem.id, t.text) for t in helped} - passed
    assert dropped
    assert passed
    assert not dropped & examples(data["heal"]) - {(t.problem.id, t.text) for t in made.base}
    assert dropped & examples(data["heal_no_pure"])
    assert data["heal_no_pure"].scored == 0 < data["heal"].scored


def test_no_target_ever_follows_a_hint_or_an_answer(data):
    for name, arm in data.items():
        for stage in arm.stages.values():
            assert not [row for row in stage if "Answer:" in row["prompt"] or "Hint" in row["prompt"] + row["completion"]], name


def test_the_random_arm_cuts_elsewhere_and_the_answer_arm_shows_the_answer(made):
    by_surge, by_chance = made.repaired(), made.repaired("-random", signal="random")
    assert [t.breakpoint for t in by_surge] != [t.breakpoint for t in by_chance]
    told = made.repaired("-answer", hint="answer")
    assert all(t.hint == f"the answer is {t.problem.answer}" for t in told)


def test_the_oracle_keeps_what_is_right_in_every_step(made, data, teacher, task):
    helped = [*made.guided, *made.repaired()]
    right = {(t.problem.id, t.text) for t in helped if is_genuine(teacher, task, t)}
    kept = {(r["id"], r["completion"]) for r in data["heal_oracle_filter"].stages["repaired"] if r["source"] != "base"}
    assert kept <= right
    assert kept


def test_the_matched_budget_is_spent_and_not_more(made, data):
    heal, matched, rft = data["heal"], data["rft_matched"], data["rft"]
    budget = heal.generated + heal.scored
    longest = max(t.tokens_spent for t in made.base)
    assert budget <= matched.generated <= budget + longest + 40
    assert matched.generated > rft.generated
    assert len(matched.stages["foundation"]) > len(rft.stages["foundation"])


def test_unsolved_problems_are_sampled_until_the_budget_is_spent(made, data):
    heal, adaptive = data["heal"], data["rft_adaptive"]
    longest = max(t.tokens_spent for t in made.base) + 40
    assert heal.tokens <= adaptive.generated <= heal.tokens + longest
    files = sorted((made.method.folder.path / "1-base-unsolved").glob("*/*.parquet"), key=lambda f: (int(f.parent.name), f.name))
    solved = {t.problem.id for t in made.base if t.correct}
    for number in dict.fromkeys(f.parent.name for f in files):
        tried = [t for f in files if f.parent.name == number for t in read_shard(f)]
        assert not solved & {t.problem.id for t in tried}
        assert len(tried) == made.config.sample.n * (len(made.problems) - len(solved))
        solved |= {t.problem.id for t in tried if t.correct}
    assert len(set(adaptive.stages["all"]["id"])) > len(set(data["rft"].stages["foundation"]["id"]))


def test_every_solved_problem_weighs_the_same(made, data):
    stage, per_problem = data["rft_adaptive"].stages["all"], made.config.pace.per_problem
    assert set(Counter(stage["id"]).values()) == {per_problem}
    several = {p for p, text in {(r["id"], r["completion"]) for r in stage}}
    assert len({(r["id"], r["completion"]) for r in stage}) > len(several)  # different solutions of one problem take turns


def test_adaptive_sampling_taken_apart(made, data):
    """More of what is unsolved without equal weights, and equal weights without more of it."""
    adaptive, uneven, equal, rft = (data[arm] for arm in ("rft_adaptive", "rft_unsolved", "rft_equal", "rft"))
    assert uneven.generated == adaptive.generated
    assert equal.generated == rft.generated
    rows = {name: list(zip(next(iter(arm.stages.values()))["id"], next(iter(arm.stages.values()))["completion"], strict=True))
            for name, arm in (("adaptive", adaptive), ("uneven", uneven), ("equal", equal), ("rft", rft))}
    for even, plain in (("adaptive", "uneven"), ("equal", "rft")):
        assert set(rows[even]) == set(rows[plain])
        assert len(rows[plain]) == len(set(rows[plain]))
        assert set(Counter(problem for problem, _ in rows[even]).values()) == {made.config.pace.per_problem}


def test_the_adaptive_arm_never_looks_at_kinds_and_the_other_one_does(made, data):
    blind = A.TeacherData(made.method, [replace(p, kind="") for p in made.problems])
    assert list(A.rft_adaptive(blind).stages["all"]) == list(data["rft_adaptive"].stages["all"])
    frontier = {p.id for p in made.problems if p.kind == "frontier"}

    def share(stage):
        return sum(problem in frontier for problem in stage["id"]) / len(stage)

    heal = sum(share(stage) for stage in data["heal"].stages.values()) / 3  # the stages of this test have equal shares
    assert share(data["rft_adaptive_frontier"].stages["all"]) == pytest.approx(heal, abs=0.02)
    assert share(data["rft_adaptive"].stages["all"]) < heal - 0.03
    assert examples(data["rft_adaptive_frontier"]) == examples(data["rft_adaptive"])


@pytest.mark.parametrize(("x", "n", "continuations"), [(0.25, 1, 1), (0.5, 2, 1), (1, 4, 2), (2, 8, 4), (4, 16, 8)])
def test_settings_for_more_or_fewer_tokens(x, n, continuations):
    config = A.scaled_config(HealConfig.tiny(), x)
    assert (config.sample.n, config.pace.per_problem, config.gear.continuations) == (n, n, continuations)
    assert (config.gear.paths, config.pace.updates) == (3, 600)


@pytest.mark.slow
def test_both_arms_of_a_budget_spend_the_same(made):
    few = A.TeacherData(made.method, made.problems[::6])
    few.method = replace(made.method, folder=RunFolder(made.method.folder.path / "few", {"test": 2}, quiet=True))
    longest, once = max(t.tokens_spent for t in few.base) + 40, few.heal().tokens
    less, more = (A.TRAINED[f"heal@{x:g}"](few).tokens for x in (0.5, 2))
    assert less < once < more
    solved = {}
    for x, tokens in ((0.5, less), (2, more)):
        arm = A.TRAINED[f"rft_adaptive@{x:g}"](few)
        assert tokens <= arm.generated <= tokens + longest
        solved[x] = set(arm.stages["all"]["id"])
    assert set(A.rft_adaptive(few).stages["all"]["id"]) <= solved[2]  # the rounds of once the tokens come first
    assert len(solved[0.5]) <= len(solved[2])
    whole, fewer = (A.TRAINED[f"{name}@2"](few) for name in ("heal", "heal_few"))
    assert fewer.tokens == whole.tokens
    assert {name: len(stage) for name, stage in fewer.stages.items()} != {name: len(stage) for name, stage in whole.stages.items()}
    for name, stage in fewer.stages.items():
        assert {*stage["completion"]} <= {*whole.stages[name]["completion"]}
        assert max(Counter(zip(stage["id"], stage["source"], strict=True)).values()) <= made.config.pace.per_problem


def test_shares_of_forged_guided_examples(made, data, teacher, task):
    """As many examples at every share, mostly the same ones, so many of them forged; PURE then drops of these only."""
    genuine = {(t.problem.id, t.text): is_genuine(teacher, task, t) for t in made.guided if t.correct}
    kind_of, drawn = {p.id: p.kind for p in made.problems}, {}

    def guided(arm):
        return {(r["id"], r["completion"]) for r in arm.stages["guided"] if r["source"] == "guided"}

    for share in A.FORGED:
        every, passed = (A.TRAINED[f"{name}_forged@{share:g}"](made) for name in ("heal_no_pure", "heal"))
        drawn[share] = guided(every)
        assert guided(passed) == drawn[share] & guided(data["heal"])
        for arm, whole in ((every, data["heal_no_pure"]), (passed, data["heal"])):
            for name, stage in arm.stages.items():
                others = [[r for r in rows if r["source"] != "guided"] for rows in (stage, whole.stages[name])]
                assert others[0] == others[1]
        for kind in {kind_of[problem] for problem, _ in drawn[share]}:
            mine = [genuine[key] for key in drawn[share] if kind_of[key[0]] == kind]
            assert mine.count(False) == round(len(mine) * share)
    assert len(set(map(len, drawn.values()))) == 1
    assert len(drawn[0.0]) > 4
    for less, more in itertools.pairwise(A.FORGED):
        forged = [{key for key in drawn[share] if not genuine[key]} for share in (less, more)]
        assert forged[0] <= forged[1]
        assert drawn[more] - forged[1] <= drawn[less] - forged[0]


def test_cuts_and_hints_of_the_controls(made, data):
    first = made.method.folder.path / "3-repaired-first"
    assert {t.breakpoint for f in first.glob("*.parquet") for t in read_shard(f)} == {1}
    bare = made.repaired("-none", hint="none")
    assert {t.hint for t in bare} == {""}
    assert {(t.problem.id, t.breakpoint) for t in bare} == {(t.problem.id, t.breakpoint) for t in made.repaired()}


def test_gold_is_true_and_free(made, data, task):
    rows = [row for stage in data["gold"].stages.values() for row in stage]
    assert {row["id"] for row in rows} == {p.id for p in made.problems}
    assert data["gold"].tokens == 0
    problems = {p.id: p for p in made.problems}
    for row in rows:
        steps = [f"{part}\n\n" for part in row["completion"].split("\n\n")[:-1]] + [row["completion"].split("\n\n")[-1]]
        assert task.is_genuine(problems[row["id"]], steps), row["completion"]
    assert max(Counter(row["id"] for row in rows).values()) <= made.config.pace.per_problem


def test_star_shows_the_answer_once_for_each_failure(made, data):
    failed = [t for t in made.base if not t.correct]
    shown = made.method.folder.path / "2-rationalized"
    assert sum(len(read_shard(f)) for f in shown.glob("*.parquet")) == len(failed)
    assert data["star"].generated > data["rft"].generated


# --------------------------------------------------------------------------------------------- command


def run(out, *more):
    return main(["experiment", "--preset", "smoke", "--limit", "2", "--quiet", "--out", str(out), *more])


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A record of two pairs, the shipped one and its copy, made by one arm after the other; where it is."""
    out = tmp_path_factory.mktemp("two")
    copy = out / "pair-1"
    for name in ("teacher", "student", "clock"):
        shutil.copytree(DATA / name, copy / name)
    both = ["--pairs", "shipped", str(copy), "--seeds", "0"]
    assert run(out, *both, "--arms", "student") == 0
    stamp = (out / "shipped" / "seed-0" / "arms" / "student.json").stat().st_mtime_ns
    assert run(out, *both, "--arms", "teacher", "student") == 0
    return json.loads((out / "experiment.json").read_text()), out, stamp


def test_finished_arms_are_kept_and_the_rest_is_made(two):
    record, out, stamp = two
    assert (out / "shipped" / "seed-0" / "arms" / "student.json").stat().st_mtime_ns == stamp
    named = [(r["pair"], r["seed"], r["arm"]) for r in record["runs"]]
    assert named == [(pair, 0, arm) for pair in ("shipped", "pair-1") for arm in ("student", "teacher")]
    assert {r["arm"] for r in record["differences"]} == {"student − teacher"}
    assert not (out / "pairs.png").exists()  # its title is about HEAL and adaptive rejection sampling


def test_a_record_says_all_that_a_reader_needs(two):
    """Grouped by kind, the mean of correct / n is the printed number."""
    record, *_ = two
    heldout = load_problems(DATA / "clock" / "heldout.jsonl", ClockTask())
    about = record["problems"]
    assert about["id"][:10] == [p.id for p in limit_by_kind(heldout, 2)]
    assert {len(values) for values in about.values()} == {len(record["runs"][0]["greedy"])}
    shown = [r for r in record["rows"] if r["metric"] == "pass@1" and r["kind"] in about["kind"] and r["arm"] != "recall"]
    assert {r["kind"] for r in shown} >= {"frontier", "frontier, long"}
    for row in shown:
        mine = [run for run in record["runs"] if run["arm"] == row["arm"] and row["pair"] in ("all", run["pair"])]
        shares = [c / run["n"] for run in mine for c, kind in zip(run["correct"], about["kind"], strict=True) if kind == row["kind"]]
        assert row["mean"] == pytest.approx(sum(shares) / len(shares))
    assert {(r["unit"], r["pairs"]) for r in record["rows"]} == {("pair", 2), ("seed", 1), ("problem", 0)}
    assert record["provenance"]["commit"] == record["runs"][0]["commit"]
    assert record["pairs"]["pair-1"] == record["pairs"]["shipped"] == {"seed": 0, "commit": record["pairs"]["shipped"]["commit"]}
    assert record["world"] == {"hours": 23, "restates": True}


@pytest.mark.parametrize(("given", "says"), [("seed=3", "name seeds by --seeds"), ("pace.update=3", "--set: pace.update is no setting"),
                                             ("pace.updates=0", "--set: pace.updates"), ("gear.paths", "--set: 'gear.paths' sets nothing")])
def test_settings_that_an_experiment_refuses(tmp_path, capsys, given, says):
    assert run(tmp_path / "out", "--arms", "student", "--set", given) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_setting_is_that_of_the_runs(tmp_path):
    assert run(tmp_path, "--arms", "student", "--set", "eval_n=1", "--set", "gear.refuse_answers=false") == 0
    made = json.loads((tmp_path / "shipped" / "seed-0" / "config.json").read_text())["identity"]
    assert (made["eval_n"], made["gear.refuse_answers"], made["eval_limit"]) == (1, False, 2)


def test_seen_problems_need_only_facts_of_training_problems():
    train = [Problem("t", "Start 1; + 2; # 4", "10"), Problem("u", "Start 5; @ 2", "17")]
    chains = {"frontier": ("Start 3; # 4; * 2", "Start 4; # 4"), "double": ("Start 3; # 4; # 4",), "mastered": ("Start 9" + 7 * "; + 9",)}
    problems = [Problem(text, text, "", kind, text.count(";")) for kind, texts in chains.items() for text in texts]
    said = X.about(problems, train, hours=23)
    assert said["seen"] == [True, False, False, True]
    assert said["kind"] == ["frontier", "frontier", "double", "mastered, long"]
    heldout = [p for p in limit_by_kind(X.problems_of("heldout"), 150) if p.kind == "frontier"]
    assert sum(X.about(heldout, X.problems_of("train"), 23)["seen"]) / 150 == pytest.approx(0.81, abs=0.01)


def test_pairs_of_different_worlds_have_no_record_in_common(tmp_path, capsys):
    other = tmp_path / "other"
    for name in ("teacher", "student", "clock"):
        shutil.copytree(DATA / name, other / name)
    lines = (other / "clock" / "heldout.jsonl").read_text().splitlines()
    (other / "clock" / "heldout.jsonl").write_text("\n".join(reversed(lines)) + "\n")
    assert run(tmp_path, "--pairs", "shipped", str(other), "--arms", "student") == 2
    assert "run one experiment per world" in capsys.readouterr().err


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


@pytest.mark.parametrize("arms", [("rft", "heal"), pytest.param(A.ARMS, marks=pytest.mark.slow)], ids=["two arms", "all"])
def test_rows_and_differences_follow_from_the_runs(record, arms):
    again = X.summary({**record, "runs": [r for r in record["runs"] if r["arm"] in arms]})
    for name in ("rows", "differences"):
        expected = [r for r in record[name] if set(r["arm"].split(" − ")) <= {*arms, "recall"}]
        assert len(again[name]) == len(expected) > 50
        for mine, theirs in zip(again[name], expected, strict=True):
            assert mine == pytest.approx(theirs, abs=1e-9)


def test_the_record_is_complete(record):
    train = X.problems_of("train")
    runs = {(r["pair"], r["arm"], r["seed"]): r for r in record["runs"]}
    pairs, arms, seeds = (set(names) for names in zip(*runs, strict=True))
    assert len(record["runs"]) == len(runs) == len(pairs) * len(arms) * len(seeds)
    assert pairs == set(record["pairs"])
    assert arms <= set(A.ARMS)
    assert (len(pairs) >= 4 and "0" in pairs) or len(arms) >= 20  # pair 0: the one command, seed 0
    assert len({r["updates"] for r in runs.values() if r["arm"] in A.TRAINED}) == 1
    for pair, arm, seed in runs:
        adaptive, at, x = arm.partition("@")
        if adaptive in ("rft_adaptive", "rft_adaptive_frontier", "rft_matched"):
            spent, heal = (runs[pair, name, seed] for name in (arm, f"heal{at}{x}"))
            more = spent["generated"] - heal["generated"] - heal["scored"]
            assert more < 200, (pair, arm)
            assert more >= 0 or spent["examples"] == {"all": 4 * len(train)}, (pair, arm)  # all solved, nothing left to sample
    assert len(set(record["problems"]["id"])) == len(record["problems"]["id"]) == len(record["runs"][0]["correct"])
    assert "dirty" not in record["provenance"]["commit"]


def test_what_the_first_page_says(record):
    """Which differences are real, by their 95 % intervals on held-out problems."""
    results = Results(record)
    for other in ("teacher", "rft"):
        assert results.difference("heal", other, "frontier").low > 0
        assert results.difference("rft_adaptive", other, "frontier").low > 0
    for kind in ("shaky", "double"):
        assert results.difference("heal", "teacher", kind).low > 0
    assert results.difference("heal", "rft", "mastered").mean >= -0.01
    assert results.row("heal", "frontier, unseen").low < 1 / 23 + 0.02  # recall
