"""What people give us that cannot work: one line with the remedy, exit code 2, soon, nothing lost."""

import datetime
import decimal
import json
import os
import shutil
import socket
import subprocess
import sys

import pyarrow
import pytest
import torch
from datasets import Dataset, DatasetDict
from pyarrow import parquet
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from heal_ref.__main__ import main
from heal_ref.config import GearConfig, HealConfig, PaceConfig, PureConfig, SampleConfig
from heal_ref.records import InputError
from tests.conftest import DATA, ROOT

GOOD = {"id": "a", "question": "Start 5; + 3", "answer": 8}
OTHER = {"id": "b", "question": "Start 5; + 4", "answer": 9}
CHAT = str(DATA / "chat" / "teacher")


def lines(*rows):
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows).encode()


def without(name, row=GOOD):
    return {k: v for k, v in row.items() if k != name}


def refused(capsys, args, message, count=1):
    """The call ends with code 2 and `count` lines, the first of which holds `message`."""
    try:
        code = main(list(map(str, args)))
    except SystemExit as e:  # argparse
        code = e.code
    error = capsys.readouterr().err
    assert code == 2, error
    assert message in error
    assert "Traceback" not in error
    said = error.splitlines()
    if plan := [i for i, line in enumerate(said) if line.startswith("measured: ")]:
        said = said[plan[-1] + 1 :]  # a run shows its plan before it starts
    assert len([line for line in said if line and not line.startswith(("answers of", "  '", "Measuring"))]) == count, (
        error
    )


# ---------------------------------------------------------------------------------- problem files

JSONL = {  # content of a problem file -> what the message must hold
    "empty": (b"", "the file is empty; write one problem per line"),
    "blank lines": (b"\n\n", "the file is empty"),
    "only a byte order mark": (b"\xef\xbb\xbf", "not valid JSON"),
    "not json": (lines("problem one"), "not valid JSON"),
    "cut off": (lines(GOOD)[:-9], "may have been cut off"),
    "second line cut off": (lines(GOOD, OTHER)[:-9], ":2: not valid JSON"),
    "a list": (lines("[1, 2]"), "must be an object, found list"),
    "a number": (lines("7"), "must be an object, found int"),
    "null": (lines("null"), "must be an object, found NoneType"),
    "text": (lines('"Start 5"'), "must be an object, found str"),
    "single quotes": (lines("{'id': 'a'}"), "not valid JSON"),
    "trailing comma": (lines('{"id": "a",}'), "not valid JSON"),
    "a comment": (lines("// problems", GOOD), ":1: not valid JSON"),
    "two objects on a line": (lines(json.dumps(GOOD) + json.dumps(OTHER)), "not valid JSON (Extra data"),
    "not utf-8": (b'{"id": "\xff"}\n', "not UTF-8 (byte 0xff"),
    "latin-1": ('{"id": "a", "question": "\u00e9"}\n'.encode("latin-1"), "not UTF-8"),
    "utf-16": (lines(GOOD).decode().encode("utf-16"), "not UTF-8"),
    "nul bytes": (b"\0" * 100, "not valid JSON"),
    "gzip": (b"\x1f\x8b\x08\x00\x00\x00\x00\x00", "not UTF-8"),
    "nested lists (K11)": (b"[" * 5000 + b"]" * 5000 + b"\n", "nested too deeply"),
    "nested objects": (b'{"a":' * 9000 + b"1" + b"}" * 9000 + b"\n", "nested too deeply"),
    "a number of 5,000 digits": (
        lines('{"id": "a", "question": "q", "answer": ' + "8" * 5000 + "}"),
        "too many digits",
    ),
    "no question": (lines(without("question")), 'field "question" is missing or null (found: id, answer)'),
    "no answer": (lines(without("answer")), 'field "answer" is missing or null (found: id, question)'),
    "empty object": (lines("{}"), 'field "question" is missing'),
    "empty id": (lines(GOOD | {"id": " "}), 'field "id" must be a non-empty string'),
    "list as id": (lines(GOOD | {"id": [3]}), 'field "id" must be a non-empty string'),
    "fraction as id": (lines(GOOD | {"id": 1.5}), 'field "id" must be a non-empty string'),
    "empty question": (lines(GOOD | {"question": ""}), 'field "question" must be a non-empty string'),
    "number as question": (lines(GOOD | {"question": 5}), 'field "question" must be a non-empty string'),
    "list as question": (lines(GOOD | {"question": ["Start 5"]}), 'field "question" must be a non-empty string'),
    "turns as question": (
        lines(GOOD | {"question": [{"role": "user", "content": "Start 5"}]}),
        'field "question" must be',
    ),
    "null question": (lines(GOOD | {"question": None}), 'field "question" is missing'),
    "null answer": (lines(GOOD | {"answer": None}), 'field "answer" is missing'),
    "empty answer": (lines(GOOD | {"answer": ""}), 'field "answer" must be a non-empty string'),
    "true as answer": (lines(GOOD | {"answer": True}), 'field "answer" must be a non-empty string or a finite number'),
    "list as answer": (lines(GOOD | {"answer": [8]}), 'field "answer" must be a non-empty string or a finite number'),
    "nested lists as answer": (lines(GOOD | {"answer": [[8], [9]]}), 'field "answer" must be a non-empty string'),
    "object as answer": (lines(GOOD | {"answer": {"value": 8}}), 'field "answer" must be a non-empty string'),
    "nan as answer": (lines('{"id": "a", "question": "Start 5; + 3", "answer": NaN}'), "or a finite number, found nan"),
    "infinity as answer": (
        lines('{"id": "a", "question": "Start 5; + 3", "answer": Infinity}'),
        "finite number, found inf",
    ),
    "1e999 as answer": (lines('{"id": "a", "question": "Start 5; + 3", "answer": 1e999}'), "finite number, found inf"),
    "text as answer": (lines(GOOD | {"answer": "eight"}), "is not an hour"),
    "fraction as answer": (lines(GOOD | {"answer": 8.5}), "is not an hour"),
    "negative answer": (lines(GOOD | {"answer": -15}), "is not an hour"),
    "huge answer": (lines(GOOD | {"answer": "8" * 5000}), "is not an hour"),
    "wrong answer": (lines(GOOD | {"answer": 9}), "does not follow from the chain"),
    "half a character in the question (K11)": (
        b'{"id":"a","question":"x \\ud800","answer":"4"}\n',
        "half a character (a surrogate)",
    ),
    "half a character in the answer": (b'{"id":"a","question":"x","answer":"4\\udfff"}\n', "half a character"),
    "half a character in the id": (b'{"id":"\\ud800","question":"x","answer":"4"}\n', "half a character"),
    "half a character in the kind": (b'{"kind":"\\ud800","question":"x","answer":"4"}\n', "half a character"),
    "same id twice": (lines(GOOD, OTHER | {"id": "a"}), ':2: id "a" was used on line 1; give each problem its own id'),
    "a line number as id": (lines(GOOD | {"id": "2"}, without("id", OTHER)), ':2: id "2" was used on line 1'),
    "unknown operator": (lines(GOOD | {"question": "Start 5; % 3"}), "unknown operator '%'"),
    "no operation": (lines(GOOD | {"question": "Start 5"}), "is not of the form"),
    "operand too large": (lines(GOOD | {"question": "Start 5; + 30"}), "operand 30 is outside"),
    "start too large": (lines(GOOD | {"question": "Start 50; + 3"}), "starting hour 50 is outside"),
    "other text": (lines(GOOD | {"question": "What is 5 + 3?"}), "is not of the form"),
    "wrong kind": (lines(GOOD | {"kind": "frontier"}), "kind 'frontier'"),
    "wrong length": (lines(GOOD | {"length": 4}), "length 4"),
}


