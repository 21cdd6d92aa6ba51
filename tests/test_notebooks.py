"""The notebooks as committed: executed, quiet, small, with what a reader should find. That they run is nbval's part."""

import json
import re

import pytest

from tests.conftest import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
READ = NOTEBOOKS  # to be read without running
COLUMNS, PRINTED = 88, 98  # of code, of printed text: what fits a page of 1,000 pixels
WIDGET = "application/vnd.jupyter.widget-view+json"


def cells(path, kind):
    return [c for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == kind]


def prose(path):
    return "\n\n".join("".join(c["source"]) for c in cells(path, "markdown"))


def test_there_are_seven():
    assert [p.name[:2] for p in NOTEBOOKS] == [f"{i:02d}" for i in range(7)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_executed_in_order_and_clean(path):
    code = cells(path, "code")
    assert [c["execution_count"] for c in code] == list(range(1, len(code) + 1))
    outputs = [o for c in code for o in c["outputs"]]
    assert not [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"]
    assert any("assert " in "".join(c["source"]) for c in code)
    assert path.stat().st_size < 600_000
    assert not re.search(r"/(?:work|root|tmp)/", path.read_text(encoding="utf-8")), "a path of the machine that it ran on"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_goals_predictions_exercises_solutions_summary_and_the_next(path):
    text = prose(path)
    assert text.startswith(f"# {path.name[:2]} · ")
    for part in ("**What you will leave with.**", "GLOSSARY.md", "## Exercises", "## Summary"):
        assert part in text, part
    assert len(re.findall(r"\*\*Predict", text)) + text.count("### Predict, then run") >= 1
    wanted = re.findall(r"^(\d)\. \*\((\d+) minutes\)\*", text.split("## Exercises")[1], re.MULTILINE)
    assert [int(number) for number, _ in wanted] == [*range(1, len(wanted) + 1)]
    assert len(wanted) >= 2
    hidden = ["".join(c["source"]) for c in cells(path, "code") if c["metadata"].get("jupyter", {}).get("source_hidden")]
    folded = re.findall(r"<details><summary>Solution (\d)", text)
    solved = [re.match(r"# Solution (\d)", source)[1] for source in hidden]
    assert sorted(solved + folded) == [number for number, _ in wanted]
    assert len(solved) == sum("# Solution" in "".join(c["source"]) for c in cells(path, "code")), "a solution lies open"
    here = NOTEBOOKS.index(path)
    if here + 1 < len(NOTEBOOKS):
        assert f"]({NOTEBOOKS[here + 1].name})" in text.split("## Summary")[1]
    for link in re.findall(r"\]\(([^)#\s]+)", text):
        assert link.startswith("http") or (path.parent / link).exists(), link


@pytest.mark.parametrize("path", READ, ids=lambda p: p.stem)
def test_it_can_be_read_without_running(path):
    question = False
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            question = question or bool(re.search(r"\*\*Predict|### Predict", source))
            continue
        assert not [line for line in source.splitlines() if len(line) > COLUMNS]
        hidden = cell["metadata"].get("jupyter", {}).get("outputs_hidden", False)
        if question and "heal.explore_" not in source:  # an explorer asks as one goes
            assert hidden, f"the answer lies open: {source[:60]}"
        question = False
        for output in cell["outputs"]:
            data = output.get("data", {})
            assert WIDGET not in data or "image/png" in data, "a widget without a picture"
            assert output["output_type"] == "stream" or {"image/png", "text/markdown", "text/html"} & set(data), "a raw repr"
            assert not [line for line in "".join(output.get("text", "")).splitlines() if len(line) > PRINTED]


def checked(path):
    """The code cells whose output nbval compares."""
    return [c for c in cells(path, "code") if "# NBVAL_CHECK_OUTPUT" in "".join(c["source"]).splitlines()]


def test_many_outputs_are_compared():
    assert sum(len(checked(path)) for path in READ) >= 30
    for cell in (c for path in READ for c in checked(path)):
        kinds = {kind for o in cell["outputs"] for kind in o.get("data", {"text": ""})}
        assert kinds & {"text", "text/markdown"}, "nbval compares no pictures"
