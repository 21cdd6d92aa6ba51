"""The shape of the two packages: who imports whom, how long things are, what the method may ask."""

import ast
import re
import statistics

import pytest

from tests.conftest import ROOT

PACKAGES = {"heal_ref": 7594, "heal_lab": 3970}  # lines, docstrings and blank lines included
COLUMNS, FUNCTION, MEDIAN, DEPTH = 100, 75, 8, 8


def modules(package):
    """Module name -> syntax tree; a package's __init__ goes by the package's name."""
    out = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        out[name] = ast.parse(path.read_text(encoding="utf-8"))
    return out


def imports(trees):
    """Module -> the modules of the same package that it imports, wherever in its text."""
    out = {}
    for name, tree in trees.items():
        found = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                for target in (f"{node.module}.{a.name}" for a in node.names):
                    found.add(target if target in trees else node.module)
            elif isinstance(node, ast.Import):
                found |= {a.name for a in node.names}
        out[name] = (found & trees.keys()) - {name, name.split(".")[0]}
    return out


@pytest.mark.parametrize("package", PACKAGES)
def test_no_import_circle_and_few_levels(package):
    arrows, depth = imports(modules(package)), {}

    def level(name, path=()):
        assert name not in path, f"import circle: {' -> '.join([*path, name])}"
        if name not in depth:
            depth[name] = 1 + max((level(other, (*path, name)) for other in arrows[name]), default=0)
        return depth[name]

    for name in arrows:
        level(name)
    assert max(depth.values()) <= DEPTH, depth


def test_the_method_never_imports_the_laboratory():
    for path in (ROOT / "heal_ref").rglob("*.py"):
        assert not re.search(r"^\s*(?:from|import) heal_lab", path.read_text(encoding="utf-8"), re.MULTILINE), path


def test_the_method_never_asks_the_checker():
    for name in ("gear", "pure", "pace", "train", "model", "entropy", "scoring", "generation"):
        text = (ROOT / "heal_ref" / f"{name}.py").read_text(encoding="utf-8")
        assert not re.search(r"check_steps|is_genuine|first_wrong", text), name


@pytest.mark.parametrize("package", PACKAGES)
def test_a_reader_can_keep_it_in_mind(package):
    lengths, lines = [], 0
    for path in sorted((ROOT / package).rglob("*.py")):
        text = path.read_text(encoding="utf-8").splitlines()
        lines += len(text)
        assert not [f"{path.name}:{i}" for i, line in enumerate(text, 1) if len(line) > COLUMNS]
    for name, tree in modules(package).items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                lengths.append(body_lines(node))
                assert node.end_lineno - node.lineno < FUNCTION, f"{name}.{node.name}"
    assert statistics.median(lengths) <= MEDIAN
    assert lines <= PACKAGES[package]


def body_lines(function):
    """Lines of a function without its docstring."""
    start = function.body[0]
    documented = ast.get_docstring(function) is not None
    first = start.end_lineno + 1 if documented else start.lineno
    return max(0, function.end_lineno - first + 1) + 1


def test_a_repair_reaches_a_tensor_within_five_modules():
    """From gear.repair along the calls that it makes: the modules passed before one that imports torch."""
    trees = modules("heal_ref")
    arrows, seen, level = imports(trees), {"heal_ref.gear"}, {"heal_ref.gear"}
    crossed = 0
    while not any("import torch" in ast.unparse(trees[name]) for name in level):
        level = {other for name in level for other in arrows[name]} - seen
        seen |= level
        crossed += 1
        assert level, "no module that it reaches imports torch"
    assert crossed <= 5