@pytest.mark.parametrize("name", JSONL)
def test_json_lines(tmp_path, capsys, name):
    content, message = JSONL[name]
    path = tmp_path / "problems.jsonl"
    path.write_bytes(content)
    refused(capsys, ["check", path], message, 2 if name == "utf-16" else 1)


def table(tmp_path, **columns):
    parquet.write_table(pyarrow.table(columns), tmp_path / "p.parquet")
    return tmp_path / "p.parquet"


def saved(tmp_path, **splits):
    data = {name: Dataset.from_list(rows) for name, rows in splits.items()}
    DatasetDict(data).save_to_disk(str(tmp_path / "saved"))
    return tmp_path / "saved"


def text(name, content):
    def write(tmp_path):
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    return write


DAY = datetime.date(2024, 1, 5)
SOURCES = {  # what makes a source -> what the message must hold
    "json: dates (K11)": (
        text("d.json", b'[{"question":"q","answer":"2024-01-05"},{"question":"r","answer":"2024-02-05"}]'),
        "is not of the form",
    ),
    "json: not whole": (text("p.json", b'[{"question":'), "not valid JSON"),
    "json: one word": (text("p.json", b"problems"), "not valid JSON"),
    "json: empty list": (text("p.json", b"[]"), "the file is empty"),
    "json: list of lists": (text("p.json", b"[[1]]"), "must be an object, found list"),
    "json: nested (K11)": (text("n.json", b"[" * 5000 + b"]" * 5000), "nested too deeply"),
    "json: columns, not rows": (text("p.json", b'{"question": ["a"], "answer": ["b"]}'), 'field "question" must be'),
    "csv: no rows": (text("p.csv", b"question,answer\n"), "the file is empty"),
    "csv: nothing": (text("p.csv", b""), "the file is empty"),
    "csv: no answer": (
        text("p.csv", b"question\nStart 5; + 3\n"),
        'field "answer" is missing or null (found: question)',
    ),
    "csv: cells missing": (text("p.csv", b"question,answer\nStart 5; + 3\n"), 'field "answer" is missing or null'),
    "csv: too many cells": (text("p.csv", b"question,answer\nadd 1, then 2,8\n"), "cannot be read as problems"),
    "csv: not utf-8": (text("p.csv", b"question,answer\n\xff\xfe,8\n"), "cannot be read as problems"),
    "csv: empty answer": (
        text("p.csv", b"question,answer\nStart 5; + 3,\n"),
        'field "answer" must be a non-empty string',
    ),
    "csv: NaN": (text("p.csv", b"question,answer\nStart 5; + 3,NaN\n"), "is not an hour"),
    "csv: nul bytes": (text("p.csv", b"\0\0\0\n\0"), "is missing"),
    "csv: a quote is open": (text("p.csv", b'question,answer\n"Start 5; + 3,8\n'), "cannot be read as problems"),
    "tsv: commas": (text("p.tsv", b"question,answer\nStart 5; + 3,8\n"), 'field "question" is missing'),
    "parquet: text": (text("p.parquet", b"question,answer\n"), "cannot be read as problems"),
    "parquet: cut off": (text("p.parquet", b"PAR1\x00\x00"), "cannot be read as problems"),
    "parquet: dates": (lambda p: table(p, question=["Start 5; + 3"], answer=[DAY]), "found datetime.date(2024, 1, 5)"),
    "parquet: times": (
        lambda p: table(p, question=["Start 5; + 3"], answer=[datetime.datetime(2024, 1, 5)]),
        "found datetime.datetime(",
    ),
    "parquet: spans": (lambda p: table(p, question=["Start 5; + 3"], answer=[datetime.timedelta(1)]), "timedelta"),
    "parquet: decimals": (
        lambda p: table(p, question=["Start 5; + 3"], answer=[decimal.Decimal("8.50")]),
        "is not an hour",
    ),
    "parquet: bytes": (lambda p: table(p, question=["Start 5; + 3"], answer=[b"8"]), "found b'8'"),
    "parquet: nulls": (
        lambda p: table(p, question=["Start 5; + 3"], answer=pyarrow.nulls(1)),
        'field "answer" is missing',
    ),
    "parquet: nan": (lambda p: table(p, question=["Start 5; + 3"], answer=[float("nan")]), "finite number, found nan"),
    "parquet: lists": (lambda p: table(p, question=["Start 5; + 3"], answer=[[8]]), "found [8]"),
    "parquet: turns": (
        lambda p: table(p, question=[[{"role": "user", "content": "q"}]], answer=["8"]),
        'field "question" must',
    ),
    "parquet: bytes as question": (lambda p: table(p, question=[b"Start 5"], answer=[8]), "found b'Start 5'"),
    "folder: nothing in it": (lambda p: p, "cannot be read as problems"),
    "folder: no such split": (lambda p: saved(p, test=[GOOD]), "it has no split 'train'"),
    "folder: cut off": (
        lambda p: (saved(p, train=[GOOD]) / "train" / "state.json").unlink() or p / "saved",
        "cannot be read as problems",
    ),
    "no such file": (lambda p: p / "nothing.jsonl", "no such file"),
    "no such csv": (lambda p: p / "nothing.csv", "no such file"),
    "no such parquet": (lambda p: p / "nothing.parquet", "no such file"),
    "no such dataset": (lambda p: "nobody/nothing-at-all", "cannot be read as problems"),
    "no such folder": (lambda p: p / "nothing", "cannot be read as problems"),
    "a folder that is called .jsonl": (
        lambda p: (p / "x.jsonl").mkdir() or p / "x.jsonl",
        "cannot be read as problems",
    ),
    "an unknown kind of file": (text("p.txt", b"Start 5; + 3"), "cannot be read as problems"),
    "packed": (text("a.jsonl.gz", b"\x1f\x8b"), "its ending '.gz' is unknown: unpack it"),
    "zipped": (text("A.ZIP", b"PK"), "unpack it"),
    "another ending": (text("a.ndjson", lines(GOOD)), "its ending '.ndjson' is unknown: rename it, as .jsonl"),
    "no ending": (text("problems", lines(GOOD)), "rename it"),
    "no name": (lambda p: "", "the name of a source of problems is empty; give"),
    "a model": (lambda p: CHAT, 'field "question" is missing'),
}


