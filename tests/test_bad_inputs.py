"""What people give us that cannot work: one line with the remedy, exit code 2, soon, nothing written that breaks a resume."""

import json
import shutil
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from heal_ref.__main__ import main
from heal_ref.config import GearConfig, HealConfig, PaceConfig, PureConfig, SampleConfig
from heal_ref.records import InputError
from tests.conftest import DATA

GOOD = {"id": "a", "question": "Start 5; + 3", "answer": 8}


def lines(*rows):
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows).encode()


PROBLEMS = {  # content of a problem file -> what the message must hold
    "empty": (b"", "the file is empty"),
    "blank lines": (b"\n\n", "the file is empty"),
    "not json": (lines("problem one"), "not valid JSON"),
    "cut off": (lines(GOOD)[:-9], "may have been cut off"),
    "a list": (lines("[1, 2]"), "must be an object, found list"),
    "a number": (lines("7"), "must be an object, found int"),
    "not utf-8": (b'{"id": "\xff"}\n', "not UTF-8"),
    "utf-16": (lines(GOOD).decode().encode("utf-16"), "not UTF-8"),
    "nul bytes": (b"\0" * 100, "not valid JSON"),
    "no id": (lines({k: v for k, v in GOOD.items() if k != "id"}), 'field "id" is missing'),
    "no question": (lines({k: v for k, v in GOOD.items() if k != "question"}), 'field "question" is missing'),
    "no answer": (lines({k: v for k, v in GOOD.items() if k != "answer"}), 'field "answer" is missing'),
    "empty id": (lines(GOOD | {"id": " "}), 'field "id" must be a non-empty string'),
    "number as id": (lines(GOOD | {"id": 3}), 'field "id" must be a non-empty string'),
    "empty question": (lines(GOOD | {"question": ""}), 'field "question" must be a non-empty string'),
    "list as question": (lines(GOOD | {"question": ["Start 5"]}), 'field "question" must be a non-empty string'),
    "null answer": (lines(GOOD | {"answer": None}), 'field "answer" must be a string or a number'),
    "true as answer": (lines(GOOD | {"answer": True}), 'field "answer" must be a string or a number'),
    "text as answer": (lines(GOOD | {"answer": "eight"}), "is not an hour"),
    "nan as answer": (lines('{"id": "a", "question": "Start 5; + 3", "answer": NaN}'), "is not an hour"),
    "negative answer": (lines(GOOD | {"answer": -15}), "is not an hour"),
    "huge answer": (lines(GOOD | {"answer": "8" * 5000}), "is not an hour"),
    "wrong answer": (lines(GOOD | {"answer": 9}), "does not follow from the chain"),
    "same id twice": (lines(GOOD, GOOD), 'id "a" was used on line 1'),
    "unknown operator": (lines(GOOD | {"question": "Start 5; % 3"}), "unknown operator '%'"),
    "no operation": (lines(GOOD | {"question": "Start 5"}), "is not of the form"),
    "operand too large": (lines(GOOD | {"question": "Start 5; + 30"}), "operand 30 is outside"),
    "start too large": (lines(GOOD | {"question": "Start 50; + 3"}), "starting hour 50 is outside"),
    "other text": (lines(GOOD | {"question": "What is 5 + 3?"}), "is not of the form"),
    "wrong kind": (lines(GOOD | {"kind": "frontier"}), "does not fit the chain"),
    "kind is a number": (lines(GOOD | {"kind": 1}), 'field "kind" must be a string'),
    "wrong length": (lines(GOOD | {"length": 4}), "is not the chain's"),
    "length is text": (lines(GOOD | {"length": "1"}), 'field "length" must be an integer'),
}


def refused(capsys, args, message):
    """The call ends soon with code 2 and one line of message for each mistake, no traceback."""
    began = time.monotonic()
    try:
        code = main(args)
    except SystemExit as e:  # argparse
        code = e.code
    error = capsys.readouterr().err
    assert code == 2, error
    assert message in error
    assert "Traceback" not in error
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("name", PROBLEMS)
def test_problem_files(tmp_path, capsys, name):
    content, message = PROBLEMS[name]
    path = tmp_path / "problems.jsonl"
    path.write_bytes(content)
    refused(capsys, ["check", str(path)], message)
    out = tmp_path / "run"
    refused(capsys, ["run", "--preset", "smoke", "--problems", str(path), "--out", str(out), "--quiet"], message)
    assert not list(out.rglob("*.jsonl"))


def model(tmp_path, change):
    """A copy of the student's folder, spoilt."""
    folder = tmp_path / "model"
    shutil.copytree(DATA / "student", folder)
    change(folder)
    return str(folder)


def edit(name, **values):
    def change(folder):
        settings = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(settings | values))

    return change


def spoil_weights(value):
    def change(folder):
        tensors = load_file(folder / "model.safetensors")
        next(iter(tensors.values())).fill_(value)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return change


def drop_tensor(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors.pop(next(k for k in tensors if "mlp" in k))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def more_tokens(folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"new{i}" for i in range(5)])
    tokenizer.save_pretrained(folder)


def no_end(folder):
    edit("tokenizer_config.json", eos_token=None)(folder)


