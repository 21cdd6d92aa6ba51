"""The run folder: killed anywhere it ends the same; what is there is kept; a run with nothing to do says so."""

import contextlib
import dataclasses
import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet
from transformers import AutoTokenizer

from heal_ref.__main__ import main
from heal_ref.config import HealConfig, PaceConfig, SampleConfig
from heal_ref.generation import sample
from heal_ref.model import LM, load_lm, weights_hash
from heal_ref.records import InputError, Problem, limit_by_kind, write_text
from heal_ref.run.folder import RunFolder, identity, shard_seed, task_source
from heal_ref.run.pipeline import RunSpec, counts_of, run
from heal_ref.run.shards import read_shard, records_in
from heal_ref.run.sources import load_problems
from heal_ref.tasks import ClockTask
from tests.conftest import DATA, ROOT, run_files

DRIVER = ROOT / "tests" / "kill_driver.py"
TRAIN, HELDOUT, VALIDATION = (str(DATA / "clock" / f"{name}.jsonl") for name in ("train", "heldout", "validation"))


# ----------------------------------------------------------------------------------- a whole run


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One undisturbed run at smoke size."""
    out = tmp_path_factory.mktemp("run") / "whole"
    assert main(["run", "--preset", "smoke", "--heldout", VALIDATION, "--out", str(out), "--quiet"]) == 0
    return out


def strict(path):
    """JSON without NaN and Infinity, which are not JSON."""

    def refuse(name):
        raise AssertionError(name)

    return json.loads(path.read_text(), parse_constant=refuse)


def test_report_of_a_whole_run(whole):
    report = strict(whole / "report.json")
    arms = {r["arm"] for r in report["rows"]}
    assert arms == {"student", "teacher", "rft", "heal"}
    for row in report["rows"]:
        assert set(row) == {"arm", "kind", "metric", "mean", "low", "high", "n", "seeds"}, row
    assert {r["kind"] for r in report["rows"]} == {"mastered", "shaky", "frontier", "double", "misconceived"}
    counts = report["provenance"]["counts"]
    assert counts["repaired kept"] > 0
    assert counts["guided kept"] > 0
    assert counts["stage repaired"] > counts["stage guided"] > counts["stage foundation"]
    assert report["notes"] == []
    for name in ("ceiling", "filter"):
        assert (whole / "figures" / f"{name}.png").stat().st_size > 10_000
        assert f"figures/{name}.png" in (whole / "index.html").read_text()


def test_counts_of_hints_are_those_of_the_records(whole):
    records = list(records_in(whole, "3-repaired"))
    counts = strict(whole / "report.json")["provenance"]["counts"]
    stubs = [t for t in records if t.hint is None]
    assert counts["repaired"] == len(records) - len(stubs) > 0
    assert counts["hints unusable"] == len(stubs)
    assert {k: v for k, v in counts.items() if k.startswith("hints unusable: ")} == {
        f"hints unusable: {why}": n for why, n in Counter(t.note for t in stubs).items()
    }
    assert counts["paths repaired"] == len({(t.problem.id, t.parent) for t in records})


def test_counts_by_hand(make):
    base = [make("a"), make("b", correct=True)]
    repaired = [
        make("a", source="repair", parent=0, hint="so", index=0),
        make("a", source="repair", parent=0, hint="so", index=1),
        make("a", source="repair", parent=1, note="hint unreadable"),
    ]
    assert counts_of(base, base, repaired) == {
        "base": 2,
        "base correct": 1,
        "guided": 2,
        "repaired": 2,
        "paths repaired": 2,
        "hints unusable": 1,
        "hints unusable: hint unreadable": 1,
        "teacher tokens": 7 * 8,
    }


# ------------------------------------------------------------------------------------- the ledger


def shown(capsys, *args):
    """What `show` prints: the lines about trajectories, and how many there are of each verdict, by stage."""
    capsys.readouterr()
    assert main(["show", *map(str, args)]) == 0
    lines, _, sums = capsys.readouterr().out.partition("\n\n" if "--steps" not in args and "--id" not in args else "shown")
    counts, stage = {}, ""
    for line in sums.splitlines()[1:]:
        if line.startswith("  "):
            number, _, why = line.strip().partition("  ")
            counts[stage][why] = int(number.replace(",", ""))
        else:
            stage = line.partition(":")[0]
            counts[stage] = {}
    return lines.splitlines(), counts


def test_the_ledger_adds_up_to_the_report(whole, capsys):
    lines, sums = shown(capsys, whole, "--limit", 0)
    counts = strict(whole / "report.json")["provenance"]["counts"]
    assert len(lines) == sum(sum(stage.values()) for stage in sums.values())
    assert sum(sums["1-base"].values()) == counts["base"]
    kept = {stage: sum(n for why, n in found.items() if why.startswith("kept")) for stage, found in sums.items()}
    assert kept["1-base"] == counts["stage foundation"]
    assert kept["1-base"] + kept["2-guided"] == counts["stage guided"]
    assert sum(kept.values()) == counts["stage repaired"]
    for name in ("guided", "repaired"):
        stage = sums["2-guided" if name == "guided" else "3-repaired"]
        passed = {"kept: score within PURE's threshold", "dropped: the text of an earlier one"}
        assert sum(stage.get(why, 0) for why in passed) == counts[f"{name} kept"]
        assert sum(stage.get(why, 0) for why in {*passed, "dropped: score above PURE's threshold"}) == counts[f"{name} correct"]
    assert sums["3-repaired"]["dropped: hint states the answer"] == counts["hints unusable: hint states the answer"]


def test_what_is_shown_can_be_chosen(whole, capsys):
    kept, sums = shown(capsys, whole, "--source", "repair", "--kept", "--limit", 0)
    dropped, _ = shown(capsys, whole, "--stage", "3-repaired", "--dropped", "--limit", 0)
    assert list(sums) == ["3-repaired"]
    assert len(kept) + len(dropped) == sum(sums["3-repaired"].values())
    assert all("kept: score within" in line for line in kept)
    assert all("dropped: " in line for line in dropped)
    few, _ = shown(capsys, whole, "--limit", 3)
    assert len(few) == 3
    evaluated, sums = shown(capsys, whole, "--stage", "6-eval/heal-greedy", "--limit", 0)
    assert len(evaluated) == sum(sums["6-eval/heal-greedy"].values()) == 80
    assert set(sums["6-eval/heal-greedy"]) <= {"right", "wrong answer", "no answer that counts", "cut off by the length limit"}


def test_a_trajectory_is_shown_with_all_that_is_known_of_it(whole, capsys):
    scored = next(s for s in records_in(whole, "4-scores/repaired") if s.trajectory.breakpoint)
    t = scored.trajectory
    lines, _ = shown(capsys, whole, "--id", t.problem.id)
    text = "\n".join(lines)
    assert f"repairs base #{t.parent}, cut before step {t.breakpoint}; hint: {t.hint}" in text
    for k, (h, ratio, step) in enumerate(zip(t.step_entropy, scored.ratio, t.step_texts, strict=True)):
        mark = "cut>" if k == t.breakpoint else ""
        assert f"{mark:>5}{k:4d}{h:9.3f}{ratio:9.3f}   {step.strip()}" in lines
    threshold = strict(whole / "report.json")["provenance"]["counts"]["threshold"]
    assert f"score {scored.score:.6f}, threshold {threshold:.6f}" in text
    assert f"{t.problem.id} base #{t.parent}  ({t.problem.kind})" in text
    assert sum("cut>" in line for line in lines) >= 2  # in the sample, and in its repair
    assert f"{len(t.token_ids)} tokens, {t.tokens_spent} spent" in text


def test_an_unfinished_run_is_shown(whole, tmp_path, capsys):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    for name in ("4-scores/repaired", "5-students", "6-eval"):
        shutil.rmtree(out / name)
    (out / "report.json").unlink()
    _, sums = shown(capsys, out)
    assert "open: not scored yet" in sums["3-repaired"]
    assert "kept: score within PURE's threshold" in sums["2-guided"]
    shutil.rmtree(out / "4-scores")
    _, sums = shown(capsys, out)
    assert {why for why in sums["2-guided"] if why[:4] != "drop"} == {"open: not scored yet"}
    for name in ("2-guided", "3-repaired"):
        shutil.rmtree(out / name)
    _, sums = shown(capsys, out)
    assert list(sums) == ["1-base"]
    (out / "1-base" / "00001.parquet").write_bytes(b"")
    assert main(["show", str(out)]) == 2
    assert "00001.parquet is not a whole shard" in capsys.readouterr().err


def test_show_ends_with_the_program_that_reads_it(whole):
    command = f"{sys.executable} -m heal_ref show {whole} --limit 0 | head -1"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("1-base/00000:0 ")
    assert done.stderr == ""


# ----------------------------------------------------------------------- nothing, and everything


def small(**changes):
    config = dataclasses.replace(
        HealConfig.smoke(), train_limit=3, eval_limit=2, pace=PaceConfig(updates=2, batch=4, warmup=0)
    )
    return RunSpec("t", "s", TRAIN, HELDOUT, dataclasses.replace(config, **changes))


def report_of(spec, out, lms):
    report = run(spec, out, ClockTask(), lms=lms, quiet=True)
    assert strict(out / "report.json") == json.loads(json.dumps(report))
    log = (out / "log.txt").read_text()
    assert all(note in log for note in report["notes"])
    return report


def rows_of(report, arm):
    return [{**row, "arm": ""} for row in report["rows"] if row["arm"] == arm]


def test_a_teacher_that_solves_nothing(tmp_path, random_lm, teacher):
    """The run ends with a report: PURE is off, there is nothing to train on, both students are the base student."""
    report = report_of(small(), tmp_path / "run", (random_lm, teacher))
    assert report["provenance"]["counts"]["base correct"] == 0
    assert report["provenance"]["counts"]["threshold"] is None
    assert [note.split(":")[0] for note in report["notes"]] == [
        "the teacher solved no training problem by itself",
        "PURE is off",
        "rft",
        "heal",
    ]
    assert rows_of(report, "rft") == rows_of(report, "heal") == rows_of(report, "student")
    assert not (tmp_path / "run" / "5-students").exists()


def test_a_foundation_without_data_is_the_base_student(tmp_path, teacher, monkeypatch):
    """What the teacher solves only with help still teaches the HEAL student; rejection sampling has nothing."""
    frontier = [p for p in load_problems(TRAIN) if p.kind == "frontier"][:12]
    tried = sample(teacher, ClockTask(), frontier, 1, sampling=SampleConfig(temperature=0.0))
    failed = [vars(t.problem) for t in tried if not t.correct]
    (tmp_path / "hard.jsonl").write_text("\n".join(map(json.dumps, failed)))
    greedy = small(sample=SampleConfig(n=1, temperature=0.0), train_limit=12)
    spec = dataclasses.replace(greedy, train=str(tmp_path / "hard.jsonl"))
    report = report_of(spec, tmp_path / "run", (teacher, load_lm(DATA / "student")))
    assert report["provenance"]["counts"]["base correct"] == 0
    counts = report["provenance"]["counts"]
    assert counts["guided kept"] + counts["repaired kept"] > 0
    assert [note.split(":")[0] for note in report["notes"]] == [
        "the teacher solved no training problem by itself",
        "PURE is off",
        "rft",
    ]
    assert rows_of(report, "rft") == rows_of(report, "student")
    assert rows_of(report, "heal") != rows_of(report, "student")


def test_a_teacher_that_solves_everything(tmp_path, teacher):
    easy = [line for line in Path(TRAIN).read_text().splitlines() if '"mastered"' in line][:12:3]
    (tmp_path / "easy.jsonl").write_text("\n".join(easy))
    spec = dataclasses.replace(small(sample=SampleConfig(n=1, temperature=0.0)), train=str(tmp_path / "easy.jsonl"))
    report = report_of(spec, tmp_path / "run", (teacher, load_lm(DATA / "student")))
    assert report["provenance"]["counts"]["base correct"] == 3
    assert report["notes"] == ["the teacher solved every training problem often enough: nothing was guided or repaired"]


def test_notes_are_printed(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("heal_ref.run.pipeline.pure.unaided", lambda base: [])
    small_file = tmp_path / "p.jsonl"
    small_file.write_text('{"question": "Start 5; + 3", "answer": 8}\n')
    assert (
        main(
            [
                "run",
                "--preset",
                "smoke",
                "--quiet",
                "--problems",
                str(small_file),
                "--heldout",
                str(small_file),
                "--out",
                str(tmp_path / "run"),
            ]
        )
        == 0
    )
    assert "\nPURE is off: " in capsys.readouterr().out


def test_the_student_has_another_tokenizer(tmp_path, teacher):
    """The student is evaluated with the task for its own tokenizer."""
    asked = []

    class Both(ClockTask):
        def for_tokenizer(self, tokenizer):
            asked.append(tokenizer)
            return self

    other = AutoTokenizer.from_pretrained(DATA / "student")
    other.add_tokens(["another word"])
    student = load_lm(DATA / "student")
    student.model.resize_token_embeddings(len(other), mean_resizing=False)
    student = LM(student.model, other)
    run(small(), tmp_path / "run", Both(), lms=(teacher, student), quiet=True)
    assert other in asked


# --------------------------------------------------------------------------------------- identity


def identity_of(task=None, **changes):
    task = task or ClockTask()
    lm = load_lm(DATA / "student")
    problems = {"training": [Problem("a", "Start 5; + 3", "8")]}
    return identity(dataclasses.replace(HealConfig.smoke(), **changes), task, {"teacher": lm}, problems)


def test_identity_holds_what_decides_the_result(tmp_path):
    what = identity_of()
    assert what["task"] == "heal_ref.tasks.clock.ClockTask"
    assert what["version of math-verify"] == "0.9.0"
    assert what["training problems"].startswith("1, ")
    assert what["plain prompt"] == ClockTask().prompt(Problem("a", "Start 5; + 3", "8"))
    assert what["pace.updates"] == 12
    assert what["end tokens of the teacher"] == list(load_lm(DATA / "student").ends)
    assert identity_of() == what
    assert not {key for key, value in what.items() if str(DATA) in str(value)}  # a moved model is the same


def test_the_source_of_a_task_counts(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "own_task_for_identity.py"
    path.write_text("from heal_ref.tasks import ClockTask\nclass Mine(ClockTask):\n    limit = 3\n")
    from own_task_for_identity import Mine

    first = task_source(Mine())
    assert identity_of(Mine())["task"] == "own_task_for_identity.Mine"
    path.write_text(path.read_text().replace("3", "4"))
    assert task_source(Mine()) != first
    assert task_source(type("Typed", (ClockTask,), {"prompt": lambda self, p: p.question})()) != task_source(
        ClockTask()
    )


def test_the_settings_of_a_task_count():
    task = ClockTask()
    task.words = "many"
    assert identity_of(task)["task.words"] == "many"
    task.words, task.rules = ("a", ["b"]), {"x": [1, {"y": None}], 2: object()}
    what = identity_of(task)
    assert what["task.words"] == ["a", ["b"]]
    assert what["task.rules"] == {"x": [1, {"y": None}], "2": "object"}


def test_the_modules_beside_a_task_count(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "beside_a.py").write_text("from beside_b import LIMIT\n")
    (tmp_path / "beside_b.py").write_text("LIMIT = 3\n")
    (tmp_path / "beside_c.py").write_text("OTHER = 3\n")
    (tmp_path / "own_task_beside.py").write_text(
        "import beside_a\nfrom heal_ref.tasks import ClockTask\nclass Mine(ClockTask):\n    pass\n"
    )
    from own_task_beside import Mine

    seen = {task_source(Mine())}
    for name in ("beside_a.py", "beside_b.py"):
        (tmp_path / name).write_text((tmp_path / name).read_text() + "MORE = 1\n")
        seen.add(task_source(Mine()))
    assert len(seen) == 3
    (tmp_path / "beside_c.py").write_text("OTHER = 4\n")
    assert task_source(Mine()) in seen


def test_any_other_weight_is_another_model(random_lm):
    before = weights_hash(random_lm.model)
    weight = next(random_lm.model.parameters())
    weight.data.view(-1)[1] += 1e-3
    after = weights_hash(random_lm.model)
    weight.data = weight.data.flip(0)
    assert len({before, after, weights_hash(random_lm.model), weights_hash(random_lm.model.bfloat16())}) == 4


def test_other_settings_are_refused_with_the_difference(tmp_path):
    RunFolder(tmp_path, identity_of())
    RunFolder(tmp_path, identity_of())
    with pytest.raises(InputError) as caught:
        RunFolder(tmp_path, identity_of(eval_n=3, seed=4))
    assert str(caught.value) == (
        f"{tmp_path} belongs to another run (seed: 0 in the folder, 4 now; eval_n: 2 in the folder, "
        "3 now); use another --out, or delete it"
    )


# ----------------------------------------------------------------------------------------- shards


def test_finished_shards_are_not_made_again(tmp_path, make):
    folder, calls = RunFolder(tmp_path, {}, quiet=True), []

    def work(item, seed):
        calls.append((item, seed))
        return [make(item)]

    first = list(folder.shards("s", ["a", "b"], work, seed=0))
    (tmp_path / "s" / "00001.parquet").unlink()
    write_text(tmp_path / "s" / "00001.parquet.tmp.other", "half a shard")
    assert list(folder.shards("s", ["a", "b"], work, seed=0)) == first
    assert [item for item, _ in calls] == ["a", "b", "b"]
    assert calls[1] == calls[2]  # the same seed again


def damage(content):
    """Name -> a shard's bytes, spoilt."""
    return {
        "empty": b"",
        "cut off": content[:-5],
        "the first half": content[: len(content) // 2],
        "without its beginning": content[4:],
        "zeros": b"\0" * len(content),
        "JSON Lines": b'{"records": 0}\n',
    }


def test_a_shard_is_whole_or_refused(tmp_path, make):
    folder = RunFolder(tmp_path, {}, quiet=True)

    def work(item, seed):
        return [make(item, text="ab|cd|" * 20, index=i) for i in range(3)]

    made = list(folder.shards("s", ["a", "b"], work, seed=0))
    assert [(t.problem.id, t.index) for t in made] == [(p, i) for p in "ab" for i in range(3)]
    assert [t.place for t in made] == [(f"s/0000{f}.parquet", row) for f in (0, 1) for row in range(3)]
    path = tmp_path / "s" / "00000.parquet"
    whole, other = path.read_bytes(), (tmp_path / "s" / "00001.parquet").read_bytes()
    assert list(read_shard(path)) == made[:3]
    for part in damage(whole).values():
        path.write_bytes(part)
        with pytest.raises(
            InputError, match=r"00000.parquet is not a whole shard \(.*\); delete it and start the same command again"
        ):
            list(folder.shards("s", ["a", "b"], work, seed=0))
    for at in range(0, len(whole), 7):  # a changed byte is refused, or it is one that no record is made of
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with contextlib.suppress(InputError):
            assert list(folder.shards("s", ["a", "b"], work, seed=0)) == made
    path.write_bytes(other)
    with pytest.raises(InputError, match=r"00000.parquet is not a whole shard \(its shard is 1, not 0\)"):
        folder.shards("s", ["a", "b"], work, seed=0)
    path.unlink()
    assert list(folder.shards("s", ["a"], lambda *_: [], seed=0)) == []  # a shard may be empty


def test_a_shard_of_another_stage_or_run_is_refused(tmp_path, make):
    for name in ("one", "two"):
        folder = RunFolder(tmp_path / name, {"name": name}, quiet=True)
        for stage in ("s", "t"):
            folder.shards(stage, ["a"], lambda item, _: [make(item)], seed=0)
    theirs = tmp_path / "one" / "s" / "00000.parquet"
    for stage, why in (("t", "its stage is 's', not 't'"), ("s", "its run is ")):
        shutil.copy(theirs, tmp_path / "two" / stage / "00000.parquet")
        with pytest.raises(InputError, match=why):
            folder.shards(stage, ["a"], lambda *_: [], seed=0)
    path = tmp_path / "two" / "s" / "00000.parquet"
    parquet.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(InputError, match="is not a whole shard .it was not written by a run"):
        folder.shards("s", ["a"], lambda *_: [], seed=0)


def test_a_folder_of_json_lines_is_refused(tmp_path):
    RunFolder(tmp_path, {})
    write_text(tmp_path / "4-scores" / "guided" / "00000.jsonl", "{}")
    with pytest.raises(InputError, match=r"older version \(4-scores/guided/00000.jsonl\), .* use another --out"):
        RunFolder(tmp_path, {})


def test_a_full_disk_is_said_and_the_folder_goes_on(tmp_path, make, monkeypatch):
    """ENOSPC while the second shard is written: one line, no half file, and the same command finishes the rest."""
    folder, made = RunFolder(tmp_path, {}, quiet=True), []

    def work(item, seed):
        made.append(item)
        return [make(item)]

    def full(_):
        if len(made) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("heal_ref.records.os.fsync", full)
    with pytest.raises(InputError, match="00001.parquet cannot be written: No space left on device; make room"):
        folder.shards("s", ["a", "b", "c"], work, seed=0)
    assert [p.name for p in sorted((tmp_path / "s").iterdir())] == ["00000.parquet"]
    monkeypatch.undo()
    assert [t.problem.id for t in folder.shards("s", ["a", "b", "c"], work, seed=0)] == ["a", "b", "c"]
    assert made == ["a", "b", "b", "c"]


def test_shard_seeds_differ():
    seeds = [shard_seed(seed, stage, i) for seed in range(3) for stage in ("a", "b") for i in range(200)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= s < 2**31 for s in seeds)


def test_limit_by_kind():
    problems = [Problem(str(i), "q", "1", kind) for i, kind in enumerate("aabbba")]
    assert [p.id for p in limit_by_kind(problems, 2)] == ["0", "1", "2", "3"]
    assert limit_by_kind(problems, 0) == problems


# ------------------------------------------------------------------------------ killed and stopped


def drive(out: Path, mode: str) -> int:
    args = [sys.executable, str(DRIVER), str(out), mode]
    done = subprocess.run(args, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout.split()[-1])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("driven") / "whole"
    assert drive(out, "none") == 0
    return out


@pytest.mark.slow
def test_killed_at_every_write_ends_the_same(undisturbed, tmp_path):
    """Every stage boundary, and the middle of every shard."""
    killed = drive(tmp_path / "run", "writes")
    assert killed >= 2 * len(list(undisturbed.rglob("*.parquet")))
    assert run_files(tmp_path / "run") == run_files(undisturbed)


@pytest.mark.slow
def test_killed_at_20_random_moments_ends_the_same(undisturbed, tmp_path):
    assert drive(tmp_path / "run", "random") == 20
    assert run_files(tmp_path / "run") == run_files(undisturbed)


def command(*args):
    return [sys.executable, "-m", "heal_ref", *map(str, args)]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["1-base", "5-students"])
