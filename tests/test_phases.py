"""Models are in memory only while a phase needs them, and what a phase took stands beside its plan."""

import copy
import dataclasses
import gc
import json
import subprocess
import sys
import weakref

import pytest
import torch
from datasets import Dataset

from heal_lab.clock_corpus import Dials, example
from heal_lab.pair import Recipe, new_model
from heal_ref import memory
from heal_ref.__main__ import main
from heal_ref.config import HealConfig, PaceConfig, SampleConfig
from heal_ref.generation import sample
from heal_ref.memory import lazy_lm, peak_memory, release_memory, reset_peak, used_memory
from heal_ref.model import load_lm, weights_hash
from heal_ref.pace import distill
from heal_ref.pure import answer_uncertainty
from heal_ref.records import InputError, Problem
from heal_ref.run.measure import measure
from heal_ref.run.phases import PHASES, cost_table
from heal_ref.run.pipeline import RunSpec, run
from heal_ref.run.shards import records_in
from heal_ref.tasks import ClockTask
from tests.conftest import DATA, ROOT

TEACHER, STUDENT = str(DATA / "teacher"), str(DATA / "student")
TRAIN, HELDOUT = str(DATA / "clock" / "train.jsonl"), str(DATA / "clock" / "heldout.jsonl")
SMALL = dataclasses.replace(HealConfig.smoke(), train_limit=2, eval_limit=1, pace=PaceConfig(updates=3, batch=4, warmup=0))


class Loads:
    """Counts what is loaded, and finds whether a model that was loaded before is still alive."""

    def __init__(self):
        self.sources, self.models, self.together = [], [], 0

    def load(self, source, **more):
        gc.collect()
        self.together = max(self.together, 1 + sum(ref() is not None for ref in self.models))
        lm = load_lm(source, **more)
        self.sources.append(str(source))
        self.models.append(weakref.ref(lm.model))
        return lm


@pytest.fixture
def loads(monkeypatch):
    counter = Loads()
    monkeypatch.setattr(memory, "load_lm", counter.load)
    return counter


# ------------------------------------------------------------------------------- a model that loads itself


def test_a_lazy_model_is_loaded_at_its_first_use_and_freed(loads):
    lm = lazy_lm(STUDENT)
    assert lm.encode("compute 5")
    assert not loads.sources
    known = (lm.weights, lm.ends, lm.dtype, lm.device, lm.config.vocab_size, lm.fingerprint)
    assert len(loads.sources) == 1
    lm.free()
    gc.collect()
    assert loads.models[0]() is None
    assert known == (lm.weights, lm.ends, lm.dtype, lm.device, lm.config.vocab_size, lm.fingerprint)
    assert len(loads.sources) == 1  # remembered
    plain = load_lm(STUDENT)
    assert known[:4] == (weights_hash(plain.model), plain.ends, plain.dtype, plain.device)
    assert lm.model is lm.model
    assert len(loads.sources) == 2


def test_a_demanded_answer_needs_no_model_that_is_loaded_already():
    lazy, loaded, task = lazy_lm(TEACHER), load_lm(TEACHER), ClockTask()
    t = sample(loaded, task, [Problem("p", "Start 5; + 3; * 4", "9")], 1, sampling=SampleConfig(temperature=0.0))
    assert answer_uncertainty(lazy, task, t) == answer_uncertainty(loaded, task, t)


def test_a_loaded_model_is_its_callers(loads):
    lm = load_lm(STUDENT)
    model = lm.model
    lm.free()
    assert lm.model is model
    assert lm.own_model() is not model
    with pytest.raises(AttributeError, match="a LazyLM has no colour"):
        lazy_lm(STUDENT).colour  # noqa: B018


def test_a_bad_model_is_refused_before_anything_is_written(tmp_path, capsys):
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in (DATA / "student").iterdir():
        content = file.read_bytes()
        (broken / file.name).write_bytes(content[:1000] if file.suffix == ".safetensors" else content)
    for command in ("demo", "run"):
        out = tmp_path / command
        assert main([command, "--preset", "smoke", "--student", str(broken), "--out", str(out), "--quiet", "--measure", "1"]) == 2
        assert "the model cannot be loaded" in capsys.readouterr().err
        assert not out.exists()
    with pytest.raises(InputError, match="no model here"):
        lazy_lm("./nothing")