MODELS = {
    "no config": (lambda f: (f / "config.json").unlink(), "config.json is missing"),
    "config is not json": (lambda f: (f / "config.json").write_text("{"), "cannot be loaded"),
    "unknown architecture": (edit("config.json", model_type="qwen99", architectures=["Qwen99"]), "cannot be loaded"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "cannot be loaded"),
    "weights cut off": (lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:5000]),
                        "cannot be loaded"),
    "weights are text": (lambda f: (f / "model.safetensors").write_text("weights"), "cannot be loaded"),
    "a weight is missing": (drop_tensor, "cannot be loaded"),
    "weights of another size": (edit("config.json", hidden_size=128), "cannot be loaded"),
    "no tokenizer": (lambda f: [(f / n).unlink() for n in ("tokenizer.json", "tokenizer_config.json")], "cannot be loaded"),
    "tokenizer is not json": (lambda f: (f / "tokenizer.json").write_text("{"), "cannot be loaded"),
    "tokenizer larger than the model": (more_tokens, "they do not belong together"),
    "no end of text": (no_end, "no end-of-text token"),
    "nan weights": (spoil_weights(float("nan")), "NaN"),
    "infinite weights": (spoil_weights(float("inf")), "NaN"),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("role", ["teacher", "student"])
def test_model_folders(tmp_path, capsys, name, role):
    change, message = MODELS[name]
    out = tmp_path / "run"
    refused(capsys, ["run", "--preset", "smoke", f"--{role}", model(tmp_path, change), "--out", str(out), "--quiet"], message)
    assert not list(out.rglob("*.jsonl"))


def other_words(folder):
    """Another tokenizer of the same size."""
    text = (folder / "tokenizer.json").read_text().replace('"Problem: "', '"Question: "')
    (folder / "tokenizer.json").write_text(text)


COMMANDS = {
    "teacher and student do not share a tokenizer": (["--student", other_words], "different tokenizers"),
    "no such model": (["--teacher", "./nothing"], "no model here"),
    "no such problems": (["--problems", "nothing.jsonl"], "no such file"),
    "no such dataset": (["--problems", "nothing.csv"], "cannot be read as problems"),
    "no such heldout": (["--heldout", "nothing.jsonl"], "no such file"),
    "column without a field": (["--problems", str(DATA / "clock" / "train.csv"), "--columns", "problem"], "write FIELD=COLUMN"),
    "chat task for a model without a template": (["--task", "chat"], "chat template"),
    "unknown preset": (["--preset", "large"], "invalid choice"),
    "seed is a word": (["--seed", "one"], "invalid int value"),
    "nothing at once": (["--max-batch", "0"], "at least one sequence"),
    "no new tokens": (["--max-new-tokens", "0"], "it must lie between"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_commands(tmp_path, capsys, name):
    args, message = COMMANDS[name]
    args = [model(tmp_path, a) if callable(a) else a for a in args]
    refused(capsys, ["run", "--preset", "smoke", "--out", str(tmp_path / "run"), "--quiet", *args], message)
    assert not list((tmp_path / "run").rglob("*.jsonl"))


def test_out_is_a_file(tmp_path, capsys):
    (tmp_path / "run").write_text("here already")
    refused(capsys, ["run", "--preset", "smoke", "--out", str(tmp_path / "run"), "--quiet"], "run")
    assert (tmp_path / "run").read_text() == "here already"


@pytest.mark.parametrize("make", [
    lambda: SampleConfig(n=0), lambda: SampleConfig(temperature=-1), lambda: SampleConfig(top_p=1.5),
    lambda: SampleConfig(n="8"), lambda: SampleConfig(temperature=float("nan")),
    lambda: GearConfig(window=2), lambda: GearConfig(hint="riddle"),
    lambda: PureConfig(reading="entropy"), lambda: PureConfig(keep_quantile=2), lambda: PureConfig(lam=0),
    lambda: PaceConfig(shares=(1, 1, 1)), lambda: PaceConfig(shares=None), lambda: PaceConfig(cumulative="no"),
    lambda: PureConfig(epsilon=0), lambda: HealConfig(eval_n=0), lambda: HealConfig(eval_limit=-1),
    lambda: PaceConfig(updates=0), lambda: PaceConfig(learning_rate=True),
])
def test_configs(make):
    with pytest.raises(InputError, match=r"it must (be|lie|sum)"):
        make()


def test_full_memory_is_an_error_with_a_remedy(tmp_path, capsys, monkeypatch):
    def full(*args, **more):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nmore text")

    monkeypatch.setattr("heal_ref.run.pipeline.sample", full)
    refused(capsys, ["run", "--preset", "smoke", "--out", str(tmp_path / "run"), "--quiet"], "lower --max-batch")


def test_the_good_one_is_good(tmp_path, capsys):
    path = tmp_path / "problems.jsonl"
    path.write_bytes(lines(GOOD))
    assert main(["check", str(path)]) == 0
    refused(capsys, ["check", str(path), "--teacher", model(tmp_path, no_end)], "no end-of-text token")
    assert main(["check", str(path), "--teacher", str(DATA / "heal_student")]) == 0
    assert "1 problems, no mistakes found" in capsys.readouterr().out
