"""Records survive a round trip; problem files with mistakes get one clear line each."""

import json
import subprocess
import sys

import pytest

from heal_ref.records import InputError, PureScore, from_row, read_records, to_row, write_jsonl
from heal_ref.run.sources import check_problems, load_problems
from tests.conftest import DATA


def test_round_trip(make, tmp_path):
    records = [make("a", correct=True), make("b", source="repair", parent=0, breakpoint=1, hint="this step gives 3")]
    records.append(PureScore(records[1], [1.5], [0.2], [3.0], 3.0))
    write_jsonl(tmp_path / "x" / "r.jsonl", map(to_row, records))
    assert read_records(tmp_path / "x" / "r.jsonl") == records
    assert [from_row(json.loads(json.dumps(to_row(r)))) for r in records] == records
    assert not list(tmp_path.glob("**/*.tmp"))


def test_sampled_trajectory_is_in_memory_what_it_is_in_the_file(teacher, task, validation, tmp_path):
    from heal_ref.generation import sample

    sampled = sample(teacher, task, validation[:3], n=2, seed=1)
    write_jsonl(tmp_path / "s.jsonl", map(to_row, sampled))
    assert read_records(tmp_path / "s.jsonl") == sampled


def test_step_entropy_by_hand(make):
    t = make(text="ab|c", entropy=[0.0, 0.3, 0.6, 2.0])
    assert t.step_entropy == pytest.approx([0.3, 2.0])


GOOD = {"id": "a", "question": "Start 5; + 3; * 4", "answer": 9}
BAD = {
    "missing field": (b'{"id": "a", "question": "Start 5; + 3"}', 'field "answer" is missing', "add"),
    "wrong type": (b'{"id": "a", "question": 5, "answer": 9}', '"question" must be a non-empty string', "quotes"),
    "empty id": (b'{"id": " ", "question": "Start 5; + 3", "answer": 8}', '"id" must be', "quotes"),
    "not an object": (b"[1, 2]", "must be an object", "write"),
    "answer is a list": (b'{"id": "a", "question": "Start 5; + 3", "answer": [8]}', '"answer" must be', "final answer"),
    "answer is true": (b'{"id": "a", "question": "Start 5; + 3", "answer": true}', '"answer" must be', "final answer"),
    "non-integer answer": (b'{"id": "a", "question": "Start 5; + 3", "answer": 8.5}', "is not an hour", "plain integer"),
    "answer in words": (b'{"id": "a", "question": "Start 5; + 3", "answer": "eight"}', "is not an hour", "plain integer"),
    "unknown operator": (b'{"id": "a", "question": "Start 5; ? 3", "answer": 8}', "unknown operator '?'", "known operators"),
    "answer does not follow": (b'{"id": "a", "question": "Start 5; + 3", "answer": 9}', "does not follow", "gives 8"),
    "kind does not fit": (b'{"id": "a", "question": "Start 5; + 3", "answer": 8, "kind": "x"}', "does not fit", "leave it out"),
    "length does not fit": (b'{"id": "a", "question": "Start 5; + 3", "answer": 8, "length": 2}', "length 2", "write 1"),
    "length is text": (b'{"id": "a", "question": "Start 5; + 3", "answer": 8, "length": "1"}', "must be an integer", "number"),
    "not UTF-8": (b'{"id": "\xff", "question": "Start 5; + 3", "answer": 8}', "not UTF-8", "UTF-8"),
    "broken line": (b'{"id": "a", "question": "Start 5; + 3", "answer": 8', "not valid JSON", "whole object"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_problem_files(name, task, tmp_path):
    line, what, remedy = BAD[name]
    path = tmp_path / "bad.jsonl"
    path.write_bytes(json.dumps(GOOD | {"id": "first"}).encode() + b"\n" + line + b"\n")
    problems, errors = check_problems(path, task)
    assert [p.id for p in problems] == ["first"]
    assert len(errors) == 1
    assert errors[0].startswith(f"{path}:2: ")
    assert what in errors[0]
    assert remedy in errors[0]
    assert "\n" not in errors[0]
    with pytest.raises(InputError):
        load_problems(path, task)


def test_every_bad_line_is_reported(task, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b"\n".join(line for line, _, _ in BAD.values()) + b"\n")
    assert len(check_problems(path, task)[1]) == len(BAD)


def test_duplicate_id_empty_file_missing_file_and_torn_last_line(task, tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + json.dumps(GOOD) + "\n")
    assert check_problems(path, task)[1] == [f'{path}:2: id "a" was used on line 1; give each problem its own id']
    path.write_text("")
    assert check_problems(path, task)[1] == [f"{path}:1: the file is empty; write one problem a line"]
    assert "no such file" in check_problems(tmp_path / "none.jsonl", task)[1][0]
    path.write_bytes((DATA / "clock" / "train.jsonl").read_bytes()[:-20])
    errors = check_problems(path, task)[1]
    assert len(errors) == 1
    assert "cut off" in errors[0]


def test_command_line_reports_and_exits_with_2(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(BAD["unknown operator"][0] + b"\n" + BAD["not UTF-8"][0] + b"\n")
    done = subprocess.run([sys.executable, "-m", "heal_ref", "check", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert [line.split(": ")[0] for line in done.stderr.splitlines()] == [f"{path}:1", f"{path}:2"]
    good = subprocess.run([sys.executable, "-m", "heal_ref", "check", str(DATA / "clock" / "train.jsonl")],
                          capture_output=True, text=True, check=False)
    assert (good.returncode, good.stderr) == (0, "")
