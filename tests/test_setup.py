"""Pins, layout and notebooks: what a newcomer relies on."""

import re
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