@pytest.mark.parametrize("name", SOURCES)
def test_sources(tmp_path, capsys, name):
    make, message = SOURCES[name]
    refused(capsys, ["check", make(tmp_path)], message)


def test_alike_mistakes_are_one_message(tmp_path, capsys):
    path = tmp_path / "p.jsonl"
    path.write_bytes(lines(*({"id": str(i), "question": f"q{i}"} for i in range(1319))))
    refused(
        capsys,
        ["check", path],
        'all 1,319 problems: field "answer" is missing or null (found: id, question); add it, or',
    )
    path.write_bytes(
        lines(GOOD, *({"id": str(i), "question": f"Start {i % 23}; + 3", "answer": "noon"} for i in range(20)))
    )
    refused(capsys, ["check", path], "p.jsonl:2: the answer 'noon' is not an hour", 4)
    main(["check", str(path)])
    assert "and 17 more like it" in capsys.readouterr().err


def test_mistakes_with_other_words_are_alike(tmp_path, capsys):
    """300 different answers with quotes of both kinds, cut or not, are one kind; so are many ids and columns."""
    path = tmp_path / "p.jsonl"
    answers = [f"It's Tom's {'a' * i} number.\nThen \"it's\" {i}" for i in range(300)]
    path.write_bytes(lines(*({"question": f"q{i}", "answer": a} for i, a in enumerate(answers))))
    refused(capsys, ["check", path, "--teacher", CHAT], "all 300 problems: the answer", 1)
    path.write_bytes(lines(*(GOOD | {"id": "x" * (i % 7 + 1)} for i in range(300))))
    refused(capsys, ["check", path], 'id "x" was used on line 1', 4)


