"""LOG.md: newest first, every entry with a pointer that leads somewhere, numbers as in the records."""

import re
import subprocess

import pytest

from heal_lab.compare import Results
from heal_lab.evidence import read_record
from tests.conftest import ROOT

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
    names = "experiment", "one-pair", "tokens"
    whole, one, tokens = (Results(read_record(name)) for name in names)
    weak, second = (Results(read_record("weak-2400"), pair=pair) for pair in "02")
    said = " ".join(LOG.split())
    for of, arm, other in ((whole, "heal", "rft_adaptive"), (whole, "heal", "heal_no_pace"), (one, "heal", "heal_no_pace"),
                           (one, "heal_equal", "heal_no_pace"), (tokens, "heal@0.5", "rft_adaptive@0.5"),
                           (tokens, "heal@2", "rft_adaptive@2"), (tokens, "heal@0.5", "rft_adaptive"),
                           (tokens, "heal@4", "rft_adaptive@4"), (tokens, "heal@4", "heal"),
                           (tokens, "heal_few@4", "rft_adaptive@4"), (tokens, "heal_few@4", "heal@4"),
                           (weak, "heal_equal", "heal_no_pace"), (weak, "heal_restarts", "heal_no_pace"),
                           (second, "heal_equal", "heal_no_pace"), (second, "heal_restarts", "heal_no_pace")):
        row = of.difference(arm, other, "frontier")
        assert f"{row.mean:+.2f} [{row.low:+.2f}, {row.high:+.2f}]" in said, (arm, other)
    for arm in ("heal", "rft_adaptive", "rft"):
        row = whole.row(arm, "frontier")
        assert f"{row.mean:.2f} [{row.low:.2f}, {row.high:.2f}]" in said, arm