def test_a_run_that_the_system_stops_from_writing_exits_with_2(tmp_path, whole, stage):
    """A real limit of the operating system on the size of a file: in a shard, and while a student is saved."""
    out = tmp_path / "run"
    if stage == "5-students":
        shutil.copytree(whole, out)
        shutil.rmtree(out / "5-students")

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        most = 20_000 if stage == "1-base" else 500_000
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    args = command("run", "--preset", "smoke", "--heldout", VALIDATION, "--out", out, "--quiet")
    done = subprocess.run(args, preexec_fn=limit, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2, done.stderr[-2000:]
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(out.rglob("*.tmp"))
    assert (out / "config.json").exists()
    if stage == "5-students":
        assert subprocess.run(args, cwd=ROOT, capture_output=True, check=False, timeout=300).returncode == 0
        assert strict(out / "report.json")["rows"] == strict(whole / "report.json")["rows"]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of memory from /proc")
def test_memory_does_not_grow_with_the_number_of_shards(tmp_path):
    """Shards of 32,000 tokens, made up: 20 times as many need at most 1.2 times the memory."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    peaks = {}
    for shards in (1, 20):
        args = [sys.executable, str(ROOT / "tests" / "memory_driver.py"), str(shards), str(tmp_path / str(shards))]
        done = subprocess.run(args, capture_output=True, text=True, check=False, timeout=900, env=env)
        assert done.returncode == 0, done.stderr[-2000:]
        peak, tokens = map(float, done.stdout.split())
        assert tokens >= shards * 100_000
        peaks[shards] = peak
    assert peaks[20] <= 1.2 * peaks[1], peaks


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_done_and_says_so(tmp_path, whole):
    out = tmp_path / "run"
    args = command("run", "--preset", "smoke", "--heldout", VALIDATION, "--out", out)
    # A shell that starts the tests in the background has them ignore Ctrl-C; what is started here must not.
    process = subprocess.Popen(
        args,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # noqa: PLW1509
    for _ in range(600):
        if list(out.glob("2-guided/*.parquet")):
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    message = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "the same command continues from there" in message
    assert "Traceback" not in message
    assert not (out / "report.json").exists()
    done = subprocess.run(args, capture_output=True, text=True, cwd=ROOT, check=True)
    assert strict(out / "report.json")["rows"] == strict(whole / "report.json")["rows"]
    assert "HEAL" in done.stdout
    assert "frontier" in done.stdout
