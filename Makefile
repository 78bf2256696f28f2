# Two commands matter: `make quickstart` and `make test`. Each makes what it needs first.

PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?= -n auto --maxprocesses 8 --dist loadfile

BIN := $(VENV)/bin
# A stamp is written after everything it stands for has succeeded; it is out of date when the metadata changes.
RUN_STAMP := $(VENV)/.installed-run
TEST_STAMP := $(VENV)/.installed-test

# Once, before several processes want it; says why where there is no compiler.
COMPILE_OPS = MASK2FORMER_OPS=auto $(BIN)/python -c 'from mask2former import ops; ops.backend()'

# The oldest supported versions: the lower bounds of pyproject.toml, in an environment beside the other.
OLDEST := $(VENV)-oldest
OLDEST_PYTHON ?= 3.10
OLDEST_STAMP := $(OLDEST)/.installed
# What depends on versions most: modules, autocast, serialisation, NumPy's and Pillow's data, the compiled op.
OLDEST_TESTS ?= tests/modeling tests/ops/test_ms_deform_attn.py tests/ops/test_library.py tests/checkpoint tests/d2 \
  $(wildcard tests/data/test_*.py) tests/engine/test_trainer.py tests/engine/test_precision.py \
  tests/engine/test_optimizer.py tests/engine/test_writers.py tests/evaluation/test_panoptic.py \
  tests/evaluation/test_semantic.py tests/tiling tests/predict tests/export/test_onnx.py -k 'not no_pickle'

export PIP_DISABLE_PIP_VERSION_CHECK = 1

.NOTPARALLEL:
.PHONY: help install venv quickstart test test-oldest lint format clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

quickstart: $(RUN_STAMP) ## Train, evaluate and draw a small model on this machine: output/quickstart/
	$(BIN)/python tools/quickstart.py --output output/quickstart

install: $(RUN_STAMP) ## Install what training and prediction need into .venv
	@echo "Installed. Start with: source $(VENV)/bin/activate"

test: lint ## Run the linters and all tests
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest $(PYTEST_ARGS)

test-oldest: $(OLDEST_STAMP) ## Run the main tests with the oldest supported versions
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(OLDEST)/bin/python -m pytest $(PYTEST_ARGS) $(OLDEST_TESTS)

lint: $(TEST_STAMP) ## Check format, lint rules and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(TEST_STAMP) ## Rewrite the sources as the linters want them
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean: ## Remove the environment, caches, builds and results
	rm -rf $(VENV) $(OLDEST) build dist *.egg-info output .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=python3.11 ...")'
	@if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	  rm -rf $(VENV); \
	  $(PYTHON) -m venv $(VENV) || { \
	    echo "No venv with pip of its own (Debian: package python3-venv); using the pip of $(PYTHON)."; \
	    rm -rf $(VENV); \
	    $(PYTHON) -m venv --without-pip $(VENV) && $(PYTHON) -m pip --python $(BIN)/python install pip; \
	  }; \
	fi

$(RUN_STAMP): pyproject.toml setup.py
	@$(MAKE) --no-print-directory venv
	$(BIN)/python -m pip install -e .
	$(COMPILE_OPS)
	@touch $@

# The judges of our metrics. They ask for an old NumPy, or for plotting libraries, that what we call does not need.
$(TEST_STAMP): pyproject.toml setup.py Makefile
	@$(MAKE) --no-print-directory venv
	$(BIN)/python -m pip install -e '.[test]'
	$(BIN)/python -m pip install --no-deps panopticapi-lite==0.2.0 cityscapesscripts==2.3.0 pyquaternion==0.9.9
	$(COMPILE_OPS)
	@touch $@

# uv finds the lowest versions that fit each other. pyenv offers a Python only when it is named.
$(OLDEST_STAMP): pyproject.toml setup.py Makefile
	@$(MAKE) --no-print-directory venv
	$(BIN)/python -m pip install 'uv>=0.4'
	rm -rf $(OLDEST)
	PYENV_VERSION=$(OLDEST_PYTHON) $(BIN)/python -m uv venv -q --no-python-downloads --python $(OLDEST_PYTHON) $(OLDEST) \
	  || $(BIN)/python -m uv venv -q $(OLDEST)
	$(BIN)/python -m uv pip install -q --no-cache --python $(OLDEST)/bin/python --resolution lowest-direct -e '.[test]'
	MASK2FORMER_OPS=auto $(OLDEST)/bin/python -c 'from mask2former import ops; ops.backend()'
	@touch $@
