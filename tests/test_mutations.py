"""The notebooks notice: a method or a record that is broken at one place makes a cell of theirs fail.

A mutation changes a copy of the repository. Of its notebook only those cells run that the asserting one, which has the
metadata tag `notices:TAG`, needs.
"""

import json
import os
import re
import shutil
import subprocess
import symtable
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import ROOT


class Mutation(NamedTuple):
    notebook: str  # the first digits of its name
    tag: str  # of the cell that notices
    file: str
    changes: dict[str, str] | Callable[[str], str]  # each text, which occurs once in the file, by another one; or of the whole


def swapped(*rows):
    """Two rows of gear.json exchange their arms: of each its arm, kind and metric."""
    texts = ['{{"arm": "{}", "kind": "{}", "metric": "{}",'.format(*row) for row in rows]
    return dict(zip(texts, reversed(texts), strict=True))


def exchanged(arm, other):
    """The runs of two arms of an experiment exchange their names."""

    def change(text):
        record, names = json.loads(text), {arm: other, other: arm}
        for run in record["runs"]:
            run["arm"] = names.get(run["arm"], run["arm"])
        return json.dumps(record)

    return change


MUTATIONS = {
    "entropy of a text / 3": Mutation("00", "entropy", "heal_ref/scoring.py", {
        "[total.log() - moment / total,": "[(total.log() - moment / total) / 3,"}),
    "entropy of a choice / 3": Mutation("01", "entropy", "heal_ref/entropy.py", {
        "total.log() - weight.mul_(below).sum(-1) / total": "(total.log() - weight.mul_(below).sum(-1) / total) / 3"}),
    "rise with the other sign": Mutation("01", "rise", "heal_ref/entropy.py", {"append(h - usual)": "append(usual - h)"}),
    "surge with the other sign": Mutation("01", "surge", "heal_ref/entropy.py", {
        "else after - before)": "else before - after)"}),
    "the answer as default hint": Mutation("02", "hint", "heal_ref/config.py", {'"none"] = "bridge"': '"none"] = "answer"'}),
    "two rows of gear.json swapped": Mutation("02", "record", "data/results/gear.json", swapped(
        ("bridge at rise", "frontier", "genuine per 1,000 tokens"),
        ("bridge at random step", "frontier", "genuine per 1,000 tokens"))),
    "a filter that keeps all": Mutation("03", "filter", "heal_ref/pure.py", {
        "enumerate(light(scored)) if s.score <= limit]": "enumerate(light(scored))]"}),
    "stages that hold their own data only": Mutation("04", "stages", "heal_ref/pace.py", {
        "parts = [*parts, data] if config.cumulative else [data]": "parts = [data]"}),
    "two arms swapped": Mutation("04", "arms", "data/results/one-pair.json", exchanged("heal", "heal_stage_only")),
    "HEAL and rejection sampling swapped": Mutation("05", "arms", "data/results/experiment.json", exchanged("heal", "rft")),
    "half the cache": Mutation("06", "cache", "heal_ref/run/plan.py", {
        "return 2 * config.num_hidden_layers": "return config.num_hidden_layers"}),
}
DRIVER = """
import json, sys, traceback
import heal_ref
space, found = {"__name__": "__main__"}, [None, None]
for i, cell in enumerate(json.load(sys.stdin)):
    try:
        exec(compile(cell, f"cell {i}", "exec"), space)
    except Exception as e:
        traceback.print_exc()
        found = [i, type(e).__name__]
        break
print()
print(json.dumps([heal_ref.__file__, *found]))
"""


def code_cells(notebook):
    """(source, tags) of the code cells of the notebook whose name begins so."""
    path = next((ROOT / "notebooks").glob(f"{notebook}_*.ipynb"))
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [("".join(c["source"]), c["metadata"].get("tags", [])) for c in cells if c["cell_type"] == "code"]


def global_names(source):
    """The global names that a cell assigns, and those that it reads."""
    assigned, read = set(), set()

    def visit(table, top):
        for s in table.get_symbols():
            if top and (s.is_assigned() or s.is_imported()):
                assigned.add(s.get_name())
            if s.is_referenced() and (top or s.is_global()):
                read.add(s.get_name())
        for child in table.get_children():
            visit(child, False)

    visit(symtable.symtable(source, "cell", "exec"), True)
    return assigned, read


def needed(notebook, tags):
    """The sources of the cells with these tags, and of those before them that assign a name which they read."""
    kept, wanted, sought = [], set(), {f"notices:{tag}" for tag in tags}
    for source, has in reversed(code_cells(notebook)):
        assigned, read = global_names(source)
        if sought & set(has) or assigned & wanted:
            kept.append(source)
            wanted |= read
            sought -= set(has)
    assert not sought, f"no cell of notebook {notebook} has the tags {sought}"
    return kept[::-1]


def run(root, cells):
    """The package that the cells used, the index of the cell that failed, and its error; None, None if all passed."""
    done = subprocess.run([sys.executable, "-c", DRIVER], input=json.dumps(cells), cwd=root, text=True, capture_output=True,
                          env=os.environ | {"PYTHONPATH": str(root)})
    assert done.returncode == 0, done.stderr[-2000:]
    package, cell, error = json.loads(done.stdout.splitlines()[-1])
    assert Path(package).is_relative_to(root)
    return cell, error, done.stderr[-2000:]


def changed(text, changes):
    """A text after the changes of a mutation."""
    if callable(changes):
        return changes(text)
    for old in changes:
        assert text.count(old) == 1, old
    return re.sub("|".join(map(re.escape, changes)), lambda found: changes[found[0]], text)


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTATIONS)
def test_a_cell_notices(name, tmp_path):
    mutation = MUTATIONS[name]
    for package in ("heal_ref", "heal_lab"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "data", tmp_path / "data", copy_function=os.symlink)
    file = tmp_path / mutation.file
    text = file.read_text(encoding="utf-8")
    file.unlink()
    file.write_text(changed(text, mutation.changes), encoding="utf-8")
    cells = needed(mutation.notebook, [mutation.tag])
    cell, error, said = run(tmp_path, cells)
    assert (cell, error) == (len(cells) - 1, "AssertionError"), said


@pytest.mark.slow
@pytest.mark.parametrize("notebook", sorted({m.notebook for m in MUTATIONS.values()}))
def test_the_same_cells_pass_as_they_are(notebook):
    cell, error, said = run(ROOT, needed(notebook, {m.tag for m in MUTATIONS.values() if m.notebook == notebook}))
    assert (cell, error) == (None, None), said


def test_every_tag_is_tried():
    for notebook in (f"{i:02d}" for i in range(7)):
        tags = {t.removeprefix("notices:") for _, has in code_cells(notebook) for t in has if t.startswith("notices:")}
        assert tags == {m.tag for m in MUTATIONS.values() if m.notebook == notebook}, notebook
