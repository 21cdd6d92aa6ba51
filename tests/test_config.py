"""Settings: a preset, a TOML file over it, --set over that; what is wrong is said in one line; what a run leaves is such a file."""

import json
import os
import re
import tomllib
from dataclasses import asdict, replace

import pytest

import heal_ref as heal
from heal_lab.evidence import read_record
from heal_ref.__main__ import _parser, _settings, main
from heal_ref.config import PRESETS, HealConfig, doubts
from heal_ref.records import InputError
from heal_ref.run.pipeline import RunSpec, run
from heal_ref.settings import LARGEST, parse_setting
from heal_ref.tasks import ClockTask
from tests.conftest import DATA


def resolved(*args, preset="smoke"):
    return _settings(_parser().parse_args(["run", "--out", "DIR", *map(str, args)]), PRESETS[preset]())


@pytest.fixture
def toml(tmp_path):
    def write(text, name="my.toml"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


# ------------------------------------------------------------------------------------- what is set


def test_a_file_over_a_preset(toml):
    path = toml('eval_n = 3\n[gear]\npaths = 4\nhint = "answer"\n[pace]\nshares = [0.5, 0.5, 0]\n[sample]\ntemperature = 0\n')
    smoke, config = HealConfig.smoke(), HealConfig.from_file(path, over=HealConfig.smoke())
    assert config == replace(
        smoke, eval_n=3, gear=replace(smoke.gear, paths=4, hint="answer"), pace=replace(smoke.pace, shares=(0.5, 0.5, 0)),
        sample=replace(smoke.sample, temperature=0.0))
    assert type(config.sample.temperature) is float  # as if it were written 0.0: the same run
    assert HealConfig.from_file(path).pace.updates == heal.PaceConfig().updates
    assert HealConfig.from_file(toml(b"\xef\xbb\xbfeval_n = 3\r\n")).eval_n == 3


def test_the_later_one_wins(toml):
    path = toml("seed = 1\n[gear]\npaths = 4\nhints = 4\n[sample]\nmax_new_tokens = 40\n")
    assert resolved().gear.paths == 1
    assert resolved("--config", path).gear.paths == 4
    config = resolved("--set", "gear.paths=5", "--config", path, "--set", "seed=2", "--set", "pace.lora=2")
    assert (config.gear.paths, config.gear.hints, config.seed, config.pace.lora) == (5, 4, 2, 2)
    config = resolved("--config", path, "--set", "sample.max_new_tokens=50", "--set", "seed=2", "--set", "pace.lora=2",
                      "--max-new-tokens", "60", "--seed", "3", "--lora", "4")
    assert (config.sample.max_new_tokens, config.seed, config.pace.lora) == (60, 3, 4)
    assert resolved("--seed", "0", "--config", path).seed == 0


def test_a_chat_model_has_room_unless_it_is_told_otherwise(toml, tmp_path, monkeypatch):
    """The preset's length is raised for a chat model; one that was set is not."""
    seen = []
    monkeypatch.setattr("heal_ref.__main__.run", lambda spec, *_, **__: seen.append(spec.config) or (_ for _ in ()).throw(InputError("")))
    chat = DATA / "chat"
    args = ["demo", "--teacher", chat / "teacher", "--student", chat / "teacher", "--problems", chat / "train.jsonl",
            "--heldout", chat / "heldout.jsonl", "--out", tmp_path / "run"]
    for more in ([], ["--set", "sample.max_new_tokens=96"], ["--config", toml("[sample]\nmax_new_tokens = 97\n")],
                 ["--max-new-tokens", "98"], ["--preset", "paper"]):
        main([*map(str, args), *map(str, more)])
    assert [c.sample.max_new_tokens for c in seen] == [1024, 96, 97, 98, 32768]


@pytest.mark.parametrize(("text", "value"), [
    ("gear.paths=4", 4), (" gear.paths = 4 ", 4), ("pure.epsilon=1e-3", 1e-3), ("pure.floor=-2", -2), ("gear.hint=answer", "answer"),
    ('gear.hint="answer"', "answer"), ("gear.refuse_answers=false", False), ("pace.shares=[0.5, 0.5, 0]", [0.5, 0.5, 0]),
    ("a.b=c=d", "c=d"), ("gear.hint=a\nseed = 3", "a\nseed = 3")])
def test_a_setting_is_a_name_and_a_value_of_toml(text, value):
    name, given = parse_setting(text)
    assert name == text.partition("=")[0].strip()
    assert given == value
    assert type(given) is type(value)


@pytest.mark.parametrize("preset", PRESETS)
def test_what_is_written_is_read_again(toml, preset):
    """The text holds every setting, whatever the file is laid over."""
    config = PRESETS[preset](seed=5)
    path, text = toml(config.to_toml()), config.to_toml()
    other = HealConfig.paper() if preset != "paper" else HealConfig.tiny()
    assert HealConfig.from_file(path, over=other) == config
    assert HealConfig.from_file(path, over=other).to_toml() == text
    assert tomllib.loads(text) == json.loads(json.dumps(asdict(config)))


# --------------------------------------------------------------------------------- what is refused

SECTIONS = "the sections are sample, gear, pure, pace, and outside of them there are seed, eval_n, train_limit, eval_limit"
GEAR = "[gear] has max_correct, paths, hints, continuations, hint, refuse_answers, step, signal, window"
NAMES = {  # a setting -> what is said of it
    "gear.path=4": f"gear.path is no setting, did you mean gear.paths? {GEAR}",
    "gaer.paths=4": f"gaer.paths is no setting, did you mean gear.paths? {SECTIONS}",
    "paths=4": f"paths is no setting, did you mean gear.paths? {SECTIONS}",
    "eval_m=4": f"eval_m is no setting, did you mean eval_n? {SECTIONS}",
    "quite_another=4": f"quite_another is no setting; {SECTIONS}",
    "gear.deep.paths=4": f"gear.deep.paths is no setting, did you mean gear.paths? {GEAR}",
    "gear=4": "gear is a section; set one of its values: max_correct, paths",
    "gear.=4": f"gear. is no setting, did you mean gear.step? {GEAR}"}
VALUES = {
    "gear.paths=0": "gear.paths is 0; it must lie between 1 and 1000000000",
    "gear.paths=-1": "gear.paths is -1; it must lie between 1",
    "gear.paths=4.0": "gear.paths is 4.0; it must be a whole number",
    "gear.paths=true": "gear.paths is True; it must be a whole number",
    "gear.paths='4'": "gear.paths is '4'; it must be a whole number",
    "gear.paths=[4]": "gear.paths is [4]; it must be a whole number",
    "gear.paths={a=4}": "gear.paths is {'a': 4}; it must be a whole number",
    "gear.paths=1970-01-01": "gear.paths is datetime.date(1970, 1, 1); it must be a whole number",
    "gear.paths=1000000000000000000000": "it must lie between 1",
    f"gear.paths={'1' * 5000}": "it must be a whole number",
    f"gear.paths={'[' * 5000}": "it must be a whole number",
    "gear.window=2": "gear.window is 2.0; it must lie between 1e-06 and 1.0",
    "gear.window=nan": "gear.window is nan; it must lie between",
    "pure.epsilon=inf": "pure.epsilon is inf; it must lie between",
    "pure.epsilon=-inf": "pure.epsilon is -inf; it must lie between",
    "pace.learning_rate=1e999": "pace.learning_rate is inf; it must lie between",
    f"pace.learning_rate={'1' * 400}": "pace.learning_rate is inf; it must lie between",
    "gear.hint=guess": "gear.hint is 'guess'; it must be one of bridge, step, answer, wrong_answer, none",
    "gear.hint=Bridge": "gear.hint is 'Bridge'; it must be one of bridge",
    "gear.refuse_answers=yes": "gear.refuse_answers is 'yes'; it must be true or false",
    "gear.refuse_answers=True": "gear.refuse_answers is 'True'; it must be true or false",
    "gear.refuse_answers=1": "gear.refuse_answers is 1; it must be true or false",
    "pace.shares=0.2,0.2,0.6": "pace.shares is '0.2,0.2,0.6'; it must be three shares that sum to 1, such as [0.2, 0.2, 0.6]",
    "pace.shares=[0.5, 0.5]": "it must be three shares",
    "pace.shares=[0.5, 0.6, -0.1]": "it must be three shares",
    "pace.shares=[nan, 0.5, 0.5]": "it must be three shares",
    "pace.shares=['a', 'b', 'c']": "it must be three shares",
    "pace.shares=[true, false, false]": "it must be three shares",
    "pace.lora=-1": "pace.lora is -1; it must lie between 0",
    "pace.checkpointing=on": "pace.checkpointing is 'on'; it must be true or false",
    "seed=-1": "seed is -1; it must lie between 0 and 2147483648",
    "seed=one": "seed is 'one'; it must be a whole number"}
SYNTAX = {
    "gear.paths": "'gear.paths' sets nothing; write NAME=VALUE, such as gear.paths=4",
    "": "'' sets nothing",
    " ": "' ' sets nothing",
    "=": "'=' sets nothing",
    "=4": "'=4' sets nothing",
    "gear.paths=": "'gear.paths=' sets nothing",
    "gear.paths = ": "'gear.paths = ' sets nothing",
    "gear paths=4": "gear paths is no setting, did you mean gear.paths?"}


def refused(capsys, tmp_path, *args):
    """One line and exit code 2, before a model is loaded or the run folder made; the line."""
    assert main(["run", "--preset", "smoke", "--teacher", "no-model-here", "--out", str(tmp_path / "run"), *map(str, args)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert len(said) < 600
    assert not (tmp_path / "run").exists()
    return said


@pytest.mark.parametrize("text", [*NAMES, *VALUES, *SYNTAX])
def test_a_wrong_setting(capsys, tmp_path, text):
    message = {**NAMES, **VALUES, **SYNTAX}[text]
    assert refused(capsys, tmp_path, f"--set={text}").startswith("--set: ")
    said = refused(capsys, tmp_path, f"--set={text}")
    assert message in said


def test_a_setting_given_twice(capsys, tmp_path):
    said = refused(capsys, tmp_path, "--set", "gear.paths=4", "--set", "gear.paths=5")
    assert said == "--set: gear.paths is set twice, to 4 and to 5; set it once\n"


def test_an_option_of_its_own_is_checked_too(capsys, tmp_path):
    assert refused(capsys, tmp_path, "--seed", "-1").startswith("seed is -1; it must lie")
    assert refused(capsys, tmp_path, "--lora", "-1").startswith("pace.lora is -1; it must lie")
    with pytest.raises(SystemExit):
        main(["run", "--out", "DIR", "--set"])
    assert "expected one argument" in capsys.readouterr().err


FILES = {  # a file -> what is said of it
    "empty": (b"", "it sets nothing; write lines such as paths = 4 below [gear]"),
    "comments": (b"# nothing\n\n", "it sets nothing"),
    "an empty section": (b"[gear]\n", "it sets nothing"),
    "binary": (os.urandom(64) + b"\xff\xfe", "not UTF-8"),
    "latin-1": ("# Stra\u00dfe\nseed = 1\n".encode("latin-1"), "not UTF-8 (byte 7); save it as UTF-8"),
    "utf-16": ("seed = 1\n".encode("utf-16"), "not UTF-8 (byte 1)"),
    "nul bytes": (b"seed = 1\n\0\0", "not valid TOML (Invalid statement (at line 2, column 1))"),
    "huge": (b"#" * (LARGEST + 1), "1,048,577 bytes are no file of settings"),
    "json": (b'{"seed": 1}', "not valid TOML (Invalid statement (at line 1, column 1))"),
    "ini": (b"seed: 1\n", "not valid TOML (Expected '=' after a key in a key/value pair (at line 1, column 5))"),
    "half a line": (b"seed =", "not valid TOML (Invalid value (at end of document))"),
    "a word without quotes": (b"[gear]\nhint = answer\n", "not valid TOML (Invalid value (at line 2, column 8))"),
    "the same key twice": (b"seed = 1\nseed = 2\n", "not valid TOML (Cannot overwrite a value (at line 2"),
    "the same section twice": (b"[gear]\npaths=4\n[gear]\nhints=4\n", "not valid TOML (Cannot declare ('gear',) twice"),
    "twice in two spellings": (b'"gear.paths" = 4\n[gear]\npaths = 5\n', "gear.paths is set twice, to 4 and to 5"),
    "nested lists": (b"seed = " + b"[" * 50_000, "not valid TOML (nested too deeply)"),
    "5,000 digits": (b"seed = " + b"1" * 5000, "not valid TOML (Exceeds the limit"),
    "unknown section": (b"[gaer]\npaths = 4\n", "gaer.paths is no setting, did you mean gear.paths?"),
    "unknown name": (b"[gear]\npath = 4\n", "gear.path is no setting, did you mean gear.paths?"),
    "a section below a section": (b"[gear.deep]\npaths = 4\n", "gear.deep is no setting"),
    "a section as a value": (b"gear = 4\n", "gear is a section; set one of its values"),
    "a list of sections": (b"[[gear]]\npaths = 4\n", "gear is a section; set one of its values"),
    "a value as a section": (b"[seed]\nx = 4\n", "seed.x is no setting"),
    "a preset": (b'preset = "paper"\n', "preset is no setting"),
    "wrong type": (b'[gear]\npaths = "4"\n', "gear.paths is '4'; it must be a whole number"),
    "out of range": (b"[gear]\nwindow = 2\n", "gear.window is 2.0; it must lie between"),
    "not a number": (b"[pure]\nepsilon = nan\n", "pure.epsilon is nan; it must lie between"),
    "shares": (b"[pace]\nshares = [1, 1, 1]\n", "pace.shares is (1, 1, 1); it must be three shares")}


@pytest.mark.parametrize("name", FILES)
def test_a_wrong_file(capsys, tmp_path, toml, name):
    content, message = FILES[name]
    path = toml(content)
    said = refused(capsys, tmp_path, "--config", path)
    assert said.startswith(f"{path}: ")
    assert message in said


def test_no_file(capsys, tmp_path):
    assert refused(capsys, tmp_path, "--config", tmp_path / "my.toml") == f"{tmp_path / 'my.toml'}: no such file\n"
    assert refused(capsys, tmp_path, "--config", tmp_path) == f"{tmp_path}: not a file; give a TOML file\n"
    assert refused(capsys, tmp_path, "--config", "") == ".: not a file; give a TOML file\n"
    toml = tmp_path / "locked.toml"
    toml.symlink_to(tmp_path / "nowhere")
    assert refused(capsys, tmp_path, "--config", toml).endswith("no such file\n")


# ----------------------------------------------------------------------------------- in a run folder


@pytest.fixture
def spec(tmp_path):
    """A run of one problem, as the shortest there is."""
    (tmp_path / "p.jsonl").write_text('{"question": "Start 5; # 3", "answer": 13}\n')

    def build(**sample):
        config = replace(HealConfig.smoke(), eval_n=5, pace=heal.PaceConfig(updates=2, batch=4, warmup=0, curve_every=0))
        one = str(tmp_path / "p.jsonl")
        return RunSpec("t", "s", one, one, replace(config, sample=replace(config.sample, **sample)))

    return build


def test_a_run_leaves_settings_that_start_it_again(tmp_path, teacher, spec, capsys):
    """Complete, and the same run: the command with that file alone continues the folder."""
    lms = (teacher, heal.load_lm(DATA / "student"))
    config = spec(temperature=0.7).config
    report = run(spec(temperature=0.7), tmp_path / "run", ClockTask(), lms=lms, quiet=True)
    file = tmp_path / "run" / "settings.toml"
    assert HealConfig.from_file(file) == config
    assert resolved("--config", file, preset="paper") == config
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*.jsonl")}
    text, copy, one = file.read_text(), tmp_path / "copy.toml", str(tmp_path / "p.jsonl")
    args = ["demo", "--preset", "paper", "--problems", one, "--heldout", one, "--out", str(tmp_path / "run"), "--quiet"]
    copy.write_text(text)
    file.write_text("seed = 7\n")  # edited there, it changes nothing: config.json counts
    assert main([*args, "--config", str(file)]) == 2
    assert "seed: 0 in the folder, 7 now" in capsys.readouterr().err
    assert main([*args, "--config", str(copy)]) == 0
    assert file.read_text() == text
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*.jsonl")} == before
    assert json.loads((tmp_path / "run" / "report.json").read_text())["rows"] == report["rows"]


def test_evaluation_uses_the_configured_sampling(tmp_path, teacher, spec, monkeypatch):
    """Temperature, nucleus and length; the greedy row is at temperature 0 and else the same; the report says so."""
    seen = {}

    def sample(lm, task, problems, n=None, *, sampling, **more):
        seen.setdefault((n, sampling.temperature, sampling.top_p, sampling.max_new_tokens), 0)
        return heal.sample(lm, task, problems, n, sampling=sampling, **more)

    monkeypatch.setattr("heal_ref.run.pipeline.sample", sample)
    settings = spec(temperature=0.6, top_p=0.9, max_new_tokens=50, n=3)
    report = run(settings, tmp_path / "run", ClockTask(), lms=(teacher, heal.load_lm(DATA / "student")), quiet=True)
    assert set(seen) == {(3, 0.6, 0.9, 50), (4, 0.6, 0.9, 50), (5, 0.6, 0.9, 50), (1, 0.0, 0.9, 50)}
    assert report["provenance"]["evaluation"] == (
        "5 samples per problem at temperature 0.6 and top_p 0.9, pass@1_greedy one at temperature 0; at most 50 tokens")


# --------------------------------------------------------------------------------------------- doubts


def record(name):
    rows = read_record(name)["rows"]
    return {(r["arm"], r["kind"]): f"{r['mean']:.2f}" for r in rows
            if r["mean"] is not None and r["metric"] in ("AUROC", "breakpoint = first wrong step")}


def test_the_doubts_about_paper_are_those_of_the_records():
    forced, window, surge = doubts(HealConfig.paper())
    pure, gear, breaks = map(record, ("pure", "gear", "breaks"))
    both = "shaky and frontier"
    assert re.findall(r"0\.\d\d\b(?!\d)", forced.partition("AUROC")[2].replace("with 0.01", "")) == [
        pure["guided: forced, worst, ε = 0.01", both], pure["guided: typicality, worst", both]]
    assert re.findall(r"0\.\d\d", window.partition("with 1/3")[2]) == [
        gear[arm, kind] for arm in ("mean surge, window 1/3", "mean surge") for kind in ("shaky", "frontier")]
    assert re.findall(r"0\.\d\d", surge) == [breaks[arm, "frontier, not restated"] for arm in ("mean surge", "max rise")]
    for text, file in ((forced, "pure"), (window, "gear"), (surge, "breaks")):
        assert f"data/results/{file}.json" in text


def test_other_settings_are_not_doubted():
    assert [doubts(PRESETS[name]()) for name in ("smoke", "tiny", "real")] == [[], [], []]
    better = {"pure.reading": "typicality", "gear.window": 1.0}
    assert doubts(HealConfig.paper().with_settings(better)) == []
    assert len(doubts(HealConfig.paper().with_settings({"gear.window": 1.0}))) == 1
    assert doubts(HealConfig.paper().with_settings({"pure.epsilon": 3.0, "gear.signal": "rise", "gear.window": 0.6})) == []


def test_paper_warns_once_and_in_its_report(tmp_path, capsys, teacher):
    small_file = tmp_path / "p.jsonl"
    small_file.write_text('{"question": "Start 5; + 3", "answer": 8}\n')
    config = [f"--set={text}" for text in ("sample.n=2", "sample.max_new_tokens=60", "pace.updates=1", "pace.curve_every=0")]
    args = ["--preset", "paper", *config, "--problems", str(small_file), "--heldout", str(small_file), "--quiet"]
    expected = doubts(HealConfig.paper())
    for command in (["run", "--dry-run", "--out", str(tmp_path / "none")], ["demo", "--out", str(tmp_path / "demo")],
                    ["run", "--out", str(tmp_path / "run")]):
        assert main([*command, *args]) == 0
        said = capsys.readouterr()
        assert [said.err.count(doubt) for doubt in expected] == [1] * 3, command
    assert all(doubt in said.out for doubt in expected)
    assert json.loads((tmp_path / "run" / "report.json").read_text())["notes"][:3] == expected
    assert all(doubt in (tmp_path / "run" / "plan.txt").read_text() for doubt in expected)
