"""Records survive a round trip."""

import json
from dataclasses import asdict

import pytest

from heal_ref.records import PureScore, from_row, write_jsonl


def through_a_file(path, records):
    write_jsonl(path, map(asdict, records))
    return [from_row(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def test_round_trip(make, tmp_path):
    records = [make("a", correct=True), make("b", source="repair", parent=0, breakpoint=1, hint="this step gives 3")]
    records.append(PureScore(records[1], [1.5], [0.2], [3.0], 3.0))
    assert through_a_file(tmp_path / "x" / "r.jsonl", records) == records
    assert not list(tmp_path.glob("**/*.tmp"))


def test_sampled_trajectory_is_in_memory_what_it_is_in_the_file(teacher, task, validation, tmp_path):
    from heal_ref.generation import sample

    sampled = sample(teacher, task, validation[:3], n=2, seed=1)
    assert through_a_file(tmp_path / "s.jsonl", sampled) == sampled


def test_step_entropy_by_hand(make):
    t = make(text="ab|c", entropy=[0.0, 0.3, 0.6, 2.0])
    assert t.step_entropy == pytest.approx([0.3, 2.0])
