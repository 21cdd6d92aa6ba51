"""Problems from any source are the same problems; how answers are read is said. What is refused: test_bad_inputs."""

import decimal
import json

import pyarrow
import pytest
from datasets import Dataset, DatasetDict
from pyarrow import parquet

from heal_ref.__main__ import main
from heal_ref.records import InputError, Problem
from heal_ref.run.sources import load_problems, read_problems
from heal_ref.tasks import ClockTask
from tests.conftest import DATA

ROWS = [
    {"problem": "Start 5; + 3", "solution": 8, "level": "mastered", "source": [1]},
    {"problem": "Start 1; * 4", "solution": 4, "level": "mastered", "source": [2]},
]
COLUMNS = {"question": "problem", "answer": "solution", "kind": "level"}


def write(path, kind):
    data = Dataset.from_list(ROWS)
    if kind == "folder":
        data.save_to_disk(str(path))
    elif kind == "splits":
        DatasetDict({"train": data, "test": data.select([0])}).save_to_disk(str(path))
    elif kind == "array":
        path.write_text("\ufeff\n" + json.dumps(ROWS, indent=1))
    elif kind in ("around", "one key"):
        around = {"version": 1, "data": ROWS} if kind == "around" else {"problems": ROWS}
        path.write_text(json.dumps(around, indent=1))
    elif kind == "parts":  # as a dataset's repository holds them
        (path / "data").mkdir(parents=True)
        data.to_parquet(str(path / "data" / "train-00000-of-00001.parquet"))
    elif kind in ("csv", "tsv"):
        data.remove_columns("source").to_csv(str(path), sep="," if kind == "csv" else "\t")
    else:
        {"json": data.to_json, "parquet": data.to_parquet}[kind](str(path))
    return str(path)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.jsonl", "json"),
        ("a.json", "json"),
        ("b.json", "array"),
        ("a.csv", "csv"),
        ("a.tsv", "tsv"),
        ("A.JSONL", "json"),
        ("A.JSON", "array"),
        ("A.CSV", "csv"),
        ("A.TSV", "tsv"),
        ("A.PARQUET", "parquet"),
        ("data.json", "around"),
        ("data.json", "one key"),
        ("a.parquet", "parquet"),
        ("saved", "folder"),
        ("splits", "splits"),
        ("repository", "parts"),
    ],
)
def test_every_kind_of_source_gives_the_same_problems(tmp_path, name, kind):
    source = write(tmp_path / name, kind)
    assert load_problems(source, ClockTask(), columns=COLUMNS) == [
        Problem("1", "Start 5; + 3", "8", "mastered"),
        Problem("2", "Start 1; * 4", "4", "mastered"),
    ]


def test_one_indented_problem(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"question": "q", "answer": 4, "turns": [{"a": 1}]}, indent=1))
    assert [p.answer for p in load_problems(tmp_path / "a.json")] == ["4"]


def test_another_split(tmp_path):
    source = write(tmp_path / "splits", "splits")
    assert len(load_problems(source, ClockTask(), columns=COLUMNS, split="test")) == 1
    with pytest.raises(InputError, match="it has no split 'dev'"):
        load_problems(source, ClockTask(), columns=COLUMNS, split="dev")