def test_many_kinds_of_mistakes_are_five_lines_and_a_count(tmp_path, capsys):
    path = tmp_path / "p.jsonl"
    kinds = [{"question": "Start 5; + 3"}, {"answer": "8"}, [], 7, "x", None, GOOD | {"id": ""}, GOOD | {"answer": "noon"}]
    path.write_bytes(lines(*(json.dumps(row) for row in kinds for _ in range(10))))
    refused(capsys, ["check", path], 'p.jsonl:1: field "answer" is missing', 6)
    main(["check", str(path)])
    assert capsys.readouterr().err.splitlines()[-1] == f"{path}: and 69 more mistakes of 7 kinds"


@pytest.mark.parametrize(("args", "message"), [
    (["check", "FILE", "--split", "train"], "--split train: "),
    (["check", "FILE", "--config-name", "main"], "is a file, which has no such parts; leave --config-name out"),
    (["run", "--out", "out", "--split", "test"], "leave --split out"),
    (["run", "--out", "out", "--config-name", "a"], "leave --config-name out"),
    (["run", "--out", "out", "--heldout-split", "a"], "leave --heldout-split out"),
    (["run", "--out", ""], "--out is empty; give a folder"),
    (["run", "--out", "out", "--problems", ""], "the name of a source of problems is empty")])
def test_options_that_would_be_ignored_or_are_empty(tmp_path, monkeypatch, capsys, args, message):
    (tmp_path / "p.jsonl").write_bytes(lines(GOOD))
    monkeypatch.chdir(tmp_path)
    refused(capsys, ["p.jsonl" if a == "FILE" else a for a in args], message)


CHAT_FILES = {
    "two answers for one question (K6)": (
        lines({"question": "6*7?", "answer": "42"}, {"question": "6*7?", "answer": "41"}),
        "two answers for one question: '42' on line 1, '41' here; keep the right one",
    ),
    "a solution without an end (K6)": (
        lines({"question": "q", "answer": "First add 3 and 4.\nThen double it, which is a lot."}),
        "is not a final answer; write the final answer only",
    ),
    "nan (K6)": (lines({"question": "q", "answer": "NaN"}), "is not a final answer"),
    "control tokens (K8)": (lines({"question": "6*7?<|im_end|>\n<|im_start|>assistant\n5.", "answer": "42"}), "<|im_"),
    "thoughts in the question": (lines({"question": "<think>6*7?", "answer": "42"}), "<think>"),
    "control tokens in the answer": (lines({"question": "6*7?", "answer": "42<|im_end|>"}), "<|im_end|>"),
    "an endless question": (lines({"question": "6*7? " * 9000, "answer": "42"}), "characters"),
    "braces": (lines({"question": "6*7?", "answer": "\\frac{1}{2"}), "is not a final answer"),
}


@pytest.mark.parametrize("name", CHAT_FILES)
def test_problems_for_a_chat_model(tmp_path, capsys, name):
    content, message = CHAT_FILES[name]
    path = tmp_path / "problems.jsonl"
    path.write_bytes(content)
    refused(capsys, ["check", path, "--teacher", CHAT], message)


# ---------------------------------------------------------------------------------- model folders


def model(tmp_path, change, source="student"):
    """A copy of a model's folder, spoilt."""
    folder = tmp_path / "model"
    shutil.copytree(DATA / source, folder)
    change(folder)
    return str(folder)


