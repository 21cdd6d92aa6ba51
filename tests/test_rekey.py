"""The recorded results were written under other names once; no number changed."""

import importlib.util
import json

import pytest

from tests.conftest import DATA

spec = importlib.util.spec_from_file_location("rekey", DATA / "rekey.py")
rekey = importlib.util.module_from_spec(spec)
spec.loader.exec_module(rekey)

OLD = {  # a piece of each record as it was written
    "results/pure.json": '{"arm": "shown answer: filter", "source": "shown wrong answer", "hinted": -18.8, "mean": 0.97}',
    "results/experiment.json": '{"stage": "frontier", "examples": {"foundation": 9, "guided": 12, "frontier": 31}, "kind": "frontier"}',
    "behaviour.json": '{"metric": "shown answer: correct", "mean": 0.99}',
}


def test_names_change_and_numbers_do_not():
    new = {name: json.loads(rekey.rekeyed(name, text)) for name, text in OLD.items()}
    assert new["results/pure.json"] == {
        "arm": "guided: filter", "source": "guided, wrong answer", "logprob_with_help": -18.8, "mean": 0.97}
    assert new["results/experiment.json"] == {
        "stage": "repaired", "examples": {"foundation": 9, "guided": 12, "repaired": 31}, "kind": "frontier"}
    assert new["behaviour.json"] == {"metric": "guided: correct", "mean": 0.99}


@pytest.mark.parametrize("name", rekey.NAMES)
def test_the_records_have_todays_names(name):
    text = (DATA / name).read_text(encoding="utf-8")
    assert rekey.rekeyed(name, text) == text