def test_a_configuration_of_a_dataset(tmp_path, capsys):
    """A repository with two configurations, as on the hub: --config-name chooses; without it the choice is shown."""
    for name, row in (("main", ROWS[0]), ("other", ROWS[1])):
        (tmp_path / "repo" / name).mkdir(parents=True)
        parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "repo" / name / "train.parquet")
    configs = "".join(f"- config_name: {n}\n  data_files: {n}/train.parquet\n" for n in ("main", "other"))
    (tmp_path / "repo" / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    command = ["check", str(tmp_path / "repo"), "--columns", *[f"{k}={v}" for k, v in COLUMNS.items()]]
    assert main([*command, "--config-name", "main"]) == 0
    said = capsys.readouterr()
    assert "'Start 5; + 3': '8' -> '8'" in said.out
    assert said.err == ""  # no progress bars of libraries
    assert main([*command, "--config-name", "other"]) == 0
    assert "Start 1; * 4" in capsys.readouterr().out
    assert main(command) == 2
    assert "Config name is missing" in capsys.readouterr().err


def test_json_lines_take_the_same_road(tmp_path):
    """K10: named columns count; a missing id is the line's number; other columns are ignored; numbers may be ids."""
    path = tmp_path / "a.jsonl"
    rows = [
        {"problem": "Start 5; + 3", "solution": "8", "id": 7, "answer": "a text", "length": 1.0, "extra": {"a": None}},
        {"problem": "Start 1; * 4", "solution": 4, "length": "1", "kind": None},
    ]
    path.write_text("\ufeff" + "\n\n".join(map(json.dumps, rows)))
    assert load_problems(path, ClockTask(), columns={"question": "problem", "answer": "solution"}) == [
        Problem("7", "Start 5; + 3", "8", "", 1),
        Problem("3", "Start 1; * 4", "4", "", 1),
    ]


def test_what_a_cell_holds_stays_as_it_is(tmp_path):
    (tmp_path / "a.csv").write_text('question,answer\n"a ""b"",\nc",007\nq,NA\nr,4.0\ns,2024-01-05\n')
    assert [(p.question, p.answer) for p in load_problems(tmp_path / "a.csv")] == [
        ('a "b",\nc', "007"),
        ("q", "NA"),
        ("r", "4.0"),
        ("s", "2024-01-05"),
    ]
    (tmp_path / "a.json").write_text(
        '[{"question":"q","answer":"2024-01-05"},{"question":"r","answer":12345678901234567890123}]'
    )
    assert [p.answer for p in load_problems(tmp_path / "a.json")] == ["2024-01-05", "12345678901234567890123"]
    columns = {"question": ["q"], "answer": [decimal.Decimal("4.00")]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    assert load_problems(tmp_path / "a.parquet")[0].answer == "4.00"


def test_the_same_question_twice_with_the_same_answer_is_no_mistake(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"question": "q", "answer": 4}\n{"question": "q", "answer": "4"}\n')
    assert [p.id for p in load_problems(path)] == ["1", "2"]


def test_a_mended_source_is_read_again(tmp_path, capsys):
    """K10: a bad csv is refused; mended, the same command goes through, and nothing of the old one is kept."""
    source, out = tmp_path / "a.csv", tmp_path / "run"
    command = [
        "run",
        "--preset",
        "smoke",
        "--quiet",
        "--problems",
        str(source),
        "--heldout",
        str(source),
        "--out",
        str(out),
    ]
    source.write_text("question,answer\nStart 5; + 3,9\n")
    assert main(command) == 2
    assert "does not follow from the chain" in capsys.readouterr().err
    source.write_text("question,answer\nStart 5; + 3,8\n")
    assert main(command) == 0
    capsys.readouterr()
    source.write_text("question,answer\nStart 5; + 4,9\n")  # changed after the run began
    assert main(command) == 2
    assert "training problems: '1, " in capsys.readouterr().err


def test_the_rule_for_answers_is_said_with_two_examples(tmp_path, capsys):
    """K6: GSM8K's `####`, a box in a solution, a plain answer."""
    path = tmp_path / "g.jsonl"
    rows = [
        ("Tom has 3 bags of 4 nuts and eats 5. How many?", "3*4=12\n12-5=7\n#### 7"),
        ("Tom has 2 bags of 4 nuts and eats 5. How many?", "2*4=8\n8-5=3\n#### 3"),
        ("Tom has 4 bags of 4 nuts and eats 5. How many?", "4*4=16\n16-5=11\n#### 11"),
        ("What is 6*7?", "Six sevens are 42, so it is \\boxed{42}."),
        ("What is 2+2?", "4.0"),
    ]
    path.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in rows))
    assert main(["check", str(path), "--teacher", str(DATA / "chat" / "teacher")]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == f"{path}: 5 problems, no mistakes found"
    assert [line.endswith(f"({n})") for line, n in ((said[0], 3), (said[3], 1), (said[5], 1))] == [True] * 3
    assert said[1].endswith("'3*4=12\\n12-5=7\\n#### 7' -> '7'")
    assert said[2].endswith("-> '3'")
    assert said[4].endswith("-> '42'")
    assert said[6].endswith("'4.0' -> '4.0'")


def test_every_row_is_a_problem_or_a_complaint(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"question": "q", "answer": 4}\n[]\n{"question": "r"}\n{"question": "s", "answer": 5}\n')
    reading = read_problems(path)
    assert [p.question for p in reading.problems] == ["q", "s"]
    assert [e.split(": ")[0] for e in reading.errors] == [f"{path}:2", f"{path}:3"]
