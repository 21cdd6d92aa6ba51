"""Problems from any dataset: files, saved folders, columns of other names; what is wrong is said in one line."""

import json

import pytest
from datasets import Dataset, DatasetDict

from heal_ref.records import InputError
from heal_ref.run.sources import import_problems, parse_columns
from heal_ref.tasks import ClockTask

ROWS = [{"problem": "Start 5; + 3", "solution": 8, "level": "mastered"},
        {"problem": "Start 1; * 4", "solution": 4, "level": "mastered"}]
COLUMNS = {"question": "problem", "answer": "solution", "kind": "level"}


def write(path, kind):
    data = Dataset.from_list(ROWS)
    if kind == "folder":
        data.save_to_disk(str(path))
    elif kind == "splits":
        DatasetDict({"train": data, "test": data.select([0])}).save_to_disk(str(path))
    else:
        {"json": data.to_json, "csv": data.to_csv, "parquet": data.to_parquet}[kind](str(path))
    return str(path)


@pytest.mark.parametrize(("name", "kind"), [("a.json", "json"), ("a.csv", "csv"), ("a.parquet", "parquet"), ("saved", "folder"),
                                            ("splits", "splits")])
def test_every_kind_of_source_gives_the_same_problems(tmp_path, name, kind):
    source = write(tmp_path / name, kind)
    problems = import_problems(source, tmp_path / "out.jsonl", ClockTask(), COLUMNS)
    assert [(p.id, p.question, p.answer, p.kind) for p in problems] == [
        ("1", "Start 5; + 3", "8", "mastered"), ("2", "Start 1; * 4", "4", "mastered")]
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 2


def test_another_split(tmp_path):
    source = write(tmp_path / "splits", "splits")
    assert len(import_problems(source, tmp_path / "out.jsonl", ClockTask(), COLUMNS, "test")) == 1
    with pytest.raises(InputError, match="has no split 'dev', only train, test; choose one with --split"):
        import_problems(source, tmp_path / "other.jsonl", ClockTask(), COLUMNS, "dev")


def test_what_is_wrong_is_said(tmp_path):
    source = write(tmp_path / "a.json", "json")
    with pytest.raises(InputError, match="has no column 'question' for question, only problem, solution, level"):
        import_problems(source, tmp_path / "out.jsonl")
    with pytest.raises(InputError, match="has no column 'id_' for id"):
        import_problems(source, tmp_path / "out.jsonl", None, COLUMNS | {"id": "id_"})
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read as problems"):
        import_problems(str(tmp_path / "broken.json"), tmp_path / "out.jsonl")
    wrong = json.dumps({"problem": "Start 5; + 3", "solution": 9})
    (tmp_path / "wrong.json").write_text(wrong)
    with pytest.raises(InputError, match="the answer 9 does not follow from the chain"):
        import_problems(str(tmp_path / "wrong.json"), tmp_path / "out.jsonl", ClockTask(),
                        {"question": "problem", "answer": "solution"})


@pytest.mark.parametrize("bad", ["question", "question=", "colour=red", "=x"])
def test_columns_are_field_and_column(bad):
    assert parse_columns(["question=problem", "answer=a=b"]) == {"question": "problem", "answer": "a=b"}
    with pytest.raises(InputError, match="write FIELD=COLUMN"):
        parse_columns([bad])
