"""What the README shows works as it stands."""

import json
import re
import subprocess
import sys

from heal_ref.evaluate import Row
from heal_ref.lab.plots_arms import ARM_LABEL
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()


def test_the_python_snippet_runs(monkeypatch):
    monkeypatch.chdir(ROOT)
    names = {}
    exec(re.search(r"```python\n(.*?)```", README, re.DOTALL)[1], names)  # noqa: S102
    assert names["kept"]
    assert all(isinstance(r, Row) for r in names["report"])
    assert list(names["stages"]) == ["foundation", "guided", "frontier"]


def test_commands_and_files_exist():
    help_text = subprocess.run([sys.executable, "-m", "heal_ref", "--help"], capture_output=True, text=True, check=True).stdout
    for command in re.findall(r"python -m heal_ref ([\w-]+)", README):
        assert command in help_text
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert f"\n{target}:" in (ROOT / "Makefile").read_text()
    for text in (README, (ROOT / "PAPER.md").read_text(), (ROOT / "data" / "README.md").read_text()):
        for link in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (ROOT / link).exists() or (ROOT / "data" / link).exists(), link


def test_paper_table_names_real_code_and_tests():
    paper = (ROOT / "PAPER.md").read_text()
    for module, name in re.findall(r"`(\w+)\.(\w+)`", paper):
        if (ROOT / "heal_ref" / f"{module}.py").exists():
            assert re.search(rf"^(def|class) {name}\b", (ROOT / "heal_ref" / f"{module}.py").read_text(), re.MULTILINE), name
    tests = re.findall(r"`(test_\w+\.py)::(test_\w+)`", paper)
    assert len(tests) >= 6
    for file, name in tests:
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(), name


def test_result_table_is_the_record():
    record = json.loads((ROOT / "data" / "results" / "experiment.json").read_text())
    of = {(ARM_LABEL[r["arm"]], r["kind"]): f"{r['mean']:.2f} [{r['low']:.2f}, {r['high']:.2f}]" for r in record["rows"]
          if r["pair"] == "all" and r["metric"] == "pass@1"}
    lines = [[c.strip() for c in line.strip("|").split("|")] for line in README.splitlines() if line.startswith("|")]
    head = next(line for line in lines if line[0] == "sampled pass@1")
    shown = [line for line in lines if (line[0], "frontier") in of]
    assert len(shown) >= 10
    for line in shown:
        assert line[1:] == [of[line[0], kind] for kind in head[1:]], line[0]
