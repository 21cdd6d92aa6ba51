"""What the README shows works as it stands."""

import re
import subprocess
import sys

from heal_ref.evaluate import Row
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