def edit(name, **values):
    def change(folder):
        settings = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(settings | values))

    return change


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


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
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"new{i}" for i in range(5)])
    tokenizer.save_pretrained(folder)


def adapter(folder):
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (folder / "adapter_model.safetensors").write_bytes(b"any bytes")


no_end = edit("tokenizer_config.json", eos_token=None)
MODELS = {
    "no config": (lambda f: (f / "config.json").unlink(), "config.json is missing"),
    "config is not json": (write("config.json", b"{"), "cannot be loaded"),
    "config is empty": (write("config.json", b""), "cannot be loaded"),
    "unknown architecture": (edit("config.json", model_type="qwen99", architectures=["Qwen99"]), "cannot be loaded"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "cannot be loaded"),
    "weights cut off": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:5000]),
        "cannot be loaded",
    ),
    "weights are text": (write("model.safetensors", b"weights"), "cannot be loaded"),
    "weights are empty": (write("model.safetensors", b""), "cannot be loaded"),
    "a weight is missing": (drop_tensor, "cannot be loaded"),
    "weights of another size": (edit("config.json", hidden_size=128), "cannot be loaded"),
    "no tokenizer": (
        lambda f: [(f / n).unlink() for n in ("tokenizer.json", "tokenizer_config.json")],
        "cannot be loaded",
    ),
    "tokenizer is not json": (write("tokenizer.json", b"{"), "cannot be loaded"),
    "tokenizer larger than the model": (more_tokens, "they do not belong together"),
    "no end of text": (no_end, "no end-of-text token"),
    "nan weights": (spoil_weights(float("nan")), "NaN"),
    "infinite weights": (spoil_weights(float("inf")), "NaN"),
    "an adapter (K7)": (adapter, "adapter"),
    "gptq (K11)": (edit("config.json", quantization_config={"quant_method": "gptq", "bits": 4}), "cannot be loaded"),
    "unknown quantization": (
        edit("config.json", quantization_config={"quant_method": "none of these"}),
        "cannot be loaded",
    ),
    "code of its own": (
        edit(
            "config.json",
            model_type="mine",
            auto_map={"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"},
        ),
        "cannot be loaded",
    ),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("role", ["teacher", "student"])
def test_model_folders(tmp_path, capsys, name, role):
    change, message = MODELS[name]
    out = tmp_path / "run"
    args = [
        "run",
        "--preset",
        "smoke",
        f"--{role}",
        model(tmp_path, change),
        "--out",
        out,
        "--quiet",
        "--task",
        "clock",
    ]
    refused(capsys, args, message)
    assert not list(out.rglob("*.parquet"))


# -------------------------------------------------------------------------------------- commands

COMMANDS = {
    "no such model": (["--teacher", "./nothing"], "no model here"),
    "no such model on the hub": (["--teacher", "nobody/nothing-at-all"], "cannot be loaded"),
    "no such problems": (["--problems", "nothing.jsonl"], "no such file"),
    "no such heldout": (["--heldout", "nothing.csv"], "no such file"),
    "column without a field": (["--columns", "problem"], "write FIELD=COLUMN"),
    "column of no field": (["--columns", "colour=red"], "write FIELD=COLUMN"),
    "column without a name": (["--columns", "question="], "write FIELD=COLUMN"),
    "no such column": (["--columns", "question=problem"], 'field "problem" is missing'),
    "no such id column": (["--columns", "id=name"], 'field "name" is missing'),
    "chat task for a model without a template": (["--task", "chat"], "chat template"),
    "unknown preset": (["--preset", "large"], "invalid choice"),
    "seed is a word": (["--seed", "one"], "invalid int value"),
    "nothing at once": (["--max-batch", "0"], "at least one sequence"),
    "no new tokens": (["--max-new-tokens", "0"], "it must lie between"),
    "unknown option": (["--teachers", "x"], "unrecognized arguments"),
    "unknown precision": (["--dtype", "float7"], "float7"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_commands(tmp_path, capsys, name):
    args, message = COMMANDS[name]
    count = 2 if name in ("no such column", "no such id column") else 1  # both files lack it
    refused(capsys, ["run", "--preset", "smoke", "--out", tmp_path / "run", "--quiet", *args], message, count)
    assert not list((tmp_path / "run").rglob("*.parquet"))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "required: command"),
        (["walk"], "invalid choice"),
        (["check"], "required: file"),
        (["run"], "required: --out"),
        (["check", "x.jsonl", "--teacher", "./nothing"], "no model here"),
        (["demo", "--task", "chat"], "chat template"),
    ],
)
def test_command_line(capsys, args, message):
    refused(capsys, args, message)


def test_out_is_a_file(tmp_path, capsys):
    (tmp_path / "run").write_text("here already")
    refused(capsys, ["run", "--preset", "smoke", "--out", tmp_path / "run", "--quiet"], "run")
    assert (tmp_path / "run").read_text() == "here already"


