"""The run folder: killed anywhere it ends the same; other settings are refused; Ctrl-C keeps what is done."""

import dataclasses
import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from heal_ref.config import HealConfig
from heal_ref.records import InputError, Problem, limit_by_kind, write_text
from heal_ref.run.pipeline import RunFolder, RunSpec, shard_seed
from tests.conftest import DATA, ROOT

DRIVER = ROOT / "tests" / "kill_driver.py"


def drive(out: Path, mode: str) -> int:
    args = [sys.executable, str(DRIVER), str(out), mode]
    done = subprocess.run(args, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout.split()[-1])


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a run, the report without its times."""
    paths = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.suffix != ".tmp"]
    files = {str(p.relative_to(folder)): p.read_bytes() for p in paths}
    files.pop("log.txt")  # for people: times
    report = json.loads(files.pop("report.json"))
    report["provenance"].pop("minutes")
    return files | {"report": json.dumps(report).encode()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One undisturbed run at smoke size."""
    out = tmp_path_factory.mktemp("run") / "whole"
    assert drive(out, "none") == 0
    return out


def test_report_of_a_whole_run(whole):
    report = json.loads((whole / "report.json").read_text())
    arms = {r["arm"] for r in report["rows"]}
    assert arms == {"student", "teacher", "rft", "heal"}
    for row in report["rows"]:
        assert set(row) == {"arm", "kind", "metric", "mean", "low", "high", "n", "seeds"}
    assert {r["kind"] for r in report["rows"]} == {"mastered", "shaky", "frontier", "double", "misconceived"}
    counts = report["provenance"]["counts"]
    assert counts["repaired kept"] > 0
    assert counts["guided kept"] > 0
    assert counts["stage repaired"] > counts["stage guided"] > counts["stage foundation"]


def test_killed_at_every_write_ends_the_same(whole, tmp_path):
    """Every stage boundary, and the middle of every shard."""
    killed = drive(tmp_path / "run", "writes")
    assert killed >= 2 * len(list(whole.rglob("*.jsonl")))
    assert content(tmp_path / "run") == content(whole)


def test_killed_at_20_random_moments_ends_the_same(whole, tmp_path):
    assert drive(tmp_path / "run", "random") == 20
    assert content(tmp_path / "run") == content(whole)


def spec(**changes):
    config = dataclasses.replace(HealConfig.smoke(), **changes)
    return RunSpec("t", "s", str(DATA / "clock" / "train.jsonl"), str(DATA / "clock" / "heldout.jsonl"), config)


def test_other_settings_are_refused_with_the_difference(tmp_path):
    RunFolder(tmp_path, spec().fingerprint())
    RunFolder(tmp_path, spec().fingerprint())
    with pytest.raises(InputError) as caught:
        RunFolder(tmp_path, spec(eval_n=3, seed=4).fingerprint())
    assert "eval_n: 2 in the folder, 3 now" in str(caught.value)
    assert "seed: 0 in the folder, 4 now" in str(caught.value)
    assert "gear" not in str(caught.value)


def test_problem_files_count_by_content(tmp_path):
    a = spec().fingerprint()
    copied = tmp_path / "copy.jsonl"
    copied.write_bytes((DATA / "clock" / "train.jsonl").read_bytes())
    assert dataclasses.replace(spec(), train=str(copied)).fingerprint() == a
    copied.write_bytes(copied.read_bytes() + b"\n")
    assert dataclasses.replace(spec(), train=str(copied)).fingerprint() != a


def test_finished_shards_are_not_made_again(tmp_path, make):
    folder, calls = RunFolder(tmp_path, {}, quiet=True), []

    def work(item, seed):
        calls.append((item, seed))
        return [make(item)]

    first = folder.shards("s", ["a", "b"], work, seed=0)
    (tmp_path / "s" / "00001.jsonl").unlink()
    write_text(tmp_path / "s" / "00001.jsonl.tmp.other", "half a shard")
    assert folder.shards("s", ["a", "b"], work, seed=0) == first
    assert [item for item, _ in calls] == ["a", "b", "b"]
    assert calls[1] == calls[2]  # the same seed again


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
    with pytest.raises(InputError, match="00001.jsonl cannot be written: No space left on device; make room"):
        folder.shards("s", ["a", "b", "c"], work, seed=0)
    assert [p.name for p in sorted((tmp_path / "s").iterdir())] == ["00000.jsonl"]
    monkeypatch.undo()
    assert [t.problem.id for t in folder.shards("s", ["a", "b", "c"], work, seed=0)] == ["a", "b", "c"]
    assert made == ["a", "b", "b", "c"]


def test_a_run_that_the_system_stops_from_writing_exits_with_2(tmp_path):
    """A real limit of the operating system on the size of a file, instead of a pretended one."""
    out = tmp_path / "run"

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    done = subprocess.run(command("run", "--preset", "smoke", "--out", out, "--quiet"), preexec_fn=limit, cwd=ROOT,
                          capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2
    assert "cannot be written: File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(out.rglob("*.tmp"))
    assert (out / "config.json").exists()


def test_shard_seeds_differ():
    seeds = [shard_seed(seed, stage, i) for seed in range(3) for stage in ("a", "b") for i in range(200)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= s < 2**31 for s in seeds)


def test_limit_by_kind():
    problems = [Problem(str(i), "q", "1", kind) for i, kind in enumerate("aabbba")]
    assert [p.id for p in limit_by_kind(problems, 2)] == ["0", "1", "2", "3"]
    assert limit_by_kind(problems, 0) == problems


def command(*args):
    return [sys.executable, "-m", "heal_ref", *map(str, args)]


def test_ctrl_c_keeps_what_is_done_and_says_so(tmp_path, whole):
    out = tmp_path / "run"
    args = command("run", "--preset", "smoke", "--heldout", DATA / "clock" / "validation.jsonl", "--out", out)
    # A shell that starts the tests in the background has them ignore Ctrl-C; what is started here must not.
    process = subprocess.Popen(args, stderr=subprocess.PIPE, text=True, cwd=ROOT,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # noqa: PLW1509
    for _ in range(600):
        if list(out.glob("2-guided/*.jsonl")):
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    message = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "the same command goes on from there" in message
    assert "Traceback" not in message
    assert not (out / "report.json").exists()
    done = subprocess.run(args, capture_output=True, text=True, cwd=ROOT, check=True)
    mine, other = json.loads((out / "report.json").read_text()), json.loads((whole / "report.json").read_text())
    assert mine["rows"] == other["rows"]
    assert "HEAL" in done.stdout
    assert "frontier" in done.stdout
    for name in ("ceiling", "stages", "entropy", "filter"):
        assert (out / "figures" / f"{name}.png").stat().st_size > 10_000
        assert f"figures/{name}.png" in (out / "index.html").read_text()


@pytest.mark.parametrize(("args", "message"), [(("--problems", "nowhere.jsonl"), "no such file")])  # more: test_bad_inputs
def test_bad_input_is_one_line_and_exit_code_2(args, message, tmp_path):
    done = subprocess.run(command("run", "--preset", "smoke", "--out", tmp_path / "run", *args), capture_output=True, text=True,
                          check=False, cwd=ROOT)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
