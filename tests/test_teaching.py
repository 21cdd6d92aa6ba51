"""docs/teaching.md: sessions of an hour, of sections and exercises that there are."""

import json
import re

import pytest

from tests.conftest import ROOT

TEXT = (ROOT / "docs" / "teaching.md").read_text(encoding="utf-8")
SESSIONS = re.split(r"^## Session ", TEXT, flags=re.MULTILINE)[1:]


def sections(number):
    """Numbers of the sections of a notebook, and of its exercises."""
    (path,) = (ROOT / "notebooks").glob(f"{number}_*.ipynb")
    text = "\n".join("".join(cell["source"]) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"])
    return set(re.findall(r"^## (\d)\.", text, re.MULTILINE)), set(re.findall(r"^(\d)\. \*\(", text, re.MULTILINE))


def rows(session):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in session.split("\n\n## ")[0].splitlines()
            if re.match(r"\| \d", line)]


@pytest.mark.parametrize("session", SESSIONS, ids=lambda text: text[0])
def test_a_session_is_an_hour(session):
    assert sum(int(row[0]) for row in rows(session)) == 60
    assert all(row[3].endswith("?") for row in rows(session))


def test_the_sections_and_exercises_are_there():
    used = set()
    for session in SESSIONS:
        for row in rows(session):
            if found := re.match(r"\[?(\d\d)\]?(?:\([^)]*\))?, (.*)", row[1]):
                low, *high = (int(n) for n in re.findall(r"\d", found[2]))
                wanted = range(low, high[-1] + 1) if " to " in found[2] else [low, *high]
                assert {str(n) for n in wanted} <= sections(found[1])[0], row[1]
                used.add(found[1])
    assert used == {f"0{n}" for n in range(6)}
    for exercise, number in re.findall(r"exercise (\d) of (\d\d)", TEXT):
        assert exercise in sections(number)[1]
    for section, number in ((s, n) for n, s in re.findall(r"\b(\d\d), (\d)\b", TEXT.split("## What goes wrong")[1])):
        assert section in sections(number)[0]
