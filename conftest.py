"""What the examples in docstrings take as given: `import heal_ref as heal`."""

import pytest

import heal_ref


@pytest.fixture(autouse=True)
def heal_in_examples(doctest_namespace):
    doctest_namespace["heal"] = heal_ref
