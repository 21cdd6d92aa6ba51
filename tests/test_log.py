"""LOG.md: newest first, every entry with a pointer that leads somewhere, numbers as in the records."""

import json
import re
import subprocess

import pytest

from heal_lab.compare import Results
from tests.conftest import DATA, ROOT

LOG = (ROOT / "LOG.md").read_text(encoding="utf-8")
ENTRIES = [" ".join(entry.split()) for entry in re.split(r"^- ", LOG, flags=re.MULTILINE)[1:]]


def test_newest_first_and_short():
    dates = re.findall(r"^## (\d{4}-\d\d-\d\d)$", LOG, re.MULTILINE)
    assert dates == sorted(set(dates), reverse=True)
    assert len(LOG.splitlines()) <= 170


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry[2:30])
def test_every_entry_points_somewhere(entry):
    _, arrow, pointers = entry.split(" ## ")[0].partition("→ ")
    assert arrow, "no pointer"
    paths = re.findall(r"`((?:heal_ref|heal_lab|data|tests)/[\w./-]+)`", pointers)
    assert all((ROOT / path).exists() for path in paths), paths
    commits = re.findall(r"\b[0-9a-f]{7}\b", pointers)
    assert paths or commits or "notebook" in pointers or "`" in pointers
    full = subprocess.run(["git", "rev-parse", "--is-shallow-repository"], cwd=ROOT, capture_output=True, text=True)
    if full.stdout.strip() == "false":
        for commit in commits:
            found = subprocess.run(["git", "cat-file", "-e", f"{commit}^{{commit}}"], cwd=ROOT, capture_output=True)
            assert found.returncode == 0, commit


def test_differences_are_the_records():
    results = Results(json.loads((DATA / "results" / "experiment.json").read_text()))
    for arm, other, kind in (("heal", "heal_no_pace", "frontier"), ("heal_restarts", "heal", "frontier"),
                             ("heal_stage_only", "heal", "mastered"),
                             ("heal_oracle_filter", "heal", "misconceived")):
        row = results.difference(arm, other, kind)
        said = f"{row.mean:+.2f} [{row.low:+.2f}, {row.high:+.2f}]".replace("-", "−")
        assert said in " ".join(LOG.split()), (arm, said)
    for arm, kind in (("rft", "frontier"), ("rft_matched", "frontier"), ("star", "mastered"), ("heal", "mastered")):
        row = results.row(arm, kind)
        assert f"{row.mean:.2f} [{row.low:.2f}, {row.high:.2f}]" in " ".join(LOG.split()), (arm, kind)
