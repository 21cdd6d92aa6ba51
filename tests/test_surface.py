"""Every public name shows how it is used: an example in its docstring, which pytest runs as a doctest."""

import doctest
import sys

import pytest

import heal_ref


@pytest.mark.parametrize("name", [name for name in heal_ref.__all__ if name != "DATA"])
def test_public_names_have_an_example_that_runs(name):
    public = getattr(heal_ref, name)
    assert "Example:" in (public.__doc__ or ""), "no Example section"
    found = doctest.DocTestFinder().find(sys.modules[public.__module__])
    assert [t for t in found if t.name == f"{public.__module__}.{name}" and t.examples], "doctest finds no example"