def test_a_lazy_student_is_trained_without_a_copy(loads, tmp_path, monkeypatch):
    def refuse(what, *more):
        assert not isinstance(what, torch.nn.Module), "a model is copied"
        return whole(what, *more)

    whole = copy.deepcopy

    rows = [example(5, i, Dials(forms={"plain": 1.0})) for i in range(8)]
    data = Dataset.from_list([{"id": str(i), "prompt": p, "completion": c} for i, (p, c) in enumerate(rows)])
    stages = {"foundation": data, "guided": data}
    config, task = PaceConfig(updates=4, batch=2, shares=(0.5, 0.5, 0), warmup=0), ClockTask()
    before = load_lm(STUDENT)
    copied = distill(before, task, stages, config)
    loads.models.clear()  # the copy stays
    monkeypatch.setattr(copy, "deepcopy", refuse)
    lm = lazy_lm(STUDENT)
    trained = distill(lm, task, stages, config, folder=tmp_path / "lazy")
    assert loads.together == 1
    assert all(ref() is None for ref in loads.models)  # nothing has asked for the student yet
    assert all(torch.equal(a, b) for a, b in zip(copied.model.parameters(), trained.model.parameters(), strict=True))
    count = len(loads.sources)
    again = distill(lm, task, stages, config, folder=tmp_path / "lazy")
    assert len(loads.sources) == count  # finished: neither the base student nor a trained one was needed
    assert torch.equal(next(again.model.parameters()), next(trained.model.parameters()))


# --------------------------------------------------------------------------------------------- a whole run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run, what it loaded, and its report."""
    out, counter = tmp_path_factory.mktemp("phases") / "run", Loads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "load_lm", counter.load)
        report = run(RunSpec(TEACHER, STUDENT, TRAIN, HELDOUT, SMALL), out, ClockTask(), quiet=True)
    return out, counter, report


def test_no_two_models_are_in_memory_together(finished):
    out, loads, _ = finished
    assert loads.together == 1
    gc.collect()
    assert all(ref() is None for ref in loads.models)
    students = [source for source in loads.sources if source not in (TEACHER, STUDENT)]
    assert students[-1].startswith(str(out / "5-students" / "heal"))


def test_a_finished_run_loads_each_model_once_and_runs_none(finished, loads, monkeypatch):
    """The identity of a run holds a hash of the weights as loaded: nothing else needs them."""
    out, _, report = finished
    monkeypatch.setattr("heal_ref.generation._batch", None)
    monkeypatch.setattr("heal_ref.scoring.token_stats", None)
    again = run(RunSpec(TEACHER, STUDENT, TRAIN, HELDOUT, SMALL), out, ClockTask(), quiet=True)
    assert loads.sources == [TEACHER, STUDENT]
    assert again["rows"] == report["rows"]
    tokens = [{name: one["tokens"] for name, one in r["provenance"]["phases"]["measured"].items()} for r in (report, again)]
    assert tokens[0] == tokens[1]
    assert again["provenance"]["phases"]["launches"] == 2


def test_a_finished_phase_does_not_load_its_model(finished, loads, tmp_path):
    """Only the evaluation of HEAL's student is missing."""
    out = tmp_path / "run"
    subprocess.run(["cp", "-r", finished[0], out], check=True)
    subprocess.run(["rm", "-r", out / "6-eval" / "heal"], check=True)
    run(RunSpec(TEACHER, STUDENT, TRAIN, HELDOUT, SMALL), out, ClockTask(), quiet=True)
    assert loads.sources[:2] == [TEACHER, STUDENT]
    (student,) = loads.sources[2:]
    assert student.startswith(str(out / "5-students" / "heal"))
    assert loads.together == 1


def test_measuring_holds_one_model_at_a_time(loads):
    task, problems = ClockTask(), RunSpec(TEACHER, STUDENT, TRAIN, HELDOUT, SMALL).read(ClockTask())[0]
    measure(lazy_lm(TEACHER), lazy_lm(STUDENT), task, problems[:4], SMALL, seconds=1.0)
    assert loads.sources == [TEACHER, STUDENT]
    assert loads.together == 1
    assert all(ref() is None for ref in loads.models)


def test_what_a_run_took_is_recorded_by_phase(finished):
    out, _, report = finished
    phases = report["provenance"]["phases"]
    assert set(phases["measured"]) == set(PHASES)
    base = records_in(out, "1-base")
    assert phases["measured"]["sample"]["tokens"] == sum(t.tokens_spent for t in base) > 0
    curves = [json.loads(f.read_text()) for f in (out / "5-students").glob("*/*/curve.json")]
    assert phases["measured"]["train"]["tokens"] == sum(curve["tokens"] for curve in curves) > 0
    assert all(one["GiB"] > 0.1 for name, one in phases["measured"].items() if one["minutes"] > 0)
    assert phases["planned"] == {}
    assert (out / "log.txt").read_text().count("  phase evaluate: ") >= 4


