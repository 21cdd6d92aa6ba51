# `make demo`, `make test`, `make lab`: each makes .venv first.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
NOTEBOOKS := $(wildcard notebooks/*.ipynb)

# Fewer page faults for the big short-lived tensors of CPU training: about a sixth faster here, same numbers.
export MALLOC_MMAP_THRESHOLD_ = 4000000000
export MALLOC_TRIM_THRESHOLD_ = 8000000000
export TOKENIZERS_PARALLELISM = false
export HF_HUB_OFFLINE = 1

.PHONY: demo lab test lint unit notebooks clean

demo: $(VENV)/.installed
	$(BIN)/python -m heal_ref demo

lab: $(VENV)/.installed
	$(BIN)/jupyter lab notebooks/00_world.ipynb

test: lint unit notebooks

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/mypy

unit: $(VENV)/.installed
	$(BIN)/python -m pytest --cov --cov-report=term:skip-covered --cov-fail-under=90

# One pytest run for each notebook: a hang stays in its notebook.
notebooks: $(VENV)/.installed
	set -e; for notebook in $(NOTEBOOKS); do \
	  $(BIN)/python -m pytest --nbval-lax --nbval-cell-timeout=300 -p no:cacheprovider $$notebook; done

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) runs
