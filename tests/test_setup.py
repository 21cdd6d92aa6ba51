"""Pins, layout and notebooks: what a newcomer relies on."""

import importlib.util
import json
import re
import tomllib
from urllib.parse import unquote, urlsplit

import pytest
from bs4 import BeautifulSoup

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


def test_uv_locks_the_same_pins_and_no_cuda():
    """On Linux nothing of the lock needs torch: PyPI's build would bring CUDA's libraries."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    locked = {package["name"]: package for package in tomllib.loads((ROOT / "uv.lock").read_text())["package"]}
    for pin in [*project["dependencies"], *project["optional-dependencies"]["dev"]]:
        name, version = pin.split("==")
        assert locked[name]["version"] == version
    assert {package["source"]["registry"] for name, package in locked.items() if name != "heal-ref"} == {"https://pypi.org/simple"}
    assert not [name for name in locked if name.startswith(("nvidia", "cuda", "triton"))]
    needing = [need for package in locked.values() for need in package.get("dependencies", ()) if need["name"] == "torch"]
    assert needing
    assert {need["marker"] for need in needing} == {"sys_platform != 'linux'"}


def test_public_names_exist_and_are_documented():
    for name in heal_ref.__all__:
        assert getattr(heal_ref, name).__doc__, name
    assert len(set(heal_ref.__all__)) == len(heal_ref.__all__)


def test_presets_and_ranges():
    for preset in PRESETS.values():
        assert preset(seed=3).seed == 3
    with pytest.raises(InputError, match="GearConfig.window is 0; it must lie between"):
        GearConfig(window=0)
    with pytest.raises(InputError, match="must be one of bridge, step, answer"):
        GearConfig(hint="guess")
    with pytest.raises(InputError, match="whole number"):
        GearConfig(paths=1.5)
    with pytest.raises(InputError, match="sum to 1"):
        PaceConfig(shares=(0.5, 0.1, 0.1))


@pytest.fixture(scope="module")
def render():
    """docs/render.py, which is no module of a package."""
    spec = importlib.util.spec_from_file_location("render", ROOT / "docs" / "render.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def repository(tmp_path):
    """A small one with what pages can hold; its notebook is the committed one with widgets and folded cells."""
    root = tmp_path / "repository"
    (root / "notebooks").mkdir(parents=True)
    name = "01_entropy.ipynb"
    (root / "notebooks" / name).write_text((ROOT / "notebooks" / name).read_text(encoding="utf-8"), encoding="utf-8")
    for other in ("00_world", "02_gear"):
        cell = {"cell_type": "markdown", "id": "a", "metadata": {}, "source": f"# {other}\n\n**What you will leave with.** One. Two."}
        notebook = {"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
        (root / "notebooks" / f"{other}.ipynb").write_text(json.dumps(notebook))
    (root / "GLOSSARY.md").write_text("# Words\n")
    (root / "PAPER.md").write_text("# Paper\n\n## Readings\n")
    (root / "dot.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    (root / "record.json").write_text("{}")
    (root / "data" / "results").mkdir(parents=True)
    (root / "data" / "results" / "gear.json").write_text("{}")
    (root / "README.md").write_text(
        "# Project\n\n![dot](dot.svg) [one](notebooks/01_entropy.ipynb) [a record](record.json) <a href='PAPER.md#readings'>r</a>\n\n"
        "If $k \\ne 1$, the rise $\\Delta_k = H_k - \\frac{1}{k-1} \\sum_{j<k} H_j$ is\n\n$$r_k = \\exp(H_k)$$\n")
    return root


def test_pages_are_whole_and_their_links_lead_somewhere(render, repository, capsys):
    out = repository.parent / "html"
    assert render.main(["--root", str(repository), "--out", str(out)]) == 0
    assert capsys.readouterr().out.startswith("7 pages")
    pages = {path: BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser") for path in out.rglob("*.html")}
    for path, page in pages.items():
        assert not page(["script", "link"]), "it fetches, or is drawn by, something else"
        assert all(image["src"].startswith("data:image/") for image in page("img"))
        for link in (a["href"] for a in page("a", href=True)):
            parts = urlsplit(link)
            if not parts.scheme:
                target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
                assert target.is_file(), link
                assert not parts.fragment or pages[target].find(id=parts.fragment), link
    entropy = pages[out / "notebooks" / "01_entropy.html"]
    shown = [cell.summary.text for cell in entropy("details") if cell.find_parent(class_="jp-CodeCell")]
    assert [text[:10] for text in shown if text != "Show the output"] == ["Solution 1", "Solution 2", "Solution 3"]
    assert len(entropy("img")) >= 3
    assert len(pages[out / "README.html"]("img", class_="formula")) == 3
    index = pages[out / "index.html"].text
    assert "00_world" in index
    assert "One." in index
    assert "Two." not in index


@pytest.mark.slow
def test_all_pages_of_this_repository_are_whole(render, tmp_path, capsys):
    assert render.main(["--out", str(tmp_path)]) == 0, capsys.readouterr().err


@pytest.mark.parametrize(("text", "message"), [
    ("[gone](docs/gone.md)", "README.md: docs/gone.md leads to no file of the repository; mend the link"),
    ("[out](../html)", "README.md: ../html leads to no file of the repository; mend the link"),
    ("![gone](gone.png)", "README.md: gone.png leads to no file of the repository; mend the link"),
    ("[r](PAPER.md#reading)", "README.md: PAPER.md#reading: that page has no heading reading; mend the link"),
    ("$\\nosuch{k}$", "README.md: $\\nosuch{k}$: matplotlib cannot draw this formula"),
    ("$$\\begin{cases}1\\end{cases}$$", "README.md: $\\begin{cases}1\\end{cases}$: matplotlib cannot draw this formula"),
    ("\\begin{align}1\\end{align}", "README.md: \\begin{align} cannot be drawn; write it between $$ and $$")])
def test_pages_that_are_not_whole_are_refused(text, message, render, tmp_path, capsys):
    (tmp_path / "README.md").write_text(f"# Project\n\n{text}\n")
    (tmp_path / "PAPER.md").write_text("# Paper\n\n## Readings\n")
    assert render.main(["--root", str(tmp_path), "--out", str(tmp_path / "html")]) == 2
    said = capsys.readouterr().err
    assert said.startswith(message)
    assert said.count("\n") == 1