@pytest.mark.slow
def test_launches_add_up_and_stand_beside_the_plan(tmp_path, capsys):
    out = tmp_path / "run"
    command = ["run", "--preset", "smoke", "--heldout", str(DATA / "clock" / "validation.jsonl"), "--out", str(out), "--quiet"]
    assert main([*command, "--measure", "2"]) == 0
    said = capsys.readouterr().out
    assert "Planned (expected) and measured:\nphase " in said
    report = json.loads((out / "report.json").read_text())
    phases, plan = report["provenance"]["phases"], json.loads((out / "plan.json").read_text())
    assert phases["planned"] == plan
    assert set(plan) == set(PHASES) - {"start"}
    measured = phases["measured"]
    for name, planned in plan.items():
        assert planned["tokens"] <= planned["tokens at most"]
        assert measured[name]["tokens"] <= planned["tokens at most"]
    with open(out / "log.txt", "a", encoding="utf-8") as f:
        f.write("2026-01-01 00:00:00  phase train: 60.0 seconds, 99.000 GiB\n2026-01-01 00:00:00  phase sam")  # torn by a kill
    assert main(command) == 0
    later = json.loads((out / "report.json").read_text())["provenance"]["phases"]["measured"]["train"]
    assert later["minutes"] >= measured["train"]["minutes"] + 0.98
    assert later["GiB"] == 99
    (out / "plan.json").write_text("[")
    assert main(command) == 2
    assert "plan.json is not the plan of a run; delete it" in capsys.readouterr().err


def test_the_table_of_costs_by_hand():
    one, two = {"tokens": 1000, "minutes": 1.5, "GiB": 2.0}, {"tokens": 500, "minutes": 2.0, "GiB": 1.0}
    lines = cost_table({"measured": {"start": two, "sample": one}, "planned": {"sample": two}})
    assert lines[1] == ["start", "-", "500", "-", "2.00", "-", "1.00"]
    assert lines[2] == ["sample", "500", "1,000", "2.00", "1.50", "1.00", "2.00"]
    assert lines[3] == ["whole run", "500", "1,500", "2.00", "3.50", "1.00", "2.00"]


def test_the_plan_of_a_real_pair_was_true():
    """Minutes, memory and tokens of the recorded run within a quarter of its plan; usage.md prints its table."""
    phases = json.loads((DATA / "results" / "plan.json").read_text())["phases"]
    lines = cost_table(phases)
    for planned, measured in zip(lines[-1][1::2], lines[-1][2::2], strict=True):
        planned, measured = (float(number.replace(",", "")) for number in (planned, measured))
        assert measured == pytest.approx(planned, rel=0.25)
    assert all(one["GiB"] == pytest.approx(phases["planned"][name]["GiB"], rel=0.25)
               for name, one in phases["measured"].items() if name != "start")
    page = (ROOT / "docs" / "usage.md").read_text()
    assert all("| " + " | ".join(line) + " |\n" in page for line in lines)


# ------------------------------------------------------------------------------------------------ real memory


@pytest.mark.skipif(sys.platform != "linux" or torch.accelerator.is_available(), reason="reads /proc/self/status")
def test_a_peak_is_that_of_its_phase():
    reset_peak()
    before = used_memory()
    block = torch.ones(50_000_000)
    assert peak_memory() - before > 150e6
    del block
    release_memory()
    reset_peak()
    assert peak_memory() < before + 100e6


DRIVER = """
import dataclasses, json, sys
from heal_ref.config import HealConfig, PaceConfig, SampleConfig
from heal_ref.run.pipeline import RunSpec, run
from heal_ref.tasks import ClockTask
from tests.test_phases import SMALL, TEACHER, TRAIN, HELDOUT
home = sys.argv[1]
config = dataclasses.replace(SMALL, sample=SampleConfig(n=2, max_new_tokens=40), eval_n=1)
report = run(RunSpec(TEACHER, home + "/student", TRAIN, HELDOUT, config), home + "/run", ClockTask(), quiet=True)
print(json.dumps(report["provenance"]["phases"]["measured"]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or torch.accelerator.is_available(), reason="reads /proc/self/status")
def test_a_whole_run_needs_what_its_largest_phase_needs(tmp_path, teacher):
    """A student of 20 million weights: training needs 16 bytes of each, no copy; evaluating it the weights alone."""
    model = new_model(Recipe(hidden=768, layers=3, heads=8, lessons=()), teacher.tokenizer, seed=0)
    model.save_pretrained(tmp_path / "student")
    teacher.tokenizer.save_pretrained(tmp_path / "student")
    weights = model.num_parameters() / 2**30
    assert weights > 0.015
    args = [sys.executable, "-c", DRIVER, str(tmp_path)]
    done = subprocess.run(args, cwd=ROOT, capture_output=True, text=True, check=True, timeout=500)
    peak = {phase: one["GiB"] for phase, one in json.loads(done.stdout.splitlines()[-1]).items()}
    base = peak["sample"]  # libraries and a very small teacher
    assert peak["start"] < base + 1.5 * 4 * weights  # to hash it
    assert peak["train"] < base + 1.2 * 16 * weights
    assert peak["evaluate"] < base + 1.5 * 4 * weights
    assert max(peak.values()) <= 1.2 * (base + 16 * weights)
