"""Pins, layout and notebooks: what a newcomer relies on."""

import ast
import io
import re
import tokenize
import tomllib

import pytest

import heal_ref
from heal_ref.config import PRESETS, GearConfig, PaceConfig
from heal_ref.records import InputError
from tests.conftest import ROOT


def test_conda_has_the_same_pins():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = {*project["dependencies"], *project["optional-dependencies"]["dev"]}
    conda = set(re.findall(r"^ +- (\S+==\S+)$", (ROOT / "environment.yml").read_text(), re.MULTILINE))
    assert conda == pins
    assert f"torch=={project['dependencies'][0].split('==')[1]}" in (ROOT / "Makefile").read_text()


def test_public_names_exist_and_are_documented():
    for name in heal_ref.__all__:
        assert getattr(heal_ref, name).__doc__, name
    assert len(set(heal_ref.__all__)) == len(heal_ref.__all__)


LAYERS = ["records", "config", "tasks", "entropy", "scoring", "sources", "generation", "lm", "plan", "gear", "pure", "train",
          "pace", "evaluate", "pipeline", "plots", "explore", "report", "lab", "__main__"]


def test_modules_import_only_leftwards():
    """Each module imports only from those before it in LAYERS: the method never imports what measures it."""
    for path in sorted((ROOT / "heal_ref").rglob("*.py")):
        name = path.relative_to(ROOT / "heal_ref").parts[0].removesuffix(".py")
        if name == "__init__":
            continue
        text = re.sub(r"^if TYPE_CHECKING:\n(?:    .*\n)+", "", path.read_text(), flags=re.MULTILINE)
        for other in re.findall(r"^ *from heal_ref\.(\w+)", text, re.MULTILINE):
            assert LAYERS.index(other) <= LAYERS.index(name), f"{path.name} imports {other}"


def test_the_method_never_asks_the_checker():
    for name in ("gear", "pure", "train", "pace", "lm", "entropy", "scoring"):
        text = (ROOT / "heal_ref" / f"{name}.py").read_text()
        assert not re.search(r"check_steps|is_genuine|first_wrong", text), name


def test_presets_and_ranges():
    for preset in PRESETS.values():
        assert preset(seed=3).seed == 3
    with pytest.raises(InputError, match="GearConfig.window is 0; it must lie between"):
        GearConfig(window=0)
    with pytest.raises(InputError, match="must be one of bridge, answer"):
        GearConfig(hint="guess")
    with pytest.raises(InputError, match="whole number"):
        GearConfig(paths=1.5)
    with pytest.raises(InputError, match="sum to 1"):
        PaceConfig(shares=(0.5, 0.1, 0.1))


def code_lines(tree, source):
    """Lines that hold code: no blank ones, comments or docstrings."""
    documented = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            documented |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    ignored = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    tokens = [t for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type not in ignored]
    return {line for t in tokens for line in range(t.start[0], t.end[0] + 1)} - documented


def test_everything_can_be_read_in_one_sitting():
    """No module over 300 lines, no function over 50, docstrings counted; the method (without the lab) under 2,500 of code."""
    together = 0
    for path in sorted((ROOT / "heal_ref").rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source)
        assert len(source.splitlines()) <= 300, path.name
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 50, f"{path.name}: {node.name}"
        together += 0 if "lab" in path.parts else len(code_lines(tree, source))
    assert together <= 2500