@pytest.mark.parametrize(
    "make",
    [
        lambda: SampleConfig(n=0),
        lambda: SampleConfig(temperature=-1),
        lambda: SampleConfig(top_p=1.5),
        lambda: SampleConfig(n="8"),
        lambda: SampleConfig(temperature=float("nan")),
        lambda: GearConfig(window=2),
        lambda: GearConfig(hint="riddle"),
        lambda: PureConfig(reading="entropy"),
        lambda: PureConfig(keep_quantile=2),
        lambda: PureConfig(lam=0),
        lambda: PaceConfig(shares=(1, 1, 1)),
        lambda: PaceConfig(shares=None),
        lambda: PaceConfig(cumulative="no"),
        lambda: PureConfig(epsilon=0),
        lambda: HealConfig(eval_n=0),
        lambda: HealConfig(eval_limit=-1),
        lambda: PaceConfig(updates=0),
        lambda: PaceConfig(learning_rate=True),
    ],
)
def test_configs(make):
    with pytest.raises(InputError, match=r"it must (be|lie|sum)"):
        make()


# ------------------------------------------------------------------------------------ run folders


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run from which each test takes a copy to spoil, and the command that made it."""
    home = tmp_path_factory.mktemp("finished")
    for name, count in (("train", 40), ("heldout", 12)):
        kept = (DATA / "clock" / f"{name}.jsonl").read_bytes().splitlines(keepends=True)
        (home / f"{name}.jsonl").write_bytes(b"".join(kept[:: len(kept) // count]))
    shutil.copytree(DATA / "teacher", home / "teacher")
    command = [
        "run",
        "--preset",
        "smoke",
        "--quiet",
        "--teacher",
        home / "teacher",
        "--problems",
        home / "train.jsonl",
        "--heldout",
        home / "heldout.jsonl",
        "--max-new-tokens",
        "60",
        "--out",
        home / "run",
    ]
    assert main(list(map(str, command))) == 0
    return home, command


def torn(keep, name="1-base/00000.parquet"):
    """A shard with other bytes; the report is gone, too."""

    def change(home):
        (home / "run" / name).write_bytes(keep((home / "run" / name).read_bytes()))
        (home / "run" / "report.json").unlink()

    return change


def another(name, place="1-base/00000.parquet"):
    """A shard in the place of another one."""
    return lambda home: shutil.copy(home / "run" / name, home / "run" / place)


def old_format(home):
    (home / "run" / "1-base" / "00000.jsonl").write_text('{"records": 0}\n')


def other_weights(home):
    shutil.copy(DATA / "student" / "config.json", home / "teacher")
    shutil.copy(DATA / "student" / "model.safetensors", home / "teacher")
    for folder in (home / "run" / "6-eval").glob("teacher*"):
        shutil.rmtree(folder)


def one_weight(home):
    tensors = load_file(home / "teacher" / "model.safetensors")
    tensors[min(tensors)].view(-1)[-1] += 0.25
    save_file(tensors, home / "teacher" / "model.safetensors", metadata={"format": "pt"})


FOLDERS = {  # a change of a finished run, more of the command line -> what the message must hold
    "config.json is empty (K11)": (
        lambda h: (h / "run/config.json").write_text(""),
        [],
        "is not the config.json of a run",
    ),
    "config.json is a list": (
        lambda h: (h / "run/config.json").write_text("[1]"),
        [],
        "is not the config.json of a run",
    ),
    "config.json is a model's": (
        lambda h: shutil.copy(DATA / "teacher/config.json", h / "run"),
        [],
        "is not the config.json of",
    ),
    "config.json is cut off": (
        lambda h: (h / "run/config.json").write_text('{"identity": {"se'),
        [],
        "is not the config.json of",
    ),
    "config.json is gone": (
        lambda h: (h / "run/config.json").unlink(),
        ["--seed", "1"],
        "parquet but no config.json, so nothing says what run made it; use another --out",
    ),
    "config.json and all but the students is gone": (
        lambda h: [f.unlink() for f in [h / "run/config.json", *(h / "run").rglob("*.parquet")]],
        [],
        "settings.json but no config.json",
    ),
    "settings.json of a student is cut off": (
        lambda h: (h / "run/5-students/heal/settings.json").write_text('{"seed": 0, "lear'),
        [],
        "settings.json is not the settings of a student, so nothing says what it learnt; use another folder",
    ),
    "the first 3000 bytes of a shard (K2)": (torn(lambda x: x[:3000]), [], "00000.parquet is not a whole shard ("),
    "a shard without its end (K11)": (torn(lambda x: x[:-9]), [], "; delete it and start the same command again"),
    "a shard with another byte": (
        torn(lambda x: x[:5000] + bytes([x[5000] ^ 1]) + x[5001:]),
        [],
        "is not a whole shard (",
    ),
    "an empty shard": (torn(lambda x: b""), [], "is not a whole shard ("),
    "a shard of something else": (torn(lambda x: b'{"a": 1}'), [], "is not a whole shard ("),
    "another shard": (
        another("6-eval/heal/00000.parquet"),
        [],
        "1-base/00000.parquet is not a whole shard (its stage is '6-eval/heal', not '1-base')",
    ),
    "scores in the place of samples": (
        another("4-scores/guided/00000.parquet"),
        [],
        "(its stage is '4-scores/guided', not '1-base')",
    ),
    "a shard of scores, cut": (
        torn(lambda x: x[1:], "4-scores/reference/00000.parquet"),
        [],
        "is not a whole shard (",
    ),
    "records of an older version": (old_format, [], "older version (1-base/00000.jsonl), which kept them as JSON"),
    "another model in the folder (K2)": (other_weights, [], "weights of the teacher: '"),
    "one other weight": (one_weight, [], "weights of the teacher: '"),
    "another tokenizer": (
        lambda h: edit("tokenizer_config.json", unk_token="<pad>")(h / "teacher"),
        ["--task", "clock"],
        "tokenizer of the teacher: '",
    ),
    "other problems (K2)": (lambda h: (h / "train.jsonl").write_bytes(lines(GOOD)), [], "training problems: '"),
    "one more held-out problem": (
        lambda h: (h / "heldout.jsonl").write_bytes((h / "heldout.jsonl").read_bytes() + lines(GOOD)),
        [],
        "held-out problems: '",
    ),
    "another seed": (
        lambda h: None,
        ["--seed", "1"],
        "(seed: 0 in the folder, 1 now); use another --out, or delete it",
    ),
    "another preset": (lambda h: None, ["--preset", "tiny"], "pace.updates: 12 in the folder, 600 now"),
    "another limit": (lambda h: None, ["--max-new-tokens", "61"], "sample.max_new_tokens: 60 in the folder, 61 now"),
    "another student": (lambda h: None, ["--student", DATA / "heal_student"], "weights of the student: '"),
    "another precision": (lambda h: None, ["--dtype", "bfloat16"], "weights of the teacher: '"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_run_folders(tmp_path, capsys, finished, name):
    change, more, message = FOLDERS[name]
    home = tmp_path / "home"
    shutil.copytree(finished[0], home)
    change(home)
    before = {p: p.read_bytes() for p in home.rglob("*") if p.is_file() and p.name not in ("log.txt", ".lock")}
    command = [str(a).replace(str(finished[0]), str(home)) for a in finished[1]]
    refused(capsys, [*command, *more], message)
    assert all(path.read_bytes() == content for path, content in before.items())


SHOW = {  # arguments of show after the folder, a change of a finished run -> what the message must hold
    "no such folder": ([], lambda h: shutil.rmtree(h / "run"), "is not the folder of a run (it has no config.json); give"),
    "not a run": ([], lambda h: (h / "run/config.json").unlink(), "is not the folder of a run"),
    "config.json is empty": ([], lambda h: (h / "run/config.json").write_text(""), "is not the config.json of a run"),
    "no such problem": (["--id", "p"], None, "has no trajectory of a problem 'p'; ids are such as train-"),
    "no such stage": (["--stage", "7-x"], None, "has no stage '7-x'; it has 1-base, 2-guided, 3-repaired, 6-eval/heal"),
    "scores are no trajectories": (["--stage", "4-scores/guided"], None, "has no stage '4-scores/guided'"),
    "no such source": (["--source", "x"], None, "invalid choice: 'x' (choose from"),
    "kept and dropped": (["--kept", "--dropped"], None, "not allowed with argument --kept"),
    "fewer than none": (["--limit", "-1"], None, "--limit -1: it must be 0, for all, or more"),
    "nothing yet": ([], lambda h: [f.unlink() for f in (h / "run").rglob("*.parquet")], "holds no trajectories yet"),
    "an older version": ([], old_format, "holds records of an older version"),
    "a damaged shard": ([], torn(lambda x: x[:3000]), "1-base/00000.parquet is not a whole shard"),
    "scores of something else": (
        ["--source", "guided"],
        another("4-scores/reference/00000.parquet", "4-scores/guided/00000.parquet"),
        "4-scores/guided/00000.parquet is not a whole shard (its stage is",
    ),
}


@pytest.mark.parametrize("name", SHOW)
def test_show(tmp_path, capsys, finished, name):
    more, change, message = SHOW[name]
    shutil.copytree(finished[0], tmp_path / "home")
    if change:
        change(tmp_path / "home")
    refused(capsys, ["show", tmp_path / "home" / "run", *more], message)


def test_a_moved_model_and_copied_problems_are_the_same_run(tmp_path, finished, capsys):
    home = tmp_path / "home"
    shutil.copytree(finished[0], home)
    command = [str(a).replace(str(finished[0]), str(home)) for a in finished[1]]
    assert main(command) == 0
    assert capsys.readouterr().out.count("teacher") == 1


def test_a_template_with_the_date_is_not_mixed(tmp_path, capsys, monkeypatch):
    """K2: the template writes the day; the run stops after its base samples and is continued a day later."""
    dated = "{{ strftime_now('%d') }}"
    template = DATA / "chat" / "teacher" / "chat_template.jinja"
    teacher = model(tmp_path, lambda f: (f / template.name).write_text(dated + template.read_text()), "chat/teacher")
    command = [
        "run",
        "--preset",
        "smoke",
        "--quiet",
        "--teacher",
        teacher,
        "--student",
        CHAT,
        "--max-new-tokens",
        "8",
        "--problems",
        str(DATA / "chat/train.jsonl"),
        "--heldout",
        str(DATA / "chat/heldout.jsonl"),
        "--out",
        str(tmp_path / "run"),
    ]

    class Clock(datetime.datetime):
        day_ = 5

        @classmethod
        def now(cls, tz=None):
            return cls(2024, 1, cls.day_)

    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Clock)
    monkeypatch.setattr("heal_ref.run.pipeline.Method.guided", lambda *_: (_ for _ in ()).throw(InputError("stopped")))
    refused(capsys, command, "stopped")
    assert list((tmp_path / "run" / "1-base").glob("*.parquet"))
    monkeypatch.undo()
    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Clock)
    monkeypatch.setattr(Clock, "day_", 6)
    refused(capsys, command, "the chat template may insert today's date: write a fixed one into it")
    monkeypatch.setattr(Clock, "day_", 5)

    def next_day(*_):
        Clock.day_ = 6
        return []

    monkeypatch.setattr("heal_ref.run.pipeline.Method.guided", next_day)
    refused(capsys, command, "plain prompt: '05<|im_start|>")  # the day also ends while a run goes on


def test_a_folder_in_use_is_refused(tmp_path, capsys, finished):
    """K12: a second start says who holds the folder; the first one's files stay. The lock ends with its process."""
    home = tmp_path / "home"
    shutil.copytree(finished[0], home)
    command = [str(a).replace(str(finished[0]), str(home)) for a in finished[1]]
    held = home / "run" / "1-base" / "00001.parquet.4.tmp"
    held.write_text("half a shard")
    code = (
        "import sys, time; from heal_ref.run.folder import RunFolder; from pathlib import Path; import json\n"
        "path = Path(sys.argv[1])\n"
        "folder = RunFolder(path, json.loads((path / 'config.json').read_text())['identity'])\n"
        "Path(path / '1-base' / '00001.parquet.4.tmp').write_text('half a shard')\n"
        "print('ready', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(home / "run")], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout.readline() == "ready\n"
    refused(capsys, command, f"is in use by process {process.pid} on {socket.gethostname()}; wait until it ends")
    assert held.read_text() == "half a shard"
    process.kill()
    process.wait()
    assert main(command) == 0  # taken over
    assert not held.exists()


def test_files_of_others_stay(tmp_path, capsys):
    """--out . in a folder with other files: nothing is deleted, and a config.json of something else is no run's."""
    others = ("notes.tmp", "a/b.tmp", "a/00000.parquet.7.tmp", "settings.json.7.tmp")
    for name in others:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    small = tmp_path / "p.jsonl"
    small.write_bytes(lines(GOOD, OTHER))
    command = [
        "run",
        "--preset",
        "smoke",
        "--quiet",
        "--problems",
        str(small),
        "--heldout",
        str(small),
        "--out",
        str(tmp_path),
    ]
    assert main(command) == 0
    assert main(command) == 0
    assert all((tmp_path / name).read_text() == "mine" for name in others)


# ------------------------------------------------------------------------------ memory and disk


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nmore text"), "lower --max-batch"),
        (
            SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
            "No space left on device",
        ),
        (OSError(28, os.strerror(28), "model.safetensors"), "model.safetensors: No space left on device; mend that"),
        (
            RuntimeError("[enforce fail at inline_container.cc:664] . PytorchStreamWriter failed writing file data/0"),
            "make room",
        ),
        (PermissionError(13, "Permission denied", "run"), "run: Permission denied"),
    ],
)
def test_memory_and_disk(tmp_path, capsys, monkeypatch, error, message):
    def full(*args, **more):
        raise error

    monkeypatch.setattr("heal_ref.run.pipeline.sample", full)
    refused(capsys, ["run", "--preset", "smoke", "--out", tmp_path / "run", "--quiet"], message)
